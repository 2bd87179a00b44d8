//! Who may do what: RBAC, the node authorizer and NodeRestriction.

use serde_json::{Value, json};
use std::time::Duration;

use crate::harness::{Client, Cluster, message, pod};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// Roles take effect once the mirror has seen them: asks until the answer is as wanted.
pub(crate) async fn eventually(client: &Client, path: &str, wanted: u16) -> Value {
    let mut last = (0, Value::Null);
    for _ in 0..6000 {
        last = client.get(path).await;
        if last.0 == wanted {
            return last.1;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{path}: wanted {wanted}, got {last:?}");
}

#[tokio::test]
async fn roles_grant_what_they_say() {
    let cluster = Cluster::start().await;
    let (admin, jane) = (cluster.admin(), cluster.as_user("jane", &["dev"]));
    let pods = "/api/v1/namespaces/default/pods";
    let refused = jane.get(pods).await;
    assert_eq!(refused.0, 403);
    assert_eq!(
        message(&refused),
        "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    let binding = json!({"metadata": {"name": "dev"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "Group", "name": "dev", "apiGroup": "rbac.authorization.k8s.io"}]});
    admin.created(&format!("{RBAC}/namespaces/default/rolebindings"), binding).await;
    eventually(&jane, pods, 200).await;
    assert_eq!(jane.get("/api/v1/namespaces/default/secrets").await.0, 403, "view does not show Secrets");
    assert_eq!(jane.get("/api/v1/namespaces/kube-system/pods").await.0, 403);
    assert_eq!(
        jane.create("/api/v1/namespaces/default/configmaps", json!({"metadata": {"name": "a"}})).await.0,
        403
    );
    let review =
        json!({"spec": {"resourceAttributes": {"verb": "list", "resource": "pods", "namespace": "default"}}});
    let (_, review) = jane.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review).await;
    assert_eq!(review["status"]["allowed"], true, "{review}");
    admin.delete(&format!("{RBAC}/namespaces/default/rolebindings/dev")).await;
    eventually(&jane, pods, 403).await;
    assert_eq!(jane.get("/version").await.0, 200);
    assert_eq!(jane.get("/metrics").await.0, 403);
}

#[tokio::test]
async fn components_may_do_their_work() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.service_account("default").await;
    admin.created("/api/v1/namespaces/default/pods", pod("p")).await;
    let scheduler = cluster.as_user("system:kube-scheduler", &[]);
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    assert_eq!(scheduler.create("/api/v1/namespaces/default/pods/p/binding", binding).await.0, 201);
    assert_eq!(scheduler.get("/api/v1/secrets").await.0, 403);
    let controllers = cluster.as_user("system:kube-controller-manager", &[]);
    for path in [
        "/api/v1/pods",
        "/apis/apps/v1/replicasets",
        "/api/v1/namespaces",
        "/apis/discovery.k8s.io/v1/endpointslices",
    ] {
        assert_eq!(controllers.get(path).await.0, 200, "{path}");
    }
    let slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": []});
    assert_eq!(
        controllers.create("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice).await.0,
        201
    );
    let proxy = cluster.as_user("system:kube-proxy", &[]);
    assert_eq!(proxy.get("/api/v1/services").await.0, 200);
    assert_eq!(proxy.get("/api/v1/pods").await.0, 403);
}

#[tokio::test]
async fn a_node_reads_what_its_pods_need() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.service_account("default").await;
    let secrets = "/api/v1/namespaces/default/secrets";
    for name in ["used", "other"] {
        admin.created(secrets, json!({"metadata": {"name": name}, "stringData": {"a": "b"}})).await;
    }
    let mut object = pod("p");
    object["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "used"}}]);
    let made = admin.created("/api/v1/namespaces/default/pods", object).await;
    let node = cluster.as_user("system:node:n1", &["system:nodes"]);
    let used = format!("{secrets}/used");
    assert_eq!(node.get(&used).await.0, 403, "the pod is not on the node yet");
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    admin.create("/api/v1/namespaces/default/pods/p/binding", binding).await;
    assert_eq!(node.get(&used).await.0, 200);
    assert_eq!(node.get(&format!("{secrets}/other")).await.0, 403);
    assert_eq!(node.get(secrets).await.0, 403);
    assert_eq!(node.get(&format!("{secrets}?fieldSelector=metadata.name%3Dused")).await.0, 200);
    assert_eq!(cluster.as_user("system:node:n2", &["system:nodes"]).get(&used).await.0, 403);
    let token = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let pod = json!({"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": made["metadata"]["uid"]});
    let bound = json!({"spec": {"boundObjectRef": pod}});
    assert_eq!(node.create(token, json!({"spec": {}})).await.0, 403, "a token of no pod");
    assert_eq!(node.create(token, bound.clone()).await.0, 201);
    let vault = json!({"spec": {"boundObjectRef": pod, "audiences": ["vault"]}});
    let refused = node.create(token, vault).await;
    assert!(message(&refused).contains("audience \"vault\" not found in pod spec volume"), "{refused:?}");
    let stranger = cluster.as_user("system:node:n2", &["system:nodes"]);
    assert_eq!(stranger.create(token, bound).await.0, 403);
}

#[tokio::test]
async fn a_node_changes_itself_only() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.service_account("default").await;
    let node = cluster.as_user("system:node:n1", &["system:nodes"]);
    let nodes = "/api/v1/nodes";
    assert_eq!(node.create(nodes, json!({"metadata": {"name": "n1"}})).await.0, 201);
    let other = node.create(nodes, json!({"metadata": {"name": "n2"}})).await;
    assert_eq!(other.0, 403, "{other:?}");
    admin.created(nodes, json!({"metadata": {"name": "n2"}})).await;
    let status = json!({"status": {"phase": "x"}});
    assert_eq!(node.patch(&format!("{nodes}/n2/status"), "merge-patch", status.clone()).await.0, 403);
    assert_eq!(node.patch(&format!("{nodes}/n1/status"), "merge-patch", status).await.0, 200);
    let taint = json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}});
    assert_eq!(node.patch(&format!("{nodes}/n1"), "merge-patch", taint).await.0, 403);
    admin.created("/api/v1/namespaces/default/pods", pod("p")).await;
    assert_eq!(
        node.patch(
            "/api/v1/namespaces/default/pods/p/status",
            "merge-patch",
            json!({"status": {"phase": "Running"}})
        )
        .await
        .0,
        403
    );
    let lease = json!({"metadata": {"name": "n1"}, "spec": {"holderIdentity": "n1"}});
    assert_eq!(
        node.create("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", lease).await.0,
        201
    );
    let foreign = json!({"metadata": {"name": "n2"}});
    assert_eq!(
        node.create("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", foreign).await.0,
        403
    );
}

#[tokio::test]
async fn nobody_grants_what_they_do_not_hold() {
    let cluster = Cluster::start().await;
    let (admin, jane) = (cluster.admin(), cluster.as_user("jane", &[]));
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    let bind = |name: &str, kind: &str, role: &str| {
        json!({"metadata": {"name": name}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}]})
    };
    admin.created(&bindings, bind("jane", "ClusterRole", "admin")).await;
    eventually(&jane, &bindings, 200).await;
    let roles = format!("{RBAC}/namespaces/default/roles");
    let role = |resource: &str, verb: &str| json!({"metadata": {"generateName": "r-"}, "rules": [{"apiGroups": [""], "resources": [resource], "verbs": ["get", verb]}]});
    assert_eq!(jane.create(&roles, role("pods", "list")).await.0, 201);
    let more = jane.create(&roles, role("nodes", "list")).await;
    assert_eq!(more.0, 403, "{more:?}");
    assert!(
        message(&more).contains("is attempting to grant RBAC permissions not currently held"),
        "{more:?}"
    );
    assert_eq!(jane.create(&roles, role("pods", "*")).await.0, 403);
    assert_eq!(jane.create(&bindings, bind("view", "ClusterRole", "view")).await.0, 201);
    assert_eq!(jane.create(&bindings, bind("root", "ClusterRole", "cluster-admin")).await.0, 403);
    let later = jane.create(&bindings, bind("later", "ClusterRole", "to-come")).await;
    assert_eq!(later.0, 404, "what does not exist yet may come to grant anything: {later:?}");
}

#[tokio::test]
async fn acting_as_another() {
    let cluster = Cluster::start().await;
    let certificate = |user: &str, groups: &[&str]| {
        let request = decapod_apiserver::pki::CertificateRequest::client(user, groups);
        cluster.over_tls(Some(request), None)
    };
    let as_jane = |path: &str| {
        let request =
            http::Request::get(path).header("impersonate-user", "jane").header("impersonate-group", "dev");
        request.body(Vec::new()).unwrap()
    };
    let path = "/api/v1/namespaces/default/pods";
    let admin = certificate("system:admin", &["system:masters"]);
    let (status, _, body) = admin.send(as_jane(path)).await;
    assert_eq!(status, 403, "the administrator has jane's rights only");
    assert!(String::from_utf8_lossy(&body).contains("User \\\"jane\\\" cannot list"));
    assert_eq!(admin.send(as_jane("/version")).await.0, 200);
    let (status, _, body) = certificate("joe", &[]).send(as_jane("/version")).await;
    assert_eq!(status, 403);
    assert!(String::from_utf8_lossy(&body).contains("cannot impersonate-on:user-info:get path"));
}
