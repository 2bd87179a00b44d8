//! ConfigMaps and Secrets that pods of this node refer to.
//!
//! Each object is watched by name, as the Node authorizer allows it, for as long as a pod uses it; when it changes,
//! the workers of those pods look again.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::clock::{self, Clock};
use decapod_client::informer::{Informer, Informers};
use decapod_client::task::Supervisor;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde::de::DeserializeOwned;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::pod::Uid;
use crate::wake::Wakes;

/// How long a worker waits for the first answer of the API server before it gives the pod up for this time.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// The API server did not answer in time.
#[derive(Debug, thiserror::Error)]
#[error("failed to sync {kind} cache: timed out waiting for the condition")]
pub(crate) struct Unavailable {
    pub(crate) kind: &'static str,
}

/// The objects that are in use.
pub(crate) struct Objects {
    informers: Informers,
    supervisor: Supervisor,
    clock: Arc<dyn Clock>,
    wakes: Wakes,
    config_maps: Mutex<HashMap<ObjectKey, Entry<ConfigMap>>>,
    secrets: Mutex<HashMap<ObjectKey, Entry<Secret>>>,
}

struct Entry<K> {
    informer: Informer<K>,
    users: Arc<Mutex<BTreeSet<Uid>>>,
    _ends_the_task: DropGuard,
}

type Table<K> = Mutex<HashMap<ObjectKey, Entry<K>>>;

impl Objects {
    pub(crate) fn new(
        informers: Informers,
        supervisor: Supervisor,
        clock: Arc<dyn Clock>,
        wakes: Wakes,
    ) -> Self {
        Self { informers, supervisor, clock, wakes, config_maps: Mutex::default(), secrets: Mutex::default() }
    }

    /// The config map, if it exists; `user` is woken whenever it changes.
    pub(crate) async fn config_map(
        &self,
        user: &str,
        key: &ObjectKey,
    ) -> Result<Option<Arc<ConfigMap>>, Unavailable> {
        self.get(&self.config_maps, "configmap", user, key).await
    }

    /// The secret, if it exists; `user` is woken whenever it changes.
    pub(crate) async fn secret(
        &self,
        user: &str,
        key: &ObjectKey,
    ) -> Result<Option<Arc<Secret>>, Unavailable> {
        self.get(&self.secrets, "secret", user, key).await
    }

    /// The pod is gone: objects that no other pod uses are no longer watched.
    pub(crate) fn release(&self, user: &str) {
        release(&self.config_maps, user);
        release(&self.secrets, user);
    }

    async fn get<K>(
        &self,
        table: &Table<K>,
        kind: &'static str,
        user: &str,
        key: &ObjectKey,
    ) -> Result<Option<Arc<K>>, Unavailable>
    where
        K: kube::Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let informer = {
            let mut table = lock(table);
            let entry = table.entry(key.clone()).or_insert_with(|| self.watch(key));
            lock(&entry.users).insert(user.to_owned());
            entry.informer.clone()
        };
        if !informer.is_synced() {
            clock::timeout(&*self.clock, FIRST_ANSWER, informer.synced())
                .await
                .ok_or(Unavailable { kind })?;
        }
        Ok(informer.get(key))
    }

    fn watch<K>(&self, key: &ObjectKey) -> Entry<K>
    where
        K: kube::Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let informer = self.informers.single::<K>(key);
        let users: Arc<Mutex<BTreeSet<Uid>>> = Arc::default();
        let unused = CancellationToken::new();
        let (mut changes, wakes) = (informer.subscribe(), self.wakes.clone());
        let (told, stop) = (users.clone(), unused.clone());
        self.supervisor.spawn_until_shutdown("volume-object", async move {
            loop {
                let change = tokio::select! {
                    () = stop.cancelled() => return,
                    change = changes.next() => change,
                };
                if change.is_none() {
                    return;
                }
                for uid in lock(&told).iter() {
                    wakes.wake(uid);
                }
            }
        });
        Entry { informer, users, _ends_the_task: unused.drop_guard() }
    }
}

fn release<K>(table: &Table<K>, user: &str) {
    lock(table).retain(|_, entry| {
        let mut users = lock(&entry.users);
        users.remove(user);
        !users.is_empty()
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one of these locks is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
