//! What earlier builds have made, by what it was made of.
//!
//! **Invariant**: an entry is written after its layer is whole and on disk, and the layers of all entries
//! are kept. A file of entries that cannot be read means that nothing is remembered, and breaks no build.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};

use super::Layer;
use super::error::{Error, Result};
use crate::sys::durable;

/// Entries that are kept: some ten builds of the longest Dockerfiles.
const MAX_ENTRIES: usize = 1000;

/// Bytes of layers that are kept: a tenth of a small disk.
const MAX_BYTES: u64 = 10 << 30;

/// What an instruction has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Made {
    /// None where it changed nothing.
    pub(crate) layer: Option<Layer>,
    /// When, in seconds since 1970.
    pub(crate) at: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    made: Made,
    /// When it was needed last, by the number of look-ups.
    turn: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Entries {
    turn: u64,
    entries: BTreeMap<String, Entry>,
    /// Layers of builds that are under way.
    #[serde(skip)]
    held: Vec<Weak<Vec<Layer>>>,
}

/// The memory of builds.
#[derive(Debug)]
pub(super) struct Cache {
    path: PathBuf,
    entries: Mutex<Entries>,
}

impl Cache {
    /// Reads it.
    pub(super) fn open(root: &Path) -> Self {
        let path = root.join("build-cache.json");
        let entries = durable::read_json(&path).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "what builds remembered cannot be read: they begin anew");
            None
        });
        Cache { path, entries: Mutex::new(entries.unwrap_or_default()) }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // Nothing in it panics half way.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was made of this.
    pub(super) fn get(&self, key: &str) -> Option<Made> {
        let mut entries = self.lock();
        entries.turn += 1;
        let turn = entries.turn;
        let entry = entries.entries.get_mut(key)?;
        entry.turn = turn;
        Some(entry.made.clone())
    }

    /// Remembers; forgets what was not needed for longest where it becomes too much.
    pub(super) fn put(&self, key: &str, made: Made) -> Result<()> {
        let mut entries = self.lock();
        entries.turn += 1;
        let turn = entries.turn;
        entries.entries.insert(key.to_owned(), Entry { made, turn });
        bound(&mut entries.entries);
        durable::write_json(&self.path, &*entries).map_err(Error::io("write", &self.path))
    }

    /// Forgets everything; returns how many bytes of layers that were.
    pub(super) fn clear(&self) -> Result<u64> {
        let mut entries = self.lock();
        let bytes = bytes(&entries.entries);
        entries.entries.clear();
        durable::write_json(&self.path, &*entries).map_err(Error::io("write", &self.path))?;
        Ok(bytes)
    }

    /// Keeps layers for as long as what is returned lives.
    pub(super) fn hold(&self, layers: Vec<Layer>) -> Arc<Vec<Layer>> {
        let held = Arc::new(layers);
        let mut entries = self.lock();
        entries.held.retain(|weak| weak.strong_count() > 0);
        entries.held.push(Arc::downgrade(&held));
        held
    }

    /// All layers that are to be kept.
    pub(super) fn layers(&self) -> Vec<Layer> {
        let entries = self.lock();
        let remembered = entries.entries.values().filter_map(|entry| entry.made.layer.clone());
        let held = entries.held.iter().filter_map(Weak::upgrade);
        remembered.chain(held.flat_map(|layers| layers.to_vec())).collect()
    }
}

fn bytes(entries: &BTreeMap<String, Entry>) -> u64 {
    entries.values().filter_map(|entry| entry.made.layer.as_ref()).map(|layer| layer.bytes).sum()
}

fn bound(entries: &mut BTreeMap<String, Entry>) {
    while entries.len() > 1 && (entries.len() > MAX_ENTRIES || bytes(entries) > MAX_BYTES) {
        let oldest = entries.iter().min_by_key(|(_, entry)| entry.turn).map(|(key, _)| key.clone());
        oldest.and_then(|key| entries.remove(&key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(bytes: u64) -> Made {
        let layer = Layer { diff_id: format!("sha256:{}", "a".repeat(64)), blob: None, bytes };
        Made { layer: Some(layer), at: 7 }
    }

    #[test]
    fn it_is_bounded_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path());
        cache.put("old", made(MAX_BYTES / 2)).unwrap();
        cache.put("needed", made(MAX_BYTES / 2)).unwrap();
        assert!(cache.get("old").is_some() && cache.get("needed").is_some());
        cache.put("new", made(1)).unwrap();
        assert_eq!((cache.get("old"), cache.get("new")), (None, Some(made(1))));
        let again = Cache::open(dir.path());
        assert_eq!(again.get("needed"), Some(made(MAX_BYTES / 2)));
        assert_eq!(again.clear().unwrap(), MAX_BYTES / 2 + 1);
        std::fs::write(dir.path().join("build-cache.json"), "{").unwrap();
        assert_eq!(Cache::open(dir.path()).get("needed"), None);
    }

    #[test]
    fn builds_hold_their_layers() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path());
        let held = cache.hold(vec![made(3).layer.unwrap()]);
        assert_eq!(cache.layers().len(), 1);
        drop(held);
        assert!(cache.layers().is_empty());
    }
}
