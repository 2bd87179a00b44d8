//! `[sig-cli]`; the guestbook is in `guestbook.rs`, what streams is in `streams.rs`.

use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{PATIENCE, Scene, deployment, pod, scene, template};
use crate::streams::{Running, get};

pub(super) const TESTS: &[Test<Cluster>] = &[
    (
        "[sig-cli] Kubectl client Kubectl api-versions should check if v1 is in available api versions",
        api_versions,
    ),
    (
        "[sig-cli] Kubectl client Kubectl cluster-info should check if Kubernetes control plane services is included in cluster-info",
        cluster_info,
    ),
    (
        "[sig-cli] Kubectl client Kubectl describe should check if kubectl describe prints relevant information for rc and pods",
        describe,
    ),
    (
        "[sig-cli] Kubectl client Kubectl diff should check if kubectl diff finds a difference for Deployments",
        diff,
    ),
    ("[sig-cli] Kubectl client Kubectl expose should create services for rc", expose),
    ("[sig-cli] Kubectl client Kubectl label should update the label on a resource", label),
    ("[sig-cli] Kubectl client Kubectl patch should add annotations for pods in rc", annotate),
    ("[sig-cli] Kubectl client Kubectl replace should update a single-container pod's image", replace),
    (
        "[sig-cli] Kubectl client Kubectl run pod should create a pod from an image when restart is Never",
        run_pod,
    ),
    (
        "[sig-cli] Kubectl client Kubectl server-side dry-run should check if kubectl can dry-run update Pods",
        dry_run,
    ),
    ("[sig-cli] Kubectl client Kubectl version should check is all data is printed", version),
    ("[sig-cli] Kubectl client Proxy server should support --unix-socket=/path", proxy_at_a_socket),
    ("[sig-cli] Kubectl client Proxy server should support proxy with --port 0", proxy_at_any_port),
    ("[sig-cli] Kubectl client Update Demo should create and stop a replication controller", start_and_stop),
    ("[sig-cli] Kubectl client Update Demo should scale a replication controller", resize),
    ("[sig-cli] Kubectl logs logs should be able to retrieve and filter logs", logs),
];

fn api_versions(cluster: &Cluster) -> Result<()> {
    let versions = cluster.k(&["api-versions"])?;
    ensure!(versions.lines().any(|line| line == "v1"), "{versions}");
    Ok(())
}

fn cluster_info(cluster: &Cluster) -> Result<()> {
    let info = cluster.k(&["cluster-info"])?;
    ensure!(info.contains("Kubernetes control plane") && info.contains("is running at"), "{info}");
    Ok(())
}

/// A ReplicationController of pods that sleep.
fn controller(name: &str, replicas: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"replicas": replicas, "selector": {"app": name}, "template": template(name)}})
}

/// Waits until exactly so many pods of a controller run and none is going.
fn running(scene: &Scene<'_>, replicas: usize) -> Result<Vec<Value>> {
    scene.until_list("pods", &format!("{replicas} pods that run"), |pods| {
        let runs = |pod: &Value| {
            let ready = pod["status"]["containerStatuses"][0]["state"]["running"].is_object();
            ready && pod["metadata"]["deletionTimestamp"].is_null()
        };
        pods.len() == replicas && pods.iter().all(runs)
    })
}

/// Each of the lines' beginnings and words is in one line of the text.
fn says(text: &str, wanted: &[(&str, &str)]) -> Result<()> {
    for (key, value) in wanted {
        let found = text.lines().any(|line| line.trim_start().starts_with(key) && line.contains(value));
        ensure!(found, "no line {key} … {value} in\n{text}");
    }
    Ok(())
}

fn describe(cluster: &Cluster) -> Result<()> {
    scene(cluster, "describe", |scene| {
        scene.create(&controller("primary", 1))?;
        scene.k(&["expose", "rc/primary", "--port=6379", "--name=primary"])?;
        let pods = running(scene, 1)?;
        let name = pods[0]["metadata"]["name"].as_str().context("no name")?;
        let node = pods[0]["spec"]["nodeName"].as_str().context("no node")?;
        leads_to(scene, "primary", &pods[0]["status"]["podIP"], 6379)?;
        scene.until("rc/primary", "its status", |primary| primary["status"]["readyReplicas"] == 1)?;
        let of_pod = scene.k(&["describe", "pod", name])?;
        says(
            &of_pod,
            &[
                ("Name:", name),
                ("Namespace:", scene.namespace),
                ("Node:", node),
                ("Labels:", "app=primary"),
                ("Status:", "Running"),
                ("IP:", pods[0]["status"]["podIP"].as_str().context("no address")?),
                ("Controlled By:", "ReplicationController/primary"),
                ("Image:", "busybox:1"),
                ("State:", "Running"),
                ("QoS Class:", "BestEffort"),
            ],
        )?;
        says(
            &scene.k(&["describe", "rc", "primary"])?,
            &[
                ("Name:", "primary"),
                ("Namespace:", scene.namespace),
                ("Selector:", "app=primary"),
                ("Labels:", "app=primary"),
                ("Annotations:", "<none>"),
                ("Replicas:", "1 current / 1 desired"),
                ("Pods Status:", "1 Running / 0 Waiting / 0 Succeeded / 0 Failed"),
                ("Image:", "busybox:1"),
                ("Events:", ""),
            ],
        )?;
        says(
            &scene.k(&["describe", "service", "primary"])?,
            &[
                ("Name:", "primary"),
                ("Selector:", "app=primary"),
                ("Type:", "ClusterIP"),
                ("IP:", "10."),
                ("Port:", "6379/TCP"),
                ("Endpoints:", ":6379"),
                ("Session Affinity:", "None"),
            ],
        )?;
        says(
            &scene.k(&["describe", "node", node])?,
            &[
                ("Name:", node),
                ("Labels:", "="),
                ("CreationTimestamp:", ""),
                ("Conditions:", ""),
                ("Ready", "True"),
                ("Addresses:", ""),
                ("Capacity:", ""),
                ("Kubelet Version:", "v1."),
            ],
        )?;
        let of_namespace = scene.k(&["describe", "namespace", scene.namespace])?;
        says(&of_namespace, &[("Name:", scene.namespace), ("Labels:", ""), ("Status:", "Active")])
    })
}

fn diff(cluster: &Cluster) -> Result<()> {
    scene(cluster, "diff", |scene| {
        let mut wanted = deployment("web", 1, json!({}));
        scene.create(&wanted)?;
        wanted["spec"]["template"]["spec"]["containers"][0]["image"] = json!("nginx:1");
        let file = tempfile::NamedTempFile::new_in(cluster.scratch())?;
        std::fs::write(file.path(), wanted.to_string())?;
        let path = file.path().display().to_string();
        let output = cluster.kubectl(&["-n", scene.namespace, "diff", "-f", &path]).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.code() == Some(1), "{output:?}");
        says(&text, &[("-", "image: busybox:1"), ("+", "image: nginx:1")])
    })
}

/// Waits until the Endpoints of a Service are the pod's address at this port.
fn leads_to(scene: &Scene<'_>, service: &str, address: &Value, port: u16) -> Result<()> {
    let wanted = json!({"addresses": [address], "ports": [port]});
    poll::until(&format!("{service} to lead to {wanted}"), PATIENCE, || {
        let selector = format!("kubernetes.io/service-name={service}");
        let slices = scene.list(&["endpointslices", "-l", &selector])?;
        let one = slices.first().map(|slice| {
            json!({"addresses": slice["endpoints"][0]["addresses"], "ports": [slice["ports"][0]["port"]]})
        });
        Ok(if one.as_ref() == Some(&wanted) { Ok(()) } else { Err(format!("{slices:?}")) })
    })
}

fn expose(cluster: &Cluster) -> Result<()> {
    scene(cluster, "expose", |scene| {
        scene.create(&controller("primary", 1))?;
        let address = running(scene, 1)?[0]["status"]["podIP"].clone();
        for (object, name, port) in [("rc/primary", "rm2", "1234"), ("service/rm2", "rm3", "2345")] {
            let port = format!("--port={port}");
            scene.k(&["expose", object, &format!("--name={name}"), &port, "--target-port=6379"])?;
            let made = &scene.get(&[&format!("service/{name}")])?["spec"]["ports"][0];
            ensure!(format!("--port={}", made["port"]) == port && made["targetPort"] == 6379, "{made:#}");
            leads_to(scene, name, &address, 6379)?;
        }
        Ok(())
    })
}

fn label(cluster: &Cluster) -> Result<()> {
    scene(cluster, "label", |scene| {
        scene.create(&pod("pause", "pause"))?;
        cluster.ready(scene.namespace, "pause")?;
        let selected = || scene.k(&["get", "pods", "-l", "testing=value", "-o", "name"]);
        scene.k(&["label", "pod", "pause", "testing=value"])?;
        let shown = scene.k(&["get", "pod", "pause", "-L", "testing", "--no-headers"])?;
        ensure!(shown.trim_end().ends_with("value") && selected()? == "pod/pause\n", "{shown}");
        scene.k(&["label", "pod", "pause", "testing-"])?;
        let shown = scene.k(&["get", "pod", "pause", "-L", "testing", "--no-headers"])?;
        ensure!(!shown.contains("value") && selected()?.is_empty(), "{shown}");
        Ok(())
    })
}

fn annotate(cluster: &Cluster) -> Result<()> {
    scene(cluster, "annotate", |scene| {
        scene.create(&controller("primary", 2))?;
        for pod in running(scene, 2)? {
            let name = pod["metadata"]["name"].as_str().context("no name")?;
            scene.k(&["patch", "pod", name, "-p", r#"{"metadata":{"annotations":{"x":"y"}}}"#])?;
        }
        for pod in scene.list(&["pods"])? {
            ensure!(pod["metadata"]["annotations"]["x"] == "y", "{pod:#}");
        }
        Ok(())
    })
}

fn replace(cluster: &Cluster) -> Result<()> {
    scene(cluster, "replace", |scene| {
        scene.k(&["run", "web", "--image=nginx:1", "--labels=run=web"])?;
        cluster.ready(scene.namespace, "web")?;
        let with = |image: &str| -> Result<Value> {
            let mut object = scene.get(&["pod/web"])?;
            object["spec"]["containers"][0]["image"] = json!(image);
            // The kubelet writes the status meanwhile.
            object["metadata"]["resourceVersion"].take();
            Ok(object)
        };
        let runs = |image: &str| {
            scene.until("pod/web", &format!("{image} to run"), |pod| {
                let status = &pod["status"]["containerStatuses"][0];
                let named = status["image"].as_str().is_some_and(|name| name.ends_with(image));
                pod["spec"]["containers"][0]["image"] == image && named && status["ready"] == true
            })
        };
        let before = runs("nginx:1")?;
        scene.send(&["replace"], &with("nginx:2")?)?;
        let after = runs("nginx:2")?;
        ensure!(before["metadata"]["uid"] == after["metadata"]["uid"], "{after:#}");
        let mut again = pod("web", "web");
        again["spec"]["containers"] = json!([{"name": "web", "image": "nginx:1"}]);
        let file = tempfile::NamedTempFile::new_in(cluster.scratch())?;
        std::fs::write(file.path(), again.to_string())?;
        scene.k(&["replace", "--force", "-f", &file.path().display().to_string()])?;
        let anew = runs("nginx:1")?;
        ensure!(after["metadata"]["uid"] != anew["metadata"]["uid"], "{anew:#}");
        Ok(())
    })
}

fn run_pod(cluster: &Cluster) -> Result<()> {
    scene(cluster, "run", |scene| {
        scene.k(&["run", "web", "--restart=Never", "--image=nginx:1"])?;
        let pod = cluster.ready(scene.namespace, "web")?;
        let containers = pod["spec"]["containers"].as_array().context("no containers")?;
        ensure!(containers.len() == 1 && containers[0]["image"] == "nginx:1", "{pod:#}");
        ensure!(pod["spec"]["restartPolicy"] == "Never", "{pod:#}");
        Ok(())
    })
}

fn dry_run(cluster: &Cluster) -> Result<()> {
    scene(cluster, "dry-run", |scene| {
        scene.k(&["run", "web", "--image=nginx:1", "--labels=run=web"])?;
        cluster.ready(scene.namespace, "web")?;
        let patch = r#"{"spec":{"containers":[{"name": "web","image": "busybox:1"}]}}"#;
        let told = scene.k(&["patch", "pod", "web", "-p", patch, "--dry-run=server", "-o", "json"])?;
        let told: Value = serde_json::from_str(&told)?;
        ensure!(told["spec"]["containers"][0]["image"] == "busybox:1", "{told:#}");
        let kept = scene.get(&["pod/web"])?;
        ensure!(kept["spec"]["containers"][0]["image"] == "nginx:1", "{kept:#}");
        Ok(())
    })
}

fn version(cluster: &Cluster) -> Result<()> {
    let told: Value = serde_json::from_str(&cluster.k(&["version", "-o", "json"])?)?;
    for side in ["clientVersion", "serverVersion"] {
        for part in ["major", "minor", "gitVersion", "goVersion", "platform", "compiler"] {
            let text = told[side][part].as_str().unwrap_or_default();
            ensure!(!text.is_empty(), "no {side}.{part}: {told:#}");
        }
        // A server that was not built from a repository does not know these; they are told all the same.
        for part in ["gitCommit", "gitTreeState", "buildDate"] {
            ensure!(told[side][part].is_string(), "no {side}.{part}: {told:#}");
        }
    }
    let plain = cluster.k(&["version"])?;
    says(&plain, &[("Client Version:", "v1."), ("Server Version:", "v1.")])
}

fn proxy_at_a_socket(cluster: &Cluster) -> Result<()> {
    let socket = cluster.scratch().join("conformance.sock");
    let flag = format!("--unix-socket={}", socket.display());
    let mut proxy = Running::start(&mut cluster.kubectl(&["proxy", &flag]))?;
    proxy.line("Starting to serve on")?;
    let versions: Value = serde_json::from_str(&get(UnixStream::connect(&socket)?, "/api")?)?;
    ensure!(versions["versions"] == json!(["v1"]), "{versions:#}");
    Ok(())
}

fn proxy_at_any_port(cluster: &Cluster) -> Result<()> {
    let mut proxy = Running::start(&mut cluster.kubectl(&["proxy", "--port=0", "--disable-filter"]))?;
    let address = format!("127.0.0.1:{}", proxy.port()?);
    let versions: Value = serde_json::from_str(&get(TcpStream::connect(&address)?, "/api/")?)?;
    ensure!(versions["versions"] == json!(["v1"]), "{versions:#}");
    Ok(())
}

fn start_and_stop(cluster: &Cluster) -> Result<()> {
    scene(cluster, "demo", |scene| {
        scene.create(&controller("demo", 2))?;
        running(scene, 2)?;
        scene.k(&["delete", "rc/demo"])?;
        scene.until_list("pods", "no pod", <[Value]>::is_empty).map(drop)
    })
}

fn resize(cluster: &Cluster) -> Result<()> {
    scene(cluster, "demo-scale", |scene| {
        scene.create(&controller("demo", 2))?;
        running(scene, 2)?;
        for replicas in [1, 2] {
            scene.k(&["scale", "rc", "demo", &format!("--replicas={replicas}"), "--timeout=5m"])?;
            running(scene, replicas)?;
        }
        Ok(())
    })
}

fn logs(cluster: &Cluster) -> Result<()> {
    scene(cluster, "logs", |scene| {
        let mut wordy = pod("wordy", "wordy");
        wordy["spec"]["containers"][0]["command"] =
            json!(["sh", "-c", "for i in 1 2 3 4 5; do echo line $i; done; sleep 3600"]);
        scene.create(&wordy)?;
        cluster.ready(scene.namespace, "wordy")?;
        let logs = |flag: &[&str]| scene.k(&[&["logs", "wordy"], flag].concat());
        poll::text("the last line", PATIENCE, || logs(&["--tail=1"]), |text| text == "line 5\n")?;
        ensure!(logs(&[])? == "line 1\nline 2\nline 3\nline 4\nline 5\n");
        ensure!(logs(&["--limit-bytes=1"])? == "l");
        let stamped = logs(&["--tail=1", "--timestamps"])?;
        let (time, line) = stamped.split_once(' ').context("no time")?;
        let looks = |byte: (usize, u8)| match byte.0 {
            4 | 7 => byte.1 == b'-',
            10 => byte.1 == b'T',
            13 | 16 => byte.1 == b':',
            19 => byte.1 == b'.',
            _ => byte.1.is_ascii_digit(),
        };
        let whole = time.strip_suffix('Z').context("not in UTC")?;
        ensure!(line == "line 5\n" && whole.bytes().enumerate().all(looks), "{stamped}");
        // The lines grow older than a second, and stay younger than a day.
        poll::text("old lines", PATIENCE, || logs(&["--since=1s"]), str::is_empty)?;
        ensure!(logs(&["--since=24h"])?.lines().count() == 5);
        Ok(())
    })
}
