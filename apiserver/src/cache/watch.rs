//! One running watch of a selection.

use std::sync::Arc;
use std::time::Duration;

use decapod_storage::Revision;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::event::{Change, Delivery};
use super::row::WatchSlot;
use super::select::Selection;
use super::state::Live;
use super::{At, Error};

/// How many initial objects are handed out together: one chunk of an HTTP body.
const BATCH: usize = 100;
/// How often a watcher that wants bookmarks gets one; as from kube-apiserver.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How long before its end a watch gets its last bookmark, so that it can be resumed from nearly now; as from
/// kube-apiserver.
const BEFORE_END: Duration = Duration::from_secs(2);

/// Where a watch starts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start {
    /// With what changed after this revision.
    After(Revision),
    /// With all that is there, as `ADDED`.
    Initial {
        /// Which state that is; `Exact` counts as `NotOlderThan`.
        at: At,
        /// Whether a bookmark ends the initial events.
        bookmark: bool,
    },
}

/// A running watch. It ends with an error or when it is dropped; one that does not keep up is ended
/// as expired, because what it has yet to see is gone.
pub(crate) struct Watching {
    slot: WatchSlot,
    wake: Arc<Notify>,
    selection: Selection,
    /// Everything up to this revision was delivered, once the initial events were.
    seen: Revision,
    initial: Option<Initial>,
    bookmarks: bool,
    /// When the next bookmark is due.
    bookmark_at: Option<Instant>,
    /// When whoever reads will end the watch.
    end: Option<Instant>,
    ended: bool,
}

/// The initial events that were not delivered yet.
pub(super) struct Initial {
    pub(super) live: Live,
    pub(super) after: Option<Arc<str>>,
    pub(super) bookmark: bool,
}

type Batch = Vec<Delivery>;

impl Watching {
    pub(super) fn new(
        slot: WatchSlot,
        wake: Arc<Notify>,
        selection: Selection,
        initial: Option<Initial>,
        seen: Revision,
        bookmarks: bool,
    ) -> Self {
        let bookmark_at = Some(Instant::now() + BOOKMARK_EVERY);
        Self { slot, wake, selection, seen, initial, bookmarks, bookmark_at, end: None, ended: false }
    }

    /// Says when the watch will be ended.
    pub(crate) fn end_at(&mut self, end: Instant) {
        self.end = Some(end);
        self.bookmark_at = self.next_bookmark(Instant::now());
    }

    /// Now and then, and shortly before the end.
    fn next_bookmark(&self, now: Instant) -> Option<Instant> {
        let regular = now + BOOKMARK_EVERY;
        let Some(last) = self.end.map(|end| end.checked_sub(BEFORE_END).unwrap_or(now)) else {
            return Some(regular);
        };
        if last <= now { None } else { Some(regular.min(last)) }
    }

    /// What is there to deliver, all that is ready up to a bound; never empty. Waits if there is
    /// nothing. `None` after an error. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Option<Result<Batch, Error>> {
        if self.ended {
            return None;
        }
        loop {
            match self.ready() {
                Ok(batch) if batch.is_empty() => self.wait().await,
                Ok(batch) => return Some(Ok(batch)),
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
    }

    /// Waits until there may be something. A wake-up that is lost with this future is not missed:
    /// the note is what counts, and is looked at first.
    async fn wait(&self) {
        let bookmark = async {
            match self.bookmark_at.filter(|_| self.bookmarks) {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.wake.notified() => {}
            () = bookmark => {}
        }
    }

    fn ready(&mut self) -> Result<Batch, Error> {
        if let Some(initial) = self.initial.take() {
            return self.initial(initial);
        }
        loop {
            let look = self.slot.look(self.seen)?;
            self.seen = self.seen.max(look.reached);
            if look.events.is_empty() {
                return Ok(self.bookmark_if_due().into_iter().collect());
            }
            let mut batch = Vec::new();
            for event in look.events {
                if let Some(kind) = event.seen_by(&self.selection) {
                    let change = Change::new(kind, event);
                    change.object().readable()?;
                    batch.push(Delivery::Change(change));
                }
            }
            if !batch.is_empty() {
                return Ok(batch);
            }
        }
    }

    fn initial(&mut self, mut initial: Initial) -> Result<Batch, Error> {
        let mut batch = Vec::new();
        let all = self.selection.under(&initial.live, initial.after.as_deref());
        let mut selected = all.filter(|object| self.selection.selects(object));
        for object in selected.by_ref().take(BATCH) {
            object.readable()?;
            batch.push(Delivery::Initial(Arc::clone(object)));
        }
        let last =
            batch.last().and_then(|delivery| delivery.object()).map(|(_, last)| Arc::clone(last.key()));
        drop(selected);
        if batch.len() == BATCH {
            initial.after = last;
            self.initial = Some(initial);
            return Ok(batch);
        }
        if initial.bookmark {
            batch.push(Delivery::Bookmark { revision: self.seen, initial_end: true });
        }
        if batch.is_empty() {
            return self.ready();
        }
        Ok(batch)
    }

    fn bookmark_if_due(&mut self) -> Option<Delivery> {
        let now = Instant::now();
        if !self.bookmarks || self.bookmark_at.is_none_or(|at| now < at) {
            return None;
        }
        self.bookmark_at = self.next_bookmark(now);
        Some(Delivery::Bookmark { revision: self.seen, initial_end: false })
    }
}
