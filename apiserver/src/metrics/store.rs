//! A store that counts what is asked of another: Kubernetes' `etcd_*` metrics, whichever store it is.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use decapod_api::resource::{RESOURCES, Storage};
use decapod_storage::{Entry, Error, List, Page, Precondition, Revision, Store, Watch};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{LATENCY, Times, times};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
    group: &'static str,
    resource: &'static str,
}

/// The kind of each prefix of keys.
static KINDS: LazyLock<HashMap<String, (&'static str, &'static str)>> = LazyLock::new(|| {
    let stored = RESOURCES.iter().filter(|row| matches!(row.storage, Storage::Stored(_)));
    stored.filter_map(|row| Some((row.key_prefix()?, (row.group, row.plural)))).collect()
});

/// The store in the store.
pub(crate) struct Measured {
    inner: Arc<dyn Store>,
    times: Times<Operation>,
    requests: Family<Operation, Counter>,
    errors: Family<Operation, Counter>,
}

impl Measured {
    pub(crate) fn new(inner: Arc<dyn Store>) -> Self {
        Self {
            inner,
            times: times(|| Histogram::new(LATENCY)),
            requests: Family::default(),
            errors: Family::default(),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Etcd request latency in seconds for each operation and object type";
        registry.register("etcd_request_duration_seconds", help, self.times.clone());
        let help = "Etcd request counts for each operation and object type";
        registry.register("etcd_requests", help, self.requests.clone());
        let help = "Etcd failed request counts for each operation and object type";
        registry.register("etcd_request_errors", help, self.errors.clone());
    }

    async fn measure<T>(
        &self,
        operation: &'static str,
        key: &str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let started = Instant::now();
        let result = work.await;
        let (group, resource) = kind(key);
        let labels = Operation { operation, group, resource };
        self.times.get_or_create(&labels).observe(started.elapsed().as_secs_f64());
        self.requests.get_or_create(&labels).inc();
        // That a precondition does not hold is an answer.
        if matches!(result, Err(Error::Unavailable(_) | Error::Undecipherable { .. } | Error::TooLarge)) {
            self.errors.get_or_create(&labels).inc();
        }
        result
    }
}

/// The kind that a key or prefix belongs to; nothing for others.
fn kind(key: &str) -> (&'static str, &'static str) {
    let folders = key.match_indices('/').map(|(slash, _)| &key[..=slash]);
    folders.filter_map(|folder| KINDS.get(folder)).next_back().copied().unwrap_or_default()
}

#[async_trait]
impl Store for Measured {
    async fn get(&self, key: &str) -> Result<Option<Arc<Entry>>, Error> {
        self.measure("get", key, self.inner.get(key)).await
    }

    async fn list(&self, prefix: &str, list: List) -> Result<Page, Error> {
        self.measure("list", prefix, self.inner.list(prefix, list)).await
    }

    async fn create(&self, key: &str, value: Bytes) -> Result<Arc<Entry>, Error> {
        self.measure("create", key, self.inner.create(key, value)).await
    }

    async fn update(&self, key: &str, value: Bytes, when: Precondition) -> Result<Arc<Entry>, Error> {
        self.measure("update", key, self.inner.update(key, value, when)).await
    }

    async fn delete(&self, key: &str, when: Precondition) -> Result<Revision, Error> {
        self.measure("delete", key, self.inner.delete(key, when)).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, Error> {
        self.inner.watch(prefix, after).await
    }

    async fn progress(&self) -> Result<(), Error> {
        self.inner.progress().await
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.inner.revision().await
    }

    async fn size(&self) -> Result<u64, Error> {
        self.inner.size().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.inner.compact(revision).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_belong_to_kinds() {
        assert_eq!(kind("/registry/pods/default/a"), ("", "pods"));
        assert_eq!(kind("/registry/services/specs/default/a"), ("", "services"));
        assert_eq!(kind("/registry/deployments/"), ("apps", "deployments"));
        assert_eq!(kind("compact_rev_key"), ("", ""));
    }
}
