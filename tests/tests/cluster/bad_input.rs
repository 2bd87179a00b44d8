//! What users get when they are wrong: which field, which value, what was expected; never a panic.

use std::time::Duration;

use anyhow::{Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::tools::fails;

const PATIENCE: Duration = Duration::from_secs(90);

fn refused(cluster: &Cluster, manifest: &str, wanted: &[&str]) -> Result<()> {
    let file = tempfile::NamedTempFile::new_in(cluster.scratch())?;
    std::fs::write(file.path(), manifest)?;
    let path = file.path().display().to_string();
    for text in [
        fails(&mut cluster.kubectl(&["apply", "-f", &path]))?,
        fails(&mut cluster.decapod(&["apply", "-f", &path]))?,
    ] {
        for word in wanted {
            ensure!(text.contains(word), "{word:?} is not in\n{text}");
        }
    }
    Ok(())
}

pub(crate) fn manifests(cluster: &Cluster) -> Result<()> {
    refused(cluster, "a: [1,\nb: 2", &["error parsing"])?;
    refused(
        cluster,
        "{apiVersion: v9, kind: Crab, metadata: {name: a}}",
        &["no matches for kind \"Crab\" in version \"v9\""],
    )?;
    refused(
        cluster,
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: Not_A_Name}}",
        &["metadata.name", "Not_A_Name", "RFC 1123"],
    )?;
    refused(
        cluster,
        "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: c, image: x, imag: y}]}}",
        &["unknown field \"spec.containers[0].imag\""],
    )?;
    refused(
        cluster,
        "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {restartPolicy: Sometimes, containers: [{name: c, image: x}]}}",
        &["spec.restartPolicy", "Unsupported value: \"Sometimes\"", "\"OnFailure\""],
    )?;
    refused(
        cluster,
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}, spec: {replicas: many, selector: {matchLabels: {a: b}}, template: {}}}",
        &["replicas"],
    )?;
    let text = fails(&mut cluster.kubectl(&["get", "podz"]))?;
    ensure!(text.contains("the server doesn't have a resource type \"podz\""), "{text}");
    Ok(())
}

pub(crate) fn a_missing_image(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("noimage", |ns| {
        cluster.apply(&format!("{{apiVersion: v1, kind: Pod, metadata: {{name: a, namespace: {ns}}}, spec: {{containers: [{{name: c, image: '127.0.0.1:1/nowhere:1'}}]}}}}"))?;
        let reason = || cluster.k(&["get", "pod", "a", "-n", ns, "-o", "jsonpath={.status.containerStatuses[0].state.waiting.reason} {.status.containerStatuses[0].state.waiting.message}"]);
        let text = poll::text("the pod to say why it waits", PATIENCE, reason, |t| t.starts_with("ErrImagePull") || t.starts_with("ImagePullBackOff"))?;
        ensure!(text.contains("nowhere:1") && text.contains("registry 127.0.0.1:1 cannot be reached"), "{text}");
        let events = || cluster.k(&["get", "events", "-n", ns]);
        poll::text("an event with the cause", PATIENCE, events, |t| t.contains("Failed to pull image \"127.0.0.1:1/nowhere:1\""))?;
        Ok(())
    })
}

pub(crate) fn an_unschedulable_pod(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("nowhere", |ns| {
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: a, namespace: {ns}}}, spec: {{containers: [{{name: c, image: 'busybox:1', resources: {{requests: {{cpu: '1000'}}}}}}]}}}}"
        ))?;
        let events = || cluster.k(&["get", "events", "-n", ns]);
        poll::text("the reason", PATIENCE, events, |t| t.contains("FailedScheduling") && t.contains("0/1 nodes are available: 1 Insufficient cpu"))?;
        Ok(())
    })
}

pub(crate) fn a_corrupt_archive(cluster: &Cluster) -> Result<()> {
    let file = cluster.scratch().join("corrupt.tar");
    std::fs::write(&file, b"this is no archive")?;
    let mut command = cluster.decapod(&["image", "import", "--name", "dcptest", "--data-dir"]);
    let text = fails(command.arg(cluster.data()).arg(&file))?;
    ensure!(text.contains("corrupt.tar"), "{text}");
    let mut command = cluster.decapod(&["image", "import", "--name", "dcptest", "--data-dir"]);
    let text = fails(command.arg(cluster.data()).arg(cluster.scratch().join("absent.tar")))?;
    ensure!(text.contains("absent.tar") && text.contains("No such file"), "{text}");
    Ok(())
}

pub(crate) fn nobody_is_let_in_without_credentials(cluster: &Cluster) -> Result<()> {
    let kubeconfig = cluster.scratch().join("nobody");
    std::fs::write(
        &kubeconfig,
        "{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: 'https://127.0.0.1:26443', insecure-skip-tls-verify: true}}], users: [{name: u, user: {token: nonsense}}], contexts: [{name: c, context: {cluster: c, user: u}}]}",
    )?;
    for path in ["/api/v1/pods", "/apis", "/metrics", "/openapi/v2"] {
        let text = fails(cluster.kubectl(&["get", "--raw", path]).env("KUBECONFIG", &kubeconfig))?;
        ensure!(text.contains("Unauthorized") || text.contains("must be logged in"), "{path}: {text}");
    }
    Ok(())
}

pub(crate) fn not_root(cluster: &Cluster) -> Result<()> {
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65534;
    let binary = cluster.scratch().join("decapod-for-all");
    std::fs::copy(decapod_tests::tools::program("decapod")?, &binary)?;
    std::fs::set_permissions(cluster.scratch(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let text = fails(
        std::process::Command::new(&binary).arg("up").uid(NOBODY).gid(NOBODY).env("HOME", "/nonexistent"),
    )?;
    ensure!(text.contains("must be run as root") && text.contains("sudo decapod up"), "{text}");
    Ok(())
}
