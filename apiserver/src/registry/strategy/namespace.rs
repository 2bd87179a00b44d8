//! Namespaces: their content goes before them, which the `kubernetes` finalizer in their spec says.

use serde_json::{Value, json};

use super::super::object::{copy_field, map_mut};
use super::{Call, Strategy};

/// The finalizer that the namespace controller takes once a namespace is empty.
const FINALIZER: &str = "kubernetes";

pub(super) struct Namespace;

impl Strategy for Namespace {
    fn prepare_create(&self, call: &Call, object: &mut Value) {
        object["status"] = json!({"phase": "Active"});
        map_mut(object, "spec").insert("finalizers".to_owned(), json!([FINALIZER]));
        // What a namespace selector finds it by.
        let name = call.name.clone();
        let meta = super::super::object::meta_mut(object);
        let labels = meta.entry("labels").or_insert_with(|| json!({}));
        labels["kubernetes.io/metadata.name"] = name.into();
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        copy_field(new, old, "spec");
        let name = old["metadata"]["name"].clone();
        let meta = super::super::object::meta_mut(new);
        let labels = meta.entry("labels").or_insert_with(|| json!({}));
        labels["kubernetes.io/metadata.name"] = name;
    }

    fn may_go(&self, object: &Value) -> bool {
        object["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty)
    }

    fn deletion_begins(&self, object: &mut Value) {
        map_mut(object, "status").insert("phase".to_owned(), "Terminating".into());
    }

    fn returns_deleted(&self) -> bool {
        true
    }
}
