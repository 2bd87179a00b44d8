//! Jobs and CronJobs: defaulting.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::{CronJob, Job, JobSpec};

use super::{Kind, or, or_text, pod};

impl Kind for Job {
    fn default_fields(&mut self) {
        let Some(spec) = &mut self.spec else { return };
        default_job(spec);
        let labels = spec.template.metadata.as_ref().and_then(|m| m.labels.clone());
        if self.metadata.labels.as_ref().is_none_or(BTreeMap::is_empty) {
            self.metadata.labels = labels.or(self.metadata.labels.take());
        }
    }
}

fn default_job(spec: &mut JobSpec) {
    // Both absent: one pod, once.
    if spec.completions.is_none() && spec.parallelism.is_none() {
        spec.completions = Some(1);
    }
    or(&mut spec.parallelism, 1);
    or(&mut spec.backoff_limit, if spec.backoff_limit_per_index.is_some() { i32::MAX } else { 6 });
    or_text(&mut spec.completion_mode, "NonIndexed");
    or(&mut spec.suspend, false);
    or(&mut spec.manual_selector, false);
    let replacement = if spec.pod_failure_policy.is_some() { "Failed" } else { "TerminatingOrFailed" };
    or_text(&mut spec.pod_replacement_policy, replacement);
    default_template(spec);
}

/// What is defaulted also where a job is only described.
fn default_template(spec: &mut JobSpec) {
    pod::default_template(&mut spec.template);
    let rules = spec.pod_failure_policy.iter_mut().flat_map(|p| &mut p.rules);
    for pattern in rules.flat_map(|r| r.on_pod_conditions.iter_mut().flatten()) {
        or_text(&mut pattern.status, "True");
    }
}

impl Kind for CronJob {
    fn default_fields(&mut self) {
        let spec = &mut self.spec;
        or_text(&mut spec.concurrency_policy, "Allow");
        or(&mut spec.suspend, false);
        or(&mut spec.successful_jobs_history_limit, 3);
        or(&mut spec.failed_jobs_history_limit, 1);
        if let Some(job) = &mut spec.job_template.spec {
            default_template(job);
        }
    }
}
