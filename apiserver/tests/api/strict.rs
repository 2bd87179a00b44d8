//! `[sig-api-machinery]` FieldValidation: unknown and duplicate fields, refused, warned of or ignored;
//! and the other warnings that writes are answered with.

use http::{Method, Request};
use serde_json::{Value, json};

use crate::harness::{Client, Cluster, message};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Sends text as it is; returns the code, the warnings and the answer.
async fn send(
    admin: &Client,
    method: Method,
    path: &str,
    media: &str,
    body: &str,
) -> (u16, Vec<String>, Value) {
    let request = Request::builder().method(method).uri(path).header("content-type", media);
    let (status, headers, bytes) = admin.send(request.body(body.into()).unwrap()).await;
    let warnings = headers.get_all("warning").iter().map(|v| v.to_str().unwrap());
    let warnings = warnings.map(|w| {
        let quoted = w.strip_prefix("299 - \"").unwrap().strip_suffix('"').unwrap();
        quoted.replace("\\\"", "\"")
    });
    (status.as_u16(), warnings.collect(), serde_json::from_slice(&bytes).unwrap())
}

fn text(answer: &(u16, Vec<String>, Value)) -> &str {
    answer.2["message"].as_str().unwrap_or_default()
}

const BODY: &str = r#"{"apiVersion": "apps/v1", "kind": "Deployment",
    "metadata": {"name": "d", "name": "d", "unknownMeta": 1, "labels": {"app": "d"}},
    "spec": {"unknown1": 1, "unknownDupe": 1, "unknownDupe": 2, "paused": true, "paused": false,
      "selector": {"matchLabels": {"app": "d"}},
      "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "i",
        "unknownNested": "x", "imagePullPolicy": "Always", "imagePullPolicy": "Never"}]}}}}"#;

const FOUND: [&str; 7] = [
    "duplicate field \"metadata.name\"",
    "unknown field \"metadata.unknownMeta\"",
    "unknown field \"spec.unknown1\"",
    "unknown field \"spec.unknownDupe\"",
    "duplicate field \"spec.paused\"",
    "unknown field \"spec.template.spec.containers[0].unknownNested\"",
    "duplicate field \"spec.template.spec.containers[0].imagePullPolicy\"",
];

#[tokio::test]
async fn field_validation_should_detect_unknown_and_duplicate_fields_of_a_typed_object() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let path = |how: &str| format!("{DEPLOYMENTS}?fieldValidation={how}");
    let strict = send(&admin, Method::POST, &path("Strict"), "application/json", BODY).await;
    let want = format!(
        "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: {}",
        FOUND.join(", ")
    );
    assert_eq!((strict.0, text(&strict)), (400, want.as_str()));
    let warned = send(&admin, Method::POST, &path("Warn"), "application/json", BODY).await;
    assert_eq!((warned.0, &warned.1[..]), (201, &FOUND.map(str::to_owned)[..]));
    assert_eq!(warned.2["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"], "Never");
    let again = format!("{DEPLOYMENTS}/d");
    let ignored =
        send(&admin, Method::PUT, &format!("{again}?fieldValidation=Ignore"), "application/json", BODY).await;
    assert_eq!((ignored.0, ignored.1.len()), (200, 0));
    let default = send(&admin, Method::PUT, &again, "application/json", BODY).await;
    assert_eq!((default.0, default.1.len()), (200, 7));
    let never = send(&admin, Method::POST, &path("Never"), "application/json", BODY).await;
    assert_eq!(
        (never.0, text(&never)),
        (
            422,
            "CreateOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"Never\": supported values: \"Ignore\", \"Strict\", \"Warn\""
        )
    );
}

#[tokio::test]
async fn yaml_bodies_name_their_lines() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let body = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: m\n  name: m\ndata: {a: b}\nextra: 1\ndata: {a: c}\n";
    let strict =
        send(&admin, Method::POST, &format!("{MAPS}?fieldValidation=Strict"), "application/yaml", body).await;
    assert_eq!(
        (strict.0, text(&strict)),
        (
            400,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: yaml: unmarshal errors:\n  line 5: key \"name\" already set in map\n  line 8: key \"data\" already set in map, unknown field \"extra\""
        )
    );
    let warned = send(&admin, Method::POST, MAPS, "application/yaml", body).await;
    assert_eq!(
        (warned.0, warned.1),
        (
            201,
            vec![
                "line 5: key \"name\" already set in map".to_owned(),
                "line 8: key \"data\" already set in map".to_owned(),
                "unknown field \"extra\"".to_owned()
            ]
        )
    );
    assert_eq!(warned.2["data"], json!({"a": "c"}));
    // Applied configurations are read as strictly; what they do not know is an error anyhow.
    let twice = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: m\ndata: {a: d}\ndata: {a: e}\n";
    let apply = format!("{MAPS}/m?fieldManager=x&force=true");
    let media = "application/apply-patch+yaml";
    let strict = send(&admin, Method::PATCH, &format!("{apply}&fieldValidation=Strict"), media, twice).await;
    assert_eq!(
        (strict.0, text(&strict)),
        (
            400,
            "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line 6: key \"data\" already set in map"
        )
    );
    let warned = send(&admin, Method::PATCH, &apply, media, twice).await;
    assert_eq!((warned.0, warned.1.len(), &warned.2["data"]), (200, 1, &json!({"a": "e"})));
}

#[tokio::test]
async fn patches_are_read_as_strictly() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.created(DEPLOYMENTS, json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}}})).await;
    let path = format!("{DEPLOYMENTS}/d");
    let merge = r#"{"spec": {"unknown1": 1, "paused": true, "paused": false}}"#;
    let strategic =
        r#"{"spec": {"foo": 1, "foo": 2, "template": {"spec": {"containers": [{"name": "c", "bar": 1}]}}}}"#;
    let json = r#"[{"op": "add", "path": "/spec/foo", "value": 1, "baz": 1}, {"op": "add", "path": "/x", "path": "/spec/bar", "value": 2}]"#;
    for (media, body, want) in [
        ("merge-patch", merge, &["duplicate field \"spec.paused\"", "unknown field \"spec.unknown1\""][..]),
        (
            "strategic-merge-patch",
            strategic,
            &[
                "duplicate field \"spec.foo\"",
                "unknown field \"spec.template.spec.containers[0].bar\"",
                "unknown field \"spec.foo\"",
            ],
        ),
        (
            "json-patch",
            json,
            &[
                "json patch unknown field \"[0].baz\"",
                "json patch duplicate field \"[1].path\"",
                "unknown field \"spec.bar\"",
                "unknown field \"spec.foo\"",
            ],
        ),
    ] {
        let media = format!("application/{media}+json");
        let strict =
            send(&admin, Method::PATCH, &format!("{path}?fieldValidation=Strict"), &media, body).await;
        assert_eq!(strict.0, 422, "{strict:?}");
        let all = format!("strict decoding error: {}", want.join(", "));
        assert!(text(&strict).starts_with(" \"\" is invalid: patch: Invalid value: "), "{strict:?}");
        assert!(text(&strict).ends_with(&all), "{strict:?}\n{all}");
        let warned = send(&admin, Method::PATCH, &path, &media, body).await;
        assert_eq!(
            (warned.0, &warned.1[..]),
            (200, &want.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>()[..])
        );
    }
    let wrong =
        send(&admin, Method::PATCH, &path, "application/merge-patch+json", r#"{"spec":{"replicas":"x"}}"#)
            .await;
    assert_eq!(wrong.0, 422, "{wrong:?}");
    let json = send(
        &admin,
        Method::PATCH,
        &path,
        "application/json-patch+json",
        r#"[{"op":"remove","path":"/nope"}]"#,
    )
    .await;
    assert_eq!(
        (json.0, text(&json)),
        (422, "the server rejected our request due to an error in our request")
    );
    for (body, want) in [
        (r#"{"spec": {"strategy": {"$retainKeys": 1}}}"#, "invalid patch format of retainKeys"),
        (
            r#"{"metadata": {"$deleteFromPrimitiveList/finalizers": 1}}"#,
            "invalid patch format of primitive list",
        ),
        (
            r#"{"metadata": {"$setElementOrder/finalizers": 1}}"#,
            "invalid patch format of setElementOrder list",
        ),
    ] {
        let answer = send(&admin, Method::PATCH, &path, "application/strategic-merge-patch+json", body).await;
        assert_eq!((answer.0, text(&answer)), (400, want));
    }
    let media = send(&admin, Method::PATCH, &path, "application/json", "{}").await;
    assert_eq!(
        (media.0, text(&media)),
        (
            415,
            "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml"
        )
    );
}

#[tokio::test]
async fn writes_are_answered_with_warnings() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": "u1"});
    let body = json!({"metadata": {"name": "m", "ownerReferences": [owner, owner]}}).to_string();
    let (code, warnings, made) = send(&admin, Method::POST, MAPS, "application/json", &body).await;
    assert_eq!((code, made["metadata"]["ownerReferences"].as_array().unwrap().len()), (201, 1));
    assert!(warnings[0].starts_with(".metadata.ownerReferences contains duplicate entries;"), "{warnings:?}");
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
        "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x",
            "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}]}}}});
    let (code, warnings, _) =
        send(&admin, Method::POST, DEPLOYMENTS, "application/json", &deployment.to_string()).await;
    let hidden = "spec.template.spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply";
    assert_eq!((code, warnings), (201, vec![hidden.to_owned()]));
    let scaled = r#"{"spec": {"replicas": 3}}"#;
    let path = format!("{DEPLOYMENTS}/d");
    let (code, warnings, _) =
        send(&admin, Method::PATCH, &path, "application/merge-patch+json", scaled).await;
    assert_eq!((code, warnings.len()), (200, 0), "only a changed template is warned of");
    let (_, warnings, _) = send(&admin, Method::GET, "/api/v1/namespaces/default/endpoints", "", "").await;
    assert_eq!(warnings, ["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"]);
    let absent = admin.get(&format!("{MAPS}/nope")).await;
    assert_eq!(message(&absent), "configmaps \"nope\" not found");
}
