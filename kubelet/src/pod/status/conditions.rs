//! `status.conditions`, with Kubernetes' reasons and messages.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodSpec, PodStatus};

use super::super::plan;
use super::super::spec::{self, Sort};
use super::{Input, whole_seconds};

/// The conditions that a kubelet owns; all others are left as they are.
const OWNED: [&str; 6] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled", ALL_RESTARTING];

/// The condition of a pod whose containers all begin anew because one of them ended (KEP-5532); only pods with such
/// a rule have it.
const ALL_RESTARTING: &str = "AllContainersRestarting";

/// The condition of a pod that has to go for the sake of others.
const DISRUPTION: &str = "DisruptionTarget";

/// Status, reason and message of one condition.
struct Verdict {
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn yes() -> Self {
        Self { status: true, reason: None, message: None }
    }

    fn no(reason: &'static str, message: Option<String>) -> Self {
        Self { status: false, reason: Some(reason), message }
    }
}

/// Sets the conditions; phase and container statuses must be there.
pub(super) fn fill(input: &Input<'_>, status: &mut PodStatus) {
    let Some(pod_spec) = input.pod.spec.as_ref() else { return };
    let sandbox = input.observed.sandbox().is_some_and(|s| s.ready);
    let containers_ready = containers_ready(pod_spec, status);
    let ready = match gates(pod_spec, input.old) {
        Some(message) if containers_ready.status => Verdict::no("ReadinessGatesNotReady", Some(message)),
        _ => Verdict {
            status: containers_ready.status,
            reason: containers_ready.reason,
            message: containers_ready.message.clone(),
        },
    };
    let verdicts = [
        ("PodReadyToStartContainers", Verdict { status: sandbox, reason: None, message: None }),
        ("Initialized", initialized(pod_spec, status)),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", Verdict::yes()),
    ];
    let mut conditions: Vec<PodCondition> = input
        .old
        .conditions
        .iter()
        .flatten()
        .filter(|c| !OWNED.contains(&c.type_.as_str()))
        .cloned()
        .collect();
    if let Some(failure) = input.failure.filter(|failure| failure.disruption) {
        conditions.retain(|condition| condition.type_ != DISRUPTION);
        let verdict = Verdict {
            status: true,
            reason: Some("TerminationByKubelet"),
            message: Some(failure.message.clone()),
        };
        conditions.push(condition(input, DISRUPTION, verdict));
    }
    conditions.extend(verdicts.into_iter().map(|(kind, verdict)| condition(input, kind, verdict)));
    if spec::may_restart_all(pod_spec) {
        conditions.push(condition(input, ALL_RESTARTING, all_restarting(input, pod_spec, status)));
    }
    status.conditions = Some(conditions);
}

fn all_restarting(input: &Input<'_>, pod_spec: &PodSpec, status: &PodStatus) -> Verdict {
    let sandbox = input.observed.sandbox().filter(|sandbox| sandbox.ready);
    let trigger = sandbox.and_then(|sandbox| plan::ended_all(pod_spec, input.observed, &sandbox.id));
    match (status.phase.as_deref(), trigger) {
        (Some("Succeeded"), _) => Verdict::no("PodCompleted", None),
        (Some("Failed"), _) => Verdict::no("PodFailed", None),
        (_, Some(_)) => Verdict {
            status: true,
            reason: Some("RestartAllContainersStarted"),
            message: Some("container exited with restart policy rule".to_owned()),
        },
        (_, None) => Verdict { status: false, reason: None, message: None },
    }
}

fn condition(input: &Input<'_>, kind: &str, verdict: Verdict) -> PodCondition {
    let status = if verdict.status { "True" } else { "False" };
    let old = input.old.conditions.iter().flatten().find(|c| c.type_ == kind);
    let unchanged = old.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        observed_generation: input.pod.metadata.generation,
        last_transition_time: Some(unchanged.unwrap_or_else(|| whole_seconds(input.now))),
        last_probe_time: None,
    }
}

fn find<'a>(statuses: &'a Option<Vec<ContainerStatus>>, name: &str) -> Option<&'a ContainerStatus> {
    statuses.iter().flatten().find(|s| s.name == name)
}

fn list(kind: &str, names: &[&str]) -> Option<String> {
    (!names.is_empty()).then(|| format!("containers with {kind} status: [{}]", names.join(" ")))
}

fn sentence(unknown: &[&str], other: &str, names: &[&str]) -> Option<String> {
    let parts: Vec<String> = [list("unknown", unknown), list(other, names)].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn containers_ready(spec: &PodSpec, status: &PodStatus) -> Verdict {
    let mut unready = Vec::new();
    let sidecars = spec.init_containers.iter().flatten().filter(|c| spec::init_sort(c) == Sort::Sidecar);
    let all = sidecars
        .map(|c| (c, find(&status.init_container_statuses, &c.name)))
        .chain(spec.containers.iter().map(|c| (c, find(&status.container_statuses, &c.name))));
    for (container, found) in all {
        if !found.is_some_and(|s| s.ready) {
            unready.push(container.name.as_str());
        }
    }
    match status.phase.as_deref() {
        Some("Succeeded") => Verdict::no("PodCompleted", None),
        Some("Failed") => Verdict::no("PodFailed", None),
        _ => match sentence(&[], "unready", &unready) {
            Some(message) => Verdict::no("ContainersNotReady", Some(message)),
            None => Verdict::yes(),
        },
    }
}

fn initialized(spec: &PodSpec, status: &PodStatus) -> Verdict {
    let mut incomplete = Vec::new();
    for container in spec.init_containers.iter().flatten() {
        let found = find(&status.init_container_statuses, &container.name);
        let done = match spec::init_sort(container) {
            Sort::Sidecar => found.is_some_and(|s| {
                s.started == Some(true) || s.state.as_ref().is_some_and(|s| s.terminated.is_some())
            }),
            _ => found.is_some_and(|s| s.ready),
        };
        if !done {
            incomplete.push(container.name.as_str());
        }
    }
    // Once app containers ran, a sidecar that restarts does not undo the initialization.
    let ran = status.container_statuses.iter().flatten().any(|s| s.container_id.is_some());
    if ran || incomplete.is_empty() {
        let reason = (status.phase.as_deref() == Some("Succeeded")).then_some("PodCompleted");
        return Verdict { reason, ..Verdict::yes() };
    }
    Verdict::no("ContainersNotInitialized", sentence(&[], "incomplete", &incomplete))
}

/// What is wrong with the readiness gates, if anything is.
fn gates(spec: &PodSpec, old: &PodStatus) -> Option<String> {
    let mut faults = Vec::new();
    for gate in spec.readiness_gates.iter().flatten() {
        let kind = &gate.condition_type;
        match old.conditions.iter().flatten().find(|c| &c.type_ == kind) {
            None => faults
                .push(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist.")),
            Some(c) if c.status != "True" => faults.push(format!(
                "the status of pod readiness gate \"{kind}\" is not \"True\", but {}",
                c.status
            )),
            Some(_) => {}
        }
    }
    (!faults.is_empty()).then(|| faults.join(", "))
}
