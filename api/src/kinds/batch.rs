//! Jobs and CronJobs: defaulting and validation.

use k8s_openapi::api::batch::v1::{CronJob, Job, JobSpec};

use super::{Kind, or, or_text, pod, pod_validation};
use crate::field::{Error, Path};

impl Kind for Job {
    fn default_fields(&mut self) {
        if let Some(spec) = &mut self.spec {
            default_job(spec);
        }
    }

    fn validate(&self, _old: Option<&Self>, errors: &mut Vec<Error>) {
        match &self.spec {
            Some(spec) => validate_job(spec, &Path::new("spec"), errors),
            None => errors.push(Error::required(&Path::new("spec"), "")),
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
    pod::default_template(&mut spec.template);
}

fn validate_job(spec: &JobSpec, path: &Path, errors: &mut Vec<Error>) {
    for (field, value) in [
        ("parallelism", spec.parallelism),
        ("completions", spec.completions),
        ("backoffLimit", spec.backoff_limit),
    ] {
        if let Some(value) = value.filter(|v| *v < 0) {
            errors.push(Error::invalid(&path.child(field), value, "must be greater than or equal to 0"));
        }
    }
    let template = path.child("template");
    pod_validation::template(&spec.template, &template, errors);
    let policy = spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or_default();
    if !["OnFailure", "Never"].contains(&policy) {
        let at = template.child("spec").child("restartPolicy");
        errors.push(Error::not_supported(&at, policy, &["Never", "OnFailure"]));
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
            default_job(job);
        }
    }

    fn validate(&self, _old: Option<&Self>, errors: &mut Vec<Error>) {
        let path = Path::new("spec");
        let spec = &self.spec;
        if spec.schedule.is_empty() {
            errors.push(Error::required(&path.child("schedule"), ""));
        }
        let policy = spec.concurrency_policy.as_deref().unwrap_or_default();
        let known = ["Allow", "Forbid", "Replace"];
        if !known.contains(&policy) {
            errors.push(Error::not_supported(&path.child("concurrencyPolicy"), policy, &known));
        }
        let template = path.child("jobTemplate").child("spec");
        match &spec.job_template.spec {
            Some(job) => validate_job(job, &template, errors),
            None => errors.push(Error::required(&template, "")),
        }
    }
}
