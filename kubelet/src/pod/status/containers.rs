//! `containerStatuses`, `initContainerStatuses` and `ephemeralContainerStatuses`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, LinuxContainerUser, PodStatus, VolumeMountStatus,
};

use super::super::observed::{self, State};
use super::super::spec::{self, Sort};
use super::{Input, whole_seconds};

/// Exit code by which Kubernetes reports a container whose end nobody saw (128 + SIGKILL).
const LOST_EXIT_CODE: i32 = 137;

/// Kubernetes' limit for the termination messages of a pod's containers together, in bytes.
const MESSAGES_LIMIT: usize = 12 * 1024;

/// `<runtime>://<id>`, as `containerID` is written.
pub(crate) fn id_of(runtime: &str, id: &str) -> String {
    format!("{runtime}://{id}")
}

/// Fills in the three lists.
pub(super) fn fill(input: &Input<'_>, status: &mut PodStatus) {
    let Some(pod_spec) = input.pod.spec.as_ref() else { return };
    let old = input.old;
    let mut inits: Vec<ContainerStatus> = pod_spec
        .init_containers
        .iter()
        .flatten()
        .map(|c| one(input, c, spec::init_sort(c), find(&old.init_container_statuses, &c.name)))
        .collect();
    let mut apps: Vec<ContainerStatus> = pod_spec
        .containers
        .iter()
        .map(|c| one(input, c, Sort::App, find(&old.container_statuses, &c.name)))
        .collect();
    let share = MESSAGES_LIMIT / (inits.len() + apps.len()).max(1);
    inits.iter_mut().chain(&mut apps).for_each(|status| shorten(status, share));
    apps.sort_by(|a, b| a.name.cmp(&b.name));
    let ephemeral: Vec<ContainerStatus> = pod_spec
        .ephemeral_containers
        .iter()
        .flatten()
        .map(|c| {
            let old = find(&old.ephemeral_container_statuses, &c.name);
            one(input, &spec::ephemeral(c), Sort::Ephemeral, old)
        })
        .collect();
    status.init_container_statuses = Some(inits).filter(|s| !s.is_empty());
    status.container_statuses = Some(apps).filter(|s| !s.is_empty());
    status.ephemeral_container_statuses = Some(ephemeral).filter(|s| !s.is_empty());
}

/// Cuts the messages of a container to its share of what the pod may say.
fn shorten(status: &mut ContainerStatus, share: usize) {
    for state in [&mut status.state, &mut status.last_state].into_iter().flatten() {
        let message = state.terminated.as_mut().and_then(|t| t.message.as_mut());
        if let Some(message) = message.filter(|m| m.len() > share) {
            message.truncate(message.floor_char_boundary(share));
        }
    }
}

fn find<'a>(statuses: &'a Option<Vec<ContainerStatus>>, name: &str) -> Option<&'a ContainerStatus> {
    statuses.iter().flatten().find(|s| s.name == name)
}

fn one(
    input: &Input<'_>,
    container: &Container,
    sort: Sort,
    old: Option<&ContainerStatus>,
) -> ContainerStatus {
    let mut status = match input.observed.newest(&container.name) {
        Some(current) => seen(input, container, current),
        None => unseen(input, container, sort, old),
    };
    if let Some(previous) = input.observed.previous(&container.name) {
        status.last_state = Some(state(input, previous));
    } else if status.last_state.is_none() {
        // The attempt before may have been removed from the runtime; the API server still has it.
        let newer = old.is_some_and(|o| o.restart_count < status.restart_count);
        status.last_state = old
            .and_then(|o| if newer && !waits(o) { o.state.clone() } else { o.last_state.clone() })
            .filter(|s| s.terminated.is_some());
    }
    wait(input, container, sort, &mut status);
    readiness(input, container, sort, &mut status);
    status.volume_mounts = mounts(container);
    status
}

/// Whether a container is to start: how it ended is its last state then.
fn waits(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.waiting.is_some())
}

/// What the runtime has.
fn seen(input: &Input<'_>, container: &Container, current: &observed::Container) -> ContainerStatus {
    let image = if current.image.is_empty() { container.image.clone() } else { Some(current.image.clone()) };
    ContainerStatus {
        name: container.name.clone(),
        container_id: Some(id_of(input.runtime, &current.id)),
        image: image.unwrap_or_default(),
        image_id: current.image_id.clone(),
        restart_count: i32::try_from(current.attempt).unwrap_or(i32::MAX),
        state: Some(state(input, current)),
        allocated_resources: container.resources.as_ref().and_then(|r| r.requests.clone()),
        resources: container.resources.clone(),
        user: current.user.as_ref().map(|(uid, gid, groups)| ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: *uid,
                gid: *gid,
                supplemental_groups: Some(groups.clone()).filter(|g| !g.is_empty()),
            }),
        }),
        ..ContainerStatus::default()
    }
}

/// Nothing in the runtime: not started yet, or lost.
fn unseen(
    input: &Input<'_>,
    container: &Container,
    sort: Sort,
    old: Option<&ContainerStatus>,
) -> ContainerStatus {
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        restart_count: old.map_or(0, |o| o.restart_count),
        state: Some(waiting(default_reason(input), String::new())),
        ..ContainerStatus::default()
    };
    let Some(old) = old.filter(|o| o.container_id.is_some()) else {
        return status;
    };
    let kept = old.state.as_ref().is_some_and(|s| s.terminated.is_some());
    if kept && (input.terminal || sort == Sort::Init) {
        return old.clone();
    }
    status.container_id.clone_from(&old.container_id);
    status.image_id.clone_from(&old.image_id);
    if waits(old) && !input.terminal {
        status.last_state.clone_from(&old.last_state);
        return status;
    }
    let lost = ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: LOST_EXIT_CODE,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some("The container could not be located when the pod was terminated".to_owned()),
            container_id: old.container_id.clone(),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    };
    let ended = if kept { old.state.clone().unwrap_or(lost) } else { lost };
    if input.terminal {
        status.state = Some(ended);
    } else {
        status.last_state = Some(ended);
    }
    status
}

fn default_reason(input: &Input<'_>) -> &'static str {
    let inits = input.pod.spec.as_ref().and_then(|s| s.init_containers.as_ref());
    if inits.is_some_and(|i| !i.is_empty()) { "PodInitializing" } else { "ContainerCreating" }
}

fn waiting(reason: &str, message: String) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: Some(message).filter(|m| !m.is_empty()),
        }),
        ..ContainerState::default()
    }
}

fn state(input: &Input<'_>, container: &observed::Container) -> ContainerState {
    match container.state {
        State::Running if input.hooked.contains(&container.name) => {
            waiting(default_reason(input), String::new())
        }
        State::Running => ContainerState {
            running: Some(ContainerStateRunning { started_at: container.started_at.map(whole_seconds) }),
            ..ContainerState::default()
        },
        State::Exited => ContainerState {
            terminated: Some(terminated(input.runtime, container, input.messages)),
            ..ContainerState::default()
        },
        State::Created | State::Unknown => waiting(default_reason(input), String::new()),
    }
}

fn terminated(
    runtime: &str,
    container: &observed::Container,
    messages: &BTreeMap<String, String>,
) -> ContainerStateTerminated {
    let reason = match (container.reason.as_str(), container.exit_code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    let message = messages.get(&container.id).unwrap_or(&container.message);
    ContainerStateTerminated {
        container_id: Some(id_of(runtime, &container.id)),
        exit_code: container.exit_code,
        reason: Some(reason.to_owned()),
        message: Some(message.clone()).filter(|m| !m.is_empty()),
        started_at: container.started_at.map(whole_seconds),
        finished_at: container.finished_at.map(whole_seconds),
        signal: None,
    }
}

/// A container that is to start but cannot is *waiting*, and its last end moves to `lastState`.
fn wait(input: &Input<'_>, container: &Container, sort: Sort, status: &mut ContainerStatus) {
    let Some(reason) = input.waiting.get(&container.name) else { return };
    if input.terminal {
        return;
    }
    let current = input.observed.newest(&container.name);
    let spec = input.pod.spec.as_ref();
    let restarts = match current {
        Some(c) if c.state == State::Running => false,
        Some(c) if c.state == State::Exited => {
            spec.is_some_and(|s| spec::restarts(s, container, sort, c.exit_code))
        }
        _ => true,
    };
    if !restarts {
        return;
    }
    if status.state.as_ref().is_some_and(|s| s.terminated.is_some()) {
        status.last_state = status.state.take();
    }
    status.state = Some(waiting(reason.reason, reason.message.clone()));
}

/// `started` and `ready` follow the probes while the container runs; an init container is ready once it did its work.
fn readiness(input: &Input<'_>, container: &Container, sort: Sort, status: &mut ContainerStatus) {
    let running = status.state.as_ref().is_some_and(|s| s.running.is_some());
    let current = input.observed.newest(&container.name).filter(|_| running);
    let started = current.is_some_and(|c| input.verdicts.startup(container, &c.id) == Some(true));
    status.started = Some(started);
    status.ready = if sort == Sort::Init {
        status.state.as_ref().and_then(|s| s.terminated.as_ref()).is_some_and(|t| t.exit_code == 0)
    } else {
        started && current.is_some_and(|c| input.verdicts.readiness(container, &c.id))
    };
}

fn mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts: Vec<VolumeMountStatus> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: mount.read_only.filter(|ro| *ro),
            recursive_read_only: mount
                .read_only
                .filter(|ro| *ro)
                .map(|_| mount.recursive_read_only.clone().unwrap_or_else(|| "Disabled".to_owned())),
            ..VolumeMountStatus::default()
        })
        .collect();
    Some(mounts).filter(|m| !m.is_empty())
}
