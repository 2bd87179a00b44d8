//! The plan of a DaemonSet played through without a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::plan::{Plan, World, plan};
use super::pod;

struct Sim {
    set: DaemonSet,
    nodes: Vec<Arc<Node>>,
    pods: BTreeMap<String, Pod>,
    hash: &'static str,
    held: BTreeMap<String, Duration>,
    made: i64,
}

fn node(name: &str, labels: Value, taints: Value) -> Arc<Node> {
    let node = json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}});
    Arc::new(serde_json::from_value(node).unwrap())
}

impl Sim {
    /// Nodes a, b and c.
    fn new(strategy: Value, pod_spec: Value) -> Self {
        let mut all = json!({"containers": [{"name": "c"}]});
        all.as_object_mut().unwrap().extend(pod_spec.as_object().unwrap().clone());
        let template = json!({"metadata": {"labels": {"app": "d"}}, "spec": all});
        let set = json!({"metadata": {"name": "d", "namespace": "n", "uid": "s", "generation": 1}, "spec":
            {"selector": {"matchLabels": {"app": "d"}}, "updateStrategy": strategy, "template": template}});
        let nodes = ["a", "b", "c"].map(|name| node(name, json!({}), json!([]))).into();
        let set = serde_json::from_value(set).unwrap();
        Self { set, nodes, pods: BTreeMap::new(), hash: "v1", held: BTreeMap::new(), made: 0 }
    }

    fn rolling(max_unavailable: Value, max_surge: Value) -> Self {
        let rolling = json!({"maxUnavailable": max_unavailable, "maxSurge": max_surge});
        Self::new(json!({"type": "RollingUpdate", "rollingUpdate": rolling}), json!({}))
    }

    fn plan(&self) -> Plan {
        let pods: Vec<_> = self.pods.values().cloned().map(Arc::new).collect();
        let hashes: BTreeSet<_> = [self.hash.to_owned()].into();
        plan(&World {
            set: &self.set,
            spec: self.set.spec.as_ref().unwrap(),
            pod_spec: &pod::spec(&self.set),
            nodes: &self.nodes,
            pods: &pods,
            hashes: &hashes,
            held: &self.held,
            now: Timestamp::from_second(1_000).unwrap(),
        })
    }

    /// Does what the plan says; the deeds in words. Pods are named by node and template.
    fn step(&mut self) -> String {
        let plan = self.plan();
        let created = plan.create.iter().map(|node| format!("+{node}"));
        let deleted = plan.delete.iter().map(|pod| format!("-{}", pod.name_any()));
        let words: Vec<_> = created.chain(deleted).collect();
        for pod in &plan.delete {
            let known = self.pods.get_mut(&pod.name_any()).unwrap();
            known.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        }
        for node in &plan.create {
            let mut pod = pod::new(&self.set, pod::spec(&self.set), self.hash, node);
            let name = format!("{node}-{}", self.hash);
            self.made += 1;
            pod.metadata.name = Some(name.clone());
            pod.metadata.creation_timestamp = Some(Time(Timestamp::from_second(self.made).unwrap()));
            assert!(self.pods.insert(name, pod).is_none());
        }
        self.set.status = Some(plan.status);
        words.join(" ")
    }

    fn report(&mut self, pod: &str, phase: &str, ready: bool) {
        let ready = if ready { "True" } else { "False" };
        let status = json!({"phase": phase, "conditions": [{"type": "Ready", "status": ready}]});
        self.pods.get_mut(pod).unwrap().status = Some(serde_json::from_value(status).unwrap());
    }

    fn ready(&mut self, pods: &[&str]) {
        pods.iter().for_each(|pod| self.report(pod, "Running", true));
    }

    fn end(&mut self) {
        self.pods.retain(|_, pod| pod.metadata.deletion_timestamp.is_none());
    }

    fn all_ready() -> Self {
        let mut sim = Self::rolling(json!(1), json!(0));
        sim.step();
        sim.ready(&["a-v1", "b-v1", "c-v1"]);
        sim
    }
}

#[test]
fn each_node_that_will_do_has_one() {
    let on_delete = json!({"type": "OnDelete"});
    let mut sim = Sim::new(on_delete, json!({"nodeSelector": {"role": "edge"}}));
    assert_eq!(sim.step(), "");
    sim.nodes[1] = node("b", json!({"role": "edge"}), json!([]));
    assert_eq!(sim.step(), "+b");
    assert_eq!(sim.step(), "");
    let pod = &sim.pods["b-v1"];
    assert_eq!(pod::target(pod), Some("b"), "it is meant for that node alone");
    sim.ready(&["b-v1"]);
    assert_eq!(sim.step(), "");
    let status = sim.set.status.clone().unwrap();
    assert_eq!(
        (status.desired_number_scheduled, status.number_ready, status.number_available),
        (1, 1, Some(1))
    );
    sim.nodes[1] = node("b", json!({}), json!([]));
    assert_eq!(sim.step(), "-b-v1");
    assert_eq!(sim.set.status.as_ref().unwrap().number_misscheduled, 1);
}

#[test]
fn taints_keep_pods_away_or_drive_them_off() {
    let mut sim = Sim::all_ready();
    let taint = |key: &str, effect: &str| json!([{"key": key, "effect": effect}]);
    sim.nodes[0] = node("a", json!({}), taint("node.kubernetes.io/unreachable", "NoExecute"));
    sim.nodes[1] = node("b", json!({}), taint("mine", "NoSchedule"));
    assert_eq!(sim.step(), "", "the one is tolerated, the other came too late");
    let status = sim.set.status.clone().unwrap();
    assert_eq!((status.desired_number_scheduled, status.number_misscheduled), (2, 1));
    sim.nodes[1] = node("b", json!({}), taint("mine", "NoExecute"));
    assert_eq!(sim.step(), "-b-v1");
    sim.end();
    assert_eq!(sim.step(), "");
}

#[test]
fn a_failed_pod_is_replaced_after_its_delay() {
    let mut sim = Sim::all_ready();
    sim.report("b-v1", "Failed", false);
    sim.held.insert("b".to_owned(), Duration::from_secs(7));
    assert_eq!(sim.plan().again, Some(Duration::from_secs(7)));
    assert_eq!(sim.step(), "");
    sim.held.clear();
    assert_eq!(sim.plan().ended.len(), 1);
    assert_eq!(sim.step(), "-b-v1");
    assert_eq!(sim.plan().create, ["b"], "an ended one that is on its way out leaves its place");
}

#[test]
fn of_several_on_a_node_the_oldest_stays() {
    let mut sim = Sim::all_ready();
    let mut second = sim.pods["a-v1"].clone();
    second.metadata.name = Some("z".to_owned());
    second.metadata.creation_timestamp = Some(Time(Timestamp::from_second(500).unwrap()));
    sim.pods.insert("z".to_owned(), second);
    assert_eq!(sim.step(), "-z");
    sim.nodes.remove(2);
    sim.end();
    assert_eq!(sim.step(), "-c-v1", "its node is gone, and it is not bound: nobody else would take it");
}

#[test]
fn a_roll_out_misses_no_more_than_it_may() {
    let mut sim = Sim::all_ready();
    sim.hash = "v2";
    assert_eq!(sim.step(), "-a-v1");
    assert_eq!(sim.step(), "");
    sim.end();
    assert_eq!(sim.step(), "+a");
    assert_eq!(sim.step(), "");
    sim.report("c-v1", "Running", false);
    assert_eq!(sim.step(), "-c-v1", "it serves nobody");
    sim.end();
    assert_eq!(sim.step(), "+c");
    sim.ready(&["a-v2", "c-v2"]);
    assert_eq!(sim.step(), "-b-v1");
    sim.end();
    sim.step();
    sim.ready(&["b-v2"]);
    assert_eq!(sim.step(), "");
    assert_eq!(sim.set.status.as_ref().unwrap().updated_number_scheduled, Some(3));
}

#[test]
fn a_roll_back_touches_only_what_was_rolled_out() {
    let mut sim = Sim::all_ready();
    sim.hash = "v2";
    sim.step();
    sim.end();
    assert_eq!(sim.step(), "+a");
    sim.hash = "v1";
    assert_eq!(sim.step(), "-a-v2");
    sim.end();
    assert_eq!(sim.step(), "+a");
    sim.ready(&["a-v1"]);
    assert_eq!(sim.step(), "");
}

#[test]
fn with_surge_the_new_comes_before_the_old_goes() {
    let mut sim = Sim::rolling(json!(0), json!(1));
    assert_eq!(sim.step(), "+a +b +c");
    sim.ready(&["a-v1", "b-v1", "c-v1"]);
    sim.hash = "v2";
    assert_eq!(sim.step(), "+a");
    assert_eq!(sim.step(), "", "one at a time");
    sim.ready(&["a-v2"]);
    assert_eq!(sim.step(), "-a-v1");
    sim.report("c-v1", "Running", false);
    assert_eq!(sim.step(), "+c +b", "one that serves nobody does not count");
    sim.end();
    assert_eq!(sim.step(), "-c-v1", "of two that serve nobody the new one stays");
}

#[test]
fn on_delete_changes_nothing_by_itself() {
    let mut sim = Sim::new(json!({"type": "OnDelete"}), json!({}));
    sim.step();
    sim.ready(&["a-v1", "b-v1", "c-v1"]);
    sim.hash = "v2";
    assert_eq!(sim.step(), "");
    assert_eq!(sim.set.status.as_ref().unwrap().updated_number_scheduled, Some(0));
}
