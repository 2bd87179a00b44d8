//! The operations of a kind.

use decapod_api::resource::{Gvk, Resource};
use serde_json::{Map, Value, json};

/// Adds the paths of a kind and its subresources (OpenAPI 3).
pub(super) fn of(resource: &Resource, paths: &mut Map<String, Value>) {
    add(resource, paths, true);
}

/// Adds the paths of a kind and its subresources (OpenAPI 2).
pub(super) fn of_v2(resource: &Resource, paths: &mut Map<String, Value>) {
    add(resource, paths, false);
}

fn add(resource: &Resource, paths: &mut Map<String, Value>, v3: bool) {
    let root = format!("/{}", super::root(resource.group, resource.version));
    let base = if resource.namespaced() {
        if resource.verbs.contains(&"list") {
            let across = operations(resource.gvk(), &["list"], v3);
            paths.insert(format!("{root}/{}", resource.plural), across);
        }
        format!("{root}/namespaces/{{namespace}}/{}", resource.plural)
    } else {
        format!("{root}/{}", resource.plural)
    };
    let on = |wanted: &[&'static str]| -> Vec<&'static str> {
        wanted.iter().copied().filter(|verb| resource.verbs.contains(verb)).collect()
    };
    let all = on(&["list", "create", "deletecollection"]);
    paths.insert(base.clone(), operations(resource.gvk(), &all, v3));
    let one = on(&["get", "update", "patch", "delete"]);
    if !one.is_empty() {
        paths.insert(format!("{base}/{{name}}"), operations(resource.gvk(), &one, v3));
    }
    for sub in resource.subresources {
        let gvk = sub.kind.unwrap_or(resource.gvk());
        paths.insert(format!("{base}/{{name}}/{}", sub.name), operations(gvk, sub.verbs, v3));
    }
}

fn operations(gvk: Gvk, verbs: &[&str], v3: bool) -> Value {
    let mut operations = Map::new();
    for verb in verbs {
        let (method, action) = match *verb {
            "list" => ("get", "list"),
            "get" => ("get", "get"),
            "create" => ("post", "post"),
            "update" => ("put", "put"),
            "patch" => ("patch", "patch"),
            "delete" => ("delete", "delete"),
            "deletecollection" => ("delete", "deletecollection"),
            _ => continue,
        };
        operations.insert(method.to_owned(), json!({
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": {"group": gvk.group, "version": gvk.version, "kind": gvk.kind},
            "parameters": parameters(verb, v3),
            "responses": {"200": {"description": "OK"}},
        }));
    }
    let path = |name: &str| parameter(name, "path", "string", v3);
    operations.insert("parameters".to_owned(), json!([path("name"), path("namespace")]));
    Value::Object(operations)
}

fn parameter(name: &str, place: &str, kind: &str, v3: bool) -> Value {
    let mut parameter = json!({"name": name, "in": place});
    if v3 {
        parameter["schema"] = json!({"type": kind, "uniqueItems": true});
    } else {
        parameter["type"] = kind.into();
        parameter["uniqueItems"] = true.into();
    }
    if place == "path" {
        parameter["required"] = true.into();
    }
    parameter
}

fn parameters(verb: &str, v3: bool) -> Value {
    let names: &[(&str, &str)] = match verb {
        "list" | "deletecollection" => &[
            ("allowWatchBookmarks", "boolean"),
            ("continue", "string"),
            ("fieldSelector", "string"),
            ("labelSelector", "string"),
            ("limit", "integer"),
            ("resourceVersion", "string"),
            ("resourceVersionMatch", "string"),
            ("sendInitialEvents", "boolean"),
            ("timeoutSeconds", "integer"),
            ("watch", "boolean"),
        ],
        "create" | "update" | "patch" => {
            &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")]
        }
        "delete" => &[
            ("dryRun", "string"),
            ("gracePeriodSeconds", "integer"),
            ("orphanDependents", "boolean"),
            ("propagationPolicy", "string"),
        ],
        _ => &[("pretty", "string")],
    };
    names.iter().map(|(name, kind)| parameter(name, "query", kind, v3)).collect()
}
