//! What users say about ends: how the failure of a pod counts, and when enough indexes have succeeded.

use k8s_openapi::api::batch::v1::{
    PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement as ExitCodes,
    PodFailurePolicyOnPodConditionsPattern as Pattern, PodFailurePolicyRule, SuccessPolicy,
};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};

use super::indexes::Indexes;

/// What the failure of a pod means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ruling {
    /// It counts as one failure.
    Counts,
    /// It does not count.
    Ignored,
    /// It ends its index.
    FailsIndex,
    /// It ends the Job, for this reason.
    FailsJob(String),
}

impl Ruling {
    /// Whether the failure is one against the limits.
    pub(super) fn counts(&self) -> bool {
        *self != Self::Ignored
    }
}

/// The ruling of the first rule that the failed pod matches.
pub(super) fn rule(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Ruling {
    let rules = policy.iter().flat_map(|policy| &policy.rules).enumerate();
    rules.into_iter().find_map(|(place, rule)| ruling(place, rule, pod)).unwrap_or(Ruling::Counts)
}

fn ruling(place: usize, rule: &PodFailurePolicyRule, pod: &Pod) -> Option<Ruling> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let told = match (&rule.on_exit_codes, &rule.on_pod_conditions) {
        (Some(codes), _) => {
            let (container, code) = by_exit_code(codes, pod)?;
            format!("Container {container} for pod {namespace}/{name} failed with exit code {code}")
        }
        (None, Some(patterns)) => {
            let condition = by_condition(patterns, pod)?;
            format!("Pod {namespace}/{name} has condition {}", condition.type_)
        }
        (None, None) => return None,
    };
    match rule.action.as_str() {
        "Ignore" => Some(Ruling::Ignored),
        "FailIndex" => Some(Ruling::FailsIndex),
        "Count" => Some(Ruling::Counts),
        "FailJob" => Some(Ruling::FailsJob(format!("{told} matching FailJob rule at index {place}"))),
        _ => None,
    }
}

/// The container that ended with a code that is asked for, and the code.
fn by_exit_code<'a>(codes: &ExitCodes, pod: &'a Pod) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let main = status.container_statuses.iter().flatten();
    let init = status.init_container_statuses.iter().flatten();
    let asked = |container: &&ContainerStatus| {
        codes.container_name.as_ref().is_none_or(|name| *name == container.name)
    };
    main.chain(init).filter(asked).find_map(|container| {
        let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
        let listed = codes.values.contains(&code);
        let matches = match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        (code != 0 && matches).then_some((container.name.as_str(), code))
    })
}

fn by_condition<'a>(patterns: &[Pattern], pod: &'a Pod) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_deref().unwrap_or_default();
    let matches = |condition: &&PodCondition| {
        patterns.iter().any(|pattern| {
            pattern.type_ == condition.type_
                && pattern.status.as_deref().unwrap_or("True") == condition.status
        })
    };
    conditions.iter().find(matches)
}

/// Why the Job has succeeded, once these indexes satisfy one of its rules.
pub(super) fn success(
    policy: Option<&SuccessPolicy>,
    completions: i32,
    succeeded: &Indexes,
) -> Option<String> {
    let met = policy?.rules.iter().position(|rule| {
        let among = match &rule.succeeded_indexes {
            Some(text) => Indexes::parse(text, completions),
            None => return rule.succeeded_count.is_some_and(|count| succeeded.count() >= count),
        };
        let reached = among.shared(succeeded);
        among.count() > 0
            && (reached == among.count() || rule.succeeded_count.is_some_and(|count| reached >= count))
    });
    met.filter(|_| succeeded.count() > 0).map(|place| format!("Matched rules at index {place}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy: PodFailurePolicy = serde_json::from_value(json!({"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [40, 42]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [1, 2]}},
            {"action": "Count", "onExitCodes": {"operator": "In", "values": [1]}}]}))
        .unwrap();
        let pod = |container: &str, code: i32, condition: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "status": {
                "phase": "Failed", "conditions": [{"type": condition, "status": "True"}],
                "containerStatuses": [{"name": container, "image": "", "imageID": "", "ready": false,
                    "restartCount": 0, "state": {"terminated": {"exitCode": code}}}]}}))
            .unwrap()
        };
        let ruled = |container, code, condition| rule(Some(&policy), &pod(container, code, condition));
        assert_eq!(ruled("main", 42, "DisruptionTarget"), Ruling::Ignored);
        let why = "Container main for pod ns/p failed with exit code 42 matching FailJob rule at index 1";
        assert_eq!(ruled("main", 42, "x"), Ruling::FailsJob(why.to_owned()));
        assert_eq!(ruled("other", 42, "x"), Ruling::FailsIndex);
        assert_eq!(ruled("main", 1, "x"), Ruling::Counts);
        assert_eq!(ruled("main", 2, "x"), Ruling::Counts, "no rule matches");
        assert_eq!(ruled("main", 0, "x"), Ruling::Counts, "what went well matches no exit code");
        assert_eq!(rule(None, &pod("main", 42, "x")), Ruling::Counts);
    }

    #[test]
    fn a_success_policy_is_met_by_count_by_indexes_or_by_both() {
        let met = |rule: serde_json::Value, succeeded: &str| {
            let policy: SuccessPolicy = serde_json::from_value(json!({"rules": [rule]})).unwrap();
            success(Some(&policy), 10, &Indexes::parse(succeeded, 10)).is_some()
        };
        assert!(met(json!({"succeededCount": 2}), "3,7"));
        assert!(!met(json!({"succeededCount": 2}), "3"));
        assert!(met(json!({"succeededIndexes": "0,2-3"}), "0-3"));
        assert!(!met(json!({"succeededIndexes": "0,2-3"}), "0-2"));
        assert!(met(json!({"succeededIndexes": "0-5", "succeededCount": 1}), "4"));
        assert!(!met(json!({"succeededIndexes": "0-5", "succeededCount": 1}), "6"));
        let policy: SuccessPolicy =
            serde_json::from_value(json!({"rules": [{"succeededIndexes": "9"}, {"succeededCount": 1}]}))
                .unwrap();
        let message = success(Some(&policy), 10, &Indexes::parse("1", 10));
        assert_eq!(message.as_deref(), Some("Matched rules at index 1"));
    }
}
