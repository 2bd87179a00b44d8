//! What is known of an object and what is around it.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::kinds::Kind;
use super::super::session::{Session, escape, with_query};
use super::{Finding, claim, list, name, node, pending, running, service, stuck, text, workload};
use crate::failure::Failure;

/// How many of a workload's pods are explained: the others are mostly alike.
const PODS: usize = 3;
/// How much of a log is shown.
const LOG_LINES: u32 = 5;

/// What is in the way of an object, the gravest first.
pub(in crate::verbs) async fn explain(
    session: &Session,
    kind: &Kind,
    object: &Value,
) -> Result<Vec<Finding>, Failure> {
    let now = Timestamp::now();
    let mut findings = Vec::new();
    if object["metadata"]["deletionTimestamp"].is_string() {
        findings.extend(stuck(session, kind, object, now).await?);
        if !findings.is_empty() {
            return Ok(findings);
        }
    }
    let more = match kind.plural.as_str() {
        "pods" => pod(session, object, now).await?,
        "nodes" => of_node(session, object, now).await?,
        "persistentvolumeclaims" => of_claim(session, object).await?,
        "services" => of_service(session, object).await?,
        "deployments" | "replicasets" | "replicationcontrollers" | "statefulsets" | "daemonsets" | "jobs" => {
            of_workload(session, kind, object, now).await?
        }
        _ => generic(session, object).await?,
    };
    findings.extend(more);
    Ok(findings)
}

fn namespace(object: &Value) -> &str {
    text(&object["metadata"], "namespace")
}

/// The events of an object, the newest last.
async fn events(session: &Session, object: &Value) -> Result<Vec<Value>, Failure> {
    let namespace = if namespace(object).is_empty() { "default" } else { namespace(object) };
    let uid = text(&object["metadata"], "uid");
    // Events about nodes name the node where its uid should be.
    let selector = if object["kind"] == "Node" {
        format!("involvedObject.kind=Node,involvedObject.name={}", name(object))
    } else {
        format!("involvedObject.uid={uid}")
    };
    let path = format!("/api/v1/namespaces/{}/events", escape(namespace));
    let mut found = session.get(&with_query(&path, &[("fieldSelector", selector)])).await?;
    let mut events: Vec<Value> = match found["items"].take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    };
    let when = |event: &Value| {
        let times = [&event["series"]["lastObservedTime"], &event["lastTimestamp"], &event["eventTime"]];
        times.into_iter().find_map(Value::as_str).unwrap_or_default().to_owned()
    };
    events.sort_by_key(when);
    Ok(events)
}

async fn node_of(session: &Session, pod: &Value) -> Result<Option<Value>, Failure> {
    match text(&pod["spec"], "nodeName") {
        "" => Ok(None),
        node => session.find(&format!("/api/v1/nodes/{}", escape(node))).await,
    }
}

async fn pods(session: &Session, namespace: &str, query: &[(&str, String)]) -> Result<Vec<Value>, Failure> {
    let root = match namespace {
        "" => "/api/v1/pods".to_owned(),
        namespace => format!("/api/v1/namespaces/{}/pods", escape(namespace)),
    };
    let mut found = session.get(&with_query(&root, query)).await?;
    match found["items"].take() {
        Value::Array(items) => Ok(items),
        _ => Ok(Vec::new()),
    }
}

async fn stuck(
    session: &Session,
    kind: &Kind,
    object: &Value,
    now: Timestamp,
) -> Result<Vec<Finding>, Failure> {
    let around = stuck::Around {
        node: if kind.plural == "pods" { node_of(session, object).await? } else { None },
        pods: match kind.plural.as_str() {
            "persistentvolumeclaims" => pods(session, namespace(object), &[]).await?,
            _ => Vec::new(),
        },
    };
    Ok(stuck::findings(&kind.plural, object, &around, now))
}

/// The last lines of what a container wrote before it ended; none where they cannot be had.
async fn last_words(session: &Session, pod: &Value, container: &str) -> String {
    let path = format!("/api/v1/namespaces/{}/pods/{}/log", escape(namespace(pod)), escape(name(pod)));
    let query = [
        ("container", container.to_owned()),
        ("previous", "true".to_owned()),
        ("tailLines", LOG_LINES.to_string()),
    ];
    let Ok(request) = http::Request::get(with_query(&path, &query)).body(Vec::new()) else {
        return String::new();
    };
    // Its log may be gone, or its node: then the rest is all there is to say.
    session.client.request_text(request).await.unwrap_or_default().trim_end().to_owned()
}

async fn pod(session: &Session, pod: &Value, now: Timestamp) -> Result<Vec<Finding>, Failure> {
    if text(&pod["spec"], "nodeName").is_empty() {
        let findings = pending::findings(session, pod).await?;
        if !findings.is_empty() {
            return Ok(findings);
        }
    }
    let mut around = running::Around {
        node: node_of(session, pod).await?,
        events: events(session, pod).await?,
        ..Default::default()
    };
    for container in running::restarting(pod) {
        let words = last_words(session, pod, &container).await;
        around.last_words.insert(container, words);
    }
    Ok(running::findings(pod, &around, now))
}

async fn of_node(session: &Session, object: &Value, now: Timestamp) -> Result<Vec<Finding>, Failure> {
    let path =
        format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{}", escape(name(object)));
    let lease = session.find(&path).await?.unwrap_or(Value::Null);
    let on_it = pods(session, "", &[("fieldSelector", format!("spec.nodeName={}", name(object)))]).await?;
    Ok(node::findings(object, &lease, on_it.len(), &events(session, object).await?, now))
}

async fn of_claim(session: &Session, object: &Value) -> Result<Vec<Finding>, Failure> {
    let class = match text(&object["spec"], "storageClassName") {
        "" => None,
        class => session.find(&format!("/apis/storage.k8s.io/v1/storageclasses/{}", escape(class))).await?,
    };
    let volumes = session.get("/api/v1/persistentvolumes").await?;
    let around = claim::Around {
        class,
        volumes: list(&volumes["items"]).cloned().collect(),
        pods: pods(session, namespace(object), &[]).await?,
        events: events(session, object).await?,
    };
    Ok(claim::findings(object, &around))
}

fn selector_of(labels: &Value) -> String {
    let pairs = labels.as_object().into_iter().flatten();
    let pairs: Vec<String> =
        pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    pairs.join(",")
}

async fn of_service(session: &Session, object: &Value) -> Result<Vec<Finding>, Failure> {
    let query = [("labelSelector", format!("kubernetes.io/service-name={}", name(object)))];
    let path = format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", escape(namespace(object)));
    let slices = session.get(&with_query(&path, &query)).await?;
    let selector = selector_of(&object["spec"]["selector"]);
    let around = service::Around {
        selected: match selector.as_str() {
            "" => Vec::new(),
            _ => pods(session, namespace(object), &[("labelSelector", selector)]).await?,
        },
        all: pods(session, namespace(object), &[]).await?,
        slices: list(&slices["items"]).cloned().collect(),
        events: events(session, object).await?,
    };
    Ok(service::findings(object, &around))
}

async fn of_workload(
    session: &Session,
    kind: &Kind,
    object: &Value,
    now: Timestamp,
) -> Result<Vec<Finding>, Failure> {
    let mut findings = workload::findings(&kind.plural, object, &events(session, object).await?);
    let labels = match kind.plural.as_str() {
        "replicationcontrollers" => &object["spec"]["selector"],
        _ => &object["spec"]["selector"]["matchLabels"],
    };
    let selector = selector_of(labels);
    if selector.is_empty() {
        return Ok(findings);
    }
    let all = pods(session, namespace(object), &[("labelSelector", selector)]).await?;
    let troubled = all.iter().filter(|pod| workload::is_troubled(&kind.plural, pod));
    for troubled in troubled.take(PODS) {
        let pod_findings = match troubled["metadata"]["deletionTimestamp"].is_string() {
            true => stuck::findings(
                "pods",
                troubled,
                &stuck::Around { node: node_of(session, troubled).await?, pods: Vec::new() },
                now,
            ),
            false => pod(session, troubled, now).await?,
        };
        for mut finding in pod_findings {
            finding.what = format!("its pod {}: {}", name(troubled), finding.what);
            findings.push(finding);
        }
    }
    Ok(findings)
}

/// Of a kind of which nothing more is known: what its conditions and warnings say.
async fn generic(session: &Session, object: &Value) -> Result<Vec<Finding>, Failure> {
    let mut findings: Vec<Finding> = list(&object["status"]["conditions"])
        .filter(|condition| condition["status"] == "False")
        .map(|condition| {
            Finding::new(format!("{} is false", text(condition, "type"))).detail(super::said(condition))
        })
        .collect();
    for warning in super::warnings(&events(session, &with_kind(object)).await?) {
        findings.push(Finding::new(warning));
    }
    Ok(findings)
}

fn with_kind(object: &Value) -> Value {
    json!({"kind": object["kind"], "metadata": object["metadata"]})
}
