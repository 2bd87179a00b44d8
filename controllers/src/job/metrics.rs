//! What is counted of Jobs, under Kubernetes' names.

use std::sync::LazyLock;
use std::time::Duration;

use decapod_client::metrics::{Times, register};
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use super::plan::{Steps, Verdict};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Finished {
    completion_mode: String,
    result: &'static str,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pods {
    completion_mode: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Look {
    completion_mode: String,
    result: &'static str,
    action: &'static str,
}

static LOOKS: LazyLock<(Family<Look, Counter>, Times<Look>)> = LazyLock::new(|| {
    let times: Times<Look> =
        Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.004, 2.0, 15)));
    (
        register("job_controller_job_syncs", "The number of job syncs", Family::default()),
        register("job_controller_job_sync_duration_seconds", "The time it took to sync a job", times),
    )
});

static JOBS: LazyLock<Family<Finished, Counter>> = LazyLock::new(|| {
    register("job_controller_jobs_finished", "The number of finished jobs", Family::default())
});

static PODS: LazyLock<Family<Pods, Counter>> = LazyLock::new(|| {
    register(
        "job_controller_job_pods_finished",
        "The number of finished Pods that are fully tracked",
        Family::default(),
    )
});

fn mode(job: &Job) -> String {
    let mode = job.spec.as_ref().and_then(|spec| spec.completion_mode.clone());
    mode.unwrap_or_else(|| "NonIndexed".to_owned())
}

/// What is mainly done by such steps, in Kubernetes' words.
pub(super) fn action(steps: &Steps) -> &'static str {
    if !steps.start.is_empty() {
        "pods_created"
    } else if !steps.stop.is_empty() || !steps.drop.is_empty() {
        "pods_deleted"
    } else {
        "reconciling"
    }
}

/// A Job was looked at, for so long; whether all that was to be done went well.
pub(super) fn looked(job: &Job, action: &'static str, well: bool, took: Duration) {
    let labels = Look { completion_mode: mode(job), result: if well { "success" } else { "error" }, action };
    LOOKS.0.get_or_create(&labels).inc();
    LOOKS.1.get_or_create(&labels).observe(took.as_secs_f64());
}

/// A Job came to its end.
pub(super) fn finished(job: &Job, verdict: &Verdict) {
    let result = if verdict.success { "succeeded" } else { "failed" };
    let labels = Finished { completion_mode: mode(job), result, reason: verdict.reason.clone() };
    JOBS.get_or_create(&labels).inc();
}

/// The counts of a Job's pods went from one status to another.
pub(super) fn counted(job: &Job, before: &JobStatus, after: &JobStatus) {
    for (result, before, after) in
        [("succeeded", before.succeeded, after.succeeded), ("failed", before.failed, after.failed)]
    {
        // An indexed Job that was made smaller has fewer than before.
        let more = u64::try_from(after.unwrap_or(0) - before.unwrap_or(0)).unwrap_or(0);
        if more > 0 {
            PODS.get_or_create(&Pods { completion_mode: mode(job), result }).inc_by(more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_told_by_what_they_did() {
        let mut job = Job::default();
        job.spec.get_or_insert_default().completion_mode = Some("Looked".to_owned());
        let making = Steps { start: vec![crate::job::plan::Start::default()], ..Steps::default() };
        looked(&job, action(&making), true, Duration::from_millis(5));
        looked(&job, action(&Steps::default()), false, Duration::from_millis(5));
        let text = decapod_client::metrics::text().unwrap();
        for labels in
            ["result=\"success\",action=\"pods_created\"", "result=\"error\",action=\"reconciling\""]
        {
            let mode = "completion_mode=\"Looked\"";
            let count = format!("job_controller_job_syncs_total{{{mode},{labels}}} 1");
            let time = format!("job_controller_job_sync_duration_seconds_count{{{mode},{labels}}} 1");
            assert!(text.contains(&count) && text.contains(&time), "{count}, {time} not in:\n{text}");
        }
    }

    #[test]
    fn only_what_is_new_is_counted() {
        let mut job = Job::default();
        job.spec.get_or_insert_default().completion_mode = Some("Tested".to_owned());
        let status = |succeeded: i32| JobStatus { succeeded: Some(succeeded), ..JobStatus::default() };
        counted(&job, &status(1), &status(4));
        counted(&job, &status(4), &status(2));
        let labels = Pods { completion_mode: "Tested".to_owned(), result: "succeeded" };
        assert_eq!(PODS.get_or_create(&labels).get(), 3);
    }
}
