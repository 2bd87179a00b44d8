use serde_json::{Value, json};

use super::*;

fn pod(spec: Value) -> Pod {
    let mut spec = spec;
    if spec["containers"].is_null() {
        spec["containers"] = json!([{ "name": "c" }]);
    }
    serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": spec })).unwrap()
}

fn node() -> Node {
    serde_json::from_value(json!({
        "metadata": { "name": "n", "labels": { "disk": "ssd" } },
        "spec": { "taints": [{ "key": "dying", "effect": "NoExecute" }, { "key": "full", "effect": "NoSchedule" }] },
        "status": { "allocatable": { "cpu": "2", "memory": "1Gi", "pods": "3" } },
    }))
    .unwrap()
}

fn verdict(spec: Value, others: &[Pod]) -> Option<Rejection> {
    let mut spec = spec;
    if spec["tolerations"].is_null() {
        spec["tolerations"] = json!([{ "operator": "Exists" }]);
    }
    let others: Vec<Arc<Pod>> = others.iter().cloned().map(Arc::new).collect();
    let node = node();
    let unsafe_sysctls = ["kernel.msg*".to_owned()];
    let facts = Facts { node: &node, others: &others, unsafe_sysctls: &unsafe_sysctls, apparmor: false };
    check(&pod(spec), &facts).err()
}

fn reason(spec: Value, others: &[Pod]) -> String {
    verdict(spec, others).map(|r| r.reason).unwrap_or_default()
}

fn requests(cpu: &str) -> Value {
    json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu, "example.com/none": "1" } } }] })
}

#[test]
fn resources_are_those_that_others_left() {
    assert_eq!(reason(requests("1500m"), &[pod(requests("500m"))]), "");
    let rejection = verdict(requests("1500m"), &[pod(requests("1"))]).unwrap();
    assert_eq!(rejection.reason, "OutOfcpu");
    assert_eq!(
        rejection.message,
        "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000"
    );
    let three = [pod(json!({})), pod(json!({})), pod(json!({}))];
    assert_eq!(reason(json!({}), &three), "OutOfpods");
}

#[test]
fn labels_names_and_taints_must_fit() {
    assert_eq!(reason(json!({ "nodeSelector": { "disk": "ssd" } }), &[]), "");
    let rejection = verdict(json!({ "nodeSelector": { "disk": "hdd" } }), &[]).unwrap();
    assert_eq!((rejection.reason.as_str(), rejection.by_node), ("NodeAffinity", true));
    assert_eq!(reason(json!({ "nodeName": "other" }), &[]), "NodeName");
    assert_eq!(reason(json!({ "tolerations": [] }), &[]), "TaintToleration");
    let dying = json!({ "tolerations": [{ "key": "dying", "operator": "Exists", "effect": "NoExecute" }] });
    assert_eq!(reason(dying, &[]), "", "NoSchedule is the scheduler's");
    assert_eq!(reason(json!({ "os": { "name": "windows" } }), &[]), "PodOSNotSupported");
}

#[test]
fn a_port_of_the_node_is_taken_once() {
    let port = |number: i32, ip: &str, protocol: &str| {
        let port = json!({ "containerPort": 80, "hostPort": number, "hostIP": ip, "protocol": protocol });
        json!({ "containers": [{ "name": "c", "ports": [port] }] })
    };
    let held = [pod(port(8080, "", "TCP"))];
    assert_eq!(reason(port(8080, "127.0.0.1", "TCP"), &held), "NodePorts");
    assert_eq!(reason(port(8080, "", "UDP"), &held), "");
    let one = [pod(port(8080, "127.0.0.1", "TCP"))];
    assert_eq!(reason(port(8080, "127.0.0.2", "TCP"), &one), "");
}

#[test]
fn sysctls_are_safe_or_allowed() {
    let with = |name: &str, host: bool| json!({ "hostNetwork": host, "securityContext": { "sysctls": [{ "name": name, "value": "1" }] } });
    assert_eq!(reason(with("net.ipv4.tcp_syncookies", false), &[]), "");
    assert_eq!(reason(with("net/ipv4/tcp_syncookies", false), &[]), "");
    assert_eq!(reason(with("kernel.msgmax", false), &[]), "", "the node allows it");
    let rejection = verdict(with("kernel.sem", false), &[]).unwrap();
    assert_eq!(rejection.message, "forbidden sysctl: \"kernel.sem\" not allowlisted");
    let rejection = verdict(with("net.ipv4.tcp_syncookies", true), &[]).unwrap();
    assert_eq!(
        rejection.message,
        "forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled"
    );
    assert_eq!(sysctl_name("net/ipv4/conf/eth0.1/forwarding"), "net.ipv4.conf.eth0/1.forwarding");
}

#[test]
fn a_machine_without_apparmor_says_so() {
    let profile = |kind: &str| json!({ "securityContext": { "appArmorProfile": { "type": kind } } });
    assert_eq!(reason(profile("Unconfined"), &[]), "");
    let rejection = verdict(profile("RuntimeDefault"), &[]).unwrap();
    assert_eq!(rejection.message, "Cannot enforce AppArmor: AppArmor is not enabled on the host");
}
