//! The objects of one row, kept current by the feed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use decapod_storage::{self as storage, Entry, List, Revision, Store};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::decode::Decode;
use super::event::Event;
use super::object::Object;
use super::reached::Reached;
use super::select::{Selection, Trigger};
use super::state::{Held, Live, State};
use super::watch::{Initial, Start, Watching};
use super::watchers::Watchers;
use super::{At, Error};

/// What makes a row: where it is, and how its values are read.
#[derive(Clone)]
pub(crate) struct Row {
    /// The prefix of its keys, with a slash at the end.
    pub(crate) prefix: String,
    /// How its values are read.
    pub(crate) decoder: Arc<dyn Decode>,
    /// The names of the fields that it can be selected by, without those of `metadata`.
    pub(crate) fields: Vec<String>,
    /// Counts the changes that the store tells.
    pub(crate) received: Counter,
}

/// What a list is about.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    /// Which objects.
    pub(crate) selection: Selection,
    /// Which state of them.
    pub(crate) at: At,
    /// At most this many.
    pub(crate) limit: Option<usize>,
    /// Only those after this key.
    pub(crate) after: Option<Arc<str>>,
}

/// A list, or a part of one.
#[derive(Debug)]
pub(crate) struct View {
    /// The objects, by key.
    pub(crate) items: Vec<Arc<Object>>,
    /// The revision at which they were read: the list's `resourceVersion`.
    pub(crate) revision: Revision,
    /// How many follow; only counted where no selector decides.
    pub(crate) remaining: Option<usize>,
    /// The key after which the next part starts, if there is one.
    pub(crate) next: Option<Arc<str>>,
}

/// The cached objects of one row.
pub(crate) struct Cacher {
    prefix: Arc<str>,
    fields: Vec<String>,
    decoder: Arc<dyn Decode>,
    received: Counter,
    store: Arc<dyn Store>,
    reached: Reached,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    state: State,
    watchers: Watchers,
    ended: bool,
}

/// How many events a watcher looks at together: the row waits while they are handed over.
const LOOK_AT: usize = 256;

/// What a watcher finds when it looks: the next events, and up to which revision these are all.
pub(super) struct Look {
    pub(super) events: Vec<Arc<Event>>,
    pub(super) reached: Revision,
}

impl Cacher {
    pub(super) fn new(row: Row, store: Arc<dyn Store>, reached: Reached, entries: &storage::Page) -> Self {
        let Row { prefix, decoder, fields, received } = row;
        let object = |entry: &Arc<Entry>| Object::new(Arc::clone(entry), prefix.len(), &*decoder);
        let state = State::starting_at(entries.revision, entries.entries.iter().map(object));
        let inner = Inner { state, ..Inner::default() };
        Self { prefix: prefix.into(), fields, decoder, received, store, reached, inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while it holds the lock")
    }

    pub(super) fn prefix(&self) -> &Arc<str> {
        &self.prefix
    }

    /// The last revision that changed the row.
    pub(super) fn revision(&self) -> Revision {
        self.lock().state.revision
    }

    /// How many objects, and how many watchers there are.
    #[cfg(test)]
    pub(crate) fn size(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.state.len(), inner.watchers.len())
    }

    /// Takes over changes of the row. What it has seen already is passed over.
    pub(super) fn apply(&self, changes: &[storage::Change]) {
        let now = Instant::now();
        let seen = self.revision();
        let new = changes.iter().filter(|change| change.revision() > seen);
        // Decoding takes the time, so it is done before the row is locked.
        let decoded: Vec<_> = new
            .map(|change| match change {
                storage::Change::Put { entry, .. } => (change, Some(Arc::new(self.object(entry)))),
                storage::Change::Delete { .. } => (change, None),
            })
            .collect();
        self.received.inc_by(decoded.len() as u64);
        let mut woken = Vec::new();
        let mut inner = self.lock();
        let Inner { state, watchers, .. } = &mut *inner;
        for (change, current) in decoded {
            let previous = state.get(change.key()).cloned();
            let key = Arc::clone(change.key());
            let event = Arc::new(Event::new(change.revision(), now, key, current, previous));
            watchers.note(&event, &mut woken);
            state.apply(event);
        }
        state.trim(now);
        drop(inner);
        for wake in woken {
            wake.notify_one();
        }
    }

    fn object(&self, entry: &Arc<Entry>) -> Object {
        Object::new(Arc::clone(entry), self.prefix.len(), &*self.decoder)
    }

    /// Ends all watches: the row is no longer fed.
    pub(super) fn end(&self) {
        let mut inner = self.lock();
        inner.ended = true;
        inner.watchers.wake_all();
    }

    /// Looks at the state, and tells it at which revision it is that. The revision that the cache has
    /// reached is read first: the state is at least as new, unless the row had ended before.
    fn read<T>(&self, look: impl FnOnce(&State, Revision) -> T) -> Result<T, Error> {
        let reached = self.reached.get();
        let inner = self.lock();
        if inner.ended {
            return Err(Error::Ended);
        }
        Ok(look(&inner.state, reached.max(inner.state.revision)))
    }

    /// One object, the newest.
    pub(crate) async fn get(&self, key: &str) -> Result<Option<Arc<Object>>, Error> {
        let Some(entry) = self.store.get(key).await? else { return Ok(None) };
        let cached = self.lock().state.get(key).cloned();
        let object = match cached {
            Some(object) if object.revision() == entry.modified => object,
            // The event is still on its way.
            _ => Arc::new(self.object(&entry)),
        };
        object.readable()?;
        Ok(Some(object))
    }

    /// The objects of a selection, all at one revision.
    pub(crate) async fn list(&self, query: &Query) -> Result<View, Error> {
        self.wait(query.at).await?;
        let At::Exact(exact) = query.at else {
            let (live, revision) = self.read(|state, revision| (state.live(), revision))?;
            return view(&live, revision, query);
        };
        self.reached.check_age(exact)?;
        // A row that does not change is not trimmed by its changes.
        self.lock().state.trim(Instant::now());
        match self.read(|state, _| state.past(exact, &query.selection.prefix))? {
            Ok(past) => view(&past.restore(), exact, query),
            Err(Error::Expired { .. }) => self.list_stored(exact, query).await,
            Err(other) => Err(other),
        }
    }

    /// A list at a revision that only the store still knows.
    async fn list_stored(&self, revision: Revision, query: &Query) -> Result<View, Error> {
        let list = List { at: Some(revision), ..List::default() };
        let page = self.store.list(&query.selection.prefix, list).await?;
        let object = |entry: &Arc<Entry>| (Arc::clone(&entry.key), Held::from(Arc::new(self.object(entry))));
        let live: Live = page.entries.iter().map(object).collect();
        view(&live, revision, query)
    }

    /// Waits until the cache is as new as asked for.
    async fn wait(&self, at: At) -> Result<(), Error> {
        match at {
            At::Any => Ok(()),
            At::Newest => {
                let newest = self.store.revision().await?;
                self.reached.wait(newest, &*self.store).await.map_err(|_| Error::Timeout)
            }
            At::NotOlderThan(revision) | At::Exact(revision) => {
                self.reached.wait(revision, &*self.store).await
            }
        }
    }

    /// Follows a selection. A watch from a revision that is no longer kept is refused as expired.
    pub(crate) async fn watch(
        self: &Arc<Self>,
        selection: Selection,
        start: Start,
        bookmarks: bool,
    ) -> Result<Watching, Error> {
        self.wait(match start {
            Start::After(revision) => At::NotOlderThan(revision),
            Start::Initial { at, .. } => at,
        })
        .await?;
        let trigger = selection.trigger(&self.prefix, |field| self.fields.iter().any(|known| known == field));
        let wake = Arc::new(Notify::new());
        let reached = self.reached.get();
        let mut inner = self.lock();
        if inner.ended {
            return Err(Error::Ended);
        }
        let (live, after) = match start {
            Start::After(revision) => (None, revision),
            Start::Initial { .. } => (Some(inner.state.live()), reached.max(inner.state.revision)),
        };
        inner.state.check(after)?;
        let pending = (after < inner.state.revision).then_some(after + 1);
        let id = inner.watchers.add(&trigger, pending, Arc::clone(&wake));
        drop(inner);
        let slot = WatchSlot { cacher: Arc::clone(self), trigger, id };
        let bookmark = matches!(start, Start::Initial { bookmark: true, .. });
        let initial = live.map(|live| Initial { live, after: None, bookmark });
        Ok(Watching::new(slot, wake, selection, initial, after, bookmarks))
    }
}

/// Selects from one state.
fn view(live: &Live, revision: Revision, query: &Query) -> Result<View, Error> {
    let selection = &query.selection;
    let mut rest = selection.under(live, query.after.as_deref());
    let mut found = rest.by_ref().filter(|object| selection.selects(object));
    let limit = query.limit.unwrap_or(usize::MAX);
    let mut items = Vec::new();
    for object in found.by_ref().take(limit) {
        object.readable()?;
        items.push(Arc::clone(object));
    }
    let more = query.limit.is_some() && found.next().is_some();
    let next = if more { items.last().map(|last| Arc::clone(last.key())) } else { None };
    let remaining = (more && selection.is_everything()).then(|| rest.count() + 1);
    Ok(View { items, revision, remaining, next })
}

/// A watcher's place in its row, given up when it is dropped.
pub(super) struct WatchSlot {
    cacher: Arc<Cacher>,
    trigger: Trigger,
    id: u64,
}

impl WatchSlot {
    /// The next events after a revision. They may or may not concern the watcher; what is passed over
    /// does not.
    pub(super) fn look(&self, seen: Revision) -> Result<Look, Error> {
        // Read first: what it covers is in the state, and noted, already.
        let reached = self.cacher.reached.get();
        let mut inner = self.cacher.lock();
        let Inner { state, watchers, ended } = &mut *inner;
        if *ended {
            return Err(Error::Ended);
        }
        let slot = watchers.slot(&self.trigger, self.id).expect("a slot is there as long as its watcher");
        let Some(first) = slot.pending.take() else {
            return Ok(Look { events: Vec::new(), reached: reached.max(state.revision) });
        };
        let seen = seen.max(first - 1);
        state.check(seen)?;
        let events: Vec<_> = state.after(seen).take(LOOK_AT).cloned().collect();
        let reached = match events.last() {
            Some(last) if events.len() == LOOK_AT => last.revision,
            _ => state.revision,
        };
        slot.pending = (reached < state.revision).then_some(reached + 1);
        Ok(Look { events, reached })
    }
}

impl Drop for WatchSlot {
    fn drop(&mut self) {
        self.cacher.lock().watchers.remove(&self.trigger, self.id);
    }
}

/// Rows by the prefix of their keys, for the feed. Several rows may share one: versions of a kind.
#[derive(Default)]
pub(super) struct ByPrefix(HashMap<Arc<str>, Vec<Arc<Cacher>>>);

impl ByPrefix {
    pub(super) fn add(&mut self, cacher: Arc<Cacher>) {
        self.0.entry(Arc::clone(cacher.prefix())).or_default().push(cacher);
    }

    /// The rows that a key belongs to.
    pub(super) fn of<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Arc<Cacher>> {
        let folders = key.match_indices('/').map(|(slash, _)| &key[..=slash]);
        folders.filter_map(|folder| self.0.get(folder)).flatten()
    }
}
