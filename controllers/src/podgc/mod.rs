//! The pod garbage collector: removes pods that nobody else can finish: those bound to a node that does
//! not exist, those that are to go and never had a node or are on one that was declared out of service;
//! and the oldest of those that ended, where there are very many.
//!
//! A node may be missing because it is just being registered, so its absence must last for a while and is
//! asked of the API server before a pod is removed.

mod plan;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::informer::{Change, Informer};
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::common::{Context, Result, Says, pods};
use plan::Fate;

const NAME: &str = "pod-garbage-collector-controller";

/// How long a node must be missing before its pods are removed, as in Kubernetes.
const QUARANTINE: Duration = Duration::from_secs(40);

/// How often the pods that ended are counted, as in Kubernetes.
const PERIOD: Duration = Duration::from_secs(20);

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
        let node = known.get(&ObjectKey::cluster(pods::node_name(pod)));
        (plan::fate(pod, node.as_deref()) != Fate::Stays).then(|| change.key.clone())
    });
    let bound = pods.clone();
    reconcile::feed(supervisor, NAME, nodes.subscribe(), &queue, move |change: &Change<Node>| {
        let lost = change.new.as_ref().is_none_or(|node| plan::is_out_of_service(node));
        let all = if lost { bound.list() } else { Vec::new() };
        let on_it = all.iter().filter(|pod| pods::node_name(pod) == change.key.name);
        on_it.map(|pod| ObjectKey::of(&**pod)).collect::<Vec<_>>()
    });
    let controller =
        Arc::new(Controller { context: context.clone(), pods, nodes, missing: Mutex::default() });
    let counting = controller.clone();
    supervisor.spawn_until_shutdown(NAME, async move { counting.trim().await });
    reconcile::run(supervisor, NAME, &queue, 1, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

impl Controller {
    /// Removes the oldest of the pods that ended, again and again.
    async fn trim(&self) {
        self.pods.synced().await;
        loop {
            for pod in plan::surplus(&self.pods.list(), plan::ENDED_LIMIT) {
                if let Err(error) = self.remove(&pod, None).await {
                    let error = decapod_client::error::chain(&error);
                    tracing::warn!(error, name = pod.name_any(), "cannot remove a pod that ended");
                }
            }
            self.context.clock.sleep(PERIOD).await;
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        self.pods.synced().await;
        self.nodes.synced().await;
        let Some(pod) = self.pods.get(key) else { return Ok(None) };
        let node = pods::node_name(&pod);
        let known = self.nodes.get(&ObjectKey::cluster(node));
        if known.is_some() {
            self.lock().remove(node);
        }
        match plan::fate(&pod, known.as_deref()) {
            Fate::Stays => Ok(None),
            Fate::Goes => self.remove(&pod, None).await.map(|()| None),
            Fate::Orphaned => self.remove_orphan(&pod, node).await,
        }
    }

    async fn remove_orphan(&self, pod: &Pod, node: &str) -> Result<Option<Duration>> {
        let now = self.context.clock.monotonic();
        let since = *self.lock().entry(node.to_owned()).or_insert(now);
        let left = (since + QUARANTINE).saturating_sub(now);
        if !left.is_zero() {
            return Ok(Some(left));
        }
        let api: Api<Node> = Api::all(self.context.client.clone());
        if api.get_opt(node).await.says("look at the node of a pod")?.is_none() {
            let condition = json!({
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                "message": "PodGC: node no longer exists",
                "lastTransitionTime": Time(self.context.clock.now()),
            });
            self.remove(pod, Some(condition)).await?;
        }
        Ok(None)
    }

    /// Removes a pod at once: there is no kubelet that could do it gracefully. What has not ended is said
    /// to have failed first, since its watchers see no other end.
    async fn remove(&self, pod: &Pod, condition: Option<serde_json::Value>) -> Result<()> {
        let api: Api<Pod> =
            Api::namespaced(self.context.client.clone(), &pod.namespace().unwrap_or_default());
        if !pods::is_terminal(pod) {
            let mut status = json!({"phase": "Failed"});
            if let Some(condition) = condition {
                status["conditions"] = json!([condition]);
            }
            let patch = Patch::Strategic(json!({"metadata": {"uid": pod.uid()}, "status": status}));
            match api.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await {
                Ok(_) => {}
                Err(error) if error.is_not_found() || error.is_conflict() => return Ok(()),
                Err(error) => return Err(error).says("mark a pod as failed"),
            }
        }
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
