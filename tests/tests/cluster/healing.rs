//! What fails is restarted, replaced or taken out.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use serde_json::Value;

use crate::application;

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn pod(cluster: &Cluster, namespace: &str, name: &str, container: &str) -> Result<()> {
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}, spec: {{terminationGracePeriodSeconds: 0,
          containers: [{{name: c, image: 'busybox:1', {container}}}]}}}}"
    ))?;
    Ok(())
}

fn restarted(cluster: &Cluster, namespace: &str, name: &str) -> Result<Value> {
    poll::until(&format!("{name} to be restarted"), PATIENCE, || {
        let pod = cluster.get(&["pod", name, "-n", namespace])?;
        let status = &pod["status"]["containerStatuses"][0];
        let again =
            status["restartCount"].as_i64().unwrap_or_default() > 0 && status["state"]["running"].is_object();
        Ok(if again { Ok(pod) } else { Err(pod["status"].to_string()) })
    })
}

pub(crate) fn a_killed_process_is_restarted(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("killed", |ns| {
        pod(
            cluster,
            ns,
            "victim",
            "command: [sh, -c, 'trap \"exit 3\" TERM; echo started; while true; do sleep 0.1; done']",
        )?;
        cluster.ready(ns, "victim")?;
        cluster.exec(ns, "victim", &["kill", "-TERM", "1"])?;
        let pod = restarted(cluster, ns, "victim")?;
        let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
        ensure!(last["exitCode"] == 3 && last["reason"] == "Error", "{last}");
        let previous = cluster.k(&["logs", "victim", "-n", ns, "--previous"])?;
        ensure!(previous == "started\n", "{previous}");
        let events = cluster.k(&["get", "events", "-n", ns])?;
        for word in ["Scheduled", "Pulled", "Created", "Started"] {
            ensure!(events.contains(word), "no event {word}:\n{events}");
        }
        Ok(())
    })
}

pub(crate) fn a_deleted_pod_is_replaced(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("replaced", |ns| {
        application::sample(cluster, ns)?;
        let names = || -> Result<Vec<String>> {
            let pods = cluster.get(&["pods", "-n", ns, "-l", "app=web"])?;
            let items = pods["items"].as_array().into_iter().flatten();
            Ok(items.filter_map(|p| p["metadata"]["name"].as_str().map(str::to_owned)).collect())
        };
        let before = names()?;
        let victim = before.first().context("no pod")?;
        cluster.k(&["delete", "pod", victim, "-n", ns])?;
        cluster.k(&["rollout", "status", "deployment/web", "-n", ns, "--timeout=60s"])?;
        let after = names()?;
        ensure!(after.len() == 3 && !after.contains(victim), "{before:?} became {after:?}");
        Ok(())
    })
}

pub(crate) fn a_failing_liveness_probe_restarts(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("liveness", |ns| {
        pod(cluster, ns, "sick", "command: [sh, -c, 'touch /tmp/well; sleep 3600'], livenessProbe: {exec: {command: [cat, /tmp/well]}, periodSeconds: 1, failureThreshold: 2}")?;
        cluster.ready(ns, "sick")?;
        cluster.exec(ns, "sick", &["rm", "/tmp/well"])?;
        restarted(cluster, ns, "sick")?;
        let events = cluster.k(&["get", "events", "-n", ns])?;
        ensure!(events.contains("Unhealthy") && events.contains("Liveness probe failed"), "{events}");
        Ok(())
    })
}

pub(crate) fn a_failing_readiness_probe_leaves_the_service(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("readiness", |ns| {
        pod(cluster, ns, "busy", "command: [sh, -c, 'touch /tmp/ready; httpd -f -p 80 -h /tmp'], readinessProbe: {httpGet: {path: /ready, port: 80}, periodSeconds: 1, failureThreshold: 1}")?;
        cluster.apply(&format!("{{apiVersion: v1, kind: Service, metadata: {{name: busy, namespace: {ns}}}, spec: {{selector: {{app: busy}}, ports: [{{port: 80}}]}}}}"))?;
        cluster.ready(ns, "busy")?;
        let service = cluster.get(&["service", "busy", "-n", ns])?;
        let address = format!("{}:80", service["spec"]["clusterIP"].as_str().context("no clusterIP")?);
        let reach = || Ok(application::http_get(&address, "/ready").map_or_else(|e| format!("{e:#}"), |_| "reached".to_owned()));
        poll::text("the Service to answer", PATIENCE, reach, |t| t == "reached")?;
        cluster.exec(ns, "busy", &["rm", "/tmp/ready"])?;
        poll::text("the Service to refuse", PATIENCE, reach, |t| t.contains("refused"))?;
        cluster.exec(ns, "busy", &["touch", "/tmp/ready"])?;
        poll::text("the Service to answer again", PATIENCE, reach, |t| t == "reached")?;
        let pod = cluster.get(&["pod", "busy", "-n", ns])?;
        ensure!(pod["status"]["containerStatuses"][0]["restartCount"] == 0, "{}", pod["status"]);
        Ok(())
    })
}

pub(crate) fn memory_above_the_limit_is_oom_killed(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("oom", |ns| {
        pod(cluster, ns, "greedy", "command: [sh, -c, 'sleep 1; x=a; while true; do x=$x$x; done'], resources: {limits: {memory: 32Mi}}")?;
        poll::until("the container to be killed for memory", PATIENCE, || {
            let pod = cluster.get(&["pod", "greedy", "-n", ns])?;
            let status = &pod["status"]["containerStatuses"][0];
            let reasons = [&status["state"]["terminated"]["reason"], &status["lastState"]["terminated"]["reason"]];
            Ok(if reasons.iter().any(|r| **r == "OOMKilled") { Ok(()) } else { Err(status.to_string()) })
        })
    })
}

pub(crate) fn a_deleted_namespace_takes_everything(cluster: &Cluster) -> Result<()> {
    cluster.k(&["create", "namespace", "doomed"])?;
    application::sample(cluster, "doomed")?;
    cluster.k(&["delete", "namespace", "doomed", "--timeout=60s"])?;
    let pods = cluster.k(&["get", "pods", "-A", "--no-headers"])?;
    ensure!(!pods.contains("doomed"), "{pods}");
    let deployments = cluster.k(&["get", "deployments", "-A", "--no-headers"])?;
    ensure!(!deployments.contains("doomed"), "{deployments}");
    Ok(())
}
