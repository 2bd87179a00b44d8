//! The DaemonSet controller: keeps a pod on each node that will do.
//!
//! It finds the nodes itself and pins each pod to its node by name; the scheduler binds it there, when there is
//! room. Plans are made from a view that contains the controller's own writes.

mod backoff;
mod plan;
#[cfg(test)]
mod plan_tests;
mod pod;
mod rolling;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use decapod_api::labels::Selector;
use decapod_client::ObjectKey;
use decapod_client::event::Recorder;
use decapod_client::informer::{Change, Informer};
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;

use crate::common::batch::{BURST, Pods};
use crate::common::family::{Family, Owner};
use crate::common::history::{self, History, Naming, Present};
use crate::common::{Context, Result, pods};
use backoff::Backoff;
use plan::{Plan, World};

const NAME: &str = "daemonset-controller";

/// Pods carry the hash, not the name of the revision: that may be as long as an object's.
const NAMING: Naming = Naming { label: pod::HASH, prefix: 242 };

impl Owner for DaemonSet {
    fn selector(&self) -> Result<Selector> {
        let selector = self.spec.as_ref().map(|spec| &spec.selector).cloned().unwrap_or_default();
        Ok(Selector::try_from(&selector)?)
    }
}

struct Controller {
    family: Family<DaemonSet, Pod>,
    history: History,
    nodes: Informer<Node>,
    backoff: Backoff,
    recorder: Recorder,
}

/// Starts the controller with so many workers.
pub(crate) fn start(context: &Context, workers: usize) {
    let queue = Queue::new(context.clock.clone());
    let family = Family::<DaemonSet, Pod>::new(context, NAME, &queue);
    let nodes = context.informers.of::<Node>();
    let sets = family.owners.clone();
    reconcile::feed(&context.supervisor, NAME, nodes.subscribe(), &queue, move |change| {
        let sets = if is_concerned(change) { sets.list() } else { Vec::new() };
        sets.into_iter().map(|set| ObjectKey::of(&*set)).collect::<Vec<_>>()
    });
    let history = History::new(context, NAMING);
    let recorder = context.recorder(NAME);
    let controller = Arc::new(Controller { family, history, nodes, backoff: Backoff::default(), recorder });
    reconcile::run(&context.supervisor, NAME, &queue, workers, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

/// Whether the change of a node is of interest to DaemonSets: its heart beats often.
fn is_concerned(change: &Change<Node>) -> bool {
    let facts = |node: &Arc<Node>| {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone());
        (node.labels().clone(), taints.unwrap_or_default())
    };
    change.old.as_ref().map(facts) != change.new.as_ref().map(facts)
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        self.nodes.synced().await;
        let Some(set) = self.family.look(key).await? else {
            self.history.forget(key);
            self.backoff.forget(&key.to_string());
            return Ok(None);
        };
        let Some(spec) = set.spec.as_ref() else { return Ok(None) };
        let selector = set.selector()?;
        if selector.is_everything() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(&*set, "SelectingAll", message);
            return Ok(None);
        }
        let claimed = self.family.claim(key, &set, &selector, |_| true).await?;
        let mut revisions = self.history.of(key, &*set, &selector).await?;
        // Its history may be gone before it, and with it what its pods are.
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let known = set.status.clone().unwrap_or_default();
        let collisions = known.collision_count.unwrap_or(0);
        let present = Present { owner: &*set, template: &spec.template, collisions };
        let (current, collisions) = self.history.establish(key, present, &revisions).await?;
        revisions.retain(|revision| revision.uid() != current.uid());
        // Somebody may have made several of one template: a pod of any of them is up to date.
        let same = revisions.iter().filter(|revision| history::holds(revision, &spec.template));
        let hashes: BTreeSet<_> = same.chain([&current]).filter_map(|one| hash(one)).collect();
        let (nodes, pod_spec) = (self.nodes.list(), pod::spec(&set));
        let now = self.family.context.clock.now();
        let mut plan = plan::plan(&World {
            set: &set,
            spec,
            pod_spec: &pod_spec,
            nodes: &nodes,
            pods: &claimed,
            hashes: &hashes,
            held: &self.backoff.held(&key.to_string(), now),
            now,
        });
        if collisions != known.collision_count.unwrap_or(0) {
            plan.status.collision_count = Some(collisions);
        }
        let own = hash(&current).unwrap_or_default();
        let create = plan.create.iter().take(BURST);
        let create: Vec<_> = create.map(|node| pod::new(&set, pod_spec.clone(), &own, node)).collect();
        let again = self.apply(key, &set, &plan, &create).await?;
        let limit = spec.revision_history_limit.unwrap_or(10);
        let is_live = |revision: &ControllerRevision| {
            let own = hash(revision);
            own.is_some_and(|own| claimed.iter().any(|pod| pod::hash(pod) == own))
        };
        self.history.truncate(key, &revisions, limit, is_live).await?;
        Ok(again)
    }

    async fn apply(
        &self,
        key: &ObjectKey,
        set: &DaemonSet,
        plan: &Plan,
        create: &[Pod],
    ) -> Result<Option<Duration>> {
        let now = self.family.context.clock.now();
        for (node, pod) in &plan.ended {
            let place = format!("{}/{} on node {node}", key.namespace, pod.name_any());
            if pods::phase(pod) == "Failed" {
                self.backoff.failed(&key.to_string(), node, now);
                let message = format!("Found failed daemon pod {place}, will try to kill it");
                self.recorder.warning(set, "FailedDaemonPod", message);
            } else {
                let message = format!("Found succeeded daemon pod {place}, will try to delete it");
                self.recorder.normal(set, "SucceededDaemonPod", message);
            }
        }
        let Family { context, written, .. } = &self.family;
        let pods = Pods { client: &context.client, recorder: &self.recorder, written, key, owner: set };
        let created = pods.create(create).await;
        let deleted = pods.delete(&plan.delete[..plan.delete.len().min(BURST)]).await;
        self.write_status(key, set, &plan.status).await?;
        created.and(deleted).map(|()| plan.again)
    }

    async fn write_status(&self, key: &ObjectKey, set: &DaemonSet, status: &DaemonSetStatus) -> Result<()> {
        if plan::status_equals(status, &set.status.clone().unwrap_or_default()) {
            return Ok(());
        }
        let written = DaemonSet { status: Some(status.clone()), ..set.clone() };
        self.family.write_status(key, &written, "write the status of a DaemonSet").await
    }
}

/// The hash that a revision stands for.
fn hash(revision: &ControllerRevision) -> Option<String> {
    revision.labels().get(pod::HASH).cloned()
}
