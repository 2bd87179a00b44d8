//! Why a workload does not come to what was asked for; its pods are explained each for itself.

use serde_json::Value;

use super::{Finding, condition, list, said, text, warnings};

/// Whether a pod of a workload is in the way.
pub(super) fn is_troubled(plural: &str, pod: &Value) -> bool {
    let phase = text(&pod["status"], "phase");
    let ready = condition(pod, "Ready").is_some_and(|ready| ready["status"] == "True");
    let going = pod["metadata"]["deletionTimestamp"].is_string();
    match plural {
        // What a job's pods did wrong matters after they have ended, too.
        "jobs" => phase == "Failed" || phase == "Pending",
        _ => going || (!ready && phase != "Succeeded" && phase != "Failed"),
    }
}

/// What is in the way of a workload as a whole.
pub(super) fn findings(plural: &str, object: &Value, events: &[Value]) -> Vec<Finding> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let mut findings = Vec::new();
    let (asked, seen) = (object["metadata"]["generation"].as_i64(), status["observedGeneration"].as_i64());
    if let (Some(asked), Some(seen)) = (asked, seen)
        && seen < asked
    {
        findings.push(
            Finding::new("its controller has not looked at its newest version yet")
                .way_out("do the controllers run? `decapod status`"),
        );
    }
    if spec["paused"] == true {
        findings.push(
            Finding::new("its roll-out is paused")
                .way_out(format!("`kubectl rollout resume {plural}/{}`", super::name(object))),
        );
    }
    if spec["suspend"] == true {
        findings.push(Finding::new("it is suspended").way_out("set spec.suspend to false"));
    }
    if spec["replicas"] == 0 {
        findings.push(Finding::new("0 replicas are asked for"));
    }
    let wrong = list(&status["conditions"]).filter(|one| {
        let (type_, now) = (text(one, "type"), text(one, "status"));
        matches!(
            (type_, now),
            ("ReplicaFailure" | "Failed" | "FailureTarget", "True") | ("Progressing", "False")
        )
    });
    for condition in wrong {
        findings.push(match text(condition, "reason") {
            "ProgressDeadlineExceeded" => {
                Finding::new("its roll-out does not come on").detail(text(condition, "message"))
            }
            "FailedCreate" => {
                Finding::new("its pods cannot be made").detail(text(condition, "message")).way_out(
                    "a quota, a limit or a policy of the namespace refuses them, or their service account is missing: the message says which",
                )
            }
            "BackoffLimitExceeded" => {
                Finding::new("its pods failed more often than spec.backoffLimit allows")
            }
            "DeadlineExceeded" => Finding::new("it took longer than spec.activeDeadlineSeconds allows"),
            _ => Finding::new(said(condition)),
        });
    }
    if findings.is_empty() {
        // A ReplicaSet under quota tells it by events alone until its condition comes.
        let refused = warnings(events).into_iter().filter(|warning| warning.starts_with("FailedCreate"));
        findings.extend(refused.map(|warning| Finding::new("its pods cannot be made").detail(warning)));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_its_conditions_say_is_said() {
        let object = json!({"metadata": {"name": "web", "generation": 3}, "spec": {"replicas": 2, "paused": true},
            "status": {"observedGeneration": 2, "conditions": [
                {"type": "Available", "status": "True"},
                {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"},
                {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "m"}]}});
        let found: Vec<String> =
            findings("deployments", &object, &[]).into_iter().map(|one| one.what).collect();
        assert_eq!(
            found,
            [
                "its controller has not looked at its newest version yet",
                "its roll-out is paused",
                "its pods cannot be made",
                "its roll-out does not come on"
            ]
        );
    }

    #[test]
    fn the_pods_in_the_way_are_found() {
        let pod = |phase: &str, ready: &str| {
            json!({"metadata": {}, "status": {"phase": phase,
            "conditions": [{"type": "Ready", "status": ready}]}})
        };
        assert!(!is_troubled("deployments", &pod("Running", "True")));
        assert!(is_troubled("deployments", &pod("Running", "False")));
        assert!(is_troubled("jobs", &pod("Failed", "False")));
        assert!(!is_troubled("jobs", &pod("Running", "False")));
    }
}
