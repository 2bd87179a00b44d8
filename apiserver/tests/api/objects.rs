//! Objects of any kind: the verbs, their preconditions, and the words of their refusals.

use serde_json::{Value, json};

use crate::harness::{Cluster, message};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

#[tokio::test]
async fn a_life_of_an_object() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let made = admin.created(MAPS, map("m")).await;
    let meta = &made["metadata"];
    assert!(
        meta["uid"].is_string() && meta["creationTimestamp"].is_string() && meta["namespace"] == "default"
    );
    let again = admin.create(MAPS, map("m")).await;
    assert_eq!((again.0, message(&again)), (409, "configmaps \"m\" already exists"));
    assert_eq!(again.1["reason"], "AlreadyExists");

    let path = format!("{MAPS}/m");
    let (_, got) = admin.get(&path).await;
    assert_eq!(got, made);
    let mut changed = made.clone();
    changed["data"]["a"] = "2".into();
    let (code, updated) = admin.update(&path, changed.clone()).await;
    assert_eq!(code, 200);
    assert_ne!(updated["metadata"]["resourceVersion"], meta["resourceVersion"]);
    assert_eq!(updated["metadata"]["uid"], meta["uid"]);
    // The same again changes nothing, so it makes no new version.
    let (_, same) = admin.update(&path, updated.clone()).await;
    assert_eq!(same, updated);

    let stale = admin.update(&path, changed).await;
    assert_eq!((stale.0, stale.1["reason"].as_str()), (409, Some("Conflict")));
    assert!(
        message(&stale).ends_with("please apply your changes to the latest version and try again"),
        "{stale:?}"
    );

    let (code, status) = admin.delete(&path).await;
    assert_eq!((code, status["status"].as_str()), (200, Some("Success")));
    assert_eq!(status["details"]["uid"], meta["uid"]);
    let gone = admin.get(&path).await;
    assert_eq!((gone.0, message(&gone)), (404, "configmaps \"m\" not found"));
}

#[tokio::test]
async fn objects_survive_a_restart() {
    let cluster = Cluster::start().await;
    let made = cluster.admin().created(MAPS, map("m")).await;
    let service = cluster.admin().get("/api/v1/namespaces/default/services/kubernetes").await.1;
    let cluster = cluster.restart().await;
    assert_eq!(cluster.admin().get(&format!("{MAPS}/m")).await.1, made);
    assert_eq!(
        cluster.admin().get("/api/v1/namespaces/default/services/kubernetes").await.1["spec"]["clusterIP"],
        service["spec"]["clusterIP"]
    );
}

#[tokio::test]
async fn names_are_generated_and_checked() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let made = admin.created(MAPS, json!({"metadata": {"generateName": "x-"}})).await;
    let name = made["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("x-") && name.len() == 7, "{name}");
    let bad = admin.create(MAPS, map("Upper")).await;
    assert_eq!((bad.0, bad.1["reason"].as_str()), (422, Some("Invalid")));
    assert_eq!(bad.1["details"]["causes"][0]["field"], "metadata.name");
    assert!(
        message(&bad).starts_with("ConfigMap \"Upper\" is invalid: metadata.name: Invalid value: \"Upper\""),
        "{bad:?}"
    );
    let elsewhere = admin.create("/api/v1/namespaces/nope/configmaps", map("m")).await;
    assert_eq!((elsewhere.0, message(&elsewhere)), (404, "namespaces \"nope\" not found"));
    let other = admin.create(MAPS, json!({"metadata": {"name": "a", "namespace": "kube-system"}})).await;
    assert_eq!(other.0, 400);
    let kind = admin.create(MAPS, json!({"kind": "Pod", "metadata": {"name": "a"}})).await;
    assert_eq!(kind.0, 400);
}

#[tokio::test]
async fn unknown_and_duplicate_fields() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut object = map("m");
    object["dta"] = json!({});
    let strict = admin.create(&format!("{MAPS}?fieldValidation=Strict"), object.clone()).await;
    assert_eq!(strict.0, 400);
    assert!(message(&strict).ends_with("strict decoding error: unknown field \"dta\""), "{strict:?}");
    let text = r#"{"metadata":{"name":"m"},"data":{"a":"1"},"data":{"b":"2"},"x":1}"#;
    let request =
        http::Request::post(MAPS).header("content-type", "application/json").body(text.into()).unwrap();
    let (status, headers, _) = admin.send(request).await;
    assert_eq!(status, 201);
    let warnings: Vec<_> = headers.get_all("warning").iter().map(|v| v.to_str().unwrap()).collect();
    assert_eq!(warnings, ["299 - \"duplicate field \\\"data\\\"\"", "299 - \"unknown field \\\"x\\\"\""]);
    assert_eq!(admin.get(&format!("{MAPS}/m")).await.1["data"], json!({"b": "2"}));
    let ignored = admin
        .create(
            &format!("{MAPS}?fieldValidation=Ignore&dryRun=All"),
            json!({"metadata": {"name": "n"}, "y": 1}),
        )
        .await;
    assert_eq!(ignored.0, 201);
    assert_eq!(admin.get(&format!("{MAPS}/n")).await.0, 404, "a dry run writes nothing");
}

#[tokio::test]
async fn patches() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let made = admin.created(path, json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}, {"name": "e", "image": "y"}]}}}})).await;
    assert_eq!(
        (made["metadata"]["generation"].as_i64(), made["spec"]["replicas"].as_i64()),
        (Some(1), Some(1))
    );
    let path = &format!("{path}/d");
    let strategic = json!({"spec": {"template": {"spec": {"containers": [{"name": "e", "image": "z"}]}}}});
    let (code, patched) = admin.patch(path, "strategic-merge-patch", strategic).await;
    assert_eq!(code, 200, "{patched}");
    assert_eq!(patched["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 2);
    assert_eq!(patched["spec"]["template"]["spec"]["containers"][1]["image"], "z");
    assert_eq!(patched["metadata"]["generation"], 2);
    let mut put = patched.clone();
    put["metadata"]["resourceVersion"] = json!("0");
    assert_eq!(admin.update(path, put).await.0, 200, "whatever version is there");
    let (_, patched) = admin
        .patch(path, "merge-patch", json!({"metadata": {"labels": {"l": "1"}}, "spec": {"replicas": 4}}))
        .await;
    assert_eq!(
        (patched["spec"]["replicas"].as_i64(), patched["metadata"]["generation"].as_i64()),
        (Some(4), Some(3))
    );
    let (_, patched) = admin.patch(path, "json-patch", json!([{"op": "test", "path": "/spec/replicas", "value": 4}, {"op": "remove", "path": "/metadata/labels"}])).await;
    assert!(patched["metadata"]["labels"].is_null() && patched["metadata"]["generation"] == 3);
    let failed =
        admin.patch(path, "json-patch", json!([{"op": "test", "path": "/spec/replicas", "value": 9}])).await;
    assert_eq!(failed.0, 422);
    let stale = admin.patch(path, "merge-patch", json!({"metadata": {"resourceVersion": "1"}})).await;
    assert_eq!(stale.0, 409);
    let any = admin.patch(path, "merge-patch", json!({"metadata": {"resourceVersion": "0"}})).await;
    assert_eq!(any.0, 200, "any version will do: {any:?}");
    let applied = admin.patch(path, "nonsense", json!({})).await;
    assert_eq!(applied.0, 415);
    let immutable = admin.patch(path, "merge-patch", json!({"spec": {"selector": {"matchLabels": {"x": "y"}}, "template": {"metadata": {"labels": {"x": "y"}}}}})).await;
    assert_eq!(immutable.0, 422, "{immutable:?}");
}

#[tokio::test]
async fn what_is_reported_must_make_sense() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.created("/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    admin.created(quotas, json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "5"}}})).await;
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    admin.created(claims, claim).await;
    let address = json!({"type": "InternalIP", "address": "10.0.0.1"});
    for (path, status, words) in [
        ("/api/v1/nodes/n", json!({"addresses": [address, address]}), "status.addresses[1]: Duplicate value"),
        ("/api/v1/nodes/n", json!({"capacity": {"cpu": "-1"}}), "must be greater than or equal to 0"),
        ("/api/v1/nodes/n", json!({"allocatable": {"pods": "1.5"}}), "must be an integer"),
        (&format!("{quotas}/q"), json!({"hard": {"crabs": "1"}}), "must be a standard resource for quota"),
        (&format!("{quotas}/q"), json!({"used": {"pods": "-1"}}), "must be greater than or equal to 0"),
        (
            &format!("{claims}/c"),
            json!({"capacity": {"storage": "-1"}}),
            "must be greater than or equal to 0",
        ),
        (
            &format!("{claims}/c"),
            json!({"allocatedResourceStatuses": {"storage": "Growing"}}),
            "status.allocatedResourceStatuses: Unsupported value: \"Growing\"",
        ),
        (
            &format!("{claims}/c"),
            json!({"allocatedResources": {"cpu": "1"}}),
            "supported values: \"storage\"",
        ),
    ] {
        let answer = admin.patch(&format!("{path}/status"), "merge-patch", json!({"status": status})).await;
        assert_eq!(answer.0, 422, "{status}: {}", answer.1);
        assert!(message(&answer).contains(words), "{words}: {}", message(&answer));
    }
    let good = json!({"status": {"addresses": [address], "capacity": {"cpu": "2", "pods": "110"}}});
    assert_eq!(admin.patch("/api/v1/nodes/n/status", "merge-patch", good).await.0, 200);
}

#[tokio::test]
async fn status_is_its_own() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let path = "/apis/apps/v1/namespaces/default/replicasets";
    let object = json!({"metadata": {"name": "r", "labels": {"l": "1"}}, "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}}, "status": {"replicas": 7}});
    let made = admin.created(path, object).await;
    assert_eq!(
        made["status"]["replicas"].as_i64().unwrap_or(0),
        0,
        "a client does not make the status: {made}"
    );
    let one = format!("{path}/r");
    let mut status = made.clone();
    status["status"] = json!({"replicas": 2, "observedGeneration": 1});
    status["spec"]["replicas"] = 9.into();
    let (code, updated) = admin.update(&format!("{one}/status"), status).await;
    assert_eq!(code, 200, "{updated}");
    assert_eq!(
        (updated["spec"]["replicas"].as_i64(), updated["status"]["replicas"].as_i64()),
        (Some(2), Some(2))
    );
    assert_eq!(updated["metadata"]["generation"], 1);
    let mut spec = updated.clone();
    spec["status"] = json!({"replicas": 0});
    spec["spec"]["replicas"] = 3.into();
    let (_, updated) = admin.update(&one, spec).await;
    assert_eq!(
        (updated["spec"]["replicas"].as_i64(), updated["status"]["replicas"].as_i64()),
        (Some(3), Some(2))
    );

    let (_, scale) = admin.get(&format!("{one}/scale")).await;
    assert_eq!((scale["kind"].as_str(), scale["spec"]["replicas"].as_i64()), (Some("Scale"), Some(3)));
    let (code, scale) =
        admin.patch(&format!("{one}/scale"), "merge-patch", json!({"spec": {"replicas": 5}})).await;
    assert_eq!((code, scale["spec"]["replicas"].as_i64()), (200, Some(5)));
    assert_eq!(admin.get(&one).await.1["metadata"]["generation"], 3);
    let negative =
        admin.patch(&format!("{one}/scale"), "merge-patch", json!({"spec": {"replicas": -1}})).await;
    assert_eq!(negative.0, 422);
}

#[tokio::test]
async fn finalizers_and_preconditions_hold_a_deletion() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut object = map("m");
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    admin.created(MAPS, object).await;
    let path = format!("{MAPS}/m");
    let (code, begun) = admin.delete(&path).await;
    assert_eq!(code, 200);
    assert!(begun["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(admin.get(&path).await.0, 200);
    let added = admin
        .patch(
            &path,
            "merge-patch",
            json!({"metadata": {"finalizers": ["example.com/hold", "example.com/new"]}}),
        )
        .await;
    assert_eq!(added.0, 422);
    let (code, _) = admin.patch(&path, "merge-patch", json!({"metadata": {"finalizers": null}})).await;
    assert_eq!((code, admin.get(&path).await.0), (200, 404));

    let made = admin.created(MAPS, map("m")).await;
    let wrong = json!({"preconditions": {"uid": "other"}});
    let request = http::Request::delete(&path)
        .header("content-type", "application/json")
        .body(wrong.to_string().into())
        .unwrap();
    assert_eq!(admin.send(request).await.0, 409);
    let right = json!({"preconditions": {"uid": made["metadata"]["uid"]}, "propagationPolicy": "Foreground"});
    let request = http::Request::delete(&path)
        .header("content-type", "application/json")
        .body(right.to_string().into())
        .unwrap();
    assert_eq!(admin.send(request).await.0, 200);
    assert_eq!(admin.get(&path).await.1["metadata"]["finalizers"], json!(["foregroundDeletion"]));
}

#[tokio::test]
async fn many_writers_lose_no_update() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.created(MAPS, json!({"metadata": {"name": "m"}})).await;
    let path = format!("{MAPS}/m");
    let writes = (0..16).map(|i| {
        let (admin, path) = (admin.clone(), path.clone());
        async move { admin.patch(&path, "merge-patch", json!({"data": {format!("k{i}"): "v"}})).await.0 }
    });
    let codes = futures::future::join_all(writes).await;
    assert!(codes.iter().all(|code| *code == 200), "{codes:?}");
    assert_eq!(admin.get(&path).await.1["data"].as_object().unwrap().len(), 16);
}

#[tokio::test]
async fn lists_are_snapshots_in_pages() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for name in ["a", "b", "c", "d", "e"] {
        let mut object = map(name);
        object["metadata"]["labels"] = json!({"odd": (name < "c").to_string()});
        admin.created(MAPS, object).await;
    }
    let (_, first) = admin.get(&format!("{MAPS}?limit=2")).await;
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    let token = first["metadata"]["continue"].as_str().unwrap();
    admin.delete(&format!("{MAPS}/d")).await;
    let (_, rest) = admin.get(&format!("{MAPS}?limit=9&continue={token}")).await;
    let names: Vec<_> =
        rest["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["c", "d", "e"], "the second page is of the first one's state");
    assert_eq!(rest["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let (_, selected) =
        admin.get(&format!("{MAPS}?labelSelector=odd%3Dtrue&fieldSelector=metadata.name!%3Da")).await;
    assert_eq!(selected["items"].as_array().unwrap().len(), 1);
    let unknown = admin.get(&format!("{MAPS}?fieldSelector=spec.x%3D1")).await;
    let refused = "\"spec.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"";
    assert_eq!((unknown.0, message(&unknown)), (400, refused));
    let future = admin.get(&format!("{MAPS}?resourceVersion=99999&resourceVersionMatch=NotOlderThan")).await;
    assert_eq!(future.0, 504, "{future:?}");
    let (_, deleted) = admin.delete(&format!("{MAPS}?labelSelector=odd%3Dtrue")).await;
    assert_eq!(deleted["items"].as_array().unwrap().len(), 2);
    assert_eq!(admin.get(MAPS).await.1["items"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn namespaces_go_last() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.namespace("web").await;
    let path = "/api/v1/namespaces/web";
    let (_, namespace) = admin.get(path).await;
    assert_eq!(
        (namespace["status"]["phase"].as_str(), namespace["spec"]["finalizers"][0].as_str()),
        (Some("Active"), Some("kubernetes"))
    );
    let (code, begun) = admin.delete(path).await;
    assert_eq!((code, begun["status"]["phase"].as_str()), (200, Some("Terminating")));
    let refused = admin.create(&format!("{path}/configmaps"), map("m")).await;
    assert_eq!(refused.0, 403);
    assert!(message(&refused).contains("because it is being terminated"));
    let mut done = begun.clone();
    done["spec"]["finalizers"] = json!([]);
    let (code, _) = admin.update(&format!("{path}/finalize"), done).await;
    assert_eq!((code, admin.get(path).await.0), (200, 404));
    let immortal = admin.delete("/api/v1/namespaces/kube-system").await;
    assert_eq!((immortal.0, immortal.1["reason"].as_str()), (403, Some("Forbidden")));
}

#[tokio::test]
async fn events_are_one_kind_in_two_groups() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.created("/api/v1/namespaces/default/events", json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "Started", "message": "words", "type": "Normal", "count": 2})).await;
    let (code, event) = admin.get("/apis/events.k8s.io/v1/namespaces/default/events/e").await;
    assert_eq!(code, 200);
    assert_eq!(
        (event["note"].as_str(), event["regarding"]["name"].as_str(), event["apiVersion"].as_str()),
        (Some("words"), Some("p"), Some("events.k8s.io/v1"))
    );
    let (_, list) = admin.get("/apis/events.k8s.io/v1/events?fieldSelector=regarding.name%3Dp").await;
    assert_eq!(list["items"][0]["deprecatedCount"], 2);
    let (_, list) = admin.get("/api/v1/events?fieldSelector=involvedObject.name%3Dother").await;
    assert_eq!(list["items"], json!([]));
}

#[tokio::test]
async fn tables_and_metadata() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.created(MAPS, map("m")).await;
    let ask = |accept: &'static str, path: String| {
        let admin = admin.clone();
        async move {
            let request = http::Request::get(path).header("accept", accept).body(Vec::new()).unwrap();
            serde_json::from_slice::<Value>(&admin.send(request).await.2).unwrap()
        }
    };
    let table = ask("application/json;as=Table;v=v1;g=meta.k8s.io", MAPS.to_owned()).await;
    assert_eq!(table["columnDefinitions"][1]["name"], "Data");
    assert_eq!(
        (table["rows"][0]["cells"][0].as_str(), table["rows"][0]["cells"][1].as_i64()),
        (Some("m"), Some(1))
    );
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let metadata =
        ask("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", MAPS.to_owned()).await;
    assert_eq!(metadata["items"][0]["metadata"]["name"], "m");
    assert!(metadata["items"][0]["data"].is_null());
}

#[tokio::test]
async fn what_is_immutable_stays() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut object = map("m");
    object["immutable"] = true.into();
    admin.created(MAPS, object).await;
    let path = format!("{MAPS}/m");
    let changed = admin.patch(&path, "merge-patch", json!({"data": {"a": "2"}})).await;
    assert_eq!(changed.0, 422, "{changed:?}");
    let labelled = admin.patch(&path, "merge-patch", json!({"metadata": {"labels": {"l": "1"}}})).await;
    assert_eq!(labelled.0, 200);
    let secrets = "/api/v1/namespaces/default/secrets";
    let made = admin.created(secrets, json!({"metadata": {"name": "s"}, "stringData": {"a": "b"}})).await;
    assert_eq!((made["type"].as_str(), made["data"]["a"].as_str()), (Some("Opaque"), Some("Yg==")));
    assert!(made["stringData"].is_null(), "{made}");
    let retyped =
        admin.patch(&format!("{secrets}/s"), "merge-patch", json!({"type": "kubernetes.io/tls"})).await;
    assert_eq!(retyped.0, 422, "{retyped:?}");
    let uid = admin.patch(&path, "merge-patch", json!({"metadata": {"uid": "other"}})).await;
    assert_eq!(uid.0, 409, "{uid:?}");
}
