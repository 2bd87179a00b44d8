//! The runtime's view of a pod: CRI sandbox and container configurations made from the API object. Pure.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use decapod_api::quantity::Quantity;
use decapod_proto::cri;
use k8s_openapi::api::core::v1::{
    Container, Pod, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext,
};

use crate::files::Dns;
use crate::pod::spec::Sort;
use crate::pod::{admit, mark, qos, spec};
use crate::users::Users;

/// Kubernetes' default for `terminationMessagePath`.
const MESSAGE_PATH: &str = "/dev/termination-log";

/// Paths that a container does not see, by Kubernetes' default.
const MASKED_PATHS: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// Paths that a container cannot write, by Kubernetes' default.
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Why a container cannot be configured as its spec says (`CreateContainerConfigError`).
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Error {
    #[error("container's runAsUser breaks non-root policy (pod: \"{pod}\", container: {container})")]
    RunsAsRoot { pod: String, container: String },
    #[error("container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})")]
    ImageRunsAsRoot { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root \
         (pod: \"{pod}\", container: {container})"
    )]
    ImageUserUnknown { user: String, pod: String, container: String },
}

/// What all configurations of a pod depend on.
pub(crate) struct PodFacts<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) spec: &'a PodSpec,
    pub(crate) cgroup_parent: String,
    pub(crate) log_directory: PathBuf,
    pub(crate) host_name: String,
    /// Below which seccomp profiles of the node lie.
    pub(crate) seccomp_root: PathBuf,
    pub(crate) dns: Dns,
    /// The pod's ids, if it has a user namespace of its own.
    pub(crate) users: Option<Users>,
}

fn pod_labels(pod: &Pod) -> HashMap<String, String> {
    [
        (mark::POD_NAME, spec::name(pod)),
        (mark::POD_NAMESPACE, spec::namespace(pod)),
        (mark::POD_UID, spec::uid(pod)),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .collect()
}

/// The configuration of the pod's sandbox.
pub(crate) fn sandbox(facts: &PodFacts<'_>, attempt: u32) -> cri::PodSandboxConfig {
    let (pod, pod_spec) = (facts.pod, facts.spec);
    let mut labels = pod_labels(pod);
    labels.extend(pod.metadata.labels.iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
    let host_network = pod_spec.host_network == Some(true);
    let mut annotations: HashMap<String, String> =
        pod.metadata.annotations.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    annotations.insert(mark::CGROUP_PARENT.to_owned(), facts.cgroup_parent.clone());
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: spec::name(pod).to_owned(),
            uid: spec::uid(pod).to_owned(),
            namespace: spec::namespace(pod).to_owned(),
            attempt,
        }),
        hostname: if host_network { String::new() } else { facts.host_name.clone() },
        log_directory: facts.log_directory.to_string_lossy().into_owned(),
        dns_config: Some(cri::DnsConfig {
            servers: facts.dns.servers.clone(),
            searches: facts.dns.searches.clone(),
            options: facts.dns.options.clone(),
        }),
        port_mappings: if host_network { Vec::new() } else { port_mappings(pod_spec) },
        labels,
        annotations,
        linux: Some(linux_sandbox(facts)),
    }
}

fn linux_sandbox(facts: &PodFacts<'_>) -> cri::LinuxPodSandboxConfig {
    let context = facts.spec.security_context.as_ref();
    let all = facts.spec.containers.iter().chain(facts.spec.init_containers.iter().flatten());
    let privileged =
        all.into_iter().any(|c| c.security_context.as_ref().and_then(|s| s.privileged) == Some(true));
    let sysctls = context
        .and_then(|c| c.sysctls.as_ref())
        .into_iter()
        .flatten()
        .map(|s| (admit::sysctl_name(&s.name), s.value.clone()))
        .collect();
    cri::LinuxPodSandboxConfig {
        cgroup_parent: facts.cgroup_parent.clone(),
        security_context: Some(cri::LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces(facts)),
            run_as_user: context.and_then(|c| c.run_as_user).map(int),
            run_as_group: context.and_then(|c| c.run_as_group).map(int),
            supplemental_groups: groups(context),
            supplemental_groups_policy: groups_policy(context).into(),
            privileged,
            seccomp: context.and_then(|c| c.seccomp_profile.as_ref()).map(|p| seccomp(facts, p)),
            ..Default::default()
        }),
        sysctls,
        resources: Some(resources(qos::pod(facts.spec), 0)),
        ..Default::default()
    }
}

fn int(value: i64) -> cri::Int64Value {
    cri::Int64Value { value }
}

fn groups(context: Option<&PodSecurityContext>) -> Vec<i64> {
    let mut groups: Vec<i64> =
        context.and_then(|c| c.supplemental_groups.as_ref()).into_iter().flatten().copied().collect();
    groups.extend(context.and_then(|c| c.fs_group));
    groups
}

/// Whether the groups of the user in the image count as well; by Kubernetes' default they do.
fn groups_policy(context: Option<&PodSecurityContext>) -> cri::SupplementalGroupsPolicy {
    match context.and_then(|c| c.supplemental_groups_policy.as_deref()) {
        Some("Strict") => cri::SupplementalGroupsPolicy::Strict,
        _ => cri::SupplementalGroupsPolicy::Merge,
    }
}

fn port_mappings(pod_spec: &PodSpec) -> Vec<cri::PortMapping> {
    let all = pod_spec.containers.iter().chain(pod_spec.init_containers.iter().flatten());
    all.flat_map(|c| c.ports.iter().flatten())
        .filter(|p| p.host_port.is_some_and(|h| h > 0))
        .map(|p| cri::PortMapping {
            protocol: match p.protocol.as_deref() {
                Some("UDP") => cri::Protocol::Udp,
                Some("SCTP") => cri::Protocol::Sctp,
                _ => cri::Protocol::Tcp,
            }
            .into(),
            container_port: p.container_port,
            host_port: p.host_port.unwrap_or(0),
            host_ip: p.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

fn namespaces(facts: &PodFacts<'_>) -> cri::NamespaceOption {
    let pod_spec = facts.spec;
    let node = |on: Option<bool>, else_: cri::NamespaceMode| -> i32 {
        if on == Some(true) { cri::NamespaceMode::Node.into() } else { else_.into() }
    };
    let own = if pod_spec.share_process_namespace == Some(true) {
        cri::NamespaceMode::Pod
    } else {
        cri::NamespaceMode::Container
    };
    cri::NamespaceOption {
        network: node(pod_spec.host_network, cri::NamespaceMode::Pod),
        pid: node(pod_spec.host_pid, own),
        ipc: node(pod_spec.host_ipc, cri::NamespaceMode::Pod),
        userns_options: facts.users.map(Users::namespace),
        ..Default::default()
    }
}

fn seccomp(facts: &PodFacts<'_>, profile: &SeccompProfile) -> cri::SecurityProfile {
    let (kind, reference) = match profile.type_.as_str() {
        "Unconfined" => (cri::security_profile::ProfileType::Unconfined, String::new()),
        "Localhost" => (
            cri::security_profile::ProfileType::Localhost,
            // The API server has seen to it that no part of the name is `..`.
            facts
                .seccomp_root
                .join(profile.localhost_profile.as_deref().unwrap_or_default().trim_start_matches('/'))
                .to_string_lossy()
                .into_owned(),
        ),
        _ => (cri::security_profile::ProfileType::RuntimeDefault, String::new()),
    };
    cri::SecurityProfile { profile_type: kind.into(), localhost_ref: reference }
}

fn resources(limits: qos::Limits, oom_score: i64) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        cpu_period: qos::CPU_PERIOD_US,
        // CRI writes "unlimited" as -1 for the quota and as 0 for memory.
        cpu_quota: limits.quota.unwrap_or(-1),
        cpu_shares: i64::try_from(limits.shares).unwrap_or(0),
        memory_limit_in_bytes: limits.memory.unwrap_or(0),
        oom_score_adj: oom_score,
        ..Default::default()
    }
}

/// How much of the machine's huge pages a container may use, by their size as the kernel writes it.
fn hugepages(container: &Container) -> Vec<cri::HugepageLimit> {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    let limits = limits.into_iter().flatten().filter_map(|(name, limit)| {
        let size = name.strip_prefix("hugepages-")?.parse::<Quantity>().ok()?.units();
        let limit = Quantity::try_from(limit).ok()?.units();
        let page_size = match size {
            size if size >= 1 << 30 => format!("{}GB", size >> 30),
            size if size >= 1 << 20 => format!("{}MB", size >> 20),
            size => format!("{}KB", size >> 10),
        };
        Some(cri::HugepageLimit { page_size, limit: u64::try_from(limit).ok()? })
    });
    limits.collect()
}

/// What one container's configuration depends on beside its pod.
pub(crate) struct ContainerFacts<'a> {
    pub(crate) container: &'a Container,
    pub(crate) sort: Sort,
    pub(crate) attempt: u32,
    pub(crate) backoff: Duration,
    /// The image as the runtime resolved it, and as the spec names it.
    pub(crate) image: &'a cri::Image,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) command: Vec<String>,
    pub(crate) args: Vec<String>,
    pub(crate) mounts: Vec<cri::Mount>,
    pub(crate) devices: Vec<cri::Device>,
    pub(crate) node_memory: i64,
    /// The container into whose process namespace an ephemeral container goes.
    pub(crate) target: Option<String>,
}

/// Where a container's log lies below the pod's log directory.
pub(crate) fn log_path(name: &str, attempt: u32) -> String {
    format!("{name}/{attempt}.log")
}

/// The path of the termination message inside the container.
pub(crate) fn message_path(container: &Container) -> &str {
    container.termination_message_path.as_deref().filter(|p| !p.is_empty()).unwrap_or(MESSAGE_PATH)
}

/// The configuration of one container.
///
/// # Errors
/// When the spec forbids root and the container would run as root.
pub(crate) fn container(
    pod: &PodFacts<'_>,
    facts: ContainerFacts<'_>,
) -> Result<cri::ContainerConfig, Error> {
    let spec = facts.container;
    check_user(pod, &facts)?;
    let mut labels = pod_labels(pod.pod);
    labels.insert(mark::CONTAINER_NAME.to_owned(), spec.name.clone());
    let policy = spec.termination_message_policy.as_deref().unwrap_or("File");
    let annotations = [
        (mark::HASH, spec::hash(spec)),
        (mark::RESTART_COUNT, facts.attempt.to_string()),
        (mark::MESSAGE_PATH, message_path(spec).to_owned()),
        (mark::MESSAGE_POLICY, policy.to_owned()),
        (mark::BACKOFF, facts.backoff.as_secs().to_string()),
    ];
    let stop_signal = spec.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref());
    let linux = linux_container(pod, &facts);
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: spec.name.clone(), attempt: facts.attempt }),
        image: Some(cri::ImageSpec {
            image: facts.image.id.clone(),
            user_specified_image: spec.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: facts.command,
        args: facts.args,
        working_dir: spec.working_dir.clone().unwrap_or_default(),
        envs: facts
            .environment
            .into_iter()
            .map(|(key, value)| cri::KeyValue { key, value: value.into_bytes() })
            .collect(),
        mounts: facts.mounts,
        devices: facts.devices,
        labels,
        annotations: annotations.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        log_path: log_path(&spec.name, facts.attempt),
        stdin: spec.stdin == Some(true),
        stdin_once: spec.stdin_once == Some(true),
        tty: spec.tty == Some(true),
        linux: Some(linux),
        stop_signal: stop_signal.and_then(cri::Signal::from_str_name).unwrap_or_default().into(),
        ..Default::default()
    })
}

/// Container settings win over pod settings.
fn setting<T>(
    pod: &PodFacts<'_>,
    container: &Container,
    of_container: impl Fn(&SecurityContext) -> Option<T>,
    of_pod: impl Fn(&PodSecurityContext) -> Option<T>,
) -> Option<T> {
    let own = container.security_context.as_ref().and_then(of_container);
    own.or_else(|| pod.spec.security_context.as_ref().and_then(of_pod))
}

fn check_user(pod: &PodFacts<'_>, facts: &ContainerFacts<'_>) -> Result<(), Error> {
    let container = facts.container;
    if setting(pod, container, |c| c.run_as_non_root, |p| p.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let pod_name = format!("{}_{}({})", spec::name(pod.pod), spec::namespace(pod.pod), spec::uid(pod.pod));
    let name = container.name.clone();
    if let Some(user) = setting(pod, container, |c| c.run_as_user, |p| p.run_as_user) {
        return if user == 0 { Err(Error::RunsAsRoot { pod: pod_name, container: name }) } else { Ok(()) };
    }
    match (&facts.image.uid, facts.image.username.as_str()) {
        (Some(uid), _) if uid.value == 0 => Err(Error::ImageRunsAsRoot { pod: pod_name, container: name }),
        (Some(_), _) => Ok(()),
        (None, "") => Err(Error::ImageRunsAsRoot { pod: pod_name, container: name }),
        (None, user) => {
            Err(Error::ImageUserUnknown { user: user.to_owned(), pod: pod_name, container: name })
        }
    }
}

fn linux_container(pod: &PodFacts<'_>, facts: &ContainerFacts<'_>) -> cri::LinuxContainerConfig {
    let container = facts.container;
    let context = container.security_context.as_ref();
    let user = setting(pod, container, |c| c.run_as_user, |p| p.run_as_user);
    let uid = user.map(int).or(facts.image.uid);
    let user_name = if uid.is_none() { facts.image.username.clone() } else { String::new() };
    let group = setting(pod, container, |c| c.run_as_group, |p| p.run_as_group);
    let privileged = context.and_then(|c| c.privileged) == Some(true);
    let unmasked = privileged || context.and_then(|c| c.proc_mount.as_deref()) == Some("Unmasked");
    let paths = |list: &[&str]| -> Vec<String> {
        if unmasked { Vec::new() } else { list.iter().map(|p| (*p).to_owned()).collect() }
    };
    let capabilities = context.and_then(|c| c.capabilities.as_ref());
    let mut namespace_options = namespaces(pod);
    if let (Sort::Ephemeral, Some(target)) = (facts.sort, &facts.target) {
        namespace_options.pid = cri::NamespaceMode::Target.into();
        namespace_options.target_id.clone_from(target);
    }
    let profile = setting(pod, container, |c| c.seccomp_profile.clone(), |p| p.seccomp_profile.clone());
    cri::LinuxContainerConfig {
        resources: Some(cri::LinuxContainerResources {
            hugepage_limits: hugepages(container),
            ..resources(qos::container(container), qos::oom_score(pod.spec, container, facts.node_memory))
        }),
        security_context: Some(cri::LinuxContainerSecurityContext {
            capabilities: Some(cri::Capability {
                add_capabilities: capabilities.and_then(|c| c.add.clone()).unwrap_or_default(),
                drop_capabilities: capabilities.and_then(|c| c.drop.clone()).unwrap_or_default(),
                add_ambient_capabilities: Vec::new(),
            }),
            privileged,
            namespace_options: Some(namespace_options),
            run_as_user: uid,
            run_as_group: group.map(int),
            run_as_username: user_name,
            readonly_rootfs: context.and_then(|c| c.read_only_root_filesystem) == Some(true),
            supplemental_groups: groups(pod.spec.security_context.as_ref()),
            supplemental_groups_policy: groups_policy(pod.spec.security_context.as_ref()).into(),
            no_new_privs: context.and_then(|c| c.allow_privilege_escalation) == Some(false),
            masked_paths: paths(&MASKED_PATHS),
            readonly_paths: paths(&READONLY_PATHS),
            seccomp: Some(profile.as_ref().map_or_else(|| default_seccomp(privileged), |p| seccomp(pod, p))),
            ..Default::default()
        }),
    }
}

/// Secure by default: the runtime's filter, except for a container that may do everything anyhow.
fn default_seccomp(privileged: bool) -> cri::SecurityProfile {
    let kind = if privileged {
        cri::security_profile::ProfileType::Unconfined
    } else {
        cri::security_profile::ProfileType::RuntimeDefault
    };
    cri::SecurityProfile { profile_type: kind.into(), localhost_ref: String::new() }
}

/// The pod's log directory: `<namespace>_<name>_<uid>`, as all log collectors expect it.
pub(crate) fn log_directory(root: &Path, namespace: &str, name: &str, uid: &str) -> PathBuf {
    root.join(format!("{namespace}_{name}_{uid}"))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
