//! Reading one's own writes. A controller plans from a cache that lags behind the API server; were it to
//! plan before the cache shows the pods that it has just created, it would create them twice.
//!
//! So each write is noted under the key that was reconciled, and the next reconciliation of that key
//! waits until the cache has seen it. Deletions need no waiting: what was deleted is left out of the view.
//!
//! A write that was not answered may have been done. Where doing it again would do it twice (a name that the
//! API server makes up, a choice that rests on what was chosen before), the controller notes the doubt and
//! asks the API server before it plans again.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::clock::{self, Clock};
use decapod_client::informer::Informer;
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

use super::{Error, Result, Says};

/// How long a cache may lag before the reconciliation is put off: far longer than a watch takes, and
/// short enough not to hold a worker while the API server is away.
const PATIENCE: Duration = Duration::from_secs(5);

/// The writes that the cache may not show yet, by the key whose reconciliation made them.
#[derive(Debug, Default)]
pub(crate) struct Expectations {
    pending: Mutex<HashMap<ObjectKey, Pending>>,
}

#[derive(Debug, Default)]
struct Pending {
    /// The revision of the newest write; opaque but comparable as a number.
    revision: String,
    /// The uids that were deleted and that the cache may still show as if they were not.
    gone: HashSet<String>,
    /// A write was not answered: it may have been done or not.
    doubted: bool,
}

/// Whether a request may have been carried out though it failed: the answer was lost, or the API server
/// gave up waiting for itself.
fn is_open(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code >= 500,
        _ => true,
    }
}

impl Expectations {
    /// Notes that reconciling `key` wrote `object`.
    pub(crate) fn wrote<K: Resource>(&self, key: &ObjectKey, object: &K) {
        let Some(revision) = &object.meta().resource_version else { return };
        let mut pending = self.lock();
        let pending = pending.entry(key.clone()).or_default();
        if number(revision) >= number(&pending.revision) {
            pending.revision.clone_from(revision);
        }
    }

    /// Notes that reconciling `key` deleted the object of this uid.
    pub(crate) fn deleted(&self, key: &ObjectKey, uid: &str) {
        self.lock().entry(key.clone()).or_default().gone.insert(uid.to_owned());
    }

    /// Notes that a write of `key` failed. If it may have been carried out all the same, the next look has
    /// to find out.
    pub(crate) fn failed(&self, key: &ObjectKey, error: &kube::Error) {
        if is_open(error) {
            self.lock().entry(key.clone()).or_default().doubted = true;
        }
    }

    /// Ends the doubt of `key`, if there is one: asks the API server what exists of what the cache `shown`
    /// at most shows. Call it before [`Self::settled`], which then waits for what was found.
    ///
    /// # Errors
    /// The API server did not answer: the doubt remains.
    pub(crate) async fn resolve<K>(
        &self,
        key: &ObjectKey,
        api: &Api<K>,
        among: &ListParams,
        shown: impl FnOnce() -> Vec<Arc<K>>,
    ) -> Result<()>
    where
        K: Resource + Clone + DeserializeOwned + Debug,
    {
        if !self.is_in_doubt(key) {
            return Ok(());
        }
        let shown = shown();
        let now = api.list_metadata(among).await.says("find out what became of a write")?;
        self.found(key, &shown, &now.items);
        Ok(())
    }

    /// Whether it is open what became of a write of `key`.
    fn is_in_doubt(&self, key: &ObjectKey) -> bool {
        self.lock().get(key).is_some_and(|pending| pending.doubted)
    }

    /// Ends the doubt by what exists `now`, which was listed after the cache had `shown` this: the cache
    /// gets to the newest of what exists by itself, and what it showed and is no more was deleted. The
    /// revision of the list as a whole would not do: a cache learns of that only by a bookmark, a minute
    /// later.
    fn found<K: Resource>(&self, key: &ObjectKey, shown: &[Arc<K>], now: &[PartialObjectMeta<K>]) {
        let newest = now.iter().filter_map(|object| object.metadata.resource_version.as_deref());
        let newest = newest.max_by_key(|revision| number(revision)).unwrap_or_default();
        let exist: HashSet<&str> = now.iter().filter_map(|object| object.metadata.uid.as_deref()).collect();
        let shown = shown.iter().filter_map(|object| object.meta().uid.as_deref());
        let mut pending = self.lock();
        let pending = pending.entry(key.clone()).or_default();
        pending.doubted = false;
        pending.gone.extend(shown.filter(|uid| !exist.contains(uid)).map(str::to_owned));
        if number(newest) >= number(&pending.revision) {
            newest.clone_into(&mut pending.revision);
        }
    }

    /// Waits until `informer` shows what reconciling `key` wrote.
    ///
    /// # Errors
    /// [`Error::StaleCache`] when it does not in time.
    pub(crate) async fn settled<K>(
        &self,
        key: &ObjectKey,
        informer: &Informer<K>,
        clock: &dyn Clock,
    ) -> Result<()>
    where
        K: Resource + Send + Sync + 'static,
    {
        let revision = self.lock().get(key).map(|pending| pending.revision.clone());
        let Some(revision) = revision.filter(|revision| !revision.is_empty()) else { return Ok(()) };
        clock::timeout(clock, PATIENCE, informer.reached(&revision)).await.ok_or(Error::StaleCache)
    }

    /// The objects of `cached` without those that reconciling `key` has deleted.
    pub(crate) fn without_deleted<K: Resource>(&self, key: &ObjectKey, cached: Vec<Arc<K>>) -> Vec<Arc<K>> {
        let mut pending = self.lock();
        let Some(pending) = pending.get_mut(key) else { return cached };
        let awaited = |object: &Arc<K>| {
            let meta = object.meta();
            let uid = meta.uid.as_ref().filter(|uid| pending.gone.contains(*uid));
            uid.filter(|_| meta.deletion_timestamp.is_none()).cloned()
        };
        // What the cache no longer shows, or shows as being deleted, need not be remembered.
        let still: HashSet<String> = cached.iter().filter_map(awaited).collect();
        let is_left = |object: &Arc<K>| object.meta().uid.as_ref().is_none_or(|uid| !still.contains(uid));
        let left = cached.into_iter().filter(is_left).collect();
        pending.gone = still;
        left
    }

    /// Forgets `key`, whose object is gone.
    pub(crate) fn forget(&self, key: &ObjectKey) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectKey, Pending>> {
        // Nothing panics while the lock is held, so the map is whole even if the lock is poisoned.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn number(revision: &str) -> u64 {
    revision.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn pod(uid: &str) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.into());
        Arc::new(pod)
    }

    #[test]
    fn deleted_pods_are_left_out_until_the_cache_knows() {
        let (expectations, key) = (Expectations::default(), ObjectKey::new("ns", "set"));
        expectations.deleted(&key, "1");
        let left = expectations.without_deleted(&key, vec![pod("1"), pod("2")]);
        assert_eq!(left.iter().map(|pod| pod.metadata.uid.clone().unwrap()).collect::<Vec<_>>(), ["2"]);
        let mut deleting = Pod::clone(&pod("1"));
        deleting.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        let left = expectations.without_deleted(&key, vec![Arc::new(deleting), pod("2")]);
        assert_eq!(left.len(), 2, "shown as being deleted: the view is true again");
        assert!(expectations.lock()[&key].gone.is_empty());
    }

    #[test]
    fn a_doubt_ends_with_what_exists() {
        let (expectations, key) = (Expectations::default(), ObjectKey::new("ns", "set"));
        expectations.failed(&key, &kube::Error::TlsRequired);
        assert!(expectations.is_in_doubt(&key));
        let exists = |uid: &str, revision: &str| {
            let mut object = PartialObjectMeta::<Pod>::default();
            object.metadata.uid = Some(uid.into());
            object.metadata.resource_version = Some(revision.into());
            object
        };
        expectations.found(&key, &[pod("1"), pod("2")], &[exists("2", "10"), exists("3", "9")]);
        assert!(!expectations.is_in_doubt(&key));
        assert_eq!(expectations.lock()[&key].revision, "10", "an object's, which the cache will see");
        let left = expectations.without_deleted(&key, vec![pod("1"), pod("2")]);
        assert_eq!(left.iter().map(|pod| pod.metadata.uid.clone().unwrap()).collect::<Vec<_>>(), ["2"]);
    }
}
