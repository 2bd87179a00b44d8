//! Pods of different nodes reach each other, by address, by Service, by name and by every node's port; and
//! the API server reaches them all.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::nodes::Node;
use decapod_tests::poll;

const PATIENCE: Duration = Duration::from_secs(300);

/// A pod on each node that serves, and one that asks; all serving ones behind one Service.
pub(crate) fn everywhere(cluster: &Cluster, ns: &str, nodes: &[Node]) -> Result<()> {
    let mut manifest = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: {ns}}}, spec: {{type: NodePort,
          selector: {{app: web}}, ports: [{{port: 80}}]}}}}\n"
    );
    for (number, node) in nodes.iter().enumerate() {
        let on = format!(
            "terminationGracePeriodSeconds: 0, nodeSelector: {{kubernetes.io/hostname: {}}}, tolerations: [{{operator: Exists}}]",
            node.name
        );
        manifest += &format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: web-{number}, namespace: {ns}, labels: {{app: web}}}},
              spec: {{{on}, containers: [{{name: c, image: 'nginx:1',
                readinessProbe: {{httpGet: {{path: /healthz, port: 80}}, periodSeconds: 1}}}}]}}}}
---\n{{apiVersion: v1, kind: Pod, metadata: {{name: client-{number}, namespace: {ns}}},
              spec: {{{on}, containers: [{{name: c, image: 'busybox:1', command: [sleep, '3600']}}]}}}}\n"
        );
    }
    cluster.apply(&manifest)?;
    for (number, node) in nodes.iter().enumerate() {
        for pod in [format!("web-{number}"), format!("client-{number}")] {
            let pod = cluster.ready(ns, &pod)?;
            ensure!(pod["spec"]["nodeName"] == node.name.as_str(), "{}", pod["spec"]);
        }
    }
    Ok(())
}

fn address(cluster: &Cluster, ns: &str, pod: &str) -> Result<String> {
    cluster.k(&["get", "pod", pod, "-n", ns, "-o", "jsonpath={.status.podIP}"])
}

pub(crate) fn every_pod_from_every_node(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("reaching", |ns| {
        let nodes = cluster.nodes()?;
        everywhere(cluster, ns, &nodes)?;
        let port = cluster.k(&["get", "service", "web", "-n", ns, "-o", "jsonpath={.spec.ports[0].nodePort}"])?;
        let mut script = String::from(
            // The data path follows the endpoints, which follow the pods: what does not answer yet is asked again.
            "ask() { for i in $(seq 30); do timeout 60 wget -qO- $1 && return; sleep 1; done; echo no answer from $1; }\n",
        );
        for number in 0..nodes.len() {
            let pod = format!("web-{number}");
            // More than a packet, and more than a window.
            cluster.exec(ns, &pod, &["dd", "if=/dev/zero", "of=/www/big", "bs=1M", "count=8"])?;
            let address = address(cluster, ns, &pod)?;
            script += &format!("ask http://{address}/\nask http://{address}/big | wc -c\n");
        }
        for node in &nodes {
            script += &format!("ask http://{}:{port}/ | sed 's/-.*//'\n", node.address);
            // Whichever endpoint answers, also one on the node that asks: none may be lost on the way.
            script += &format!(
                "for i in $(seq 16); do timeout 60 wget -qO- http://{}:{port}/ >/dev/null || echo lost; done\n",
                node.address
            );
        }
        for name in ["web", &format!("web.{ns}.svc.cluster.local")] {
            script += &format!("ask http://{name}/ | sed 's/-.*//'\n");
        }
        let served: Vec<String> =
            (0..nodes.len()).flat_map(|number| [format!("web-{number}"), (8 << 20).to_string()]).collect();
        let by_service = vec!["web".to_owned(); nodes.len() + 2];
        let expected = [served, by_service].concat().join("\n");
        for (number, node) in nodes.iter().enumerate() {
            let seen = cluster.exec(ns, &format!("client-{number}"), &["sh", "-c", &script])?;
            ensure!(seen.trim() == expected, "from node {}:\n{seen}", node.name);
        }
        Ok(())
    })
}

pub(crate) fn streams_to_pods_of_every_node(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("reaching-streams", |ns| {
        let nodes = cluster.nodes()?;
        everywhere(cluster, ns, &nodes)?;
        for number in 0..nodes.len() {
            let pod = format!("web-{number}");
            ensure!(cluster.exec(ns, &pod, &["hostname"])?.trim() == pod);
            ensure!(forwarded(cluster, ns, &pod)?.contains(&pod), "port-forward to {pod}");
            // A server may write its log a moment after its answer.
            let logs = || cluster.k(&["logs", &pod, "-n", ns]);
            poll::text("the request in the log", PATIENCE, logs, |logs| logs.contains("GET / HTTP/1.1"))?;
        }
        Ok(())
    })
}

/// What a pod answers through a forwarded port.
fn forwarded(cluster: &Cluster, ns: &str, pod: &str) -> Result<String> {
    let mut command = cluster.kubectl(&["port-forward", "-n", ns, pod, ":80"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
    let asked = (|| {
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().context("it is piped")?).read_line(&mut line)?;
        // Forwarding from 127.0.0.1:PORT -> 80
        let address = line.split(' ').nth(2).with_context(|| format!("no port in {line:?}"))?;
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        write!(stream, "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })();
    child.kill()?;
    child.wait()?;
    asked
}
