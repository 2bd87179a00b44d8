//! Aggregated discovery (`apidiscovery.k8s.io`): everything in two documents.

use decapod_api::resource::{Gvk, Resource};
use http::HeaderMap;
use http::header::ACCEPT;
use serde_json::{Value, json};

use super::{groups, resources};
use crate::usage;

/// The version of the document that a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V2,
    V2Beta1,
}

impl Version {
    fn name(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V2Beta1 => "v2beta1",
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::V2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            Self::V2Beta1 => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        }
    }
}

/// The first version of the aggregated document that `Accept` names before plain JSON.
pub(super) fn asked(headers: &HeaderMap) -> Option<Version> {
    let accepts = headers.get_all(ACCEPT);
    let accepts = accepts.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    for accept in accepts {
        let parts: Vec<&str> = accept.split(';').map(str::trim).collect();
        if parts.contains(&"as=APIGroupDiscoveryList") && parts.contains(&"g=apidiscovery.k8s.io") {
            // Ours is JSON only: a client that also takes CBOR or protobuf says JSON further on.
            match (parts.first(), parts.contains(&"v=v2"), parts.contains(&"v=v2beta1")) {
                (Some(&"application/json"), true, _) => return Some(Version::V2),
                (Some(&"application/json"), _, true) => return Some(Version::V2Beta1),
                _ => {}
            }
        } else if parts.first() == Some(&"application/json") {
            return None;
        }
    }
    None
}

pub(super) fn document(core: bool, version: Version) -> Value {
    let items: Vec<Value> = groups()
        .into_iter()
        .filter(|g| g.name.is_empty() == core)
        .map(|group| {
            let versions: Vec<Value> = group
                .versions
                .iter()
                .map(|v| {
                    let mut resources: Vec<Value> = resources(group.name, v).map(resource).collect();
                    resources.extend(usage::discovered(group.name, v, true));
                    json!({"version": v, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if core { json!({}) } else { json!({"name": group.name}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{}", version.name()),
        "metadata": {}, "items": items,
    })
}

fn resource(resource: &'static Resource) -> Value {
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": kind(&resource.gvk()),
        "scope": if resource.namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs,
    });
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    if !resource.subresources.is_empty() {
        let subresources = resource.subresources.iter().map(|sub| {
            let gvk = sub.kind.unwrap_or(resource.gvk());
            json!({"subresource": sub.name, "responseKind": kind(&gvk), "verbs": sub.verbs})
        });
        entry["subresources"] = subresources.collect();
    }
    entry
}

fn kind(gvk: &Gvk) -> Value {
    json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind})
}
