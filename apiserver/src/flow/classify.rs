//! Which flow schema a request belongs to, and to which of the schema's flows.

use k8s_openapi::api::flowcontrol::v1::{
    FlowSchemaSpec, NonResourcePolicyRule, PolicyRulesWithSubjects, ResourcePolicyRule, Subject,
};

use crate::auth::service_account::split_username;
use crate::auth::{Attributes, UserInfo};

/// Whether a schema is about this request.
pub(super) fn matches(spec: &FlowSchemaSpec, user: &UserInfo, a: &Attributes) -> bool {
    spec.rules.iter().flatten().any(|rule| rule_matches(rule, user, a))
}

/// What tells the flows of a schema apart: the user, the namespace, or nothing.
pub(super) fn distinguisher<'a>(spec: &FlowSchemaSpec, user: &'a UserInfo, a: &'a Attributes) -> &'a str {
    match spec.distinguisher_method.as_ref().map(|method| method.type_.as_str()) {
        Some("ByUser") => &user.username,
        Some("ByNamespace") => &a.namespace,
        _ => "",
    }
}

fn rule_matches(rule: &PolicyRulesWithSubjects, user: &UserInfo, a: &Attributes) -> bool {
    if !rule.subjects.iter().any(|subject| is(subject, user)) {
        return false;
    }
    if a.is_resource() {
        rule.resource_rules.iter().flatten().any(|rule| of_resource(rule, a))
    } else {
        rule.non_resource_rules.iter().flatten().any(|rule| of_path(rule, a))
    }
}

fn is(subject: &Subject, user: &UserInfo) -> bool {
    match subject.kind.as_str() {
        "User" => subject.user.as_ref().is_some_and(|wanted| any_or(&wanted.name, &user.username)),
        "Group" => {
            let wanted = subject.group.as_ref().map(|group| group.name.as_str());
            wanted.is_some_and(|name| name == "*" || user.groups.iter().any(|group| group == name))
        }
        "ServiceAccount" => subject.service_account.as_ref().is_some_and(|wanted| {
            let account = split_username(&user.username);
            account
                .is_some_and(|(namespace, name)| namespace == wanted.namespace && any_or(&wanted.name, name))
        }),
        _ => false,
    }
}

fn any_or(wanted: &str, actual: &str) -> bool {
    wanted == "*" || wanted == actual
}

fn has(wanted: &[String], actual: &str) -> bool {
    wanted.iter().any(|wanted| any_or(wanted, actual))
}

fn of_resource(rule: &ResourcePolicyRule, a: &Attributes) -> bool {
    has(&rule.verbs, &a.verb)
        && has(&rule.api_groups, &a.group)
        && rule.resources.iter().any(|wanted| resource(wanted, a))
        && if a.namespace.is_empty() {
            rule.cluster_scope.unwrap_or(false)
        } else {
            rule.namespaces.as_ref().is_some_and(|namespaces| has(namespaces, &a.namespace))
        }
}

/// `pods`, `pods/status`, `*/status` or `*`.
fn resource(wanted: &str, a: &Attributes) -> bool {
    match wanted.split_once('/') {
        _ if wanted == "*" => true,
        Some((resource, subresource)) => any_or(resource, &a.resource) && subresource == a.subresource,
        None => a.subresource.is_empty() && wanted == a.resource,
    }
}

fn of_path(rule: &NonResourcePolicyRule, a: &Attributes) -> bool {
    has(&rule.verbs, &a.verb) && rule.non_resource_urls.iter().any(|wanted| path(wanted, &a.path))
}

/// `*`, a path with all below it, or a path that ends in `*`.
fn path(wanted: &str, actual: &str) -> bool {
    if any_or(wanted, actual) {
        return true;
    }
    let folder = wanted.strip_suffix('*').unwrap_or(wanted);
    let folder = folder.strip_suffix('/').unwrap_or(folder);
    actual.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(verb: &str, resource: &str, namespace: &str) -> Attributes {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            verb: verb.to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            ..Attributes::default()
        }
    }

    fn spec(rule: serde_json::Value) -> FlowSchemaSpec {
        let spec = json!({"priorityLevelConfiguration": {"name": "x"}, "rules": [rule]});
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn subjects() {
        let rule = |subject: serde_json::Value| {
            let all = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"]});
            spec(json!({"subjects": [subject], "resourceRules": [all]}))
        };
        let user = |name: &str| json!({"kind": "User", "user": {"name": name}});
        let group = |name: &str| json!({"kind": "Group", "group": {"name": name}});
        let account = |namespace: &str, name: &str| json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": namespace, "name": name}});
        let (jane, bot) = (
            UserInfo::new("jane", &["dev"]),
            UserInfo::new("system:serviceaccount:web:bot", &["system:serviceaccounts"]),
        );
        let pods = request("get", "pods", "web");
        for (subject, of_jane, of_bot) in [
            (user("jane"), true, false),
            (user("*"), true, true),
            (group("dev"), true, false),
            (group("*"), true, true),
            (account("web", "bot"), false, true),
            (account("web", "*"), false, true),
            (account("db", "*"), false, false),
            (account("web", "other"), false, false),
        ] {
            let spec = rule(subject);
            assert_eq!(
                (matches(&spec, &jane, &pods), matches(&spec, &bot, &pods)),
                (of_jane, of_bot),
                "{spec:?}"
            );
        }
    }

    #[test]
    fn resources() {
        let rule = |resources: &[&str], namespaces: &[&str], cluster: bool| {
            let rule = json!({"verbs": ["get"], "apiGroups": [""], "resources": resources,
                "namespaces": namespaces, "clusterScope": cluster});
            spec(json!({"subjects": [{"kind": "Group", "group": {"name": "*"}}], "resourceRules": [rule]}))
        };
        let jane = UserInfo::new("jane", &[]);
        for (spec, resource, namespace, wanted) in [
            (rule(&["pods"], &["*"], false), "pods", "a", true),
            (rule(&["pods"], &["*"], false), "pods/status", "a", false),
            (rule(&["pods/status"], &["*"], false), "pods/status", "a", true),
            (rule(&["*/status"], &["*"], false), "pods/status", "a", true),
            (rule(&["*"], &["*"], false), "pods/status", "a", true),
            (rule(&["*"], &["b"], false), "pods", "a", false),
            (rule(&["*"], &["*"], false), "pods", "", false),
            (rule(&["*"], &[], true), "pods", "", true),
            (rule(&["*"], &[], true), "pods", "a", false),
        ] {
            assert_eq!(
                matches(&spec, &jane, &request("get", resource, namespace)),
                wanted,
                "{spec:?} {resource}"
            );
            assert!(!matches(&spec, &jane, &request("list", resource, namespace)));
        }
    }

    #[test]
    fn paths() {
        for (wanted, actual, matching) in [
            ("*", "/x", true),
            ("/healthz", "/healthz", true),
            ("/healthz", "/healthz/ping", true),
            ("/healthz", "/healthzy", false),
            ("/apis/*", "/apis/apps", true),
            ("/apis/*", "/api", false),
        ] {
            assert_eq!(path(wanted, actual), matching, "{wanted} {actual}");
        }
    }
}
