//! The cluster as a whole.

use jiff::Timestamp;
use serde_json::Value;

use super::super::session::{Session, escape};
use super::super::why::{self, Finding, list, name, since, text};
use super::about;
use crate::failure::Failure;

/// Clocks that differ by more make tokens and certificates invalid, and Leases hard to read.
const SKEW_SECONDS: i64 = 5;
/// A pod that was started again so often has something.
const RESTARTS: i64 = 5;
/// What is to go should be gone by then.
const STUCK_SECONDS: i64 = 300;
/// What is wrong, the gravest first.
pub(super) async fn examine(session: &Session) -> Result<Vec<Finding>, Failure> {
    let now = Timestamp::now();
    let mut findings = Vec::new();
    findings.extend(of_nodes(session, now).await?);
    findings.extend(of_system(session).await?);
    findings.extend(of_pods(session, now).await?);
    findings.extend(of_services(session).await?);
    findings.extend(of_authority(session, now).await?);
    Ok(findings)
}

async fn items(session: &Session, path: &str) -> Result<Vec<Value>, Failure> {
    match session.get(path).await?["items"].take() {
        Value::Array(items) => Ok(items),
        _ => Ok(Vec::new()),
    }
}

/// Their conditions, their clocks, and whether the API server reaches their agents.
async fn of_nodes(session: &Session, now: Timestamp) -> Result<Vec<Finding>, Failure> {
    let kind = session.kinds().await?.resolve("nodes")?.remove(0);
    let nodes = items(session, "/api/v1/nodes").await?;
    let leases = items(session, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases").await?;
    let mut findings = Vec::new();
    if nodes.is_empty() {
        findings.push(
            Finding::new("the cluster has no node")
                .way_out("`decapod token create --print-join-command` on the server says how one joins"),
        );
    }
    println!("{} nodes", nodes.len());
    for node in &nodes {
        let called = format!("node/{}", name(node));
        let wrong = why::explain(session, &kind, node).await?;
        let lost = !wrong.is_empty();
        findings.extend(wrong.into_iter().map(|finding| about(&called, finding)));
        if lost {
            continue;
        }
        let lease = leases.iter().find(|lease| name(lease) == name(node));
        let renewed = lease.and_then(|lease| lease["spec"]["renewTime"].as_str()?.parse::<Timestamp>().ok());
        // A clock that is behind looks like a Lease that is old, which the node's readiness contradicts.
        if let Some(off) = renewed
            .map(|at| at.as_second() - now.as_second())
            .filter(|off| off.abs() > SKEW_SECONDS + 10 || *off > SKEW_SECONDS)
        {
            findings.push(about(
                &called,
                Finding::new(format!("its clock and this machine's differ by about {} s", off.abs()))
                    .way_out("have both kept by NTP"),
            ));
        }
        let health = format!("/api/v1/nodes/{}/proxy/healthz", escape(name(node)));
        let request = http::Request::get(&health).body(Vec::new());
        let request = request.map_err(|error| Failure::new(format!("{health}: {error}")))?;
        if let Err(error) = session.client.request_text(request).await {
            findings.push(about(
                &called,
                Finding::new("the API server does not reach its agent: logs, exec and port-forward fail")
                    .detail(Failure::from(error).to_string())
                    .way_out("is the agent's port (10250) open from the server to the node?"),
            ));
        }
    }
    Ok(findings)
}

/// Cluster DNS and what else is the system's.
async fn of_system(session: &Session) -> Result<Vec<Finding>, Failure> {
    let kind = session.kinds().await?.resolve("services")?.remove(0);
    let mut findings = Vec::new();
    for (namespace, service) in [("kube-system", "kube-dns"), ("default", "kubernetes")] {
        let path = format!("/api/v1/namespaces/{namespace}/services/{service}");
        let called = format!("service/{service}");
        match session.find(&path).await? {
            Some(object) => {
                let wrong = why::explain(session, &kind, &object).await?;
                findings.extend(wrong.into_iter().map(|finding| about(&called, finding)));
            }
            None => findings.push(about(&called, Finding::new(format!("it is not there (in {namespace})")))),
        }
    }
    Ok(findings)
}

/// Pods that start again and again, and what does not go away.
async fn of_pods(session: &Session, now: Timestamp) -> Result<Vec<Finding>, Failure> {
    let pods = items(session, "/api/v1/pods").await?;
    println!("{} pods", pods.len());
    let mut findings = Vec::new();
    for pod in &pods {
        let called = format!("pod/{} (namespace {})", name(pod), text(&pod["metadata"], "namespace"));
        let way_out = format!("`decapod why pod/{} -n {}`", name(pod), text(&pod["metadata"], "namespace"));
        if let Some(finding) = stuck(pod, now) {
            findings.push(about(&called, finding.way_out(way_out)));
            continue;
        }
        let restarts: i64 =
            list(&pod["status"]["containerStatuses"]).filter_map(|one| one["restartCount"].as_i64()).sum();
        let waiting = list(&pod["status"]["containerStatuses"])
            .any(|one| one["state"]["waiting"]["reason"] == "CrashLoopBackOff");
        if waiting || restarts >= RESTARTS {
            let finding = Finding::new(format!("its containers were started again {restarts} times"));
            findings.push(about(&called, finding.way_out(way_out)));
        }
    }
    for namespace in items(session, "/api/v1/namespaces").await? {
        if let Some(finding) = stuck(&namespace, now) {
            let called = format!("namespace/{}", name(&namespace));
            findings.push(about(&called, finding.way_out(format!("`decapod why {called}`"))));
        }
    }
    Ok(findings)
}

fn stuck(object: &Value, now: Timestamp) -> Option<Finding> {
    let at = &object["metadata"]["deletionTimestamp"];
    let since_when: Timestamp = at.as_str()?.parse().ok()?;
    (now.as_second() - since_when.as_second() > STUCK_SECONDS)
        .then(|| Finding::new(format!("it should be gone for {}", since(at, now))))
}

/// Endpoints of pods that are not there.
async fn of_services(session: &Session) -> Result<Vec<Finding>, Failure> {
    let pods = items(session, "/api/v1/pods").await?;
    let slices = items(session, "/apis/discovery.k8s.io/v1/endpointslices").await?;
    println!("{} EndpointSlices", slices.len());
    Ok(slices.iter().filter_map(|slice| stale(slice, &pods)).collect())
}

/// A slice that leads to pods that are gone.
fn stale(slice: &Value, pods: &[Value]) -> Option<Finding> {
    let gone: Vec<&str> = list(&slice["endpoints"])
        .map(|endpoint| &endpoint["targetRef"])
        .filter(|target| target["kind"] == "Pod")
        .filter(|target| !pods.iter().any(|pod| pod["metadata"]["uid"] == target["uid"]))
        .map(|target| text(target, "name"))
        .collect();
    (!gone.is_empty()).then(|| {
        Finding::new(format!(
            "endpointslice/{} (namespace {}): it leads to pods that are gone: {}",
            name(slice),
            text(&slice["metadata"], "namespace"),
            gone.join(", ")
        ))
        .way_out("do the controllers run? A slice that somebody made by hand is for him to change")
    })
}

/// The end of the cluster's authority.
async fn of_authority(session: &Session, now: Timestamp) -> Result<Vec<Finding>, Failure> {
    let found = session.find("/api/v1/namespaces/kube-system/configmaps/kube-root-ca.crt").await?;
    let Some(map) = found else { return Ok(Vec::new()) };
    let ends = decapod_apiserver::pki::expiry(text(&map["data"], "ca.crt"));
    if let Some(ends) = ends {
        println!("the cluster's authority ends on {}", ends.strftime("%Y-%m-%d"));
    }
    let warning = ends.and_then(|ends| crate::cluster::authority_warning(ends, now));
    Ok(warning.map(Finding::new).into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn endpoints_of_pods_that_are_gone_are_told() {
        let target =
            |uid: &str| json!({"targetRef": {"kind": "Pod", "name": format!("web-{uid}"), "uid": uid}});
        let slice = json!({"metadata": {"name": "web-x", "namespace": "shop"}, "endpoints": [target("1"), target("2")]});
        let pods = [json!({"metadata": {"uid": "1"}})];
        assert!(stale(&slice, &pods).unwrap().what.ends_with("gone: web-2"));
        assert_eq!(stale(&json!({"endpoints": [target("1")]}), &pods), None);
    }

    #[test]
    fn what_should_be_gone_for_long_is_told() {
        let now: Timestamp = "2026-11-22T18:00:00Z".parse().unwrap();
        let going = |at: &str| json!({"metadata": {"deletionTimestamp": at}});
        assert!(stuck(&going("2026-11-22T17:00:00Z"), now).is_some());
        assert!(stuck(&going("2026-11-22T17:59:00Z"), now).is_none());
    }
}
