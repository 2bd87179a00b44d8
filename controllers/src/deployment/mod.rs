//! The Deployment controller: rolls a pod template out over ReplicaSets, one per template.
//!
//! Each step is planned from a view that contains the controller's own writes, and every write carries
//! the revision that the plan was made from: what somebody else changed meanwhile is planned anew.

mod plan;
mod revision;
mod rollback;
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
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::common::family::{Family, Owner};
use crate::common::{Context, Result, Says, claim, pods};
use plan::{Plan, Update, World};
use rollback::Outcome;

const NAME: &str = "deployment-controller";

struct Controller {
    family: Family<Deployment, ReplicaSet>,
    pods: Informer<Pod>,
    recorder: Recorder,
}

impl Owner for Deployment {
    fn selector(&self) -> Result<Selector> {
        let selector = self.spec.as_ref().map(|spec| &spec.selector).cloned().unwrap_or_default();
        Ok(Selector::try_from(&selector)?)
    }
}

/// Starts the controller with so many workers.
pub(crate) fn start(context: &Context, workers: usize) {
    let queue = Queue::new(context.clock.clone());
    let family = Family::<Deployment, ReplicaSet>::new(context, NAME, &queue);
    let pods = context.informers.of::<Pod>();
    let (known, parents) = (family.owners.clone(), family.owned.clone());
    reconcile::feed(&context.supervisor, NAME, pods.subscribe(), &queue, move |change| {
        waiting_for(&known, &parents, change)
    });
    let controller = Arc::new(Controller { family, pods, recorder: context.recorder(NAME) });
    reconcile::run(&context.supervisor, NAME, &queue, workers, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
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
        self.pods.synced().await;
        let Some(deployment) = self.family.look(key).await? else { return Ok(None) };
        let selector = deployment.selector()?;
        if selector.is_everything() {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(&*deployment, "SelectingAll", message);
            return Ok(None);
        }
        let sets = self.family.claim(key, &deployment, &selector, |_| true).await?;
        if let Some(revision) = rollback::requested(&deployment) {
            return self.roll_back(key, &deployment, &sets, revision).await;
        }
        let running = self.running(&sets);
        let now = self.family.context.clock.now();
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
                    // The revision is that of a ReplicaSet that is yet to come.
                    plan.revision = None;
                }
                Created::Refused(error) => {
                    let (name, text) = (set.name_any(), error::chain(&error));
                    let now = self.family.context.clock.now();
                    let message =
                        status::note_failed_creation(deployment, &mut plan.status, &name, &text, now);
                    self.recorder.warning(deployment, status::CREATE_ERROR, message);
                    plan.revision = None;
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
            let note = json!({revision::REVISION: revision.to_string()});
            basis = self.annotate(key, deployment, note).await?;
        }
        if !status::equals(&plan.status, &basis.status.clone().unwrap_or_default()) {
            basis.status = Some(plan.status);
            self.family.write_status(key, &basis, "write the status of a Deployment").await?;
        }
        outcome
    }

    async fn create(&self, key: &ObjectKey, deployment: &Deployment, set: &ReplicaSet) -> Result<Created> {
        let api = self.set_api(key);
        match api.create(&PostParams::default(), set).await {
            Ok(created) => {
                self.family.written.wrote(key, &created);
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
                        self.family.written.wrote(key, &live);
                        Ok(Created::Yes)
                    }
                    _ => Ok(Created::NameTaken),
                }
            }
            Err(error) if error.is_namespace_terminating() => Ok(Created::Yes),
            Err(error) => {
                self.family.written.failed(key, &error);
                Ok(Created::Refused(error))
            }
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
        let patched = patched.inspect_err(|error| self.family.written.failed(key, error));
        self.family.written.wrote(key, &patched.says("update a ReplicaSet")?);
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
            Ok(_) => self.family.written.deleted(key, &set.uid().unwrap_or_default()),
            // It is gone, or it changed: then the next plan looks at it again.
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => {
                self.family.written.failed(key, &error);
                return Err(error).says("delete an old ReplicaSet");
            }
        }
        Ok(())
    }

    /// Changes annotations of the Deployment as it was looked at.
    async fn annotate(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
        annotations: serde_json::Value,
    ) -> Result<Deployment> {
        let metadata = json!({"resourceVersion": deployment.resource_version(), "annotations": annotations});
        let patch = Patch::Merge(json!({"metadata": metadata}));
        let api = self.api(key);
        let patched = api.patch(&key.name, &PatchParams::default(), &patch).await;
        let patched = patched.says("annotate a Deployment")?;
        self.family.wrote_owner(key, &patched);
        Ok(patched)
    }

    /// Does what an old client asked for by annotation: back to the template of a revision.
    async fn roll_back(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
        sets: &[Arc<ReplicaSet>],
        revision: i64,
    ) -> Result<Option<Duration>> {
        match rollback::plan(deployment, sets, revision) {
            Outcome::Template { deployment: wanted, revision } => {
                let written = self.api(key).replace(&key.name, &PostParams::default(), &wanted).await;
                self.family.wrote_owner(key, &written.says("roll a Deployment back")?);
                let message = format!("Rolled back deployment {:?} to revision {revision}", key.name);
                self.recorder.normal(deployment, "DeploymentRollback", message);
            }
            Outcome::Nothing { reason, message } => {
                self.recorder.warning(deployment, reason, message);
                self.annotate(key, deployment, json!({rollback::ANNOTATION: null})).await?;
            }
        }
        Ok(None)
    }

    fn api(&self, key: &ObjectKey) -> Api<Deployment> {
        Api::namespaced(self.family.context.client.clone(), &key.namespace)
    }

    fn set_api(&self, key: &ObjectKey) -> Api<ReplicaSet> {
        Api::namespaced(self.family.context.client.clone(), &key.namespace)
    }
}

/// How the creation of a ReplicaSet went.
enum Created {
    Yes,
    /// A ReplicaSet of another template, or of somebody else, has the name.
    NameTaken,
    Refused(kube::Error),
}
