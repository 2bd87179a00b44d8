//! The whole store at one revision, as persistent ordered maps.
//!
//! A clone costs nothing and shares everything with its origin, so readers, watchers and the writer
//! each hold a state of their own and never wait for each other. There is one map of what lives now
//! and one of the changes that led there; an older revision is the newest one with the changes
//! since undone, so that keeping 10,000 revisions costs no more than their changes.
//!
//! **Invariant:** `history` holds exactly the revisions after `oldest` up to `revision`, without gap.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;

use crate::{Change, Entry, Error, List, Page, Precondition, Revision};

/// What a change costs in memory beside the keys and values that only it keeps alive.
const CHANGE_OVERHEAD: usize = 160;

#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    live: OrdMap<Arc<str>, Arc<Entry>>,
    history: OrdMap<Revision, Change>,
    /// The newest revision.
    pub(super) revision: Revision,
    /// The oldest revision that can be read or watched from.
    pub(super) oldest: Revision,
    history_bytes: usize,
}

/// The rows of the log that no kept revision needs any more.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Trimmed {
    pub(super) rows: Vec<Revision>,
}

impl Snapshot {
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

    pub(super) fn list(&self, prefix: &str, list: &List) -> Result<Page, Error> {
        let revision = list.at.unwrap_or(self.revision);
        self.check(revision)?;
        let live = self.live_at(revision, prefix);
        let start = match list.after.as_deref() {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut found = live
            .range::<_, str>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, entry)| entry);
        let limit = list.limit.unwrap_or(usize::MAX);
        let entries = found.by_ref().take(limit).cloned().collect();
        Ok(Page { entries, revision, remaining: found.count() })
    }

    /// What lived under the prefix at a kept revision; other keys are as they may be.
    fn live_at(&self, revision: Revision, prefix: &str) -> OrdMap<Arc<str>, Arc<Entry>> {
        let mut live = self.live.clone();
        let since = (Bound::Excluded(revision), Bound::Unbounded);
        for (_, change) in self.history.range(since).rev() {
            let key = change.key();
            if !key.starts_with(prefix) {
                continue;
            }
            match change.previous() {
                Some(previous) => live.insert(Arc::clone(key), Arc::clone(previous)),
                None => live.remove(key),
            };
        }
        live
    }

    /// At most `limit` changes under the prefix after `after`, and the revision up to which that is
    /// all of them.
    pub(super) fn changes(&self, prefix: &str, after: Revision, limit: usize) -> (Vec<Change>, Revision) {
        let since = (Bound::Excluded(after), Bound::Unbounded);
        let changes: Vec<Change> = self
            .history
            .range(since)
            .filter(|(_, change)| change.key().starts_with(prefix))
            .take(limit)
            .map(|(_, change)| change.clone())
            .collect();
        let reached = match changes.last() {
            Some(last) if changes.len() == limit => last.revision(),
            _ => self.revision,
        };
        (changes, reached)
    }

    /// Creates a key as the next revision.
    pub(super) fn create(&mut self, key: Arc<str>, value: Bytes) -> Result<Change, Error> {
        if let Some(there) = self.live.get(&key) {
            return Err(Error::Exists(Arc::clone(there)));
        }
        let revision = self.revision + 1;
        let entry = Arc::new(Entry { key, value, created: revision, modified: revision });
        Ok(self.apply(Change::Put { entry, previous: None }))
    }

    /// Replaces the value of a key as the next revision.
    pub(super) fn update(&mut self, key: &str, value: Bytes, when: Precondition) -> Result<Change, Error> {
        let previous = self.expect(key, when)?;
        let entry = Arc::new(Entry {
            key: Arc::clone(&previous.key),
            value,
            created: previous.created,
            modified: self.revision + 1,
        });
        Ok(self.apply(Change::Put { entry, previous: Some(previous) }))
    }

    /// Deletes a key as the next revision.
    pub(super) fn delete(&mut self, key: &str, when: Precondition) -> Result<Change, Error> {
        let previous = self.expect(key, when)?;
        Ok(self.apply(Change::Delete { previous, revision: self.revision + 1 }))
    }

    fn expect(&self, key: &str, when: Precondition) -> Result<Arc<Entry>, Error> {
        let Precondition::ModifiedAt(revision) = when;
        match self.live.get(key) {
            Some(entry) if entry.modified == revision => Ok(Arc::clone(entry)),
            found => Err(Error::Conflict(found.cloned())),
        }
    }

    /// Does the change that makes the next revision.
    fn apply(&mut self, change: Change) -> Change {
        match &change {
            Change::Put { entry, .. } => self.live.insert(Arc::clone(&entry.key), Arc::clone(entry)),
            Change::Delete { previous, .. } => self.live.remove(&previous.key),
        };
        self.revision = change.revision();
        self.history_bytes += cost(&change);
        self.history.insert(self.revision, change.clone());
        change
    }

    /// Forgets the changes up to `revision`, but at most `limit` of them.
    pub(super) fn trim(&mut self, revision: Revision, limit: usize) -> Trimmed {
        let last = revision.min(self.revision).min(self.oldest.saturating_add(limit as Revision));
        let mut rows = Vec::new();
        while self.oldest < last {
            self.oldest += 1;
            let change = self.history.remove(&self.oldest).expect("history has no gap");
            self.history_bytes -= cost(&change);
            // What this change replaced is seen by no kept revision; neither is a deletion itself.
            rows.extend(change.previous().map(|previous| previous.modified));
            if let Change::Delete { revision, .. } = change {
                rows.push(revision);
            }
        }
        // In the order of the log, so that neighbours are removed together.
        rows.sort_unstable();
        Trimmed { rows }
    }
}

/// What only this change keeps in memory.
fn cost(change: &Change) -> usize {
    CHANGE_OVERHEAD + change.previous().map_or(0, |previous| previous.key.len() + previous.value.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(snapshot: &mut Snapshot, key: &str, value: &str) -> Revision {
        let value = Bytes::copy_from_slice(value.as_bytes());
        let change = match snapshot.get(key).map(|entry| entry.modified) {
            None => snapshot.create(key.into(), value),
            Some(at) => snapshot.update(key, value, Precondition::ModifiedAt(at)),
        };
        change.unwrap().revision()
    }

    fn delete(snapshot: &mut Snapshot, key: &str) -> Revision {
        let at = snapshot.get(key).unwrap().modified;
        snapshot.delete(key, Precondition::ModifiedAt(at)).unwrap().revision()
    }

    fn at(snapshot: &Snapshot, prefix: &str, revision: Revision) -> Vec<(String, Revision)> {
        let list = List { at: Some(revision), ..List::default() };
        let page = snapshot.list(prefix, &list).unwrap();
        page.entries.iter().map(|entry| (entry.key.to_string(), entry.modified)).collect()
    }

    #[test]
    fn older_revisions_are_the_newest_with_changes_undone() {
        let mut snapshot = Snapshot::default();
        put(&mut snapshot, "/a/1", "x");
        put(&mut snapshot, "/b/1", "x");
        put(&mut snapshot, "/a/1", "y");
        delete(&mut snapshot, "/a/1");
        put(&mut snapshot, "/a/1", "z");
        assert_eq!(at(&snapshot, "/a/", 0), vec![]);
        assert_eq!(at(&snapshot, "/a/", 2), vec![("/a/1".into(), 1)]);
        assert_eq!(at(&snapshot, "/a/", 3), vec![("/a/1".into(), 3)]);
        assert_eq!(at(&snapshot, "/a/", 4), vec![]);
        assert_eq!(at(&snapshot, "/a/", 5), vec![("/a/1".into(), 5)]);
        assert_eq!(at(&snapshot, "/", 1), vec![("/a/1".into(), 1)]);
    }

    #[test]
    fn trimming_gives_back_the_rows_that_nothing_needs() {
        let mut snapshot = Snapshot::default();
        put(&mut snapshot, "/a", "1"); // 1
        put(&mut snapshot, "/a", "2"); // 2 replaces 1
        put(&mut snapshot, "/b", "1"); // 3
        delete(&mut snapshot, "/a"); // 4 replaces 2, and is itself a row
        put(&mut snapshot, "/b", "2"); // 5 replaces 3
        let (_, before) = snapshot.kept();
        assert_eq!(snapshot.trim(3, 2).rows, vec![1]);
        assert_eq!((snapshot.oldest, snapshot.revision), (2, 5));
        assert_eq!(snapshot.trim(4, 100).rows, vec![2, 4]);
        let (count, bytes) = snapshot.kept();
        assert_eq!(count, 1);
        assert!(bytes < before);
        assert!(matches!(snapshot.check(3), Err(Error::Compacted { requested: 3, oldest: 4 })));
        assert_eq!(at(&snapshot, "/", 4), vec![("/b".into(), 3)]);
        // Further than there is: up to the newest.
        assert_eq!(snapshot.trim(99, 100).rows, vec![3]);
        assert_eq!(snapshot.oldest, 5);
        assert_eq!(snapshot.kept(), (0, 0));
    }

    #[test]
    fn changes_come_in_parts_that_say_how_far_they_reach() {
        let mut snapshot = Snapshot::default();
        for name in ["/a/1", "/b/1", "/a/2", "/b/2"] {
            put(&mut snapshot, name, "x");
        }
        let (changes, reached) = snapshot.changes("/a/", 0, 1);
        assert_eq!((changes.len(), reached), (1, 1));
        let (changes, reached) = snapshot.changes("/a/", reached, 1);
        assert_eq!((changes.len(), reached), (1, 3));
        let (changes, reached) = snapshot.changes("/a/", reached, 1);
        assert_eq!((changes.len(), reached), (0, 4));
    }

    #[test]
    fn a_page_goes_on_after_a_key_that_is_gone() {
        let mut snapshot = Snapshot::default();
        for name in ["/a/1", "/a/2", "/a/3", "/b/1"] {
            put(&mut snapshot, name, "x");
        }
        let list = List { limit: Some(1), after: Some("/a/11".into()), ..List::default() };
        let page = snapshot.list("/a/", &list).unwrap();
        assert_eq!(&*page.entries[0].key, "/a/2");
        assert_eq!(page.remaining, 1);
        // A start before the prefix begins at the prefix.
        let list = List { after: Some("/".into()), ..List::default() };
        assert_eq!(snapshot.list("/b/", &list).unwrap().entries.len(), 1);
    }
}
