//! What a kubelet may do, and no more: the node authorizer and the `NodeRestriction` plugin, together.

use serde_json::{Value, json};

use crate::harness::{Client, Cluster, message, pod};

const NODES: &str = "/api/v1/nodes";
const PODS: &str = "/api/v1/namespaces/default/pods";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

fn node(cluster: &Cluster, name: &str) -> Client {
    cluster.as_user(&format!("system:node:{name}"), &["system:nodes"])
}

/// A pod that runs on a node.
async fn running(admin: &Client, mut pod: Value, node: &str) {
    pod["spec"]["nodeName"] = json!(node);
    admin.created(PODS, pod).await;
}

#[tokio::test]
async fn a_node_reads_its_own_pods() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.service_account("default").await;
    running(&admin, pod("own"), "n1").await;
    running(&admin, pod("other"), "n2").await;
    let n1 = node(&cluster, "n1");
    let of = |node: &str| format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}");
    let (status, list) = n1.get(&of("n1")).await;
    assert_eq!((status, list["items"].as_array().map(Vec::len)), (200, Some(1)), "{list}");
    for refused in ["/api/v1/pods", PODS, &of("n2")] {
        let answer = n1.get(refused).await;
        assert_eq!(answer.0, 403, "{refused}");
        assert_eq!(answer.1["reason"], "Forbidden");
        assert!(
            message(&answer).contains("can only list/watch pods with spec.nodeName field selector"),
            "{answer:?}"
        );
    }
    assert_eq!(n1.get(&format!("{PODS}/own")).await.0, 200);
    let other = n1.get(&format!("{PODS}/other")).await;
    assert_eq!(
        (other.0, message(&other)),
        (
            403,
            "pods \"other\" is forbidden: User \"system:node:n1\" cannot get resource \"pods\" in API group \"\" in the namespace \"default\": no relationship found between node 'n1' and this object"
        )
    );
}

#[tokio::test]
async fn a_node_with_a_name_that_no_selector_can_have_reads_nothing_of_others() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.service_account("default").await;
    let secret = "/api/v1/namespaces/default/secrets";
    admin.created(secret, json!({"metadata": {"name": "used"}})).await;
    let mut own = pod("own");
    own["spec"]["volumes"] = json!([{"name": "s", "secret": {"secretName": "used"}}]);
    running(&admin, own, "n1").await;
    assert_eq!(node(&cluster, "n1").get(&format!("{secret}/used")).await.0, 200);
    for name in ["n=2", "n2\\", "!=n2", ","] {
        let answer = node(&cluster, name).get(&format!("{secret}/used")).await;
        assert_eq!(answer.0, 403, "{name}: {answer:?}");
    }
}

#[tokio::test]
async fn a_node_reads_the_volumes_of_its_pods() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.service_account("default").await;
    for (name, on) in [("own", "n1"), ("other", "n2")] {
        let source = json!({"path": "/x"});
        let bound = json!({"namespace": "default", "name": name});
        let volume = json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"], "hostPath": source, "claimRef": bound}});
        admin.created("/api/v1/persistentvolumes", volume).await;
        let claim = json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "volumeName": name,
            "resources": {"requests": {"storage": "1Gi"}}}});
        admin.created("/api/v1/namespaces/default/persistentvolumeclaims", claim).await;
        admin.created("/api/v1/namespaces/default/configmaps", json!({"metadata": {"name": name}})).await;
        let mut object = pod(name);
        object["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": name}},
            {"name": "c", "configMap": {"name": name}}]);
        running(&admin, object, on).await;
    }
    let n1 = node(&cluster, "n1");
    for kind in
        ["persistentvolumes", "namespaces/default/persistentvolumeclaims", "namespaces/default/configmaps"]
    {
        assert_eq!(n1.get(&format!("/api/v1/{kind}/own")).await.0, 200, "{kind}");
        let other = n1.get(&format!("/api/v1/{kind}/other")).await;
        assert_eq!(other.0, 403, "{kind}");
        let why = ": no relationship found between node 'n1' and this object";
        assert!(message(&other).ends_with(why), "{other:?}");
    }
    let listed = n1.get("/api/v1/persistentvolumes").await;
    assert!(message(&listed).ends_with(": can only get individual resources of this type"), "{listed:?}");
}

#[tokio::test]
async fn a_node_writes_its_own_objects() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let n1 = node(&cluster, "n1");
    let role = json!({"metadata": {"name": "n1", "labels": {"node-role.kubernetes.io/control-plane": ""}}});
    let refused = n1.create(NODES, role).await;
    assert_eq!(
        (refused.0, message(&refused)),
        (
            403,
            "nodes \"n1\" is forbidden: node \"n1\" is not allowed to set the following labels: node-role.kubernetes.io/control-plane"
        )
    );
    let labels = json!({"kubernetes.io/hostname": "n1", "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "disk": "ssd"});
    n1.created(NODES, json!({"metadata": {"name": "n1", "labels": labels}})).await;
    admin.created(NODES, json!({"metadata": {"name": "n2"}})).await;
    let label = |key: &str| json!({"metadata": {"labels": {key: "x"}}});
    let own = format!("{NODES}/n1");
    assert_eq!(n1.patch(&own, "merge-patch", label("node.kubernetes.io/x")).await.0, 200);
    for key in ["a.node-restriction.kubernetes.io/x", "node-role.kubernetes.io/x"] {
        let refused = n1.patch(&own, "merge-patch", label(key)).await;
        let why = format!("nodes \"n1\" is forbidden: is not allowed to modify labels: {key}");
        assert_eq!((refused.0, message(&refused)), (403, why.as_str()));
    }
    // What an administrator set stays, and is in nobody's way.
    assert_eq!(admin.patch(&own, "merge-patch", label("node-role.kubernetes.io/x")).await.0, 200);
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    assert_eq!(n1.patch(&format!("{own}/status"), "strategic-merge-patch", ready.clone()).await.0, 200);
    let other = n1.patch(&format!("{NODES}/n2/status"), "strategic-merge-patch", ready).await;
    let why = "nodes \"n2\" is forbidden: node \"n1\" is not allowed to modify node \"n2\"";
    assert_eq!((other.0, message(&other)), (403, why));
    assert_eq!(n1.get(&format!("{NODES}?fieldSelector=metadata.name%3Dn1")).await.0, 200);
    let all = n1.get(NODES).await;
    assert!(message(&all).ends_with("node 'n1' cannot read all nodes, only its own Node object"), "{all:?}");
    assert_eq!(n1.get(&format!("{NODES}/n2")).await.0, 403);

    let lease = json!({"spec": {"holderIdentity": "n1"}});
    assert_eq!(n1.patch(&format!("{LEASES}/n1"), "merge-patch", lease.clone()).await.0, 404);
    n1.created(LEASES, json!({"metadata": {"name": "n1"}, "spec": {}})).await;
    assert_eq!(n1.patch(&format!("{LEASES}/n1"), "merge-patch", lease.clone()).await.0, 200);
    let other = n1.patch(&format!("{LEASES}/n2"), "merge-patch", lease).await;
    assert!(
        message(&other).ends_with("can only access node lease with the same name as the requesting node"),
        "{other:?}"
    );
    let elsewhere = n1.get("/apis/coordination.k8s.io/v1/namespaces/default/leases/n1").await;
    assert!(
        message(&elsewhere).ends_with("can only access leases in the \"kube-node-lease\" system namespace")
    );
}

#[tokio::test]
async fn a_node_writes_about_its_own_pods() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.service_account("default").await;
    running(&admin, pod("own"), "n1").await;
    running(&admin, pod("other"), "n2").await;
    let n1 = node(&cluster, "n1");
    let status = json!({"status": {"phase": "Running"}});
    assert_eq!(n1.patch(&format!("{PODS}/own/status"), "strategic-merge-patch", status.clone()).await.0, 200);
    let other = n1.patch(&format!("{PODS}/other/status"), "strategic-merge-patch", status.clone()).await;
    let why = "pods \"other\" is forbidden: node \"n1\" can only update pod status for pods with spec.nodeName set to itself";
    assert_eq!((other.0, message(&other)), (403, why));
    assert_eq!(n1.patch(&format!("{PODS}/own"), "merge-patch", status).await.0, 403);
    let other = n1.delete(&format!("{PODS}/other")).await;
    let why =
        "pods \"other\" is forbidden: node \"n1\" can only delete pods with spec.nodeName set to itself";
    assert_eq!((other.0, message(&other)), (403, why));
    assert_eq!(n1.delete(&format!("{PODS}/own?gracePeriodSeconds=0")).await.0, 200);

    let refused = n1.create(PODS, pod("plain")).await;
    assert!(message(&refused).contains("can only create mirror pods"), "{refused:?}");
    let made = n1.created(NODES, json!({"metadata": {"name": "n1"}})).await;
    let mut mirror = pod("mirror");
    let owner =
        json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "controller": true, "uid": "another"});
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    mirror["metadata"]["ownerReferences"] = json!([owner]);
    mirror["spec"]["nodeName"] = json!("n1");
    let refused = n1.create(PODS, mirror.clone()).await;
    assert!(message(&refused).contains("node n1 UID mismatch: expected another got "), "{refused:?}");
    mirror["metadata"]["ownerReferences"][0]["uid"] = made["metadata"]["uid"].clone();
    n1.created(PODS, mirror).await;
}
