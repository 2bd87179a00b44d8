//! The pod garbage collector: removes pods that nobody else can finish: those bound to a node that does
//! not exist, and those that are to go and never had a node.
//!
//! A node may be missing because it is just being registered, so its absence must last for a while and is
//! asked of the API server before a pod is removed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::informer::{Change, Informer};
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::common::{Context, Result, Says, pods};

const NAME: &str = "pod-garbage-collector-controller";

/// How long a node must be missing before its pods are removed, as in Kubernetes.
const QUARANTINE: Duration = Duration::from_secs(40);

struct Controller {
    context: Context,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    /// Since when nodes that pods are bound to are missing.
    missing: Mutex<HashMap<String, Duration>>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context) {
    let queue = Queue::new(context.clock.clone());
    let (pods, nodes) = (context.informers.of::<Pod>(), context.informers.of::<Node>());
    let supervisor = &context.supervisor;
    let known = nodes.clone();
    reconcile::feed(supervisor, NAME, pods.subscribe(), &queue, move |change: &Change<Pod>| {
        let pod = change.new.as_ref()?;
        let node = pods::node_name(pod);
        let is_lost = !node.is_empty() && known.get(&ObjectKey::cluster(node)).is_none();
        let is_left = node.is_empty() && pod.metadata.deletion_timestamp.is_some();
        (is_lost || is_left).then(|| change.key.clone())
    });
    let bound = pods.clone();
    reconcile::feed(supervisor, NAME, nodes.subscribe(), &queue, move |change: &Change<Node>| {
        let gone = change.new.is_none();
        let all = if gone { bound.list() } else { Vec::new() };
        let on_it = all.iter().filter(|pod| pods::node_name(pod) == change.key.name);
        on_it.map(|pod| ObjectKey::of(&**pod)).collect::<Vec<_>>()
    });
    let controller =
        Arc::new(Controller { context: context.clone(), pods, nodes, missing: Mutex::default() });
    reconcile::run(supervisor, NAME, &queue, 1, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        self.pods.synced().await;
        self.nodes.synced().await;
        let Some(pod) = self.pods.get(key) else { return Ok(None) };
        let node = pods::node_name(&pod);
        if node.is_empty() {
            if pod.metadata.deletion_timestamp.is_some() {
                self.remove(&pod).await?;
            }
            return Ok(None);
        }
        if self.nodes.get(&ObjectKey::cluster(node)).is_some() {
            self.lock().remove(node);
            return Ok(None);
        }
        let now = self.context.clock.monotonic();
        let since = *self.lock().entry(node.to_owned()).or_insert(now);
        let left = (since + QUARANTINE).saturating_sub(now);
        if !left.is_zero() {
            return Ok(Some(left));
        }
        let api: Api<Node> = Api::all(self.context.client.clone());
        if api.get_opt(node).await.says("look at the node of a pod")?.is_none() {
            self.remove(&pod).await?;
        }
        Ok(None)
    }

    /// Removes a pod at once: there is no kubelet that could do it gracefully.
    async fn remove(&self, pod: &Pod) -> Result<()> {
        let api: Api<Pod> =
            Api::namespaced(self.context.client.clone(), &pod.namespace().unwrap_or_default());
        let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
        let parameters = DeleteParams::default().grace_period(0).preconditions(preconditions);
        match api.delete(&pod.name_any(), &parameters).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => Err(error).says("remove an orphaned pod"),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Duration>> {
        // Nothing panics while the lock is held, so the map is whole even if the lock is poisoned.
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
