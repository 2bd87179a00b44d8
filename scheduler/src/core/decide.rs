//! The decision for one pod: filter the nodes, score those that are left, take the best.

use std::borrow::Cow;
use std::sync::Arc;

use rand::Rng;

use super::fit_error::FitError;
use super::node::NodeInfo;
use super::plugins::{self, Prepared};
use super::pod::PodInfo;
use super::snapshot::Snapshot;

/// With so many nodes that fit, the search for more ends: at least this many, as Kubernetes does.
const ENOUGH_AT_LEAST: usize = 100;

/// What removing pods of lower priority from a node would bring.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Preemption {
    /// The pod would fit then.
    Possible,
    /// It would not, for these reasons.
    Useless(Vec<Cow<'static, str>>),
}

/// Finds nodes, one pod after the other. Remembers where it stopped looking, so that in a large cluster
/// all nodes get their turn.
#[derive(Debug)]
pub(crate) struct Scheduler<R> {
    chance: R,
    start: usize,
}

impl<R: Rng> Scheduler<R> {
    /// Among equally good nodes, `chance` decides.
    pub(crate) fn new(chance: R) -> Self {
        Self { chance, start: 0 }
    }

    /// The best node for the pod.
    ///
    /// # Errors
    /// Why each node was rejected, if all were.
    pub(crate) fn decide(&mut self, pod: &PodInfo, snapshot: &Snapshot) -> Result<String, FitError> {
        let nodes = snapshot.nodes();
        let enough = enough(snapshot.existing());
        let prepared = Prepared::new(pod, snapshot, &|_, _| false);
        if let Some((plugin, why)) = prepared.refusal() {
            return Err(refused(pod, snapshot, plugin, why));
        }
        let mut fitting = Vec::new();
        let mut error = FitError::new(snapshot.existing());
        let mut rejections = Vec::new();
        let mut looked_at = 0;
        for offset in 0..nodes.len() {
            let node = &nodes[(self.start + offset) % nodes.len()];
            looked_at = offset + 1;
            if node.node.is_none() {
                continue;
            }
            match plugins::filter(pod, node, &prepared) {
                Ok(()) => fitting.push(node),
                Err(rejection) => rejections.push((node, rejection)),
            }
            if fitting.len() >= enough {
                break;
            }
        }
        self.start = if nodes.is_empty() { 0 } else { (self.start + looked_at) % nodes.len() };
        if let Some(best) = self.best(pod, &fitting, snapshot) {
            return Ok(best.name.clone());
        }
        rejections.iter().for_each(|(_, rejection)| error.note(rejection));
        if pod.never_preempts {
            error.note_not_eligible();
        } else {
            let outcomes = rejections
                .iter()
                .map(|(node, rejection)| preemption(pod, node, rejection.resolvable, snapshot));
            error.note_preemption(outcomes);
        }
        Err(error)
    }

    fn best<'a>(
        &mut self,
        pod: &PodInfo,
        nodes: &[&'a NodeInfo],
        snapshot: &Snapshot,
    ) -> Option<&'a NodeInfo> {
        if nodes.len() <= 1 {
            return nodes.first().copied();
        }
        let scores = plugins::score(pod, nodes, snapshot);
        let mut best: Option<(&NodeInfo, i64)> = None;
        let mut equals = 0_u32;
        for (node, score) in nodes.iter().zip(scores) {
            match best {
                Some((_, known)) if score < known => {}
                Some((_, known)) if score == known => {
                    // Each of n equals stays with the chance 1/n.
                    equals += 1;
                    if self.chance.random_ratio(1, equals) {
                        best = Some((node, score));
                    }
                }
                _ => {
                    best = Some((node, score));
                    equals = 1;
                }
            }
        }
        best.map(|(node, _)| node)
    }
}

/// No node will do, whatever is removed from it.
fn refused(pod: &PodInfo, snapshot: &Snapshot, plugin: &'static str, why: &str) -> FitError {
    let mut error = FitError::refused(snapshot.existing(), plugin, why);
    if pod.never_preempts {
        error.note_not_eligible();
    } else {
        let nodes = snapshot.nodes().iter().filter(|node| node.node.is_some());
        error.note_preemption(nodes.map(|node| preemption(pod, node, false, snapshot)));
    }
    error
}

/// How many fitting nodes suffice in a cluster of this size: all of a small one, a share of a large one.
fn enough(nodes: usize) -> usize {
    if nodes < ENOUGH_AT_LEAST {
        return nodes.max(1);
    }
    let percent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(ENOUGH_AT_LEAST)
}

/// What the removal of all pods of lower priority would bring on a node that rejected the pod.
fn preemption(pod: &PodInfo, node: &NodeInfo, resolvable: bool, snapshot: &Snapshot) -> Preemption {
    if !resolvable {
        return Preemption::Useless(vec!["Preemption is not helpful for scheduling".into()]);
    }
    if node.pods.values().all(|other| other.priority >= pod.priority) {
        return Preemption::Useless(vec!["No preemption victims found for incoming pod".into()]);
    }
    let mut remaining = NodeInfo::new(&node.name);
    remaining.set_node(node.node.clone());
    let staying = node.pods.values().filter(|other| other.priority >= pod.priority);
    staying.cloned().for_each(|other: Arc<PodInfo>| remaining.add(other));
    let gone = |on: &NodeInfo, other: &PodInfo| on.name == node.name && other.priority < pod.priority;
    let prepared = Prepared::new(pod, snapshot, &gone);
    match plugins::filter(pod, &remaining, &prepared) {
        Ok(()) => Preemption::Possible,
        Err(rejection) => Preemption::Useless(rejection.reasons),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Node, Pod};
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use serde_json::{Value, json};

    use super::*;

    fn scheduler() -> Scheduler<StdRng> {
        Scheduler::new(StdRng::seed_from_u64(1))
    }

    fn node(name: &str, more: Value) -> Arc<Node> {
        let mut node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": {}, "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "3"}}});
        for (key, value) in more.as_object().unwrap() {
            node["spec"][key] = value.clone();
        }
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn pod(name: &str, cpu: &str, more: Value) -> Arc<PodInfo> {
        let mut spec = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let pod = json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "spec": spec});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        Arc::new(PodInfo::new(Arc::new(pod)))
    }

    fn cluster(nodes: &[Arc<Node>], pods: &[Arc<PodInfo>]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        nodes.iter().for_each(|node| snapshot.node_put(node.clone()));
        pods.iter().for_each(|pod| snapshot.pod_put(pod));
        snapshot
    }

    fn refusal(snapshot: &Snapshot, pod: &PodInfo) -> String {
        scheduler().decide(pod, snapshot).unwrap_err().to_string()
    }

    #[test]
    fn refusals_are_worded_as_kubernetes_words_them() {
        let empty = cluster(&[], &[]);
        assert_eq!(refusal(&empty, &pod("p", "1", json!({}))), "no nodes available to schedule pods");
        let filler = pod("filler", "1500m", json!({"nodeName": "a"}));
        let one = cluster(&[node("a", json!({}))], &[filler]);
        assert_eq!(
            refusal(&one, &pod("p", "1", json!({}))),
            "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: \
             0/1 nodes are available: 1 No preemption victims found for incoming pod."
        );
        assert_eq!(
            refusal(&one, &pod("p", "64", json!({}))),
            "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: \
             0/1 nodes are available: 1 Preemption is not helpful for scheduling."
        );
        assert_eq!(
            refusal(&one, &pod("p", "1", json!({"preemptionPolicy": "Never"}))),
            "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: \
             not eligible due to preemptionPolicy=Never."
        );
    }

    #[test]
    fn every_filter_has_its_reason() {
        let taint = json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]});
        let nodes = [
            node("a", taint),
            node("b", json!({"unschedulable": true})),
            node("c", json!({})),
            node("d", json!({})),
            node("e", json!({})),
        ];
        let port = json!([{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]);
        let mut pods = vec![pod("p1", "100m", json!({"nodeName": "c", "containers": port}))];
        pods.extend((0..3).map(|index| pod(&format!("q{index}"), "1m", json!({"nodeName": "d"}))));
        let snapshot = cluster(&nodes, &pods);
        let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchFields":
                [{"key": "metadata.name", "operator": "NotIn", "values": ["e"]}]}]}}});
        let wanting = pod("p", "1m", json!({"containers": port, "affinity": affinity}));
        assert_eq!(
            refusal(&snapshot, &wanting),
            "0/5 nodes are available: 1 Too many pods, \
             1 node(s) didn't have free ports for the requested pod ports, \
             1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated taint(s), \
             1 node(s) were unschedulable. no new claims to deallocate, preemption: \
             0/5 nodes are available: 2 No preemption victims found for incoming pod, \
             3 Preemption is not helpful for scheduling."
        );
    }

    #[test]
    fn pods_spread_over_equal_nodes() {
        let nodes: Vec<_> = ["a", "b", "c"].iter().map(|name| node(name, json!({}))).collect();
        let mut snapshot = cluster(&nodes, &[]);
        let mut scheduler = scheduler();
        for index in 0..6 {
            let pod = pod(&format!("p{index}"), "100m", json!({}));
            let node = scheduler.decide(&pod, &snapshot).unwrap();
            snapshot.assume(pod, &node);
        }
        assert!(snapshot.nodes().iter().all(|node| node.pods.len() == 2));
    }

    #[test]
    fn preferences_prevail_over_free_room() {
        let soft = json!({"taints": [{"key": "k", "effect": "PreferNoSchedule"}]});
        let snapshot =
            cluster(&[node("a", soft), node("b", json!({}))], &[pod("x", "100m", json!({"nodeName": "b"}))]);
        assert_eq!(scheduler().decide(&pod("p", "100m", json!({})), &snapshot).unwrap(), "b");
        let prefers = json!({"tolerations": [{"operator": "Exists"}], "affinity": {"nodeAffinity":
            {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference":
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["a"]}]}}]}}});
        assert_eq!(scheduler().decide(&pod("p", "100m", prefers), &snapshot).unwrap(), "a");
    }

    #[test]
    fn a_toleration_opens_a_cordoned_node() {
        let snapshot = cluster(&[node("a", json!({"unschedulable": true}))], &[]);
        let tolerant =
            json!({"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]});
        assert_eq!(scheduler().decide(&pod("p", "1m", tolerant), &snapshot).unwrap(), "a");
    }

    /// A node in a zone.
    fn zoned(name: &str, zone: &str) -> Arc<Node> {
        let mut node = Node::clone(&node(name, json!({})));
        let labels = node.metadata.labels.as_mut().unwrap();
        labels.insert("topology.kubernetes.io/zone".into(), zone.into());
        Arc::new(node)
    }

    fn labelled(name: &str, app: &str, more: Value) -> Arc<PodInfo> {
        let mut pod = Pod::clone(&pod(name, "1m", more).pod);
        pod.metadata.labels = Some([("app".to_owned(), app.to_owned())].into());
        Arc::new(PodInfo::new(Arc::new(pod)))
    }

    fn term(app: &str, key: &str) -> Value {
        json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key})
    }

    fn requires(kind: &str, term: &Value) -> Value {
        json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}})
    }

    #[test]
    fn affinity_keeps_pods_together_and_apart() {
        const ZONE: &str = "topology.kubernetes.io/zone";
        let mut nodes = vec![zoned("a", "1"), zoned("b", "1"), zoned("c", "2")];
        let db = labelled("db", "db", json!({"nodeName": "a"}));
        let snapshot = cluster(&nodes, &[db]);
        let near = labelled("p", "web", requires("podAffinity", &term("db", ZONE)));
        assert_ne!(scheduler().decide(&near, &snapshot).unwrap(), "c");
        let far = labelled("p", "web", requires("podAntiAffinity", &term("db", ZONE)));
        assert_eq!(scheduler().decide(&far, &snapshot).unwrap(), "c");
        let never = labelled("p", "web", requires("podAffinity", &term("nothing", ZONE)));
        assert!(
            refusal(&snapshot, &never)
                .starts_with("0/3 nodes are available: 3 node(s) didn't match pod affinity rules.")
        );
        let first = labelled("p", "web", requires("podAffinity", &term("web", ZONE)));
        assert!(scheduler().decide(&first, &snapshot).is_ok(), "the first of its kind finds a place");
        // One that is placed does not want the other, whatever that one thinks.
        nodes.truncate(1);
        let hermit = labelled("h", "hermit", {
            let mut more = requires("podAntiAffinity", &term("web", ZONE));
            more["nodeName"] = json!("a");
            more
        });
        assert!(refusal(&cluster(&nodes, &[hermit]), &labelled("p", "web", json!({}))).starts_with(
            "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."
        ));
        let other = cluster(&nodes, &[labelled("x", "web", json!({"nodeName": "a"}))]);
        let alone = labelled("p", "web", requires("podAntiAffinity", &term("web", "kubernetes.io/hostname")));
        assert!(
            refusal(&other, &alone)
                .starts_with("0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules.")
        );
    }

    #[test]
    fn preferred_company_is_sought() {
        let like = |weight: i32, kind: &str| {
            json!({"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution":
                [{"weight": weight, "podAffinityTerm": term("db", "kubernetes.io/hostname")}]}}})
        };
        let nodes = [node("a", json!({})), node("b", json!({}))];
        let snapshot = cluster(&nodes, &[labelled("db", "db", json!({"nodeName": "a"}))]);
        let liking = labelled("p", "web", like(100, "podAffinity"));
        assert_eq!(scheduler().decide(&liking, &snapshot).unwrap(), "a");
        let disliking = labelled("p", "web", like(100, "podAntiAffinity"));
        assert_eq!(scheduler().decide(&disliking, &snapshot).unwrap(), "b");
    }

    #[test]
    fn spreading_is_kept_within_its_skew() {
        let constraint = |skew: i32| {
            json!({"topologySpreadConstraints": [{"maxSkew": skew, "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]})
        };
        let nodes = [zoned("a", "1"), zoned("b", "2"), node("c", json!({"unschedulable": true}))];
        let placed = |name: &str, node: &str| labelled(name, "web", json!({"nodeName": node}));
        let snapshot = cluster(&nodes, &[placed("1", "a")]);
        assert_eq!(scheduler().decide(&labelled("p", "web", constraint(1)), &snapshot).unwrap(), "b");
        let nodes = [nodes[0].clone(), node("b", json!({}))];
        let snapshot = cluster(&nodes, &[placed("1", "a"), placed("2", "a")]);
        assert!(
            scheduler().decide(&labelled("p", "web", constraint(1)), &snapshot).is_ok(),
            "the only domain"
        );
        let nodes = [nodes[0].clone(), zoned("d", "2")];
        let full: Vec<_> =
            (0..3).map(|index| pod(&format!("f{index}"), "1m", json!({"nodeName": "d"}))).collect();
        let snapshot = cluster(&nodes, &[&[placed("1", "a")], &full[..]].concat());
        assert!(refusal(&snapshot, &labelled("p", "web", constraint(1))).starts_with(
            "0/2 nodes are available: 1 Too many pods, 1 node(s) didn't match pod topology spread constraints."
        ));
        assert_eq!(scheduler().decide(&labelled("p", "web", constraint(2)), &snapshot).unwrap(), "a");
    }

    #[test]
    fn pods_of_one_controller_spread_unasked() {
        let owned = |name: &str, more: Value| {
            let mut pod = Pod::clone(&pod(name, "1m", more).pod);
            let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]);
            pod.metadata.owner_references = serde_json::from_value(owner).unwrap();
            Arc::new(PodInfo::new(Arc::new(pod)))
        };
        // The other node has less room, but no sibling.
        let load = pod("load", "500m", json!({"nodeName": "b"}));
        let nodes = [node("a", json!({})), node("b", json!({}))];
        let snapshot = cluster(&nodes, &[load, owned("s", json!({"nodeName": "a"}))]);
        assert_eq!(scheduler().decide(&owned("p", json!({})), &snapshot).unwrap(), "b");
    }

    #[test]
    fn a_large_cluster_is_not_searched_to_the_end() {
        assert_eq!(enough(0), 1);
        assert_eq!(enough(50), 50);
        assert_eq!(enough(1000), 420);
        assert_eq!(enough(5000), 500);
        assert_eq!(enough(100_000), 5000);
    }
}
