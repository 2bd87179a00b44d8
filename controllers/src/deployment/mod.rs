//! The Deployment controller: rolls a pod template out over ReplicaSets, one per template.
//!
//! Each step is planned from a view that contains the controller's own writes, and every write carries
//! the revision that the plan was made from: what somebody else changed meanwhile is planned anew.

mod plan;
mod revision;
mod rolling;
mod status;

use std::sync::Arc;
use std::time::Duration;

use decapod_api::labels::Selector;
use decapod_client::ObjectKey;
use decapod_client::error::{self, ErrorExt};
use decapod_client::event::Recorder;
use decapod_client::informer::{Change, Informer};
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::common::expect::Expectations;
use crate::common::{Context, Result, Says, claim, pods};
use plan::{Plan, Update, World};

const NAME: &str = "deployment-controller";

struct Controller {
    context: Context,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    recorder: Recorder,
    /// Writes of ReplicaSets.
    expectations: Expectations,
    /// Writes of the Deployments themselves.
    own: Expectations,
}

/// Starts the controller with so many workers.
pub(crate) fn start(context: &Context, workers: usize) {
    let queue = Queue::new(context.clock.clone());
    let deployments = context.informers.of::<Deployment>();
    let (sets, pods) = (context.informers.of::<ReplicaSet>(), context.informers.of::<Pod>());
    let supervisor = &context.supervisor;
    reconcile::feed(supervisor, NAME, deployments.subscribe(), &queue, |change| [change.key.clone()]);
    let known = deployments.clone();
    reconcile::feed(supervisor, NAME, sets.subscribe(), &queue, move |change| concerned(&known, change));
    let (known, parents) = (deployments.clone(), sets.clone());
    reconcile::feed(supervisor, NAME, pods.subscribe(), &queue, move |change| {
        waiting_for(&known, &parents, change)
    });
    let controller = Arc::new(Controller {
        context: context.clone(),
        deployments,
        sets,
        pods,
        recorder: context.recorder(NAME),
        expectations: Expectations::default(),
        own: Expectations::default(),
    });
    reconcile::run(supervisor, NAME, &queue, workers, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

/// The Deployments that a change of a ReplicaSet concerns: its controller before and after, or, for an
/// orphan, all that may want to adopt it.
fn concerned(deployments: &Informer<Deployment>, change: &Change<ReplicaSet>) -> Vec<ObjectKey> {
    let mut keys: Vec<_> =
        change.sides().filter_map(|set| claim::controller_key::<Deployment>(&set.metadata)).collect();
    keys.dedup();
    let orphan = change.new.as_ref().filter(|set| claim::controller_of(&set.metadata).is_none());
    if let Some(set) = orphan {
        let matches = |deployment: &&Arc<Deployment>| {
            let selector = deployment.spec.as_ref().and_then(|spec| Selector::try_from(&spec.selector).ok());
            let selector = selector.filter(|selector| !selector.is_everything());
            selector.is_some_and(|selector| selector.matches_optional(set.metadata.labels.as_ref()))
        };
        let all = deployments.list_in(&change.key.namespace);
        keys.extend(all.iter().filter(matches).map(|deployment| ObjectKey::of(&**deployment)));
    }
    keys
}

/// The Deployment that may wait for the end of a pod: only `Recreate` looks at pods.
fn waiting_for(
    deployments: &Informer<Deployment>,
    sets: &Informer<ReplicaSet>,
    change: &Change<Pod>,
) -> Option<ObjectKey> {
    let ended = change.new.as_ref().is_none_or(|pod| pods::is_terminal(pod));
    let pod = change.old.as_ref().filter(|_| ended)?;
    let set = sets.get(&claim::controller_key::<ReplicaSet>(&pod.metadata)?)?;
    let deployment = deployments.get(&claim::controller_key::<Deployment>(&set.metadata)?)?;
    rolling::is_recreate(&deployment).then(|| ObjectKey::of(&*deployment))
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        self.deployments.synced().await;
        self.sets.synced().await;
        self.pods.synced().await;
        self.own.settled(key, &self.deployments, &*self.context.clock).await?;
        let Some(deployment) = self.deployments.get(key) else {
            self.expectations.forget(key);
            self.own.forget(key);
            return Ok(None);
        };
        self.expectations.settled(key, &self.sets, &*self.context.clock).await?;
        let Some(spec) = &deployment.spec else { return Ok(None) };
        let selector = Selector::try_from(&spec.selector)?;
        if selector.is_everything() {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(&*deployment, "SelectingAll", message);
            return Ok(None);
        }
        let candidates = claim::candidates(&self.sets, &deployment.metadata);
        let claims = claim::plan(&deployment.metadata, &selector, candidates);
        let sets = claim::apply(&self.context.client, &*deployment, claims).await?;
        let sets = self.expectations.without_deleted(key, sets);
        let running = self.running(&sets);
        let now = self.context.clock.now();
        let plan = plan::plan(World { deployment: &deployment, sets, running, now });
        self.apply(key, &deployment, plan).await
    }

    /// The uids of the ReplicaSets that have pods which still run.
    fn running(&self, sets: &[Arc<ReplicaSet>]) -> Vec<String> {
        let runs = |uid: &String| self.pods.owned_by(uid).iter().any(|pod| !pods::is_terminal(pod));
        sets.iter().filter_map(|set| set.uid()).filter(runs).collect()
    }

    async fn apply(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
        mut plan: Plan,
    ) -> Result<Option<Duration>> {
        let mut outcome = Ok(plan.again);
        if let Some(set) = plan.create.take() {
            match self.create(key, deployment, &set).await? {
                Created::Yes => {}
                Created::NameTaken => {
                    let collisions = plan.status.collision_count.unwrap_or(0);
                    plan.status.collision_count = Some(collisions.saturating_add(1));
                }
                Created::Refused(error) => {
                    let mut conditions = plan.status.conditions.take().unwrap_or_default();
                    let (name, text) = (set.name_any(), error::chain(&error));
                    status::note_failed_creation(&mut conditions, &name, &text, self.context.clock.now());
                    plan.status.conditions = Some(conditions);
                    outcome = Err(error).says("create a ReplicaSet");
                }
            }
        }
        for update in &plan.update {
            self.update(key, deployment, update).await?;
        }
        for set in &plan.delete {
            self.delete(key, set).await?;
        }
        let mut basis = deployment.clone();
        if let Some(revision) = plan.revision {
            basis = self.annotate(key, deployment, revision).await?;
        }
        self.write_status(key, basis, plan.status).await?;
        outcome
    }

    async fn create(&self, key: &ObjectKey, deployment: &Deployment, set: &ReplicaSet) -> Result<Created> {
        let api = self.set_api(key);
        match api.create(&PostParams::default(), set).await {
            Ok(created) => {
                self.expectations.wrote(key, &created);
                let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
                if replicas > 0 {
                    self.tell_scaling(deployment, &set.name_any(), (0, replicas));
                }
                Ok(Created::Yes)
            }
            Err(error) if error.is_already_exists() => {
                let live =
                    api.get_opt(&set.name_any()).await.says("look at a ReplicaSet of the same name")?;
                let uid = deployment.uid().unwrap_or_default();
                let is_ours = live.as_ref().is_some_and(|live| {
                    let template =
                        |set: &ReplicaSet| set.spec.as_ref().and_then(|spec| spec.template.clone());
                    let templates = template(live).zip(template(set));
                    claim::is_controlled_by(&live.metadata, &uid)
                        && templates.is_some_and(|(one, other)| revision::same_template(&one, &other))
                });
                match live {
                    // An earlier self made it; the cache will show it.
                    Some(live) if is_ours => {
                        self.expectations.wrote(key, &live);
                        Ok(Created::Yes)
                    }
                    _ => Ok(Created::NameTaken),
                }
            }
            Err(error) if error.is_namespace_terminating() => Ok(Created::Yes),
            Err(error) => Ok(Created::Refused(error)),
        }
    }

    async fn update(&self, key: &ObjectKey, deployment: &Deployment, update: &Update) -> Result<()> {
        let set = &update.set;
        let mut patch = json!({
            "metadata": {"resourceVersion": set.resource_version(), "uid": set.uid()},
            "spec": {"replicas": update.replicas.1},
        });
        if !update.annotations.is_empty() {
            patch["metadata"]["annotations"] = json!(update.annotations);
        }
        if let Some(seconds) = update.min_ready_seconds {
            patch["spec"]["minReadySeconds"] = json!(seconds);
        }
        let api = self.set_api(key);
        let patched = api.patch(&set.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
        self.expectations.wrote(key, &patched.says("update a ReplicaSet")?);
        if update.replicas.0 != update.replicas.1 {
            self.tell_scaling(deployment, &set.name_any(), update.replicas);
        }
        Ok(())
    }

    fn tell_scaling(&self, deployment: &Deployment, set: &str, (from, to): (i32, i32)) {
        let direction = if to > from { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {set} from {from} to {to}");
        self.recorder.normal(deployment, "ScalingReplicaSet", message);
    }

    async fn delete(&self, key: &ObjectKey, set: &ReplicaSet) -> Result<()> {
        let preconditions = Preconditions { uid: set.uid(), resource_version: set.resource_version() };
        let parameters = DeleteParams::background().preconditions(preconditions);
        match self.set_api(key).delete(&set.name_any(), &parameters).await {
            Ok(_) => self.expectations.deleted(key, &set.uid().unwrap_or_default()),
            // It is gone, or it changed: then the next plan looks at it again.
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => return Err(error).says("delete an old ReplicaSet"),
        }
        Ok(())
    }

    /// Notes the present revision on the Deployment, for `kubectl rollout`.
    async fn annotate(&self, key: &ObjectKey, deployment: &Deployment, revision: i64) -> Result<Deployment> {
        let patch = json!({"metadata": {
            "resourceVersion": deployment.resource_version(),
            "annotations": {revision::REVISION: revision.to_string()},
        }});
        let api: Api<Deployment> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let patched = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        let patched = patched.says("note the revision of a Deployment")?;
        self.own.wrote(key, &patched);
        Ok(patched)
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        mut deployment: Deployment,
        status: DeploymentStatus,
    ) -> Result<()> {
        if status::equals(&status, &deployment.status.clone().unwrap_or_default()) {
            return Ok(());
        }
        deployment.status = Some(status);
        let api: Api<Deployment> = Api::namespaced(self.context.client.clone(), &key.namespace);
        match api.replace_status(&key.name, &PostParams::default(), &deployment).await {
            Ok(written) => self.own.wrote(key, &written),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error).says("write the status of a Deployment"),
        }
        Ok(())
    }

    fn set_api(&self, key: &ObjectKey) -> Api<ReplicaSet> {
        Api::namespaced(self.context.client.clone(), &key.namespace)
    }
}

/// How the creation of a ReplicaSet went.
enum Created {
    Yes,
    /// A ReplicaSet of another template, or of somebody else, has the name.
    NameTaken,
    Refused(kube::Error),
}
