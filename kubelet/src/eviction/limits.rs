//! Pods that use more of the node's disk than they may: `sizeLimit` of an emptyDir and limits of
//! `ephemeral-storage`. Pure.

use decapod_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::pod::qos;
use crate::usage::PodUsage;

/// The resource's name.
const STORAGE: &str = "ephemeral-storage";

/// Whether the pod has a limit that has to be looked after.
pub(super) fn limited(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let sized = spec.volumes.iter().flatten().any(|v| {
        v.empty_dir.as_ref().is_some_and(|d| d.size_limit.is_some() && d.medium.as_deref() != Some("Memory"))
    });
    sized || all(spec).any(|container| limit(container).is_some())
}

fn all(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.containers.iter().chain(spec.init_containers.iter().flatten())
}

fn limit(container: &Container) -> Option<Quantity> {
    let limits = container.resources.as_ref()?.limits.as_ref()?;
    // What does not parse is refused by the API server.
    Quantity::try_from(limits.get(STORAGE)?).ok()
}

/// The message by which Kubernetes evicts the pod, if it uses more than it may.
pub(super) fn exceeded(pod: &Pod, usage: &PodUsage, dedicated_images: bool) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let over = |used: u64, limit: Quantity| i64::try_from(used).is_ok_and(|used| used > limit.units());
    for volume in spec.volumes.iter().flatten() {
        let Some(limit) = volume.empty_dir.as_ref().and_then(|dir| dir.size_limit.as_ref()) else { continue };
        let (Ok(limit), Some(used)) = (Quantity::try_from(limit), usage.volumes.get(&volume.name)) else {
            continue;
        };
        if limit.units() > 0 && over(used.bytes, limit) {
            return Some(format!(
                "Usage of EmptyDir volume \"{}\" exceeds the limit \"{limit}\". ",
                volume.name
            ));
        }
    }
    if all(spec).any(|container| limit(container).is_some()) {
        let total = qos::together(spec, |container| limit(container).unwrap_or(Quantity::ZERO));
        if over(usage.disk().bytes, total) {
            return Some(format!(
                "Pod ephemeral local storage usage exceeds the total limit of containers {total}. "
            ));
        }
    }
    spec.containers.iter().find_map(|container| {
        let limit = limit(container).filter(|limit| !limit.is_zero())?;
        let used = usage.containers.get(&container.name)?;
        // Where images have a disk of their own, what containers write is on that one.
        let rootfs = if dedicated_images { 0 } else { used.rootfs.bytes };
        over(used.logs.bytes + rootfs, limit).then(|| {
            format!("Container {} exceeded its local ephemeral storage limit \"{limit}\". ", container.name)
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::usage::{ContainerUsage, Disk};

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn disk(mebibytes: u64) -> Disk {
        Disk { bytes: mebibytes << 20, inodes: 1 }
    }

    #[test]
    fn the_messages_are_those_of_kubernetes() {
        let limited_to = |limit: &str| json!({"limits": {"ephemeral-storage": limit}});
        let containers = json!([
            {"name": "a", "resources": limited_to("2Mi")}, {"name": "b", "resources": limited_to("8Mi")}]);
        let volumes = json!([{"name": "v", "emptyDir": {"sizeLimit": "5Mi"}}, {"name": "w", "emptyDir": {}}]);
        let pod = pod(json!({"containers": containers, "volumes": volumes}));
        assert!(limited(&pod));
        let usage = |v, w, a| PodUsage {
            volumes: [("v".to_owned(), disk(v)), ("w".to_owned(), disk(w))].into(),
            containers: [("a".to_owned(), ContainerUsage { logs: disk(1), rootfs: disk(a), memory: None })]
                .into(),
            ..PodUsage::default()
        };
        let message = |v, w, a| exceeded(&pod, &usage(v, w, a), false);
        assert_eq!(message(5, 0, 1), None);
        assert_eq!(
            message(6, 0, 1).as_deref(),
            Some("Usage of EmptyDir volume \"v\" exceeds the limit \"5Mi\". ")
        );
        assert_eq!(
            message(1, 9, 0).as_deref(),
            Some("Pod ephemeral local storage usage exceeds the total limit of containers 10Mi. ")
        );
        assert_eq!(
            message(1, 1, 2).as_deref(),
            Some("Container a exceeded its local ephemeral storage limit \"2Mi\". ")
        );
        assert_eq!(exceeded(&pod, &usage(1, 1, 2), true), None, "on the other disk");
    }

    #[test]
    fn most_pods_have_no_limit() {
        assert!(!limited(&pod(
            json!({"containers": [{"name": "a"}], "volumes": [{"name": "v", "emptyDir": {}}]})
        )));
        let memory = json!([{"name": "v", "emptyDir": {"sizeLimit": "5Mi", "medium": "Memory"}}]);
        assert!(!limited(&pod(json!({"containers": [{"name": "a"}], "volumes": memory}))));
    }
}
