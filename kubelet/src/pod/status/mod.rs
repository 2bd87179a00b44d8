//! `Pod.status` as clients expect it: a pure function of the pod, of what the runtime has, and of what the worker
//! knows about containers that cannot start.
//!
//! **Invariants**: a terminal phase is never left; a condition's `lastTransitionTime` moves only with its status;
//! conditions that are not the kubelet's are neither changed nor dropped.

mod conditions;
mod containers;
mod patch;
mod phase;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{HostIP, Pod, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::observed::Observed;
use super::plan::Verdicts;
use super::{qos, spec};

pub(crate) use containers::id_of;
pub(crate) use patch::patch;

/// Why a container is not running, in Kubernetes' reasons (`ErrImagePull`, `CrashLoopBackOff`, …).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// A reason for the pod as a whole to have failed, such as `DeadlineExceeded`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    pub(crate) message: String,
    /// The node ended the pod for its own sake: condition `DisruptionTarget`.
    pub(crate) disruption: bool,
}

/// What a status is computed from.
pub(crate) struct Input<'a> {
    pub(crate) pod: &'a Pod,
    /// The newest status known, ours or the API server's.
    pub(crate) old: &'a PodStatus,
    pub(crate) observed: &'a Observed,
    pub(crate) waiting: &'a BTreeMap<String, Waiting>,
    pub(crate) hooked: &'a BTreeSet<String>,
    pub(crate) verdicts: &'a dyn Verdicts,
    /// No container of the pod will be started again.
    pub(crate) terminal: bool,
    pub(crate) failure: Option<&'a Failure>,
    /// Termination messages by container id.
    pub(crate) messages: &'a BTreeMap<String, String>,
    pub(crate) host_ips: &'a [String],
    /// The scheme of container ids, `decapod` in `decapod://…`.
    pub(crate) runtime: &'a str,
    pub(crate) now: Timestamp,
}

/// Whether a phase is final.
pub(crate) fn is_terminal(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// Computes the status.
pub(crate) fn compute(input: &Input<'_>) -> PodStatus {
    let mut status = PodStatus {
        nominated_node_name: input.old.nominated_node_name.clone(),
        resource_claim_statuses: input.old.resource_claim_statuses.clone(),
        qos_class: Some(qos_class(input)),
        start_time: Some(input.old.start_time.clone().unwrap_or_else(|| whole_seconds(input.now))),
        observed_generation: input.pod.metadata.generation,
        ..PodStatus::default()
    };
    // Of a pod that was refused no container was ever to start: there is nothing to say about them.
    let refused = (input.failure.is_some() || is_terminal(input.old))
        && input.old.container_statuses.is_none()
        && input.observed.sandboxes.is_empty();
    if !refused {
        containers::fill(input, &mut status);
    }
    addresses(input, &mut status);
    phase::fill(input, &mut status);
    conditions::fill(input, &mut status);
    status
}

fn qos_class(input: &Input<'_>) -> String {
    input
        .old
        .qos_class
        .clone()
        .or_else(|| input.pod.spec.as_ref().map(|s| qos::class(s).as_str().to_owned()))
        .unwrap_or_default()
}

fn addresses(input: &Input<'_>, status: &mut PodStatus) {
    status.host_ip = input.host_ips.first().cloned();
    status.host_ips = Some(input.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect::<Vec<_>>())
        .filter(|ips| !ips.is_empty());
    let ips: Vec<String> = if spec::host_network(input.pod) {
        input.host_ips.to_vec()
    } else if let Some(sandbox) = input.observed.sandbox().filter(|s| s.ready) {
        sandbox.ips.clone()
    } else {
        // While the sandbox goes away clients still see the address that it had, even if nobody was told before.
        let told: Vec<_> = input.old.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
        let had = || input.observed.sandbox().map(|s| s.ips.clone()).unwrap_or_default();
        if told.is_empty() { had() } else { told }
    };
    status.pod_ip = ips.first().cloned();
    status.pod_ips =
        Some(ips.into_iter().map(|ip| PodIP { ip }).collect::<Vec<_>>()).filter(|i| !i.is_empty());
}

/// Kubernetes writes times in whole seconds; keeping fractions would make each comparison a difference.
pub(crate) fn whole_seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
