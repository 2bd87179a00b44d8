//! The node authorizer: a kubelet reads what the pods on its node need.
//!
//! Its rules are those of the role `system:node`, which RBAC binds to nobody; Secrets and
//! ConfigMaps, claims and tokens only where a pod on the node refers to them.

use std::sync::Arc;

use async_trait::async_trait;
use decapod_api::meta;
use serde_json::Value;

use super::rbac::PolicyRule;
use super::{Attributes, Authorizer, Decision, UserInfo, bootstrap};
use crate::registry::reads::{At, Filter};
use crate::registry::{Registry, core, object};

const USER_PREFIX: &str = "system:node:";
const GROUP: &str = "system:nodes";

/// The node whose kubelet a user is.
pub(crate) fn name_of(user: &UserInfo) -> Option<String> {
    let name = user.username.strip_prefix(USER_PREFIX)?;
    (user.in_group(GROUP) && !name.is_empty()).then(|| name.to_owned())
}

/// Decides on the requests of kubelets.
pub(crate) struct NodeAuthorizer {
    registry: Arc<Registry>,
    rules: Vec<PolicyRule>,
}

impl NodeAuthorizer {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        let role = bootstrap::objects()
            .into_iter()
            .find(|w| w.resource == "clusterroles" && meta::name(&w.object) == "system:node")
            .expect("the bootstrap roles include system:node");
        let rules = serde_json::from_value(role.object["rules"].clone()).expect("bootstrap rules are rules");
        Self { registry, rules }
    }

    /// Whether any pod on the node satisfies a condition.
    async fn any_pod(&self, node: &str, namespace: &str, wanted: impl Fn(&Value) -> bool) -> bool {
        let pods = core("pods");
        let Some(prefix) = object::prefix(pods, namespace) else { return false };
        let fields = format!("spec.nodeName={node}").parse().unwrap_or_default();
        let filter = Filter { fields, ..Filter::default() };
        let view = self.registry.reads.list(pods, &prefix, &filter, At::Newest, None, None).await;
        let Ok(view) = view else { return false };
        view.items
            .iter()
            .any(|item| serde_json::from_slice::<Value>(&item.bytes()).is_ok_and(|pod| wanted(&pod)))
    }
}

#[async_trait]
impl Authorizer for NodeAuthorizer {
    async fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Decision {
        let Some(node) = name_of(user) else { return Decision::NoOpinion(String::new()) };
        if !self.rules.iter().any(|rule| rule.allows(attributes)) {
            return Decision::NoOpinion(String::new());
        }
        let (namespace, name) = (attributes.namespace.as_str(), attributes.name.as_str());
        let kind = match (attributes.group.as_str(), attributes.resource.as_str()) {
            ("", kind @ ("secrets" | "configmaps" | "persistentvolumeclaims" | "serviceaccounts")) => kind,
            _ => return Decision::Allow("node authorizer".to_owned()),
        };
        if name.is_empty() || namespace.is_empty() {
            let why = format!("No Object name found: a node may read {kind} only one by one");
            return Decision::NoOpinion(why);
        }
        if self.any_pod(&node, namespace, |pod| refers(pod, kind, name)).await {
            return Decision::Allow("node authorizer: a pod on the node refers to it".to_owned());
        }
        Decision::NoOpinion(format!("no relationship found between node '{node}' and this object"))
    }
}

/// Whether a pod refers to an object of its namespace.
fn refers(pod: &Value, kind: &str, name: &str) -> bool {
    let spec = &pod["spec"];
    match kind {
        "serviceaccounts" => spec["serviceAccountName"] == name,
        "persistentvolumeclaims" => items(&spec["volumes"]).any(|v| {
            v["persistentVolumeClaim"]["claimName"] == name
                || (v["ephemeral"].is_object()
                    && name == format!("{}-{}", meta::name(pod), v["name"].as_str().unwrap_or_default()))
        }),
        "secrets" => {
            items(&spec["imagePullSecrets"]).any(|s| s["name"] == name)
                || items(&spec["volumes"]).any(|v| volume_names(v, "secret", "secretName", name))
                || env_names(spec, "secret", name)
        }
        _ => {
            items(&spec["volumes"]).any(|v| volume_names(v, "configMap", "name", name))
                || env_names(spec, "configMap", name)
        }
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn volume_names(volume: &Value, source: &str, field: &str, name: &str) -> bool {
    volume[source][field] == name
        || items(&volume["projected"]["sources"]).any(|s| s[source]["name"] == name)
        || (source == "secret"
            && ["csi", "flexVolume", "rbd", "iscsi", "cephfs", "scaleIO", "storageos"].iter().any(|kind| {
                volume[*kind]["secretRef"]["name"] == name
                    || volume[*kind]["nodePublishSecretRef"]["name"] == name
            }))
}

fn env_names(spec: &Value, source: &str, name: &str) -> bool {
    let containers =
        ["containers", "initContainers", "ephemeralContainers"].into_iter().flat_map(|f| items(&spec[f]));
    let (key, from) = (format!("{source}KeyRef"), format!("{source}Ref"));
    containers.into_iter().any(|c| {
        items(&c["env"]).any(|e| e["valueFrom"][&key]["name"] == name)
            || items(&c["envFrom"]).any(|e| e[&from]["name"] == name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_pod_refers_to() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "bot",
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"name": "a", "secret": {"secretName": "vol"}}, {"name": "b", "projected": {"sources": [
                {"configMap": {"name": "kube-root-ca.crt"}}]}}, {"name": "c", "persistentVolumeClaim": {"claimName": "data"}}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env"}}}], "envFrom": [{"configMapRef": {"name": "all"}}]}]}});
        for (kind, name) in [
            ("secrets", "pull"),
            ("secrets", "vol"),
            ("secrets", "env"),
            ("configmaps", "all"),
            ("configmaps", "kube-root-ca.crt"),
            ("persistentvolumeclaims", "data"),
            ("serviceaccounts", "bot"),
        ] {
            assert!(refers(&pod, kind, name), "{kind} {name}");
            assert!(!refers(&pod, kind, "other"), "{kind}");
        }
        assert!(!refers(&pod, "configmaps", "vol"));
    }
}
