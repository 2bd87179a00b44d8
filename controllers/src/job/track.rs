//! How ends are counted exactly: first the status notes the uids of the pods that ended, then the pods are let go,
//! then the uids become counts. The controller may die between any two of these, or not hear the answer: the next
//! look finds each end in one place and goes on from there.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobCondition, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::Verdict;
use super::pod;
use super::view::{View, clamp};
use crate::common::pods;

/// Ends noted at a time, as in Kubernetes: the status must stay small.
const NOTED: usize = 500;

/// The numbers of a status after the steps that were carried out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    pub(super) active: usize,
    pub(super) ready: usize,
    pub(super) terminating: usize,
}

/// The first write of a status, and what is to be done after it.
#[derive(Debug)]
pub(super) struct Tracking {
    /// What is written before a pod is let go.
    pub(super) status: JobStatus,
    /// The pods that are let go then.
    pub(super) release: Vec<Arc<Pod>>,
    /// More is left for the next time.
    pub(super) more: bool,
    /// What happened to the Job as such: the reason and message of an Event.
    pub(super) event: Option<(&'static str, &'static str)>,
}

/// The status that notes what ended, before any pod is let go.
pub(super) fn note(view: &View<'_>, verdict: Option<&Verdict>, numbers: Numbers, now: Timestamp) -> Tracking {
    let mut status = view.status.clone();
    let tracked = view.pods.iter().filter(|pod| pod::is_tracked(pod));
    count(&mut status, &tracked.map(|pod| pod::uid(pod).to_owned()).collect());
    if status.start_time.is_none() && !view.is_suspended() {
        status.start_time = Some(Time(now));
    }
    let event = match verdict {
        None if !view.is_deleting() => suspension(&mut status, view.is_suspended(), now),
        _ => None,
    };
    status.active = Some(clamp(numbers.active)).filter(|active| *active > 0);
    status.ready = Some(clamp(numbers.ready));
    status.terminating = Some(clamp(numbers.terminating));
    let (release, more) = note_ends(view, verdict, &mut status);
    if let Some(verdict) = verdict {
        set(&mut status, verdict.conditions().0, "True", &verdict.reason, &verdict.message, now);
    }
    Tracking { status, release, more, event }
}

/// Notes the ends of pods up to the limit; the pods that are to be let go once this is written.
fn note_ends(view: &View<'_>, verdict: Option<&Verdict>, status: &mut JobStatus) -> (Vec<Arc<Pod>>, bool) {
    let mut noted = status.uncounted_terminated_pods.take().unwrap_or_default();
    let (mut succeeded, mut failed) =
        (noted.succeeded.take().unwrap_or_default(), noted.failed.take().unwrap_or_default());
    let before: HashSet<String> = succeeded.iter().chain(&failed).cloned().collect();
    let mut told = view.indexed.as_ref().map(|indexed| indexed.told.clone());
    let (mut release, mut fresh, mut more) = (Vec::new(), 0, false);
    let mut tracked: Vec<_> = view.pods.iter().filter(|pod| pod::is_tracked(pod)).collect();
    tracked.sort_by_key(|pod| pod::index(pod));
    for pod in tracked {
        if !is_released(view, verdict, pod) {
            continue;
        }
        if succeeded.len() + failed.len() + fresh >= NOTED {
            more = true;
            break;
        }
        release.push(pod.clone());
        let (uid, well) = (pod::uid(pod).to_owned(), pods::phase(pod) == "Succeeded");
        if before.contains(&uid) || !view.is_valid(pod) {
            continue;
        }
        match (&mut told, pod::index(pod)) {
            // A success needs no uid where its index tells it.
            (Some(told), Some(index)) if well => {
                fresh += usize::from(!told.contains(index));
                told.insert(index);
            }
            _ if well => succeeded.push(uid),
            _ if counts_as_failed(view, verdict, pod) => failed.push(uid),
            _ => {}
        }
    }
    let list = |list: Vec<String>| (!list.is_empty()).then_some(list);
    let noted = UncountedTerminatedPods { succeeded: list(succeeded), failed: list(failed) };
    status.uncounted_terminated_pods = Some(noted);
    if let Some(told) = told {
        status.succeeded = Some(told.count()).filter(|count| *count > 0);
        status.completed_indexes = Some(told.to_string()).filter(|text| !text.is_empty());
        let failed = view.indexed.as_ref().and_then(|indexed| indexed.failed.as_ref());
        status.failed_indexes = failed.map(ToString::to_string);
    }
    (release, more)
}

/// Whether a pod is let go: it ended, or everything ends; not a failed one whose successor is to carry on its count.
fn is_released(view: &View<'_>, verdict: Option<&Verdict>, pod: &Pod) -> bool {
    if view.is_deleting() || verdict.is_some() || pods::phase(pod) == "Succeeded" {
        return true;
    }
    let held = view.indexed.iter().flat_map(|indexed| indexed.held.values());
    view.is_failed(pod) && !held.into_iter().any(|held| held.metadata.uid == pod.metadata.uid)
}

/// Whether the end of a pod that did not succeed is a failure: where the Job fails, all that had not ended did.
fn counts_as_failed(view: &View<'_>, verdict: Option<&Verdict>, pod: &Pod) -> bool {
    let job_failed = verdict.is_some_and(|verdict| !verdict.success);
    (view.is_failed(pod) || job_failed) && view.ruling(pod).counts()
}

/// Turns the uids of pods that were let go into counts.
pub(super) fn count(status: &mut JobStatus, tracked: &HashSet<String>) {
    let Some(noted) = &mut status.uncounted_terminated_pods else { return };
    for (uids, count) in
        [(&mut noted.succeeded, &mut status.succeeded), (&mut noted.failed, &mut status.failed)]
    {
        let Some(list) = uids else { continue };
        let before = list.len();
        list.retain(|uid| tracked.contains(uid));
        let sum = count.unwrap_or(0) + clamp(before - list.len());
        *count = Some(sum).filter(|sum| *sum > 0);
        if list.is_empty() {
            *uids = None;
        }
    }
}

/// Says that the Job has come to its end, once every end is counted and no pod is left; whether it said so.
pub(super) fn finish(status: &mut JobStatus, verdict: &Verdict, now: Timestamp) -> bool {
    let noted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let open = [noted.succeeded, noted.failed].iter().flatten().any(|list| !list.is_empty());
    if open || status.terminating.unwrap_or(0) > 0 || status.active.unwrap_or(0) > 0 {
        return false;
    }
    set(status, verdict.conditions().1, "True", &verdict.reason, &verdict.message, now);
    if verdict.success {
        status.completion_time = Some(Time(now));
    }
    true
}

/// Tells of a suspension or of its end, which starts the time of the Job anew.
fn suspension(
    status: &mut JobStatus,
    suspended: bool,
    now: Timestamp,
) -> Option<(&'static str, &'static str)> {
    if suspended {
        let new = set(status, "Suspended", "True", "JobSuspended", "Job suspended", now);
        if new {
            status.start_time = None;
        }
        return new.then_some(("Suspended", "Job suspended"));
    }
    // What was never suspended is not said to be resumed.
    status.conditions.iter().flatten().find(|condition| condition.type_ == "Suspended")?;
    let new = set(status, "Suspended", "False", "JobResumed", "Job resumed", now);
    if new {
        status.start_time = Some(Time(now));
    }
    new.then_some(("Resumed", "Job resumed"))
}

/// Sets a condition; whether that changed anything.
fn set(
    status: &mut JobStatus,
    type_: &str,
    state: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    let condition = JobCondition {
        type_: type_.to_owned(),
        status: state.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|known| known.type_ == type_) {
        Some(known) => {
            let told = (&known.status, known.reason.as_deref(), known.message.as_deref());
            let same = told == (&condition.status, Some(reason), Some(message));
            if !same {
                *known = condition;
            }
            !same
        }
        None => {
            conditions.push(condition);
            true
        }
    }
}

/// Whether two statuses say the same: an absent list or number is an empty one.
pub(super) fn same(one: &JobStatus, other: &JobStatus) -> bool {
    let plain = |status: &JobStatus| {
        let mut plain = status.clone();
        for number in [&mut plain.active, &mut plain.succeeded, &mut plain.failed] {
            *number = number.filter(|number| *number != 0);
        }
        plain.conditions = plain.conditions.filter(|list| !list.is_empty());
        plain.completed_indexes = plain.completed_indexes.filter(|text| !text.is_empty());
        let noted = plain.uncounted_terminated_pods.take().unwrap_or_default();
        let list = |list: Option<Vec<String>>| list.unwrap_or_default();
        (plain, list(noted.succeeded), list(noted.failed))
    };
    plain(one) == plain(other)
}
