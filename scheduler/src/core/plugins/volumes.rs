//! `VolumeBinding`, and of `VolumeRestrictions` what concerns claims for one pod alone: a pod runs where its volumes
//! can be reached. Claims that wait for their first consumer get a volume that suits the node, or one is made there.

use std::collections::BTreeSet;
use std::sync::Arc;

use decapod_api::node_selector::Term;
use decapod_api::storage;
use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim,
};
use k8s_openapi::api::storage::v1::StorageClass;

use super::Rejection;
use crate::core::node::NodeInfo;
use crate::core::place::Place;
use crate::core::plugin::Plugin;
use crate::core::pod::PodInfo;
use crate::core::profile::Profile;
use crate::core::snapshot::Snapshot;

const NAME: Plugin = Plugin::VolumeBinding;

const NO_ZONE: &str = "node(s) had no available volume zone";
const NO_VOLUMES: &str = "node(s) didn't find available persistent volumes to bind";
const NO_AFFINITY: &str = "node(s) didn't match PersistentVolume's node affinity";
const NO_VOLUME: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
const IN_USE: &str = "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod";

/// A claim that a decision has to serve.
#[derive(Clone, Debug)]
struct Unbound {
    claim: Arc<PersistentVolumeClaim>,
    class: Option<Arc<StorageClass>>,
}

/// The volumes of one pod, worked out once per decision.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Why no node will do.
    refusal: Option<String>,
    /// The volumes that its claims have; `None` for one that is gone.
    bound: Vec<Option<Arc<PersistentVolume>>>,
    /// The claims that wait for a node.
    unbound: Vec<Unbound>,
    /// What they may be given.
    volumes: Vec<Arc<PersistentVolume>>,
    /// Others that mount a claim of its that is for one pod alone.
    users: Vec<String>,
    /// The zones and regions that its volumes are bound to by their labels: each key with the values that will do.
    zones: Vec<(String, BTreeSet<String>)>,
}

impl State {
    pub(super) fn new(pod: &PodInfo, snapshot: &Snapshot, profile: &Profile) -> Self {
        let mut state = Self::default();
        if pod.claims.is_empty() || !profile.filters(NAME) {
            return state;
        }
        for wanted in &pod.claims {
            if let Err(why) = state.add(pod, &wanted.name, wanted.made_for_pod, snapshot) {
                state.refusal = Some(why);
                return state;
            }
        }
        if profile.filters(Plugin::VolumeZone) {
            state.zones = state.bound.iter().flatten().flat_map(|volume| zones(volume)).collect();
        }
        if !profile.filters(Plugin::VolumeRestrictions) {
            state.users.clear();
        }
        if !state.unbound.is_empty() {
            state.volumes = snapshot.storage().volumes().cloned().collect();
            // So that equals are taken in the same order everywhere.
            state.volumes.sort_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
        }
        state
    }

    fn add(
        &mut self,
        pod: &PodInfo,
        name: &str,
        made_for_pod: bool,
        snapshot: &Snapshot,
    ) -> Result<(), String> {
        let storage = snapshot.storage();
        let namespace = pod.pod.metadata.namespace.as_deref().unwrap_or_default();
        let Some(claim) = storage.claim(namespace, name) else {
            return Err(if made_for_pod {
                format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
                )
            } else {
                format!("persistentvolumeclaim {name:?} not found")
            });
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        let spec = claim.spec.as_ref();
        let volume = spec.and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
        if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
            return Err(format!(
                "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
            ));
        }
        let alone = spec
            .is_some_and(|spec| spec.access_modes.iter().flatten().any(|mode| mode == "ReadWriteOncePod"));
        if alone {
            self.users.extend(users(pod, namespace, name, snapshot));
        }
        if storage::is_fully_bound(claim) {
            self.bound.push(storage.volume(volume).cloned());
            return Ok(());
        }
        let class = storage.class(storage::class_of_claim(claim)).cloned();
        if !class.as_deref().is_some_and(storage::waits_for_consumer) || !volume.is_empty() {
            return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
        }
        self.unbound.push(Unbound { claim: claim.clone(), class });
        Ok(())
    }

    /// Why no node at all will do.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// Whether no claim waits for its volume: all have theirs, or one will get none.
    pub(super) fn is_settled(&self) -> bool {
        self.refusal.is_some() || self.unbound.is_empty()
    }

    /// Whether the pod has no claims.
    pub(super) fn is_empty(&self) -> bool {
        self.refusal.is_none() && self.bound.is_empty() && self.unbound.is_empty() && self.users.is_empty()
    }

    pub(super) fn filter(&self, place: &Place<'_>) -> Result<(), Rejection> {
        if self.is_empty() {
            return Ok(());
        }
        let node = place.node;
        if self.refusal.is_some() {
            return Err(Rejection::lasting(NAME, NO_VOLUMES));
        }
        if self.users.iter().any(|uid| !place.is_gone(uid)) {
            // Whoever has it may be of lower priority.
            return Err(Rejection::curable(Plugin::VolumeRestrictions, IN_USE));
        }
        let value = |key: &String| node.labels.get(key);
        if self.zones.iter().any(|(key, values)| value(key).is_some_and(|zone| !values.contains(zone))) {
            return Err(Rejection::lasting(Plugin::VolumeZone, NO_ZONE));
        }
        for volume in &self.bound {
            let Some(volume) = volume else { return Err(Rejection::lasting(NAME, NO_VOLUME)) };
            if !storage::reachable_from(volume, &node.name, &node.labels) {
                return Err(Rejection::lasting(NAME, NO_AFFINITY));
            }
        }
        match self.assignments(node) {
            Some(_) => Ok(()),
            None => Err(Rejection::lasting(NAME, NO_VOLUMES)),
        }
    }

    /// What each waiting claim gets on a node; `None` if one gets nothing. The smallest claims choose first, so that
    /// the others find what is left large enough.
    pub(super) fn assignments(&self, node: &NodeInfo) -> Option<Vec<Assignment>> {
        let mut waiting: Vec<&Unbound> = self.unbound.iter().collect();
        waiting.sort_by_key(|one| storage::requested(&one.claim));
        let mut taken = BTreeSet::new();
        let mut assignments = Vec::new();
        for Unbound { claim, class } in waiting {
            let chosen = storage::annotation(&claim.metadata, storage::SELECTED_NODE);
            if chosen.is_some_and(|chosen| chosen != node.name) {
                return None;
            }
            let left = self.volumes.iter().filter(|volume| !taken.contains(&volume.metadata.name));
            let found =
                storage::best_match(claim, left.map(|v| &**v), Some((&node.name, &node.labels)), true);
            // A selector that is none was refused by the API server.
            let volume = found.ok().flatten().filter(|_| chosen.is_none());
            if let Some(volume) = volume {
                taken.insert(volume.metadata.name.clone());
                assignments.push(Assignment::Bind(claim.clone(), Arc::new(volume.clone())));
            } else if class.as_deref().is_some_and(|class| makes_volumes_on(class, node)) {
                assignments.push(Assignment::Provision(claim.clone()));
            } else {
                return None;
            }
        }
        Some(assignments)
    }
}

/// How a claim that waited for its first consumer gets a volume.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Assignment {
    /// This one is there.
    Bind(Arc<PersistentVolumeClaim>, Arc<PersistentVolume>),
    /// The provisioner of its class makes one for the node.
    Provision(Arc<PersistentVolumeClaim>),
}

/// The other pods that mount a claim.
fn users(pod: &PodInfo, namespace: &str, claim: &str, snapshot: &Snapshot) -> Vec<String> {
    let others = snapshot.nodes().iter().flat_map(|node| node.pods.values());
    let others = others.filter(|other| {
        other.uid != pod.uid
            && other.pod.metadata.namespace.as_deref().unwrap_or_default() == namespace
            && other.claims.iter().any(|one| one.name == claim)
    });
    others.map(|other| other.uid.clone()).collect()
}

/// The labels by which a volume is bound to zones and regions; several are separated by `__`.
const ZONE_KEYS: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

fn zones(volume: &PersistentVolume) -> Vec<(String, BTreeSet<String>)> {
    let labels = volume.metadata.labels.iter().flatten();
    let of_place = labels.filter(|(key, _)| ZONE_KEYS.contains(&key.as_str()));
    of_place.map(|(key, value)| (key.clone(), value.split("__").map(str::to_owned).collect())).collect()
}

/// Whether volumes of the class can be made for a node: there is a provisioner, and the topologies allow it.
fn makes_volumes_on(class: &StorageClass, node: &NodeInfo) -> bool {
    let makes = !class.provisioner.is_empty() && class.provisioner != storage::NO_PROVISIONER;
    let topologies = class.allowed_topologies.iter().flatten();
    let allows = |term: &k8s_openapi::api::core::v1::TopologySelectorTerm| {
        let expressions = term.match_label_expressions.iter().flatten();
        let expressions = expressions.map(|one| NodeSelectorRequirement {
            key: one.key.clone(),
            operator: "In".to_owned(),
            values: Some(one.values.clone()),
        });
        let term = NodeSelectorTerm { match_expressions: Some(expressions.collect()), match_fields: None };
        Term::new(&term).matches(&node.name, &node.labels)
    };
    makes && (topologies.clone().next().is_none() || topologies.into_iter().any(allows))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Node, Pod};
    use serde_json::{Value, json};

    use super::*;

    fn read<T: k8s_openapi::serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn pod(name: &str, node: Value) -> Arc<PodInfo> {
        let pod: Arc<Pod> = read(json!({"metadata": {"name": name, "namespace": "n", "uid": name}, "spec": {
            "nodeName": node, "containers": [],
            "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}}));
        Arc::new(PodInfo::new(pod))
    }

    fn claim(spec: Value, annotations: Value) -> Arc<PersistentVolumeClaim> {
        read(json!({"metadata": {"name": "data", "namespace": "n", "uid": "u", "annotations": annotations},
            "spec": spec, "status": {"phase": "Pending"}}))
    }

    fn volume(name: &str, node: &str) -> Arc<PersistentVolume> {
        read(json!({"metadata": {"name": name}, "status": {"phase": "Available"}, "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "late",
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions":
                [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}}}))
    }

    fn cluster(provisioner: &str) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for name in ["a", "b"] {
            let node: Arc<Node> =
                read(json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}}));
            snapshot.node_put(node);
        }
        let class = json!({"metadata": {"name": "late"}, "provisioner": provisioner,
            "volumeBindingMode": "WaitForFirstConsumer"});
        snapshot.storage_mut().class_set("late", Some(read(class)));
        snapshot
    }

    fn late() -> Value {
        json!({"storageClassName": "late", "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}})
    }

    fn fits(snapshot: &Snapshot) -> Vec<String> {
        let state = State::new(&pod("p", Value::Null), snapshot, &Profile::new("x"));
        let nodes = snapshot.nodes().iter().enumerate();
        let fitting = nodes.filter(|(position, node)| state.filter(&Place::new(node, *position)).is_ok());
        fitting.map(|(_, node)| node.name.clone()).collect()
    }

    #[test]
    fn a_waiting_claim_takes_what_its_node_has_or_has_it_made() {
        let mut snapshot = cluster(storage::NO_PROVISIONER);
        snapshot.storage_mut().claim_set("n", "data", Some(claim(late(), Value::Null)));
        assert!(fits(&snapshot).is_empty());
        snapshot.storage_mut().volume_set("v", Some(volume("v", "b")));
        assert_eq!(fits(&snapshot), ["b"]);
        let state = State::new(&pod("p", Value::Null), &snapshot, &Profile::new("x"));
        let on = |name: &str| state.assignments(snapshot.node(name).unwrap());
        assert!(matches!(&on("b").unwrap()[..], [Assignment::Bind(..)]));
        assert!(on("a").is_none());

        let mut snapshot = cluster("p.example");
        snapshot.storage_mut().claim_set("n", "data", Some(claim(late(), Value::Null)));
        assert_eq!(fits(&snapshot), ["a", "b"]);
        let chosen = claim(late(), json!({storage::SELECTED_NODE: "a"}));
        snapshot.storage_mut().claim_set("n", "data", Some(chosen));
        assert_eq!(fits(&snapshot), ["a"]);
    }

    #[test]
    fn a_bound_claim_goes_where_its_volume_is() {
        let mut snapshot = cluster("p.example");
        let mut spec = late();
        spec["volumeName"] = json!("v");
        let bound = claim(spec, json!({storage::BIND_COMPLETED: "yes"}));
        snapshot.storage_mut().claim_set("n", "data", Some(bound));
        assert!(fits(&snapshot).is_empty(), "it is gone");
        snapshot.storage_mut().volume_set("v", Some(volume("v", "a")));
        assert_eq!(fits(&snapshot), ["a"]);
    }

    #[test]
    fn what_no_node_can_help_is_said() {
        let mut snapshot = cluster("p.example");
        let why = |snapshot: &Snapshot| {
            State::new(&pod("p", Value::Null), snapshot, &Profile::new("x"))
                .refusal()
                .unwrap_or_default()
                .to_owned()
        };
        assert_eq!(why(&snapshot), "persistentvolumeclaim \"data\" not found");
        let immediate = json!({"storageClassName": "other"});
        snapshot.storage_mut().claim_set("n", "data", Some(claim(immediate, Value::Null)));
        assert_eq!(why(&snapshot), "pod has unbound immediate PersistentVolumeClaims");
    }

    #[test]
    fn a_claim_for_one_pod_is_for_one_pod() {
        let mut snapshot = cluster("p.example");
        let mut spec = late();
        spec["accessModes"] = json!(["ReadWriteOncePod"]);
        snapshot.storage_mut().claim_set("n", "data", Some(claim(spec, Value::Null)));
        assert_eq!(fits(&snapshot), ["a", "b"]);
        snapshot.pod_put(&pod("other", json!("b")));
        assert!(fits(&snapshot).is_empty());
    }
}
