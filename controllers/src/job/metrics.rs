//! What is counted of Jobs, under Kubernetes' names.

use std::sync::LazyLock;

use decapod_client::metrics::register;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::plan::Verdict;

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

static JOBS: LazyLock<Family<Finished, Counter>> = LazyLock::new(|| {
    let jobs: Family<Finished, Counter> = Family::default();
    register("job_controller_jobs_finished", "The number of finished jobs", jobs.clone());
    jobs
});

static PODS: LazyLock<Family<Pods, Counter>> = LazyLock::new(|| {
    let pods: Family<Pods, Counter> = Family::default();
    register(
        "job_controller_job_pods_finished",
        "The number of finished Pods that are fully tracked",
        pods.clone(),
    );
    pods
});

fn mode(job: &Job) -> String {
    let mode = job.spec.as_ref().and_then(|spec| spec.completion_mode.clone());
    mode.unwrap_or_else(|| "NonIndexed".to_owned())
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
