//! The disruption controller: keeps in the status of each PodDisruptionBudget how many of its pods may be
//! evicted now (KEP-85). The Eviction API takes from that number; this controller alone adds to it.
//!
//! Where it cannot find out, a budget allows nothing and says why.

mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use decapod_api::labels::Selector;
use decapod_client::ObjectKey;
use decapod_client::error::{self, ErrorExt};
use decapod_client::event::Recorder;
use decapod_client::informer::{Change, Informer};
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use crate::common::catalog::Catalog;
use crate::common::{self, Context, Says, claim};

const NAME: &str = "disruption-controller";
/// The name under which Kubernetes records these events.
const RECORDER: &str = "controllermanager";

struct Controller {
    context: Context,
    catalog: Catalog,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    stateful_sets: Informer<StatefulSet>,
    replication_controllers: Informer<ReplicationController>,
    recorder: Recorder,
}

/// Why the scale behind a budget's pods is not known.
#[derive(Debug, thiserror::Error)]
enum Unknown {
    #[error("found no controllers for pod {0:?}")]
    NoController(String),
    #[error("{0} does not implement the scale subresource")]
    NoScale(String),
    #[error("no matches for kind {kind:?} in version {version:?}")]
    NoKind { kind: String, version: String },
    #[error("the selector is invalid: {0}")]
    Selector(#[from] decapod_api::labels::ParseError),
    #[error(transparent)]
    Api(#[from] common::Error),
}

/// Starts the controller with so many workers.
pub(crate) fn start(context: &Context, catalog: &Catalog, workers: usize) {
    let queue = Queue::new(context.clock.clone());
    let informers = &context.informers;
    let controller = Arc::new(Controller {
        context: context.clone(),
        catalog: catalog.clone(),
        budgets: informers.of(),
        pods: informers.of(),
        deployments: informers.of(),
        replica_sets: informers.of(),
        stateful_sets: informers.of(),
        replication_controllers: informers.of(),
        recorder: context.recorder(RECORDER),
    });
    let supervisor = &context.supervisor;
    reconcile::feed(supervisor, NAME, controller.budgets.subscribe(), &queue, |change| [change.key.clone()]);
    let budgets = controller.budgets.clone();
    reconcile::feed(supervisor, NAME, controller.pods.subscribe(), &queue, move |change| {
        covering(&budgets, change)
    });
    start_marks(&controller, workers);
    reconcile::run(supervisor, NAME, &queue, workers, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

/// Takes marks of disruption from pods that are not going after all.
fn start_marks(controller: &Arc<Controller>, workers: usize) {
    let marks = Queue::new(controller.context.clock.clone());
    let supervisor = &controller.context.supervisor;
    let clock = controller.context.clock.clone();
    reconcile::feed(supervisor, NAME, controller.pods.subscribe(), &marks, move |change| {
        let pod = change.new.as_ref()?;
        plan::stale_in(pod, clock.now()).map(|_| change.key.clone())
    });
    let controller = controller.clone();
    reconcile::run(supervisor, NAME, &marks, workers, move |key| {
        let controller = controller.clone();
        async move { controller.unmark(&key).await }
    });
}

/// The budgets that cover a pod as it was or as it is.
fn covering(budgets: &Informer<PodDisruptionBudget>, change: &Change<Pod>) -> Vec<ObjectKey> {
    let covers = |budget: &&Arc<PodDisruptionBudget>| {
        let selector = selector_of(budget).ok();
        selector.is_some_and(|selector| {
            change.sides().any(|pod| selector.matches_optional(pod.metadata.labels.as_ref()))
        })
    };
    let budgets = budgets.list_in(&change.key.namespace);
    budgets.iter().filter(covers).map(|budget| ObjectKey::of(&**budget)).collect()
}

/// A budget without selector covers nothing; an empty one covers all pods of the namespace.
fn selector_of(budget: &PodDisruptionBudget) -> Result<Selector, decapod_api::labels::ParseError> {
    Selector::try_from(budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()))
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> common::Result<Option<Duration>> {
        self.synced().await;
        let Some(budget) = self.budgets.get(key) else { return Ok(None) };
        if budget.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let now = self.context.clock.now();
        let (covered, demand) = match self.look(&budget).await {
            Ok(looked) => looked,
            Err(unknown) => {
                let why = error::chain(&unknown);
                let message = format!("Failed to calculate the number of expected pods: {why}");
                self.recorder.warning(&*budget, "CalculateExpectedPodCountFailed", message);
                if let Some(status) = plan::failed(&budget, &why, now) {
                    self.write(&budget, status).await?;
                }
                return match unknown {
                    Unknown::Api(error) => Err(error),
                    _ => Ok(None),
                };
            }
        };
        let outcome = plan::plan(&budget, &covered, demand, now);
        for pod in &outcome.not_deleted {
            let message =
                format!("Pod was expected by PDB {}/{} to be deleted but it wasn't", key.namespace, key.name);
            self.recorder.warning(&**pod, "NotDeleted", message);
        }
        if let Some(status) = outcome.status {
            self.write(&budget, status).await?;
        }
        Ok(outcome.again)
    }

    async fn synced(&self) {
        self.budgets.synced().await;
        self.pods.synced().await;
        self.deployments.synced().await;
        self.replica_sets.synced().await;
        self.stateful_sets.synced().await;
        self.replication_controllers.synced().await;
    }

    /// The pods that a budget covers, and what it demands of them.
    async fn look(&self, budget: &PodDisruptionBudget) -> Result<(Vec<Arc<Pod>>, plan::Demand), Unknown> {
        let selector = selector_of(budget)?;
        let mut covered = self.pods.list_in(&budget.namespace().unwrap_or_default());
        covered.retain(|pod| selector.matches_optional(pod.metadata.labels.as_ref()));
        if covered.is_empty() {
            self.recorder.normal(budget, "NoPods", "No matching pods found");
        }
        let scale = if plan::counts_scales(budget) { self.scale(budget, &covered).await? } else { 0 };
        let count = i32::try_from(covered.len()).unwrap_or(i32::MAX);
        let demand = plan::demand(budget, count, scale);
        Ok((covered, demand))
    }

    /// How many pods the owners of these pods want together.
    async fn scale(&self, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> Result<i32, Unknown> {
        let mut scales: BTreeMap<String, i32> = BTreeMap::new();
        let mut looked = BTreeSet::new();
        let mut unmanaged = false;
        for pod in pods {
            let Some(owner) = claim::controller_of(&pod.metadata) else {
                unmanaged = true;
                continue;
            };
            if !looked.insert(owner.uid.clone()) {
                continue;
            }
            let namespace = pod.namespace().unwrap_or_default();
            let scale = self.scale_of(owner, &namespace).await?;
            let (uid, replicas) = scale.ok_or_else(|| Unknown::NoController(pod.name_any()))?;
            scales.insert(uid, replicas);
        }
        if unmanaged {
            self.recorder.warning(budget, "UnmanagedPods", "Pods selected by this PodDisruptionBudget were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.");
        }
        Ok(scales.into_values().fold(0, i32::saturating_add))
    }

    /// The uid and the wanted replicas of a pod's owner, or of the Deployment behind it.
    async fn scale_of(
        &self,
        owner: &OwnerReference,
        namespace: &str,
    ) -> Result<Option<(String, i32)>, Unknown> {
        let key = ObjectKey::new(namespace, &owner.name);
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let replicas = match (group, owner.kind.as_str()) {
            ("", "ReplicationController") => {
                let found = found(&self.replication_controllers, &key, &owner.uid);
                found.map(|one| one.spec.as_ref().and_then(|spec| spec.replicas))
            }
            ("apps", "StatefulSet") => {
                let found = found(&self.stateful_sets, &key, &owner.uid);
                found.map(|one| one.spec.as_ref().and_then(|spec| spec.replicas))
            }
            ("apps", "ReplicaSet") => {
                let Some(set) = found(&self.replica_sets, &key, &owner.uid) else { return Ok(None) };
                let parent = claim::controller_of(&set.metadata).filter(|parent| parent.kind == "Deployment");
                if let Some(parent) = parent {
                    let key = ObjectKey::new(namespace, &parent.name);
                    let deployment = found(&self.deployments, &key, &parent.uid);
                    let replicas = deployment.map(|one| one.spec.as_ref().and_then(|spec| spec.replicas));
                    return Ok(replicas.map(|replicas| (parent.uid.clone(), replicas.unwrap_or(1))));
                }
                Some(set.spec.as_ref().and_then(|spec| spec.replicas))
            }
            _ => return self.served_scale(owner, namespace).await,
        };
        Ok(replicas.map(|replicas| (owner.uid.clone(), replicas.unwrap_or(1))))
    }

    /// The scale of an owner of any kind that has that subresource.
    async fn served_scale(
        &self,
        owner: &OwnerReference,
        namespace: &str,
    ) -> Result<Option<(String, i32)>, Unknown> {
        let known = |kinds: &[common::catalog::Kind]| {
            let same = |kind: &&common::catalog::Kind| {
                kind.resource.kind == owner.kind && kind.resource.api_version == owner.api_version
            };
            kinds.iter().find(same).cloned()
        };
        let kind = match known(&self.catalog.kinds()) {
            Some(kind) => Some(kind),
            None => known(&self.catalog.refresh().await?),
        };
        let kind = kind.ok_or_else(|| Unknown::NoKind {
            kind: owner.kind.clone(),
            version: owner.api_version.clone(),
        })?;
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.context.client.clone(), namespace, &kind.resource);
        match api.get_scale(&owner.name).await {
            Ok(scale) => {
                let same = scale.metadata.uid.as_deref() == Some(&owner.uid);
                let replicas = scale.spec.and_then(|spec| spec.replicas).unwrap_or(0);
                Ok(same.then(|| (owner.uid.clone(), replicas)))
            }
            Err(error) if error.is_not_found() => {
                // Either the owner is gone, or its kind cannot be scaled.
                match api.get_metadata_opt(&owner.name).await.says("look at the owner of a pod")? {
                    Some(_) => Err(Unknown::NoScale(kind.name())),
                    None => Ok(None),
                }
            }
            Err(source) => {
                let what = "read the scale of a pod's owner";
                Err(common::Error::Api { what, source: Box::new(source) }.into())
            }
        }
    }

    async fn write(
        &self,
        budget: &PodDisruptionBudget,
        status: k8s_openapi::api::policy::v1::PodDisruptionBudgetStatus,
    ) -> common::Result<()> {
        let namespace = budget.namespace().unwrap_or_default();
        let api: Api<PodDisruptionBudget> = Api::namespaced(self.context.client.clone(), &namespace);
        let mut wanted = budget.clone();
        wanted.status = Some(status);
        // The version that was looked at is the precondition: an eviction may have come between.
        match api.replace_status(&budget.name_any(), &PostParams::default(), &wanted).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error).says("write the status of a disruption budget"),
        }
    }

    async fn unmark(&self, key: &ObjectKey) -> common::Result<Option<Duration>> {
        let Some(pod) = self.pods.get(key) else { return Ok(None) };
        let now = self.context.clock.now();
        match plan::stale_in(&pod, now) {
            None => return Ok(None),
            Some(left) if !left.is_zero() => return Ok(Some(left)),
            Some(_) => {}
        }
        let condition = json!({"type": "DisruptionTarget", "status": "False", "reason": "", "message": "",
            "lastTransitionTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now)});
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}});
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        match api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(_) => Ok(None),
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(None),
            Err(error) => Err(error).says("take a stale mark of disruption from a pod"),
        }
    }
}

/// The object of this key, if it is the one with this uid.
fn found<K>(informer: &Informer<K>, key: &ObjectKey, uid: &str) -> Option<Arc<K>>
where
    K: Resource + Send + Sync + 'static,
{
    informer.get(key).filter(|object| object.meta().uid.as_deref() == Some(uid))
}
