//! The objects of one row, kept current by the feed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use decapod_storage::{self as storage, Entry, List, Revision, Store};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::decode::Decode;
use super::event::Event;
use super::object::Object;
use super::reached::Reached;
use super::select::{Selection, Trigger};
use super::state::{self, Live, State};
use super::watch::{Start, Watching};
use super::watchers::Watchers;
use super::{At, Error};

/// What makes a row: where it is, and how its values are read.
pub(crate) struct Row {
    /// The prefix of its keys, with a slash at the end.
    pub(crate) prefix: String,
    /// How its values are read.
    pub(crate) decoder: Arc<dyn Decode>,
    /// The names of the fields that it can be selected by, without those of `metadata`.
    pub(crate) fields: Vec<String>,
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
    store: Arc<dyn Store>,
    reached: Reached,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    state: Arc<State>,
    watchers: Watchers,
    ended: bool,
}

/// What a watcher finds when it looks.
pub(super) enum Look {
    /// Events after this revision, in this state.
    Events(Arc<State>, Revision),
    /// Nothing up to this revision.
    Nothing(Revision),
    /// The row is no longer fed.
    Ended,
}

impl Cacher {
    pub(super) fn new(row: Row, store: Arc<dyn Store>, reached: Reached, entries: &storage::Page) -> Self {
        let Row { prefix, decoder, fields } = row;
        let object = |entry: &Arc<Entry>| Object::new(Arc::clone(entry), prefix.len(), &*decoder);
        let state = State::starting_at(entries.revision, entries.entries.iter().map(object));
        let inner = Inner { state: Arc::new(state), ..Inner::default() };
        Self { prefix: prefix.into(), fields, decoder, store, reached, inner: Mutex::new(inner) }
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
    pub(crate) fn size(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.state.len(), inner.watchers.len())
    }

    /// Takes over changes of the row. What it has seen already is passed over.
    pub(super) fn apply(&self, changes: &[storage::Change]) {
        let now = Instant::now();
        let before = Arc::clone(&self.lock().state);
        let mut state = (*before).clone();
        let mut events = Vec::with_capacity(changes.len());
        for change in changes {
            if change.revision() <= state.revision {
                continue;
            }
            let current = match change {
                storage::Change::Put { entry, .. } => Some(Arc::new(self.object(entry))),
                storage::Change::Delete { .. } => None,
            };
            let previous = state.get(change.key()).cloned();
            let key = Arc::clone(change.key());
            let event = Arc::new(Event::new(change.revision(), now, key, current, previous));
            state.apply(Arc::clone(&event));
            events.push(event);
        }
        state.trim(now);
        let mut inner = self.lock();
        inner.state = Arc::new(state);
        for event in &events {
            inner.watchers.note(event);
        }
        drop(inner);
        // Freeing what only the old state held may take a while: not under the lock.
        drop(before);
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

    /// The state now, and the revision at which it is that. The revision that the cache has reached is
    /// read first: the state is at least as new, unless the row had ended before.
    fn current(&self) -> Result<(Arc<State>, Revision), Error> {
        let reached = self.reached.get();
        let inner = self.lock();
        let revision = reached.max(inner.state.revision);
        if inner.ended { Err(Error::Ended) } else { Ok((Arc::clone(&inner.state), revision)) }
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
        let (state, revision) = self.current()?;
        let At::Exact(exact) = query.at else { return view(state.live(), revision, query) };
        match state.live_at(exact, &query.selection.prefix) {
            Ok(live) => view(&live, exact, query),
            Err(Error::Expired { .. }) => self.list_stored(exact, query).await,
            Err(other) => Err(other),
        }
    }

    /// A list at a revision that only the store still knows.
    async fn list_stored(&self, revision: Revision, query: &Query) -> Result<View, Error> {
        let list = List { at: Some(revision), ..List::default() };
        let page = self.store.list(&query.selection.prefix, list).await?;
        let object = |entry: &Arc<Entry>| (Arc::clone(&entry.key), Arc::new(self.object(entry)));
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
        let state = Arc::clone(&inner.state);
        let now = reached.max(state.revision);
        let after = match start {
            Start::After(revision) => revision,
            Start::Initial { .. } => now,
        };
        state.check(after)?;
        let pending = (after < state.revision).then_some(after + 1);
        let id = inner.watchers.add(&trigger, pending, Arc::clone(&wake));
        drop(inner);
        let slot = WatchSlot { cacher: Arc::clone(self), trigger, id };
        Ok(Watching::new(slot, wake, selection, start, (state, after), bookmarks))
    }
}

/// Selects from one state.
fn view(live: &Live, revision: Revision, query: &Query) -> Result<View, Error> {
    let selection = &query.selection;
    let mut rest = state::under(live, &selection.prefix, query.after.as_deref());
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
    /// Takes the note for the watcher together with the state that it belongs to.
    pub(super) fn look(&self) -> Look {
        // Read first: what it covers is in the state, and noted, already.
        let reached = self.cacher.reached.get();
        let mut inner = self.cacher.lock();
        if inner.ended {
            return Look::Ended;
        }
        let state = Arc::clone(&inner.state);
        let slot = inner.watchers.slot(&self.trigger, self.id);
        match slot.expect("a slot is there as long as its watcher").pending.take() {
            Some(first) => Look::Events(state, first - 1),
            None => Look::Nothing(reached.max(state.revision)),
        }
    }

    /// Puts back the note, for what was not read yet.
    pub(super) fn note(&self, revision: Revision) {
        let mut inner = self.cacher.lock();
        let slot = inner.watchers.slot(&self.trigger, self.id);
        slot.expect("a slot is there as long as its watcher").pending = Some(revision);
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

    pub(super) fn remove(&mut self, cacher: &Arc<Cacher>) {
        if let Some(cachers) = self.0.get_mut(cacher.prefix()) {
            cachers.retain(|other| !Arc::ptr_eq(other, cacher));
            if cachers.is_empty() {
                self.0.remove(cacher.prefix());
            }
        }
    }

    /// The rows that a key belongs to.
    pub(super) fn of<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Arc<Cacher>> {
        let folders = key.match_indices('/').map(|(slash, _)| &key[..=slash]);
        folders.filter_map(|folder| self.0.get(folder)).flatten()
    }
}
