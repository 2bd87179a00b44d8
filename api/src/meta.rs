//! `metadata`: accessors on an object's JSON tree, and its validation.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::field::{Error, Path};
use crate::names;
use crate::resource::Resource;

/// The most bytes of all annotations together.
pub const ANNOTATIONS_MAX: usize = 256 * 1024;

/// `metadata.<field>` as text, if it is there and is text.
pub fn text<'a>(object: &'a Value, field: &str) -> Option<&'a str> {
    object.get("metadata")?.get(field)?.as_str()
}

/// The object's name; empty if it has none.
pub fn name(object: &Value) -> &str {
    text(object, "name").unwrap_or_default()
}

/// The object's namespace; empty if it has none.
pub fn namespace(object: &Value) -> &str {
    text(object, "namespace").unwrap_or_default()
}

/// The object's uid; empty if it has none.
pub fn uid(object: &Value) -> &str {
    text(object, "uid").unwrap_or_default()
}

/// The object's labels.
pub fn labels(object: &Value) -> BTreeMap<&str, &str> {
    let map = object.get("metadata").and_then(|m| m.get("labels")).and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))).collect()
}

/// The object's finalizers.
pub fn finalizers(object: &Value) -> Vec<&str> {
    let list = object.get("metadata").and_then(|m| m.get("finalizers")).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Whether the object is being deleted.
pub fn deleting(object: &Value) -> bool {
    text(object, "deletionTimestamp").is_some()
}

/// `metadata`, made if it is not there. `None` if the object is no map.
pub fn of_mut(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let metadata = object.as_object_mut()?.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if metadata.is_null() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut()
}

/// Which form the names of a kind have.
type NameCheck = fn(&str) -> Vec<String>;

/// The form of names of a kind, by its group and plural.
fn name_check(group: &str, plural: &str) -> NameCheck {
    match (group, plural) {
        ("", "namespaces") => names::dns_label,
        // KEP-5311: a service's name may begin with a digit.
        ("", "services") | ("apps", "statefulsets") => names::dns_label,
        ("rbac.authorization.k8s.io" | "certificates.k8s.io", _) | ("policy", "poddisruptionbudgets") => {
            names::path_segment
        }
        ("networking.k8s.io", "ipaddresses") => names::canonical_ip,
        ("", "events") | ("events.k8s.io", _) => names::path_segment,
        _ => names::dns_subdomain,
    }
}

/// The finalizers that are Kubernetes' own; all others bear a domain.
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];
/// Groups in which a finalizer may bear no domain, too.
const ANY_FINALIZER: [&str; 2] = ["admissionregistration.k8s.io", "coordination.k8s.io"];

/// Why this is no finalizer that Kubernetes knows or that bears a domain.
pub fn unknown_finalizer(finalizer: &str) -> Option<&'static str> {
    let known = finalizer.contains('/') || STANDARD_FINALIZERS.contains(&finalizer);
    (!known).then_some("name is neither a standard finalizer name nor is it fully qualified")
}

/// All that is wrong with the metadata of an object of this kind: names, labels, annotations, finalizers, owners.
pub fn validate(object: &Value, resource: &Resource) -> Vec<Error> {
    let mut errors = Vec::new();
    let root = Path::new("metadata");
    validate_name(object, &root, name_check(resource.group, resource.plural), &mut errors);
    let namespace_path = root.child("namespace");
    match (resource.namespaced(), namespace(object)) {
        (true, "") => errors.push(Error::required(&namespace_path, "")),
        (true, namespace) => {
            for why in names::dns_label(namespace) {
                errors.push(Error::invalid(&namespace_path, namespace, why));
            }
        }
        (false, "") => {}
        (false, _) => errors.push(Error::forbidden(&namespace_path, "not allowed on this type")),
    }
    let metadata = object.get("metadata").unwrap_or(&Value::Null);
    validate_labels(metadata.get("labels"), &root.child("labels"), &mut errors);
    validate_annotations(metadata.get("annotations"), &root.child("annotations"), &mut errors);
    for (i, finalizer) in finalizers(object).into_iter().enumerate() {
        let path = root.child("finalizers");
        for why in names::qualified(finalizer) {
            errors.push(Error::invalid(&path, finalizer, why));
        }
        let unknown = unknown_finalizer(finalizer).filter(|_| !ANY_FINALIZER.contains(&resource.group));
        if let Some(why) = unknown {
            errors.push(Error::invalid(&path.index(i), finalizer, why));
        }
    }
    validate_owners(metadata.get("ownerReferences"), &root.child("ownerReferences"), &mut errors);
    errors
}

fn validate_name(object: &Value, root: &Path, check: NameCheck, errors: &mut Vec<Error>) {
    let path = root.child("name");
    match name(object) {
        "" => errors.push(Error::required(&path, "name or generateName is required")),
        name => {
            for why in check(name) {
                errors.push(Error::invalid(&path, name, why));
            }
        }
    }
}

/// All that is wrong with a map of labels.
pub fn validate_labels(labels: Option<&Value>, path: &Path, errors: &mut Vec<Error>) {
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        for why in names::qualified(key) {
            errors.push(Error::invalid(path, key.as_str(), why));
        }
        let value = value.as_str().unwrap_or_default();
        for why in names::label_value(value) {
            errors.push(Error::invalid(path, value, why));
        }
    }
}

fn validate_annotations(annotations: Option<&Value>, path: &Path, errors: &mut Vec<Error>) {
    let mut size = 0;
    for (key, value) in annotations.and_then(Value::as_object).into_iter().flatten() {
        for why in names::qualified(&key.to_lowercase()) {
            errors.push(Error::invalid(path, key.as_str(), why));
        }
        size += key.len() + value.as_str().unwrap_or_default().len();
    }
    if size > ANNOTATIONS_MAX {
        errors.push(Error::too_long(path, ANNOTATIONS_MAX));
    }
}

fn validate_owners(owners: Option<&Value>, path: &Path, errors: &mut Vec<Error>) {
    let mut controller: Option<String> = None;
    for owner in owners.and_then(Value::as_array).into_iter().flatten() {
        let text = |field: &str| owner.get(field).and_then(Value::as_str).unwrap_or_default();
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(field).is_empty() {
                let what =
                    if field == "apiVersion" { "version must not be empty" } else { "must not be empty" };
                errors.push(Error::invalid(&path.child(field), "", what));
            }
        }
        if (text("apiVersion"), text("kind")) == ("v1", "Event") {
            let why = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(Error::invalid(path, owner.clone(), why));
        }
        if owner.get("controller") != Some(&Value::Bool(true)) {
            continue;
        }
        let this = format!("{}/{}", text("kind"), text("name"));
        match &controller {
            Some(first) => errors.push(Error::invalid(
                path,
                owners.cloned().unwrap_or_default(),
                format!("Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"),
            )),
            None => controller = Some(this),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wrong(metadata: Value) -> Vec<String> {
        let row = crate::resource::by_kind("", "v1", "ConfigMap").unwrap();
        let errors = validate(&json!({ "metadata": metadata }), row);
        errors.iter().map(|e| e.path.to_string()).collect()
    }

    #[test]
    fn all_errors_at_once() {
        assert_eq!(wrong(json!({"name": "a", "namespace": "b", "labels": {"x": "y"}})), Vec::<String>::new());
        assert_eq!(
            wrong(json!({"name": "A", "labels": {"-": "!"}, "finalizers": ["/", "mine", "orphan"], "ownerReferences": [{}]}))
                .into_iter()
                .collect::<std::collections::BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>(),
            [
                "metadata.finalizers",
                "metadata.finalizers[1]",
                "metadata.labels",
                "metadata.name",
                "metadata.namespace",
                "metadata.ownerReferences.apiVersion",
                "metadata.ownerReferences.kind",
                "metadata.ownerReferences.name",
                "metadata.ownerReferences.uid",
            ]
        );
        assert_eq!(
            wrong(json!({"generateName": "a-", "name": "a-x", "namespace": "b"})),
            Vec::<String>::new()
        );
    }
}
