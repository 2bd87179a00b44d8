//! The node authorizer: a kubelet reads what the pods on its node need, and writes about its node.
//!
//! Its further rules are those of the role `system:node`, which RBAC binds to nobody. What a kubelet may
//! ask is decided from the request alone ([`ask`]); only where that depends on its pods are they looked at.

use std::sync::Arc;

use async_trait::async_trait;
use decapod_api::fields::Selector;
use decapod_api::meta;
use decapod_api::resource::Resource;
use serde_json::Value;

use super::rbac::PolicyRule;
use super::{Attributes, Authorizer, Decision, UserInfo, bootstrap};
use crate::registry::reads::{At, Filter};
use crate::registry::{Registry, core, object, row};

const USER_PREFIX: &str = "system:node:";
const GROUP: &str = "system:nodes";
const NODE_LEASES: &str = "kube-node-lease";

/// The node whose kubelet a user is.
pub(crate) fn name_of(user: &UserInfo) -> Option<String> {
    let name = user.username.strip_prefix(USER_PREFIX)?;
    (user.in_group(GROUP) && !name.is_empty()).then(|| name.to_owned())
}

/// What decides on a kubelet's request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    /// Nothing more: it may (admission looks at what it writes).
    Allow,
    /// Nothing more: it may not, and this is why.
    Refuse(String),
    /// Whether a pod on the node refers to the object.
    Referred,
    /// Whether the object itself is of the node.
    Own,
    /// The rules of the role.
    Rules,
}

fn refuse(why: &str) -> Answer {
    Answer::Refuse(why.to_owned())
}

/// Of a request by the kubelet of `node`.
fn ask(node: &str, a: &Attributes) -> Answer {
    if !a.is_resource() {
        return Answer::Rules;
    }
    let (verb, sub) = (a.verb.as_str(), a.subresource.as_str());
    match (a.group.as_str(), a.resource.as_str()) {
        ("", "secrets" | "configmaps") => read(a),
        ("", "persistentvolumeclaims") if sub == "status" => match verb {
            "update" | "patch" => named(a, Answer::Referred),
            _ => refuse("can only get/update/patch this type"),
        },
        ("", "persistentvolumeclaims" | "persistentvolumes") | ("resource.k8s.io", "resourceclaims") => {
            get(a, Answer::Referred)
        }
        ("storage.k8s.io", "volumeattachments") => get(a, Answer::Own),
        ("", "serviceaccounts") if verb == "get" && sub.is_empty() => read(a),
        ("", "serviceaccounts") => match (verb, sub) {
            ("create", "token") if !a.name.is_empty() => Answer::Referred,
            ("create", "token") => refuse("can only create tokens for individual service accounts"),
            _ => refuse("can only create token subresource of serviceaccount"),
        },
        ("coordination.k8s.io", "leases") => lease(node, a),
        ("storage.k8s.io", "csinodes") => by_name(node, a, "a CSINode", "CSINode"),
        ("resource.k8s.io", "resourceslices") => slice(node, a),
        ("", "nodes") => of_node(node, a),
        ("", "pods") => of_pod(node, a),
        _ => Answer::Rules,
    }
}

fn named(a: &Attributes, answer: Answer) -> Answer {
    if a.name.is_empty() { refuse("No Object name found") } else { answer }
}

fn get(a: &Attributes, answer: Answer) -> Answer {
    if a.verb != "get" {
        return refuse("can only get individual resources of this type");
    }
    if !a.subresource.is_empty() {
        return refuse("cannot get subresource");
    }
    named(a, answer)
}

fn read(a: &Attributes) -> Answer {
    if !matches!(a.verb.as_str(), "get" | "list" | "watch") {
        return refuse("can only read resources of this type");
    }
    if !a.subresource.is_empty() {
        return refuse("cannot read subresource");
    }
    if a.namespace.is_empty() {
        return refuse("can only read namespaced object of this type");
    }
    named(a, Answer::Referred)
}

/// The name of an object that is made is admission's affair: it is not in the path.
fn by_name(node: &str, a: &Attributes, one: &str, kind: &str) -> Answer {
    if !matches!(a.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return Answer::Refuse(format!("can only get, create, update, patch, or delete {one}"));
    }
    if !a.subresource.is_empty() {
        return Answer::Refuse(format!("cannot authorize {kind} subresources"));
    }
    if a.verb != "create" && a.name != node {
        return Answer::Refuse(format!("can only access {kind} with the same name as the requesting node"));
    }
    Answer::Allow
}

fn lease(node: &str, a: &Attributes) -> Answer {
    if a.namespace != NODE_LEASES {
        return Answer::Refuse(format!("can only access leases in the \"{NODE_LEASES}\" system namespace"));
    }
    by_name(node, a, "a node lease", "node lease")
}

fn slice(node: &str, a: &Attributes) -> Answer {
    match a.verb.as_str() {
        _ if !a.subresource.is_empty() => refuse("cannot authorize ResourceSlice subresources"),
        "create" => Answer::Allow,
        "get" | "update" | "patch" | "delete" => named(a, Answer::Own),
        _ if a.fields.exact("spec.nodeName") == Some(node) => Answer::Allow,
        _ => refuse("can only list/watch/deletecollection resourceslices with nodeName field selector"),
    }
}

fn of_node(node: &str, a: &Attributes) -> Answer {
    match (a.verb.as_str(), a.subresource.as_str()) {
        ("create" | "update" | "patch", "") | ("update" | "patch", "status") => Answer::Allow,
        ("get" | "list" | "watch", "") if a.name == node => Answer::Allow,
        ("get" | "list" | "watch", "") if a.name.is_empty() => {
            Answer::Refuse(format!("node '{node}' cannot read all nodes, only its own Node object"))
        }
        ("get" | "list" | "watch", "") => {
            Answer::Refuse(format!("node '{node}' cannot read '{}', only its own Node object", a.name))
        }
        _ => refuse(""),
    }
}

fn of_pod(node: &str, a: &Attributes) -> Answer {
    match (a.verb.as_str(), a.subresource.as_str()) {
        ("get", "") => named(a, Answer::Own),
        ("list" | "watch", "") if a.fields.exact("spec.nodeName") == Some(node) => Answer::Allow,
        ("list" | "watch", "") if !a.name.is_empty() && !a.namespace.is_empty() => Answer::Own,
        ("list" | "watch", "") => refuse("can only list/watch pods with spec.nodeName field selector"),
        ("create" | "delete", "") | ("update" | "patch", "status") | ("create", "eviction") => Answer::Allow,
        _ => refuse(""),
    }
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
        let fields = Selector::equal("spec.nodeName", node);
        let filter = Filter { fields, ..Filter::default() };
        let view = self.registry.reads.list(pods, &prefix, &filter, At::Newest, None, None).await;
        let view = match view {
            Ok(view) => view,
            Err(error) => {
                tracing::warn!(node, %error, "cannot look at the pods of a node: it is refused what they need");
                return false;
            }
        };
        view.items
            .iter()
            .any(|item| serde_json::from_slice::<Value>(&item.bytes()).is_ok_and(|pod| wanted(&pod)))
    }

    /// Whether a pod on the node refers to the object, or to the claim that a volume is bound to.
    async fn referred(&self, node: &str, a: &Attributes) -> bool {
        if a.resource != "persistentvolumes" {
            return self.any_pod(node, &a.namespace, |pod| refers(pod, &a.resource, &a.name)).await;
        }
        let Some(volume) = self.find(core("persistentvolumes"), "", &a.name).await else { return false };
        let claim = &volume["spec"]["claimRef"];
        let text = |field: &str| claim[field].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text("namespace"), text("name"));
        !namespace.is_empty()
            && self.any_pod(node, &namespace, |pod| refers(pod, "persistentvolumeclaims", &name)).await
    }

    /// Whether the object says that it is of the node.
    async fn own(&self, node: &str, a: &Attributes) -> bool {
        let resource: &'static Resource = match a.resource.as_str() {
            "pods" => core("pods"),
            "volumeattachments" => row("storage.k8s.io", "v1", "volumeattachments"),
            _ => row("resource.k8s.io", "v1", "resourceslices"),
        };
        let found = self.find(resource, &a.namespace, &a.name).await;
        found.is_some_and(|object| object["spec"]["nodeName"] == *node)
    }

    /// What cannot be looked up is not there: it allows nothing.
    async fn find(&self, resource: &'static Resource, namespace: &str, name: &str) -> Option<Value> {
        self.registry.find(resource, namespace, name).await.ok().flatten()
    }
}

#[async_trait]
impl Authorizer for NodeAuthorizer {
    async fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Decision {
        let Some(node) = name_of(user) else { return Decision::NoOpinion(String::new()) };
        let related = match ask(&node, attributes) {
            Answer::Allow => true,
            Answer::Refuse(why) => return Decision::NoOpinion(why),
            Answer::Rules if self.rules.iter().any(|rule| rule.allows(attributes)) => true,
            Answer::Rules => return Decision::NoOpinion(String::new()),
            Answer::Referred => self.referred(&node, attributes).await,
            Answer::Own => self.own(&node, attributes).await,
        };
        if related {
            return Decision::Allow(String::new());
        }
        Decision::NoOpinion(format!("no relationship found between node '{node}' and this object"))
    }
}

/// Whether a pod refers to an object of its namespace.
fn refers(pod: &Value, kind: &str, name: &str) -> bool {
    let spec = &pod["spec"];
    match kind {
        "resourceclaims" => items(&pod["status"]["resourceClaimStatuses"])
            .chain(items(&spec["resourceClaims"]))
            .any(|claim| claim["resourceClaimName"] == name),
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

    #[test]
    fn what_a_kubelet_may_ask() {
        let attributes = |text: &str| {
            let words: Vec<&str> = text.split(' ').collect();
            let (group, resource) = words[1].split_once(':').unwrap_or(("", words[1]));
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let (namespace, name) = words[2].split_once('/').unwrap_or(("", words[2]));
            Attributes {
                verb: words[0].into(),
                group: group.into(),
                resource: resource.into(),
                subresource: subresource.into(),
                namespace: namespace.into(),
                name: name.into(),
                fields: words.get(3).map(|f| f.parse().unwrap()).unwrap_or_default(),
                ..Attributes::default()
            }
        };
        let answer = |text: &str| ask("n1", &attributes(text));
        for (asked, wanted) in [
            ("get nodes n1", Answer::Allow),
            ("list pods web/ spec.nodeName=n1", Answer::Allow),
            ("patch pods/status web/p", Answer::Allow),
            ("get pods web/p", Answer::Own),
            ("get secrets web/s", Answer::Referred),
            ("create serviceaccounts/token web/bot", Answer::Referred),
            ("get persistentvolumes pv", Answer::Referred),
            ("patch coordination.k8s.io:leases kube-node-lease/n1", Answer::Allow),
            ("create coordination.k8s.io:leases kube-node-lease/", Answer::Allow),
            ("list services web/", Answer::Rules),
        ] {
            assert_eq!(answer(asked), wanted, "{asked}");
        }
        for asked in [
            "get nodes n2",
            "list nodes ",
            "delete nodes n1",
            "list pods web/",
            "list pods web/ spec.nodeName=n2",
            "update pods web/p",
            "create pods/exec web/p",
            "list secrets web/",
            "create secrets web/s",
            "list persistentvolumeclaims web/",
            "delete serviceaccounts web/bot",
            "patch coordination.k8s.io:leases kube-node-lease/n2",
            "get coordination.k8s.io:leases web/n1",
            "get storage.k8s.io:csinodes n2",
        ] {
            assert!(matches!(answer(asked), Answer::Refuse(_)), "{asked}");
        }
    }
}
