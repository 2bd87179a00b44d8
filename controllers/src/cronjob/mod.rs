//! The CronJob controller: makes a Job whenever its time has come.
//!
//! A Job's name and annotation tell for which time it was made, so that none is made twice, and so that a controller
//! that died before it wrote the status finds out what it did.

mod plan;

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use decapod_api::labels::Selector;
use decapod_client::ObjectKey;
use decapod_client::error::{self, ErrorExt};
use decapod_client::event::Recorder;
use decapod_client::metrics::register;
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{DeleteParams, PostParams, Preconditions, PropagationPolicy};
use kube::{Api, ResourceExt};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::common::family::{Family, Owner};
use crate::common::{Context, Result, Says, claim};
use plan::{Due, Note};

const NAME: &str = "cronjob-controller";

/// By how much Jobs are late.
static SKEW: LazyLock<Histogram> = LazyLock::new(|| {
    let help =
        "Time between when a cronjob is scheduled to be run, and when the corresponding job is created";
    let skew = Histogram::new(exponential_buckets(1.0, 2.0, 10));
    register("cronjob_controller_job_creation_skew_duration_seconds", help, skew)
});

impl Owner for CronJob {
    /// A CronJob adopts nothing.
    fn selector(&self) -> Result<Selector> {
        Ok(Selector::nothing())
    }
}

struct Controller {
    family: Family<CronJob, Job>,
    recorder: Recorder,
}

/// Starts the controller with so many workers.
pub(crate) fn start(context: &Context, workers: usize) {
    let queue = Queue::new(context.clock.clone());
    let family = Family::new(context, NAME, &queue);
    let controller = Arc::new(Controller { family, recorder: context.recorder(NAME) });
    reconcile::run(&context.supervisor, NAME, &queue, workers, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(cron) = self.family.look(key).await? else { return Ok(None) };
        let uid = cron.metadata.uid.as_deref().unwrap_or_default();
        let mut jobs = self.family.owned.owned_by(uid);
        jobs.retain(|job| claim::is_controlled_by(&job.metadata, uid));
        let jobs = self.family.written.without_deleted(key, jobs);
        let alive = self.alive(key, &cron, &jobs).await?;
        let account = plan::account(&cron, &jobs, &alive);
        self.tell(&cron, account.notes);
        // What was made is written down before anything is removed that tells of it.
        let Some(cron) = self.write(key, &cron, account.status).await? else { return Ok(None) };
        for job in &account.surplus {
            self.delete(key, &cron, &plan::reference(job)).await?;
        }
        let status = cron.status.clone().unwrap_or_default();
        let due = plan::due(&cron, &status, self.family.context.clock.now());
        self.carry_out(key, &cron, status, due).await
    }

    /// The active Jobs that the mirror does not show and that exist all the same.
    async fn alive(&self, key: &ObjectKey, cron: &CronJob, jobs: &[Arc<Job>]) -> Result<HashSet<String>> {
        let active = cron.status.iter().flat_map(|status| status.active.iter().flatten());
        let unseen = active.filter(|one| jobs.iter().all(|job| job.metadata.uid != one.uid));
        let mut alive = HashSet::new();
        for one in unseen {
            let name = one.name.as_deref().unwrap_or_default();
            let live = self.jobs(key).get_opt(name).await.says("look for a Job of a CronJob")?;
            alive.extend(live.and_then(|job| job.uid()).filter(|uid| one.uid.as_ref() == Some(uid)));
        }
        Ok(alive)
    }

    async fn carry_out(
        &self,
        key: &ObjectKey,
        cron: &CronJob,
        mut status: CronJobStatus,
        due: Due,
    ) -> Result<Option<Duration>> {
        self.tell(cron, due.notes);
        let Some(time) = due.start else { return Ok(due.again) };
        for job in &due.replaces {
            self.delete(key, cron, job).await?;
        }
        let mut active = status.active.take().unwrap_or_default();
        active.retain(|job| due.replaces.iter().all(|gone| gone.uid != job.uid));
        let job = plan::job(cron, time, claim::controller_reference(cron));
        let made = match self.jobs(key).create(&PostParams::default(), &job).await {
            Ok(made) => {
                if let Some(created) = &made.metadata.creation_timestamp {
                    SKEW.observe(created.0.duration_since(time).as_secs_f64());
                }
                self.recorder.normal(cron, "SuccessfulCreate", format!("Created job {}", made.name_any()));
                Some(made)
            }
            // It was made, and the answer was lost; or it is somebody else's.
            Err(error) if error.is_already_exists() => {
                let name = job.name_any();
                let live = self.jobs(key).get_opt(&name).await.says("look at the Job of a time")?;
                let uid = cron.metadata.uid.as_deref().unwrap_or_default();
                live.filter(|live| claim::is_controlled_by(&live.metadata, uid))
            }
            Err(error) if error.is_namespace_terminating() => return Ok(None),
            Err(error) => {
                let message = format!("Error creating job: {}", error::chain(&error));
                self.recorder.warning(cron, "FailedCreate", message);
                return Err(error).says("make a Job");
            }
        };
        let Some(made) = made else { return Ok(due.again) };
        self.family.written.wrote(key, &made);
        if active.iter().all(|one| one.uid != made.metadata.uid) {
            active.push(plan::reference(&made));
        }
        status.active = Some(active);
        status.last_schedule_time = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(time));
        self.write(key, cron, status).await?;
        Ok(due.again)
    }

    /// Deletes a Job and, in the background, its pods.
    async fn delete(&self, key: &ObjectKey, cron: &CronJob, job: &ObjectReference) -> Result<()> {
        let (name, uid) = (job.name.as_deref().unwrap_or_default(), job.uid.clone());
        let parameters = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: Some(Preconditions { uid: uid.clone(), resource_version: None }),
            ..DeleteParams::default()
        };
        match self.jobs(key).delete(name, &parameters).await {
            Ok(_) => {
                self.family.written.deleted(key, uid.as_deref().unwrap_or_default());
                self.recorder.normal(cron, "SuccessfulDelete", format!("Deleted job {name}"));
                Ok(())
            }
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => {
                let message = format!("Deleted job: {}", error::chain(&error));
                self.recorder.warning(cron, "FailedDelete", message);
                Err(error).says("delete a Job")
            }
        }
    }

    /// Writes a status that differs; the CronJob as it is then, or `None` if it is gone.
    async fn write(&self, key: &ObjectKey, cron: &CronJob, status: CronJobStatus) -> Result<Option<CronJob>> {
        if cron.status.clone().unwrap_or_default() == status {
            return Ok(Some(cron.clone()));
        }
        let new = CronJob { status: Some(status), ..cron.clone() };
        let api: Api<CronJob> = Api::namespaced(self.family.context.client.clone(), &key.namespace);
        match api.replace_status(&key.name, &PostParams::default(), &new).await {
            Ok(written) => {
                self.family.wrote_owner(key, &written);
                Ok(Some(written))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error).says("write the status of a CronJob"),
        }
    }

    fn tell(&self, cron: &CronJob, notes: Vec<Note>) {
        for (warning, reason, message) in notes {
            if warning {
                self.recorder.warning(cron, reason, message);
            } else {
                self.recorder.normal(cron, reason, message);
            }
        }
    }

    fn jobs(&self, key: &ObjectKey) -> Api<Job> {
        Api::namespaced(self.family.context.client.clone(), &key.namespace)
    }
}
