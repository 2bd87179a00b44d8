//! The plugins of admission that an operator chooses.

use std::time::Duration;

use decapod_apiserver::AdmissionPlugins;
use serde_json::{Value, json};

use crate::harness::{Client, Cluster, message, pod};

const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SERVICES: &str = "/api/v1/namespaces/default/services";

async fn with(enable: &[&str], disable: &[&str]) -> (Cluster, Client) {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let plugins = AdmissionPlugins { enable: owned(enable), disable: owned(disable) };
    let cluster = Cluster::start_with(|options, _| options.admission_plugins = plugins).await;
    let admin = cluster.admin();
    admin.service_account("default").await;
    (cluster, admin)
}

#[tokio::test]
async fn images_are_always_pulled_where_that_is_asked_for() {
    let (_cluster, admin) = with(&["AlwaysPullImages"], &[]).await;
    let mut object = pod("a");
    object["spec"]["initContainers"] =
        json!([{"name": "i", "image": "busybox:1", "imagePullPolicy": "Never"}]);
    object["spec"]["containers"][0]["imagePullPolicy"] = "IfNotPresent".into();
    let made = admin.created(PODS, object).await;
    for list in ["initContainers", "containers"] {
        assert_eq!(made["spec"][list][0]["imagePullPolicy"], "Always", "{made}");
    }
}

#[tokio::test]
async fn external_addresses_are_denied_where_that_is_asked_for() {
    let (_cluster, admin) = with(&["DenyServiceExternalIPs"], &[]).await;
    let service = |addresses: Value| json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}], "externalIPs": addresses}});
    let refused = admin.create(SERVICES, service(json!(["192.0.2.1"]))).await;
    let why = "services \"s\" is forbidden: Use of external IPs is denied by admission control";
    assert_eq!((refused.0, message(&refused)), (403, why));
    admin.created(SERVICES, service(json!([]))).await;
    let patch = json!({"spec": {"externalIPs": ["192.0.2.1"]}});
    let refused = admin.patch(&format!("{SERVICES}/s"), "merge-patch", patch).await;
    assert_eq!((refused.0, message(&refused)), (403, why));
}

#[tokio::test]
async fn what_is_disabled_does_not_run() {
    let (_cluster, admin) = with(&[], &["NamespaceLifecycle", "DefaultTolerationSeconds"]).await;
    admin.created("/api/v1/namespaces/nowhere/configmaps", json!({"metadata": {"name": "a"}})).await;
    let made = admin.created(PODS, pod("a")).await;
    assert!(made["spec"]["tolerations"].is_null(), "{made}");
}

/// Lets jane do this, and waits until she may.
async fn allow(admin: &Client, jane: &Client, rules: Value) {
    const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
    let name = format!("r{}", rules.to_string().len());
    admin.created(&format!("{RBAC}/clusterroles"), json!({"metadata": {"name": name}, "rules": rules})).await;
    let group = "rbac.authorization.k8s.io";
    let binding = json!({"metadata": {"name": name}, "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "User", "name": "jane", "apiGroup": group}]});
    admin.created(&format!("{RBAC}/clusterrolebindings"), binding).await;
    let rule = &rules[0];
    let (resource, subresource) = rule["resources"][0]
        .as_str()
        .unwrap()
        .split_once('/')
        .unwrap_or((rule["resources"][0].as_str().unwrap(), ""));
    let asked = json!({"spec": {"resourceAttributes": {"verb": rule["verbs"][0], "group": rule["apiGroups"][0],
        "resource": resource, "subresource": subresource, "namespace": "default"}}});
    const REVIEW: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    while jane.create(REVIEW, asked.clone()).await.1["status"]["allowed"] != true {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn owners_are_named_by_those_who_may_delete_and_block() {
    let (cluster, admin) = with(&["OwnerReferencesPermissionEnforcement"], &[]).await;
    let jane = cluster.as_user("jane", &["system:authenticated"]);
    let maps = |verbs: Value| json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": verbs}]);
    allow(&admin, &jane, maps(json!(["update", "create", "get", "patch"]))).await;
    let owner = |blocks: bool| json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "blockOwnerDeletion": blocks}]);
    // Who makes it need not be able to delete it, nor to block anything that does not block.
    let map = |name: &str, owners: Value| json!({"metadata": {"name": name, "ownerReferences": owners}});
    jane.created(MAPS, map("made", owner(false))).await;
    let blocking = jane.create(MAPS, map("blocking", owner(true))).await;
    assert_eq!(blocking.0, 403, "{}", blocking.1);
    let why = "configmaps \"blocking\" is forbidden: cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: ";
    assert!(message(&blocking).starts_with(why), "{}", blocking.1);
    let unknown =
        json!([{"apiVersion": "x/v1", "kind": "Crab", "name": "c", "uid": "u", "blockOwnerDeletion": true}]);
    let unknown = jane.create(MAPS, map("unknown", unknown)).await;
    assert!(
        message(&unknown).contains("cannot find RESTMapping for APIVersion x/v1 Kind Crab"),
        "{}",
        unknown.1
    );

    jane.created(MAPS, map("later", json!([]))).await;
    let patch = json!({"metadata": {"ownerReferences": owner(false)}});
    let set = async || jane.patch(&format!("{MAPS}/later"), "merge-patch", patch.clone()).await;
    let refused = set().await;
    assert_eq!(refused.0, 403, "{}", refused.1);
    assert!(
        message(&refused).contains("cannot set an ownerRef on a resource you can't delete"),
        "{}",
        refused.1
    );
    allow(&admin, &jane, maps(json!(["delete"]))).await;
    assert_eq!(set().await.0, 200);
    let finalizers =
        json!([{"apiGroups": ["apps"], "resources": ["replicasets/finalizers"], "verbs": ["update"]}]);
    allow(&admin, &jane, finalizers).await;
    jane.created(MAPS, map("blocking", owner(true))).await;
}
