//! Who uses a claim, a volume or a class of volume attributes: pure.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::common::claim;

/// What there is to do about an object and its finalizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It lives, and lacks the finalizer.
    Add,
    /// It is to go, and nothing uses it.
    Remove,
    /// Nothing.
    Keep,
}

pub(super) fn step(meta: &ObjectMeta, finalizer: &str, in_use: impl FnOnce() -> bool) -> Step {
    let has = meta.finalizers.iter().flatten().any(|one| one == finalizer);
    match (meta.deletion_timestamp.is_some(), has) {
        (false, false) => Step::Add,
        (true, true) if !in_use() => Step::Remove,
        _ => Step::Keep,
    }
}

/// The names of the claims that a pod mounts.
pub(crate) fn claims(pod: &Pod) -> Vec<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let claims = volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some(source.claim_name.clone()),
        (None, Some(_)) => Some(format!("{name}-{}", volume.name)),
        (None, None) => None,
    });
    claims.collect()
}

/// Whether a pod holds a claim: one that has a node, for that is when a kubelet may mount it. The claim of
/// a generic ephemeral volume counts only if it was made for this pod.
pub(super) fn pod_holds(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let spec = pod.spec.as_ref();
    let is_bound = spec.and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty());
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let mut volumes = spec.into_iter().flat_map(|spec| spec.volumes.iter().flatten());
    is_bound
        && volumes.any(|volume| {
            let named = volume.persistent_volume_claim.as_ref().is_some_and(|one| one.claim_name == name);
            let made = volume.ephemeral.is_some() && format!("{pod_name}-{}", volume.name) == name;
            named || (made && claim::is_controlled_by(&claim.metadata, uid))
        })
}

/// Whether a volume is bound to a claim.
pub(super) fn is_bound(volume: &PersistentVolume) -> bool {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
}

/// The classes of attributes that a claim names, has, or is being moved to.
pub(super) fn classes_of_claim(claim: &PersistentVolumeClaim) -> Vec<&str> {
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    let status = claim.status.as_ref();
    let current = status.and_then(|status| status.current_volume_attributes_class_name.as_deref());
    let target = status
        .and_then(|status| status.modify_volume_status.as_ref())
        .and_then(|status| status.target_volume_attributes_class_name.as_deref());
    [wanted, current, target].into_iter().flatten().filter(|name| !name.is_empty()).collect()
}

/// The class of attributes of a volume.
pub(super) fn class_of_volume(volume: &PersistentVolume) -> Option<&str> {
    let spec = volume.spec.as_ref()?;
    spec.volume_attributes_class_name.as_deref().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn finalizers_come_and_go() {
        let meta = |value: Value| -> ObjectMeta { serde_json::from_value(value).unwrap() };
        let (held, free) = (json!({"finalizers": ["f"]}), json!({}));
        let going = json!({"finalizers": ["f"], "deletionTimestamp": "2026-01-01T00:00:00Z"});
        assert_eq!(step(&meta(free), "f", || false), Step::Add);
        assert_eq!(step(&meta(held), "f", || false), Step::Keep);
        assert_eq!(step(&meta(going.clone()), "f", || true), Step::Keep);
        assert_eq!(step(&meta(going), "f", || false), Step::Remove);
    }

    #[test]
    fn a_pod_holds_what_it_mounts_once_it_has_a_node() {
        let pod = |node: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"nodeName": node, "containers": [],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}, {"name": "e", "ephemeral": {}}]}}))
            .unwrap()
        };
        let claim = |name: &str, owner: Value| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"name": name, "ownerReferences": owner}})).unwrap()
        };
        let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}]);
        assert!(pod_holds(&pod("n"), &claim("data", Value::Null)));
        assert!(!pod_holds(&pod(""), &claim("data", Value::Null)));
        assert!(pod_holds(&pod("n"), &claim("p-e", owner)));
        assert!(!pod_holds(&pod("n"), &claim("p-e", Value::Null)), "somebody else's claim of that name");
        assert_eq!(claims(&pod("n")), ["data", "p-e"]);
    }

    #[test]
    fn classes_in_use() {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "spec": {"volumeAttributesClassName": "a"}, "status": {"currentVolumeAttributesClassName": "b"}}))
        .unwrap();
        assert_eq!(classes_of_claim(&claim), ["a", "b"]);
        assert_eq!(class_of_volume(&PersistentVolume::default()), None);
        assert!(!is_bound(&PersistentVolume::default()));
    }
}
