//! Why a pod has no node: the scheduler's own core is asked about the cluster's present state, so that this never says
//! anything else than the scheduler does.

use decapod_scheduler::explain::{Cluster, Explanation, Group, explain};
use k8s_openapi::api::core::v1::Pod;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::session::{Session, escape};
use super::{Finding, condition, list, text};
use crate::failure::Failure;

/// Node names that are shown of a group.
const NAMES: usize = 5;

/// What is in the way of a pod without a node.
pub(super) async fn findings(session: &Session, pod: &Value) -> Result<Vec<Finding>, Failure> {
    if let Some(finding) = held_back(pod) {
        return Ok(vec![finding]);
    }
    let typed: Pod = serde_json::from_value(pod.clone())?;
    let cluster = cluster(session, text(&pod["metadata"], "namespace")).await?;
    Ok(explained(pod, &explain(&typed, &cluster)))
}

/// What keeps a pod from being looked at by the scheduler at all.
fn held_back(pod: &Value) -> Option<Finding> {
    let gates: Vec<&str> = list(&pod["spec"]["schedulingGates"]).map(|gate| text(gate, "name")).collect();
    if !gates.is_empty() {
        let finding = Finding::new("its scheduling gates hold it back").detail(gates.join(", "));
        return Some(finding.way_out(
            "whoever set a gate removes it when the pod may start; by hand: \
             `kubectl patch pod NAME --type=merge -p '{\"spec\":{\"schedulingGates\":[]}}'`",
        ));
    }
    let scheduler = text(&pod["spec"], "schedulerName");
    let untouched = condition(pod, "PodScheduled").is_none();
    (!matches!(scheduler, "" | "default-scheduler") && untouched).then(|| {
        Finding::new(format!("no scheduler has taken it up: it asks for \"{scheduler}\"")).way_out(
            "start that scheduler, add a profile of this name to --scheduler-config, or leave spec.schedulerName out",
        )
    })
}

/// The nodes' answers.
fn explained(pod: &Value, explanation: &Explanation) -> Vec<Finding> {
    if let Some(why) = &explanation.refusal {
        return vec![Finding::new(format!("no node will do: {why}")).way_out(way_out_of(why))];
    }
    let nominated = text(&pod["status"], "nominatedNodeName");
    let mut findings = Vec::new();
    if !nominated.is_empty() {
        findings.push(
            Finding::new(format!("it waits for pods of lower priority to leave node {nominated}")).way_out(
                "wait: they were asked to stop; `decapod why` about one of them says why it does not",
            ),
        );
    }
    if !explanation.fitting.is_empty() {
        let nodes = some(&explanation.fitting);
        findings.push(
            Finding::new(format!("it fits on {nodes} by now")).way_out(
                "wait: it is tried again after its back-off, at most 10 s; else see `decapod status`",
            ),
        );
        return findings;
    }
    if explanation.groups.is_empty() {
        findings.push(Finding::new("there are no nodes").way_out("`decapod agent` on a machine adds one"));
    }
    findings.extend(explanation.groups.iter().map(of_group));
    if let (Some((node, victims)), true) = (&explanation.room, nominated.is_empty()) {
        findings.push(
            Finding::new(format!("room could be made on {node}"))
                .detail(format!("less important there: {}", some(victims)))
                .way_out("wait: the scheduler removes them when the pod is tried again"),
        );
    }
    findings
}

fn of_group(group: &Group) -> Finding {
    let count = group.nodes.len();
    let nodes = format!("{count} node{}", if count == 1 { "" } else { "s" });
    let what = format!("{nodes} ({}) refused by {}: {}", some(&group.nodes), group.plugin, group.reason);
    let finding = group.details.iter().fold(Finding::new(what), |finding, detail| finding.detail(detail));
    finding.way_out(&group.way_out)
}

fn some(names: &[String]) -> String {
    let shown = names.iter().take(NAMES).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > NAMES { format!("{shown} and {} more", names.len() - NAMES) } else { shown }
}

/// What to do about claims.
fn way_out_of(why: &str) -> String {
    if why.contains("not found") {
        "create the claim, or correct claimName in the pod's volumes".to_owned()
    } else {
        "`decapod why pvc/NAME` says what the claim waits for".to_owned()
    }
}

/// All that decisions are made from, as far as it may be read.
async fn cluster(session: &Session, namespace: &str) -> Result<Cluster, Failure> {
    let claims = format!("/api/v1/namespaces/{}/persistentvolumeclaims", escape(namespace));
    Ok(Cluster {
        nodes: all(session, "/api/v1/nodes").await?,
        pods: all(session, "/api/v1/pods").await?,
        namespaces: all(session, "/api/v1/namespaces").await?,
        claims: all(session, &claims).await?,
        volumes: all(session, "/api/v1/persistentvolumes").await?,
        classes: all(session, "/apis/storage.k8s.io/v1/storageclasses").await?,
        budgets: all(session, "/apis/policy/v1/poddisruptionbudgets").await?,
    })
}

async fn all<T: DeserializeOwned>(session: &Session, path: &str) -> Result<Vec<T>, Failure> {
    let list = session.get(path).await.map_err(|failure| failure.within("what the scheduler sees"))?;
    let items = list["items"].as_array().into_iter().flatten();
    items.map(|item| serde_json::from_value(item.clone()).map_err(Failure::from)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn gates_and_foreign_schedulers_are_named() {
        let gated = json!({"spec": {"schedulingGates": [{"name": "x.y/z"}]}});
        assert_eq!(held_back(&gated).unwrap().details, ["x.y/z"]);
        let foreign = json!({"spec": {"schedulerName": "mine"}});
        assert!(held_back(&foreign).unwrap().what.contains("\"mine\""));
        assert_eq!(held_back(&json!({"spec": {"schedulerName": "default-scheduler"}})), None);
    }

    #[test]
    fn groups_of_nodes_are_findings() {
        let group = Group {
            plugin: "NodeResourcesFit",
            reason: "Insufficient cpu".to_owned(),
            nodes: (0..7).map(|number| format!("n{number}")).collect(),
            details: vec!["n0: asks for 2 cpu, 1 of 1 is free".to_owned()],
            way_out: "ask for less".to_owned(),
        };
        let explanation = Explanation { groups: vec![group], ..Explanation::default() };
        let findings = explained(&json!({}), &explanation);
        let [finding] = &findings[..] else { panic!("one finding") };
        let what = "7 nodes (n0, n1, n2, n3, n4 and 2 more) refused by NodeResourcesFit: Insufficient cpu";
        assert_eq!((finding.what.as_str(), finding.way_out.as_deref()), (what, Some("ask for less")));
        let waits = explained(&json!({"status": {"nominatedNodeName": "n1"}}), &explanation);
        assert!(waits[0].what.contains("to leave node n1"), "{waits:?}");
        let refused = Explanation {
            refusal: Some("persistentvolumeclaim \"d\" not found".to_owned()),
            ..Explanation::default()
        };
        assert!(explained(&json!({}), &refused)[0].way_out.as_ref().unwrap().starts_with("create the claim"));
    }
}
