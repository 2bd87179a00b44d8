//! Lists, tables, metadata and encodings as clients read them.

use http::{Request, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Client, Cluster, message, pod};

const TEMPLATES: &str = "/api/v1/namespaces/default/podtemplates";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const METADATA: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

async fn accepting(client: &Client, path: &str, accept: &str) -> (StatusCode, String, Vec<u8>) {
    let request = Request::get(path).header("accept", accept).body(Vec::new()).unwrap();
    let (status, headers, body) = client.send(request).await;
    (status, headers["content-type"].to_str().unwrap().to_owned(), body)
}

async fn json(client: &Client, path: &str, accept: &str) -> Value {
    let (status, media, body) = accepting(client, path, accept).await;
    assert_eq!((status, media.as_str()), (StatusCode::OK, "application/json"), "{path}");
    serde_json::from_slice(&body).unwrap()
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn servers_with_support_for_api_chunking_should_return_chunks_of_results_for_list_calls() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for index in 0..20 {
        let template =
            json!({"metadata": {"name": format!("t-{index:02}")}, "template": {"spec": pod("x")["spec"]}});
        admin.created(TEMPLATES, template).await;
    }
    let (mut seen, mut token, mut version) = (Vec::new(), String::new(), Value::Null);
    loop {
        let (code, page) = admin.get(&format!("{TEMPLATES}?limit=7&continue={token}")).await;
        assert_eq!(code, 200, "{page}");
        let meta = &page["metadata"];
        if seen.is_empty() {
            version = meta["resourceVersion"].clone();
            // What happens between pages is in none of them.
            let late = json!({"metadata": {"name": "t-19b"}, "template": {"spec": pod("x")["spec"]}});
            admin.created(TEMPLATES, late).await;
            admin.delete(&format!("{TEMPLATES}/t-18")).await;
        }
        assert_eq!(meta["resourceVersion"], version);
        seen.extend(names(&page).into_iter().map(str::to_owned));
        let remaining = 20 - seen.len();
        match meta["continue"].as_str() {
            Some(next) => {
                assert_eq!(meta["remainingItemCount"], remaining);
                token = next.to_owned();
            }
            None => break assert_eq!(remaining, 0),
        }
    }
    assert!(seen.is_sorted() && seen.iter().any(|name| name == "t-18"), "{seen:?}");
    let (_, whole) = admin.get(&format!("{TEMPLATES}?limit=500")).await;
    assert_eq!(names(&whole).len(), 20);
    assert!(
        whole["metadata"].get("continue").is_none() && whole["metadata"].get("remainingItemCount").is_none()
    );
    let (code, refused) = admin.get(&format!("{TEMPLATES}?continue=rubbish")).await;
    assert_eq!(code, 400, "{refused}");
}

#[tokio::test]
async fn servers_with_support_for_api_chunking_should_support_continue_listing_from_the_last_key_if_the_original_version_has_been_compacted_away_though_the_list_is_inconsistent()
 {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for name in ["a", "b", "c", "d"] {
        admin.created(MAPS, json!({"metadata": {"name": name}})).await;
    }
    let (_, first) = admin.get(&format!("{MAPS}?limit=2")).await;
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    // Nothing holds the state any longer: the store forgets it, and so much happens that the cache does.
    for round in 0..18 {
        let large = json!({"data": {"k": format!("{round}{}", "x".repeat(950_000))}});
        let (code, _) = admin.patch(&format!("{MAPS}/d"), "merge-patch", large).await;
        assert_eq!(code, 200);
    }
    cluster.compact().await;
    let (code, gone) = admin.get(&format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!((code, gone["reason"].as_str()), (410, Some("Expired")), "{gone}");
    let fresh = gone["metadata"]["continue"].as_str().unwrap();
    admin.created(MAPS, json!({"metadata": {"name": "cc"}})).await;
    let (code, rest) = admin.get(&format!("{MAPS}?limit=2&continue={fresh}")).await;
    assert_eq!((code, names(&rest)), (200, vec!["c", "cc"]));
    assert_ne!(rest["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    // From here on it is consistent again.
    let (_, last) = admin
        .get(&format!("{MAPS}?limit=2&continue={}", rest["metadata"]["continue"].as_str().unwrap()))
        .await;
    assert_eq!(
        (names(&last), &last["metadata"]["resourceVersion"]),
        (vec!["d"], &rest["metadata"]["resourceVersion"])
    );
}

#[tokio::test]
async fn servers_with_support_for_table_transformation_should_return_a_406_for_a_backend_which_does_not_implement_metadata()
 {
    let cluster = Cluster::start().await;
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let request = Request::post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
        .header("accept", TABLE)
        .header("content-type", "application/json")
        .body(review.to_string().into_bytes())
        .unwrap();
    let (status, _, body) = cluster.admin().send(request).await;
    assert_eq!(status, StatusCode::NOT_ACCEPTABLE);
    let status: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(status["reason"], "NotAcceptable");
    assert_eq!(
        status["message"],
        "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"
    );
}

#[tokio::test]
async fn the_form_and_the_encoding_that_were_asked_for() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin
        .created(MAPS, json!({"metadata": {"name": "a", "labels": {"x": "true"}}, "data": {"k": "v"}}))
        .await;
    let table = json(&admin, MAPS, TABLE).await;
    assert_eq!((table["kind"].as_str(), table["rows"][0]["cells"][0].as_str()), (Some("Table"), Some("a")));
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let bare = json(&admin, &format!("{MAPS}?includeObject=None"), TABLE).await;
    assert!(bare["rows"][0]["object"].is_null());
    let whole = json(&admin, &format!("{MAPS}?includeObject=Object"), TABLE).await;
    assert_eq!(whole["rows"][0]["object"]["data"]["k"], "v");
    let metadata = json(&admin, MAPS, METADATA).await;
    assert_eq!(metadata["kind"], "PartialObjectMetadataList");
    assert_eq!(
        (&metadata["items"][0]["metadata"]["name"], metadata["items"][0].get("data")),
        (&json!("a"), None)
    );

    let (_, media, yaml) = accepting(&admin, &format!("{MAPS}/a"), "application/yaml").await;
    let yaml = String::from_utf8(yaml).unwrap();
    assert_eq!(media, "application/yaml");
    assert!(yaml.contains("kind: ConfigMap") && yaml.contains("x: \"true\""), "{yaml}");
    let (_, media, bytes) = accepting(&admin, MAPS, &format!("{PROTOBUF},application/json")).await;
    assert_eq!((media.as_str(), &bytes[..4]), (PROTOBUF, &b"k8s\0"[..]));
    let (_, media, _) = accepting(&admin, MAPS, &METADATA.replace("application/json", PROTOBUF)).await;
    assert_eq!(media, PROTOBUF);
    let (_, _, pretty) = accepting(&admin, &format!("{MAPS}/a?pretty=true"), "*/*").await;
    assert!(pretty.starts_with(b"{\n  \""));
    let (status, _, refused) = accepting(&admin, MAPS, "text/html").await;
    assert_eq!(status, StatusCode::NOT_ACCEPTABLE, "{}", String::from_utf8_lossy(&refused));
}

#[tokio::test]
async fn what_cannot_be_listed_is_said_with_its_field() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for (query, code, words) in [
        (
            "resourceVersionMatch=Exact",
            422,
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        (
            "resourceVersion=0&resourceVersionMatch=Exact",
            422,
            "\"exact\" is forbidden for resourceVersion \"0\"",
        ),
        ("resourceVersion=x", 400, "resourceVersion: Invalid value: \"x\""),
        ("fieldSelector=spec.x%3D1", 400, "\"spec.x\" is not a known field selector"),
        ("fieldSelector=metadata.namespace%3Ddefault", 200, ""),
        ("labelSelector=a%3D%3D%3Db", 400, ""),
        ("resourceVersion=99999999999", 504, "Too large resource version"),
    ] {
        let answer = admin.get(&format!("{MAPS}?{query}")).await;
        assert_eq!(answer.0, code, "{query}: {}", answer.1);
        assert!(message(&answer).contains(words), "{query}: {}", answer.1);
    }
}

#[tokio::test]
async fn pods_are_selected_by_old_and_by_empty_fields() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.service_account("default").await;
    let mut bound = pod("bound");
    bound["spec"]["nodeName"] = "n1".into();
    let pods = "/api/v1/namespaces/default/pods";
    admin.created(pods, bound).await;
    admin.created(pods, pod("free")).await;
    for (selector, want) in [
        ("spec.host%3Dn1", vec!["bound"]),
        ("spec.host!%3Dn1", vec!["free"]),
        ("status.podIPs%3D10.0.0.1", vec![]),
        ("status.podIPs%3D", vec!["bound", "free"]),
    ] {
        let (code, list) = admin.get(&format!("{pods}?fieldSelector={selector}")).await;
        assert_eq!(code, 200, "{selector}: {list}");
        let items = list["items"].as_array().unwrap();
        let names: Vec<&str> = items.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap()).collect();
        assert_eq!(names, want, "{selector}");
    }
    let refused = admin.get(&format!("{pods}?fieldSelector=spec.hostname%3Da")).await;
    assert_eq!((refused.0, message(&refused)), (400, "field label not supported: spec.hostname"));
    let refused = admin.get("/api/v1/nodes?fieldSelector=metadata.namespace%3Da").await;
    assert_eq!((refused.0, message(&refused)), (400, "field label not supported: metadata.namespace"));
}
