//! Role-based access control: a pure decision over the roles and bindings of the cluster.
//!
//! [`Policy`] is kept current by the mirrors of the four kinds (see `server::mirror`) and knows
//! nothing of where they come from. **Invariant**: rules only ever add; there is no deny, and what
//! cannot be decoded grants nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock};

use async_trait::async_trait;
use decapod_api::labels::Selector;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::{Deserialize, Serialize};

use super::{Attributes, Authorizer, Decision, UserInfo, service_account};

/// The API group of roles and bindings.
pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";

/// One rule of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PolicyRule {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) api_groups: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub(crate) non_resource_urls: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) resource_names: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) resources: Vec<String>,
    pub(crate) verbs: Vec<String>,
}

impl PolicyRule {
    /// Whether the rule allows what is asked.
    pub(crate) fn allows(&self, attributes: &Attributes) -> bool {
        if !has(&self.verbs, &attributes.verb) {
            return false;
        }
        if !attributes.is_resource() {
            return self.non_resource_urls.iter().any(|url| url_matches(url, &attributes.path));
        }
        has(&self.api_groups, &attributes.group)
            && self.resources.iter().any(|r| resource_matches(r, attributes))
            && (self.resource_names.is_empty() || self.resource_names.contains(&attributes.name))
    }
}

impl PolicyRule {
    /// The rule as rules of one verb on one thing each.
    fn parts(&self) -> Vec<Self> {
        let one = |text: &String| vec![text.clone()];
        let mut parts = Vec::new();
        for verb in &self.verbs {
            for url in &self.non_resource_urls {
                parts.push(Self { verbs: one(verb), non_resource_urls: one(url), ..Self::default() });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let part = Self {
                        verbs: one(verb),
                        api_groups: one(group),
                        resources: one(resource),
                        ..Self::default()
                    };
                    if self.resource_names.is_empty() {
                        parts.push(part.clone());
                    }
                    let names = self.resource_names.iter();
                    parts.extend(names.map(|name| Self { resource_names: one(name), ..part.clone() }));
                }
            }
        }
        parts
    }

    /// Whether the rule grants all that a part does.
    fn covers(&self, part: &Self) -> bool {
        let all = |mine: &[String], its: &[String]| its.iter().all(|item| has(mine, item));
        let urls = part
            .non_resource_urls
            .iter()
            .all(|url| self.non_resource_urls.iter().any(|own| own == url || url_matches(own, url)));
        let resources = part.resources.iter().all(|resource| {
            let sub = resource.split_once('/').map(|(_, sub)| format!("*/{sub}"));
            has(&self.resources, resource) || sub.is_some_and(|sub| self.resources.contains(&sub))
        });
        let names = self.resource_names.is_empty()
            || (!part.resource_names.is_empty() && all(&self.resource_names, &part.resource_names));
        all(&self.verbs, &part.verbs) && urls && all(&self.api_groups, &part.api_groups) && resources && names
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

fn url_matches(rule: &str, path: &str) -> bool {
    match rule.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => rule == path,
    }
}

fn resource_matches(rule: &str, attributes: &Attributes) -> bool {
    if rule == "*" || rule == attributes.combined_resource() {
        return true;
    }
    // `*/scale` is that subresource of every resource.
    !attributes.subresource.is_empty() && rule.strip_prefix("*/") == Some(&attributes.subresource)
}

/// A `Role` or `ClusterRole`, as far as decisions need it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Role {
    metadata: Metadata,
    rules: Option<Vec<PolicyRule>>,
    aggregation_rule: Option<AggregationRule>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AggregationRule {
    cluster_role_selectors: Vec<LabelSelector>,
}

/// A `RoleBinding` or `ClusterRoleBinding`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Binding {
    role_ref: RoleRef,
    #[serde(default)]
    subjects: Option<Vec<Subject>>,
}

#[derive(Clone, Debug, Deserialize)]
struct RoleRef {
    kind: String,
    name: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Subject {
    kind: String,
    name: String,
    #[serde(default)]
    namespace: Option<String>,
}

impl Subject {
    fn is(&self, user: &UserInfo, binding_namespace: &str) -> bool {
        match self.kind.as_str() {
            "User" => self.name == user.username,
            "Group" => user.in_group(&self.name),
            "ServiceAccount" => {
                let namespace = self.namespace.as_deref().unwrap_or(binding_namespace);
                service_account::split_username(&user.username) == Some((namespace, self.name.as_str()))
            }
            _ => false,
        }
    }
}

/// All roles and bindings; those of the cluster have the empty namespace.
#[derive(Default)]
pub(crate) struct Policy {
    roles: HashMap<(String, String), Role>,
    bindings: HashMap<String, BTreeMap<String, Binding>>,
}

impl Policy {
    /// Puts a role in place; `None` removes it.
    pub(crate) fn set_role(&mut self, namespace: &str, name: &str, role: Option<Role>) {
        let key = (namespace.to_owned(), name.to_owned());
        match role {
            Some(role) => self.roles.insert(key, role),
            None => self.roles.remove(&key),
        };
    }

    /// Puts a binding in place; `None` removes it.
    pub(crate) fn set_binding(&mut self, namespace: &str, name: &str, binding: Option<Binding>) {
        let bindings = self.bindings.entry(namespace.to_owned()).or_default();
        match binding {
            Some(binding) => bindings.insert(name.to_owned(), binding),
            None => bindings.remove(name),
        };
    }

    /// The rules of the role that a binding in a namespace refers to.
    fn role_rules(&self, namespace: &str, kind: &str, name: &str) -> Vec<PolicyRule> {
        let role_ref = RoleRef { kind: kind.to_owned(), name: name.to_owned() };
        self.rules_of(namespace, &role_ref).into_iter().cloned().collect()
    }

    /// Which of some rules a user does not hold, each in full, in a namespace.
    fn not_held(&self, user: &UserInfo, namespace: &str, wanted: &[PolicyRule]) -> Vec<PolicyRule> {
        let held = self.rules_for(user, namespace);
        let covered = |part: &PolicyRule| held.iter().any(|rule| rule.covers(part));
        wanted.iter().filter(|rule| !rule.parts().iter().all(covered)).cloned().collect()
    }

    /// The rules of a role, with those that a cluster role aggregates.
    fn rules_of<'a>(&'a self, namespace: &str, role_ref: &RoleRef) -> Vec<&'a PolicyRule> {
        let namespace = if role_ref.kind == "ClusterRole" { "" } else { namespace };
        let Some(role) = self.roles.get(&(namespace.to_owned(), role_ref.name.clone())) else {
            return Vec::new();
        };
        let mut rules = Vec::new();
        self.collect(role, &mut rules, MAX_AGGREGATION_DEPTH);
        rules
    }

    fn collect<'a>(&'a self, role: &'a Role, rules: &mut Vec<&'a PolicyRule>, depth: usize) {
        rules.extend(role.rules.iter().flatten());
        let Some(aggregation) = &role.aggregation_rule else { return };
        if depth == 0 {
            return;
        }
        for ((namespace, _), other) in &self.roles {
            if namespace.is_empty() && !std::ptr::eq(other, role) && aggregation.selects(other) {
                self.collect(other, rules, depth - 1);
            }
        }
    }

    /// Every rule that applies to a user in a namespace (empty: only those of the cluster), with
    /// the words for why; stops when `visit` returns true.
    fn visit<'a>(
        &'a self,
        user: &UserInfo,
        namespace: &str,
        mut visit: impl FnMut(&'a PolicyRule, &dyn Fn() -> String) -> bool,
    ) {
        let scopes: &[&str] = if namespace.is_empty() { &[""] } else { &["", namespace] };
        for &scope in scopes {
            for (name, binding) in self.bindings.get(scope).into_iter().flatten() {
                let subjects = binding.subjects.iter().flatten();
                let Some(subject) = subjects.into_iter().find(|s| s.is(user, scope)) else { continue };
                let reason = || {
                    let (kind, name) = if scope.is_empty() {
                        ("ClusterRoleBinding", name.clone())
                    } else {
                        ("RoleBinding", format!("{name}/{scope}"))
                    };
                    format!(
                        "RBAC: allowed by {kind} \"{name}\" of {} \"{}\" to {} \"{}\"",
                        binding.role_ref.kind, binding.role_ref.name, subject.kind, subject.name
                    )
                };
                for rule in self.rules_of(scope, &binding.role_ref) {
                    if visit(rule, &reason) {
                        return;
                    }
                }
            }
        }
    }

    /// The decision on a request.
    pub(crate) fn decide(&self, user: &UserInfo, attributes: &Attributes) -> Decision {
        let mut decision = Decision::NoOpinion(String::new());
        self.visit(user, &attributes.namespace, |rule, reason| {
            let allowed = rule.allows(attributes);
            if allowed {
                decision = Decision::Allow(reason());
            }
            allowed
        });
        decision
    }

    /// The rules that a user has in a namespace: what a self subject rules review lists.
    pub(crate) fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<PolicyRule> {
        let mut rules = Vec::new();
        self.visit(user, namespace, |rule, _| {
            rules.push(rule.clone());
            false
        });
        rules
    }
}

/// Aggregated roles may aggregate (admin -> edit -> view); deeper chains are cycles.
const MAX_AGGREGATION_DEPTH: usize = 4;

impl AggregationRule {
    fn selects(&self, role: &Role) -> bool {
        let labels = role.metadata.labels.as_ref();
        let selects = |s: &LabelSelector| Selector::try_from(s).is_ok_and(|s| s.matches_optional(labels));
        self.cluster_role_selectors.iter().any(selects)
    }
}

/// The RBAC authorizer: decides by the current [`Policy`].
#[derive(Clone, Default)]
pub(crate) struct Rbac(pub(crate) Arc<RwLock<Policy>>);

impl Rbac {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Policy> {
        self.0.read().unwrap_or_else(|e| e.into_inner())
    }

    /// The decision on a request, by roles alone.
    pub(crate) fn decide(&self, user: &UserInfo, attributes: &Attributes) -> Decision {
        self.read().decide(user, attributes)
    }

    /// The rules of a role that a binding in a namespace refers to.
    pub(crate) fn role_rules(&self, namespace: &str, kind: &str, name: &str) -> Vec<PolicyRule> {
        self.read().role_rules(namespace, kind, name)
    }

    /// Which of some rules a user does not hold.
    pub(crate) fn not_held(
        &self,
        user: &UserInfo,
        namespace: &str,
        wanted: &[PolicyRule],
    ) -> Vec<PolicyRule> {
        self.read().not_held(user, namespace, wanted)
    }

    /// The rules that a user has in a namespace.
    pub(crate) fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<PolicyRule> {
        self.read().rules_for(user, namespace)
    }
}

#[async_trait]
impl Authorizer for Rbac {
    async fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Decision {
        self.decide(user, attributes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn policy() -> Policy {
        let mut policy = Policy::default();
        let role = |v: Value| Some(serde_json::from_value::<Role>(v).unwrap());
        let binding = |v: Value| Some(serde_json::from_value::<Binding>(v).unwrap());
        policy.set_role(
            "",
            "reader",
            role(json!({"metadata": {"labels": {"agg": "true"}}, "rules": [
            {"apiGroups": [""], "resources": ["pods", "*/status"], "verbs": ["get", "list"]},
            {"nonResourceURLs": ["/metrics", "/debug/*"], "verbs": ["get"]}]})),
        );
        policy.set_role(
            "",
            "all",
            role(json!({"metadata": {}, "aggregationRule":
            {"clusterRoleSelectors": [{"matchLabels": {"agg": "true"}}]}})),
        );
        policy.set_role(
            "web",
            "one",
            role(json!({"rules": [
            {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["s"], "verbs": ["*"]}]})),
        );
        policy.set_binding(
            "",
            "readers",
            binding(json!({"roleRef": {"kind": "ClusterRole", "name": "all"},
            "subjects": [{"kind": "Group", "name": "dev"}]})),
        );
        policy.set_binding(
            "web",
            "one",
            binding(json!({"roleRef": {"kind": "Role", "name": "one"},
            "subjects": [{"kind": "ServiceAccount", "name": "bot"}]})),
        );
        policy
    }

    fn ask(verb: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            verb: verb.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn cluster_bindings_reach_everywhere_and_aggregate() {
        let (policy, dev) = (policy(), UserInfo::new("jane", &["dev"]));
        assert!(policy.decide(&dev, &ask("get", "pods", "web", "x")).allowed());
        assert!(policy.decide(&dev, &ask("list", "pods", "", "")).allowed());
        assert!(policy.decide(&dev, &ask("get", "nodes/status", "", "n")).allowed());
        assert!(!policy.decide(&dev, &ask("get", "pods/log", "web", "x")).allowed());
        assert!(!policy.decide(&dev, &ask("delete", "pods", "web", "x")).allowed());
        assert!(!policy.decide(&UserInfo::new("joe", &[]), &ask("get", "pods", "web", "x")).allowed());
        let path = |p: &str| Attributes { verb: "get".into(), path: p.into(), ..Attributes::default() };
        assert!(policy.decide(&dev, &path("/debug/pprof")).allowed());
        assert!(!policy.decide(&dev, &path("/metrics/x")).allowed());
    }

    #[test]
    fn namespaced_bindings_stay_in_their_namespace() {
        let policy = policy();
        let bot = UserInfo::new("system:serviceaccount:web:bot", &[]);
        let decision = policy.decide(&bot, &ask("update", "secrets", "web", "s"));
        assert_eq!(
            decision.reason(),
            "RBAC: allowed by RoleBinding \"one/web\" of Role \"one\" to ServiceAccount \"bot\""
        );
        assert!(!policy.decide(&bot, &ask("update", "secrets", "web", "other")).allowed());
        assert!(!policy.decide(&bot, &ask("list", "secrets", "web", "")).allowed());
        assert!(!policy.decide(&bot, &ask("update", "secrets", "db", "s")).allowed());
        let namesake = UserInfo::new("system:serviceaccount:db:bot", &[]);
        assert!(!policy.decide(&namesake, &ask("update", "secrets", "web", "s")).allowed());
    }
}
