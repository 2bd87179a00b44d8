//! Persistent volumes and their claims, as binder, scheduler and kubelet have to agree on them: which volume suits a
//! claim, which class each is of, and what the annotations between them mean.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::labels::{ParseError, Selector};
use crate::node_selector::Term;
use crate::quantity::Quantity;

/// On a claim: it has been bound once, and what it lost since then is lost.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or a volume: the binder chose the other side, not a user.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume: the provisioner that made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: the node that the scheduler chose for its first consumer.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a claim: the provisioner that is to make its volume; the second is the name of old.
pub const STORAGE_PROVISIONERS: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
/// The provisioner of classes whose volumes are made by hand.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// Keeps a volume until its provisioner has removed what it stands for.
pub const PROVISIONER_FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
/// The built-in provisioner of folders on nodes.
pub const LOCAL_PATH: &str = "decapod.dev/local-path";

/// How the class of claims and volumes was named before there was a field.
const CLASS_OF_OLD: &str = "volume.beta.kubernetes.io/storage-class";
/// What marks the default class.
const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
/// The resource that claims request.
const STORAGE: &str = "storage";

/// The value of an annotation.
pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The class of a claim; empty for none.
pub fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let field = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&claim.metadata, CLASS_OF_OLD).or(field).unwrap_or_default()
}

/// Whether a claim says nothing of its class, not even that it wants none.
pub fn is_classless(claim: &PersistentVolumeClaim) -> bool {
    let field = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref());
    field.is_none() && annotation(&claim.metadata, CLASS_OF_OLD).is_none()
}

/// The class of a volume; empty for none.
pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let field = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&volume.metadata, CLASS_OF_OLD).or(field).unwrap_or_default()
}

/// Whether claims of this class are bound only when their first pod is scheduled.
pub fn waits_for_consumer(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// The default among classes: of several the newest, and of equally old ones the first by name.
pub fn default_class<'a>(classes: impl IntoIterator<Item = &'a StorageClass>) -> Option<&'a StorageClass> {
    let is_default = |class: &StorageClass| {
        DEFAULT_CLASS.iter().any(|key| annotation(&class.metadata, key) == Some("true"))
    };
    let created = |class: &StorageClass| class.metadata.creation_timestamp.as_ref().map(|time| time.0);
    classes.into_iter().filter(|class| is_default(class)).max_by(|one, other| {
        created(one).cmp(&created(other)).then_with(|| other.metadata.name.cmp(&one.metadata.name))
    })
}

/// Whether a claim and a volume are bound to each other, both ways and for good.
pub fn is_fully_bound(claim: &PersistentVolumeClaim) -> bool {
    let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    !volume.is_empty() && annotation(&claim.metadata, BIND_COMPLETED).is_some()
}

/// Whether a volume refers to this claim, or to any of its name.
pub fn refers_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else { return false };
    let uid = reference.uid.as_deref().unwrap_or_default();
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && (uid.is_empty() || Some(uid) == claim.metadata.uid.as_deref())
}

/// What a claim requests.
pub fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    // What is no quantity does not get past the API server.
    requests.and_then(|list| list.get(STORAGE)).and_then(|q| Quantity::try_from(q).ok()).unwrap_or_default()
}

/// What a volume holds.
pub fn capacity(volume: &PersistentVolume) -> Quantity {
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
    capacity.and_then(|list| list.get(STORAGE)).and_then(|q| Quantity::try_from(q).ok()).unwrap_or_default()
}

/// Whether one is a block device and the other a file system.
pub fn modes_differ(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let of_claim = claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref());
    let of_volume = volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref());
    of_claim.unwrap_or("Filesystem") != of_volume.unwrap_or("Filesystem")
}

fn access_modes(volume: &PersistentVolume) -> &[String] {
    volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default()
}

/// Whether the volume can be accessed in all the ways that the claim asks for.
pub fn offers_access(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let mut wanted = claim.spec.iter().flat_map(|spec| spec.access_modes.iter().flatten());
    wanted.all(|mode| access_modes(volume).contains(mode))
}

fn attributes_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let field = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    field.unwrap_or_default()
}

fn attributes_of_volume(volume: &PersistentVolume) -> &str {
    let field = volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    field.unwrap_or_default()
}

/// Why the volume that a claim names cannot be its volume, in Kubernetes' words.
pub fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    if volume.metadata.deletion_timestamp.is_some() {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        return Some(format!("the volume is marked for deletion {name:?}"));
    }
    let why = if capacity(volume) < requested(claim) {
        "requested PV is too small"
    } else if class_of_volume(volume) != class_of_claim(claim) {
        "storageClassName does not match"
    } else if attributes_of_volume(volume) != attributes_of_claim(claim) {
        "volumeAttributesClassName does not match"
    } else if modes_differ(claim, volume) {
        "incompatible volumeMode"
    } else if !offers_access(volume, claim) {
        "incompatible accessMode"
    } else {
        return None;
    };
    Some(why.to_owned())
}

/// Whether the volume can be used on a node of this name and these labels.
pub fn reachable_from(volume: &PersistentVolume, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let Some(required) = affinity.and_then(|affinity| affinity.required.as_ref()) else { return true };
    required.node_selector_terms.iter().any(|term| Term::new(term).matches(name, labels))
}

/// A node's name and labels.
pub type NodeFacts<'a> = (&'a str, &'a BTreeMap<String, String>);

/// The volume that suits a claim best: the one that refers to it, or else the one with the fewest ways of access
/// and of those the smallest. On a `node`, only what can be used there. With `waiting`, the claim waits for its first
/// consumer: without a node then only a volume that refers to it will do.
///
/// # Errors
/// When the claim's selector is none.
pub fn best_match<'a>(
    claim: &PersistentVolumeClaim,
    volumes: impl IntoIterator<Item = &'a PersistentVolume>,
    node: Option<NodeFacts<'_>>,
    waiting: bool,
) -> Result<Option<&'a PersistentVolume>, ParseError> {
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let selector = selector.map(Selector::try_from).transpose()?;
    let wanted = requested(claim);
    let mut best: Option<&PersistentVolume> = None;
    let rank = |volume: &PersistentVolume| (access_modes(volume).len(), capacity(volume));
    for volume in volumes {
        let refers = refers_to(volume, claim);
        let taken = volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some()) && !refers;
        if taken
            || capacity(volume) < wanted
            || modes_differ(claim, volume)
            || attributes_of_volume(volume) != attributes_of_claim(claim)
            || volume.metadata.deletion_timestamp.is_some()
        {
            continue;
        }
        let reachable = node.is_none_or(|(name, labels)| reachable_from(volume, name, labels));
        if refers {
            return Ok(Some(volume).filter(|_| reachable));
        }
        let available =
            volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Available");
        let suits = available
            && reachable
            && !(waiting && node.is_none())
            && class_of_volume(volume) == class_of_claim(claim)
            && offers_access(volume, claim)
            && selector.as_ref().is_none_or(|s| s.matches_optional(volume.metadata.labels.as_ref()));
        if suits && best.is_none_or(|best| rank(volume) < rank(best)) {
            best = Some(volume);
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claim(more: Value) -> PersistentVolumeClaim {
        let mut spec =
            json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let claim = json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"}, "spec": spec});
        serde_json::from_value(claim).unwrap()
    }

    fn volume(name: &str, size: &str, more: Value) -> PersistentVolume {
        let mut spec = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": size}});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let volume = json!({"metadata": {"name": name, "labels": {"is": name}}, "spec": spec,
            "status": {"phase": "Available"}});
        serde_json::from_value(volume).unwrap()
    }

    fn best(claim: &PersistentVolumeClaim, volumes: &[PersistentVolume]) -> String {
        let found = best_match(claim, volumes, None, false).unwrap();
        found.and_then(|volume| volume.metadata.name.clone()).unwrap_or_default()
    }

    #[test]
    fn the_smallest_with_the_fewest_ways_of_access_is_taken() {
        let many = json!({"accessModes": ["ReadWriteOnce", "ReadOnlyMany"]});
        let volumes = [
            volume("small", "1Gi", json!({})),
            volume("large", "9Gi", json!({})),
            volume("right", "3Gi", json!({})),
            volume("shared", "2Gi", many),
        ];
        assert_eq!(best(&claim(json!({})), &volumes), "right");
        assert_eq!(best(&claim(json!({"accessModes": ["ReadOnlyMany"]})), &volumes), "shared");
        assert_eq!(best(&claim(json!({"accessModes": ["ReadWriteMany"]})), &volumes), "");
        assert_eq!(best(&claim(json!({"selector": {"matchLabels": {"is": "large"}}})), &volumes), "large");
        assert_eq!(best(&claim(json!({"storageClassName": "fast"})), &volumes), "");
        assert_eq!(best(&claim(json!({"volumeMode": "Block"})), &volumes), "");
    }

    #[test]
    fn a_volume_that_refers_to_the_claim_goes_before_all() {
        let reference = |uid: &str| json!({"claimRef": {"namespace": "n", "name": "c", "uid": uid}});
        let volumes = [volume("other", "2Gi", json!({})), volume("mine", "9Gi", reference(""))];
        assert_eq!(best(&claim(json!({})), &volumes), "mine");
        let volumes = [volume("other", "2Gi", json!({})), volume("old", "9Gi", reference("another"))];
        assert_eq!(best(&claim(json!({})), &volumes), "other");
        let waiting = best_match(&claim(json!({})), &volumes, None, true).unwrap();
        assert!(waiting.is_none(), "the scheduler decides");
    }

    #[test]
    fn a_node_must_reach_the_volume() {
        let on = |name: &str| {
            json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions":
                [{"key": "kubernetes.io/hostname", "operator": "In", "values": [name]}]}]}}})
        };
        let volumes = [volume("a", "2Gi", on("a")), volume("b", "3Gi", on("b"))];
        let labels = BTreeMap::from([("kubernetes.io/hostname".to_owned(), "b".to_owned())]);
        let found = best_match(&claim(json!({})), &volumes, Some(("b", &labels)), true).unwrap();
        assert_eq!(found.and_then(|v| v.metadata.name.as_deref()), Some("b"));
    }

    #[test]
    fn what_a_named_volume_lacks_is_said() {
        let says = |size: &str, more: Value| mismatch(&volume("v", size, more), &claim(json!({})));
        assert_eq!(says("2Gi", json!({})), None);
        assert_eq!(says("1Gi", json!({})).as_deref(), Some("requested PV is too small"));
        let class = says("2Gi", json!({"storageClassName": "fast"}));
        assert_eq!(class.as_deref(), Some("storageClassName does not match"));
        let modes = says("2Gi", json!({"accessModes": ["ReadOnlyMany"]}));
        assert_eq!(modes.as_deref(), Some("incompatible accessMode"));
    }

    #[test]
    fn the_newest_default_class_is_the_default() {
        let class = |name: &str, is: &str, created: &str| -> StorageClass {
            let meta = json!({"name": name, "creationTimestamp": created,
                "annotations": {"storageclass.kubernetes.io/is-default-class": is}});
            serde_json::from_value(json!({"metadata": meta, "provisioner": "p"})).unwrap()
        };
        let classes = [
            class("old", "true", "2026-01-01T00:00:00Z"),
            class("b", "true", "2026-01-02T00:00:00Z"),
            class("a", "true", "2026-01-02T00:00:00Z"),
            class("no", "false", "2026-01-03T00:00:00Z"),
        ];
        assert_eq!(default_class(&classes).and_then(|c| c.metadata.name.as_deref()), Some("a"));
    }
}
