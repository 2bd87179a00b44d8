//! The ReplicaSet controller: keeps as many active pods as a ReplicaSet asks for.
//!
//! It plans only from a view that contains its own writes ([`Expectations`]), so a stale cache never
//! makes it create a pod twice; a crash between two creations leaves fewer pods than wanted, which the
//! next look at the world mends.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use decapod_api::labels::Selector;
use decapod_client::ObjectKey;
use decapod_client::error::{self, ErrorExt};
use decapod_client::event::Recorder;
use decapod_client::informer::{Change, Informer};
use decapod_client::reconcile::{self, Queue};
use futures::future::join_all;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::common::expect::Expectations;
use crate::common::{Context, Error, Result, Says, claim, pods};
use plan::{Failure, Scale};

const NAME: &str = "replicaset-controller";

/// Creations at once at first, twice as many after each success: an API server that refuses is not asked
/// five hundred times.
const SLOW_START: usize = 1;

struct Controller {
    context: Context,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    recorder: Recorder,
    /// Writes of pods.
    expectations: Expectations,
    /// Writes of the ReplicaSets themselves.
    own: Expectations,
}

/// Starts the controller with so many workers.
pub(crate) fn start(context: &Context, workers: usize) {
    let queue = Queue::new(context.clock.clone());
    let (sets, pods) = (context.informers.of::<ReplicaSet>(), context.informers.of::<Pod>());
    reconcile::feed(&context.supervisor, NAME, sets.subscribe(), &queue, |change| [change.key.clone()]);
    let known = sets.clone();
    reconcile::feed(&context.supervisor, NAME, pods.subscribe(), &queue, move |change| {
        concerned(&known, change)
    });
    let recorder = context.recorder(NAME);
    let (expectations, own) = (Expectations::default(), Expectations::default());
    let controller =
        Arc::new(Controller { context: context.clone(), sets, pods, recorder, expectations, own });
    reconcile::run(&context.supervisor, NAME, &queue, workers, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

/// The ReplicaSets that a change of a pod concerns: its controller before and after, or, for an orphan,
/// all that may want to adopt it.
fn concerned(sets: &Informer<ReplicaSet>, change: &Change<Pod>) -> Vec<ObjectKey> {
    let mut keys: Vec<_> =
        change.sides().filter_map(|pod| claim::controller_key::<ReplicaSet>(&pod.metadata)).collect();
    keys.dedup();
    let orphan = change.new.as_ref().filter(|pod| claim::controller_of(&pod.metadata).is_none());
    if let Some(pod) = orphan {
        let matches = |set: &&Arc<ReplicaSet>| {
            let selector = set.spec.as_ref().map(|spec| Selector::try_from(&spec.selector));
            let selector =
                selector.and_then(std::result::Result::ok).filter(|selector| !selector.is_everything());
            selector.is_some_and(|selector| selector.matches_optional(pod.metadata.labels.as_ref()))
        };
        let sets = sets.list_in(&change.key.namespace);
        keys.extend(sets.iter().filter(matches).map(|set| ObjectKey::of(&**set)));
    }
    keys
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        self.sets.synced().await;
        self.pods.synced().await;
        self.own.settled(key, &self.sets, &*self.context.clock).await?;
        let Some(set) = self.sets.get(key) else {
            self.expectations.forget(key);
            self.own.forget(key);
            return Ok(None);
        };
        self.expectations.settled(key, &self.pods, &*self.context.clock).await?;
        let Some(spec) = &set.spec else { return Ok(None) };
        let selector = Selector::try_from(&spec.selector)?;
        let candidates = claim::candidates(&self.pods, &set.metadata);
        let claims = claim::plan(&set.metadata, &selector, candidates);
        let claimed = claim::apply(&self.context.client, &*set, claims).await?;
        let claimed = self.expectations.without_deleted(key, claimed);
        let outcome = match set.metadata.deletion_timestamp {
            Some(_) => Ok(()),
            None => self.scale(key, &set, &claimed).await,
        };
        let failure =
            outcome.as_ref().err().map(|(reason, error)| Failure { reason, message: error::chain(error) });
        let now = self.context.clock.now();
        let (status, again) = plan::status(&set, &claimed, failure.as_ref(), now);
        if !plan::status_equals(&status, &set.status.clone().unwrap_or_default()) {
            let mut wanted = ReplicaSet::clone(&set);
            wanted.status = Some(status);
            let api: Api<ReplicaSet> = Api::namespaced(self.context.client.clone(), &key.namespace);
            match api.replace_status(&key.name, &PostParams::default(), &wanted).await {
                Ok(written) => self.own.wrote(key, &written),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error).says("write the status of a ReplicaSet"),
            }
        }
        outcome.map(|()| again).map_err(|(_, error)| error)
    }

    /// Creates or deletes pods; an error comes with the reason of the condition that tells of it.
    async fn scale(
        &self,
        key: &ObjectKey,
        set: &ReplicaSet,
        claimed: &[Arc<Pod>],
    ) -> std::result::Result<(), (&'static str, Error)> {
        let active: Vec<_> = claimed.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
        match plan::scale(set, &active, &self.neighbours(set), self.context.clock.now()) {
            Scale::Enough => Ok(()),
            Scale::Create(count) => {
                self.create(key, set, count).await.map_err(|error| ("FailedCreate", error))
            }
            Scale::Delete(pods) => {
                self.delete(key, set, &pods).await.map_err(|error| ("FailedDelete", error))
            }
        }
    }

    /// The active pods of all ReplicaSets that have the same controller as `set`, its own included.
    fn neighbours(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let family = match claim::controller_of(&set.metadata) {
            Some(owner) => {
                let owned = self.sets.owned_by(&owner.uid);
                owned.iter().filter_map(|set| set.uid()).collect()
            }
            None => Vec::from_iter(set.uid()),
        };
        let pods = family.iter().flat_map(|uid| self.pods.owned_by(uid));
        pods.filter(|pod| pods::is_active(pod)).collect()
    }

    async fn create(&self, key: &ObjectKey, set: &ReplicaSet, count: usize) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let pod = plan::pod(set);
        let (mut left, mut batch) = (count, SLOW_START);
        while left > 0 {
            let now = batch.min(left);
            let parameters = PostParams::default();
            let created = join_all((0..now).map(|_| api.create(&parameters, &pod))).await;
            let mut failures = Vec::new();
            for outcome in created {
                match outcome {
                    Ok(pod) => {
                        self.expectations.wrote(key, &pod);
                        let message = format!("Created pod: {}", pod.name_any());
                        self.recorder.normal(set, "SuccessfulCreate", message);
                    }
                    // Nothing can be created in a namespace that is going away; this set goes with it.
                    Err(error) if error.is_namespace_terminating() => return Ok(()),
                    Err(error) => failures.push(error),
                }
            }
            if !failures.is_empty() {
                let failed = failures.len();
                let source = failures.swap_remove(0);
                let message = format!("Error creating: {}", message(&source));
                self.recorder.warning(set, "FailedCreate", message);
                return Err(Error::Some { failed, total: now, source: Box::new(source) });
            }
            left -= now;
            batch *= 2;
        }
        Ok(())
    }

    async fn delete(&self, key: &ObjectKey, set: &ReplicaSet, pods: &[Arc<Pod>]) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let deletions = pods.iter().map(|pod| {
            let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
            let parameters = DeleteParams::default().preconditions(preconditions);
            let api = api.clone();
            async move { (pod, api.delete(&pod.name_any(), &parameters).await) }
        });
        let mut failures = Vec::new();
        for (pod, outcome) in join_all(deletions).await {
            match outcome {
                Ok(_) => {
                    self.expectations.deleted(key, &pod.uid().unwrap_or_default());
                    let message = format!("Deleted pod: {}", pod.name_any());
                    self.recorder.normal(set, "SuccessfulDelete", message);
                }
                // It is gone, or another pod has its name now.
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => {
                    let message = format!("Error deleting: {}", message(&error));
                    self.recorder.warning(set, "FailedDelete", message);
                    failures.push(error);
                }
            }
        }
        let failed = failures.len();
        match failures.into_iter().next() {
            None => Ok(()),
            Some(source) => Err(Error::Some { failed, total: pods.len(), source: Box::new(source) }),
        }
    }
}

/// The API server's own words where it answered.
fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => error::chain(other),
    }
}
