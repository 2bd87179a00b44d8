//! Where the newest state is published, and where watchers wait for it.
//!
//! A watcher holds no queue: it remembers how far it is and reads the rest from the history. So nothing can be skipped, no buffer can grow, and the writer does nothing for a
//! watcher but note the first revision that concerns it and wake it. A commit that touches no
//! watched prefix costs the same however many watchers there are.
//!
//! **Invariant:** the state and the notes in all slots change together, under one lock. A slot without a
//! note has nothing to see in the state.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

use futures::stream;
use tokio::sync::Notify;

use super::state::State;
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
    state: State,
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
    pub(super) fn new(state: State) -> Self {
        Self { inner: Mutex::new(Inner { state, ..Inner::default() }) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while it holds the lock")
    }

    /// Looks at the newest published state. Everybody else waits meanwhile.
    pub(super) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.lock().state)
    }

    /// Publishes the changes, and wakes the watchers that they concern.
    pub(super) fn publish(&self, changes: &[Change], oldest: Option<Revision>) {
        let mut inner = self.lock();
        let mut woken = Vec::new();
        for change in changes {
            inner.state.apply(change.clone());
            inner.note(change.key(), change.revision(), &mut woken);
        }
        if let Some(oldest) = oldest {
            inner.state.trim(oldest);
        }
        drop(inner);
        // Only now, or they would wait for the lock at once.
        for wake in woken {
            wake.notify_one();
        }
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
        inner.state.check(after)?;
        let pending = (after < inner.state.revision).then_some(after + 1);
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
    /// Notes the revision for the watchers of every prefix of the key, and adds whom to wake.
    fn note(&mut self, key: &str, revision: Revision, woken: &mut Vec<Arc<Notify>>) {
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
                        woken.push(Arc::clone(&slot.wake));
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
    Found(Event),
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
                Look::Found(event) => return Ok(event),
                Look::Nothing => self.wake.notified().await,
                Look::Closed => return Err(Error::Unavailable(Box::new(Closed))),
            }
        }
    }

    fn look(&mut self) -> Result<Look, Error> {
        let mut guard = self.hub.lock();
        let Inner { state, slots, closed, .. } = &mut *guard;
        let slot = slots
            .get_mut(&self.prefix)
            .and_then(|slots| slots.get_mut(&self.id))
            .expect("a slot is there as long as its watcher");
        if let Some(first) = slot.pending.take() {
            // Nothing before the first noted revision concerns this watcher.
            let after = self.seen.max(first - 1);
            if after < state.oldest {
                return Err(Error::Lagged);
            }
            let (changes, reached) = state.changes(&self.prefix, after, EVENT_CHANGES);
            self.seen = reached;
            slot.pending = (reached < state.revision).then_some(reached + 1);
            if !changes.is_empty() {
                return Ok(Look::Found(Event::Changes(changes)));
            }
        }
        self.seen = state.revision;
        if std::mem::take(&mut slot.progress) {
            return Ok(Look::Found(Event::Progress(self.seen)));
        }
        Ok(if *closed { Look::Closed } else { Look::Nothing })
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
        inner.note(key, 7, &mut Vec::new());
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
