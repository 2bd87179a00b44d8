//! The documents of discovery as they were before aggregation: older clients read nothing else.

use decapod_api::resource::{Gvk, Resource, api_version};
use serde_json::{Map, Value, json};

use super::{groups, resources};
use crate::usage;

pub(super) fn core_versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

pub(super) fn group_list() -> Value {
    let groups: Vec<Value> =
        groups().iter().filter(|g| !g.name.is_empty()).map(|g| describe(g.name, &g.versions)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

pub(super) fn group(name: &str) -> Option<Value> {
    let group = groups().into_iter().find(|g| g.name == name && !name.is_empty())?;
    let mut document = describe(group.name, &group.versions);
    document["kind"] = "APIGroup".into();
    document["apiVersion"] = "v1".into();
    Some(document)
}

fn describe(name: &str, versions: &[&str]) -> Value {
    let version = |v: &&str| json!({"groupVersion": api_version(name, v), "version": v});
    json!({
        "name": name,
        "versions": versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(version),
    })
}

pub(super) fn resource_list(group: &str, version: &str) -> Option<Value> {
    let mut list: Vec<Value> = resources(group, version).flat_map(entries).collect();
    list.extend(usage::discovered(group, version, false));
    if list.is_empty() {
        return None;
    }
    let mut document = json!({
        "kind": "APIResourceList", "groupVersion": api_version(group, version), "resources": list,
    });
    if !group.is_empty() {
        document["apiVersion"] = "v1".into();
    }
    Some(document)
}

fn entries(resource: &'static Resource) -> Vec<Value> {
    let mut entry = Map::new();
    entry.insert("name".into(), resource.plural.into());
    entry.insert("singularName".into(), resource.singular.into());
    entry.insert("namespaced".into(), resource.namespaced().into());
    entry.insert("kind".into(), resource.kind.into());
    entry.insert("verbs".into(), json!(resource.verbs));
    if !resource.short_names.is_empty() {
        entry.insert("shortNames".into(), json!(resource.short_names));
    }
    if !resource.categories.is_empty() {
        entry.insert("categories".into(), json!(resource.categories));
    }
    let mut entries = vec![Value::Object(entry)];
    for sub in resource.subresources {
        let kind = sub.kind.unwrap_or(resource.gvk());
        let mut entry = json!({
            "name": format!("{}/{}", resource.plural, sub.name), "singularName": "",
            "namespaced": resource.namespaced(), "kind": kind.kind, "verbs": sub.verbs,
        });
        let own = |k: &Gvk| k.group == resource.group && k.version == resource.version;
        if !own(&kind) {
            entry["group"] = kind.group.into();
            entry["version"] = kind.version.into();
        }
        entries.push(entry);
    }
    entries
}
