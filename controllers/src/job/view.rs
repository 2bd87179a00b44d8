//! A Job and its pods as its decisions see them: which pods run, and how many ended, whether that is written down
//! already or not.
//!
//! Every end is in exactly one of three places: counted in the status; noted there by the pod's uid, to be counted
//! once the pod is let go; or only in a pod that still carries the finalizer. So the sum of the three is the same
//! before and after any write of the controller, and after its death between two of them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;

use super::indexes::Indexes;
use super::pod;
use super::policy::{self, Ruling};
use crate::common::pods;

/// What a Job asks for where it says nothing.
const BACKOFF_LIMIT: i32 = 6;

/// The Job, its pods, and what follows from both.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) job: &'a Job,
    pub(super) spec: &'a JobSpec,
    pub(super) status: JobStatus,
    /// All pods of the Job.
    pub(super) pods: &'a [Arc<Pod>],
    /// Those that neither ended nor are asked to.
    pub(super) active: Vec<Arc<Pod>>,
    /// Those that are asked to end and have not yet.
    pub(super) terminating: Vec<Arc<Pod>>,
    /// Pods, or indexes, that succeeded in all.
    pub(super) succeeded: i32,
    /// Failures in all that count.
    pub(super) failed: i32,
    /// What a Job with indexes knows about them.
    pub(super) indexed: Option<Indexed>,
}

/// The indexes of a Job.
#[derive(Debug)]
pub(super) struct Indexed {
    /// How many there are to be.
    pub(super) completions: i32,
    /// Those whose success the status tells already.
    pub(super) told: Indexes,
    /// All that succeeded.
    pub(super) succeeded: Indexes,
    /// Those that failed for good, where each index has a limit of its own.
    pub(super) failed: Option<Indexes>,
    /// The last failed pod of each index that is to be tried again, where each index has a limit of its own: it is
    /// held until its successor exists, which carries on its count.
    pub(super) held: BTreeMap<i32, Arc<Pod>>,
}

impl<'a> View<'a> {
    /// Looks at a Job and its pods; `None` if it has no spec, which the API server does not let in.
    pub(super) fn new(job: &'a Job, pods: &'a [Arc<Pod>]) -> Option<Self> {
        let spec = job.spec.as_ref()?;
        let of = |wanted: fn(&Pod) -> bool| pods.iter().filter(|pod| wanted(pod)).cloned().collect();
        let status = job.status.clone().unwrap_or_default();
        let mut view = Self {
            job,
            spec,
            status,
            pods,
            active: of(pods::is_active),
            terminating: of(|pod| pod.metadata.deletion_timestamp.is_some() && !pods::is_terminal(pod)),
            succeeded: 0,
            failed: 0,
            indexed: None,
        };
        view.count();
        Some(view)
    }

    fn count(&mut self) {
        if self.spec.completion_mode.as_deref() == Some("Indexed") {
            // Validation wants the number of completions; without it there is nothing to be done.
            self.indexed = Some(self.indexed(self.spec.completions.unwrap_or(0)));
        }
        let (succeeded, failed) = self.uncounted();
        let fresh = |known: &HashSet<&str>, wanted: &dyn Fn(&Pod) -> bool| {
            let new = self.countable().filter(|pod| !known.contains(pod::uid(pod)) && wanted(pod));
            clamp(new.count() + known.len())
        };
        let well = fresh(&succeeded, &|pod| pods::phase(pod) == "Succeeded");
        let badly = fresh(&failed, &|pod| self.is_failed(pod) && self.ruling(pod).counts());
        self.failed = self.status.failed.unwrap_or(0) + badly;
        self.succeeded = match &self.indexed {
            Some(indexed) => indexed.succeeded.count(),
            None => self.status.succeeded.unwrap_or(0) + well,
        };
    }

    fn indexed(&self, completions: i32) -> Indexed {
        let told = Indexes::parse(self.status.completed_indexes.as_deref().unwrap_or_default(), completions);
        let mut indexed =
            Indexed { completions, succeeded: told.clone(), told, failed: None, held: BTreeMap::new() };
        let valid: Vec<_> = self
            .pods
            .iter()
            .filter_map(|pod| Some((indexed.index(pod).filter(|_| pod::is_tracked(pod))?, pod)))
            .collect();
        for (index, _) in valid.iter().filter(|(_, pod)| pods::phase(pod) == "Succeeded") {
            indexed.succeeded.insert(*index);
        }
        let Some(limit) = self.spec.backoff_limit_per_index else { return indexed };
        let known = self.status.failed_indexes.as_deref().unwrap_or_default();
        let mut failed = Indexes::parse(known, completions);
        let failures: Vec<_> = valid.into_iter().filter(|(_, pod)| self.is_failed(pod)).collect();
        for (index, pod) in &failures {
            let ruling = self.ruling(pod);
            if ruling == Ruling::FailsIndex || (ruling.counts() && pod::failures(pod) >= limit) {
                failed.insert(*index);
            }
        }
        let active: HashSet<i32> = self.active.iter().filter_map(|pod| pod::index(pod)).collect();
        for (index, pod) in failures {
            let over = indexed.succeeded.contains(index) || failed.contains(index) || active.contains(&index);
            let age = |pod: &Pod| (pod::failures(pod) + pod::ignored(pod), pod::ended(pod));
            let newer = indexed.held.get(&index).is_none_or(|known| age(known) <= age(pod));
            if !over && newer {
                indexed.held.insert(index, pod.clone());
            }
        }
        indexed.failed = Some(failed);
        indexed
    }

    /// Pods whose end is still to be counted and can be: a pod of no index that is asked for does not count.
    pub(super) fn countable(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.iter().filter(|pod| pod::is_tracked(pod) && self.is_valid(pod))
    }

    /// Whether the pod may count at all.
    pub(super) fn is_valid(&self, pod: &Pod) -> bool {
        self.indexed.as_ref().is_none_or(|indexed| indexed.index(pod).is_some())
    }

    /// Whether the pod failed. One that is asked to end fails by that, unless it is to be replaced only when it ended.
    pub(super) fn is_failed(&self, pod: &Pod) -> bool {
        match pods::phase(pod) {
            "Failed" => true,
            "Succeeded" => false,
            _ => pod.metadata.deletion_timestamp.is_some() && !self.replaces_only_ended(),
        }
    }

    /// Whether a pod that is on its way out is replaced only when it has ended.
    pub(super) fn replaces_only_ended(&self) -> bool {
        self.spec.pod_replacement_policy.as_deref() == Some("Failed")
    }

    pub(super) fn ruling(&self, pod: &Pod) -> Ruling {
        policy::rule(self.spec.pod_failure_policy.as_ref(), pod)
    }

    /// The uids whose success, and whose failure, is noted but not counted yet.
    pub(super) fn uncounted(&self) -> (HashSet<&str>, HashSet<&str>) {
        fn uids(list: Option<&Vec<String>>) -> HashSet<&str> {
            list.into_iter().flatten().map(String::as_str).collect()
        }
        let noted: Option<&UncountedTerminatedPods> = self.status.uncounted_terminated_pods.as_ref();
        (
            uids(noted.and_then(|noted| noted.succeeded.as_ref())),
            uids(noted.and_then(|noted| noted.failed.as_ref())),
        )
    }

    pub(super) fn is_suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    pub(super) fn is_deleting(&self) -> bool {
        self.job.metadata.deletion_timestamp.is_some()
    }

    pub(super) fn parallelism(&self) -> i32 {
        self.spec.parallelism.unwrap_or(1)
    }

    pub(super) fn backoff_limit(&self) -> i32 {
        self.spec.backoff_limit.unwrap_or(BACKOFF_LIMIT)
    }

    pub(super) fn ready(&self) -> usize {
        self.active.iter().filter(|pod| pods::is_ready(pod)).count()
    }
}

impl Indexed {
    /// The pod's index, if it is one that the Job asks for.
    pub(super) fn index(&self, pod: &Pod) -> Option<i32> {
        pod::index(pod).filter(|index| *index < self.completions)
    }
}

/// A number of pods as the API writes it.
pub(super) fn clamp(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Whether the Job has come to an end: with which condition.
pub(crate) fn finished(job: &Job) -> Option<&k8s_openapi::api::batch::v1::JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    conditions.iter().find(|one| matches!(one.type_.as_str(), "Complete" | "Failed") && one.status == "True")
}
