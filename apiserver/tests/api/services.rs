//! Services: their addresses and ports are unique, and come back.

use serde_json::{Value, json};

use crate::harness::{Cluster, message};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";

fn service(name: &str, spec: Value) -> Value {
    let mut service =
        json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], "selector": {"a": "b"}}});
    for (field, value) in spec.as_object().unwrap() {
        service["spec"][field] = value.clone();
    }
    service
}

async fn addresses(admin: &crate::harness::Client) -> usize {
    admin.get(ADDRESSES).await.1["items"].as_array().unwrap().len()
}

#[tokio::test]
async fn addresses_are_given_and_given_back() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let before = addresses(&admin).await;
    assert_eq!(before, 1, "that of the kubernetes Service");
    let made = admin.created(SERVICES, service("a", json!({}))).await;
    let ip = made["spec"]["clusterIP"].as_str().unwrap();
    assert_eq!(made["spec"]["clusterIPs"], json!([ip]));
    let (_, address) = admin.get(&format!("{ADDRESSES}/{ip}")).await;
    assert_eq!(address["spec"]["parentRef"]["name"], "a");
    let taken = admin.create(SERVICES, service("b", json!({"clusterIP": ip}))).await;
    assert_eq!(taken.0, 422);
    assert!(message(&taken).contains("provided IP is already allocated"), "{taken:?}");
    let outside = admin.create(SERVICES, service("b", json!({"clusterIP": "192.168.0.1"}))).await;
    assert_eq!(outside.0, 422);
    let dry = admin.create(&format!("{SERVICES}?dryRun=All"), service("b", json!({}))).await;
    assert_eq!((dry.0, addresses(&admin).await), (201, before + 1));
    let changed = admin
        .patch(
            &format!("{SERVICES}/a"),
            "merge-patch",
            json!({"spec": {"clusterIP": "10.96.0.77", "clusterIPs": ["10.96.0.77"]}}),
        )
        .await;
    assert_eq!(changed.0, 422, "{changed:?}");
    assert_eq!(admin.delete(&format!("{SERVICES}/a")).await.0, 200);
    assert_eq!(addresses(&admin).await, before);
    let headless = admin.created(SERVICES, service("h", json!({"clusterIP": "None"}))).await;
    assert_eq!((headless["spec"]["clusterIP"].as_str(), addresses(&admin).await), (Some("None"), before));
}

#[tokio::test]
async fn the_same_name_twice_leaks_nothing() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let creates = (0..8).map(|_| admin.create(SERVICES, service("a", json!({"type": "NodePort"}))));
    let codes: Vec<u16> = futures::future::join_all(creates).await.into_iter().map(|a| a.0).collect();
    assert_eq!(codes.iter().filter(|c| **c == 201).count(), 1, "{codes:?}");
    assert_eq!(addresses(&admin).await, 2);
}

#[tokio::test]
async fn node_ports_follow_the_type() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let made = admin
        .created(
            SERVICES,
            service("a", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]})),
        )
        .await;
    assert_eq!(made["spec"]["ports"][0]["nodePort"], 30080);
    let taken = admin
        .create(
            SERVICES,
            service("b", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]})),
        )
        .await;
    assert_eq!(taken.0, 422);
    assert!(message(&taken).contains("provided port is already allocated"), "{taken:?}");
    assert_eq!(addresses(&admin).await, 2, "a refused Service keeps no address");
    let one = format!("{SERVICES}/a");
    let (code, plain) = admin.patch(&one, "merge-patch", json!({"spec": {"type": "ClusterIP"}})).await;
    assert_eq!(code, 200, "{plain}");
    assert!(plain["spec"]["ports"][0]["nodePort"].is_null(), "{plain}");
    let again = admin
        .created(
            SERVICES,
            service("b", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]})),
        )
        .await;
    let kept = again["spec"]["clusterIP"].clone();
    // An update that leaves out what the server chose keeps it.
    let (code, updated) = admin
        .update(
            &format!("{SERVICES}/b"),
            service("b", json!({"type": "NodePort", "sessionAffinity": "ClientIP"})),
        )
        .await;
    assert_eq!(code, 200, "{updated}");
    assert_eq!(
        (updated["spec"]["ports"][0]["nodePort"].as_i64(), &updated["spec"]["clusterIP"]),
        (Some(30080), &kept)
    );
    let outside = admin
        .create(SERVICES, service("c", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]})))
        .await;
    assert_eq!(outside.0, 422);
}

#[tokio::test]
async fn a_start_that_was_cut_off_is_gone_on_with() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    // As if the server had been killed between the address and the Service.
    let kubernetes = format!("{SERVICES}/kubernetes");
    let (_, service) = admin.get(&kubernetes).await;
    admin.delete(&kubernetes).await;
    let address = json!({"metadata": {"name": "10.96.0.1", "labels": {"ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}},
        "spec": {"parentRef": {"group": "", "resource": "services", "namespace": "default", "name": "kubernetes"}}});
    admin.created(ADDRESSES, address).await;
    drop(admin);
    let cluster = cluster.restart().await;
    let admin = cluster.admin();
    assert_eq!(admin.get(&kubernetes).await.1["spec"]["clusterIP"], service["spec"]["clusterIP"]);
    assert_eq!(addresses(&admin).await, 1);
}

/// [sig-network] Service CIDRs: more ranges may be added, and taken away.
#[tokio::test]
async fn further_ranges_give_addresses() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let ranges = "/apis/networking.k8s.io/v1/servicecidrs";
    let (_, own) = admin.get(&format!("{ranges}/kubernetes")).await;
    assert_eq!(own["status"]["conditions"][0]["type"], "Ready");
    let wanted = || service("w", json!({"clusterIP": "10.50.0.7"}));
    let early = admin.create(SERVICES, wanted()).await;
    assert!(message(&early).contains("the provided network does not match the current range"), "{early:?}");
    admin.created(ranges, json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.50.0.0/24"]}})).await;
    assert_eq!(admin.create(SERVICES, wanted()).await.0, 422, "it is not ready yet");
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    assert_eq!(admin.patch(&format!("{ranges}/more/status"), "merge-patch", ready).await.0, 200);
    admin.created(SERVICES, wanted()).await;
    assert_eq!(admin.get(&format!("{ADDRESSES}/10.50.0.7")).await.1["spec"]["parentRef"]["name"], "w");
}

/// [sig-network] IPAddress API operations: users may keep addresses of their own, of either family.
#[tokio::test]
async fn users_keep_addresses_of_their_own() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for name in ["255.255.255.255", "fe80::42:1dff:fe84:f9e2"] {
        let address = json!({"metadata": {"name": name, "labels": {"type": "own"}}, "spec": {"parentRef":
            {"group": "mygroup", "resource": "myresources", "namespace": "foo", "name": "bar"}}});
        admin.created(ADDRESSES, address).await;
    }
    let path = format!("{ADDRESSES}?labelSelector=type%3Down");
    assert_eq!(admin.get(&path).await.1["items"].as_array().unwrap().len(), 2);
    let one = format!("{ADDRESSES}/fe80::42:1dff:fe84:f9e2");
    let (code, patched) =
        admin.patch(&one, "merge-patch", json!({"metadata": {"annotations": {"a": "b"}}})).await;
    assert_eq!((code, &patched["metadata"]["annotations"]["a"]), (200, &json!("b")));
    assert_eq!(admin.delete(&path).await.0, 200);
    assert!(admin.get(&path).await.1["items"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn health_ports_and_foreign_families() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
    let made = admin.created(SERVICES, service("lb", local)).await;
    let port = made["spec"]["healthCheckNodePort"].as_i64().unwrap();
    assert!((30000..32768).contains(&port), "{made}");
    let taken = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    assert_eq!(admin.create(SERVICES, service("x", taken.clone())).await.0, 422);
    let one = format!("{SERVICES}/lb");
    let (code, plain) =
        admin.patch(&one, "merge-patch", json!({"spec": {"externalTrafficPolicy": "Cluster"}})).await;
    assert_eq!((code, &plain["spec"]["healthCheckNodePort"]), (200, &Value::Null), "{plain}");
    admin.created(SERVICES, service("x", taken)).await;
    let dual = admin.create(SERVICES, service("d", json!({"ipFamilyPolicy": "RequireDualStack"}))).await;
    assert!(message(&dual).contains("this cluster is not configured for dual-stack services"), "{dual:?}");
    let six = admin.create(SERVICES, service("d", json!({"ipFamilies": ["IPv6"]}))).await;
    assert!(
        message(&six).contains("spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"),
        "{six:?}"
    );
}
