//! One change as watchers see it: encoded at most once for all of them.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use decapod_storage::Revision;
use tokio::time::Instant;

use super::object::Object;
use super::select::Selection;

/// What a watcher is told of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It is there, or came into the selection.
    Added,
    /// It changed.
    Modified,
    /// It is gone, or left the selection.
    Deleted,
}

impl Kind {
    /// As it is written into the frame.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One change of one object.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) revision: Revision,
    /// When it reached the cache.
    pub(super) at: Instant,
    key: Arc<str>,
    /// What is there now; nothing if it was deleted.
    pub(super) current: Option<Arc<Object>>,
    /// What was there before.
    pub(super) previous: Option<Arc<Object>>,
    /// The last state, as it is told when it is gone.
    departed: OnceLock<Arc<Object>>,
    frames: Mutex<Frames>,
}

/// Frames that were made for those who wanted them, while others are expected to want them too.
#[derive(Debug, Default)]
struct Frames {
    /// Those of the usual form have no rendition.
    made: Vec<(Kind, Option<Rendition>, Bytes)>,
    forgotten: bool,
}

/// A form and encoding of frames, as whoever makes them numbers them.
pub(crate) type Rendition = u8;

impl Event {
    pub(super) fn new(
        revision: Revision,
        at: Instant,
        key: Arc<str>,
        current: Option<Arc<Object>>,
        previous: Option<Arc<Object>>,
    ) -> Self {
        Self { revision, at, key, current, previous, departed: OnceLock::new(), frames: Mutex::default() }
    }

    pub(super) fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// Both states, as far as there are.
    pub(super) fn states(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.current.iter().chain(&self.previous)
    }

    /// What the change is to a watcher of this selection, if anything: an object that comes to
    /// match is added, one that ceases to is deleted, whatever the change was.
    pub(super) fn seen_by(&self, selection: &Selection) -> Option<Kind> {
        let matches =
            |object: &Option<Arc<Object>>| object.as_ref().is_some_and(|object| selection.matches(object));
        match (matches(&self.previous), matches(&self.current)) {
            (false, true) => Some(Kind::Added),
            (true, true) => Some(Kind::Modified),
            (true, false) => Some(Kind::Deleted),
            (false, false) => None,
        }
    }

    /// The object as it is told.
    fn object(&self, kind: Kind) -> &Arc<Object> {
        let told = match kind {
            Kind::Added | Kind::Modified => self.current.as_ref(),
            Kind::Deleted => self
                .previous
                .as_ref()
                .map(|previous| self.departed.get_or_init(|| Arc::new(previous.departed(self.revision)))),
        };
        told.expect("an event is told as what its states say")
    }

    /// A frame, made by the first who wants it while the others wait.
    fn frame<E>(
        &self,
        kind: Kind,
        rendition: Option<Rendition>,
        make: impl FnOnce(Kind, &Object) -> Result<Bytes, E>,
    ) -> Result<Bytes, E> {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((.., frame)) = frames.made.iter().find(|(k, r, _)| (*k, *r) == (kind, rendition)) {
            return Ok(frame.clone());
        }
        let frame = make(kind, self.object(kind))?;
        if !frames.forgotten {
            frames.made.push((kind, rendition, frame.clone()));
        }
        Ok(frame)
    }

    /// Lets go of the frames: who has not seen the event by now makes his own.
    pub(super) fn forget_frames(&self) {
        let forgotten = Frames { made: Vec::new(), forgotten: true };
        *self.frames.lock().unwrap_or_else(PoisonError::into_inner) = forgotten;
    }

    /// What a frame takes in memory, about.
    pub(super) fn frame_size(&self) -> usize {
        self.states().map(|object| object.len()).max().unwrap_or_default()
    }

    /// What it takes in memory while it is kept, without its frames: the state that went.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>() + self.previous.as_ref().map_or(0, |object| object.size())
    }
}

/// One line of a watch.
fn frame(kind: Kind, object: &Object) -> Bytes {
    const HEAD: &[u8] = br#"{"type":""#;
    const MIDDLE: &[u8] = br#"","object":"#;
    let kind = kind.as_str().as_bytes();
    let mut bytes = BytesMut::with_capacity(HEAD.len() + kind.len() + MIDDLE.len() + object.len() + 2);
    bytes.put_slice(HEAD);
    bytes.put_slice(kind);
    bytes.put_slice(MIDDLE);
    object.write(&mut bytes);
    bytes.put_slice(b"}\n");
    bytes.freeze()
}

/// What a watch delivers.
#[derive(Clone, Debug)]
pub(crate) enum Delivery {
    /// An object that was there when the watch began.
    Initial(Arc<Object>),
    /// A change.
    Change(Change),
    /// Everything up to this revision was delivered.
    Bookmark {
        /// The revision from which a watch can be resumed.
        revision: Revision,
        /// Whether it ends the initial events (`k8s.io/initial-events-end`).
        initial_end: bool,
    },
}

/// A change as one watcher is told of it.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) kind: Kind,
    event: Arc<Event>,
}

impl Change {
    pub(super) fn new(kind: Kind, event: Arc<Event>) -> Self {
        Self { kind, event }
    }

    /// The object as it is now, or as it was last if it is gone; always with the revision of the
    /// change.
    pub(crate) fn object(&self) -> &Arc<Object> {
        self.event.object(self.kind)
    }
}

impl Delivery {
    /// The object and what is told of it; nothing for a bookmark.
    pub(crate) fn object(&self) -> Option<(Kind, &Arc<Object>)> {
        match self {
            Self::Initial(object) => Some((Kind::Added, object)),
            Self::Change(change) => Some((change.kind, change.object())),
            Self::Bookmark { .. } => None,
        }
    }

    /// The frame in another form and encoding, for a change made once for all watchers; nothing for a
    /// bookmark.
    pub(crate) fn rendition<E>(
        &self,
        rendition: Rendition,
        make: impl FnOnce(Kind, &Object) -> Result<Bytes, E>,
    ) -> Option<Result<Bytes, E>> {
        match self {
            Self::Initial(object) => Some(make(Kind::Added, object)),
            Self::Change(change) => Some(change.event.frame(change.kind, Some(rendition), make)),
            Self::Bookmark { .. } => None,
        }
    }

    /// The line of the watch that tells of the object, `{"type":…,"object":…}` and a line feed; for
    /// a change it is made once for all watchers. Nothing for a bookmark, of which the row's kind
    /// would have to be known.
    pub(crate) fn frame(&self) -> Option<Bytes> {
        match self {
            Self::Initial(object) => Some(frame(Kind::Added, object)),
            Self::Change(change) => {
                let make = |kind, object: &_| Ok::<_, Infallible>(frame(kind, object));
                let Ok(frame) = change.event.frame(change.kind, None, make);
                Some(frame)
            }
            Self::Bookmark { .. } => None,
        }
    }
}
