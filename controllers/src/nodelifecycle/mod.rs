//! The node lifecycle controller: notices nodes that fall silent, taints nodes by their conditions, and
//! evicts the pods that do not tolerate it.
//!
//! A node is heard of when its Lease is renewed or its status changes, as this process sees it by its own
//! monotonic clock; no clocks are compared. After a start every node has its full time. If no node at all
//! is heard of, it is rather the control plane that is cut off: then nobody is evicted.
//!
//! A machine that stalls must not take its nodes for dead: a look that comes late gives the nodes as much time
//! again, and before a node is given up its Lease is read from the API server itself, not from the mirror.

mod metrics;
mod plan;
mod zones;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::event::{Recorder, Severity};
use decapod_client::informer::{Informer, Selection};
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, ObjectReference, Pod, Taint};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::common::{Context, Result, Says, pods};
use plan::{Eviction, Since};
use zones::{Count, Limiter, Turn};

const NAME: &str = "node-controller";
const LEASES: &str = "kube-node-lease";

/// When a node counts as lost.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// For how long a node may be silent before it counts as unreachable.
    pub grace: Duration,
    /// The same for a node that was never heard of.
    pub startup_grace: Duration,
    /// How many nodes of a zone are emptied in a second (`--node-eviction-rate`).
    pub eviction_rate: f64,
    /// The same in a large zone that has lost many nodes (`--secondary-node-eviction-rate`); a small one is not
    /// emptied then.
    pub secondary_eviction_rate: f64,
    /// Which share of its nodes, from 0 to 1, a zone has lost then (`--unhealthy-zone-threshold`).
    pub unhealthy_zone_threshold: f64,
    /// A zone with more nodes is large (`--large-cluster-size-threshold`).
    pub large_zone: usize,
}

impl Default for Options {
    /// Kubernetes' own, but for the time after which a node counts as lost: 8 s in place of 40, so that a dead node is
    /// seen within 10 s. Nodes of this distribution show themselves every 2 s.
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(8),
            startup_grace: Duration::from_secs(60),
            eviction_rate: 0.1,
            secondary_eviction_rate: 0.01,
            unhealthy_zone_threshold: 0.55,
            large_zone: 50,
        }
    }
}

/// What was last heard of a node, and when.
#[derive(Debug, PartialEq)]
struct Heard {
    /// The renewal of its Lease and the heartbeat in its status, as they stand there.
    signs: (Option<String>, Option<String>),
    at: Duration,
    /// Whether it was ever heard to change.
    alive: bool,
    /// When it is looked at again, at the latest.
    look: Option<Duration>,
}

/// A look that is this late says that this process stalled, not the node. More than a timer's inaccuracy.
const LATE: Duration = Duration::from_millis(500);

struct Controller {
    context: Context,
    options: Options,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    recorder: Recorder,
    heard: Mutex<HashMap<String, Heard>>,
    /// What drives pods away, by node; no node stands here that has no such taint.
    driving: Mutex<HashMap<String, Vec<Since>>>,
    limiter: Mutex<Limiter>,
}

/// Starts the controller with so many workers.
pub(crate) fn start(context: &Context, options: Options, workers: usize) {
    let queue = Queue::new(context.clock.clone());
    let in_namespace = Selection { namespace: LEASES.to_owned(), ..Selection::default() };
    let controller = Arc::new(Controller {
        context: context.clone(),
        options,
        nodes: context.informers.of(),
        leases: context.informers.selected(in_namespace),
        pods: context.informers.of(),
        recorder: context.recorder(NAME),
        heard: Mutex::default(),
        driving: Mutex::default(),
        limiter: Mutex::default(),
    });
    let supervisor = &context.supervisor;
    let by_name = |key: &ObjectKey| [key.name.clone()];
    reconcile::feed(supervisor, NAME, controller.nodes.subscribe(), &queue, move |change| {
        by_name(&change.key)
    });
    reconcile::feed(supervisor, NAME, controller.leases.subscribe(), &queue, move |change| {
        by_name(&change.key)
    });
    let nodes = controller.nodes.clone();
    reconcile::feed(supervisor, NAME, controller.pods.subscribe(), &queue, move |change| {
        // Pods matter only where a taint drives them away.
        let node = change.new.as_ref().map(|pod| pods::node_name(pod).to_owned())?;
        let taints = nodes.get(&ObjectKey::cluster(&node))?.spec.as_ref()?.taints.clone()?;
        taints.iter().any(|taint| taint.effect == "NoExecute").then_some(node)
    });
    reconcile::run(supervisor, NAME, &queue, workers, move |name: String| {
        let controller = controller.clone();
        async move { controller.reconcile(&name).await }
    });
}

impl Controller {
    async fn reconcile(&self, name: &str) -> Result<Option<Duration>> {
        self.nodes.synced().await;
        self.leases.synced().await;
        self.pods.synced().await;
        let Some(node) = self.nodes.get(&ObjectKey::cluster(name)) else {
            if self.lock().remove(name).is_some() {
                self.tell(name, None, "RemovingNode", "Removing Node", "from Controller");
            }
            self.driving(name, &[]);
            return Ok(None);
        };
        if !self.lock().contains_key(name) {
            self.tell(name, node.uid(), "RegisteredNode", "Registered Node", "in Controller");
        }
        let lease = self.leases.get(&ObjectKey::new(LEASES, name));
        let left = self.listen(name, &node, lease.as_deref());
        if left.is_none()
            && let Some(left) = self.ask(name, &node).await?
        {
            return Ok(Some(left));
        }
        let now = self.context.clock.now();
        if left.is_none() {
            if let Some(conditions) = plan::silent_conditions(&node, now) {
                self.write_conditions(&node, conditions).await?;
                let message = format!("Node {name} status is now: NodeNotReady");
                self.recorder.normal(&*node, "NodeNotReady", message);
                // The change of the node leads to all else.
                return Ok(None);
            }
            self.mark_pods(name).await?;
        }
        let (evicts, turn) = self.may_empty(&node);
        if let Some(taints) = plan::taints(&node, evicts, now) {
            let written = self.write_taints(&node, &taints).await;
            if written.is_err() {
                self.limiter().give_back(&zones::zone(&node));
            }
            return written.map(|()| soonest(left, turn));
        }
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
        let next = self.evict(name, &taints).await?;
        let again = soonest(soonest(left, turn), next);
        if again.is_none() && plan::readiness(&node) != "True" {
            // Whether evictions are right depends on other nodes, whose events do not lead here.
            return Ok(Some(self.options.grace));
        }
        Ok(again)
    }

    /// Whether the node's pods may be driven away if it is not ready, and after which time it is asked again.
    fn may_empty(&self, node: &Node) -> (bool, Option<Duration>) {
        if plan::readiness(node) == "True" {
            return (true, None);
        }
        let nodes = self.nodes.list();
        if !nodes.iter().any(|node| plan::readiness(node) == "True") {
            return (false, None);
        }
        if plan::is_being_emptied(node) {
            return (true, None);
        }
        let zone = zones::zone(node);
        let rate = Count::of(nodes.iter().map(|node| &**node), &zone).rate(&self.options);
        let now = self.context.clock.monotonic();
        match self.limiter().take(&zone, rate, now, self.options.grace) {
            Turn::Now => (true, None),
            Turn::After(rest) => (false, Some(rest)),
        }
    }

    /// Tells that the controller began or ceased to look after a node.
    fn tell(&self, name: &str, uid: Option<String>, reason: &str, before: &str, after: &str) {
        let node = ObjectReference {
            kind: Some("Node".to_owned()),
            api_version: Some("v1".to_owned()),
            name: Some(name.to_owned()),
            uid,
            ..ObjectReference::default()
        };
        let message = format!("Node {name} event: {before} {name} {after}");
        self.recorder.record(node, Severity::Normal, reason, message);
    }

    /// How long the node may still be silent; `None` if that time is over.
    fn listen(&self, name: &str, node: &Node, lease: Option<&Lease>) -> Option<Duration> {
        let renewed =
            lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref().map(|time| time.0.to_string()));
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        // What this controller writes itself is no sign of life: it leaves the heartbeats alone.
        let heartbeat =
            conditions.filter_map(|one| one.last_heartbeat_time.as_ref()).map(|time| time.0.to_string());
        let signs = (renewed, heartbeat.max());
        let now = self.context.clock.monotonic();
        let mut all = self.lock();
        let never = signs.0.is_none() && plan::readiness(node) == "Unknown";
        let heard = all.entry(name.to_owned()).or_insert_with(|| Heard {
            signs: signs.clone(),
            at: now,
            alive: !never,
            look: None,
        });
        if heard.signs != signs {
            *heard = Heard { signs, at: now, alive: true, look: None };
        }
        let grace = if heard.alive { self.options.grace } else { self.options.startup_grace };
        if let Some(late) = heard.look.take().and_then(|look| now.checked_sub(look + LATE)) {
            // The nodes had no chance to be heard meanwhile. A node that is given up already stays so.
            let late = (late + LATE).min(grace);
            if plan::readiness(node) != "Unknown" {
                heard.at = heard.at.max((now + late).saturating_sub(grace));
            }
        }
        let left = (heard.at + grace).checked_sub(now).filter(|left| !left.is_zero());
        heard.look = left.map(|left| now + left);
        left
    }

    /// Looks for a sign of life where it cannot be missed, before a node is given up.
    async fn ask(&self, name: &str, node: &Node) -> Result<Option<Duration>> {
        if plan::readiness(node) == "Unknown" {
            return Ok(None);
        }
        let api: Api<Lease> = Api::namespaced(self.context.client.clone(), LEASES);
        let lease = api.get_opt(name).await.says("look at the lease of a silent node")?;
        Ok(self.listen(name, node, lease.as_ref()))
    }

    async fn write_conditions(&self, node: &Node, conditions: Vec<NodeCondition>) -> Result<()> {
        let patch = json!({
            "metadata": {"resourceVersion": node.resource_version()},
            "status": {"conditions": conditions},
        });
        let api: Api<Node> = Api::all(self.context.client.clone());
        let patched = api.patch_status(&node.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.says("tell that a node is silent").map(|_| ())
    }

    async fn write_taints(&self, node: &Node, taints: &[Taint]) -> Result<()> {
        let taints = if taints.is_empty() { None } else { Some(taints) };
        let patch = json!({
            "metadata": {"resourceVersion": node.resource_version()},
            "spec": {"taints": taints},
        });
        let api: Api<Node> = Api::all(self.context.client.clone());
        let patched = api.patch(&node.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.says("taint a node")?;
        metrics::tainted(node, taints.unwrap_or_default());
        Ok(())
    }

    fn pods_on(&self, node: &str) -> Vec<Arc<Pod>> {
        let mut pods = self.pods.list();
        pods.retain(|pod| pods::node_name(pod) == node);
        pods
    }

    /// Takes the pods of a silent node out of their Services.
    async fn mark_pods(&self, node: &str) -> Result<()> {
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.context.clock.now());
        for pod in self.pods_on(node).iter().filter(|pod| pods::is_ready(pod)) {
            let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions":
                [{"type": "Ready", "status": "False", "reason": "NodeNotReady", "lastTransitionTime": now}]}});
            let api: Api<Pod> =
                Api::namespaced(self.context.client.clone(), &pod.namespace().unwrap_or_default());
            let marked =
                api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await;
            match marked {
                Ok(_) => self.recorder.warning(&**pod, "NodeNotReady", "Node is not ready"),
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => return Err(error).says("mark a pod of a silent node"),
            }
        }
        Ok(())
    }

    /// Deletes the pods that no longer tolerate the taints; returns when the next is due.
    async fn evict(&self, node: &str, taints: &[Taint]) -> Result<Option<Duration>> {
        let taints = self.driving(node, taints);
        if taints.is_empty() {
            return Ok(None);
        }
        let now = self.context.clock.now();
        let mut next: Option<Duration> = None;
        for pod in self.pods_on(node) {
            match plan::eviction(&pod, &taints, now) {
                Eviction::Never => {}
                Eviction::In(left) => next = Some(next.map_or(left, |next| next.min(left))),
                Eviction::Now => self.delete(&pod).await?,
            }
        }
        Ok(next)
    }

    /// The taints of a node that drive pods away, each with the time since when it does.
    fn driving(&self, node: &str, taints: &[Taint]) -> Vec<Since> {
        // As for `heard`.
        let mut all = self.driving.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.remove(node).unwrap_or_default();
        let noted = plan::note(&known, taints, self.context.clock.now());
        if !noted.is_empty() {
            all.insert(node.to_owned(), noted.clone());
        }
        noted
    }

    async fn delete(&self, pod: &Pod) -> Result<()> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let message = format!("Marking for deletion Pod {namespace}/{name}");
        self.recorder.normal(pod, "TaintManagerEviction", message);
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &namespace);
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.context.clock.now());
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": now}]}});
        let marked = api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        if let Err(error) = marked
            && !error.is_not_found()
            && !error.is_conflict()
        {
            return Err(error).says("mark a pod for its eviction");
        }
        let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
        match api.delete(&name, &DeleteParams::default().preconditions(preconditions)).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => Err(error).says("evict a pod"),
        }
    }

    fn limiter(&self) -> MutexGuard<'_, Limiter> {
        // As below.
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Heard>> {
        // Nothing panics while the lock is held, so the map is whole even if the lock is poisoned.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The shorter of two times, where there are any.
fn soonest(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}
