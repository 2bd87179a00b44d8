//! What does not go away: who still has to do something before it can.

use jiff::Timestamp;
use serde_json::Value;

use super::{Finding, condition, list, name, said, since, text};

/// What is around an object that is to go.
#[derive(Debug, Default)]
pub(super) struct Around {
    /// The node of a pod.
    pub(super) node: Option<Value>,
    /// The pods that may use it.
    pub(super) pods: Vec<Value>,
}

/// Who removes a finalizer, and when.
fn remover(finalizer: &str) -> Option<&'static str> {
    Some(match finalizer {
        "kubernetes.io/pvc-protection" => "the controllers remove it once no pod uses the claim",
        "kubernetes.io/pv-protection" => "the controllers remove it once no claim is bound to the volume",
        "foregroundDeletion" => {
            "the garbage collector removes it once all that the object owns (with blockOwnerDeletion) is gone"
        }
        "orphan" => "the garbage collector removes it once nothing names the object as its owner",
        "batch.kubernetes.io/job-tracking" => "the Job controller removes it once it has counted the pod",
        "service.kubernetes.io/load-balancer-cleanup" => {
            "whoever provides load balancers removes it once the balancer is gone"
        }
        "kubernetes" => "the namespace controller removes it once the namespace is empty",
        "external-provisioner.volume.kubernetes.io/finalizer" | "kubernetes.io/pv-controller" => {
            "the volume's provisioner removes it once the storage is gone"
        }
        _ => return None,
    })
}

/// Why an object that is to go is still there.
pub(super) fn findings(plural: &str, object: &Value, around: &Around, now: Timestamp) -> Vec<Finding> {
    let metadata = &object["metadata"];
    let mut findings = Vec::new();
    if plural == "pods" {
        findings.extend(pod(object, around, now));
    }
    let finalizers: Vec<&str> = list(&metadata["finalizers"]).filter_map(Value::as_str).collect();
    let of_spec =
        list(&object["spec"]["finalizers"]).filter_map(Value::as_str).filter(|_| plural == "namespaces");
    let finalizers: Vec<&str> = finalizers.into_iter().chain(of_spec).collect();
    if finalizers.is_empty() {
        return findings;
    }
    let ago = since(&metadata["deletionTimestamp"], now);
    let mut finding = Finding::new(format!("it is to go since {ago}, and waits for its finalizers"));
    for finalizer in &finalizers {
        let who = remover(finalizer).map_or_else(
            || match finalizer.split_once('/') {
                Some((domain, _)) => format!("the controller of {domain} must remove it: does it run?"),
                None => "whoever put it there must remove it".to_owned(),
            },
            str::to_owned,
        );
        finding = finding.detail(format!("{finalizer}: {who}"));
    }
    for pod in around.pods.iter().filter(|pod| uses(pod, name(object))) {
        finding = finding.detail(format!("pod {} uses it", name(pod)));
    }
    for type_ in [
        "NamespaceDeletionDiscoveryFailure",
        "NamespaceDeletionContentFailure",
        "NamespaceContentRemaining",
        "NamespaceFinalizersRemaining",
    ] {
        if let Some(condition) = condition(object, type_).filter(|condition| condition["status"] == "True") {
            finding = finding.detail(text(condition, "message"));
        }
    }
    if finalizers.iter().any(|finalizer| remover(finalizer).is_none()) {
        finding = finding.way_out(
            "bring the controller back; or, if what it guards is gone for good, take the finalizer out of metadata.finalizers by a patch",
        );
    }
    findings.push(finding);
    findings
}

/// Whether a pod that has not ended mounts this claim.
fn uses(pod: &Value, claim: &str) -> bool {
    let ended = ["Succeeded", "Failed"].contains(&text(&pod["status"], "phase"));
    let mut claims =
        list(&pod["spec"]["volumes"]).map(|volume| text(&volume["persistentVolumeClaim"], "claimName"));
    !ended && claims.any(|one| one == claim)
}

fn pod(pod: &Value, around: &Around, now: Timestamp) -> Option<Finding> {
    let ago = since(&pod["metadata"]["deletionTimestamp"], now);
    let node = text(&pod["spec"], "nodeName");
    if node.is_empty() {
        return None;
    }
    let Some(object) = &around.node else {
        return Some(
            Finding::new(format!("its node {node} does not exist (any more)"))
                .way_out("it is removed by itself within a minute: nobody can finish it"),
        );
    };
    let ready = condition(object, "Ready");
    if let Some(ready) = ready.filter(|ready| ready["status"] != "True") {
        let what = format!(
            "its node {node} is not ready for {}: only the node can say that its containers have ended",
            since(&ready["lastTransitionTime"], now)
        );
        return Some(Finding::new(what).detail(said(ready)).way_out(format!(
            "bring the node back; if it is down for good, `kubectl taint nodes {node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute` or `decapod delete node {node}` has its pods removed"
        )));
    }
    let deadline =
        pod["metadata"]["deletionTimestamp"].as_str().and_then(|at| at.parse::<Timestamp>().ok())?;
    if deadline > now {
        let left = deadline.as_second() - now.as_second();
        let seconds = pod["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or_default();
        return Some(
            Finding::new(format!("its containers are ending: they have {left} s left of {seconds} s"))
                .way_out("containers that do not heed their stop signal are killed when that time is over"),
        );
    }
    let running =
        list(&pod["status"]["containerStatuses"]).filter(|status| status["state"]["running"].is_object());
    let names: Vec<&str> = running.map(|status| text(status, "name")).collect();
    (!names.is_empty()).then(|| {
        Finding::new(format!("it should have ended {ago} ago, and its node still shows running containers"))
            .detail(format!("containers: {}", names.join(", ")))
            .way_out(format!("look at the log of the agent on {node}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> Timestamp {
        "2026-11-22T18:00:00Z".parse().unwrap()
    }

    #[test]
    fn finalizers_are_named_with_who_removes_them() {
        let claim = json!({"metadata": {"name": "data", "deletionTimestamp": "2026-11-22T17:50:00Z",
            "finalizers": ["kubernetes.io/pvc-protection", "example.com/guard"]}});
        let user = json!({"metadata": {"name": "db-0"}, "status": {"phase": "Running"},
            "spec": {"volumes": [{"persistentVolumeClaim": {"claimName": "data"}}]}});
        let around = Around { pods: vec![user], ..Around::default() };
        let found = findings("persistentvolumeclaims", &claim, &around, now());
        assert_eq!(found.len(), 1);
        assert!(found[0].what.contains("since 10 min"), "{found:?}");
        let details = found[0].details.join("\n");
        for word in ["once no pod uses the claim", "controller of example.com", "pod db-0 uses it"] {
            assert!(details.contains(word), "{details}");
        }
        assert!(found[0].way_out.as_ref().unwrap().contains("metadata.finalizers"));
    }

    #[test]
    fn a_pod_waits_for_its_node() {
        let pod =
            json!({"metadata": {"deletionTimestamp": "2026-11-22T17:59:00Z"}, "spec": {"nodeName": "n1"}});
        let node = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown",
            "reason": "NodeStatusUnknown", "lastTransitionTime": "2026-11-22T17:58:30Z"}]}});
        let lost = findings("pods", &pod, &Around { node: Some(node), ..Around::default() }, now());
        assert!(lost[0].what.contains("n1 is not ready for 90 s"), "{lost:?}");
        assert!(lost[0].way_out.as_ref().unwrap().contains("out-of-service"));
        let gone = findings("pods", &pod, &Around::default(), now());
        assert!(gone[0].what.contains("does not exist"), "{gone:?}");
    }

    #[test]
    fn a_pod_that_ends_has_time_left() {
        let pod = json!({"metadata": {"deletionTimestamp": "2026-11-22T18:00:12Z", "deletionGracePeriodSeconds": 30},
            "spec": {"nodeName": "n1"}});
        let node = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let found = findings("pods", &pod, &Around { node: Some(node), ..Around::default() }, now());
        assert!(found[0].what.contains("12 s left of 30 s"), "{found:?}");
    }
}
