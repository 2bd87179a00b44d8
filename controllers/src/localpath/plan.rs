//! What the provisioner of folders makes and removes: pure.

use std::collections::BTreeMap;

use decapod_api::storage::{self, annotation};
use k8s_openapi::api::core::v1::{
    LocalVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference,
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

/// On a volume: the node that has its folder.
const NODE: &str = "decapod.dev/local-path-node";
const HOST_NAME: &str = "kubernetes.io/hostname";
/// What one node at a time can do with a folder.
const ACCESS: [&str; 2] = ["ReadWriteOnce", "ReadWriteOncePod"];

/// What there is to do about a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Nothing: it is somebody else's, has its volume, or has no node yet.
    Nothing,
    /// It asks for what a folder cannot be.
    Impossible(String),
    /// The node is gone: the scheduler has to choose again.
    Reschedule(String),
    /// A folder on this node.
    Make(String),
}

/// What a claim wishes. `has_node` tells whether a node of that name exists.
pub(super) fn wish(
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    has_node: impl Fn(&str) -> bool,
) -> Wish {
    let spec = claim.spec.clone().unwrap_or_default();
    let is_asked = annotation(&claim.metadata, storage::STORAGE_PROVISIONERS[0]) == Some(storage::LOCAL_PATH);
    let has_volume = spec.volume_name.as_deref().is_some_and(|name| !name.is_empty());
    let Some(class) = class.filter(|class| class.provisioner == storage::LOCAL_PATH) else {
        return Wish::Nothing;
    };
    if !is_asked || has_volume || claim.metadata.deletion_timestamp.is_some() {
        return Wish::Nothing;
    }
    let modes = spec.access_modes.unwrap_or_default();
    if let Some(mode) = modes.iter().find(|mode| !ACCESS.contains(&mode.as_str())) {
        return Wish::Impossible(format!(
            "spec.accessModes: {mode} is not possible with a folder on one node: use ReadWriteOnce or ReadWriteOncePod"
        ));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Wish::Impossible(
            "spec.volumeMode: Block is not possible with a folder: use Filesystem".to_owned(),
        );
    }
    if spec.selector.is_some() {
        return Wish::Impossible(
            "spec.selector: a volume that is made for its claim cannot be selected".to_owned(),
        );
    }
    match annotation(&claim.metadata, storage::SELECTED_NODE) {
        Some(node) if has_node(node) => Wish::Make(node.to_owned()),
        Some(node) => Wish::Reschedule(node.to_owned()),
        None if storage::waits_for_consumer(class) => Wish::Nothing,
        None => Wish::Impossible(format!(
            "no node was chosen: volumeBindingMode of StorageClass {:?} must be WaitForFirstConsumer",
            class.name_any()
        )),
    }
}

/// The name of a claim's volume, and of its folder.
pub(super) fn name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default())
}

/// The volume of a claim, whose folder on `node` is at `path`.
pub(super) fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &Node,
    path: &str,
) -> PersistentVolume {
    let host = node.labels().get(HOST_NAME).cloned().unwrap_or_else(|| node.name_any());
    let requirement = NodeSelectorRequirement {
        key: HOST_NAME.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![host]),
    };
    let term = NodeSelectorTerm { match_expressions: Some(vec![requirement]), match_fields: None };
    let spec = claim.spec.clone().unwrap_or_default();
    let requests = spec.resources.and_then(|resources| resources.requests).unwrap_or_default();
    let capacity = requests.into_iter().filter(|(resource, _)| resource == "storage").collect();
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name(claim)),
            annotations: Some(BTreeMap::from([
                (storage::PROVISIONED_BY.to_owned(), storage::LOCAL_PATH.to_owned()),
                (NODE.to_owned(), node.name_any()),
            ])),
            finalizers: Some(vec![storage::PROVISIONER_FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: Some(capacity),
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("PersistentVolumeClaim".to_owned()),
                namespace: claim.metadata.namespace.clone(),
                name: claim.metadata.name.clone(),
                uid: claim.metadata.uid.clone(),
                ..ObjectReference::default()
            }),
            local: Some(LocalVolumeSource { path: path.to_owned(), fs_type: None }),
            mount_options: class.mount_options.clone(),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector { node_selector_terms: vec![term] }),
            }),
            persistent_volume_reclaim_policy: Some(
                class.reclaim_policy.clone().unwrap_or("Delete".to_owned()),
            ),
            storage_class_name: Some(class.name_any()),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }
}

/// What there is to do about a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing.
    Keep,
    /// Its data goes, on this node, and then it.
    Remove(String),
    /// It goes, and what it stands for stays.
    LetGo,
}

/// Whether a volume and what it stands for go.
pub(super) fn end(volume: &PersistentVolume) -> End {
    let ours = annotation(&volume.metadata, storage::PROVISIONED_BY) == Some(storage::LOCAL_PATH);
    let going = volume.metadata.deletion_timestamp.is_some();
    let spec = volume.spec.as_ref();
    let deletes = spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()) == Some("Delete");
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let over = matches!(phase, "Released" | "Failed");
    let held = volume.finalizers().iter().any(|one| one == storage::PROVISIONER_FINALIZER);
    match annotation(&volume.metadata, NODE) {
        Some(node) if ours && held && deletes && over => End::Remove(node.to_owned()),
        // Its user let it go before its claim: what is bound is protected by another finalizer until then.
        _ if ours && held && going && phase != "Bound" => End::LetGo,
        _ => End::Keep,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claim(spec: Value, annotations: Value) -> PersistentVolumeClaim {
        let meta = json!({"name": "c", "namespace": "n", "uid": "u", "annotations": annotations});
        serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
    }

    fn class(mode: &str) -> StorageClass {
        serde_json::from_value(json!({"metadata": {"name": "local-path"}, "provisioner": storage::LOCAL_PATH,
            "volumeBindingMode": mode}))
        .unwrap()
    }

    fn asked(node: Option<&str>) -> Value {
        let mut annotations = json!({storage::STORAGE_PROVISIONERS[0]: storage::LOCAL_PATH});
        if let Some(node) = node {
            annotations[storage::SELECTED_NODE] = json!(node);
        }
        annotations
    }

    #[test]
    fn a_folder_is_made_on_the_chosen_node_and_only_there() {
        let class = class("WaitForFirstConsumer");
        let of = |spec: Value, annotations: Value| {
            wish(&claim(spec, annotations), Some(&class), |node| node == "n1")
        };
        let once = json!({"accessModes": ["ReadWriteOnce"]});
        assert_eq!(of(once.clone(), Value::Null), Wish::Nothing);
        assert_eq!(of(once.clone(), asked(None)), Wish::Nothing);
        assert_eq!(of(once.clone(), asked(Some("n1"))), Wish::Make("n1".into()));
        assert_eq!(of(once, asked(Some("gone"))), Wish::Reschedule("gone".into()));
        let Wish::Impossible(why) = of(json!({"accessModes": ["ReadWriteMany"]}), asked(Some("n1"))) else {
            panic!()
        };
        assert!(why.starts_with("spec.accessModes: ReadWriteMany"), "{why}");
        assert_eq!(of(json!({"volumeName": "v"}), asked(Some("n1"))), Wish::Nothing);
    }

    #[test]
    fn a_class_that_binds_at_once_is_told_how() {
        let once = json!({"accessModes": ["ReadWriteOnce"]});
        let wish = wish(&claim(once, asked(None)), Some(&class("Immediate")), |_| true);
        assert!(matches!(wish, Wish::Impossible(why) if why.contains("WaitForFirstConsumer")));
    }

    #[test]
    fn the_volume_is_on_its_node_and_for_its_claim() {
        let spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Mi"}}});
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n1", "labels": {HOST_NAME: "host"}}}))
                .unwrap();
        let claim = claim(spec, asked(Some("n1")));
        let made = volume(&claim, &class("WaitForFirstConsumer"), &node, "/data/pvc-u");
        assert_eq!(made.name_any(), "pvc-u");
        assert!(storage::refers_to(&made, &claim));
        let labels = |host: &str| BTreeMap::from([(HOST_NAME.to_owned(), host.to_owned())]);
        assert!(storage::reachable_from(&made, "n1", &labels("host")));
        assert!(!storage::reachable_from(&made, "n2", &labels("other")));
        assert_eq!(storage::capacity(&made), "5Mi".parse().unwrap());
    }

    #[test]
    fn data_goes_only_with_its_claim_and_by_the_policy() {
        let of = |policy: &str, phase: &str, going: bool| {
            let mut meta = json!({"name": "pvc-u", "finalizers": [storage::PROVISIONER_FINALIZER],
                "annotations": {storage::PROVISIONED_BY: storage::LOCAL_PATH, NODE: "n1"}});
            if going {
                meta["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            let volume = json!({"metadata": meta, "spec": {"persistentVolumeReclaimPolicy": policy},
                "status": {"phase": phase}});
            end(&serde_json::from_value(volume).unwrap())
        };
        assert_eq!(of("Delete", "Bound", false), End::Keep);
        assert_eq!(of("Delete", "Bound", true), End::Keep);
        assert_eq!(of("Delete", "Released", false), End::Remove("n1".into()));
        assert_eq!(of("Delete", "Released", true), End::Remove("n1".into()));
        assert_eq!(of("Retain", "Released", false), End::Keep);
        assert_eq!(of("Retain", "Released", true), End::LetGo);
        assert_eq!(end(&PersistentVolume::default()), End::Keep);
    }
}
