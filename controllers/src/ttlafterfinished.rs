//! Deletes Jobs with all that is theirs some time after they came to an end, where they ask for it
//! (`ttlSecondsAfterFinished`).
//!
//! Whether the time is over is asked of the Job as the API server has it: its user may have prolonged it since.

use std::sync::Arc;
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::informer::{Change, Informer};
use decapod_client::reconcile::{self, Queue};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use kube::Api;
use kube::api::{DeleteParams, Preconditions, PropagationPolicy};

use crate::common::{Context, Result, Says};
use crate::job::finished;

const NAME: &str = "ttl-after-finished-controller";

struct Controller {
    context: Context,
    jobs: Informer<Job>,
}

/// Starts the controller with so many workers.
pub(crate) fn start(context: &Context, workers: usize) {
    let queue = Queue::new(context.clock.clone());
    let jobs = context.informers.of::<Job>();
    let clock = context.clock.clone();
    reconcile::feed(&context.supervisor, NAME, jobs.subscribe(), &queue, move |change: &Change<Job>| {
        let job = change.new.as_ref()?;
        left(job, clock.now()).map(|_| change.key.clone())
    });
    let controller = Arc::new(Controller { context: context.clone(), jobs });
    reconcile::run(&context.supervisor, NAME, &queue, workers, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

/// How long the Job stays; `None` if it does not go by itself.
fn left(job: &Job, now: Timestamp) -> Option<Duration> {
    let seconds = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let time = Duration::from_secs(u64::try_from(seconds).ok()?);
    let end = finished(job)?.last_transition_time.as_ref()?.0;
    let over = Duration::try_from(now.duration_since(end)).unwrap_or_default();
    job.metadata.deletion_timestamp.is_none().then(|| time.saturating_sub(over))
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(job) = self.jobs.get(key) else { return Ok(None) };
        match left(&job, self.context.clock.now()) {
            Some(left) if left.is_zero() => self.remove(key).await,
            other => Ok(other),
        }
    }

    async fn remove(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        let jobs: Api<Job> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let Some(live) = jobs.get_opt(&key.name).await.says("look at a Job whose time is over")? else {
            return Ok(None);
        };
        match left(&live, self.context.clock.now()) {
            Some(left) if left.is_zero() => {}
            other => return Ok(other),
        }
        let meta = live.metadata;
        let parameters = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Foreground),
            preconditions: Some(Preconditions { uid: meta.uid, resource_version: meta.resource_version }),
            ..DeleteParams::default()
        };
        match jobs.delete(&key.name, &parameters).await {
            Ok(_) => Ok(None),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error).says("delete a Job whose time is over"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_job_goes_its_time_after_its_end() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let job = |ttl: Option<i32>, end: &str| -> Job {
            let conditions =
                json!([{"type": end, "status": "True", "lastTransitionTime": at(100).to_string()}]);
            let spec = json!({"template": {}, "ttlSecondsAfterFinished": ttl});
            serde_json::from_value(json!({"spec": spec, "status": {"conditions": conditions}})).unwrap()
        };
        assert_eq!(left(&job(Some(60), "Complete"), at(130)), Some(Duration::from_secs(30)));
        assert_eq!(left(&job(Some(60), "Failed"), at(160)), Some(Duration::ZERO));
        assert_eq!(left(&job(Some(0), "Failed"), at(100)), Some(Duration::ZERO));
        assert_eq!(left(&job(Some(60), "FailureTarget"), at(160)), None);
        assert_eq!(left(&job(None, "Complete"), at(160)), None);
    }
}
