//! The pods of a DaemonSet: pinned to their node by name, and tolerating what befalls nodes.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::common::claim::controller_reference;
use crate::common::pods;

/// The label that holds the hash of the template that a pod has.
pub(super) const HASH: &str = "controller-revision-hash";

/// The annotation of a set, and the label of its pods, by which templates were counted before there were hashes.
const GENERATION: (&str, &str) = ("deprecated.daemonset.template.generation", "pod-template-generation");

/// Taints that come and go with the condition of a node: daemons stay, or come all the same.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

/// Daemons on the network of the node come before the pod network does.
const NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// The spec of the set's pods but for their node.
pub(super) fn spec(set: &DaemonSet) -> PodSpec {
    let template = set.spec.as_ref().and_then(|spec| spec.template.spec.clone());
    let mut spec = template.unwrap_or_default();
    let network = Some(NETWORK).filter(|_| spec.host_network == Some(true));
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
    spec
}

/// The pod for a node. Its own affinity was asked about already: the name of the node takes its place.
pub(super) fn new(set: &DaemonSet, mut spec: PodSpec, hash: &str, node: &str) -> Pod {
    let name = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![name]), match_expressions: None };
    let affinity = spec.affinity.get_or_insert_default();
    let on_nodes = affinity.node_affinity.get_or_insert_with(NodeAffinity::default);
    on_nodes.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
    let template = set.spec.as_ref().and_then(|spec| spec.template.metadata.clone());
    let meta = template.unwrap_or_default();
    let mut labels = meta.labels.unwrap_or_default();
    labels.insert(HASH.to_owned(), hash.to_owned());
    let generation = set.annotations().get(GENERATION.0);
    labels.extend(generation.map(|generation| (GENERATION.1.to_owned(), generation.clone())));
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.name_any())),
            namespace: set.namespace(),
            labels: Some(labels),
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference(set)]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

/// The node that a pod is on, or is meant for.
pub(super) fn target(pod: &Pod) -> Option<&str> {
    if !pods::node_name(pod).is_empty() {
        return Some(pods::node_name(pod));
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let mut fields = required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let name = fields.find(|field| field.key == "metadata.name" && field.operator == "In")?;
    match name.values.as_deref()? {
        [node] => Some(node),
        _ => None,
    }
}

/// The hash of the template that a pod has; empty if none.
pub(super) fn hash(pod: &Pod) -> &str {
    pod.labels().get(HASH).map(String::as_str).unwrap_or_default()
}
