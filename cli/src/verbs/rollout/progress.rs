//! How a roll-out stands, in kubectl's words.

use serde_json::Value;

use crate::failure::Failure;

/// Whether it is done, and what there is to say.
type Progress = (bool, String);

/// How the roll-out of an object of this kind stands.
///
/// # Errors
/// It will not go on by itself.
pub(super) fn of(kind: &str, name: &str, object: &Value) -> Result<Progress, Failure> {
    let noun = match kind {
        "DaemonSet" => "daemon set".to_owned(),
        other => other.to_lowercase(),
    };
    if kind != "Deployment" && object["spec"]["updateStrategy"]["type"] == "OnDelete" {
        let text = "rollout status is only available for RollingUpdate strategy type";
        return Err(Failure::new(text).hint("with OnDelete pods change when somebody deletes them"));
    }
    if number(&object["metadata"]["generation"]) > number(&object["status"]["observedGeneration"]) {
        return Ok((false, format!("Waiting for {noun} spec update to be observed...")));
    }
    match kind {
        "StatefulSet" => Ok(stateful_set(object)),
        "DaemonSet" => Ok(daemon_set(name, &object["status"])),
        _ => deployment(name, object),
    }
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or_default()
}

fn stateful_set(set: &Value) -> Progress {
    let (spec, status) = (&set["spec"], &set["status"]);
    let wanted = spec["replicas"].as_i64().unwrap_or(1);
    let (ready, updated) = (number(&status["readyReplicas"]), number(&status["updatedReplicas"]));
    let new = wanted - number(&spec["updateStrategy"]["rollingUpdate"]["partition"]);
    if ready < wanted {
        return (false, format!("Waiting for {} pods to be ready...", wanted - ready));
    }
    if updated < new {
        let rest = format!("{updated} out of {new} new pods have been updated...");
        return (false, format!("Waiting for partitioned roll out to finish: {rest}"));
    }
    (true, format!("partitioned roll out complete: {updated} new pods have been updated..."))
}

fn daemon_set(name: &str, status: &Value) -> Progress {
    let wanted = number(&status["desiredNumberScheduled"]);
    let (updated, available) =
        (number(&status["updatedNumberScheduled"]), number(&status["numberAvailable"]));
    let rest = if updated < wanted {
        format!("{updated} out of {wanted} new pods have been updated...")
    } else if available < wanted {
        format!("{available} of {wanted} updated pods are available...")
    } else {
        return (true, format!("daemon set \"{name}\" successfully rolled out"));
    };
    (false, format!("Waiting for daemon set \"{name}\" rollout to finish: {rest}"))
}

fn deployment(name: &str, deployment: &Value) -> Result<Progress, Failure> {
    let status = &deployment["status"];
    let progressing =
        status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Progressing");
    if progressing.is_some_and(|c| c["reason"] == "ProgressDeadlineExceeded") {
        return Err(Failure::new(format!("deployment \"{name}\" exceeded its progress deadline"))
            .hint("`decapod rollout undo` goes back to the previous revision"));
    }
    let wanted = deployment["spec"]["replicas"].as_i64().unwrap_or(1);
    let (total, updated) = (number(&status["replicas"]), number(&status["updatedReplicas"]));
    let available = number(&status["availableReplicas"]);
    let waiting =
        |rest: String| Ok((false, format!("Waiting for deployment \"{name}\" rollout to finish: {rest}...")));
    if updated < wanted {
        return waiting(format!("{updated} out of {wanted} new replicas have been updated"));
    }
    if total > updated {
        return waiting(format!("{} old replicas are pending termination", total - updated));
    }
    if available < updated {
        return waiting(format!("{available} of {updated} updated replicas are available"));
    }
    Ok((true, format!("deployment \"{name}\" successfully rolled out")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rollout_in_kubectls_words() {
        let at = |status: Value| {
            of(
                "Deployment",
                "web",
                &json!({"metadata": {"generation": 2}, "spec": {"replicas": 3}, "status": status}),
            )
        };
        let text = |status: Value| at(status).unwrap().1;
        assert_eq!(
            text(json!({"observedGeneration": 1})),
            "Waiting for deployment spec update to be observed..."
        );
        assert_eq!(
            text(json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 1})),
            "Waiting for deployment \"web\" rollout to finish: 1 out of 3 new replicas have been updated..."
        );
        assert_eq!(
            text(json!({"observedGeneration": 2, "replicas": 4, "updatedReplicas": 3})),
            "Waiting for deployment \"web\" rollout to finish: 1 old replicas are pending termination..."
        );
        assert!(
            at(json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}))
                .unwrap()
                .0
        );
        assert!(at(json!({"observedGeneration": 2, "conditions": [{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]})).is_err());
    }

    #[test]
    fn sets_in_kubectls_words() {
        let set = |status: Value| {
            let spec = json!({"replicas": 3, "updateStrategy": {"rollingUpdate": {"partition": 1}}});
            of("StatefulSet", "db", &json!({"spec": spec, "status": status})).unwrap()
        };
        assert_eq!(set(json!({"readyReplicas": 2})).1, "Waiting for 1 pods to be ready...");
        let partly = set(json!({"readyReplicas": 3, "updatedReplicas": 1}));
        assert_eq!(
            partly.1,
            "Waiting for partitioned roll out to finish: 1 out of 2 new pods have been updated..."
        );
        let done = (true, "partitioned roll out complete: 2 new pods have been updated...".to_owned());
        assert_eq!(set(json!({"readyReplicas": 3, "updatedReplicas": 2})), done);
        let daemons = |status: Value| of("DaemonSet", "d", &json!({"status": status})).unwrap().1;
        assert_eq!(
            daemons(json!({"desiredNumberScheduled": 2, "updatedNumberScheduled": 1})),
            "Waiting for daemon set \"d\" rollout to finish: 1 out of 2 new pods have been updated..."
        );
        assert_eq!(daemons(json!({})), "daemon set \"d\" successfully rolled out");
        let by_hand = json!({"spec": {"updateStrategy": {"type": "OnDelete"}}});
        assert!(of("DaemonSet", "d", &by_hand).is_err());
    }
}
