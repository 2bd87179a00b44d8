//! Server-side apply: `[sig-api-machinery]` apply, and who owns what after every other write.

use serde_json::{Value, json};

use crate::harness::{Answer, Client, Cluster, message};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

async fn apply(admin: &Client, path: &str, config: &Value) -> Answer {
    // YAML is a superset of JSON: so is what `kubectl apply --server-side` sends.
    let mut path = path.to_owned();
    if !path.contains("fieldManager") {
        path.push_str(if path.contains('?') { "&fieldManager=tester" } else { "?fieldManager=tester" });
    }
    let request = http::Request::patch(path)
        .header("content-type", "application/apply-patch+yaml")
        .body(config.to_string().into_bytes())
        .unwrap();
    let (status, _, bytes) = admin.send(request).await;
    (status.as_u16(), serde_json::from_slice(&bytes).unwrap())
}

fn deployment(replicas: i64, image: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": {"app": "d"}},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "d"}},
            "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": image}]}}}})
}

fn entry<'a>(object: &'a Value, manager: &str) -> &'a Value {
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    entries.iter().find(|e| e["manager"] == manager).unwrap_or(&Value::Null)
}

#[tokio::test]
async fn apply_creates_changes_and_is_idempotent() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let path = format!("{DEPLOYMENTS}/d");
    let dry = apply(&admin, &format!("{path}?dryRun=All"), &deployment(1, "a")).await;
    assert_eq!((dry.0, admin.get(&path).await.0), (201, 404), "{dry:?}");
    let (code, made) = apply(&admin, &path, &deployment(1, "a")).await;
    assert_eq!((code, &made["spec"]["strategy"]["type"]), (201, &json!("RollingUpdate")), "{made}");
    let owned = entry(&made, "tester");
    assert_eq!((&owned["operation"], &owned["apiVersion"]), (&json!("Apply"), &json!("apps/v1")));
    // What it said, and no default.
    assert_eq!(
        owned["fieldsV1"],
        json!({"f:metadata": {"f:labels": {"f:app": {}}}, "f:spec": {"f:replicas": {}, "f:selector": {},
            "f:template": {"f:metadata": {"f:labels": {"f:app": {}}}, "f:spec": {"f:containers": {
                "k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:image": {}}}}}}})
    );
    let (code, same) = apply(&admin, &path, &deployment(1, "a")).await;
    assert_eq!((code, &same), (200, &made), "the same again is no write");
    let (_, changed) = apply(&admin, &path, &deployment(2, "b")).await;
    assert_eq!(changed["spec"]["template"]["spec"]["containers"][0]["image"], "b");
    assert_eq!(changed["metadata"]["generation"], 2);
    // What is no longer applied goes; what has a default gets it again.
    let mut less = deployment(2, "b");
    less["spec"].as_object_mut().unwrap().remove("replicas");
    less["metadata"].as_object_mut().unwrap().remove("labels");
    let (_, reduced) = apply(&admin, &path, &less).await;
    assert_eq!((&reduced["spec"]["replicas"], &reduced["metadata"]["labels"]), (&json!(1), &Value::Null));
}

#[tokio::test]
async fn conflicts_are_refused_or_forced() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let path = format!("{DEPLOYMENTS}/d");
    admin.created(&format!("{DEPLOYMENTS}?fieldManager=kubectl-create"), deployment(1, "a")).await;
    let (code, status) = apply(&admin, &path, &deployment(3, "a")).await;
    assert_eq!((code, status["reason"].as_str()), (409, Some("Conflict")));
    assert_eq!(
        status["message"],
        "Apply failed with 1 conflict: conflict with \"kubectl-create\" using apps/v1: .spec.replicas"
    );
    assert_eq!(
        status["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "field": ".spec.replicas",
            "message": "conflict with \"kubectl-create\" using apps/v1"}])
    );
    let (code, forced) = apply(&admin, &format!("{path}?force=true"), &deployment(3, "a")).await;
    assert_eq!((code, &forced["spec"]["replicas"]), (200, &json!(3)));
    assert!(entry(&forced, "kubectl-create")["fieldsV1"]["f:spec"]["f:replicas"].is_null());
    assert!(entry(&forced, "kubectl-create")["fieldsV1"]["f:spec"]["f:strategy"].is_object());
}

#[tokio::test]
async fn every_write_is_somebodys() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let request = http::Request::post(MAPS)
        .header("content-type", "application/json")
        .header("user-agent", "kubectl/v1.36.0 (linux/amd64)")
        .body(json!({"metadata": {"name": "m"}, "data": {"a": "1", "b": "1"}}).to_string().into())
        .unwrap();
    let (_, _, bytes) = admin.send(request).await;
    let made: Value = serde_json::from_slice(&bytes).unwrap();
    let owned = entry(&made, "kubectl");
    assert_eq!(owned["fieldsV1"], json!({"f:data": {".": {}, "f:a": {}, "f:b": {}}}));
    assert_eq!(owned["operation"], "Update");
    let path = format!("{MAPS}/m");
    let patch = json!({"data": {"b": "2"}});
    let (_, patched) = admin.patch(&format!("{path}?fieldManager=other"), "merge-patch", patch).await;
    assert_eq!(entry(&patched, "other")["fieldsV1"], json!({"f:data": {"f:b": {}}}));
    assert_eq!(entry(&patched, "kubectl")["fieldsV1"], json!({"f:data": {".": {}, "f:a": {}}}));
    // A client that knows nothing of managers does not lose them; one that resets them does.
    let mut ignorant = patched.clone();
    ignorant["metadata"].as_object_mut().unwrap().remove("managedFields");
    ignorant["data"]["c"] = "3".into();
    let (_, updated) = admin.update(&format!("{path}?fieldManager=third"), ignorant).await;
    assert_eq!(entry(&updated, "third")["fieldsV1"], json!({"f:data": {"f:c": {}}}));
    let reset = json!([{"op": "replace", "path": "/metadata/managedFields", "value": [{}]}]);
    let (code, bare) = admin.patch(&path, "json-patch", reset).await;
    assert_eq!((code, &bare["metadata"]["managedFields"]), (200, &Value::Null));
    let (_, still) = admin.patch(&path, "merge-patch", json!({"data": {"d": "4"}})).await;
    assert_eq!(still["metadata"]["managedFields"], Value::Null);
    let config =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"d": "4"}});
    let (_, applied) = apply(&admin, &path, &config).await;
    assert!(entry(&applied, "before-first-apply").is_object() && entry(&applied, "tester").is_object());
}

#[tokio::test]
async fn what_apply_demands() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let path = format!("{MAPS}/m");
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    for (path, config, code, want) in [
        (
            format!("{path}?fieldManager="),
            config.clone(),
            422,
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        ),
        (
            path.clone(),
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "m"}}),
            400,
            "invalid object type: /v1, Kind=Secret",
        ),
        (
            path.clone(),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "managedFields": []}}),
            400,
            "metadata.managedFields must be nil",
        ),
        (
            path.clone(),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}),
            400,
            "the name of the object (x) does not match the name on the URL (m)",
        ),
        (
            path.clone(),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "dta": {}}),
            500,
            "failed to create typed patch object (default/m; /v1, Kind=ConfigMap): .dta: field not declared in schema",
        ),
        (
            path.clone(),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "uid": "u"}}),
            409,
            "Operation cannot be fulfilled on configmaps \"m\": uid mismatch: the provided object specified uid u, and no existing object was found",
        ),
    ] {
        let answer = apply(&admin, &path, &config).await;
        assert_eq!((answer.0, message(&answer)), (code, want), "{answer:?}");
    }
    assert_eq!(apply(&admin, &path, &config).await.0, 201);
    let stale = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "resourceVersion": "1"},
        "data": {"a": "b"}});
    assert_eq!(apply(&admin, &path, &stale).await.0, 409);
    let forced = admin.patch(&format!("{path}?force=true"), "merge-patch", json!({})).await;
    assert!(message(&forced).ends_with("force: Forbidden: may not be specified for non-apply patch"));
    // Applying to what is not there takes the right to create.
    let role = json!({"metadata": {"name": "patcher"}, "rules": [{"apiGroups": [""], "resources": ["configmaps"],
        "verbs": ["patch"]}]});
    admin.created("/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles", role).await;
    let binding = json!({"metadata": {"name": "patcher"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "patcher"},
        "subjects": [{"kind": "User", "name": "jo", "apiGroup": "rbac.authorization.k8s.io"}]});
    admin.created("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", binding).await;
    let jo = cluster.as_user("jo", &[]);
    let new = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "n"}});
    for _ in 0..6000 {
        if apply(&jo, &path, &config).await.0 == 200 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let refused = apply(&jo, &format!("{MAPS}/n"), &new).await;
    assert_eq!(refused.0, 403, "{refused:?}");
    assert!(message(&refused).contains("cannot create resource \"configmaps\""), "{refused:?}");
}

#[tokio::test]
async fn status_and_scale_are_applied_apart() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let path = format!("{DEPLOYMENTS}/d");
    apply(&admin, &path, &deployment(1, "a")).await;
    let status = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 7}, "status": {"replicas": 1}});
    let (code, done) = apply(&admin, &format!("{path}/status?fieldManager=controller"), &status).await;
    assert_eq!(
        (code, &done["status"]["replicas"], &done["spec"]["replicas"]),
        (200, &json!(1), &json!(1)),
        "{done}"
    );
    let owned = entry(&done, "controller");
    assert_eq!(
        (&owned["subresource"], &owned["fieldsV1"]),
        (&json!("status"), &json!({"f:status": {"f:replicas": {}}}))
    );
    let missing = apply(&admin, &format!("{DEPLOYMENTS}/nope/status"), &status).await;
    assert_eq!(missing.0, 404, "{missing:?}");

    // Who scales owns the number, whatever it is called where.
    let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale",
        "metadata": {"name": "d", "namespace": "default"}, "spec": {"replicas": 5}});
    let refused = apply(&admin, &format!("{path}/scale?fieldManager=scaler"), &scale).await;
    assert_eq!(message(&refused), "Apply failed with 1 conflict: conflict with \"tester\": .spec.replicas");
    let (code, _) = apply(&admin, &format!("{path}/scale?fieldManager=scaler&force=true"), &scale).await;
    assert_eq!(code, 200);
    let (_, scaled) = admin.get(&path).await;
    let owned = entry(&scaled, "scaler");
    assert_eq!(scaled["spec"]["replicas"], 5);
    assert_eq!((&owned["subresource"], &owned["apiVersion"]), (&json!("scale"), &json!("apps/v1")));
    assert_eq!(owned["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    assert!(entry(&scaled, "tester")["fieldsV1"]["f:spec"]["f:replicas"].is_null());
    let again = apply(&admin, &path, &deployment(1, "a")).await;
    assert_eq!(
        message(&again),
        "Apply failed with 1 conflict: conflict with \"scaler\" with subresource \"scale\": .spec.replicas"
    );
    let (_, _) = admin
        .patch(&format!("{path}/scale?fieldManager=hand"), "merge-patch", json!({"spec": {"replicas": 2}}))
        .await;
    let (_, scaled) = admin.get(&path).await;
    assert_eq!(entry(&scaled, "hand")["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    assert!(entry(&scaled, "scaler").is_null());
}

#[tokio::test]
async fn versions_of_one_kind_share_their_owners() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let v2 = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers/h";
    let v1 = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers/h";
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"});
    let config = |version: &str, max: i64| {
        json!({"apiVersion": format!("autoscaling/{version}"),
        "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
        "spec": {"scaleTargetRef": target, "maxReplicas": max}})
    };
    assert_eq!(apply(&admin, v1, &config("v1", 3)).await.0, 201);
    let conflict = apply(&admin, &format!("{v2}?fieldManager=other"), &config("v2", 4)).await;
    assert_eq!(
        message(&conflict),
        "Apply failed with 1 conflict: conflict with \"tester\": .spec.maxReplicas"
    );
    let (code, changed) = apply(&admin, v2, &config("v2", 4)).await;
    assert_eq!((code, &changed["spec"]["maxReplicas"]), (200, &json!(4)), "{changed}");
    assert_eq!(entry(&changed, "tester")["apiVersion"], "autoscaling/v2");
}
