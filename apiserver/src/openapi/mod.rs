//! The OpenAPI documents, made from the table of kinds and the field facts.
//!
//! Clients read them to see which options the server knows (`fieldValidation`), how lists merge
//! (patch strategies and merge keys), and what an object is made of.

mod paths;
mod schema;

use decapod_api::resource::{RESOURCES, api_version};
use http::header::{ACCEPT, ETAG, HeaderMap};
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::http::query::Query;
use crate::http::{Body, reply};

/// Answers a request for a document; `None` if the path is none.
pub(crate) fn answer(path: &str, _query: &Query, headers: &HeaderMap) -> Option<Response<Body>> {
    let path = path.trim_end_matches('/');
    let document = match path {
        "/openapi/v2" => return Some(v2(headers)),
        "/openapi/v3" => index(),
        _ => {
            let (root, group_version) = path.strip_prefix("/openapi/v3/")?.split_once('/')?;
            let (group, version) = match root {
                "api" => ("", group_version),
                "apis" => group_version.split_once('/')?,
                _ => return None,
            };
            v3(group, version)?
        }
    };
    let mut response = reply::json(StatusCode::OK, &document);
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", hash())) {
        response.headers_mut().insert(ETAG, tag);
    }
    Some(response)
}

/// The documents change only with the program.
fn hash() -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, crate::version::git_version().as_bytes());
    digest.as_ref().iter().take(16).map(|b| format!("{b:02X}")).collect()
}

fn group_versions() -> Vec<(&'static str, &'static str)> {
    let mut all: Vec<_> = RESOURCES.iter().map(|r| (r.group, r.version)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn root(group: &str, version: &str) -> String {
    let prefix = if group.is_empty() { "api" } else { "apis" };
    format!("{prefix}/{}", api_version(group, version))
}

fn index() -> Value {
    let mut paths = Map::new();
    for (group, version) in group_versions() {
        let root = root(group, version);
        let url = format!("/openapi/v3/{root}?hash={}", hash());
        paths.insert(root, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": crate::version::git_version()})
}

fn v3(group: &str, version: &str) -> Option<Value> {
    let rows: Vec<_> = RESOURCES.iter().filter(|r| r.group == group && r.version == version).collect();
    if rows.is_empty() {
        return None;
    }
    let mut schemas = schema::Schemas::new("#/components/schemas/");
    let mut all = Map::new();
    for row in rows {
        schemas.add_kind(row);
        paths::of(row, &mut all);
    }
    Some(json!({"openapi": "3.0.0", "info": info(), "paths": all,
        "components": {"schemas": schemas.finish()}}))
}

/// The media type of the older document in protobuf.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// The one by which clients ask for it, which is no valid media type and so is not answered with.
const V2_PROTOBUF_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// The older document: everything in one as JSON, its head alone as protobuf.
///
/// kubectl asks for protobuf, and only about kinds of which version 3 says nothing: what this document does
/// not define it passes on to the server, which validates.
fn v2(headers: &HeaderMap) -> Response<Body> {
    let accepts = headers.get_all(ACCEPT);
    let accepts = accepts.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    let accepts: Vec<&str> = accepts.map(|a| a.split(';').next().unwrap_or_default().trim()).collect();
    let wants = |form: &str| accepts.contains(&form);
    if !accepts.is_empty() && !wants("application/json") && !wants("*/*") {
        return if wants(V2_PROTOBUF) || wants(V2_PROTOBUF_ASKED) {
            reply::with_type(StatusCode::OK, V2_PROTOBUF, v2_head())
        } else {
            reply::error(&decapod_api::status::Error::NotAcceptable("application/json".to_owned()))
        };
    }
    let mut schemas = schema::Schemas::new("#/definitions/");
    let mut all = Map::new();
    for row in RESOURCES {
        schemas.add_kind(row);
        paths::of_v2(row, &mut all);
    }
    let document = json!({"swagger": "2.0", "info": info(), "paths": all, "definitions": schemas.finish()});
    reply::json(StatusCode::OK, &document)
}

/// `swagger` (1), `info` (2) with `title` (1) and `version` (2), and empty `paths` (8) of the message
/// `openapi.v2.Document`.
fn v2_head() -> Vec<u8> {
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        const LENGTH_DELIMITED: u8 = 2;
        let length = u8::try_from(content.len()).expect("the head is shorter than 128 bytes");
        [&[number << 3 | LENGTH_DELIMITED, length], content].concat()
    }
    let info = [field(1, b"Kubernetes"), field(2, crate::version::git_version().as_bytes())].concat();
    [field(1, b"2.0"), field(2, &info), field(8, b"")].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_as_protobuf_is_whole() {
        let head = v2_head();
        assert_eq!(head[..5], *b"\x0a\x032.0");
        assert_eq!(usize::from(head[6]), head.len() - 7 - 2);
        assert!(head.iter().all(|b| *b < 128));
    }

    #[test]
    fn the_index_names_what_is_served() {
        let index = index();
        let paths = index["paths"].as_object().unwrap();
        assert!(paths.contains_key("api/v1") && paths.contains_key("apis/apps/v1"));
        for entry in paths.values() {
            let url: http::Uri = entry["serverRelativeURL"].as_str().unwrap().parse().unwrap();
            assert!(answer(url.path(), &Query::default(), &HeaderMap::new()).is_some(), "{url}");
        }
    }

    #[test]
    fn a_patch_says_that_it_validates_fields() {
        let document = v3("apps", "v1").unwrap();
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
        let parameters = patch["parameters"].as_array().unwrap();
        assert!(parameters.iter().any(|p| p["name"] == "fieldValidation" && p["in"] == "query"));
    }

    #[test]
    fn every_reference_leads_somewhere() {
        for (group, version) in group_versions() {
            let document = v3(group, version).unwrap();
            let schemas = document["components"]["schemas"].as_object().unwrap();
            let text = document.to_string();
            for reference in text.split("\"#/components/schemas/").skip(1) {
                let name = reference.split('"').next().unwrap();
                assert!(schemas.contains_key(name), "{group}/{version}: {name}");
            }
        }
    }

    #[test]
    fn lists_say_how_they_merge() {
        let document = v3("", "v1").unwrap();
        let spec = &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"];
        assert_eq!(spec["containers"]["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(spec["containers"]["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(spec["volumes"]["x-kubernetes-patch-strategy"], "merge,retainKeys");
    }
}
