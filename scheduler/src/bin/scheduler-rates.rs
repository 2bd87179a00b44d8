//! How many pods per second the scheduler's core decides on, on so many generated nodes: `scheduler-rates [NODES]`.
//!
//! Each pod is taken as the API server gives it, decided on, and counted on its node. One thread; no API server.

use std::time::Instant;

use decapod_scheduler::{Decider, Decision};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

/// Zones that the nodes are spread over.
const ZONES: usize = 10;

fn node(number: usize) -> Node {
    let name = format!("node-{number}");
    let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name,
        "topology.kubernetes.io/zone": format!("zone-{}", number % ZONES)}},
        "status": {"allocatable": {"cpu": "4", "memory": "32Gi", "pods": "110"}}});
    serde_json::from_value(node).expect("a node")
}

fn pod(kind: &str, number: usize, cpu: &str, more: &Value) -> Pod {
    let name = format!("{kind}-{number}");
    let mut pod = json!({"metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"kind": kind}},
        "spec": {"containers": [{"name": "c", "image": "registry/app:1",
            "resources": {"requests": {"cpu": cpu, "memory": "500Mi"}}}]}});
    for (key, value) in more.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    serde_json::from_value(pod).expect("a pod")
}

fn cluster(nodes: usize) -> Decider {
    let mut decider = Decider::new(1);
    (0..nodes).for_each(|number| decider.node_put(node(number)));
    decider
}

fn term(kind: &str, key: &str) -> Value {
    json!([{"labelSelector": {"matchLabels": {"kind": kind}}, "topologyKey": key}])
}

/// Places pods and says how fast, beside the mark.
fn measure(what: &str, mark: f64, decider: &mut Decider, pods: Vec<Pod>) {
    let (count, begin) = (pods.len(), Instant::now());
    let mut refused = 0;
    for pod in pods {
        let waiting = pod.clone();
        match decider.decide(pod) {
            Decision::Placed(_) => {}
            Decision::Preempts(_, victims) => {
                victims.iter().for_each(|victim| decider.pod_remove(victim));
                refused += usize::from(!matches!(decider.decide(waiting), Decision::Placed(_)));
            }
            Decision::Refused(_) => refused += 1,
        }
    }
    let rate = count as f64 / begin.elapsed().as_secs_f64();
    let verdict = if rate >= mark { "kept" } else { "missed" };
    println!("{what:<20} {rate:>10.0} pods/s, mark {mark:>5.0}: {verdict} ({count} pods, {refused} refused)");
}

fn main() {
    let nodes = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(5000);
    let none = json!({});
    let many = |kind: &str, count: usize, cpu: &str, more: &Value| -> Vec<Pod> {
        (0..count).map(|number| pod(kind, number, cpu, more)).collect()
    };
    let mut decider = cluster(nodes);
    measure("basic", 5000.0, &mut decider, many("basic", 2 * nodes, "100m", &none));
    let zones = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchExpressions": [{"key": "topology.kubernetes.io/zone", "operator": "In",
            "values": ["zone-1", "zone-2"]}]}]}}}});
    measure("node affinity", 4000.0, &mut decider, many("zonal", nodes, "100m", &zones));
    let required = |kind: &str, term: Value| json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": term}}});
    let mut decider = cluster(nodes);
    decider.decide(pod("near", usize::MAX, "100m", &none));
    let near = required("podAffinity", term("near", "topology.kubernetes.io/zone"));
    measure("pod affinity", 1000.0, &mut decider, many("near", nodes, "10m", &near));
    let apart = required("podAntiAffinity", term("apart", "kubernetes.io/hostname"));
    measure("pod anti-affinity", 1000.0, &mut decider, many("apart", nodes * 4 / 5, "100m", &apart));
    let liked = json!({"affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
        [{"weight": 1, "podAffinityTerm": term("liked", "kubernetes.io/hostname")[0]}]}}});
    measure("preferred affinity", 1000.0, &mut decider, many("liked", nodes, "10m", &liked));
    let mut decider = cluster(nodes);
    let spread = |key: &str, when: &str| {
        json!({"topologySpreadConstraints": [{"maxSkew": 5, "topologyKey": key, "whenUnsatisfiable": when,
            "labelSelector": {"matchLabels": {"kind": "spread"}}}]})
    };
    let by_zone = spread("topology.kubernetes.io/zone", "DoNotSchedule");
    measure("spread over zones", 1500.0, &mut decider, many("spread", nodes, "100m", &by_zone));
    let by_host = spread("kubernetes.io/hostname", "ScheduleAnyway");
    measure("spread over nodes", 1500.0, &mut decider, many("spread", nodes, "100m", &by_host));
    let mut decider = cluster(nodes);
    for number in 0..4 * nodes {
        let mut low = pod("low", number, "900m", &json!({"priority": 1}));
        low.spec.get_or_insert_default().node_name = Some(format!("node-{}", number % nodes));
        decider.pod_put(low);
    }
    measure("preemption", 1000.0, &mut decider, many("high", nodes / 2, "3", &json!({"priority": 100})));
}
