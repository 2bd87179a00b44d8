//! Deletions: how they propagate, what they demand of the object, dry runs of every verb, and
//! `[sig-api-machinery]` generateName.

use http::Request;
use serde_json::{Value, json};

use crate::harness::{Answer, Client, Cluster, message, pod};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn delete(admin: &Client, path: &str, options: Value) -> Answer {
    let request = Request::delete(path).header("content-type", "application/json");
    let (status, _, bytes) = admin.send(request.body(options.to_string().into()).unwrap()).await;
    (status.as_u16(), serde_json::from_slice(&bytes).unwrap())
}

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"set": "a"}}, "data": {"a": "1"}})
}

#[tokio::test]
async fn options_of_a_deletion_are_checked() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let made = admin.created(MAPS, map("m")).await;
    let path = format!("{MAPS}/m");
    let (uid, version) =
        (made["metadata"]["uid"].as_str().unwrap(), made["metadata"]["resourceVersion"].as_str().unwrap());
    for (options, code, want) in [
        (
            json!({"propagationPolicy": "Never"}),
            422,
            "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \"Never\": supported values: ".to_owned(),
        ),
        (
            json!({"propagationPolicy": "Orphan", "orphanDependents": true}),
            422,
            "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Invalid value: \"Orphan\": orphanDependents and deletionPropagation cannot be both set".to_owned(),
        ),
        (
            json!({"dryRun": ["Some"]}),
            422,
            "DeleteOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: \"Some\": supported values: \"All\"".to_owned(),
        ),
        (
            json!({"preconditions": {"uid": "x"}}),
            409,
            format!("Operation cannot be fulfilled on ConfigMap \"m\": the UID in the precondition (x) does not match the UID in record ({uid}). The object might have been deleted and then recreated"),
        ),
        (
            json!({"preconditions": {"resourceVersion": "1"}}),
            409,
            format!("Operation cannot be fulfilled on ConfigMap \"m\": the ResourceVersion in the precondition (1) does not match the ResourceVersion in record ({version}). The object might have been modified"),
        ),
    ] {
        let answer = delete(&admin, &path, options).await;
        assert_eq!(answer.0, code, "{answer:?}");
        assert!(message(&answer).starts_with(&want), "{answer:?}");
    }
    let query = admin.delete(&format!("{path}?propagationPolicy=Never")).await;
    assert_eq!(query.0, 422);
    let dry = delete(&admin, &path, json!({"dryRun": ["All"]})).await;
    assert_eq!((dry.0, admin.get(&path).await.0), (200, 200));
    let dry = admin.delete(&format!("{path}?dryRun=All")).await;
    assert_eq!((dry.0, admin.get(&path).await.0), (200, 200));
    let right = json!({"preconditions": {"uid": uid, "resourceVersion": version}});
    assert_eq!((delete(&admin, &path, right).await.0, admin.get(&path).await.0), (200, 404));
}

#[tokio::test]
async fn propagation_is_told_by_finalizers() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let path = format!("{MAPS}/m");
    for (options, want) in [
        (json!({"propagationPolicy": "Foreground"}), Some("foregroundDeletion")),
        (json!({"propagationPolicy": "Orphan"}), Some("orphan")),
        (json!({"orphanDependents": true}), Some("orphan")),
        (json!({"propagationPolicy": "Background"}), None),
        (json!({"orphanDependents": false}), None),
    ] {
        admin.created(MAPS, map("m")).await;
        assert_eq!(delete(&admin, &path, options.clone()).await.0, 200);
        let (code, left) = admin.get(&path).await;
        let Some(finalizer) = want else {
            assert_eq!(code, 404, "{options}");
            continue;
        };
        assert_eq!(left["metadata"]["finalizers"], json!([finalizer]), "{options}");
        // A second deletion may change its mind; the last finalizer taken, the object goes.
        let background = delete(&admin, &path, json!({"propagationPolicy": "Background"})).await;
        assert_eq!((background.0, admin.get(&path).await.0), (200, 404), "{options}");
    }
    let mut held = map("m");
    held["metadata"]["finalizers"] = json!(["example.com/a"]);
    admin.created(MAPS, held).await;
    delete(&admin, &path, json!({})).await;
    let patch = json!({"metadata": {"finalizers": ["example.com/a", "example.com/b"]}});
    let refused = admin.patch(&path, "merge-patch", patch).await;
    assert!(
        message(&refused).ends_with("metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"example.com/b\"}"),
        "{refused:?}"
    );
    let (code, _) = admin.patch(&path, "merge-patch", json!({"metadata": {"finalizers": null}})).await;
    assert_eq!((code, admin.get(&path).await.0), (200, 404));
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for name in ["a", "b", "c"] {
        admin.created(MAPS, map(name)).await;
    }
    let (_, _) =
        admin.patch(&format!("{MAPS}/c"), "merge-patch", json!({"metadata": {"labels": {"set": "b"}}})).await;
    let selected = format!("{MAPS}?labelSelector=set%3Da");
    let (code, dry) = delete(&admin, &selected, json!({"dryRun": ["All"]})).await;
    assert_eq!((code, dry["items"].as_array().unwrap().len()), (200, 2));
    assert_eq!(admin.get(&format!("{MAPS}/a")).await.0, 200);
    let (code, gone) = delete(&admin, &selected, json!({})).await;
    assert_eq!((code, gone["kind"].as_str()), (200, Some("ConfigMapList")));
    for (name, want) in [("a", 404), ("b", 404), ("c", 200)] {
        assert_eq!(admin.get(&format!("{MAPS}/{name}")).await.0, want);
    }
}

#[tokio::test]
async fn a_dry_run_of_every_verb_writes_nothing() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    cluster.admin().service_account("default").await;
    let path = format!("{MAPS}/m");
    let (code, _) = admin.create(&format!("{MAPS}?dryRun=All"), map("m")).await;
    assert_eq!((code, admin.get(&path).await.0), (201, 404));
    let made = admin.created(MAPS, map("m")).await;
    let mut changed = made.clone();
    changed["data"]["a"] = "2".into();
    let (code, seen) = admin.update(&format!("{path}?dryRun=All"), changed).await;
    assert_eq!((code, &seen["data"]["a"]), (200, &json!("2")));
    for kind in ["merge-patch", "strategic-merge-patch"] {
        let (code, seen) =
            admin.patch(&format!("{path}?dryRun=All"), kind, json!({"data": {"a": "3"}})).await;
        assert_eq!((code, &seen["data"]["a"]), (200, &json!("3")));
    }
    assert_eq!(admin.get(&path).await.1, made);
    let bad = admin.create(&format!("{MAPS}?dryRun=Maybe"), map("n")).await;
    assert_eq!(
        message(&bad),
        "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: \"Maybe\": supported values: \"All\""
    );

    let pods = "/api/v1/namespaces/default/pods";
    admin.created(pods, pod("p")).await;
    let before = admin.get(&format!("{pods}/p")).await.1;
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let (code, _) = admin.create(&format!("{pods}/p/binding?dryRun=All"), binding).await;
    assert_eq!((code, admin.get(&format!("{pods}/p")).await.1), (201, before.clone()));
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"},
        "deleteOptions": {"dryRun": ["All"]}});
    let (code, _) = admin.create(&format!("{pods}/p/eviction"), eviction).await;
    assert_eq!((code, admin.get(&format!("{pods}/p")).await.1), (201, before.clone()));
    let status = json!({"status": {"phase": "Running"}});
    let (code, _) = admin.patch(&format!("{pods}/p/status?dryRun=All"), "merge-patch", status).await;
    assert_eq!((code, admin.get(&format!("{pods}/p")).await.1), (200, before));
}

#[tokio::test]
async fn kinds_that_demand_a_version_of_an_update() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let lease = json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}});
    // What is not there is made by the PUT; what is there must be named by its version.
    assert_eq!(admin.update(&format!("{leases}/l"), lease.clone()).await.0, 201);
    let refused = admin.update(&format!("{leases}/l"), lease).await;
    assert_eq!(
        message(&refused),
        "Lease.coordination.k8s.io \"l\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update"
    );
    admin.created(MAPS, map("m")).await;
    assert_eq!(admin.update(&format!("{MAPS}/m"), map("m")).await.0, 200);
}
