//! Questions that a pod's spec answers: which containers of which sort, which restart policy holds for them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};

/// The sort of a container, which decides when it starts and whether it may be restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    /// Runs to completion before the next starts.
    Init,
    /// A restartable init container: started before the next, then kept running.
    Sidecar,
    App,
    /// Added to a running pod for debugging; never restarted.
    Ephemeral,
}

/// Kubernetes' restart policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

fn policy(text: Option<&str>) -> RestartPolicy {
    match text {
        Some("Never") => RestartPolicy::Never,
        Some("OnFailure") => RestartPolicy::OnFailure,
        _ => RestartPolicy::Always,
    }
}

/// `spec.restartPolicy`, Always by default.
pub(crate) fn restart_policy(spec: &PodSpec) -> RestartPolicy {
    policy(spec.restart_policy.as_deref())
}

/// Whether a container that ended with `exit_code` is to be started again.
pub(crate) fn restarts(spec: &PodSpec, container: &Container, sort: Sort, exit_code: i32) -> bool {
    if sort == Sort::Ephemeral {
        return false;
    }
    if sort == Sort::Sidecar {
        return true;
    }
    if restart_rule(container, exit_code).is_some_and(|action| action.starts_with("Restart")) {
        return true;
    }
    let policy =
        container.restart_policy.as_deref().map_or_else(|| restart_policy(spec), |p| policy(Some(p)));
    match policy {
        // An init container that has done its work stays done.
        RestartPolicy::Always => sort == Sort::App || exit_code != 0,
        RestartPolicy::OnFailure => exit_code != 0,
        RestartPolicy::Never => false,
    }
}

/// The action of a rule by which the end of one container is that of all.
const RESTART_ALL: &str = "RestartAllContainers";

/// What `restartPolicyRules` ask for; a rule goes before every policy.
fn restart_rule(container: &Container, exit_code: i32) -> Option<&str> {
    let matches = container.restart_policy_rules.iter().flatten().find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.iter().flatten().any(|v| *v == exit_code);
            match codes.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            }
        })
    });
    matches.map(|rule| rule.action.as_str())
}

/// Whether the end of a container is the end of all containers of its pod, which then start from the first init
/// container (KEP-5532).
pub(crate) fn restarts_all(container: &Container, exit_code: i32) -> bool {
    restart_rule(container, exit_code) == Some(RESTART_ALL)
}

/// Whether some end of a container would be the end of all containers of the pod.
pub(crate) fn may_restart_all(spec: &PodSpec) -> bool {
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    all.flat_map(|c| c.restart_policy_rules.iter().flatten()).any(|rule| rule.action == RESTART_ALL)
}

/// The sort of one entry of `spec.initContainers`.
pub(crate) fn init_sort(container: &Container) -> Sort {
    if container.restart_policy.as_deref() == Some("Always") { Sort::Sidecar } else { Sort::Init }
}

/// An ephemeral container's spec in the form that all others have; only `targetContainerName` is left out.
pub(crate) fn ephemeral(container: &EphemeralContainer) -> Container {
    Container {
        args: container.args.clone(),
        command: container.command.clone(),
        env: container.env.clone(),
        env_from: container.env_from.clone(),
        image: container.image.clone(),
        image_pull_policy: container.image_pull_policy.clone(),
        name: container.name.clone(),
        resources: container.resources.clone(),
        security_context: container.security_context.clone(),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        termination_message_path: container.termination_message_path.clone(),
        termination_message_policy: container.termination_message_policy.clone(),
        tty: container.tty,
        volume_mounts: container.volume_mounts.clone(),
        working_dir: container.working_dir.clone(),
        ..Container::default()
    }
}

/// Finds a container of any sort by its name.
pub(crate) fn find(spec: &PodSpec, name: &str) -> Option<(Container, Sort)> {
    if let Some(c) = spec.containers.iter().find(|c| c.name == name) {
        return Some((c.clone(), Sort::App));
    }
    if let Some(c) = spec.init_containers.iter().flatten().find(|c| c.name == name) {
        return Some((c.clone(), init_sort(c)));
    }
    let c = spec.ephemeral_containers.iter().flatten().find(|c| c.name == name)?;
    Some((ephemeral(c), Sort::Ephemeral))
}

/// Changes when a field changes for which Kubernetes replaces the running container: name and image.
pub(crate) fn hash(container: &Container) -> String {
    // DefaultHasher::new() has fixed keys, so that the value survives a restart of the agent.
    let mut hasher = DefaultHasher::new();
    container.name.hash(&mut hasher);
    container.image.hash(&mut hasher);
    format!("{:x}", hasher.finish())
}

/// `spec.terminationGracePeriodSeconds`, 30 s by default.
pub(crate) fn grace(spec: &PodSpec) -> Duration {
    seconds(spec.termination_grace_period_seconds.unwrap_or(30))
}

/// The grace that a deletion asks for; a pod that is being deleted has at least one second, as in Kubernetes.
pub(crate) fn deletion_grace(pod: &Pod) -> Option<Duration> {
    pod.metadata.deletion_timestamp.as_ref()?;
    let spec_grace = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(spec_grace);
    Some(seconds(grace.max(1)))
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// The pod's uid; every object that an API server returns has one.
pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// The pod's namespace.
pub(crate) fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// The pod's name.
pub(crate) fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// Whether the pod shares the node's network.
pub(crate) fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.host_network) == Some(true)
}
