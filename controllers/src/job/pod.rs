//! What a Job reads from its pods: their index, what failed before them, and when they ended.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::common::pods;

/// The finalizer that holds a pod until its end is counted.
pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";

/// The annotation and label of a pod's completion index.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// How many pods of the same index failed before this one, and counted.
pub(super) const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";

/// How many pods of the same index failed before this one, and did not count.
pub(super) const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// Whether the pod's end is still to be counted.
pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|one| one == FINALIZER)
}

/// The pod as it is without the finalizer.
pub(super) fn untracked(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    if let Some(finalizers) = &mut pod.metadata.finalizers {
        finalizers.retain(|one| one != FINALIZER);
    }
    pod
}

/// The pod's completion index, if it has one that can be read.
pub(super) fn index(pod: &Pod) -> Option<i32> {
    number(&pod.metadata, INDEX)
}

/// The failures before this pod that count.
pub(super) fn failures(pod: &Pod) -> i32 {
    number(&pod.metadata, FAILURES).unwrap_or(0)
}

/// The failures before this pod that do not count.
pub(super) fn ignored(pod: &Pod) -> i32 {
    number(&pod.metadata, IGNORED).unwrap_or(0)
}

fn number(meta: &ObjectMeta, annotation: &str) -> Option<i32> {
    let text = meta.annotations.as_ref()?.get(annotation)?;
    text.parse().ok().filter(|number| *number >= 0)
}

pub(super) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// When the pod ended: its last container's end, or since when it is no longer ready, or when its end was asked for.
pub(super) fn ended(pod: &Pod) -> Timestamp {
    let meta = &pod.metadata;
    let unready = || {
        let condition = pods::condition(pod, "Ready").filter(|condition| condition.status == "False")?;
        condition.last_transition_time.as_ref().map(|time| time.0)
    };
    let asked = || {
        let grace = u64::try_from(meta.deletion_grace_period_seconds.unwrap_or(0)).unwrap_or(0);
        let at = meta.deletion_timestamp.as_ref()?.0;
        at.checked_sub(Duration::from_secs(grace)).ok()
    };
    let created = || meta.creation_timestamp.as_ref().map(|time| time.0);
    last_end(pod).or_else(unready).or_else(asked).or_else(created).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The end of the container that ended last, sidecars included; `None` while one runs.
fn last_end(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref()?;
    let sidecars: Vec<&str> = pod
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten())
        .filter(|container| container.restart_policy.as_deref() == Some("Always"))
        .map(|container| container.name.as_str())
        .collect();
    let init = status.init_container_statuses.iter().flatten();
    let waited = init.filter(|one| sidecars.contains(&one.name.as_str()));
    let all = status.container_statuses.iter().flatten().chain(waited);
    let end = |one: &ContainerStatus| Some(one.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0);
    all.map(end).collect::<Option<Vec<_>>>()?.into_iter().max()
}
