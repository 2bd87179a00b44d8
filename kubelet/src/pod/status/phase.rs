//! `status.phase`, with `reason` and `message`.

use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, PodSpec, PodStatus};

use super::super::spec::{self, Sort};
use super::Input;

#[derive(Default)]
struct Counts {
    pending_init: usize,
    pending_sidecar: usize,
    failed_init: usize,
    unknown: usize,
    running: usize,
    waiting: usize,
    stopped: usize,
    stopped_for_good: usize,
    succeeded: usize,
}

/// Sets the phase; the container statuses must be there.
pub(super) fn fill(input: &Input<'_>, status: &mut PodStatus) {
    if super::is_terminal(input.old) {
        status.phase.clone_from(&input.old.phase);
        status.reason.clone_from(&input.old.reason);
        status.message.clone_from(&input.old.message);
        return;
    }
    if let Some(failure) = input.failure {
        status.phase = Some("Failed".to_owned());
        status.reason = Some(failure.reason.clone());
        status.message = Some(failure.message.clone());
        return;
    }
    let phase = input.pod.spec.as_ref().map_or("Pending", |spec| phase(input, spec, status));
    status.phase = Some(phase.to_owned());
    if status.phase == input.old.phase {
        status.reason.clone_from(&input.old.reason);
        status.message.clone_from(&input.old.message);
    }
}

fn phase(input: &Input<'_>, spec: &PodSpec, status: &PodStatus) -> &'static str {
    let counts = count(spec, status);
    let initialized = spec
        .containers
        .iter()
        .any(|c| input.observed.newest(&c.name).is_some_and(|o| o.started_at.is_some()));
    if counts.failed_init > 0 {
        return "Failed";
    }
    if counts.pending_init > 0 || (counts.pending_sidecar > 0 && !initialized) || counts.waiting > 0 {
        // A pod that ends before all of it ran has failed.
        return if input.terminal && counts.running == 0 && counts.stopped > 0 {
            "Failed"
        } else {
            "Pending"
        };
    }
    if counts.running > 0 && counts.unknown == 0 {
        return "Running";
    }
    if counts.running > 0 || counts.stopped == 0 || counts.unknown > 0 {
        return "Pending";
    }
    if !input.terminal && counts.stopped != counts.stopped_for_good {
        return "Running";
    }
    if counts.stopped == counts.succeeded { "Succeeded" } else { "Failed" }
}

fn count(spec: &PodSpec, status: &PodStatus) -> Counts {
    let mut counts = Counts::default();
    for container in spec.init_containers.iter().flatten() {
        let found = find(&status.init_container_statuses, &container.name);
        match spec::init_sort(container) {
            Sort::Sidecar => count_sidecar(&mut counts, found),
            _ => count_init(&mut counts, spec, container, found),
        }
    }
    for container in &spec.containers {
        count_app(&mut counts, spec, container, find(&status.container_statuses, &container.name));
    }
    counts
}

fn find<'a>(statuses: &'a Option<Vec<ContainerStatus>>, name: &str) -> Option<&'a ContainerStatus> {
    statuses.iter().flatten().find(|s| s.name == name)
}

/// The exit code of the last end: of the state itself, or while waiting for a restart of the last state.
fn last_exit(status: &ContainerStatus) -> Option<i32> {
    let code = |state: &Option<ContainerState>| state.as_ref()?.terminated.as_ref().map(|t| t.exit_code);
    code(&status.state).or_else(|| code(&status.last_state))
}

fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.running.is_some())
}

fn is_terminated(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.terminated.is_some())
}

fn count_init(counts: &mut Counts, spec: &PodSpec, container: &Container, status: Option<&ContainerStatus>) {
    match status.filter(|s| !is_running(s)).and_then(last_exit) {
        None => counts.pending_init += 1,
        Some(0) => {}
        Some(code) if spec::restarts(spec, container, Sort::Init, code) => counts.pending_init += 1,
        Some(_) => counts.failed_init += 1,
    }
}

fn count_sidecar(counts: &mut Counts, status: Option<&ContainerStatus>) {
    let Some(status) = status else {
        counts.unknown += 1;
        return;
    };
    if is_running(status) {
        counts.running += 1;
        counts.pending_sidecar += usize::from(status.started != Some(true));
    } else if last_exit(status).is_none() {
        counts.pending_sidecar += 1;
        counts.waiting += 1;
    }
}

fn count_app(counts: &mut Counts, spec: &PodSpec, container: &Container, status: Option<&ContainerStatus>) {
    let Some(status) = status else {
        counts.unknown += 1;
        return;
    };
    if is_running(status) {
        counts.running += 1;
        return;
    }
    let Some(code) = last_exit(status) else {
        counts.waiting += 1;
        return;
    };
    counts.stopped += 1;
    counts.stopped_for_good += usize::from(!spec::restarts(spec, container, Sort::App, code));
    counts.succeeded += usize::from(is_terminated(status) && code == 0);
}
