//! The clients that people write programs with: each script uses one library against the cluster, says what it
//! verified, and fails if anything is other than on Kubernetes.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::tools::{cache, root};

/// A script that takes longer hangs: its own waits are shorter.
const LIMIT: Duration = Duration::from_secs(180);

/// Pods that the scripts talk to: a web server, a shell that answers what it reads, and one that counts.
pub(crate) fn pods(cluster: &Cluster, namespace: &str) -> Result<()> {
    let pod = |name: &str, container: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}},
              spec: {{terminationGracePeriodSeconds: 0, containers: [{container}]}}}}"
        )
    };
    let manifests = [
        pod("web", "{name: c, image: 'nginx:1', ports: [{containerPort: 80}]}"),
        pod(
            "shell",
            "{name: c, image: 'busybox:1', stdin: true, command: [sh, -c, 'while read line; do echo \"read $line\"; done']}",
        ),
        pod(
            "counter",
            "{name: c, image: 'busybox:1', command: [sh, -c, 'i=0; while true; do echo line $i; i=$((i+1)); sleep 0.1; done']}",
        ),
    ];
    cluster.apply(&manifests.join("\n---\n"))?;
    for name in ["web", "shell", "counter"] {
        cluster.ready(namespace, name)?;
    }
    Ok(())
}

/// Runs a script; it has to say at least one thing that holds, and to end well.
fn script(cluster: &Cluster, command: &mut Command, namespace: &str) -> Result<()> {
    let started = Instant::now();
    let command = command.arg(namespace).env("KUBECONFIG", cluster.kubeconfig());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.as_mut().map_err(|e| anyhow::anyhow!("{command:?}: {e}"))?;
    let (mut out, mut err) = (child.stdout.take().context("piped")?, child.stderr.take().context("piped")?);
    let errors = std::thread::spawn(move || std::io::read_to_string(&mut err));
    let output = std::thread::spawn(move || std::io::read_to_string(&mut out));
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if started.elapsed() > LIMIT => {
                child.kill()?;
                child.wait()?;
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let said = |thread: std::thread::JoinHandle<std::io::Result<String>>| {
        thread.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?.context("reading a script's output")
    };
    let (output, errors) = (said(output)?, said(errors)?);
    println!("{output}");
    match status {
        None => bail!("{command:?} did not end within {LIMIT:?}:\n{output}{errors}"),
        Some(status) => ensure!(status.success(), "{command:?} failed ({status}):\n{output}{errors}"),
    }
    ensure!(output.contains("ok: "), "{command:?} verified nothing:\n{output}{errors}");
    Ok(())
}

fn python(name: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg(root().join("tests/clients/python").join(name)).env("PYTHONPATH", cache().join("python"));
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn javascript(name: &str) -> Command {
    let mut command = Command::new("node");
    command.arg(root().join("tests/clients/javascript").join(name));
    command.env("NODE_MODULES", cache().join("javascript/node_modules"));
    command
}

/// The Python client: typed, dynamic, watches, the election of a leader.
pub(crate) fn python_objects(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("python-objects", |ns| script(cluster, &mut python("objects.py"), ns))
}

/// The Python client's streams, and the conformance tests' plain WebSockets.
pub(crate) fn python_streams(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("python-streams", |ns| {
        pods(cluster, ns)?;
        script(cluster, &mut python("streams.py"), ns)?;
        script(cluster, &mut python("websockets.py"), ns)
    })
}

/// The JavaScript client: an informer, and its streams.
pub(crate) fn javascript_client(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("javascript", |ns| {
        pods(cluster, ns)?;
        script(cluster, &mut javascript("informer.mjs"), ns)?;
        script(cluster, &mut javascript("streams.mjs"), ns)
    })
}
