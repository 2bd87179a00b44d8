//! The Job controller: runs pods to completion, and counts their ends exactly.
//!
//! It plans from a view that contains its own writes ([`Family`]) and, where anybody else wrote the Job since
//! (another controller before this one, a user), from one that was checked against the API server first
//! ([`Controller::assure`]): a pod that was let go and counted by another must not be counted again only because
//! this one's mirror still shows its finalizer. Every write of the status carries the revision that it rests on.

mod apply;
mod indexes;
mod metrics;
mod orphans;
mod plan;
#[cfg(test)]
mod plan_tests;
mod pod;
mod policy;
mod track;
mod view;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use decapod_api::labels::Selector;
use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::event::Recorder;
use decapod_client::reconcile::{self, Queue};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};

use crate::common::family::{Family, Owner};
use crate::common::{Context, Error, Result, Says};
use plan::Verdict;
use view::View;
pub(crate) use view::finished;

const NAME: &str = "job-controller";

/// Who manages a Job that says nothing else.
const MANAGER: &str = "kubernetes.io/job-controller";

impl Owner for Job {
    const FINALIZER: Option<&'static str> = Some(pod::FINALIZER);

    fn selector(&self) -> Result<Selector> {
        let selector = self.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        // A Job without a selector has no pods: it was not made by an API server.
        Ok(selector.map_or_else(|| Ok(Selector::nothing()), Selector::try_from)?)
    }
}

struct Controller {
    family: Family<Job, Pod>,
    recorder: Recorder,
    known: Mutex<HashMap<ObjectKey, Known>>,
}

/// What the controller knows of a Job that the mirrors may not show.
#[derive(Debug, Default)]
struct Known {
    /// The revision of the Job that this controller wrote or checked itself.
    revision: String,
    /// The uids of pods that were let go, or are gone, and that the mirror may still show with the finalizer: each
    /// end is counted once.
    released: HashSet<String>,
}

/// Starts the controller with so many workers.
pub(crate) fn start(context: &Context, workers: usize) {
    let queue = Queue::new(context.clock.clone());
    let family = Family::new(context, NAME, &queue);
    orphans::start(context, &family);
    let controller =
        Arc::new(Controller { family, recorder: context.recorder(NAME), known: Mutex::default() });
    reconcile::run(&context.supervisor, NAME, &queue, workers, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

/// Whether somebody else sees to the Job (KEP-4368).
fn is_managed_elsewhere(job: &Job) -> bool {
    let manager = job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref());
    manager.is_some_and(|manager| manager != MANAGER)
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(job) = self.family.look(key).await? else {
            self.known().remove(key);
            return Ok(None);
        };
        if is_managed_elsewhere(&job) {
            return Ok(None);
        }
        if finished(&job).is_some() {
            self.known().remove(key);
            return Ok(None);
        }
        self.assure(key, &job).await?;
        let selector = job.selector()?;
        let pods = self.family.claim(key, &job, &selector, |_| true).await?;
        let pods = self.without_released(key, pods);
        let Some(view) = View::new(&job, &pods) else { return Ok(None) };
        let begin = self.family.context.clock.monotonic();
        let (action, outcome) = self.advance(key, &view).await;
        let took = self.family.context.clock.monotonic().saturating_sub(begin);
        metrics::looked(&job, action, outcome.is_ok(), took);
        outcome
    }

    /// Decides, and does what was decided: what that was mainly, and when to look again.
    async fn advance(&self, key: &ObjectKey, view: &View<'_>) -> (&'static str, Result<Option<Duration>>) {
        let now = self.family.context.clock.now();
        let verdict = plan::verdict(view, now);
        let steps = plan::steps(view, verdict.as_ref(), now);
        let (again, action) = (steps.again, metrics::action(&steps));
        let outcome = self.carry_out(key, view, steps).await;
        // Pods that could not be deleted still run: the Job has not ended.
        let verdict = verdict.filter(|_| outcome.error.is_none());
        let tracked = self.track(key, view, verdict.as_ref(), outcome.numbers, now).await;
        (action, tracked.and_then(|()| outcome.error.map_or(Ok(again), Err)))
    }

    /// Notes the ends of pods, lets them go, counts them, and ends the Job: in this order.
    async fn track(
        &self,
        key: &ObjectKey,
        view: &View<'_>,
        verdict: Option<&Verdict>,
        numbers: track::Numbers,
        now: Timestamp,
    ) -> Result<()> {
        let tracking = track::note(view, verdict, numbers, now);
        let Some(job) = self.write(key, view.job, tracking.status).await? else { return Ok(()) };
        if let Some((reason, message)) = tracking.event {
            self.recorder.normal(view.job, reason, message);
        }
        let mut tracked: HashSet<String> =
            view.pods.iter().filter(|pod| pod::is_tracked(pod)).map(|pod| pod::uid(pod).to_owned()).collect();
        let (released, failure) = self.release(key, &tracking.release).await;
        tracked.retain(|uid| !released.contains(uid));
        let mut status = job.status.clone().unwrap_or_default();
        track::count(&mut status, &tracked);
        let ends = verdict.filter(|_| failure.is_ok() && !tracking.more);
        let ended = ends.filter(|verdict| track::finish(&mut status, verdict, now));
        if let (Some(job), Some(verdict)) = (self.write(key, &job, status).await?, ended) {
            self.tell_end(&job, verdict);
        }
        failure
    }

    fn tell_end(&self, job: &Job, verdict: &Verdict) {
        metrics::finished(job, verdict);
        if !verdict.success {
            return self.recorder.warning(job, &verdict.reason, verdict.message.as_str());
        }
        let completions = job.spec.as_ref().and_then(|spec| spec.completions);
        let succeeded = job.status.as_ref().and_then(|status| status.succeeded).unwrap_or(0);
        if completions.is_some_and(|completions| succeeded > completions) {
            let message = "Too many succeeded pods running after completion count reached";
            self.recorder.warning(job, "TooManySucceededPods", message);
        }
        self.recorder.normal(job, "Completed", "Job completed");
    }

    /// Writes a status that differs; the Job as it is then, or `None` if it is gone.
    async fn write(&self, key: &ObjectKey, job: &Job, status: JobStatus) -> Result<Option<Job>> {
        let new = Job { status: Some(status), ..job.clone() };
        let told = job.status.clone().unwrap_or_default();
        if new.status.as_ref().is_some_and(|status| track::same(status, &told)) {
            return Ok(Some(new));
        }
        match self.jobs(key).replace_status(&key.name, &PostParams::default(), &new).await {
            Ok(written) => {
                self.family.wrote_owner(key, &written);
                self.know(key, &written);
                metrics::counted(job, &told, written.status.as_ref().unwrap_or(&told));
                Ok(Some(written))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error).says("write the status of a Job"),
        }
    }

    /// Makes sure that the mirrors show what others did to the Job and its pods: pods as of a moment at which the Job
    /// was as it is here.
    async fn assure(&self, key: &ObjectKey, job: &Job) -> Result<()> {
        let revision = job.resource_version().unwrap_or_default();
        // Of a Job without a status nothing was counted.
        let fresh = job.status.as_ref().is_none_or(|status| *status == JobStatus::default());
        if fresh || self.known().get(key).is_some_and(|known| known.revision == revision) {
            return Ok(());
        }
        let family = &self.family;
        let selector = job.selector()?;
        let mut shown = family.owned.owned_by(job.metadata.uid.as_deref().unwrap_or_default());
        shown.retain(|pod| selector.matches_optional(pod.metadata.labels.as_ref()));
        let among = ListParams::default().labels(&selector.to_string());
        let listed = self.pods(key).list_metadata(&among).await.says("list the pods of a Job")?.items;
        listed.iter().for_each(|pod| family.written.wrote(key, pod));
        let exist: HashSet<_> = listed.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        let gone = shown.iter().map(|pod| pod::uid(pod)).filter(|uid| !exist.contains(uid));
        self.let_go(key, gone);
        family.written.settled(key, &family.owned, &*family.context.clock).await?;
        let live = self.jobs(key).get_opt(&key.name).await.says("look at a Job that others wrote")?;
        if live.is_some_and(|live| live.metadata.resource_version != job.metadata.resource_version) {
            return Err(Error::StaleCache);
        }
        self.know(key, job);
        Ok(())
    }

    fn know(&self, key: &ObjectKey, job: &Job) {
        let revision = job.resource_version().unwrap_or_default();
        self.known().entry(key.clone()).or_default().revision = revision;
    }

    /// Notes that these pods carry the finalizer no more.
    fn let_go<'a>(&self, key: &ObjectKey, uids: impl Iterator<Item = &'a str>) {
        let mut known = self.known();
        known.entry(key.clone()).or_default().released.extend(uids.map(str::to_owned));
    }

    /// The pods without the finalizer where the mirror only lags.
    fn without_released(&self, key: &ObjectKey, pods: Vec<Arc<Pod>>) -> Vec<Arc<Pod>> {
        let mut known = self.known();
        let Some(known) = known.get_mut(key) else { return pods };
        let lags = |pod: &Arc<Pod>| pod::is_tracked(pod) && known.released.contains(pod::uid(pod));
        let still: HashSet<String> =
            pods.iter().filter(|pod| lags(pod)).map(|pod| pod::uid(pod).to_owned()).collect();
        let seen = |pod: Arc<Pod>| if lags(&pod) { Arc::new(pod::untracked(&pod)) } else { pod };
        let pods = pods.into_iter().map(seen).collect();
        known.released = still;
        pods
    }

    fn known(&self) -> MutexGuard<'_, HashMap<ObjectKey, Known>> {
        // Nothing panics while the lock is held, so the map is whole even if the lock is poisoned.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn jobs(&self, key: &ObjectKey) -> Api<Job> {
        Api::namespaced(self.family.context.client.clone(), &key.namespace)
    }

    fn pods(&self, key: &ObjectKey) -> Api<Pod> {
        Api::namespaced(self.family.context.client.clone(), &key.namespace)
    }
}
