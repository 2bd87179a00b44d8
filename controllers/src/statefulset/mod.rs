//! The StatefulSet controller: keeps pods that have a name, a host name and claims of their own.
//!
//! It plans from a view that contains its own writes; all that it makes has a name that follows from the set, so
//! what a crash or a lost answer left undone, or done, is found by its name.

mod identity;
mod plan;
#[cfg(test)]
mod plan_tests;
mod retention;
mod status;

use std::sync::Arc;
use std::time::Duration;

use decapod_api::labels::Selector;
use decapod_client::ObjectKey;
use decapod_client::error::{self, ErrorExt};
use decapod_client::event::Recorder;
use decapod_client::informer::Informer;
use decapod_client::reconcile::{self, Queue};
use futures::future::join_all;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::common::batch;
use crate::common::family::{Family, Owner};
use crate::common::history::{self, History, Naming, Present};
use crate::common::{Context, Result, Says};
use plan::{Deed, Plan, Revision, Step, World};

const NAME: &str = "statefulset-controller";

/// The name of a revision is the value of a label of the pods, of at most 63 bytes: a dash and the hash of at most
/// ten digits leave this to the name of the set.
const NAMING: Naming = Naming { label: "controller.kubernetes.io/hash", prefix: 52 };

impl Owner for StatefulSet {
    fn selector(&self) -> Result<Selector> {
        let selector = self.spec.as_ref().map(|spec| &spec.selector).cloned().unwrap_or_default();
        Ok(Selector::try_from(&selector)?)
    }
}

struct Controller {
    family: Family<StatefulSet, Pod>,
    history: History,
    claims: Informer<PersistentVolumeClaim>,
    recorder: Recorder,
}

/// Starts the controller with so many workers.
pub(crate) fn start(context: &Context, workers: usize) {
    let queue = Queue::new(context.clock.clone());
    let family = Family::<StatefulSet, Pod>::new(context, NAME, &queue);
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let sets = family.owners.clone();
    reconcile::feed(&context.supervisor, NAME, claims.subscribe(), &queue, move |change| {
        // One that is gone is made anew, or was waited for.
        let gone = change.new.is_none();
        let sets = if gone { sets.list_in(&change.key.namespace) } else { Vec::new() };
        let concerned = sets.into_iter().filter(|set| identity::has_claim(set, &change.key.name));
        concerned.map(|set| ObjectKey::of(&*set)).collect::<Vec<_>>()
    });
    let history = History::new(context, NAMING);
    let controller = Arc::new(Controller { family, history, claims, recorder: context.recorder(NAME) });
    reconcile::run(&context.supervisor, NAME, &queue, workers, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        self.claims.synced().await;
        let Some(set) = self.family.look(key).await? else {
            self.history.forget(key);
            return Ok(None);
        };
        let Some(spec) = set.spec.as_ref() else { return Ok(None) };
        let selector = set.selector()?;
        let name = set.name_any();
        let is_member = |pod: &Pod| identity::ordinal(&name, &pod.name_any()).is_some();
        let pods = self.family.claim(key, &set, &selector, is_member).await?;
        let revisions = self.history.of(key, &*set, &selector).await?;
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let known = set.status.clone().unwrap_or_default();
        let collisions = known.collision_count.unwrap_or(0);
        let present = Present { owner: &*set, template: &spec.template, collisions };
        let (update, collisions) = self.history.establish(key, present, &revisions).await?;
        let current = revisions.iter().find(|one| Some(one.name_any()) == known.current_revision);
        let current = current.unwrap_or(&update);
        let template = history::template_of(current).unwrap_or_else(|| spec.template.clone());
        let (current_name, update_name) = (current.name_any(), update.name_any());
        let claim = |name: &str| self.claims.get(&ObjectKey::new(key.namespace.clone(), name));
        let plan = plan::plan(&World {
            set: &set,
            spec,
            pods: &pods,
            claim: &claim,
            current: Revision { name: &current_name, template: &template },
            update: Revision { name: &update_name, template: &spec.template },
            collisions,
            now: self.family.context.clock.now(),
        });
        let again = self.apply(key, &set, plan).await?;
        let limit = spec.revision_history_limit.unwrap_or(10);
        let is_live = |revision: &ControllerRevision| {
            let name = revision.name_any();
            name == current_name
                || name == update_name
                || pods.iter().any(|pod| identity::revision(pod) == name)
        };
        self.history.truncate(key, &revisions, limit, is_live).await?;
        Ok(again)
    }

    async fn apply(&self, key: &ObjectKey, set: &StatefulSet, plan: Plan) -> Result<Option<Duration>> {
        let outcome = self.steps(key, set, &plan.steps).await;
        if !status::equals(&plan.status, &set.status.clone().unwrap_or_default()) {
            let written = StatefulSet { status: Some(plan.status), ..set.clone() };
            self.family.write_status(key, &written, "write the status of a StatefulSet").await?;
        }
        outcome.map(|()| plan.again)
    }

    /// Does the steps, few at a time at first; what comes behind one that failed is not tried.
    async fn steps(&self, key: &ObjectKey, set: &StatefulSet, steps: &[Step]) -> Result<()> {
        let mut rest = &steps[..steps.len().min(batch::BURST)];
        for now in batch::slow_start(rest.len()) {
            let (group, later) = rest.split_at(now);
            rest = later;
            let outcomes = join_all(group.iter().map(|step| self.step(key, set, step))).await;
            outcomes.into_iter().collect::<Result<()>>()?;
        }
        Ok(())
    }

    async fn step(&self, key: &ObjectKey, set: &StatefulSet, step: &Step) -> Result<()> {
        for claim in &step.claims {
            self.create_claim(key, set, step, claim).await?;
        }
        for (claim, references) in &step.owners {
            self.own_claim(key, set, claim, references).await?;
        }
        match &step.deed {
            Deed::Nothing => Ok(()),
            Deed::Create(pod) => match step.going.first() {
                None => self.create(key, set, pod).await,
                // Once it is gone, the set is looked at again.
                Some(claim) => {
                    self.told(set, "create", &step.pod, Err(&format!("pvc {claim} is being deleted")));
                    Ok(())
                }
            },
            Deed::Delete(pod) => self.delete(key, set, pod).await,
            Deed::Label(pod, labels) => {
                let metadata = json!({"uid": pod.uid(), "labels": labels});
                let patch = Patch::Merge(json!({"metadata": metadata}));
                let patched = self.pods(key).patch(&step.pod, &PatchParams::default(), &patch).await;
                self.tell(set, "update", &step.pod, patched.as_ref().err());
                let patched = patched.inspect_err(|error| self.family.written.failed(key, error));
                self.family.written.wrote(key, &patched.says("label a pod with its name")?);
                Ok(())
            }
        }
    }

    async fn create_claim(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
        step: &Step,
        claim: &PersistentVolumeClaim,
    ) -> Result<()> {
        let (name, pod, owner) = (claim.name_any(), &step.pod, &key.name);
        match self.claim_api(key).create(&PostParams::default(), claim).await {
            Ok(_) => {
                let message = format!("Create Claim {name} Pod {pod} in StatefulSet {owner} success");
                self.recorder.normal(set, "SuccessfulCreate", message);
                Ok(())
            }
            // Somebody made it for the set, or the cache does not show it yet.
            Err(error) if error.is_already_exists() => Ok(()),
            Err(error) => {
                let text = error::chain(&error);
                let message =
                    format!("Create Claim {name} for Pod {pod} in StatefulSet {owner} failed error: {text}");
                self.recorder.warning(set, "FailedCreate", message);
                let text = format!("failed to create PVC {name}: {text}");
                self.told(set, "create", pod, Err(&text));
                Err(error).says("create the claim of a pod")
            }
        }
    }

    async fn own_claim(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
        claim: &PersistentVolumeClaim,
        references: &retention::References,
    ) -> Result<()> {
        let name = claim.name_any();
        if references.conflict {
            let message = format!(
                "PersistentVolumeClaim {name} has a conflicting OwnerReference that acts as a managing controller, \
                 the retention policy is ignored for this claim"
            );
            self.recorder.warning(set, "ConflictingController", message);
        }
        let mut written = claim.clone();
        written.metadata.owner_references = Some(references.owners.clone());
        match self.claim_api(key).replace(&name, &PostParams::default(), &written).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error).says("change the owners of a claim"),
        }
    }

    async fn create(&self, key: &ObjectKey, set: &StatefulSet, pod: &Pod) -> Result<()> {
        let name = pod.name_any();
        match self.pods(key).create(&PostParams::default(), pod).await {
            Ok(created) => {
                self.family.written.wrote(key, &created);
                self.tell(set, "create", &name, None);
                Ok(())
            }
            Err(error) if error.is_namespace_terminating() => Ok(()),
            Err(error) => {
                self.family.written.failed(key, &error);
                // One that exists is not shown by the cache yet, or somebody took the name.
                if !error.is_already_exists() {
                    self.tell(set, "create", &name, Some(&error));
                }
                Err(error).says("create a pod of a StatefulSet")
            }
        }
    }

    async fn delete(&self, key: &ObjectKey, set: &StatefulSet, pod: &Pod) -> Result<()> {
        let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
        let parameters = DeleteParams::default().preconditions(preconditions);
        let name = pod.name_any();
        match self.pods(key).delete(&name, &parameters).await {
            Ok(answer) => {
                match answer.left().filter(|left| left.metadata.deletion_timestamp.is_some()) {
                    // It is on its way out, and keeps its name until then: the next plan has to see it so.
                    Some(going) => self.family.written.wrote(key, &going),
                    None => self.family.written.deleted(key, &pod.uid().unwrap_or_default()),
                }
                self.tell(set, "delete", &name, None);
                Ok(())
            }
            // It is gone, or another pod has its name now.
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => {
                self.family.written.failed(key, &error);
                self.tell(set, "delete", &name, Some(&error));
                Err(error).says("delete a pod of a StatefulSet")
            }
        }
    }

    /// Tells what became of a write of a pod, in Kubernetes' words.
    fn tell(&self, set: &StatefulSet, verb: &str, pod: &str, failure: Option<&kube::Error>) {
        let text = failure.map(|error| error::chain(error));
        self.told(set, verb, pod, text.as_deref().map_or(Ok(()), Err));
    }

    fn told(&self, set: &StatefulSet, verb: &str, pod: &str, outcome: std::result::Result<(), &str>) {
        let name = set.name_any();
        let verb = format!("{}{}", verb[..1].to_ascii_uppercase(), &verb[1..]);
        match outcome {
            Ok(()) => {
                let message = format!("{verb} Pod {pod} in StatefulSet {name} successful");
                self.recorder.normal(set, &format!("Successful{verb}"), message);
            }
            Err(error) => {
                let message = format!("{verb} Pod {pod} in StatefulSet {name} failed error: {error}");
                self.recorder.warning(set, &format!("Failed{verb}"), message);
            }
        }
    }

    fn pods(&self, key: &ObjectKey) -> Api<Pod> {
        Api::namespaced(self.family.context.client.clone(), &key.namespace)
    }

    fn claim_api(&self, key: &ObjectKey) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.family.context.client.clone(), &key.namespace)
    }
}
