//! Services, names, policies and Ingress where there are three nodes: what each node does for itself, and what it does for
//! the others.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::nodes::Node;
use decapod_tests::poll;
use decapod_tests::tools::root;
use serde_json::{Value, json};

use crate::reaching::everywhere;

const PATIENCE: Duration = Duration::from_secs(300);
/// Ports of nodes that nothing else takes.
const HOST_PORT: u16 = 26_087;
const BALANCER: u16 = 26_088;
const INGRESS: u16 = 26_089;

/// What a page says to the machine itself, or why it says nothing.
fn page(url: &str) -> Result<String> {
    let output = Command::new("busybox").args(["timeout", "20", "busybox", "wget", "-qO-", url]).output()?;
    let text = if output.status.success() { &output.stdout } else { &output.stderr };
    Ok(String::from_utf8_lossy(text).trim().to_owned())
}

/// What twenty requests of a pod found.
fn found(cluster: &Cluster, ns: &str, client: usize, url: &str) -> Result<BTreeSet<String>> {
    let script = format!("for i in $(seq 20); do timeout 20 wget -qO- {url} || echo none; done");
    let seen = cluster.exec(ns, &format!("client-{client}"), &["sh", "-c", &script])?;
    Ok(seen.lines().map(str::to_owned).collect())
}

/// Waits until twenty requests of a pod find servers of whom this holds.
fn until_found(
    cluster: &Cluster,
    ns: &str,
    (client, url): (usize, &str),
    holds: impl Fn(&BTreeSet<String>) -> bool,
) -> Result<()> {
    poll::until(&format!("{url} to be right for client-{client}"), PATIENCE, || {
        let seen = found(cluster, ns, client, url)?;
        Ok(if holds(&seen) { Ok(()) } else { Err(format!("{seen:?}")) })
    })
}

fn names(of: &str, count: usize) -> BTreeSet<String> {
    (0..count).map(|number| format!("{of}-{number}")).collect()
}

fn service(name: &str, ns: &str, more: &Value) -> Result<Value> {
    let mut object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": ns},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    for (key, value) in more.as_object().context("fields of a spec")? {
        object["spec"][key] = value.clone();
    }
    Ok(object)
}

pub(crate) fn services_of_every_node(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("serving", |ns| {
        let nodes = cluster.nodes()?;
        everywhere(cluster, ns, &nodes)?;
        affinity(cluster, ns, &nodes)?;
        local_traffic(cluster, ns, &nodes)?;
        host_ports(cluster, ns, &nodes)?;
        own_names(cluster, ns, &nodes)?;
        policies(cluster, ns, &nodes)
    })
}

/// A client stays with one server, at the Service's address and at every node's port.
fn affinity(cluster: &Cluster, ns: &str, nodes: &[Node]) -> Result<()> {
    let object = cluster.get(&["service", "web", "-n", ns])?;
    let port = &object["spec"]["ports"][0]["nodePort"];
    let all = names("web", nodes.len());
    for client in 0..nodes.len() {
        until_found(cluster, ns, (client, "http://web/"), |seen| *seen == all)?;
    }
    cluster.k(&["patch", "service", "web", "-n", ns, "-p", r#"{"spec":{"sessionAffinity":"ClientIP"}}"#])?;
    for (client, node) in nodes.iter().enumerate() {
        for url in ["http://web/".to_owned(), format!("http://{}:{port}/", node.address)] {
            until_found(cluster, ns, (client, &url), |seen| seen.len() == 1 && seen.is_subset(&all))?;
        }
    }
    cluster
        .k(&[
            "patch",
            "service",
            "web",
            "-n",
            ns,
            "-p",
            r#"{"spec":{"sessionAffinity":"None","sessionAffinityConfig":null}}"#,
        ])
        .map(drop)
}

/// Each node hands what comes from outside to its own pod only, and load balancers have all their addresses.
fn local_traffic(cluster: &Cluster, ns: &str, nodes: &[Node]) -> Result<()> {
    let ports = json!([{"port": BALANCER, "targetPort": 80}]);
    let more = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": ports});
    cluster.apply(&service("near", ns, &more)?.to_string())?;
    poll::until("the addresses of three nodes", PATIENCE, || {
        let ingress =
            cluster.get(&["service", "near", "-n", ns])?["status"]["loadBalancer"]["ingress"].clone();
        let told: BTreeSet<_> =
            ingress.as_array().into_iter().flatten().filter_map(|one| one["ip"].as_str()).collect();
        let all = nodes.iter().all(|node| told.contains(&*node.address.to_string()));
        Ok(if all && told.len() == nodes.len() { Ok(()) } else { Err(ingress.to_string()) })
    })?;
    let object = cluster.get(&["service", "near", "-n", ns])?;
    let (port, health) = (&object["spec"]["ports"][0]["nodePort"], &object["spec"]["healthCheckNodePort"]);
    // The machine itself is a client from outside to the further nodes.
    for (number, node) in nodes.iter().enumerate().filter(|(_, node)| node.further) {
        // Load balancers are short-circuited on nodes, also on the machine's own.
        let balancer = format!("http://{}:{BALANCER}/", node.address);
        poll::text(&balancer, PATIENCE, || page(&balancer), |text| text.starts_with("web-"))?;
        let (url, own) = (format!("http://{}:{port}/", node.address), format!("web-{number}"));
        poll::text(&format!("{own} at {url}"), PATIENCE, || page(&url), |text| text == own)?;
        for _ in 0..10 {
            let answer = page(&url)?;
            ensure!(answer == own || !answer.starts_with("web-"), "{url} led to {answer}");
        }
        let health = format!("http://{}:{health}/", node.address);
        poll::text(&health, PATIENCE, || page(&health), |text| text.contains("\"localEndpoints\":1"))?;
    }
    Ok(())
}

/// The same port of every node, each for its own pod.
fn host_ports(cluster: &Cluster, ns: &str, nodes: &[Node]) -> Result<()> {
    let set = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "port", "namespace": ns},
        "spec": {"selector": {"matchLabels": {"app": "port"}}, "template": {"metadata": {"labels": {"app": "port"}},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "busybox:1",
                "command": ["sh", "-c", "mkdir /www; echo $NODE > /www/index.html; exec httpd -f -p 80 -h /www"],
                "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
                "ports": [{"containerPort": 80, "hostPort": HOST_PORT}]}]}}}});
    cluster.apply(&set.to_string())?;
    cluster.k(&["rollout", "status", "daemonset/port", "-n", ns, "--timeout=300s"])?;
    for client in 0..nodes.len() {
        for node in nodes {
            let url = format!("http://{}:{HOST_PORT}/", node.address);
            until_found(cluster, ns, (client, &url), |seen| seen.iter().eq([&node.name]))?;
        }
    }
    Ok(())
}

/// Each node has a name server of its own, and does without it.
fn own_names(cluster: &Cluster, ns: &str, nodes: &[Node]) -> Result<()> {
    let servers = || -> Result<BTreeSet<String>> {
        let of = ["endpointslices", "-n", "kube-system", "-l", "kubernetes.io/service-name=kube-dns"];
        let slices = cluster.get(&of)?;
        let slices = slices["items"].as_array().cloned().unwrap_or_default();
        let endpoints = slices.iter().flat_map(|slice| slice["endpoints"].as_array()).flatten();
        // Only what says for which node it is keeps questions on the node.
        let ready = endpoints.filter(|one| {
            one["conditions"]["ready"] == true && one["hints"]["forNodes"][0]["name"] == one["nodeName"]
        });
        Ok(ready.filter_map(|one| one["nodeName"].as_str()).map(str::to_owned).collect())
    };
    let until_on = |expected: &BTreeSet<String>| {
        poll::until(&format!("name servers on {expected:?}"), PATIENCE, || {
            let there = servers()?;
            Ok(if there == *expected { Ok(()) } else { Err(format!("{there:?}")) })
        })
    };
    let mut all: BTreeSet<_> = nodes.iter().map(|node| node.name.clone()).collect();
    until_on(&all)?;
    let without = nodes.last().context("a node")?;
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [without.name]}]}]}}});
    let place = |affinity: Value| {
        let patch = json!({"spec": {"template": {"spec": {"affinity": affinity}}}}).to_string();
        cluster.k(&["patch", "daemonset", "kube-dns", "-n", "kube-system", "--type=merge", "-p", &patch])
    };
    place(affinity)?;
    let full = format!("http://web.{ns}.svc.cluster.local/");
    let told = (|| {
        all.remove(&without.name);
        until_on(&all)?;
        until_found(cluster, ns, (nodes.len() - 1, &full), |seen| !seen.contains("none"))
    })();
    place(Value::Null)?;
    told?;
    all.insert(without.name.clone());
    until_on(&all)
}

/// A policy for pods of all nodes holds against pods of all nodes, and for those that it names.
fn policies(cluster: &Cluster, ns: &str, nodes: &[Node]) -> Result<()> {
    let policy = |kind: &str, rules: Value| {
        let mut object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "web", "namespace": ns}, "spec": {"policyTypes": [kind],
                "podSelector": {"matchLabels": {"app": "web"}}}});
        object["spec"][kind.to_lowercase()] = rules;
        cluster.apply(&object.to_string())
    };
    // From each client to each pod by its address: which are open.
    let mut urls = Vec::new();
    for number in 0..nodes.len() {
        let pod = cluster.get(&["pod", &format!("web-{number}"), "-n", ns])?;
        urls.push(format!("http://{}/", pod["status"]["podIP"].as_str().context("no address")?));
    }
    let ask =
        urls.iter().map(|url| format!("timeout 3 wget -qO- {url} || echo closed; ")).collect::<String>();
    let until_seen = |client: usize, open: bool| {
        let expected: Vec<String> = match open {
            true => names("web", nodes.len()).into_iter().collect(),
            false => vec!["closed".to_owned(); nodes.len()],
        };
        poll::until(&format!("pods to be open ({open}) to client-{client}"), PATIENCE, || {
            // What BusyBox says of the signal goes to its error output.
            let seen = cluster.exec(ns, &format!("client-{client}"), &["sh", "-c", &ask])?;
            let lines: Vec<&str> = seen.lines().collect();
            Ok(if lines == expected { Ok(()) } else { Err(seen) })
        })
    };
    policy("Ingress", json!([{"from": [{"podSelector": {"matchLabels": {"may": "enter"}}}]}]))?;
    cluster.k(&["label", "pod", "client-1", "-n", ns, "may=enter"])?;
    for client in 0..nodes.len() {
        until_seen(client, client == 1)?;
    }
    cluster.k(&["label", "pod", "client-1", "-n", ns, "may-"])?;
    until_seen(1, false)?;
    cluster.k(&["delete", "networkpolicy", "web", "-n", ns])?;
    (0..nodes.len()).try_for_each(|client| until_seen(client, true))
}

/// The Ingress controller is on every node, and tells the servers who asked.
pub(crate) fn ingress_answers_on_every_node(cluster: &Cluster) -> Result<()> {
    let manifest = std::fs::read_to_string(root().join("deploy/ingress.yaml"))?
        .replace("port=80\"", &format!("port={INGRESS}\""))
        .replace("port: 80\n", &format!("port: {INGRESS}\n"))
        .replace("port=443\"", &format!("port={}\"", INGRESS + 1))
        .replace("port: 443\n", &format!("port: {}\n", INGRESS + 1));
    let file = cluster.scratch().join("ingress.yaml");
    std::fs::write(&file, manifest)?;
    let file = file.display().to_string();
    let tested = cluster.in_namespace("ingress-nodes", |ns| {
        let nodes = cluster.nodes()?;
        cluster.k(&["apply", "-f", &file])?;
        everywhere(cluster, ns, &nodes)?;
        let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
        let rule = json!({"http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}});
        let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {"name": "web", "namespace": ns}, "spec": {"rules": [rule]}});
        cluster.k(&[
            "rollout",
            "status",
            "daemonset/decapod-ingress",
            "-n",
            "kube-system",
            "--timeout=300s",
        ])?;
        // Without a class: the default one is ours.
        cluster.apply(&object.to_string())?;
        poll::until("the Ingress to tell three addresses", PATIENCE, || {
            let told =
                cluster.get(&["ingress", "web", "-n", ns])?["status"]["loadBalancer"]["ingress"].clone();
            Ok(if told.as_array().is_some_and(|all| all.len() == nodes.len()) {
                Ok(())
            } else {
                Err(told.to_string())
            })
        })?;
        let all = names("web", nodes.len());
        for node in &nodes {
            let url = format!("http://{}:{INGRESS}/", node.address);
            poll::until(&format!("all servers at {url}"), PATIENCE, || {
                let seen = (0..30).map(|_| page(&url)).collect::<Result<BTreeSet<_>>>()?;
                Ok(if seen == all { Ok(()) } else { Err(format!("{seen:?}")) })
            })?;
        }
        Ok(())
    });
    let removed = cluster.k(&["delete", "-f", &file, "--ignore-not-found", "--timeout=180s"]);
    tested.and(removed.map(drop))
}
