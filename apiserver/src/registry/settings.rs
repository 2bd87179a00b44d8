//! What admission looks up at every write and what hardly ever changes: namespaces, accounts, classes, limits. Each is
//! decoded once and kept until it is written again.
//!
//! **Invariant**: what is looked up is the newest: the store says at each look which revision that is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use decapod_api::resource::Resource;
use decapod_api::status::Error;
use decapod_storage::{Entry, List, Revision};
use serde_json::Value;

use super::{Registry, object, reads};

/// How many are kept: more than are asked for again and again. A tree takes some kilobytes; when there is no room all
/// are forgotten, which costs each that is still wanted one decoding.
const KEPT: usize = 512;

/// Decoded objects, by the row that serves them and their key.
#[derive(Debug, Default)]
pub(super) struct Settings(Mutex<HashMap<(usize, Arc<str>), Kept>>);

#[derive(Debug)]
struct Kept {
    modified: Revision,
    object: Arc<Value>,
}

impl Settings {
    fn get(&self, row: &'static Resource, entry: &Entry) -> Option<Arc<Value>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.get(&(std::ptr::from_ref(row).addr(), Arc::clone(&entry.key)))?;
        (found.modified == entry.modified).then(|| Arc::clone(&found.object))
    }

    fn keep(&self, row: &'static Resource, entry: &Entry, object: &Arc<Value>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.clear();
        }
        let value = Kept { modified: entry.modified, object: Arc::clone(object) };
        kept.insert((std::ptr::from_ref(row).addr(), Arc::clone(&entry.key)), value);
    }
}

impl Registry {
    /// One object of a kind that is looked up often, the newest.
    pub(crate) async fn setting(
        &self,
        row: &'static Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Value>>, Error> {
        let key = object::key(row, namespace, name).ok_or(Error::UnknownPath)?;
        let entry = self.store.get(&key).await.map_err(reads::failed)?;
        entry.map(|entry| self.decoded(row, &entry)).transpose()
    }

    /// All objects of such a kind in a namespace (empty: in all), the newest.
    pub(crate) async fn settings(
        &self,
        row: &'static Resource,
        namespace: &str,
    ) -> Result<Vec<Arc<Value>>, Error> {
        let prefix = object::prefix(row, namespace).ok_or(Error::UnknownPath)?;
        let page = self.store.list(&prefix, List::default()).await.map_err(reads::failed)?;
        page.entries.iter().map(|entry| self.decoded(row, entry)).collect()
    }

    fn decoded(&self, row: &'static Resource, entry: &Entry) -> Result<Arc<Value>, Error> {
        if let Some(object) = self.decoded.get(row, entry) {
            return Ok(object);
        }
        let object = Arc::new(self.decode(row, entry)?);
        self.decoded.keep(row, entry, &object);
        Ok(object)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::registry::core;

    fn entry(key: &str, modified: Revision) -> Entry {
        Entry { key: key.into(), value: Bytes::new(), created: 1, modified }
    }

    #[test]
    fn what_was_written_since_is_not_taken_for_what_is_there() {
        let (settings, row) = (Settings::default(), core("namespaces"));
        let object = Arc::new(json!({"metadata": {"name": "a"}}));
        settings.keep(row, &entry("/a", 3), &object);
        assert!(settings.get(row, &entry("/a", 3)).is_some_and(|found| Arc::ptr_eq(&found, &object)));
        assert_eq!(settings.get(row, &entry("/a", 4)), None);
        assert_eq!(settings.get(core("nodes"), &entry("/a", 3)), None);
    }

    #[test]
    fn no_more_are_kept_than_there_is_room_for() {
        let (settings, row) = (Settings::default(), core("namespaces"));
        for number in 0..2 * KEPT {
            settings.keep(row, &entry(&format!("/{number}"), 1), &Arc::default());
            assert!(settings.0.lock().unwrap().len() <= KEPT);
        }
    }
}
