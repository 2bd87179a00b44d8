//! The ClusterRole aggregation controller: the rules of a ClusterRole with an aggregation rule are those of
//! all ClusterRoles that its selectors match.

use std::sync::Arc;
use std::time::Duration;

use decapod_api::labels::{ParseError, Selector};
use decapod_client::ObjectKey;
use decapod_client::informer::Informer;
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::common::{Context, Result, Says};

const NAME: &str = "clusterrole-aggregation-controller";

struct Controller {
    context: Context,
    roles: Informer<ClusterRole>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context) {
    let queue = Queue::new(context.clock.clone());
    let roles = context.informers.of::<ClusterRole>();
    let known = roles.clone();
    // Who aggregates whom is not tracked: there are few roles, and fewer that aggregate.
    reconcile::feed(&context.supervisor, NAME, roles.subscribe(), &queue, move |_| {
        let all = known.list();
        let aggregating = all.iter().filter(|role| role.aggregation_rule.is_some());
        aggregating.map(|role| ObjectKey::of(&**role)).collect::<Vec<_>>()
    });
    let controller = Arc::new(Controller { context: context.clone(), roles });
    reconcile::run(&context.supervisor, NAME, &queue, 1, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        self.roles.synced().await;
        let Some(role) = self.roles.get(key) else { return Ok(None) };
        let Some(rules) = aggregate(&role, &self.roles.list())? else { return Ok(None) };
        if role.rules.as_deref().unwrap_or_default() == rules {
            return Ok(None);
        }
        // Applied, so that whoever manages the role's other fields does not manage its rules.
        let applied = Patch::Apply(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": role.name_any()}, "rules": rules,
        }));
        let api: Api<ClusterRole> = Api::all(self.context.client.clone());
        let written = api.patch(&key.name, &PatchParams::apply(NAME).force(), &applied).await;
        written.says("write the rules of an aggregated ClusterRole").map(|_| None)
    }
}

/// The rules that the role should have, each once, in the order of selectors, then of names; `None` where
/// it does not aggregate.
fn aggregate(
    role: &ClusterRole,
    all: &[Arc<ClusterRole>],
) -> std::result::Result<Option<Vec<PolicyRule>>, ParseError> {
    let Some(rule) = &role.aggregation_rule else { return Ok(None) };
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in rule.cluster_role_selectors.iter().flatten() {
        let selector = Selector::try_from(selector)?;
        // The informer lists by name.
        let matching = all.iter().filter(|one| {
            one.name_any() != role.name_any() && selector.matches_optional(one.metadata.labels.as_ref())
        });
        for rule in matching.flat_map(|one| one.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    Ok(Some(rules))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::rbac::v1::AggregationRule;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

    use super::*;

    fn role(name: &str, label: Option<&str>, verbs: &[&str]) -> ClusterRole {
        let rule = |verb: &&str| PolicyRule { verbs: vec![(*verb).to_owned()], ..PolicyRule::default() };
        let mut role =
            ClusterRole { rules: Some(verbs.iter().map(rule).collect()), ..ClusterRole::default() };
        role.metadata.name = Some(name.to_owned());
        role.metadata.labels = label.map(|label| [(label.to_owned(), "true".to_owned())].into());
        role
    }

    fn selector(label: &str) -> LabelSelector {
        let labels = Some([(label.to_owned(), "true".to_owned())].into());
        LabelSelector { match_labels: labels, ..LabelSelector::default() }
    }

    #[test]
    fn rules_are_gathered_once_each_and_never_from_the_role_itself() {
        let mut sum = role("sum", Some("a"), &["old"]);
        let all = [
            role("one", Some("a"), &["get", "list"]),
            role("other", None, &["delete"]),
            sum.clone(),
            role("two", Some("b"), &["list", "watch"]),
        ];
        let all: Vec<_> = all.into_iter().map(Arc::new).collect();
        assert_eq!(aggregate(&sum, &all).unwrap(), None, "without a rule its own rules stand");
        let cluster_role_selectors = Some(vec![selector("b"), selector("a")]);
        sum.aggregation_rule = Some(AggregationRule { cluster_role_selectors });
        let rules = aggregate(&sum, &all).unwrap().unwrap();
        let verbs: Vec<_> = rules.iter().map(|rule| rule.verbs[0].as_str()).collect();
        assert_eq!(verbs, ["list", "watch", "get"]);
    }
}
