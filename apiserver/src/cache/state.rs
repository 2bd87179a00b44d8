//! One row at its newest revision, and the last events that led there: the window.
//!
//! What lives is in a persistent ordered map, so that a reader takes a snapshot of it for nothing. It is
//! changed in place: only what a reader still holds is copied. An older revision is the newest one with
//! the events since undone.
//!
//! **Invariant:** `window` holds every event of the row after `oldest`, in order.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use decapod_storage::Revision;
use imbl::OrdMap;
use tokio::time::Instant;

use super::Error;
use super::event::Event;
use super::marks::Marks;
use super::object::Object;

/// Objects by key.
pub(super) type Live = OrdMap<Arc<str>, Held>;

/// An object in the map, with what tells most selectors that it is none of theirs: the map's memory is gone through in
/// a row, while to look at an object is to wait for memory.
#[derive(Clone, Debug)]
pub(super) struct Held {
    marks: Marks,
    object: Arc<Object>,
}

impl From<Arc<Object>> for Held {
    fn from(object: Arc<Object>) -> Self {
        Self { marks: object.marks(), object }
    }
}

/// Events that a row keeps at most. As many as the store keeps for all rows would be too: one that
/// changes so fast needs nearly all of them.
const WINDOW_EVENTS: usize = 8_192;
/// Bytes of past states that a row's window keeps at most: with three rows that change fast a tenth of what a large
/// cluster may take in all.
const WINDOW_BYTES: usize = 10 << 20;
/// Bytes of frames that a row keeps about, of its newest events: what watchers that keep up share. A thousand events of
/// the usual object: one that is further behind than a fraction of a second makes its own.
const FRAME_BYTES: usize = 2 << 20;
/// For how long: Kubernetes promises clients five minutes to take up where they were.
pub(super) const WINDOW_AGE: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
pub(super) struct State {
    live: Live,
    window: VecDeque<Arc<Event>>,
    /// That of the last event; the row is what it is at every later one that the cache has reached.
    pub(super) revision: Revision,
    /// The oldest revision that can be read or watched from.
    pub(super) oldest: Revision,
    bytes: usize,
    /// How many of the newest events may have frames, and of what size together.
    framed: (usize, usize),
}

/// What lived at an older revision: the newest state and the events to undo, the last first.
pub(super) struct Past {
    live: Live,
    undo: Vec<Arc<Event>>,
}

impl Past {
    pub(super) fn restore(mut self) -> Live {
        for event in &self.undo {
            match &event.previous {
                Some(previous) => self.live.insert(Arc::clone(event.key()), Arc::clone(previous).into()),
                None => self.live.remove(event.key()),
            };
        }
        self.live
    }
}

impl State {
    pub(super) fn starting_at(revision: Revision, objects: impl IntoIterator<Item = Object>) -> Self {
        let entry = |object: Object| (Arc::clone(object.key()), Held::from(Arc::new(object)));
        let live = objects.into_iter().map(entry).collect();
        Self { live, revision, oldest: revision, ..Self::default() }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Arc<Object>> {
        self.live.get(key).map(|held| &held.object)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.live.len()
    }

    /// What lives now.
    pub(super) fn live(&self) -> Live {
        self.live.clone()
    }

    /// Whether the row can be read and watched from this revision.
    pub(super) fn check(&self, requested: Revision) -> Result<(), Error> {
        if requested < self.oldest {
            return Err(Error::Expired { requested, oldest: self.oldest });
        }
        Ok(())
    }

    /// What lived under the prefix at a revision; other keys are as they may be.
    pub(super) fn past(&self, revision: Revision, prefix: &str) -> Result<Past, Error> {
        self.check(revision)?;
        let since = self.after(revision).rev().filter(|event| event.key().starts_with(prefix));
        Ok(Past { live: self.live(), undo: since.cloned().collect() })
    }

    /// The events after a revision.
    pub(super) fn after(&self, revision: Revision) -> impl DoubleEndedIterator<Item = &Arc<Event>> {
        let seen = self.window.partition_point(|event| event.revision <= revision);
        self.window.range(seen..)
    }

    pub(super) fn apply(&mut self, event: Arc<Event>) {
        match &event.current {
            Some(object) => self.live.insert(Arc::clone(event.key()), Arc::clone(object).into()),
            None => self.live.remove(event.key()),
        };
        self.revision = event.revision;
        self.bytes += event.size();
        self.framed = (self.framed.0 + 1, self.framed.1 + event.frame_size());
        self.window.push_back(event);
        // The newest keeps its own: it is on its way.
        while self.framed.1 > FRAME_BYTES && self.framed.0 > 1 {
            self.unframe();
        }
    }

    /// The oldest event that may have frames lets go of them.
    fn unframe(&mut self) {
        let oldest = &self.window[self.window.len() - self.framed.0];
        oldest.forget_frames();
        self.framed = (self.framed.0 - 1, self.framed.1 - oldest.frame_size());
    }

    /// Forgets the oldest events until the window is within its bounds.
    pub(super) fn trim(&mut self, now: Instant) {
        while let Some(first) = self.window.front().cloned() {
            let old = now.saturating_duration_since(first.at) > WINDOW_AGE;
            if !old && self.window.len() <= WINDOW_EVENTS && self.bytes <= WINDOW_BYTES {
                return;
            }
            self.oldest = first.revision;
            self.bytes -= first.size();
            if self.framed.0 == self.window.len() {
                self.unframe();
            }
            self.window.pop_front();
        }
    }
}

/// The objects of a map under a prefix, after a key if one is given, by key: all that have the marks, and it may be
/// others too.
pub(super) fn under<'a>(
    live: &'a Live,
    prefix: &'a str,
    after: Option<&str>,
    marks: Marks,
) -> impl Iterator<Item = &'a Arc<Object>> {
    let start = match after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    };
    // The end is looked up, so that going through touches no keys. Prefixes of rows and namespaces end
    // with a slash; what starts with one ends before the next character.
    let end = prefix.strip_suffix('/').map(|folder| format!("{folder}0"));
    let end = match (&end, start) {
        // Behind the end there is nothing; a range must not begin there.
        (Some(end), Bound::Excluded(after)) if after >= end.as_str() => Bound::Excluded(after),
        (Some(end), _) => Bound::Excluded(end.as_str()),
        (None, _) => Bound::Unbounded,
    };
    let whole = prefix.ends_with('/');
    live.range::<_, str>((start, end))
        .take_while(move |(key, _)| whole || key.starts_with(prefix))
        .filter(move |(_, held)| held.marks.have(marks))
        .map(|(_, held)| &held.object)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use decapod_storage::Entry;

    use super::super::decode::AsStored;
    use super::super::event::{Change, Delivery, Kind};
    use super::*;

    fn object(key: &str, modified: Revision, size: usize) -> Arc<Object> {
        let value = Bytes::from(format!(r#"{{"metadata":{{}},"x":"{}"}}"#, "x".repeat(size)));
        let entry = Arc::new(Entry { key: key.into(), value, created: 1, modified });
        Arc::new(Object::new(entry, 1, &AsStored::default()))
    }

    fn put(state: &mut State, key: &str, revision: Revision, size: usize, at: Instant) {
        let previous = state.get(key).cloned();
        let current = Some(object(key, revision, size));
        state.apply(Arc::new(Event::new(revision, at, key.into(), current, previous)));
        state.trim(at);
    }

    fn listed(state: &State, revision: Revision) -> Vec<(String, Revision)> {
        let live = state.past(revision, "/").unwrap().restore();
        under(&live, "/", None, Marks::default())
            .map(|object| (object.key().to_string(), object.revision()))
            .collect()
    }

    #[tokio::test]
    async fn older_revisions_are_the_newest_with_events_undone() {
        let now = Instant::now();
        let mut state = State::starting_at(10, [object("/a", 3, 0).as_ref().clone()]);
        put(&mut state, "/a", 12, 0, now);
        put(&mut state, "/b", 15, 0, now);
        let previous = state.get("/a").cloned();
        state.apply(Arc::new(Event::new(20, now, "/a".into(), None, previous)));
        assert_eq!(listed(&state, 11), [("/a".to_owned(), 3)]);
        assert_eq!(listed(&state, 14), [("/a".to_owned(), 12)]);
        assert_eq!(listed(&state, 19), [("/a".to_owned(), 12), ("/b".to_owned(), 15)]);
        assert_eq!(listed(&state, 25), [("/b".to_owned(), 15)]);
        assert!(matches!(state.past(9, "/").map(drop), Err(Error::Expired { requested: 9, oldest: 10 })));
    }

    #[tokio::test]
    async fn the_window_is_bounded_by_count_size_and_age() {
        let start = Instant::now();
        let mut state = State::default();
        for revision in 1..=WINDOW_EVENTS as Revision + 7 {
            put(&mut state, "/a", revision, 0, start);
        }
        assert_eq!((state.window.len(), state.oldest), (WINDOW_EVENTS, 7));
        let mut state = State::default();
        for revision in 1..=40 {
            put(&mut state, "/a", revision, 1 << 20, start);
        }
        assert!((4..16).contains(&state.window.len()), "{}", state.window.len());
        assert!(state.bytes <= WINDOW_BYTES);
        put(&mut state, "/a", 41, 0, start + WINDOW_AGE * 2);
        assert_eq!((state.window.len(), state.oldest), (1, 40));
    }

    #[tokio::test]
    async fn only_the_newest_events_keep_their_frames() {
        let now = Instant::now();
        let mut state = State::default();
        let frame = |event: &Arc<Event>| {
            let delivery = Delivery::Change(Change::new(Kind::Modified, Arc::clone(event)));
            delivery.frame().unwrap()
        };
        let mut frames = Vec::new();
        for revision in 1..=12 {
            put(&mut state, "/a", revision, 512 << 10, now);
            frames.push(frame(state.window.back().unwrap()));
        }
        let again: Vec<_> = state.window.iter().map(&frame).collect();
        assert_eq!(again, frames, "the same whether or not it was kept");
        let kept = again.iter().zip(&frames).map(|(again, first)| again.as_ptr() == first.as_ptr());
        let kept: Vec<_> = kept.collect();
        assert!(kept.ends_with(&[true, true]), "{kept:?}");
        assert_eq!(kept.iter().filter(|kept| **kept).count(), state.framed.0, "{kept:?}");
        assert!(state.framed.1 <= FRAME_BYTES && state.framed.0 < 12);
        // As they go the rest is counted right.
        put(&mut state, "/a", 13, 0, now + WINDOW_AGE * 2);
        assert_eq!((state.window.len(), state.framed.0), (1, 1));
        assert_eq!(state.framed.1, state.window[0].frame_size());
    }

    #[test]
    fn a_prefix_ends_where_it_does() {
        let keys = ["/a", "/a/1", "/a/2", "/a/2/x", "/a0", "/ab/1", "/b"];
        let live: Live = keys.iter().map(|key| (Arc::from(*key), Held::from(object(key, 1, 0)))).collect();
        let names = |prefix, after| -> Vec<String> {
            under(&live, prefix, after, Marks::default()).map(|object| object.key().to_string()).collect()
        };
        assert_eq!(names("/a/", None), ["/a/1", "/a/2", "/a/2/x"]);
        assert_eq!(names("/a/", Some("/a/1")), ["/a/2", "/a/2/x"]);
        assert_eq!(names("/a/", Some("/")), ["/a/1", "/a/2", "/a/2/x"]);
        assert_eq!(names("/a/", Some("/a0")), [""; 0]);
        assert_eq!(names("/a/", Some("/b")), [""; 0]);
        assert_eq!(names("/a", Some("/a/2/x")), ["/a0", "/ab/1"]);
        assert_eq!(names("", None), keys);
    }
}
