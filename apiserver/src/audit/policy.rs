//! The audit policy (`audit.k8s.io/v1` `Policy`): how much of which request is recorded.
//!
//! Rules are read in order and the first that matches decides; what none matches is not recorded.

use serde::Deserialize;

use crate::auth::{Attributes, UserInfo};

/// How much of a request is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) enum Level {
    /// Nothing.
    #[default]
    None,
    /// Who, what, when, and what came of it.
    Metadata,
    /// Also the request's object.
    Request,
    /// Also the response's.
    RequestResponse,
}

impl Level {
    /// The level's name in events.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// When an event is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum Stage {
    /// The request has come in and its user is known.
    RequestReceived,
    /// The head of the response to a long-running request was sent.
    ResponseStarted,
    /// The response was sent.
    ResponseComplete,
    /// Something went badly wrong.
    Panic,
}

impl Stage {
    /// The stage's name in events.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

/// Why a policy is refused.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("cannot read the audit policy")]
    Read(#[from] std::io::Error),
    /// It is no policy.
    #[error("cannot understand the audit policy: {0}")]
    Parse(String),
    /// It is of another kind.
    #[error("the audit policy is a {kind} of {version}, not a Policy of audit.k8s.io/v1")]
    Kind {
        /// The kind it says.
        kind: String,
        /// The version it says.
        version: String,
    },
    /// It would record nothing.
    #[error("loaded illegal policy with 0 rules")]
    Empty,
    /// A rule speaks of resources and of other paths.
    #[error("rules[{0}]: rules cannot apply to both regular resources and non-resource URLs")]
    Both(usize),
    /// A rule names objects and not of which resource.
    #[error("rules[{0}]: using resourceNames requires at least one resource")]
    Names(usize),
    /// A `*` is somewhere else than at the end.
    #[error("rules[{0}]: non-resource URL wildcards '*' must be the final character of the path")]
    Wildcard(usize),
}

/// The policy.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Policy {
    api_version: String,
    kind: String,
    #[serde(default)]
    #[expect(dead_code, reason = "a policy may have metadata, and nothing depends on it")]
    metadata: serde_json::Value,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Rule {
    level: Level,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

/// What the policy says about one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) level: Level,
    pub(crate) omit_stages: Vec<Stage>,
    pub(crate) omit_managed_fields: bool,
}

impl Policy {
    /// Reads a policy in YAML or JSON.
    pub(crate) fn parse(text: &str) -> Result<Self, PolicyError> {
        let policy: Self = serde_saphyr::from_str(text).map_err(|e| PolicyError::Parse(e.to_string()))?;
        if policy.api_version != "audit.k8s.io/v1" || policy.kind != "Policy" {
            return Err(PolicyError::Kind { kind: policy.kind, version: policy.api_version });
        }
        if policy.rules.is_empty() {
            return Err(PolicyError::Empty);
        }
        for (index, rule) in policy.rules.iter().enumerate() {
            rule.check(index)?;
        }
        Ok(policy)
    }

    /// What is to be recorded of a request.
    pub(crate) fn verdict(&self, user: &UserInfo, attributes: &Attributes) -> Verdict {
        let Some(rule) = self.rules.iter().find(|rule| rule.matches(user, attributes)) else {
            return Verdict::default();
        };
        Verdict {
            level: rule.level,
            omit_stages: rule.omit_stages.iter().chain(&self.omit_stages).copied().collect(),
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

impl Rule {
    fn check(&self, index: usize) -> Result<(), PolicyError> {
        let of_resources = !self.resources.is_empty() || !self.namespaces.is_empty();
        if of_resources && !self.non_resource_urls.is_empty() {
            return Err(PolicyError::Both(index));
        }
        if self.resources.iter().any(|r| r.resources.is_empty() && !r.resource_names.is_empty()) {
            return Err(PolicyError::Names(index));
        }
        let inner = |url: &String| url.strip_suffix('*').unwrap_or(url).contains('*');
        if self.non_resource_urls.iter().any(inner) {
            return Err(PolicyError::Wildcard(index));
        }
        Ok(())
    }

    fn matches(&self, user: &UserInfo, attributes: &Attributes) -> bool {
        let named = |list: &[String], name: &str| list.is_empty() || list.iter().any(|item| item == name);
        if !named(&self.users, &user.username) || !named(&self.verbs, &attributes.verb) {
            return false;
        }
        if !self.user_groups.is_empty() && !self.user_groups.iter().any(|group| user.in_group(group)) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return attributes.is_resource()
                && named(&self.namespaces, &attributes.namespace)
                && (self.resources.is_empty() || self.resources.iter().any(|r| r.matches(attributes)));
        }
        if !self.non_resource_urls.is_empty() {
            let matches = |url: &String| match url.strip_suffix('*') {
                Some(prefix) => attributes.path.starts_with(prefix),
                None => attributes.path == *url,
            };
            return !attributes.is_resource() && self.non_resource_urls.iter().any(matches);
        }
        true
    }
}

impl GroupResources {
    fn matches(&self, attributes: &Attributes) -> bool {
        if self.group != "*" && self.group != attributes.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        if !self.resource_names.is_empty() && !self.resource_names.contains(&attributes.name) {
            return false;
        }
        let combined = attributes.combined_resource();
        self.resources.iter().any(|resource| match resource.split_once('/') {
            _ if resource == "*" || *resource == combined => true,
            Some(("*", sub)) => !attributes.subresource.is_empty() && sub == attributes.subresource,
            Some((of, "*")) => of == attributes.resource,
            _ => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: None
  users: ["system:kube-proxy"]
  verbs: [watch]
- level: Request
  resources:
  - group: ""
    resources: [secrets, pods/*, "*/scale"]
  omitManagedFields: false
- level: RequestResponse
  userGroups: [ops]
  namespaces: [web]
- level: None
  nonResourceURLs: [/healthz*, /version]
- level: Metadata
  omitStages: [ResponseStarted]
"#;

    fn ask(verb: &str, resource: &str, namespace: &str) -> Attributes {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            verb: verb.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = Policy::parse(POLICY).unwrap();
        let level = |user: &UserInfo, attributes: &Attributes| policy.verdict(user, attributes).level;
        let (proxy, ops) = (UserInfo::new("system:kube-proxy", &[]), UserInfo::new("jane", &["ops"]));
        assert_eq!(level(&proxy, &ask("watch", "secrets", "")), Level::None);
        assert_eq!(level(&proxy, &ask("list", "secrets", "")), Level::Request);
        assert_eq!(level(&ops, &ask("create", "pods/exec", "web")), Level::Request);
        assert_eq!(level(&ops, &ask("create", "deployments/scale", "web")), Level::Request);
        assert_eq!(level(&ops, &ask("create", "services", "web")), Level::RequestResponse);
        assert_eq!(level(&ops, &ask("create", "services", "db")), Level::Metadata);
        let path = |path: &str| Attributes { verb: "get".into(), path: path.into(), ..Attributes::default() };
        assert_eq!(level(&ops, &path("/healthz/ping")), Level::None);
        assert_eq!(level(&ops, &path("/metrics")), Level::Metadata);
        let verdict = policy.verdict(&ops, &path("/metrics"));
        assert_eq!(verdict.omit_stages, [Stage::ResponseStarted, Stage::RequestReceived]);
        assert!(verdict.omit_managed_fields);
        assert!(!policy.verdict(&ops, &ask("get", "secrets", "")).omit_managed_fields);
    }

    #[test]
    fn what_is_no_policy() {
        let with = |rules: &str| {
            Policy::parse(&format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: {rules}\n"))
        };
        assert!(matches!(with("[]"), Err(PolicyError::Empty)));
        assert!(matches!(with("[{level: Everything}]"), Err(PolicyError::Parse(_))));
        assert!(matches!(with("[{level: Metadata, user: [a]}]"), Err(PolicyError::Parse(_))));
        assert!(matches!(
            with("[{level: Metadata, namespaces: [a], nonResourceURLs: [/x]}]"),
            Err(PolicyError::Both(0))
        ));
        assert!(matches!(
            with("[{level: Metadata, nonResourceURLs: [/x*y]}]"),
            Err(PolicyError::Wildcard(0))
        ));
        assert!(Policy::parse("apiVersion: v1\nkind: Pod\nrules: []").is_err());
    }
}
