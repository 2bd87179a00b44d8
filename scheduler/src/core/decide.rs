//! The decision for one pod: filter the nodes, score those that are left, take the best; and where none is left, see
//! whether making room helps.
//!
//! What a node says of a pod by itself is kept for the next pod of the same template, until the node changes.

use std::collections::HashMap;
use std::sync::Arc;

use rand::Rng;

use super::fit_error::FitError;
use super::place::Place;
use super::plugins::{self, Own, Prepared, Rejection};
use super::pod::PodInfo;
use super::preempt::{self, Candidate, Useless};
use super::profile::Profile;
use super::snapshot::Snapshot;

/// With so many nodes that fit, the search for more ends: at least this many, as Kubernetes does.
const ENOUGH_AT_LEAST: usize = 100;

/// Templates whose results are kept: each costs 40 bytes per node, and rollouts alternate between few.
const TEMPLATES: usize = 32;

/// No node will do as it is.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: FitError,
    /// Where the pod would find a place once these have gone.
    pub(crate) preemption: Option<Arc<Candidate>>,
    /// Whether a node that was promised to the pod would not do any more.
    pub(crate) renounces: bool,
}

/// What a node said, and in which state.
#[derive(Clone, Copy, Debug)]
struct Row {
    generation: u64,
    /// What speaks for it, or which of the rejections is its.
    own: Result<Own, usize>,
}

/// What all nodes said of a template.
#[derive(Debug, Default)]
struct Rows {
    epoch: u64,
    used: u64,
    rows: Vec<Row>,
    /// The rejections that were ever heard: few, as all nodes have the same words.
    rejections: Vec<Rejection>,
}

impl Rows {
    /// What the node at a position says by itself.
    fn ask(
        &mut self,
        pod: &PodInfo,
        snapshot: &Snapshot,
        position: usize,
        profile: &Profile,
    ) -> Result<Own, usize> {
        let (node, row) = (&snapshot.nodes()[position], &mut self.rows[position]);
        if row.generation == node.generation {
            return row.own;
        }
        row.generation = node.generation;
        row.own = match plugins::local(pod, &Place::new(node, position), profile) {
            Ok(()) => Ok(plugins::own_score(pod, node, snapshot, profile)),
            Err(rejection) => {
                let known = self.rejections.iter().position(|known| *known == rejection);
                Err(known.unwrap_or_else(|| {
                    self.rejections.push(rejection);
                    self.rejections.len() - 1
                }))
            }
        };
        row.own
    }
}

/// Why no node will do, by reason.
#[derive(Default)]
struct Rejected {
    reasons: Vec<(Rejection, usize)>,
    /// The nodes on which making room may help.
    potential: Vec<usize>,
    /// How many there are on which it cannot.
    hopeless: usize,
}

/// What removing pods from a node would bring, and in which state.
type Thought = (u64, Result<Arc<Candidate>, Useless>);

#[derive(Debug, Default)]
struct Thoughts {
    budgets: u64,
    epoch: u64,
    used: u64,
    rows: HashMap<usize, Thought>,
}

/// Finds nodes, one pod after the other. Remembers where it stopped looking, so that in a large cluster
/// all nodes get their turn.
#[derive(Debug)]
pub(crate) struct Scheduler<R> {
    chance: R,
    start: usize,
    tick: u64,
    kept: HashMap<Arc<str>, Rows>,
    thoughts: HashMap<(Arc<str>, i32), Thoughts>,
}

impl<R: Rng> Scheduler<R> {
    /// Among equally good nodes, `chance` decides.
    pub(crate) fn new(chance: R) -> Self {
        Self { chance, start: 0, tick: 0, kept: HashMap::new(), thoughts: HashMap::new() }
    }

    /// The best node for the pod.
    ///
    /// # Errors
    /// Why each node was rejected, if all were, and whether making room helps.
    pub(crate) fn decide(
        &mut self,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        profile: &Profile,
    ) -> Result<String, Failure> {
        let prepared = Prepared::new(pod, snapshot, profile);
        if let Some((plugin, why)) = prepared.refusal() {
            let error = FitError::refused(snapshot.existing(), plugin, why);
            return Err(self.after_refusal(error, pod, snapshot, profile));
        }
        if let Some(promised) = promised(pod, snapshot, &prepared) {
            return Ok(promised);
        }
        let mut rows = self.rows(pod, snapshot);
        let fitting = self.search(pod, snapshot, &prepared, profile, &mut rows);
        let best = self.best(pod, &fitting, snapshot, profile);
        let decision = match best {
            Some(best) => Ok(snapshot.nodes()[best].name.clone()),
            None => Err(reject(pod, snapshot, &prepared, profile, &mut rows)),
        };
        if let Some(template) = &pod.template {
            self.kept.insert(template.clone(), rows);
        }
        decision.map_err(|rejected| self.fail(pod, snapshot, &prepared, profile, rejected))
    }

    /// The rows of the pod's template, as far as they are known.
    fn rows(&mut self, pod: &PodInfo, snapshot: &Snapshot) -> Rows {
        self.tick += 1;
        let known = pod.template.as_ref().and_then(|template| self.kept.remove(template));
        let mut rows = known.filter(|rows| rows.epoch == snapshot.epoch()).unwrap_or_default();
        if self.kept.len() >= TEMPLATES {
            let oldest = self.kept.iter().min_by_key(|(_, rows)| rows.used).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.kept.remove(&key));
        }
        (rows.epoch, rows.used) = (snapshot.epoch(), self.tick);
        // No node has the generation 0.
        rows.rows.resize(snapshot.nodes().len(), Row { generation: 0, own: Err(0) });
        rows
    }

    /// Nodes that will do: all of a small cluster, as many as suffice of a large one.
    fn search(
        &mut self,
        pod: &PodInfo,
        snapshot: &Snapshot,
        prepared: &Prepared<'_>,
        profile: &Profile,
        rows: &mut Rows,
    ) -> Vec<(usize, Own)> {
        let nodes = snapshot.nodes();
        let enough = enough(snapshot.existing(), profile.percentage);
        let is_local = prepared.is_local();
        let mut fitting = Vec::new();
        let mut looked_at = 0;
        for offset in 0..nodes.len() {
            let position = (self.start + offset) % nodes.len();
            looked_at = offset + 1;
            if nodes[position].node.is_none() {
                continue;
            }
            let Ok(own) = rows.ask(pod, snapshot, position, profile) else { continue };
            if !is_local && plugins::beyond(&Place::new(&nodes[position], position), prepared).is_err() {
                continue;
            }
            let nominated = snapshot.with_nominated(position, pod);
            if nominated.is_some_and(|place| plugins::filter(pod, &place, prepared).is_err()) {
                continue;
            }
            fitting.push((position, own));
            if fitting.len() >= enough {
                break;
            }
        }
        self.start = if nodes.is_empty() { 0 } else { (self.start + looked_at) % nodes.len() };
        fitting
    }

    fn best(
        &mut self,
        pod: &Arc<PodInfo>,
        nodes: &[(usize, Own)],
        snapshot: &Snapshot,
        profile: &Profile,
    ) -> Option<usize> {
        if nodes.len() <= 1 {
            return nodes.first().map(|(position, _)| *position);
        }
        let scores = plugins::score(pod, nodes, snapshot, profile);
        let mut best: Option<(usize, i64)> = None;
        let mut equals = 0_u32;
        for ((position, _), score) in nodes.iter().zip(scores) {
            match best {
                Some((_, known)) if score < known => {}
                Some((_, known)) if score == known => {
                    // Each of n equals stays with the chance 1/n.
                    equals += 1;
                    if self.chance.random_ratio(1, equals) {
                        best = Some((*position, score));
                    }
                }
                _ => {
                    best = Some((*position, score));
                    equals = 1;
                }
            }
        }
        best.map(|(position, _)| position)
    }

    /// Why no node will do, and what making room would bring.
    fn fail(
        &mut self,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        prepared: &Prepared<'_>,
        profile: &Profile,
        rejected: Rejected,
    ) -> Failure {
        let mut error = FitError::new(snapshot.existing());
        rejected.reasons.iter().for_each(|(rejection, nodes)| error.note(rejection, *nodes));
        if !profile.preempts() || rejected.reasons.is_empty() {
            return Failure { error, preemption: None, renounces: false };
        }
        let lasting = |position: usize| !rejected.potential.contains(&position);
        if let Some(why) = preempt::ineligible(pod, snapshot, lasting) {
            error.note_not_eligible(why);
            return Failure { error, preemption: None, renounces: false };
        }
        let (candidates, useless) = self.candidates(pod, snapshot, prepared, profile, &rejected.potential);
        let preemption = preempt::cheapest(candidates);
        if preemption.is_none() {
            let hopeless = (Useless::because(preempt::NOT_HELPFUL), rejected.hopeless);
            let thought = useless.into_iter().map(|useless| (useless, 1));
            error.note_preemption(thought.chain((rejected.hopeless > 0).then_some(hopeless)));
        }
        let renounces = preemption.is_none();
        Failure { error, preemption, renounces }
    }

    /// No node will do, whatever is removed from it.
    fn after_refusal(
        &self,
        mut error: FitError,
        pod: &PodInfo,
        snapshot: &Snapshot,
        profile: &Profile,
    ) -> Failure {
        match preempt::ineligible(pod, snapshot, |_| true) {
            _ if !profile.preempts() => {}
            Some(why) => error.note_not_eligible(why),
            None => {
                error.note_preemption([(Useless::because(preempt::NOT_HELPFUL), snapshot.existing())]);
            }
        }
        Failure { error, preemption: None, renounces: true }
    }

    /// Thinks nodes through for victims until there are enough candidates.
    fn candidates(
        &mut self,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        prepared: &Prepared<'_>,
        profile: &Profile,
        potential: &[usize],
    ) -> (Vec<Arc<Candidate>>, Vec<Useless>) {
        let enough = preempt::enough(potential.len(), profile.preemption);
        let offset = if potential.is_empty() { 0 } else { self.chance.random_range(0..potential.len()) };
        // What pods and volumes elsewhere decide is not kept: it changes without the node.
        let key =
            pod.template.clone().filter(|_| prepared.is_local()).map(|template| (template, pod.priority));
        let mut thoughts = self.thoughts(key.as_ref(), snapshot);
        let (mut candidates, mut useless) = (Vec::new(), Vec::new());
        let mut within_budgets = false;
        for number in 0..potential.len() {
            let position = potential[(offset + number) % potential.len()];
            let generation = snapshot.nodes()[position].generation;
            let think = || (generation, preempt::on_node(pod, snapshot, prepared, position).map(Arc::new));
            let thought = thoughts.rows.entry(position).or_insert_with(think);
            if thought.0 != generation {
                *thought = think();
            }
            match &thought.1 {
                Ok(candidate) => {
                    within_budgets |= candidate.violations == 0;
                    candidates.push(candidate.clone());
                }
                Err(why) => useless.push(why.clone()),
            }
            if within_budgets && candidates.len() >= enough {
                break;
            }
        }
        if let Some(key) = key {
            self.thoughts.insert(key, thoughts);
        }
        (candidates, useless)
    }

    fn thoughts(&mut self, key: Option<&(Arc<str>, i32)>, snapshot: &Snapshot) -> Thoughts {
        let (budgets, epoch) = (snapshot.budgets().changes(), snapshot.epoch());
        let known = key.and_then(|key| self.thoughts.remove(key));
        let known = known.filter(|known| known.budgets == budgets && known.epoch == epoch);
        if self.thoughts.len() >= TEMPLATES {
            let oldest = self.thoughts.iter().min_by_key(|(_, one)| one.used).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.thoughts.remove(&key));
        }
        Thoughts { budgets, epoch, used: self.tick, ..known.unwrap_or_default() }
    }
}

/// The node that was promised to the pod, if it will do now.
fn promised(pod: &PodInfo, snapshot: &Snapshot, prepared: &Prepared<'_>) -> Option<String> {
    let position = snapshot.position_of(snapshot.nomination(&pod.uid)?)?;
    check(pod, snapshot, prepared, position).is_ok().then(|| snapshot.nodes()[position].name.clone())
}

/// Whether a node will do, also with the pods that were promised it before.
pub(crate) fn check(
    pod: &PodInfo,
    snapshot: &Snapshot,
    prepared: &Prepared<'_>,
    position: usize,
) -> Result<(), Rejection> {
    if let Some(place) = snapshot.with_nominated(position, pod) {
        plugins::filter(pod, &place, prepared)?;
    }
    plugins::filter(pod, &Place::new(&snapshot.nodes()[position], position), prepared)
}

/// Asks all nodes why they reject the pod, after a search that found none.
fn reject(
    pod: &PodInfo,
    snapshot: &Snapshot,
    prepared: &Prepared<'_>,
    profile: &Profile,
    rows: &mut Rows,
) -> Rejected {
    let mut rejected = Rejected::default();
    let mut counts: Vec<usize> = Vec::new();
    for (position, _) in snapshot.nodes().iter().enumerate().filter(|(_, node)| node.node.is_some()) {
        let resolvable = match rows.ask(pod, snapshot, position, profile) {
            Err(index) => {
                counts.resize(counts.len().max(index + 1), 0);
                counts[index] += 1;
                rows.rejections[index].resolvable
            }
            Ok(_) => {
                let Err(why) = check(pod, snapshot, prepared, position) else { continue };
                let resolvable = why.resolvable;
                match rejected.reasons.iter_mut().find(|(known, _)| *known == why) {
                    Some((_, nodes)) => *nodes += 1,
                    None => rejected.reasons.push((why, 1)),
                }
                resolvable
            }
        };
        if resolvable {
            rejected.potential.push(position);
        } else {
            rejected.hopeless += 1;
        }
    }
    let heard = counts.into_iter().zip(&rows.rejections).filter(|(count, _)| *count > 0);
    rejected.reasons.extend(heard.map(|(count, rejection)| (rejection.clone(), count)));
    rejected
}

/// How many fitting nodes suffice in a cluster of this size: all of a small one, a share of a large one.
fn enough(nodes: usize, percentage: Option<usize>) -> usize {
    if nodes < ENOUGH_AT_LEAST {
        return nodes.max(1);
    }
    let percent = percentage.unwrap_or_else(|| 50_usize.saturating_sub(nodes / 125).max(5));
    (nodes * percent / 100).max(ENOUGH_AT_LEAST)
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

    fn profile() -> Profile {
        Profile::new("default-scheduler")
    }

    fn refusal(snapshot: &Snapshot, pod: &PodInfo) -> String {
        scheduler()
            .decide(&Arc::new(PodInfo::new(pod.pod.clone())), snapshot, &profile())
            .unwrap_err()
            .error
            .to_string()
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
            let node = scheduler.decide(&pod, &snapshot, &profile()).unwrap();
            snapshot.assume(pod, &node);
        }
        assert!(snapshot.nodes().iter().all(|node| node.pods.len() == 2));
    }

    #[test]
    fn preferences_prevail_over_free_room() {
        let soft = json!({"taints": [{"key": "k", "effect": "PreferNoSchedule"}]});
        let snapshot =
            cluster(&[node("a", soft), node("b", json!({}))], &[pod("x", "100m", json!({"nodeName": "b"}))]);
        assert_eq!(scheduler().decide(&pod("p", "100m", json!({})), &snapshot, &profile()).unwrap(), "b");
        let prefers = json!({"tolerations": [{"operator": "Exists"}], "affinity": {"nodeAffinity":
            {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference":
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["a"]}]}}]}}});
        assert_eq!(scheduler().decide(&pod("p", "100m", prefers), &snapshot, &profile()).unwrap(), "a");
    }

    #[test]
    fn a_toleration_opens_a_cordoned_node() {
        let snapshot = cluster(&[node("a", json!({"unschedulable": true}))], &[]);
        let tolerant =
            json!({"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]});
        assert_eq!(scheduler().decide(&pod("p", "1m", tolerant), &snapshot, &profile()).unwrap(), "a");
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
        assert_ne!(scheduler().decide(&near, &snapshot, &profile()).unwrap(), "c");
        let far = labelled("p", "web", requires("podAntiAffinity", &term("db", ZONE)));
        assert_eq!(scheduler().decide(&far, &snapshot, &profile()).unwrap(), "c");
        let never = labelled("p", "web", requires("podAffinity", &term("nothing", ZONE)));
        assert!(
            refusal(&snapshot, &never)
                .starts_with("0/3 nodes are available: 3 node(s) didn't match pod affinity rules.")
        );
        let first = labelled("p", "web", requires("podAffinity", &term("web", ZONE)));
        assert!(
            scheduler().decide(&first, &snapshot, &profile()).is_ok(),
            "the first of its kind finds a place"
        );
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
        assert_eq!(scheduler().decide(&liking, &snapshot, &profile()).unwrap(), "a");
        let disliking = labelled("p", "web", like(100, "podAntiAffinity"));
        assert_eq!(scheduler().decide(&disliking, &snapshot, &profile()).unwrap(), "b");
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
        assert_eq!(
            scheduler().decide(&labelled("p", "web", constraint(1)), &snapshot, &profile()).unwrap(),
            "b"
        );
        let nodes = [nodes[0].clone(), node("b", json!({}))];
        let snapshot = cluster(&nodes, &[placed("1", "a"), placed("2", "a")]);
        assert!(
            scheduler().decide(&labelled("p", "web", constraint(1)), &snapshot, &profile()).is_ok(),
            "the only domain"
        );
        let nodes = [nodes[0].clone(), zoned("d", "2")];
        let full: Vec<_> =
            (0..3).map(|index| pod(&format!("f{index}"), "1m", json!({"nodeName": "d"}))).collect();
        let snapshot = cluster(&nodes, &[&[placed("1", "a")], &full[..]].concat());
        assert!(refusal(&snapshot, &labelled("p", "web", constraint(1))).starts_with(
            "0/2 nodes are available: 1 Too many pods, 1 node(s) didn't match pod topology spread constraints."
        ));
        assert_eq!(
            scheduler().decide(&labelled("p", "web", constraint(2)), &snapshot, &profile()).unwrap(),
            "a"
        );
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
        assert_eq!(scheduler().decide(&owned("p", json!({})), &snapshot, &profile()).unwrap(), "b");
    }

    #[test]
    fn a_large_cluster_is_not_searched_to_the_end() {
        assert_eq!(enough(0, None), 1);
        assert_eq!(enough(50, None), 50);
        assert_eq!(enough(1000, None), 420);
        assert_eq!(enough(5000, None), 500);
        assert_eq!(enough(100_000, None), 5000);
    }
}
