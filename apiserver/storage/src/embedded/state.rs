//! The whole store at its newest revision, and the changes that led there.
//!
//! What lives is in a persistent ordered map, so that a reader takes a snapshot of it for nothing. It is
//! changed in place: only what a reader still holds is copied, and mostly nobody does. An older revision
//! is the newest one with the changes since undone, so that keeping 10,000 revisions costs no more than
//! their changes.
//!
//! **Invariant:** `history` holds exactly the changes after `oldest` up to `revision`, without gap.

use std::collections::{HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;

use crate::{Change, Entry, Error, List, Page, Precondition, Revision, prefix_end};

/// What a change costs in memory beside the keys and values that only it keeps alive.
const CHANGE_OVERHEAD: usize = 160;

type Live = OrdMap<Arc<str>, Arc<Entry>>;

#[derive(Debug, Default)]
pub(super) struct State {
    live: Live,
    history: VecDeque<Change>,
    /// The newest revision.
    pub(super) revision: Revision,
    /// The oldest revision that can be read or watched from.
    pub(super) oldest: Revision,
    history_bytes: usize,
}

/// What is forgotten with a commit: the log's rows that no kept revision needs any more.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Trim {
    pub(super) rows: Vec<Revision>,
    /// The oldest revision that is kept then.
    pub(super) oldest: Revision,
}

impl State {
    /// The state at a revision of which no history is kept: the start of loading.
    pub(super) fn starting_at(oldest: Revision) -> Self {
        Self { revision: oldest, oldest, ..Self::default() }
    }

    /// Puts an entry without history while loading; says whether the key was new.
    pub(super) fn load_base(&mut self, entry: Entry) -> bool {
        self.live.insert(Arc::clone(&entry.key), Arc::new(entry)).is_none()
    }

    pub(super) fn get(&self, key: &str) -> Option<&Arc<Entry>> {
        self.live.get(key)
    }

    /// How many changes are kept, and what they take.
    pub(super) fn kept(&self) -> (usize, usize) {
        (self.history.len(), self.history_bytes)
    }

    /// Whether this revision can be read and watched from.
    pub(super) fn check(&self, requested: Revision) -> Result<(), Error> {
        if requested < self.oldest {
            return Err(Error::Compacted { requested, oldest: self.oldest });
        }
        if requested > self.revision {
            return Err(Error::Future { requested, current: self.revision });
        }
        Ok(())
    }

    /// The changes after a kept revision.
    fn since(&self, revision: Revision) -> impl DoubleEndedIterator<Item = &Change> {
        let skip = usize::try_from(revision - self.oldest).expect("history fits into memory");
        self.history.range(skip.min(self.history.len())..)
    }

    /// What lived under the prefix at a kept revision (`None`: the newest).
    pub(super) fn snapshot(&self, prefix: &str, at: Option<Revision>) -> Result<Snapshot, Error> {
        let revision = at.unwrap_or(self.revision);
        self.check(revision)?;
        let since = self.since(revision).rev().filter(|change| change.key().starts_with(prefix));
        Ok(Snapshot { live: self.live.clone(), undo: since.cloned().collect(), revision })
    }

    /// At most `limit` changes under the prefix after `after`, and the revision up to which that is
    /// all of them.
    pub(super) fn changes(&self, prefix: &str, after: Revision, limit: usize) -> (Vec<Change>, Revision) {
        let concerned = self.since(after).filter(|change| change.key().starts_with(prefix));
        let changes: Vec<Change> = concerned.take(limit).cloned().collect();
        let reached = match changes.last() {
            Some(last) if changes.len() == limit => last.revision(),
            _ => self.revision,
        };
        (changes, reached)
    }

    /// Does the change that makes the next revision.
    pub(super) fn apply(&mut self, change: Change) {
        match &change {
            Change::Put { entry, .. } => self.live.insert(Arc::clone(&entry.key), Arc::clone(entry)),
            Change::Delete { previous, .. } => self.live.remove(&previous.key),
        };
        self.revision = change.revision();
        self.history_bytes += cost(&change);
        self.history.push_back(change);
    }

    /// What it means to forget the changes up to `revision`, but at most `limit` of them.
    pub(super) fn trim_plan(&self, revision: Revision, limit: usize) -> Trim {
        let oldest = revision.min(self.revision).min(self.oldest.saturating_add(limit as Revision));
        let mut rows = Vec::new();
        for change in self.history.iter().take_while(|change| change.revision() <= oldest) {
            // What this change replaced is seen by no kept revision; neither is a deletion itself.
            rows.extend(change.previous().map(|previous| previous.modified));
            if let Change::Delete { revision, .. } = change {
                rows.push(*revision);
            }
        }
        // In the order of the log, so that neighbours are removed together.
        rows.sort_unstable();
        Trim { rows, oldest: oldest.max(self.oldest) }
    }

    /// Forgets the changes up to a revision.
    pub(super) fn trim(&mut self, oldest: Revision) {
        while self.oldest < oldest {
            let change = self.history.pop_front().expect("history has no gap");
            self.history_bytes -= cost(&change);
            self.oldest += 1;
        }
    }
}

/// What only this change keeps in memory.
fn cost(change: &Change) -> usize {
    CHANGE_OVERHEAD + change.previous().map_or(0, |previous| previous.key.len() + previous.value.len())
}

/// What lived under one prefix at one revision.
pub(super) struct Snapshot {
    live: Live,
    /// The later changes under the prefix, the last first.
    undo: Vec<Change>,
    revision: Revision,
}

impl Snapshot {
    pub(super) fn list(mut self, prefix: &str, list: &List) -> Page {
        for change in &self.undo {
            match change.previous() {
                Some(previous) => self.live.insert(Arc::clone(change.key()), Arc::clone(previous)),
                None => self.live.remove(change.key()),
            };
        }
        let start = match list.after.as_deref() {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let end = prefix_end(prefix);
        let end = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        if let (Bound::Excluded(start), Bound::Excluded(end)) = (start, end)
            && start >= end
        {
            return Page { entries: Vec::new(), revision: self.revision, remaining: 0 };
        }
        let mut found = self.live.range::<_, str>((start, end)).map(|(_, entry)| entry);
        let limit = list.limit.unwrap_or(usize::MAX);
        let entries = found.by_ref().take(limit).cloned().collect();
        Page { entries, revision: self.revision, remaining: found.count() }
    }
}

/// Writes that are decided one after the other before any of them is done: what they make is laid over
/// the state, and thrown away if they do not get to the disk.
pub(super) struct Draft<'a> {
    base: &'a State,
    /// What the writes so far made of their keys.
    over: HashMap<Arc<str>, Option<Arc<Entry>>>,
    revision: Revision,
}

impl<'a> Draft<'a> {
    pub(super) fn new(base: &'a State) -> Self {
        Self { base, over: HashMap::new(), revision: base.revision }
    }

    fn get(&self, key: &str) -> Option<&Arc<Entry>> {
        match self.over.get(key) {
            Some(entry) => entry.as_ref(),
            None => self.base.get(key),
        }
    }

    /// Creates a key as the next revision.
    pub(super) fn create(&mut self, key: Arc<str>, value: Bytes) -> Result<Change, Error> {
        if let Some(there) = self.get(&key) {
            return Err(Error::Exists(Arc::clone(there)));
        }
        let revision = self.revision + 1;
        let entry = Arc::new(Entry { key, value, created: revision, modified: revision });
        Ok(self.note(Change::Put { entry, previous: None }))
    }

    /// Replaces the value of a key as the next revision.
    pub(super) fn update(&mut self, key: &str, value: Bytes, when: Precondition) -> Result<Change, Error> {
        let previous = self.expect(key, when)?;
        let (key, created) = (Arc::clone(&previous.key), previous.created);
        let entry = Arc::new(Entry { key, value, created, modified: self.revision + 1 });
        Ok(self.note(Change::Put { entry, previous: Some(previous) }))
    }

    /// Deletes a key as the next revision.
    pub(super) fn delete(&mut self, key: &str, when: Precondition) -> Result<Change, Error> {
        let previous = self.expect(key, when)?;
        Ok(self.note(Change::Delete { previous, revision: self.revision + 1 }))
    }

    fn expect(&self, key: &str, when: Precondition) -> Result<Arc<Entry>, Error> {
        let Precondition::ModifiedAt(revision) = when;
        match self.get(key) {
            Some(entry) if entry.modified == revision => Ok(Arc::clone(entry)),
            found => Err(Error::Conflict(found.cloned())),
        }
    }

    fn note(&mut self, change: Change) -> Change {
        let entry = match &change {
            Change::Put { entry, .. } => Some(Arc::clone(entry)),
            Change::Delete { .. } => None,
        };
        self.over.insert(Arc::clone(change.key()), entry);
        self.revision = change.revision();
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(state: &mut State, key: &str, value: &str) -> Revision {
        let value = Bytes::copy_from_slice(value.as_bytes());
        let mut draft = Draft::new(state);
        let change = match draft.get(key).map(|entry| entry.modified) {
            None => draft.create(key.into(), value),
            Some(at) => draft.update(key, value, Precondition::ModifiedAt(at)),
        };
        state.apply(change.unwrap());
        state.revision
    }

    fn delete(state: &mut State, key: &str) -> Revision {
        let at = state.get(key).unwrap().modified;
        let change = Draft::new(state).delete(key, Precondition::ModifiedAt(at));
        state.apply(change.unwrap());
        state.revision
    }

    fn list(state: &State, prefix: &str, list: &List) -> Page {
        state.snapshot(prefix, list.at).unwrap().list(prefix, list)
    }

    fn trim(state: &mut State, revision: Revision, limit: usize) -> Vec<Revision> {
        let plan = state.trim_plan(revision, limit);
        state.trim(plan.oldest);
        plan.rows
    }

    fn at(state: &State, prefix: &str, revision: Revision) -> Vec<(String, Revision)> {
        let page = list(state, prefix, &List { at: Some(revision), ..List::default() });
        page.entries.iter().map(|entry| (entry.key.to_string(), entry.modified)).collect()
    }

    #[test]
    fn older_revisions_are_the_newest_with_changes_undone() {
        let mut state = State::default();
        put(&mut state, "/a/1", "x");
        put(&mut state, "/b/1", "x");
        put(&mut state, "/a/1", "y");
        delete(&mut state, "/a/1");
        put(&mut state, "/a/1", "z");
        assert_eq!(at(&state, "/a/", 0), vec![]);
        assert_eq!(at(&state, "/a/", 2), vec![("/a/1".into(), 1)]);
        assert_eq!(at(&state, "/a/", 3), vec![("/a/1".into(), 3)]);
        assert_eq!(at(&state, "/a/", 4), vec![]);
        assert_eq!(at(&state, "/a/", 5), vec![("/a/1".into(), 5)]);
        assert_eq!(at(&state, "/", 1), vec![("/a/1".into(), 1)]);
    }

    #[test]
    fn trimming_gives_back_the_rows_that_nothing_needs() {
        let mut state = State::default();
        put(&mut state, "/a", "1"); // 1
        put(&mut state, "/a", "2"); // 2 replaces 1
        put(&mut state, "/b", "1"); // 3
        delete(&mut state, "/a"); // 4 replaces 2, and is itself a row
        put(&mut state, "/b", "2"); // 5 replaces 3
        let (_, before) = state.kept();
        assert_eq!(trim(&mut state, 3, 2), vec![1]);
        assert_eq!((state.oldest, state.revision), (2, 5));
        assert_eq!(trim(&mut state, 4, 100), vec![2, 4]);
        let (count, bytes) = state.kept();
        assert_eq!(count, 1);
        assert!(bytes < before);
        assert!(matches!(state.check(3), Err(Error::Compacted { requested: 3, oldest: 4 })));
        assert_eq!(at(&state, "/", 4), vec![("/b".into(), 3)]);
        // Further than there is: up to the newest.
        assert_eq!(trim(&mut state, 99, 100), vec![3]);
        assert_eq!(state.oldest, 5);
        assert_eq!(state.kept(), (0, 0));
    }

    #[test]
    fn changes_come_in_parts_that_say_how_far_they_reach() {
        let mut state = State::default();
        for name in ["/a/1", "/b/1", "/a/2", "/b/2"] {
            put(&mut state, name, "x");
        }
        let (changes, reached) = state.changes("/a/", 0, 1);
        assert_eq!((changes.len(), reached), (1, 1));
        let (changes, reached) = state.changes("/a/", reached, 1);
        assert_eq!((changes.len(), reached), (1, 3));
        let (changes, reached) = state.changes("/a/", reached, 1);
        assert_eq!((changes.len(), reached), (0, 4));
    }

    #[test]
    fn a_page_goes_on_after_a_key_that_is_gone() {
        let mut state = State::default();
        for name in ["/a/1", "/a/2", "/a/3", "/b/1"] {
            put(&mut state, name, "x");
        }
        let list = List { limit: Some(1), after: Some("/a/11".into()), ..List::default() };
        let page = self::list(&state, "/a/", &list);
        assert_eq!(&*page.entries[0].key, "/a/2");
        assert_eq!(page.remaining, 1);
        // A start before the prefix begins at the prefix.
        let list = List { after: Some("/".into()), ..List::default() };
        assert_eq!(self::list(&state, "/b/", &list).entries.len(), 1);
    }

    #[test]
    fn a_page_after_all_is_empty() {
        let mut state = State::default();
        put(&mut state, "/a/1", "x");
        let after = List { after: Some("/b".into()), ..List::default() };
        assert_eq!(list(&state, "/a/", &after).entries.len(), 0);
        assert_eq!(list(&state, "", &List::default()).entries.len(), 1);
    }

    #[test]
    fn the_end_of_a_prefix_is_behind_all_that_start_with_it() {
        assert_eq!(prefix_end("/a/").as_deref(), Some("/a0"));
        assert_eq!(prefix_end("\u{d7ff}").as_deref(), Some("\u{e000}"));
        assert_eq!(prefix_end("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(prefix_end(""), None);
    }

    #[test]
    fn a_draft_sees_its_own_writes_and_changes_nothing() {
        let mut state = State::default();
        put(&mut state, "/a", "1");
        let mut draft = Draft::new(&state);
        let second = draft.update("/a", Bytes::new(), Precondition::ModifiedAt(1)).unwrap();
        assert!(matches!(
            draft.update("/a", Bytes::new(), Precondition::ModifiedAt(1)),
            Err(Error::Conflict(_))
        ));
        let third = draft.delete("/a", Precondition::ModifiedAt(2)).unwrap();
        let fourth = draft.create("/a".into(), Bytes::new()).unwrap();
        assert!(matches!(draft.create("/a".into(), Bytes::new()), Err(Error::Exists(_))));
        assert_eq!((state.revision, state.get("/a").unwrap().modified), (1, 1));
        for change in [second, third, fourth] {
            state.apply(change);
        }
        assert_eq!((state.revision, state.get("/a").unwrap().created), (4, 4));
    }
}
