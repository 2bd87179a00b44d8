//! Volumes and claims: the default storage class, finalizers that keep what is in use, and growth
//! only where the class allows it.

use async_trait::async_trait;
use decapod_api::meta;
use decapod_api::quantity::Quantity;
use decapod_api::status::Error;
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin, annotated, default_class};
use crate::registry::object::{map_mut, set_meta};
use crate::registry::row;

/// How a class is named in an annotation of old, which goes before the field.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULT_ANNOTATIONS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

pub(super) struct DefaultStorageClass;

#[async_trait]
impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn handles(&self, write: &Attributes<'_>) -> bool {
        write.creates() && write.is("", "persistentvolumeclaims")
    }

    async fn mutate(&self, write: &Attributes<'_>, claim: &mut Value) -> Result<(), Error> {
        // The empty name is a name: that of no class at all.
        if class_of(claim).is_some() {
            return Ok(());
        }
        let classes = write.registry.all(row("storage.k8s.io", "v1", "storageclasses"), "").await?;
        let is_default = |class: &Value| DEFAULT_ANNOTATIONS.iter().any(|key| annotated(class, key, "true"));
        if let Some(class) = default_class(classes, is_default) {
            map_mut(claim, "spec").insert("storageClassName".to_owned(), meta::name(&class).into());
        }
        Ok(())
    }
}

fn class_of(claim: &Value) -> Option<&str> {
    let annotation = claim["metadata"]["annotations"][CLASS_ANNOTATION].as_str();
    annotation.or_else(|| claim["spec"]["storageClassName"].as_str())
}

/// The finalizer of a kind that its protection controller takes once nothing uses the object.
fn finalizer(plural: &str) -> Option<&'static str> {
    match plural {
        "persistentvolumes" => Some("kubernetes.io/pv-protection"),
        "persistentvolumeclaims" => Some("kubernetes.io/pvc-protection"),
        "volumeattributesclasses" => Some("kubernetes.io/vac-protection"),
        _ => None,
    }
}

pub(super) struct StorageObjectInUseProtection;

#[async_trait]
impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn handles(&self, write: &Attributes<'_>) -> bool {
        write.creates()
            && write.call.subresource.is_empty()
            && matches!(write.call.resource.group, "" | "storage.k8s.io")
            && finalizer(write.call.resource.plural).is_some()
    }

    async fn mutate(&self, write: &Attributes<'_>, object: &mut Value) -> Result<(), Error> {
        let Some(finalizer) = finalizer(write.call.resource.plural) else { return Ok(()) };
        let mut finalizers = meta::finalizers(object);
        if !finalizers.contains(&finalizer) {
            finalizers.push(finalizer);
            let finalizers = json!(finalizers);
            set_meta(object, "finalizers", finalizers);
        }
        Ok(())
    }
}

pub(super) struct PersistentVolumeClaimResize;

#[async_trait]
impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn handles(&self, write: &Attributes<'_>) -> bool {
        write.operation == Operation::Update && write.is("", "persistentvolumeclaims")
    }

    async fn validate(&self, write: &Attributes<'_>, claim: &Value) -> Result<(), Error> {
        let Some(old) = write.old else { return Ok(()) };
        if size(claim) <= size(old) {
            return Ok(());
        }
        if old["status"]["phase"] != "Bound" {
            return Err(write.call.forbidden("Only bound persistent volume claims can be expanded"));
        }
        let class = class_of(claim).filter(|class| !class.is_empty() && class_of(old) == Some(class));
        let class = match class {
            Some(name) => {
                write.registry.find(row("storage.k8s.io", "v1", "storageclasses"), "", name).await?
            }
            None => None,
        };
        if class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
            return Ok(());
        }
        Err(write.call.forbidden(
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
        ))
    }
}

fn size(claim: &Value) -> Quantity {
    let text = claim["spec"]["resources"]["requests"]["storage"].as_str();
    // What is no quantity was refused by the kind's own decoding.
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}
