//! What the API server serves, in the words of the discovery protocol: legacy documents per group
//! and version, and the aggregated ones.
//!
//! All of it is made from the table of kinds, and of the figures of `usage`, which have no row there. **Invariant**: what discovery names is routed, and
//! what is routed is named.

mod aggregated;
mod legacy;

use decapod_api::resource::{RESOURCES, Resource};
use http::header::{ACCEPT, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::Value;

use crate::http::Body;
use crate::http::body;
use crate::usage;

/// The groups by falling priority, as Kubernetes lists them: which group's kind a short name means.
const PRIORITY: &[&str] = &[
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    usage::GROUP,
];

/// A group with its versions, the preferred one first.
struct Group {
    name: &'static str,
    versions: Vec<&'static str>,
}

fn groups() -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for resource in RESOURCES {
        let group = match groups.iter_mut().find(|g| g.name == resource.group) {
            Some(group) => group,
            None => {
                groups.push(Group { name: resource.group, versions: Vec::new() });
                groups.last_mut().expect("pushed just now")
            }
        };
        if !group.versions.contains(&resource.version) {
            group.versions.push(resource.version);
        }
    }
    groups.push(Group { name: usage::GROUP, versions: vec![usage::VERSION] });
    for group in &mut groups {
        // All but the figures' are stable versions: the highest number is preferred.
        group.versions.sort_by_key(|v| std::cmp::Reverse(number(v)));
    }
    groups.sort_by_key(|g| PRIORITY.iter().position(|p| *p == g.name).unwrap_or(PRIORITY.len()));
    groups
}

fn number(version: &str) -> u32 {
    version.trim_start_matches('v').parse().unwrap_or(0)
}

fn resources(group: &str, version: &str) -> impl Iterator<Item = &'static Resource> {
    RESOURCES.iter().filter(move |r| r.group == group && r.version == version)
}

/// Answers a discovery request; `None` if the path is no discovery path of a served group.
pub(crate) fn answer(path: &str, headers: &HeaderMap) -> Option<Response<Body>> {
    let words: Vec<&str> = path.split('/').filter(|w| !w.is_empty()).collect();
    let (document, content_type) = match words.as_slice() {
        ["api" | "apis"] => match aggregated::asked(headers) {
            Some(version) => (aggregated::document(words[0] == "api", version), version.content_type()),
            None if words[0] == "api" => (legacy::core_versions(), JSON),
            None => (legacy::group_list(), JSON),
        },
        ["api", version] => (legacy::resource_list("", version)?, JSON),
        ["apis", group] => (legacy::group(group)?, JSON),
        ["apis", group, version] => (legacy::resource_list(group, version)?, JSON),
        _ => return None,
    };
    Some(respond(&document, content_type, headers))
}

const JSON: &str = "application/json";

fn respond(document: &Value, content_type: &'static str, headers: &HeaderMap) -> Response<Body> {
    let text = document.to_string();
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let tag: String = digest.as_ref().iter().map(|b| format!("{b:02X}")).collect();
    let tag = format!("\"{tag}\"");
    let unchanged = headers.get(IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == tag.as_bytes());
    let mut response = Response::new(if unchanged { body::empty() } else { body::full(text) });
    if unchanged {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(VARY, HeaderValue::from_name(ACCEPT));
    headers.insert(ETAG, HeaderValue::from_str(&tag).expect("hexadecimal digits in quotes"));
    response
}

/// Every path that discovery answers: for the root index and for tests that walk all routes.
pub(crate) fn paths() -> Vec<String> {
    let mut paths = vec!["/api".to_owned(), "/apis".to_owned()];
    for group in groups() {
        let base = if group.name.is_empty() { "/api".to_owned() } else { format!("/apis/{}", group.name) };
        paths.extend(group.versions.iter().map(|v| format!("{base}/{v}")));
        if !group.name.is_empty() {
            paths.push(base);
        }
    }
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preferred_version_is_the_highest() {
        let autoscaling = groups().into_iter().find(|g| g.name == "autoscaling").unwrap();
        assert_eq!(autoscaling.versions, ["v2", "v1"]);
        assert_eq!(groups()[0].name, "");
        assert!(groups().iter().all(|g| PRIORITY.contains(&g.name)), "each group has its priority");
    }

    #[test]
    fn negotiates_the_aggregated_form_and_tags() {
        let mut headers = HeaderMap::new();
        let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        let response = answer("/apis", &headers).unwrap();
        assert!(
            response.headers()["content-type"].to_str().unwrap().contains("v=v2;as=APIGroupDiscoveryList")
        );
        headers.insert(IF_NONE_MATCH, response.headers()[ETAG].clone());
        assert_eq!(answer("/apis", &headers).unwrap().status(), StatusCode::NOT_MODIFIED);
        assert!(answer("/apis/nope", &headers).is_none());
        assert!(paths().iter().all(|path| answer(path, &HeaderMap::new()).is_some()));
    }
}
