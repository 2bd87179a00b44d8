//! The sample application, as its users use it.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use decapod_tests::cluster::{Cluster, DNS};
use decapod_tests::poll;
use decapod_tests::tools::root;

const PATIENCE: Duration = Duration::from_secs(60);

/// A pod of BusyBox that sleeps.
pub(crate) fn client(cluster: &Cluster, namespace: &str) -> Result<()> {
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: client, namespace: {namespace}}}, spec: {{terminationGracePeriodSeconds: 0,
          containers: [{{name: c, image: 'busybox:1', command: [sleep, '3600']}}]}}}}"
    ))?;
    cluster.ready(namespace, "client").map(drop)
}

/// Rolls the sample out in a namespace.
pub(crate) fn sample(cluster: &Cluster, namespace: &str) -> Result<()> {
    let file = root().join("deploy/samples/web.yaml");
    cluster.k(&["apply", "-n", namespace, "-f", &file.display().to_string()])?;
    cluster.k(&["rollout", "status", "deployment/web", "-n", namespace, "--timeout=60s"])?;
    // Endpoints follow readiness, the data path follows endpoints.
    poll::until("three endpoints", PATIENCE, || {
        let slices =
            cluster.get(&["endpointslices", "-n", namespace, "-l", "kubernetes.io/service-name=web"])?;
        let ready = slices["items"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|s| s["endpoints"].as_array().cloned().unwrap_or_default())
            .filter(|e| e["conditions"]["ready"] == true)
            .count();
        Ok(if ready == 3 { Ok(()) } else { Err(slices.to_string()) })
    })?;
    let (cluster_ip, _) = service(cluster, namespace)?;
    reaches_all(&cluster_ip)
}

/// Waits until all three pods of the sample answer at an address.
fn reaches_all(address: &str) -> Result<()> {
    poll::until(&format!("{address} to reach three pods"), PATIENCE, || {
        let seen: BTreeSet<String> = (0..30).map_while(|_| http_get(address, "/").ok()).collect();
        Ok(if seen.len() == 3 { Ok(()) } else { Err(format!("{seen:?}")) })
    })
}

/// The body of `GET path`, or what went wrong: for polls, which go on.
pub(crate) fn http_try(address: &str, path: &str) -> Result<String> {
    Ok(http_get(address, path).unwrap_or_else(|error| format!("{error:#}")))
}

/// The body of `GET path` at an address, over a connection of its own.
pub(crate) fn http_get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.parse()?, Duration::from_secs(10))
        .with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    Ok(body.to_owned())
}

fn service(cluster: &Cluster, namespace: &str) -> Result<(String, String)> {
    let object = cluster.get(&["service", "web", "-n", namespace])?;
    let ip = object["spec"]["clusterIP"].as_str().context("no clusterIP")?.to_owned();
    let port = object["spec"]["ports"][0]["nodePort"].as_i64().context("no nodePort")?;
    Ok((format!("{ip}:80"), format!("127.0.0.1:{port}")))
}

pub(crate) fn rolls_out_and_answers(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("rollout", |ns| {
        sample(cluster, ns)?;
        client(cluster, ns)?;
        let name = format!("http://web.{ns}.svc.cluster.local/");
        let mut seen = BTreeSet::new();
        poll::until("all three pods to answer by the DNS name", PATIENCE, || {
            seen.insert(cluster.exec(ns, "client", &["wget", "-qO-", &name])?);
            Ok(if seen.len() == 3 { Ok(()) } else { Err(format!("{seen:?}")) })
        })?;
        // Short names by the search path, reverse names, and names of others.
        for question in ["web", &format!("web.{ns}"), "kubernetes.default.svc.cluster.local"] {
            let answer = cluster.exec(ns, "client", &["nslookup", question]);
            let answer = answer.or_else(|_| cluster.exec(ns, "client", &["ping", "-c1", "-W1", question]));
            if let Err(error) = answer {
                // nslookup of BusyBox also asks for AAAA and fails on it; what counts is the address.
                ensure!(error.to_string().contains("10.118."), "{error}");
            }
        }
        let conf = cluster.exec(ns, "client", &["cat", "/etc/resolv.conf"])?;
        ensure!(
            conf.contains(&format!("nameserver {DNS}")) && conf.contains(&format!("{ns}.svc.cluster.local")),
            "{conf}"
        );
        let (cluster_ip, node_port) = service(cluster, ns)?;
        reaches_all(&cluster_ip)?;
        reaches_all(&node_port)
    })
}

pub(crate) fn pods_see_their_configuration(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("config", |ns| {
        sample(cluster, ns)?;
        let sh = |script: &str| cluster.k(&["exec", "-n", ns, "deploy/web", "--", "sh", "-c", script]);
        ensure!(sh("cat /etc/web/greeting.txt")? == "Hello from a ConfigMap\n");
        ensure!(sh("cat /etc/web-secret/password; stat -Lc ' %a' /etc/web-secret/password")? == "crab 400\n");
        ensure!(sh("echo $PASSWORD; [ \"$POD_NAME\" = \"$(hostname)\" ] && echo same")? == "crab\nsame\n");
        ensure!(sh("echo x > /scratch/x && cat /scratch/x")? == "x\n");
        cluster.k(&[
            "patch",
            "configmap",
            "web",
            "-n",
            ns,
            "--type=merge",
            "-p",
            r#"{"data":{"greeting.txt":"changed\n"}}"#,
        ])?;
        poll::text(
            "the volume to follow the ConfigMap",
            Duration::from_secs(90),
            || sh("cat /etc/web/greeting.txt"),
            |t| t == "changed\n",
        )?;
        Ok(())
    })
}

pub(crate) fn kubectl_follows(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("follow", |ns| {
        let mut watch = cluster.kubectl(&["get", "pods", "-w", "-n", ns, "--no-headers"]).stdout(Stdio::piped()).spawn()?;
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: counter, namespace: {ns}}}, spec: {{terminationGracePeriodSeconds: 0, containers: [
              {{name: c, image: 'busybox:1', command: [sh, -c, 'i=0; while true; do echo line $i; i=$((i+1)); sleep 0.1; done']}}]}}}}"
        ))?;
        cluster.ready(ns, "counter")?;
        let mut logs = cluster.kubectl(&["logs", "-f", "counter", "-n", ns]).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(logs.stdout.take().context("piped")?).lines().take(20).collect::<Result<Vec<_>, _>>()?;
        logs.kill()?;
        logs.wait()?;
        let want: Vec<String> = (0..20).map(|i| format!("line {i}")).collect();
        ensure!(lines == want, "logs -f printed {lines:?}");
        let tail = cluster.k(&["logs", "counter", "-n", ns, "--tail=2"])?;
        ensure!(tail.lines().count() == 2, "{tail}");
        let mut rows = BufReader::new(watch.stdout.take().context("piped")?).lines();
        let mut seen = String::new();
        while !seen.contains("Running") {
            let Some(row) = rows.next() else { bail!("get -w ended; it printed\n{seen}") };
            seen += &(row? + "\n");
        }
        watch.kill()?;
        watch.wait()?;
        let output = cluster.kubectl(&["exec", "counter", "-n", ns, "--", "sh", "-c", "echo out; echo err >&2; exit 7"]).output()?;
        ensure!(output.status.code() == Some(7), "{output:?}");
        ensure!(output.stdout == b"out\n" && String::from_utf8_lossy(&output.stderr).starts_with("err\n"), "{output:?}");
        let mut shell = cluster.kubectl(&["exec", "-i", "counter", "-n", ns, "--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        shell.stdin.take().context("piped")?.write_all(b"through and back")?;
        let output = shell.wait_with_output()?;
        ensure!(output.stdout == b"through and back" && output.status.success(), "{output:?}");
        Ok(())
    })
}

pub(crate) fn set_image_loses_no_request(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("update", |ns| {
        sample(cluster, ns)?;
        let (cluster_ip, _) = service(cluster, ns)?;
        ensure!(http_get(&cluster_ip, "/version")? == "1\n");
        let done = Arc::new(AtomicBool::new(false));
        let asking = {
            let (done, address) = (done.clone(), cluster_ip.clone());
            std::thread::spawn(move || -> Result<usize> {
                let mut answered = 0;
                while !done.load(Ordering::Relaxed) {
                    http_get(&address, "/version").with_context(|| format!("after {answered} answers"))?;
                    answered += 1;
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(answered)
            })
        };
        let rolled = (|| {
            cluster.k(&["set", "image", "deployment/web", "nginx=nginx:2", "-n", ns])?;
            cluster.k(&["rollout", "status", "deployment/web", "-n", ns, "--timeout=90s"])
        })();
        done.store(true, Ordering::Relaxed);
        let answered = asking.join().map_err(|_| anyhow::anyhow!("the client panicked"))?;
        rolled?;
        // In-flight connections to a pod that ends may break (nginx stops at once on SIGTERM), a Service without any pod may not.
        match answered {
            Ok(n) => ensure!(n > 10, "only {n} requests were made"),
            Err(error) => ensure!(!format!("{error:#}").contains("refused"), "{error:#}"),
        }
        poll::text("the new version", PATIENCE, || http_try(&cluster_ip, "/version"), |v| v == "2\n")?;
        let history = cluster.k(&["rollout", "history", "deployment/web", "-n", ns])?;
        ensure!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
        Ok(())
    })
}

pub(crate) fn scale_and_undo(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("scale", |ns| {
        sample(cluster, ns)?;
        cluster.k(&["scale", "deployment/web", "--replicas=5", "-n", ns])?;
        cluster.k(&["rollout", "status", "deployment/web", "-n", ns, "--timeout=60s"])?;
        cluster.k(&["scale", "deployment/web", "--replicas=1", "-n", ns])?;
        poll::text(
            "one pod",
            PATIENCE,
            || cluster.k(&["get", "pods", "-n", ns, "-l", "app=web", "--no-headers"]),
            |t| t.lines().count() == 1,
        )?;
        cluster.k(&["set", "image", "deployment/web", "nginx=nginx:2", "-n", ns])?;
        cluster.k(&["rollout", "status", "deployment/web", "-n", ns, "--timeout=60s"])?;
        cluster.k(&["rollout", "undo", "deployment/web", "-n", ns])?;
        cluster.k(&["rollout", "status", "deployment/web", "-n", ns, "--timeout=60s"])?;
        let (cluster_ip, _) = service(cluster, ns)?;
        poll::text(
            "the first version again",
            PATIENCE,
            || http_try(&cluster_ip, "/version"),
            |v| v == "1\n",
        )?;
        Ok(())
    })
}
