//! The Node object as it should be. Pure.

use std::collections::{BTreeMap, BTreeSet};

use decapod_api::quantity::Quantity;
use decapod_proto::cri;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::facts::{Machine, architecture};
use crate::Options;
use crate::eviction::Pressure;
use crate::eviction::threshold::Signal;

/// Images listed in the status, the largest first: Kubernetes' default bound.
const MAX_IMAGES: usize = 50;
/// Names listed of one image, as in Kubernetes.
const MAX_NAMES: usize = 5;

/// What the runtime says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RuntimeState {
    Ready,
    /// `container runtime is down` or the network's reason.
    NotReady(String),
}

/// What the status is made from.
pub(crate) struct Input<'a> {
    pub(crate) options: &'a Options,
    pub(crate) machine: Machine,
    pub(crate) pressures: &'a BTreeSet<Pressure>,
    pub(crate) info: &'a NodeSystemInfo,
    pub(crate) images: &'a [cri::Image],
    /// The ways to run a pod, as the runtime tells of them.
    pub(crate) handlers: &'a [cri::RuntimeHandler],
    pub(crate) runtime: &'a RuntimeState,
    pub(crate) now: Timestamp,
}

/// Labels that each node has.
pub(crate) fn labels(options: &Options) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", options.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .collect();
    labels.extend(options.labels.clone());
    labels
}

/// The Node to register; not ready until the first status says so.
pub(crate) fn node(options: &Options, status: NodeStatus) -> Node {
    Node {
        metadata: ObjectMeta {
            name: Some(options.node_name.clone()),
            labels: Some(labels(options)),
            annotations: Some(
                [("volumes.kubernetes.io/controller-managed-attach-detach".to_owned(), "true".to_owned())]
                    .into(),
            ),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: Some(options.taints.clone()).filter(|t| !t.is_empty()),
            ..NodeSpec::default()
        }),
        status: Some(status),
    }
}

/// The status; `old` gives the times of conditions that did not change.
pub(crate) fn status(input: &Input<'_>, old: Option<&NodeStatus>) -> NodeStatus {
    let options = input.options;
    let mut addresses: Vec<NodeAddress> =
        options.node_ips.iter().map(|ip| address("InternalIP", &ip.to_string())).collect();
    addresses.push(address("Hostname", &options.node_name));
    let port = options.server.as_ref().map(|s| i32::from(s.listen.port()));
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(resources(input, input.machine)),
        allocatable: Some(resources(input, allocatable(input))),
        conditions: Some(conditions(input, old)),
        daemon_endpoints: port
            .map(|port| NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port }) }),
        images: Some(images(input.images)).filter(|i| !i.is_empty()),
        node_info: Some(input.info.clone()),
        runtime_handlers: Some(handlers(input.handlers)).filter(|handlers| !handlers.is_empty()),
        features: Some(NodeFeatures { supplemental_groups_policy: Some(true) }),
        ..NodeStatus::default()
    }
}

fn handlers(handlers: &[cri::RuntimeHandler]) -> Vec<NodeRuntimeHandler> {
    let handlers = handlers.iter().map(|handler| {
        let features = handler.features.unwrap_or_default();
        NodeRuntimeHandler {
            name: Some(handler.name.clone()),
            features: Some(NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(features.recursive_read_only_mounts),
                user_namespaces: Some(features.user_namespaces),
            }),
        }
    });
    let mut handlers: Vec<NodeRuntimeHandler> = handlers.collect();
    handlers.sort_by(|a, b| a.name.cmp(&b.name));
    handlers
}

fn address(kind: &str, address: &str) -> NodeAddress {
    NodeAddress { type_: kind.to_owned(), address: address.to_owned() }
}

/// What pods can have: not what is reserved, nor what hard eviction thresholds keep free.
fn allocatable(input: &Input<'_>) -> Machine {
    let (machine, options) = (input.machine, input.options);
    let less = |all: i64, reserved: u64, signal: Option<Signal>| {
        let kept = signal.map_or(0, |signal| options.eviction.reserve(signal, all.unsigned_abs()));
        all.saturating_sub_unsigned(reserved.saturating_add(kept)).max(0)
    };
    let reserved = options.reserved;
    Machine {
        cpu_millis: less(machine.cpu_millis, reserved.cpu, None),
        memory: less(machine.memory, reserved.memory, Some(Signal::MemoryAvailable)),
        disk: less(machine.disk, reserved.storage, Some(Signal::NodeFsAvailable)),
        ..machine
    }
}

fn resources(input: &Input<'_>, machine: Machine) -> BTreeMap<String, ApiQuantity> {
    let hugepages = machine.hugepages;
    [
        ("cpu", Quantity::from_millis(machine.cpu_millis)),
        ("memory", Quantity::from_bytes(machine.memory)),
        ("ephemeral-storage", Quantity::from_bytes(machine.disk)),
        ("pods", Quantity::from_units(i64::from(input.options.max_pods))),
        ("hugepages-1Gi", Quantity::from_bytes(hugepages.gibibytes << 30)),
        ("hugepages-2Mi", Quantity::from_bytes(hugepages.two_mebibytes << 21)),
    ]
    .into_iter()
    .map(|(name, amount)| (name.to_owned(), amount.into()))
    .collect()
}

fn images(images: &[cri::Image]) -> Vec<ContainerImage> {
    let mut images: Vec<&cri::Image> = images.iter().collect();
    images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    images
        .into_iter()
        .take(MAX_IMAGES)
        .map(|image| {
            let names = image.repo_digests.iter().chain(&image.repo_tags).take(MAX_NAMES);
            let names: Vec<String> = names.cloned().collect();
            ContainerImage { names: Some(names), size_bytes: i64::try_from(image.size).ok() }
        })
        .collect()
}

/// A condition's type, status, reason and message.
type Verdict = (&'static str, bool, &'static str, String);

fn pressure(kind: &'static str, yes: bool, bad: (&'static str, &str), good: (&'static str, &str)) -> Verdict {
    let (reason, message) = if yes { bad } else { good };
    (kind, yes, reason, message.to_owned())
}

fn conditions(input: &Input<'_>, old: Option<&NodeStatus>) -> Vec<NodeCondition> {
    let short = |of: Pressure| input.pressures.contains(&of);
    let ready: Verdict = match input.runtime {
        RuntimeState::Ready => ("Ready", true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        RuntimeState::NotReady(why) => ("Ready", false, "KubeletNotReady", why.clone()),
    };
    let verdicts = [
        pressure(
            "MemoryPressure",
            short(Pressure::Memory),
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        pressure(
            "DiskPressure",
            short(Pressure::Disk),
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        pressure(
            "PIDPressure",
            short(Pressure::Pid),
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
        ready,
    ];
    // What others write (NetworkUnavailable and the like) stays.
    let owned: Vec<&str> = verdicts.iter().map(|v| v.0).collect();
    let all = old.and_then(|o| o.conditions.as_ref()).into_iter().flatten();
    let mut conditions: Vec<NodeCondition> =
        all.clone().filter(|c| !owned.contains(&c.type_.as_str())).cloned().collect();
    for (kind, yes, reason, message) in verdicts {
        let status = if yes { "True" } else { "False" };
        let before = all.clone().find(|c| c.type_ == kind);
        let since = before.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
        let now = Time(Timestamp::from_second(input.now.as_second()).unwrap_or(input.now));
        conditions.push(NodeCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: Some(since.unwrap_or(now)),
        });
    }
    conditions
}

/// Whether two statuses differ in more than the time of the heartbeat.
pub(crate) fn differs(old: &NodeStatus, new: &NodeStatus) -> bool {
    let plain = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status.conditions.iter_mut().for_each(|c| c.sort_by(|a, b| a.type_.cmp(&b.type_)));
        NodeStatus {
            addresses: status.addresses,
            capacity: status.capacity,
            allocatable: status.allocatable,
            conditions: status.conditions,
            daemon_endpoints: status.daemon_endpoints,
            images: status.images,
            node_info: status.node_info,
            runtime_handlers: status.runtime_handlers,
            ..NodeStatus::default()
        }
    };
    plain(old) != plain(new)
}

#[cfg(test)]
mod tests {
    use super::super::facts::HugePages;
    use super::*;

    static NONE: BTreeSet<Pressure> = BTreeSet::new();

    fn input<'a>(options: &'a Options, info: &'a NodeSystemInfo, runtime: &'a RuntimeState) -> Input<'a> {
        Input {
            options,
            machine: Machine {
                cpu_millis: 2000,
                memory: 4 << 30,
                disk: 50 << 30,
                hugepages: HugePages { two_mebibytes: 4, gibibytes: 0 },
            },
            pressures: &NONE,
            info,
            images: &[],
            handlers: &[],
            runtime,
            now: Timestamp::UNIX_EPOCH,
        }
    }

    fn condition<'a>(status: &'a NodeStatus, kind: &str) -> &'a NodeCondition {
        status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap()
    }

    #[test]
    fn what_is_reserved_is_not_allocatable() {
        let mut options = Options::new("n1", vec!["192.0.2.1".parse().unwrap()]);
        options.reserved = crate::options::Reserved { cpu: 250, memory: 412 << 20, storage: 0 };
        let (info, ready) = (NodeSystemInfo::default(), RuntimeState::Ready);
        let status = status(&input(&options, &info, &ready), None);
        let amounts = |map: Option<BTreeMap<String, ApiQuantity>>| {
            let map = map.unwrap();
            ["cpu", "memory", "ephemeral-storage", "hugepages-2Mi"].map(|name| map[name].0.clone())
        };
        assert_eq!(amounts(status.capacity), ["2", "4Gi", "50Gi", "8Mi"]);
        // 412Mi are reserved, and the eviction of pods keeps another 100Mi and a twentieth of the disk.
        assert_eq!(amounts(status.allocatable), ["1750m", "3584Mi", "48640Mi", "8Mi"].map(str::to_owned));
    }

    #[test]
    fn a_healthy_node_is_ready_and_keeps_its_transition_times() {
        let options = Options::new("n1", vec!["192.0.2.1".parse().unwrap()]);
        let (info, ready) = (NodeSystemInfo::default(), RuntimeState::Ready);
        let first = status(&input(&options, &info, &ready), None);
        assert_eq!(condition(&first, "Ready").reason.as_deref(), Some("KubeletReady"));
        assert_eq!(first.capacity.as_ref().unwrap()["memory"].0, "4Gi");
        let mut later = input(&options, &info, &ready);
        later.now = Timestamp::from_second(100).unwrap();
        let second = status(&later, Some(&first));
        assert!(!differs(&first, &second));
        assert_eq!(condition(&second, "Ready").last_transition_time.as_ref().unwrap().0.as_second(), 0);
        let broken = RuntimeState::NotReady("container runtime is down".into());
        later.runtime = &broken;
        let short = [Pressure::Memory].into();
        later.pressures = &short;
        let third = status(&later, Some(&second));
        assert!(differs(&second, &third));
        assert_eq!(condition(&third, "Ready").status, "False");
        assert_eq!(
            condition(&third, "MemoryPressure").reason.as_deref(),
            Some("KubeletHasInsufficientMemory")
        );
        assert_eq!(condition(&third, "Ready").last_transition_time.as_ref().unwrap().0.as_second(), 100);
    }
}
