//! A kubelet changes its own node, and the pods on it, and nothing else.

use async_trait::async_trait;
use decapod_api::meta;
use decapod_api::status::Error;
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::auth::node::name_of;
use crate::registry::core;

const MIRROR: &str = "kubernetes.io/config.mirror";
const NODE_LEASES: &str = "kube-node-lease";
/// Labels of this domain, and of those below it, are for keeping workloads off nodes.
const RESTRICTION: &str = "node-restriction.kubernetes.io";
/// What a kubelet says of its node among the labels that are Kubernetes' own.
const KUBELET_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];
/// The domains below which a kubelet's labels are its own.
const KUBELET_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

pub(super) struct NodeRestriction;

#[async_trait]
impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, write: &Attributes<'_>) -> bool {
        name_of(&write.call.user).is_some()
    }

    async fn validate(&self, write: &Attributes<'_>, object: &Value) -> Result<(), Error> {
        let Some(node) = name_of(&write.call.user) else { return Ok(()) };
        if let Some(why) = check(&node, write, object) {
            return Err(write.call.forbidden(why));
        }
        if write.creates() && write.is("", "pods") {
            return owned_by_the_node_that_is(&node, write, object).await;
        }
        Ok(())
    }
}

/// A mirror pod goes with the node that made it, not with one that had the name before.
async fn owned_by_the_node_that_is(node: &str, write: &Attributes<'_>, pod: &Value) -> Result<(), Error> {
    let found = write.registry.find(core("nodes"), "", node).await?;
    let found =
        found.ok_or_else(|| Error::NotFound { resource: "nodes".to_owned(), name: node.to_owned() })?;
    let owner = pod["metadata"]["ownerReferences"][0]["uid"].as_str().unwrap_or_default();
    let uid = meta::uid(&found);
    if owner != uid {
        let why = format!("node {node} UID mismatch: expected {owner} got {uid}");
        return Err(write.call.forbidden(why));
    }
    Ok(())
}

/// Why the kubelet of `node` may not write this; `None` if it may.
fn check(node: &str, write: &Attributes<'_>, object: &Value) -> Option<String> {
    let (call, old) = (write.call, write.old);
    match (call.resource.group, call.resource.plural, call.subresource.as_str()) {
        ("", "pods", _) => pod(node, write.operation, &call.subresource, object, old),
        ("", "nodes", _) => (call.name != node)
            .then(|| format!("node \"{node}\" is not allowed to modify node \"{}\"", call.name))
            .or_else(|| own_node(node, write.operation, object, old)),
        ("", "persistentvolumeclaims", "status") => claim_status(node, object, old?),
        ("", "persistentvolumeclaims", _) => Some("may only update PVC status".to_owned()),
        ("coordination.k8s.io", "leases", _) if call.namespace != NODE_LEASES => {
            Some(format!("can only access leases in the \"{NODE_LEASES}\" system namespace"))
        }
        ("coordination.k8s.io", "leases", _) => (call.name != node)
            .then(|| "can only access node lease with the same name as the requesting node".to_owned()),
        ("storage.k8s.io", "csinodes", _) => (call.name != node)
            .then(|| "can only access CSINode with the same name as the requesting node".to_owned()),
        ("resource.k8s.io", "resourceslices", _) if write.operation != Operation::Update => {
            let what = if write.operation == Operation::Create { "create" } else { "delete" };
            (object["spec"]["nodeName"] != *node).then(|| {
                format!("can only {what} ResourceSlice with the same NodeName as the requesting node")
            })
        }
        _ => None,
    }
}

fn pod(node: &str, operation: Operation, sub: &str, object: &Value, old: Option<&Value>) -> Option<String> {
    let on_node = |pod: &Value| pod["spec"]["nodeName"] == *node;
    match (operation, sub) {
        (Operation::Create, "") => mirror(node, object),
        (Operation::Delete, "eviction") if !on_node(object) => {
            Some(format!("node {node} can only evict pods with spec.nodeName set to itself"))
        }
        (Operation::Delete, _) if !on_node(object) => {
            Some(format!("node \"{node}\" can only delete pods with spec.nodeName set to itself"))
        }
        (Operation::Delete, _) => None,
        (_, "status" | "eviction") => {
            let old = old?;
            if !on_node(old) {
                return Some(format!(
                    "node \"{node}\" can only update pod status for pods with spec.nodeName set to itself"
                ));
            }
            if meta::labels(object) != meta::labels(old) {
                return Some(format!("node \"{node}\" cannot update labels through pod status"));
            }
            let claims = |pod: &Value| pod["status"]["resourceClaimStatuses"].clone();
            (claims(object) != claims(old))
                .then(|| format!("node \"{node}\" cannot update resource claim statues"))
        }
        (_, "") => Some(format!(
            "unexpected operation \"UPDATE\", node \"{node}\" can only create and delete mirror pods"
        )),
        (_, other) => {
            Some(format!("unexpected pod subresource \"{other}\", only 'status' and 'eviction' are allowed"))
        }
    }
}

/// A kubelet shows the pods that it runs from files as mirror pods; these reach no other object.
fn mirror(node: &str, pod: &Value) -> Option<String> {
    if !pod["metadata"]["annotations"][MIRROR].is_string() {
        return Some(format!(
            "pod does not have \"{MIRROR}\" annotation, node \"{node}\" can only create mirror pods"
        ));
    }
    if pod["spec"]["nodeName"] != *node {
        return Some(format!("node \"{node}\" can only create pods with spec.nodeName set to itself"));
    }
    let owners = pod["metadata"]["ownerReferences"].as_array().map_or(&[][..], Vec::as_slice);
    let [owner] = owners else {
        let which = if owners.is_empty() { "an owner" } else { "a single owner" };
        return Some(format!("node \"{node}\" can only create pods with {which} reference set to itself"));
    };
    if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != *node {
        return Some(format!("node \"{node}\" can only create pods with an owner reference set to itself"));
    }
    if owner["controller"] != Value::Bool(true) {
        return Some(format!(
            "node \"{node}\" can only create pods with a controller owner reference set to itself"
        ));
    }
    if owner["blockOwnerDeletion"] == Value::Bool(true) {
        return Some(format!("node \"{node}\" must not set blockOwnerDeletion on an owner reference"));
    }
    reaches(&pod["spec"]).map(|what| format!("node \"{node}\" can not create pods that reference {what}"))
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// The first other kind of object that a pod reaches.
fn reaches(spec: &Value) -> Option<&'static str> {
    if spec["serviceAccountName"].as_str().is_some_and(|name| !name.is_empty()) {
        return Some("serviceaccounts");
    }
    let containers = || ["containers", "initContainers", "ephemeralContainers"].into_iter();
    let has = |key: &str, from: &str| {
        containers().flat_map(|list| items(&spec[list])).any(|container| {
            items(&container["env"]).any(|e| e["valueFrom"][key].is_object())
                || items(&container["envFrom"]).any(|e| e[from].is_object())
        })
    };
    let pulls = items(&spec["imagePullSecrets"]).next().is_some();
    if pulls || has("secretKeyRef", "secretRef") {
        return Some("secrets");
    }
    if has("configMapKeyRef", "configMapRef") {
        return Some("configmaps");
    }
    if items(&spec["resourceClaims"]).next().is_some() {
        return Some("resourceclaims");
    }
    items(&spec["volumes"]).find_map(volume_reaches)
}

fn volume_reaches(volume: &Value) -> Option<&'static str> {
    let first = |from: &Value, kinds: &[(&str, &'static str)]| {
        kinds.iter().find(|(field, _)| from[*field].is_object()).map(|(_, what)| *what)
    };
    let direct = first(
        volume,
        &[
            ("configMap", "configmaps (via configmap volumes)"),
            ("secret", "secrets (via secret volumes)"),
            ("csi", "csidrivers (via CSI volumes)"),
            ("glusterfs", "endpoints (via glusterFS volumes)"),
            ("persistentVolumeClaim", "persistentvolumeclaims"),
            ("ephemeral", "persistentvolumeclaims (via ephemeral volumes)"),
            ("azureFile", "secrets (via azureFile volumes)"),
        ],
    );
    let secret = ["cephfs", "flexVolume", "iscsi", "rbd", "scaleIO", "storageos"];
    let by_secret = || secret.iter().any(|kind| volume[*kind]["secretRef"].is_object()).then_some("secrets");
    let projected = || {
        items(&volume["projected"]["sources"]).find_map(|source| {
            first(
                source,
                &[
                    ("configMap", "configmaps (via projected volumes)"),
                    ("secret", "secrets (via projected volumes)"),
                    ("serviceAccountToken", "serviceaccounts (via projected volumes)"),
                    ("clusterTrustBundle", "clustertrustbundles"),
                    ("podCertificate", "podcertificates"),
                ],
            )
        })
    };
    direct.or_else(by_secret).or_else(projected)
}

fn own_node(node: &str, operation: Operation, object: &Value, old: Option<&Value>) -> Option<String> {
    if operation == Operation::Delete {
        return None;
    }
    if let Some(old) = old {
        if object["spec"]["taints"] != old["spec"]["taints"] {
            return Some(format!("node \"{node}\" is not allowed to modify taints"));
        }
        if object["metadata"]["ownerReferences"] != old["metadata"]["ownerReferences"] {
            return Some(format!("node \"{node}\" is not allowed to modify ownerReferences"));
        }
    }
    let empty = Value::Null;
    let (now, before) = (meta::labels(object), meta::labels(old.unwrap_or(&empty)));
    let mut changed: Vec<&str> = now
        .keys()
        .chain(before.keys())
        .copied()
        .filter(|key| now.get(key) != before.get(key) && !is_kubelets(key))
        .collect();
    changed.sort_unstable();
    changed.dedup();
    if changed.is_empty() {
        return None;
    }
    let keys = changed.join(", ");
    Some(match old {
        None => format!("node \"{node}\" is not allowed to set the following labels: {keys}"),
        Some(_) => format!("is not allowed to modify labels: {keys}"),
    })
}

/// Whether a label is a kubelet's to set: its own, and all that are not Kubernetes'.
fn is_kubelets(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let below = |of: &str| domain == of || domain.strip_suffix(of).is_some_and(|rest| rest.ends_with('.'));
    if below(RESTRICTION) {
        return false;
    }
    let kubernetes = below("kubernetes.io") || below("k8s.io");
    !kubernetes || KUBELET_LABELS.contains(&label) || KUBELET_DOMAINS.iter().any(|of| below(of))
}

/// Of a claim's status only what a resize needs.
fn claim_status(node: &str, object: &Value, old: &Value) -> Option<String> {
    let rest = |claim: &Value| {
        let mut claim = claim.clone();
        for field in ["resourceVersion", "managedFields"] {
            claim["metadata"][field] = Value::Null;
        }
        for field in ["capacity", "conditions", "allocatedResources", "allocatedResourceStatuses"] {
            claim["status"][field] = Value::Null;
        }
        claim
    };
    (rest(object) != rest(old)).then(|| {
        format!(
            "node \"{node}\" is not allowed to update fields other than status.quantity and status.conditions"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_of_a_kubelet() {
        for own in [
            "kubernetes.io/hostname",
            "example.com/x",
            "x",
            "node.kubernetes.io/y",
            "a.kubelet.kubernetes.io/z",
        ] {
            assert!(is_kubelets(own), "{own}");
        }
        for other in [
            "kubernetes.io/other",
            "node-role.kubernetes.io/x",
            "node-restriction.kubernetes.io/x",
            "a.node-restriction.kubernetes.io/x",
            "x.k8s.io/y",
        ] {
            assert!(!is_kubelets(other), "{other}");
        }
        let node = |role: &str| json!({"metadata": {"labels": {"node-role.kubernetes.io/x": role}}});
        assert_eq!(
            own_node("n", Operation::Update, &node(""), Some(&node(""))),
            None,
            "what was there may stay"
        );
        let why = own_node("n", Operation::Update, &json!({}), Some(&node(""))).unwrap();
        assert_eq!(why, "is not allowed to modify labels: node-role.kubernetes.io/x");
        let why = own_node("n", Operation::Create, &node(""), None).unwrap();
        assert_eq!(why, "node \"n\" is not allowed to set the following labels: node-role.kubernetes.io/x");
    }

    #[test]
    fn mirror_pods() {
        let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "n", "controller": true});
        let good = json!({"metadata": {"annotations": {MIRROR: "x"}, "ownerReferences": [owner]}, "spec": {"nodeName": "n"}});
        assert_eq!(mirror("n", &good), None);
        let mut other = good.clone();
        other["spec"]["volumes"] = json!([{"secret": {"secretName": "s"}}]);
        assert!(
            mirror("n", &other)
                .unwrap()
                .ends_with("can not create pods that reference secrets (via secret volumes)")
        );
        other["spec"]["volumes"] =
            json!([{"hostPath": {"path": "/"}}, {"projected": {"sources": [{"downwardAPI": {}}]}}]);
        assert_eq!(mirror("n", &other), None);
        other["spec"]["containers"] = json!([{"envFrom": [{"configMapRef": {"name": "all"}}]}]);
        assert!(mirror("n", &other).unwrap().ends_with("reference configmaps"));

        assert!(mirror("m", &good).is_some());
        let mut orphan = good.clone();
        orphan["metadata"]["ownerReferences"] = json!([]);
        assert!(mirror("n", &orphan).is_some());
    }

    #[test]
    fn pods_are_changed_by_their_status() {
        let on = |node: &str| json!({"spec": {"nodeName": node}});
        let status = |sub: &str, old: Value| pod("n", Operation::Update, sub, &old, Some(&old));
        assert_eq!(status("status", on("n")), None);
        assert!(status("status", on("m")).is_some());
        assert!(status("", on("n")).is_some());
        assert!(status("binding", on("n")).is_some());
        assert_eq!(pod("n", Operation::Delete, "", &on("n"), None), None);
        assert!(pod("n", Operation::Delete, "", &on("m"), None).is_some());
    }
}
