//! What comes from outside, and what may not pass: load balancers, network policies, Ingress.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use serde_json::{Value, json};

use crate::application::{client, http_get, http_try, sample};

/// Far longer than anything takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(180);

fn balancer(namespace: &str, name: &str, port: u16) -> String {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": {
        "type": "LoadBalancer", "selector": {"app": "web"}, "ports": [{"port": port, "targetPort": 80}]}})
    .to_string()
}

/// A Service of type LoadBalancer is reached at the node's address until it is of another type.
pub(crate) fn load_balancers_have_the_nodes_address(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("balancer", |ns| {
        sample(cluster, ns)?;
        cluster.apply(&balancer(ns, "lb", 26_081))?;
        let ingress = |name: &str| -> Result<Value> {
            Ok(cluster.get(&["service", name, "-n", ns])?["status"]["loadBalancer"]["ingress"].clone())
        };
        let address = poll::until("the node's address", PATIENCE, || {
            let found = ingress("lb")?;
            Ok(found[0]["ip"].as_str().map(str::to_owned).ok_or_else(|| found.to_string()))
        })?;
        let at = format!("{address}:26081");
        poll::text(
            "the Service to answer at the node's address",
            PATIENCE,
            || http_try(&at, "/"),
            |t| t.starts_with("web-"),
        )?;
        cluster.apply(&balancer(ns, "late", 26_081))?;
        let told = || cluster.k(&["get", "events", "-n", ns, "--field-selector", "involvedObject.name=late"]);
        poll::text("the clash to be told", PATIENCE, told, |events| {
            events.contains("SyncLoadBalancerFailed")
                && events.contains(&format!("port 26081/TCP of the nodes belongs to the Service {ns}/lb"))
        })?;
        ensure!(ingress("late")?.is_null());
        cluster.k(&["patch", "service", "lb", "-n", ns, "-p", r#"{"spec":{"type":"ClusterIP"}}"#])?;
        poll::until("the address to go on to who waits for it", PATIENCE, || {
            let (lb, late) = (ingress("lb")?, ingress("late")?);
            Ok(if lb.is_null() && late[0]["ip"] == *address { Ok(()) } else { Err(format!("{lb} {late}")) })
        })
    })
}

/// A policy closes pods to others, but not to their node, and opens them again by labels.
pub(crate) fn policies_close_and_open(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("policies", |ns| {
        sample(cluster, ns)?;
        client(cluster, ns)?;
        let policy = |ingress: Value| {
            let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"name": "web", "namespace": ns}, "spec": {
                    "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": ingress}});
            cluster.apply(&object.to_string())
        };
        // What BusyBox says of a connection that is not answered is an error of kubectl.
        let asked = || cluster.exec(ns, "client", &["timeout", "5", "wget", "-qO-", "http://web/"]);
        let answered = |open: bool| {
            poll::until(if open { "the pods to open" } else { "the pods to close" }, PATIENCE, || {
                let answer = asked();
                Ok(if answer.is_ok() == open { Ok(()) } else { Err(format!("{answer:?}")) })
            })
        };
        answered(true)?;
        policy(json!([]))?;
        answered(false)?;
        let address = cluster.get(&["service", "web", "-n", ns])?;
        let address = address["spec"]["clusterIP"].as_str().context("no clusterIP")?.to_owned();
        let from_node = http_get(&format!("{address}:80"), "/")?;
        ensure!(from_node.starts_with("web-"), "{from_node}");
        policy(json!([{"from": [{"podSelector": {"matchLabels": {"may": "enter"}}}], "ports": [{"port": 80}]}]))?;
        cluster.k(&["label", "pod", "client", "-n", ns, "may=enter"])?;
        answered(true)?;
        // A pod that starts under a policy is closed from the first moment on.
        cluster.k(&["label", "pod", "client", "-n", ns, "may-"])?;
        answered(false)?;
        cluster.k(&["rollout", "restart", "deployment/web", "-n", ns])?;
        cluster.k(&["rollout", "status", "deployment/web", "-n", ns, "--timeout=120s"])?;
        ensure!(asked().is_err(), "the new pods are open");
        cluster.k(&["delete", "networkpolicy", "web", "-n", ns])?;
        answered(true)
    })
}

/// A process of ours that ends with its value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The Ingress controller on the real API: rules, their absence, and the class that is somebody else's.
pub(crate) fn ingress_takes_requests_to_services(cluster: &Cluster) -> Result<()> {
    let class = json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
        "metadata": {"name": "dcptest"}, "spec": {"controller": "decapod.dev/ingress"}});
    cluster.apply(&class.to_string())?;
    let tested = cluster.in_namespace("ingress", |ns| {
        sample(cluster, ns)?;
        let kubeconfig = cluster.kubeconfig();
        let mut command = cluster.decapod(&["ingress", "--http=127.0.0.1:26082", "--https=127.0.0.1:26083"]);
        let _controller = Process(command.arg("--cluster").arg(kubeconfig).stdout(Stdio::null()).spawn()?);
        let ingress = |name: &str, class: &str, host: &str| {
            let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
                "metadata": {"name": name, "namespace": ns}, "spec": {"ingressClassName": class, "rules": [
                    {"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}]}})
        };
        cluster.apply(&ingress("web", "dcptest", "web").to_string())?;
        cluster.apply(&ingress("other", "else", "web.else").to_string())?;
        let ask = |path: &str| http_try("127.0.0.1:26082", path);
        poll::text("the rule to hold", PATIENCE, || ask("/"), |answer| answer.starts_with("web-"))?;
        ensure!(ask("/version")? == "1\n");
        cluster.k(&["delete", "ingress", "web", "-n", ns])?;
        poll::text("the rule to go", PATIENCE, || ask("/"), |answer| answer.contains("404 Not Found"))?;
        Ok(())
    });
    let removed = cluster.k(&["delete", "ingressclass", "dcptest"]);
    tested.and(removed.map(drop))
}
