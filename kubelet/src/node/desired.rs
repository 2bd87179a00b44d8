//! The Node object as it should be. Pure.

use std::collections::BTreeMap;

use decapod_api::quantity::Quantity;
use decapod_proto::cri;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec,
    NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::facts::{Free, Machine, architecture};
use crate::Options;

/// Images listed in the status, the largest first: Kubernetes' default bound.
const MAX_IMAGES: usize = 50;
/// Kubernetes' default thresholds for pressure: memory in bytes, inodes in hundredths.
const MEMORY_PRESSURE: i64 = 100 << 20;
/// Of the disk, in hundredths. Half of Kubernetes' default: the disk is often a workstation's, where a tenth may be
/// many gigabytes.
const DISK_PRESSURE: i64 = 5;
const INODE_PRESSURE: i64 = 5;
/// Fewer process ids than this are pressure.
const PID_PRESSURE: i64 = 1000;

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
    pub(crate) free: Free,
    pub(crate) info: &'a NodeSystemInfo,
    pub(crate) images: &'a [cri::Image],
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
    let resources = resources(input);
    let mut addresses: Vec<NodeAddress> =
        options.node_ips.iter().map(|ip| address("InternalIP", &ip.to_string())).collect();
    addresses.push(address("Hostname", &options.node_name));
    let port = options.server.as_ref().map(|s| i32::from(s.listen.port()));
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(resources.clone()),
        allocatable: Some(resources),
        conditions: Some(conditions(input, old)),
        daemon_endpoints: port
            .map(|port| NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port }) }),
        images: Some(images(input.images)).filter(|i| !i.is_empty()),
        node_info: Some(input.info.clone()),
        ..NodeStatus::default()
    }
}

fn address(kind: &str, address: &str) -> NodeAddress {
    NodeAddress { type_: kind.to_owned(), address: address.to_owned() }
}

fn resources(input: &Input<'_>) -> BTreeMap<String, ApiQuantity> {
    let machine = input.machine;
    [
        ("cpu", Quantity::from_units(machine.cpus)),
        ("memory", Quantity::from_bytes(machine.memory)),
        ("ephemeral-storage", Quantity::from_bytes(machine.disk)),
        ("pods", Quantity::from_units(i64::from(input.options.max_pods))),
        ("hugepages-1Gi", Quantity::ZERO),
        ("hugepages-2Mi", Quantity::ZERO),
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
            let names: Vec<String> = image.repo_digests.iter().chain(&image.repo_tags).cloned().collect();
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
    let free = input.free;
    let disk = free.disk_percent < DISK_PRESSURE || free.inode_percent < INODE_PRESSURE;
    let ready: Verdict = match input.runtime {
        RuntimeState::Ready => ("Ready", true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        RuntimeState::NotReady(why) => ("Ready", false, "KubeletNotReady", why.clone()),
    };
    let verdicts = [
        pressure(
            "MemoryPressure",
            free.memory < MEMORY_PRESSURE,
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        pressure(
            "DiskPressure",
            disk,
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        pressure(
            "PIDPressure",
            free.pids < PID_PRESSURE,
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
            ..NodeStatus::default()
        }
    };
    plain(old) != plain(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input<'a>(options: &'a Options, info: &'a NodeSystemInfo, runtime: &'a RuntimeState) -> Input<'a> {
        Input {
            options,
            machine: Machine { cpus: 2, memory: 4 << 30, disk: 50 << 30 },
            free: Free { memory: 1 << 30, disk_percent: 50, inode_percent: 50, pids: 30_000 },
            info,
            images: &[],
            runtime,
            now: Timestamp::UNIX_EPOCH,
        }
    }

    fn condition<'a>(status: &'a NodeStatus, kind: &str) -> &'a NodeCondition {
        status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap()
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
        later.free.memory = 1;
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
