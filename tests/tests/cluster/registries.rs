//! Images from a registry that wants to know who asks: what pods, events and commands say of it.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::registry::{PASSWORD, Registry, USER};
use decapod_tests::tools::{fails, run};
use decapod_tests::{images, poll};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(120);

/// `decapod image …` on the test's cluster.
fn image(cluster: &Cluster, arguments: &[&str]) -> std::process::Command {
    let mut command = cluster.decapod(&["image", arguments[0], "--name", "dcptest", "--data-dir"]);
    command.arg(cluster.data()).args(&arguments[1..]);
    command
}

/// The same with the registry's user, whose password comes by standard input.
fn as_user(cluster: &Cluster, arguments: &[&str], password: &str) -> Result<(bool, String)> {
    let mut command = image(cluster, arguments);
    command.args(["--username", USER, "--password-stdin"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("it was piped")?.write_all(password.as_bytes())?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok((output.status.success(), text))
}

/// Busybox under a name of the registry: imported by standard input, pushed, and gone from the node again.
fn publish(cluster: &Cluster, name: &str) -> Result<()> {
    let folder = tempfile::tempdir_in(cluster.scratch())?;
    let renamed = folder.path().join("image.tar");
    images::renamed(&images::archive(&images::BUSYBOX)?, name, &renamed)?;
    let load = image(cluster, &["load"]).stdin(std::fs::File::open(&renamed)?).output()?;
    let said = String::from_utf8_lossy(&[load.stdout, load.stderr].concat()).into_owned();
    ensure!(load.status.success() && said.contains(name), "{said}");
    let refused = fails(&mut image(cluster, &["push", name]))?;
    ensure!(refused.contains("authentication required"), "{refused}");
    let (_, wrong) = as_user(cluster, &["push", name], "falsch")?;
    ensure!(wrong.contains("the credentials were refused"), "{wrong}");
    let (pushed, said) = as_user(cluster, &["push", name], PASSWORD)?;
    ensure!(pushed && said.contains("pushed") && said.contains("sha256:"), "{said}");
    run(&mut image(cluster, &["rm", name]))?;
    Ok(())
}

fn pod(ns: &str, name: &str, image: &str, policy: &str, secret: Option<&str>) -> String {
    let secrets: Vec<_> = secret.iter().map(|name| json!({ "name": name })).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": ns },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "imagePullSecrets": secrets,
            "containers": [{ "name": "c", "image": image, "imagePullPolicy": policy, "command": ["sleep", "1000"] }],
        },
    })
    .to_string()
}

/// Waits until a pod's container waits for a reason; its message.
fn waits(cluster: &Cluster, ns: &str, pod: &str, reason: &str) -> Result<String> {
    poll::until(&format!("pod {pod} to wait with {reason}"), PATIENCE, || {
        let object = cluster.get(&["pod", pod, "-n", ns])?;
        let waiting = object["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        let message = waiting["message"].as_str().unwrap_or_default().to_owned();
        Ok(if waiting["reason"] == reason { Ok(message) } else { Err(object["status"].to_string()) })
    })
}

fn secret(cluster: &Cluster, ns: &str, name: &str, registry: &Registry, password: &str) -> Result<String> {
    cluster.k(&[
        "create",
        "secret",
        "docker-registry",
        name,
        "-n",
        ns,
        &format!("--docker-server={}", registry.address()),
        &format!("--docker-username={USER}"),
        &format!("--docker-password={password}"),
    ])
}

/// Removes an image once no pod uses it: the objects are gone at once, for the pods have no grace; the node takes its
/// time to end them.
fn removed(cluster: &Cluster, name: &str) -> Result<()> {
    poll::until("the image to be removed", PATIENCE, || {
        let output = image(cluster, &["rm", name]).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(if output.status.success() { Ok(()) } else { Err(said) })
    })
}

/// A private image with the right Secret, the wrong one and none; errors that say what to do; an outage that ends.
pub(crate) fn pods_pull_with_secrets(cluster: &Cluster) -> Result<()> {
    let mut registry = Registry::start()?;
    let name = registry.name("team/app:1");
    publish(cluster, &name)?;
    cluster.in_namespace("pulls", |ns| {
        secret(cluster, ns, "right", &registry, PASSWORD)?;
        secret(cluster, ns, "wrong", &registry, "falsch")?;
        let absent = registry.name("team/absent:1");
        cluster.apply(&pod(ns, "without", &name, "IfNotPresent", None))?;
        cluster.apply(&pod(ns, "wrong", &name, "IfNotPresent", Some("wrong")))?;
        cluster.apply(&pod(ns, "absent", &absent, "Always", Some("right")))?;
        cluster.apply(&pod(ns, "never", &absent, "Never", None))?;
        cluster.apply(&pod(ns, "invalid", "Team/App:1", "IfNotPresent", None))?;
        let never = waits(cluster, ns, "never", "ErrImageNeverPull")?;
        ensure!(
            never == format!("Container image \"{absent}\" is not present with pull policy of Never"),
            "{never}"
        );
        waits(cluster, ns, "invalid", "InvalidImageName")?;
        let without = waits(cluster, ns, "without", "ImagePullBackOff")?;
        let expected = format!("Back-off pulling image \"{name}\": ErrImagePull: ");
        ensure!(without.starts_with(&expected) && without.contains("imagePullSecrets"), "{without}");
        let wrong = waits(cluster, ns, "wrong", "ImagePullBackOff")?;
        ensure!(wrong.contains("the credentials were refused"), "{wrong}");
        let missing = waits(cluster, ns, "absent", "ImagePullBackOff")?;
        ensure!(missing.contains("not found in registry"), "{missing}");

        cluster.apply(&pod(ns, "right", &name, "IfNotPresent", Some("right")))?;
        let ready = cluster.ready(ns, "right")?;
        let id = ready["status"]["containerStatuses"][0]["imageID"].as_str().unwrap_or_default().to_owned();
        ensure!(id.starts_with(&format!("{}@sha256:", name.trim_end_matches(":1"))), "{id}");
        let events = || cluster.k(&["get", "events", "-n", ns]);
        let pulled = format!("Successfully pulled image \"{name}\" in ");
        poll::text("the events of the pull", PATIENCE, events, |text| {
            text.contains(&format!("Pulling image \"{name}\""))
                && text.contains(&pulled)
                && text.contains("Image size: ")
        })?;
        poll::text("the events of failures", PATIENCE, events, |text| {
            [
                format!("Failed to pull image \"{name}\""),
                "Error: ErrImagePull".to_owned(),
                format!("Back-off pulling image \"{name}\""),
                "Error: ErrImageNeverPull".to_owned(),
            ]
            .iter()
            .all(|wanted| text.contains(wanted))
        })?;
        // It is here now, but for those who may have it.
        cluster.apply(&pod(ns, "curious", &name, "Never", None))?;
        waits(cluster, ns, "curious", "ErrImageNeverPull")?;
        cluster.apply(&pod(ns, "again", &name, "Never", Some("right")))?;
        cluster.ready(ns, "again")?;
        // By its digest, with the service account's Secret.
        cluster.k(&[
            "patch",
            "serviceaccount",
            "default",
            "-n",
            ns,
            "-p",
            r#"{"imagePullSecrets":[{"name":"right"}]}"#,
        ])?;
        cluster.apply(&pod(ns, "digest", &id, "IfNotPresent", None))?;
        cluster.ready(ns, "digest")?;
        let used = fails(&mut image(cluster, &["rm", &name]))?;
        ensure!(used.contains("in use by container c of pod pulls/"), "{used}");

        registry.stop()?;
        cluster.apply(&pod(ns, "outage", &name, "Always", Some("right")))?;
        let why = waits(cluster, ns, "outage", "ImagePullBackOff")?;
        ensure!(why.contains("cannot be reached") && why.contains("IfNotPresent"), "{why}");
        registry.restart()?;
        cluster.ready(ns, "outage")?;
        Ok(())
    })?;
    removed(cluster, &name)?;
    let (pulled, said) = as_user(cluster, &["pull", &name], PASSWORD)?;
    ensure!(pulled && said.contains("pulled"), "{said}");
    run(&mut image(cluster, &["rm", &name]))?;
    Ok(())
}

/// An image of a registry as a volume, asked for each time: its files as they are, a part of them by `subPath`, and
/// nothing that could be written.
pub(crate) fn images_are_volumes(cluster: &Cluster) -> Result<()> {
    let registry = Registry::start()?;
    let name = registry.name("team/files:1");
    publish(cluster, &name)?;
    cluster.in_namespace("image-volumes", |ns| {
        secret(cluster, ns, "right", &registry, PASSWORD)?;
        let script = "cmp /bin/busybox /files/bin/busybox && cmp /bin/busybox /part/busybox && echo same; \
            touch /files/x 2>/dev/null || echo refused; sleep 1000";
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "reader", "namespace": ns },
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "imagePullSecrets": [{ "name": "right" }],
                "containers": [{ "name": "c", "image": "busybox:1", "command": ["sh", "-c", script],
                    "volumeMounts": [
                        { "name": "files", "mountPath": "/files" },
                        { "name": "files", "mountPath": "/part", "subPath": "bin" },
                    ] }],
                "volumes": [{ "name": "files", "image": { "reference": name, "pullPolicy": "Always" } }],
            },
        });
        cluster.apply(&pod.to_string())?;
        let logs =
            || Ok(cluster.k(&["logs", "reader", "-n", ns]).unwrap_or_else(|error| format!("{error:#}")));
        poll::text("what the pod sees", PATIENCE, logs, |said| said == "same\nrefused\n").map(drop)
    })?;
    removed(cluster, &name)
}
