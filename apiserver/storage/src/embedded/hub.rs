//! Where the newest state is published, and where watchers wait for it.
//!
//! A watcher holds no queue: it remembers how far it is and reads the rest from the history of the
//! newest state. So nothing can be skipped, no buffer can grow, and the writer does nothing for a
//! watcher but note the first revision that concerns it and wake it. A commit that touches no
//! watched prefix costs the same however many watchers there are.
//!
//! **Invariant:** the published state and the notes in all slots change together, under one lock.
//! A slot without a note has nothing to see in the state that is published with it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

use futures::stream;
use tokio::sync::Notify;

use super::snapshot::Snapshot;
use crate::{Change, Error, Event, Revision, Watch};

/// How many changes one event carries at most: enough that a large replay is cheap, few enough that
/// its consumer comes up for air.
const EVENT_CHANGES: usize = 1_000;

#[derive(Debug, Default)]
pub(super) struct Hub {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    snapshot: Arc<Snapshot>,
    /// By prefix, then by a number of their own.
    slots: BTreeMap<Arc<str>, HashMap<u64, Slot>>,
    next: u64,
    closed: bool,
}

#[derive(Debug)]
struct Slot {
    /// The first revision that the watcher has yet to see, if there is one.
    pending: Option<Revision>,
    /// Whether a progress event was asked for.
    progress: bool,
    wake: Arc<Notify>,
}

/// The store was closed while it was being used.
#[derive(Debug, thiserror::Error)]
#[error("the store was closed")]
pub(super) struct Closed;

impl Hub {
    pub(super) fn new(snapshot: Snapshot) -> Self {
        Self { inner: Mutex::new(Inner { snapshot: Arc::new(snapshot), ..Inner::default() }) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while it holds the lock")
    }

    /// The newest published state.
    pub(super) fn current(&self) -> Arc<Snapshot> {
        Arc::clone(&self.lock().snapshot)
    }

    /// Publishes what these changes led to, and wakes the watchers that they concern.
    pub(super) fn publish(&self, snapshot: Snapshot, changes: &[Change]) {
        let snapshot = Arc::new(snapshot);
        let mut inner = self.lock();
        let replaced = std::mem::replace(&mut inner.snapshot, snapshot);
        for change in changes {
            inner.note(change.key(), change.revision());
        }
        drop(inner);
        // Freeing what only the old state held may take a while: not under the lock.
        drop(replaced);
    }

    /// Asks every watcher to say how far it is.
    pub(super) fn progress(&self) {
        for slot in self.lock().slots.values_mut().flat_map(HashMap::values_mut) {
            slot.progress = true;
            slot.wake.notify_one();
        }
    }

    /// Ends all watches, now and to come.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        for slot in inner.slots.values().flat_map(HashMap::values) {
            slot.wake.notify_one();
        }
    }

    /// Starts a watch.
    pub(super) fn watch(self: &Arc<Self>, prefix: &str, after: Revision) -> Result<Watch, Error> {
        let prefix: Arc<str> = prefix.into();
        let wake = Arc::new(Notify::new());
        let mut inner = self.lock();
        inner.snapshot.check(after)?;
        let pending = (after < inner.snapshot.revision).then_some(after + 1);
        inner.next += 1;
        let id = inner.next;
        let slot = Slot { pending, progress: false, wake: Arc::clone(&wake) };
        inner.slots.entry(Arc::clone(&prefix)).or_default().insert(id, slot);
        drop(inner);
        let watcher = Watcher { hub: Arc::clone(self), prefix, id, wake, seen: after, ended: false };
        Ok(Box::pin(stream::unfold(watcher, Watcher::step)))
    }
}

impl Inner {
    /// Notes the revision for the watchers of every prefix of the key.
    fn note(&mut self, key: &str, revision: Revision) {
        let mut rest = key;
        let mut bound = Bound::Included(rest);
        // The greatest watched prefix that is not behind `rest` either is one of the key's, or
        // shares with it a beginning that every other prefix of the key which is still to be found
        // begins too: each step makes `rest` shorter or excludes what was found.
        while let Some((prefix, slots)) =
            self.slots.range_mut::<str, _>((Bound::Unbounded, bound)).next_back()
        {
            let common = common_length(rest, prefix);
            rest = &key[..common];
            if common == prefix.len() {
                for slot in slots.values_mut() {
                    if slot.pending.is_none() {
                        slot.pending = Some(revision);
                        slot.wake.notify_one();
                    }
                }
                bound = Bound::Excluded(rest);
            } else {
                bound = Bound::Included(rest);
            }
        }
    }
}

/// How long the common beginning of both is, cut between characters.
fn common_length(a: &str, b: &str) -> usize {
    let mut length = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    while !a.is_char_boundary(length) {
        length -= 1;
    }
    length
}

/// One running watch.
struct Watcher {
    hub: Arc<Hub>,
    prefix: Arc<str>,
    id: u64,
    wake: Arc<Notify>,
    /// Everything up to this revision was delivered.
    seen: Revision,
    ended: bool,
}

/// What a watcher finds when it looks.
enum Look {
    Changes(Arc<Snapshot>),
    Progress(Revision),
    Nothing,
    Closed,
}

impl Watcher {
    async fn step(mut self) -> Option<(Result<Event, Error>, Self)> {
        if self.ended {
            return None;
        }
        let result = self.next().await;
        self.ended = result.is_err();
        Some((result, self))
    }

    async fn next(&mut self) -> Result<Event, Error> {
        loop {
            match self.look()? {
                Look::Changes(snapshot) => {
                    let (changes, reached) = snapshot.changes(&self.prefix, self.seen, EVENT_CHANGES);
                    self.seen = reached;
                    if reached < snapshot.revision {
                        self.note_again(reached + 1);
                    }
                    if !changes.is_empty() {
                        return Ok(Event::Changes(changes));
                    }
                }
                Look::Progress(revision) => return Ok(Event::Progress(revision)),
                Look::Nothing => self.wake.notified().await,
                Look::Closed => return Err(Error::Unavailable(Box::new(Closed))),
            }
        }
    }

    /// Takes the note of this watcher together with the state that it belongs to.
    fn look(&mut self) -> Result<Look, Error> {
        let mut inner = self.hub.lock();
        let (snapshot, closed) = (Arc::clone(&inner.snapshot), inner.closed);
        let slot = inner
            .slots
            .get_mut(&self.prefix)
            .and_then(|slots| slots.get_mut(&self.id))
            .expect("a slot is there as long as its watcher");
        match slot.pending.take() {
            Some(first) => {
                // Nothing before the first noted revision concerns this watcher.
                self.seen = self.seen.max(first - 1);
                if self.seen < snapshot.oldest {
                    return Err(Error::Lagged);
                }
                Ok(Look::Changes(snapshot))
            }
            None => {
                self.seen = snapshot.revision;
                if std::mem::take(&mut slot.progress) {
                    Ok(Look::Progress(snapshot.revision))
                } else if closed {
                    Ok(Look::Closed)
                } else {
                    Ok(Look::Nothing)
                }
            }
        }
    }

    /// Puts back the note, for what did not fit into one event.
    fn note_again(&self, revision: Revision) {
        let mut inner = self.hub.lock();
        let slot = inner.slots.get_mut(&self.prefix).and_then(|slots| slots.get_mut(&self.id));
        slot.expect("a slot is there as long as its watcher").pending = Some(revision);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut inner = self.hub.lock();
        if let Some(slots) = inner.slots.get_mut(&self.prefix) {
            slots.remove(&self.id);
            if slots.is_empty() {
                inner.slots.remove(&self.prefix);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(prefixes: &[&str], key: &str) -> Vec<String> {
        let mut inner = Inner::default();
        for prefix in prefixes {
            let slot = Slot { pending: None, progress: false, wake: Arc::new(Notify::new()) };
            inner.slots.entry((*prefix).into()).or_default().insert(1, slot);
        }
        inner.note(key, 7);
        let hit = |slots: &HashMap<u64, Slot>| slots[&1].pending == Some(7);
        inner.slots.iter().filter(|(_, slots)| hit(slots)).map(|(prefix, _)| prefix.to_string()).collect()
    }

    #[test]
    fn all_prefixes_of_a_key_and_no_others_are_noted() {
        let prefixes = ["", "/", "/a", "/a/", "/a/b", "/a/b/c", "/a/c", "/a/bb", "/b/", "/a/b/c/d", "/é"];
        assert_eq!(noted(&prefixes, "/a/b/c"), ["", "/", "/a", "/a/", "/a/b", "/a/b/c"]);
        assert_eq!(noted(&prefixes, "/a/zz"), ["", "/", "/a", "/a/"]);
        assert_eq!(noted(&prefixes, "/b"), ["", "/"]);
        assert_eq!(noted(&prefixes, "/é/x"), ["", "/", "/é"]);
        assert_eq!(noted(&prefixes, "/è/x"), ["", "/"]);
        assert_eq!(noted(&["/x"], "/a"), [""; 0]);
    }
}
