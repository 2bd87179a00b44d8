use std::collections::BTreeSet;

use http::header::{ACCEPT, ETAG, IF_NONE_MATCH};

use super::*;

fn document(path: &str) -> Value {
    let made = match path {
        "v2" => make("", Format::V2, &Words::unpack()),
        root => make(root, Format::V3, &Words::unpack()),
    };
    serde_json::from_slice(&made.json.unpack()).unwrap()
}

fn references(document: &Value, found: &mut BTreeSet<String>) {
    match document {
        Value::Object(object) => {
            found.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
            object.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let mut all = vec!["v2".to_owned()];
    all.extend(roots());
    for root in all {
        let document = document(&root);
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        for reference in found {
            let pointer = reference.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{root}: {reference}");
        }
    }
}

#[test]
fn the_index_names_what_is_served_by_hash() {
    let respond = |path: &str, hash: Option<&str>| respond(path, hash, &HeaderMap::new());
    let documents = V3.get_or_init(all);
    let index: Value = serde_json::from_slice(&index(documents)).unwrap();
    let paths = index["paths"].as_object().unwrap();
    assert!(
        paths.contains_key("api/v1") && paths.contains_key("apis/apps/v1") && paths.contains_key("version")
    );
    for entry in paths.values() {
        let url: http::Uri = entry["serverRelativeURL"].as_str().unwrap().parse().unwrap();
        let path = url.path().strip_prefix("/openapi/").unwrap();
        let hash = url.query().unwrap().strip_prefix("hash=").unwrap();
        let current = respond(path, Some(hash)).unwrap();
        assert_eq!(current.headers()[CACHE_CONTROL], "public, immutable");
        assert!(current.headers().contains_key(EXPIRES));
        let moved = respond(path, Some("0")).unwrap();
        assert_eq!(
            (moved.status(), moved.headers()[LOCATION].to_str().unwrap()),
            (StatusCode::MOVED_PERMANENTLY, url.to_string().as_str())
        );
    }
    assert!(respond("v3/apis/nope/v1", None).is_none());
    assert!(respond("v4", None).is_none());
}

#[test]
fn a_document_that_the_client_has_is_not_sent_again() {
    let first = respond("v2", None, &HeaderMap::new()).unwrap();
    let again = HeaderMap::from_iter([(IF_NONE_MATCH, first.headers()[ETAG].clone())]);
    assert_eq!(respond("v2", None, &again).unwrap().status(), StatusCode::NOT_MODIFIED);
    let other = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("text/html"))]);
    assert_eq!(respond("v2", None, &other).unwrap().status(), StatusCode::NOT_ACCEPTABLE);
}

#[test]
fn operations_have_ids_of_their_own() {
    let document = document("v2");
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters") {
            let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path}"));
            assert!(ids.insert(id.to_owned()), "{id}");
        }
    }
    for id in [
        "listCoreV1NamespacedPod",
        "listCoreV1PodForAllNamespaces",
        "connectCoreV1PostNamespacedPodExec",
        "connectCoreV1GetNodeProxyWithPath",
        "readAppsV1NamespacedDeploymentScale",
        "deleteRbacAuthorizationV1CollectionClusterRole",
        "createCoreV1NamespacedPodEviction",
        "watchCoreV1NamespacedPodList",
        "getFlowcontrolApiserverV1APIResources",
        "getCodeVersion",
    ] {
        assert!(ids.contains(id), "{id}");
    }
}

#[test]
fn a_patch_says_that_it_validates_fields() {
    let document = document("apis/apps/v1");
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
    let parameters = patch["parameters"].as_array().unwrap();
    assert!(parameters.iter().any(|p| p["name"] == "fieldValidation" && p["in"] == "query"));
    assert!(patch["requestBody"]["content"]["application/apply-patch+yaml"].is_object());
}

#[test]
fn schemas_say_what_clients_need() {
    let document = document("api/v1");
    let schemas = &document["components"]["schemas"];
    let spec = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"];
    assert_eq!(spec["containers"]["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(spec["containers"]["x-kubernetes-patch-strategy"], "merge");
    assert_eq!(spec["containers"]["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(spec["volumes"]["x-kubernetes-patch-strategy"], "merge,retainKeys");
    assert_eq!(spec["restartPolicy"]["enum"], json!(["Always", "Never", "OnFailure"]));
    assert!(spec["nodeName"]["description"].as_str().unwrap().starts_with("NodeName indicates"));
    let probe = &schemas["io.k8s.api.core.v1.HTTPGetAction"]["properties"]["port"];
    assert_eq!(
        probe["allOf"][0]["$ref"],
        "#/components/schemas/io.k8s.apimachinery.pkg.util.intstr.IntOrString"
    );
    let list = &schemas["io.k8s.api.core.v1.PodList"];
    assert_eq!(list["x-kubernetes-group-version-kind"][0]["kind"], "PodList");
    let options = &schemas["io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"];
    assert_eq!(
        options["x-kubernetes-group-version-kind"],
        json!([{"group": "", "version": "v1", "kind": "DeleteOptions"}])
    );
}

/// A message as its fields: numbers with what is in them.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut number = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        number
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let length = match tag & 7 {
            0 => {
                let value = varint(&mut bytes);
                fields.push((tag >> 3, vec![value as u8]));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            wire => panic!("wire type {wire}"),
        };
        let (content, rest) = bytes.split_at(length);
        fields.push((tag >> 3, content.to_vec()));
        bytes = rest;
    }
    fields
}

#[test]
fn protobuf_says_what_json_does() {
    for (root, format, paths, schemas) in
        [("", Format::V2, 8, 9), ("api/v1", Format::V3, 4, 5), ("apis/apps/v1", Format::V3, 4, 5)]
    {
        let json = document(if root.is_empty() { "v2" } else { root });
        let mut message = Vec::new();
        parts(root, format, &Words::unpack(), |part| protobuf::write(format.message(), part, &mut message));
        let names = |within: u64| -> BTreeSet<String> {
            let parts = fields(&message).into_iter().filter(|(number, _)| *number == within);
            let mut parts: Vec<_> = parts.flat_map(|(_, part)| fields(&part)).collect();
            if format == Format::V3 && within == schemas {
                parts = parts
                    .into_iter()
                    .filter(|(number, _)| *number == 1)
                    .flat_map(|(_, part)| fields(&part))
                    .collect();
            }
            let named = parts.into_iter().map(|(_, entry)| fields(&entry).remove(0).1);
            named.map(|name| String::from_utf8(name).unwrap()).collect()
        };
        let in_json = |pointer: &str| -> BTreeSet<String> {
            json.pointer(pointer).unwrap().as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(names(paths), in_json("/paths"), "{root}");
        let place = if format == Format::V2 { "/definitions" } else { "/components/schemas" };
        assert_eq!(names(schemas), in_json(place), "{root}");
    }
}

#[test]
fn figures_are_described_like_other_kinds() {
    let document = document("apis/metrics.k8s.io/v1beta1");
    let list = &document["paths"]["/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods"]["get"];
    assert_eq!(list["x-kubernetes-group-version-kind"]["kind"], "PodMetrics");
    let kind = &document["components"]["schemas"]["io.k8s.metrics.pkg.apis.metrics.v1beta1.NodeMetrics"];
    assert_eq!(kind["x-kubernetes-group-version-kind"][0]["group"], "metrics.k8s.io");
    assert!(!kind["description"].as_str().unwrap().is_empty());
    assert_eq!(kind["required"], json!(["timestamp", "usage", "window"]));
}
