//! A second opinion, for tests: which nodes will do, worked out from the objects alone, slowly and without any of the
//! counts that the snapshot keeps. Change by change both have to agree.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::decide::{self, Scheduler};
use super::plugins::Prepared;
use super::pod::PodInfo;
use super::preempt::Candidate;
use super::profile::Profile;
use super::snapshot::Snapshot;

const HOST: &str = "kubernetes.io/hostname";

/// How a pod wants to be placed: a number for each of its wishes.
#[derive(Clone, Debug)]
struct Wish {
    app: usize,
    priority: i32,
    cpu: i64,
    port: bool,
    zone: Option<usize>,
    near: Option<(usize, bool)>,
    apart: Option<(usize, bool)>,
    spread: Option<(i64, bool, usize)>,
}

fn wish() -> impl Strategy<Value = Wish> {
    let term = || proptest::option::weighted(0.3, (0..3_usize, any::<bool>()));
    let spread = proptest::option::weighted(0.3, (1..3_i64, any::<bool>(), 0..3_usize));
    let zone = proptest::option::weighted(0.2, 0..3_usize);
    (0..3_usize, 0..3_i32, 1..5_i64, proptest::bool::weighted(0.2), zone, term(), term(), spread).prop_map(
        |(app, priority, cpu, port, zone, near, apart, spread)| Wish {
            app,
            priority,
            cpu,
            port,
            zone,
            near,
            apart,
            spread,
        },
    )
}

fn key(by_zone: bool) -> &'static str {
    if by_zone { "zone" } else { HOST }
}

fn pod(number: usize, wish: &Wish, node: Option<&str>) -> Arc<Pod> {
    let term = |(app, by_zone): (usize, bool)| json!([{"labelSelector": {"matchLabels": {"app": format!("app{app}")}}, "topologyKey": key(by_zone)}]);
    let mut spec = json!({"priority": wish.priority, "nodeName": node, "containers": [{"name": "c",
        "resources": {"requests": {"cpu": wish.cpu.to_string()}},
        "ports": if wish.port { json!([{"containerPort": 80, "hostPort": 80}]) } else { Value::Null }}]});
    if let Some(zone) = wish.zone {
        spec["nodeSelector"] = json!({"zone": format!("z{zone}")});
    }
    if let Some(near) = wish.near {
        spec["affinity"]["podAffinity"] =
            json!({"requiredDuringSchedulingIgnoredDuringExecution": term(near)});
    }
    if let Some(apart) = wish.apart {
        spec["affinity"]["podAntiAffinity"] =
            json!({"requiredDuringSchedulingIgnoredDuringExecution": term(apart)});
    }
    if let Some((skew, by_zone, domains)) = wish.spread {
        spec["topologySpreadConstraints"] = json!([{"maxSkew": skew, "topologyKey": key(by_zone),
            "whenUnsatisfiable": "DoNotSchedule", "minDomains": domains.max(1),
            "labelSelector": {"matchLabels": {"app": format!("app{}", wish.app)}}}]);
    }
    let name = format!("p{number}");
    let pod = json!({"metadata": {"name": name, "namespace": "n", "uid": name,
        "labels": {"app": format!("app{}", wish.app)}}, "spec": spec});
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn node(number: usize, zone: usize, cpu: i64, tainted: bool) -> Arc<Node> {
    let name = format!("n{number}");
    let taints = if tainted { json!([{"key": "k", "effect": "NoSchedule"}]) } else { Value::Null };
    // One of the zones is none.
    let mut labels = json!({HOST: name});
    if zone < 3 {
        labels["zone"] = json!(format!("z{zone}"));
    }
    let node = json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints},
        "status": {"allocatable": {"cpu": cpu.to_string(), "memory": "1Gi", "pods": "5"}}});
    Arc::new(serde_json::from_value(node).unwrap())
}

#[derive(Clone, Debug)]
enum Step {
    Node(usize, usize, i64, bool),
    NodeGone(usize),
    PodGone(usize),
    /// A pod is decided on, and placed where the decision says.
    Pod(usize, Wish),
    /// A pod is placed by somebody else, whatever the rules.
    Put(usize, usize, Wish),
    /// So many pods of an app may be disrupted; any number where none is said.
    Budget(usize, Option<i32>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..5_usize, 0..4_usize, 2..9_i64, proptest::bool::weighted(0.1))
            .prop_map(|(number, zone, cpu, tainted)| Step::Node(number, zone, cpu, tainted)),
        1 => (0..5_usize).prop_map(Step::NodeGone),
        2 => (0..12_usize).prop_map(Step::PodGone),
        6 => (0..12_usize, wish()).prop_map(|(number, wish)| Step::Pod(number, wish)),
        2 => (0..12_usize, 0..5_usize, wish()).prop_map(|(number, node, wish)| Step::Put(number, node, wish)),
        1 => (0..3_usize, proptest::option::weighted(0.8, 0..2_i32))
            .prop_map(|(app, allowed)| Step::Budget(app, allowed)),
    ]
}

/// The cluster as lists.
#[derive(Default)]
struct Naive {
    nodes: BTreeMap<String, Arc<Node>>,
    /// By name, with the node.
    pods: BTreeMap<String, (Arc<Pod>, String)>,
    /// How many pods of an app may be disrupted.
    budgets: BTreeMap<String, i32>,
}

/// What a preemption costs, in the order in which that is compared: exceeded budgets, the highest priority, the sum of
/// all, and how many have to go.
type Cost = (usize, i32, i64, usize);

impl Naive {
    fn label(&self, node: &str, key: &str) -> Option<String> {
        self.nodes.get(node)?.labels().get(key).cloned()
    }

    fn cpu(pod: &Pod) -> i64 {
        let requests = pod.spec.as_ref().unwrap().containers[0].resources.as_ref().unwrap().requests.clone();
        requests.unwrap()["cpu"].0.parse().unwrap()
    }

    fn is_app(pod: &Pod, selector: &Value) -> bool {
        selector["matchLabels"]["app"] == json!(pod.labels()["app"])
    }

    /// Whether the pod may be on the node while these are the pods of the cluster.
    fn fits(&self, pod: &Pod, node: &str, without: &BTreeSet<String>) -> bool {
        let others: Vec<_> =
            self.pods.iter().filter(|(name, _)| !without.contains(*name)).map(|(_, one)| one).collect();
        let here = || others.iter().filter(|(_, at)| at == node).map(|(other, _)| other);
        let object = &self.nodes[node];
        let spec = serde_json::to_value(pod.spec.as_ref().unwrap()).unwrap();
        let free: i64 =
            object.status.as_ref().unwrap().allocatable.as_ref().unwrap()["cpu"].0.parse().unwrap();
        let has_port = |pod: &Pod| pod.spec.as_ref().unwrap().containers[0].ports.is_some();
        let taken: i64 = here().map(|other| Self::cpu(other)).sum();
        if object.spec.as_ref().is_some_and(|spec| spec.taints.is_some())
            || taken + Self::cpu(pod) > free
            || here().count() >= 5
            || (has_port(pod) && here().any(|other| has_port(other)))
            || spec["nodeSelector"]["zone"]
                .as_str()
                .is_some_and(|zone| self.label(node, "zone").as_deref() != Some(zone))
        {
            return false;
        }
        let same = |at: &str, key: &str| {
            self.label(at, key).is_some() && self.label(at, key) == self.label(node, key)
        };
        let rules = |pod: &Pod, kind: &str| {
            let spec = serde_json::to_value(pod.spec.as_ref().unwrap()).unwrap();
            spec["affinity"][kind]["requiredDuringSchedulingIgnoredDuringExecution"]
                .as_array()
                .cloned()
                .unwrap_or_default()
        };
        for term in rules(pod, "podAffinity") {
            let key = term["topologyKey"].as_str().unwrap();
            let like = |other: &Pod| Self::is_app(other, &term["labelSelector"]);
            let anywhere = others.iter().any(|(other, at)| like(other) && self.label(at, key).is_some());
            let there = others.iter().any(|(other, at)| like(other) && same(at, key));
            if self.label(node, key).is_none() || !(there || (!anywhere && like(pod))) {
                return false;
            }
        }
        for term in rules(pod, "podAntiAffinity") {
            let key = term["topologyKey"].as_str().unwrap();
            if others.iter().any(|(other, at)| Self::is_app(other, &term["labelSelector"]) && same(at, key)) {
                return false;
            }
        }
        for (other, at) in &others {
            for term in rules(other, "podAntiAffinity") {
                if Self::is_app(pod, &term["labelSelector"])
                    && same(at, term["topologyKey"].as_str().unwrap())
                {
                    return false;
                }
            }
        }
        spec["topologySpreadConstraints"]
            .as_array()
            .into_iter()
            .flatten()
            .all(|one| self.is_even(pod, &spec, one, node, &others))
    }

    /// Who has to go from a node so that the pod fits: all that are less important go, and come back one by one if it
    /// still fits then; those first whose going would exceed a budget, and of these the most important.
    fn victims(&self, pod: &Pod, node: &str) -> Option<(Cost, BTreeSet<String>)> {
        let priority = |pod: &Pod| pod.spec.as_ref().unwrap().priority.unwrap();
        let here = self.pods.iter().filter(|(_, (other, at))| at == node && priority(other) < priority(pod));
        let mut lesser: Vec<(&String, i32, &str)> =
            here.map(|(name, (other, _))| (name, priority(other), other.labels()["app"].as_str())).collect();
        let mut gone: BTreeSet<String> = lesser.iter().map(|one| one.0.clone()).collect();
        if lesser.is_empty() || !self.fits(pod, node, &gone) {
            return None;
        }
        lesser.sort_by_key(|(name, priority, _)| (-priority, *name));
        let mut left = self.budgets.clone();
        let mut exceeds = |app: &str| {
            left.get_mut(app).is_some_and(|left| {
                *left -= 1;
                *left < 0
            })
        };
        let (protected, free): (Vec<_>, Vec<_>) = lesser.iter().partition(|(_, _, app)| exceeds(app));
        let mut violations = 0;
        for (number, (name, _, _)) in protected.iter().chain(&free).enumerate() {
            gone.remove(*name);
            if !self.fits(pod, node, &gone) {
                gone.insert((*name).clone());
                violations += usize::from(number < protected.len());
            }
        }
        let priorities = || lesser.iter().filter(|one| gone.contains(one.0)).map(|one| one.1);
        let sum = priorities().map(|priority| i64::from(priority) + (1 << 31)).sum();
        Some(((violations, priorities().max()?, sum, gone.len()), gone))
    }

    fn is_even(
        &self,
        pod: &Pod,
        spec: &Value,
        constraint: &Value,
        node: &str,
        others: &[&(Arc<Pod>, String)],
    ) -> bool {
        let key = constraint["topologyKey"].as_str().unwrap();
        let zone = spec["nodeSelector"]["zone"].as_str();
        let Some(value) = self.label(node, key) else { return false };
        let mut domains: BTreeMap<String, i64> = BTreeMap::new();
        for at in self.nodes.keys() {
            if zone.is_some_and(|zone| self.label(at, "zone").as_deref() != Some(zone)) {
                continue;
            }
            let Some(domain) = self.label(at, key) else { continue };
            let here = others
                .iter()
                .filter(|(other, place)| place == at && Self::is_app(other, &constraint["labelSelector"]));
            *domains.entry(domain).or_default() += i64::try_from(here.count()).unwrap();
        }
        let enough =
            domains.len() >= usize::try_from(constraint["minDomains"].as_u64().unwrap_or(1)).unwrap();
        let fewest = if enough { domains.values().copied().min().unwrap_or(0) } else { 0 };
        let itself = i64::from(Self::is_app(pod, &constraint["labelSelector"]));
        domains.get(&value).copied().unwrap_or(0) + itself - fewest <= constraint["maxSkew"].as_i64().unwrap()
    }
}

/// Both views of one cluster.
struct Both {
    naive: Naive,
    snapshot: Snapshot,
    scheduler: Scheduler<StdRng>,
    profile: Profile,
}

impl Both {
    fn remove(&mut self, name: &str) {
        self.snapshot.pod_remove(name);
        self.naive.pods.remove(name);
    }

    fn put(&mut self, number: usize, wish: &Wish, at: &str) {
        let placed = pod(number, wish, Some(at));
        self.snapshot.pod_put(&Arc::new(PodInfo::new(placed.clone())));
        self.naive.pods.insert(format!("p{number}"), (placed, at.to_owned()));
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Node(number, zone, cpu, tainted) => {
                let node = node(*number, *zone, *cpu, *tainted);
                self.naive.nodes.insert(node.name_any(), node.clone());
                self.snapshot.node_put(node);
            }
            Step::NodeGone(number) => {
                let name = format!("n{number}");
                let here: Vec<String> = self
                    .naive
                    .pods
                    .iter()
                    .filter(|(_, (_, at))| *at == name)
                    .map(|(pod, _)| pod.clone())
                    .collect();
                here.iter().for_each(|pod| self.remove(pod));
                self.naive.nodes.remove(&name);
                self.snapshot.node_remove(&name);
            }
            Step::PodGone(number) => self.remove(&format!("p{number}")),
            Step::Put(number, at, wish) => {
                self.remove(&format!("p{number}"));
                let at = format!("n{at}");
                if self.naive.nodes.contains_key(&at) {
                    self.put(*number, wish, &at);
                }
            }
            Step::Pod(number, wish) => {
                self.remove(&format!("p{number}"));
                self.decide(*number, wish);
            }
            Step::Budget(app, allowed) => {
                let app = format!("app{app}");
                let budget = allowed.map(|allowed| {
                    let budget = json!({"metadata": {"name": app, "namespace": "n"},
                        "spec": {"selector": {"matchLabels": {"app": app}}},
                        "status": {"disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1,
                            "expectedPods": 1}});
                    Arc::new(serde_json::from_value(budget).unwrap())
                });
                self.snapshot.budgets_mut().set("n", &app, budget);
                match allowed {
                    Some(allowed) => drop(self.naive.budgets.insert(app, *allowed)),
                    None => drop(self.naive.budgets.remove(&app)),
                }
            }
        }
    }

    fn decide(&mut self, number: usize, wish: &Wish) {
        let waiting = pod(number, wish, None);
        let none = BTreeSet::new();
        let expected: BTreeSet<String> =
            self.naive.nodes.keys().filter(|node| self.naive.fits(&waiting, node, &none)).cloned().collect();
        let info = Arc::new(PodInfo::new(waiting.clone()));
        let prepared = Prepared::new(&info, &self.snapshot, &self.profile);
        let nodes = self.snapshot.nodes().iter().enumerate();
        let fitting = nodes.filter(|(position, node)| {
            node.node.is_some() && decide::check(&info, &self.snapshot, &prepared, *position).is_ok()
        });
        let found: BTreeSet<String> = fitting.map(|(_, node)| node.name.clone()).collect();
        assert_eq!(found, expected, "{wish:?}");
        drop(prepared);
        match self.scheduler.decide(&info, &self.snapshot, &self.profile) {
            Ok(node) => {
                assert!(expected.contains(&node), "{node} for {wish:?}");
                self.put(number, wish, &node);
            }
            Err(failure) => {
                assert!(expected.is_empty(), "{} for {wish:?}", failure.error);
                self.compare(&waiting, wish, failure.preemption.as_deref());
            }
        }
    }

    /// Whether those go who have to, from where that costs least.
    fn compare(&self, waiting: &Pod, wish: &Wish, found: Option<&Candidate>) {
        if wish.near.is_some() {
            // Company that is wanted is not looked for among those that would have to go; but who goes is enough.
            let Some(found) = found else { return };
            let all = found.victims.iter().map(|victim| victim.uid.clone()).collect();
            assert!(found.victims.iter().all(|victim| victim.priority < wish.priority));
            assert!(self.naive.fits(waiting, &found.node, &all), "{all:?} go for {wish:?}");
            return;
        }
        let ways: BTreeMap<_, _> = self
            .naive
            .nodes
            .keys()
            .filter_map(|node| Some((node.clone(), self.naive.victims(waiting, node)?)))
            .collect();
        let Some(found) = found else { return assert!(ways.is_empty(), "{ways:?} for {wish:?}") };
        let all: BTreeSet<String> = found.victims.iter().map(|victim| victim.uid.clone()).collect();
        let (cost, expected) = &ways[&found.node];
        assert_eq!((&all, found.violations), (expected, cost.0), "for {wish:?}");
        let least = ways.values().map(|(cost, _)| cost).min();
        assert_eq!(Some(cost), least, "{ways:?} for {wish:?}");
    }
}

proptest! {
    #[test]
    fn both_opinions_agree_after_every_change(steps in proptest::collection::vec(step(), 1..60)) {
        let scheduler = Scheduler::new(StdRng::seed_from_u64(3));
        let profile = Profile::new("default-scheduler");
        let mut both = Both { naive: Naive::default(), snapshot: Snapshot::default(), scheduler, profile };
        for number in 0..3 {
            both.apply(&Step::Node(number, number % 2, 6, false));
        }
        steps.iter().for_each(|step| both.apply(step));
    }
}
