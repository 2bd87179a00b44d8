//! The ReplicaSet controller, which is the ReplicationController's too: keeps as many active pods as a
//! set asks for.
//!
//! It plans only from a view that contains its own writes ([`Family`]), so a stale cache never makes it
//! create a pod twice; a crash between two creations leaves fewer pods than wanted, which the next look
//! at the world mends.

mod kinds;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::event::Recorder;
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use kube::ResourceExt;

use crate::common::batch::Pods;
use crate::common::family::Family;
use crate::common::{Context, Error, Result, claim, pods};
use kinds::Set;
use plan::{Failure, Scale};

struct Controller<S: Set> {
    family: Family<S, Pod>,
    recorder: Recorder,
}

/// Starts the controllers of both kinds with so many workers each.
pub(crate) fn start(context: &Context, workers: usize) {
    start_one::<ReplicaSet>(context, workers);
    start_one::<ReplicationController>(context, workers);
}

fn start_one<S: Set>(context: &Context, workers: usize) {
    let queue = Queue::new(context.clock.clone());
    let family = Family::new(context, S::CONTROLLER, &queue);
    let controller = Arc::new(Controller::<S> { family, recorder: context.recorder(S::CONTROLLER) });
    reconcile::run(&context.supervisor, S::CONTROLLER, &queue, workers, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

impl<S: Set> Controller<S> {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(set) = self.family.look(key).await? else { return Ok(None) };
        let selector = set.selector()?;
        let claimed = self.family.claim(key, &set, &selector, pods::is_active).await?;
        let outcome = match set.meta().deletion_timestamp {
            Some(_) => Ok(()),
            None => self.scale(key, &set, &claimed).await,
        };
        let failure =
            outcome.as_ref().err().map(|(reason, error)| Failure { reason, message: error.reported() });
        let (now, known) = (self.family.context.clock.now(), set.status());
        let wanted = (set.wanted(), set.meta().generation);
        let (status, again) = plan::status(wanted, known.clone(), &claimed, failure.as_ref(), now);
        if !plan::status_equals(&status, &known) {
            let written = set.with_status(status);
            self.family.write_status(key, &written, "write the status of a set of pods").await?;
        }
        outcome.map(|()| again).map_err(|(_, error)| error)
    }

    /// Creates or deletes pods; an error comes with the reason of the condition that tells of it.
    async fn scale(
        &self,
        key: &ObjectKey,
        set: &S,
        claimed: &[Arc<Pod>],
    ) -> std::result::Result<(), (&'static str, Error)> {
        let active: Vec<_> = claimed.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
        let now = self.family.context.clock.now();
        match plan::scale(set.wanted(), &active, &self.neighbours(set), now) {
            Scale::Enough => Ok(()),
            Scale::Create(count) => {
                let pod = plan::pod(set.meta(), set.wanted(), claim::controller_reference(set));
                let pods = vec![pod; count];
                self.pods(key, set).create(&pods).await.map_err(|error| ("FailedCreate", error))
            }
            Scale::Delete(pods) => {
                self.pods(key, set).delete(&pods).await.map_err(|error| ("FailedDelete", error))
            }
        }
    }

    /// The active pods of all sets that have the same controller as `set`, its own included.
    fn neighbours(&self, set: &S) -> Vec<Arc<Pod>> {
        let uids = match claim::controller_of(set.meta()) {
            Some(owner) => {
                let owned = self.family.owners.owned_by(&owner.uid);
                owned.iter().filter_map(|set| set.uid()).collect()
            }
            None => Vec::from_iter(set.uid()),
        };
        let pods = uids.iter().flat_map(|uid| self.family.owned.owned_by(uid));
        pods.filter(|pod| pods::is_active(pod)).collect()
    }

    fn pods<'a>(&'a self, key: &'a ObjectKey, set: &'a S) -> Pods<'a, S> {
        let Family { context, written, .. } = &self.family;
        Pods { client: &context.client, recorder: &self.recorder, written, key, owner: set }
    }
}
