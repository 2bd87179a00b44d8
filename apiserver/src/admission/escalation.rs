//! Nobody grants what they do not hold: by a role, or by binding one.

use async_trait::async_trait;
use decapod_api::resource::Resource;
use decapod_api::status::Error;
use serde_json::Value;

use super::{Attributes as Write, Operation, Plugin};
use crate::auth::rbac::{GROUP, PolicyRule};
use crate::auth::{Attributes, UserInfo};
use crate::pki::MASTERS;
use crate::registry::{Call, Registry};

/// No plugin of Kubernetes', which does this in the storage of each of these kinds.
pub(super) struct Escalation;

#[async_trait]
impl Plugin for Escalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    fn handles(&self, write: &Write<'_>) -> bool {
        write.operation != Operation::Delete && write.call.resource.group == GROUP
    }

    async fn validate(&self, write: &Write<'_>, object: &Value) -> Result<(), Error> {
        check(write.registry, write.call, object, write.old).await
    }
}

async fn check(registry: &Registry, call: &Call, object: &Value, old: Option<&Value>) -> Result<(), Error> {
    if call.user.in_group(MASTERS) {
        return Ok(());
    }
    let same = |fields: [&str; 2]| old.is_some_and(|old| fields.iter().all(|f| old[*f] == object[*f]));
    let granted = if matches!(call.resource.plural, "roles" | "clusterroles") {
        let own = attributes("escalate", call.resource, &call.namespace, &call.name);
        if same(["rules", "aggregationRule"]) || registry.policy.decide(&call.user, &own).allowed() {
            return Ok(());
        }
        rules(object)
    } else {
        let text = |field: &str| object["roleRef"][field].as_str().unwrap_or_default();
        let (kind, name) = (text("kind"), text("name"));
        let plural = if kind == "ClusterRole" { "clusterroles" } else { "roles" };
        let role = crate::registry::row(GROUP, "v1", plural);
        let bind = attributes("bind", role, &call.namespace, name);
        if same(["roleRef", "subjects"]) || registry.policy.decide(&call.user, &bind).allowed() {
            return Ok(());
        }
        // A role that is not there yet may come to grant anything.
        let found = registry.find(role, &call.namespace, name).await?;
        let not_found = || Error::NotFound { resource: role.qualified(), name: name.to_owned() };
        let mut granted = rules(&found.ok_or_else(not_found)?);
        granted.extend(registry.policy.role_rules(&call.namespace, kind, name));
        granted
    };
    // An aggregation rule grants whatever comes to match it.
    if object["aggregationRule"].is_object()
        && !registry.policy.decide(&call.user, &everything(&call.namespace)).allowed()
    {
        return Err(call.forbidden("must have cluster-admin privileges to use the aggregationRule"));
    }
    let missing = registry.policy.not_held(&call.user, &call.namespace, &granted);
    if missing.is_empty() { Ok(()) } else { Err(call.forbidden(refusal(&call.user, &missing))) }
}

fn rules(role: &Value) -> Vec<PolicyRule> {
    // What is no rule was refused by the kind's own decoding.
    serde_json::from_value(role["rules"].clone()).unwrap_or_default()
}

fn attributes(verb: &str, resource: &Resource, namespace: &str, name: &str) -> Attributes {
    Attributes {
        verb: verb.to_owned(),
        group: resource.group.to_owned(),
        version: resource.version.to_owned(),
        resource: resource.plural.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        ..Attributes::default()
    }
}

fn everything(namespace: &str) -> Attributes {
    let all = || "*".to_owned();
    Attributes {
        verb: all(),
        group: all(),
        resource: all(),
        namespace: namespace.to_owned(),
        ..Attributes::default()
    }
}

fn refusal(user: &UserInfo, missing: &[PolicyRule]) -> String {
    let quoted = |list: &[String]| list.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>();
    let rule = |rule: &PolicyRule| {
        let mut parts = Vec::new();
        for (name, list) in [
            ("APIGroups", &rule.api_groups),
            ("Resources", &rule.resources),
            ("ResourceNames", &rule.resource_names),
            ("NonResourceURLs", &rule.non_resource_urls),
            ("Verbs", &rule.verbs),
        ] {
            if !list.is_empty() {
                parts.push(format!("{name}:[{}]", quoted(list).join(", ")));
            }
        }
        format!("{{{}}}", parts.join(", "))
    };
    format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        user.username,
        quoted(&user.groups).join(" "),
        missing.iter().map(rule).collect::<Vec<_>>().join("\n")
    )
}
