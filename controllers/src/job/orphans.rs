//! Pods that carry the finalizer of a Job that does not see to them: it is gone, it has ended, or they are no longer
//! its. Nobody else would let them go.

use std::sync::Arc;
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::informer::{Change, Informer};
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use super::{finished, is_managed_elsewhere, pod};
use crate::common::claim;
use crate::common::family::Family;
use crate::common::{Context, Result, Says};

const NAME: &str = "job-controller-orphans";

/// Pods that are let go at a time.
const WORKERS: usize = 2;

/// Whose a pod with the finalizer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeper {
    /// A Job sees to it, or something that is no Job does.
    Somebody,
    /// The Job that it names is not known: it is gone, or the mirror lags.
    Unknown,
    /// Nobody.
    Nobody,
}

#[derive(Clone)]
struct Orphans {
    client: Client,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
}

/// Starts to look for such pods.
pub(super) fn start(context: &Context, family: &Family<Job, Pod>) {
    let queue = Queue::new(context.clock.clone());
    let orphans =
        Orphans { client: context.client.clone(), jobs: family.owners.clone(), pods: family.owned.clone() };
    let (jobs, pods) = (orphans.jobs.clone(), orphans.pods.clone());
    reconcile::feed(&context.supervisor, NAME, pods.subscribe(), &queue, move |change: &Change<Pod>| {
        let pod = change.new.as_ref().filter(|pod| pod::is_tracked(pod))?;
        (keeper(&jobs, pod) != Keeper::Somebody).then(|| change.key.clone())
    });
    reconcile::feed(
        &context.supervisor,
        NAME,
        orphans.jobs.subscribe(),
        &queue,
        move |change: &Change<Job>| {
            let over = change.new.as_ref().is_none_or(|job| finished(job).is_some());
            let uids = change.sides().filter(|_| over).filter_map(|job| job.uid());
            let owned = uids.flat_map(|uid| pods.owned_by(&uid)).filter(|pod| pod::is_tracked(pod));
            owned.map(|pod| ObjectKey::of(&*pod)).collect::<Vec<_>>()
        },
    );
    reconcile::run(&context.supervisor, NAME, &queue, WORKERS, move |key| {
        let orphans = orphans.clone();
        async move { orphans.reconcile(&key).await }
    });
}

/// The Job that a pod names as its controller: its key and uid.
fn job_of(pod: &Pod) -> Option<(ObjectKey, &str)> {
    let uid = &claim::controller_of(&pod.metadata)?.uid;
    Some((claim::controller_key::<Job>(&pod.metadata)?, uid))
}

fn keeper(jobs: &Informer<Job>, pod: &Pod) -> Keeper {
    if claim::controller_of(&pod.metadata).is_none() {
        return Keeper::Nobody;
    }
    let Some((key, uid)) = job_of(pod) else { return Keeper::Somebody };
    match jobs.get(&key).filter(|job| job.metadata.uid.as_deref() == Some(uid)) {
        None => Keeper::Unknown,
        Some(job) if finished(&job).is_some() && !is_managed_elsewhere(&job) => Keeper::Nobody,
        Some(_) => Keeper::Somebody,
    }
}

impl Orphans {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        self.jobs.synced().await;
        self.pods.synced().await;
        let Some(pod) = self.pods.get(key).filter(|pod| pod::is_tracked(pod)) else { return Ok(None) };
        match keeper(&self.jobs, &pod) {
            Keeper::Nobody => self.release(&pod).await?,
            Keeper::Unknown if self.is_jobless(&pod).await? => self.release(&pod).await?,
            Keeper::Unknown | Keeper::Somebody => {}
        }
        Ok(None)
    }

    /// Whether the Job that the pod names does not exist, by the word of the API server.
    async fn is_jobless(&self, pod: &Arc<Pod>) -> Result<bool> {
        let Some((key, uid)) = job_of(pod) else { return Ok(false) };
        let jobs: Api<Job> = Api::namespaced(self.client.clone(), &key.namespace);
        let live = jobs.get_opt(&key.name).await.says("look for the Job of a pod")?;
        Ok(live.is_none_or(|job| job.metadata.uid.as_deref() != Some(uid)))
    }

    async fn release(&self, pod: &Arc<Pod>) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        // As it was looked at: a Job may adopt it at the same time, and then wants the finalizer. If something else
        // changed, that brings the pod here again.
        let patch = Patch::Strategic(json!({"metadata": {
            "uid": pod.metadata.uid,
            "resourceVersion": pod.metadata.resource_version,
            "$deleteFromPrimitiveList/finalizers": [pod::FINALIZER],
        }}));
        match pods.patch(&pod.name_any(), &PatchParams::default(), &patch).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => Err(error).says("let a pod go that no Job counts"),
        }
    }
}
