//! Our own command line, verb by verb.

use std::time::Duration;

use anyhow::{Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::tools::{fails, root, run};

const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) fn the_verbs_of_decapod(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("verbs", |ns| {
        let d = |arguments: &[&str]| run(cluster.decapod(arguments).args(["-n", ns]));
        let file = root().join("deploy/samples/web.yaml").display().to_string();
        let applied = d(&["apply", "-f", &file])?;
        ensure!(
            applied.contains("deployment.apps/web created") && applied.contains("service/web created"),
            "{applied}"
        );
        let rolled = d(&["rollout", "status", "deployment/web", "--timeout", "60s"])?;
        ensure!(rolled.contains("successfully rolled out"), "{rolled}");
        let applied = d(&["apply", "-f", &file])?;
        // What is write-only, as a Secret's stringData, cannot be compared: kubectl says "configured" too.
        ensure!(applied.lines().all(|l| l.ends_with("unchanged") || l.starts_with("secret/")), "{applied}");
        let table = d(&["get", "deploy,svc"])?;
        ensure!(table.contains("deployment.apps/web   3/3") && table.contains("NodePort"), "{table}");
        ensure!(d(&["get", "deploy", "web", "-o", "name"])? == "deployment.apps/web\n");
        let yaml = d(&["get", "deploy", "web", "-o", "yaml"])?;
        ensure!(yaml.contains("kind: Deployment"), "{yaml}");
        let described = d(&["describe", "deployment/web"])?;
        ensure!(described.contains("Name:") && described.contains("ScalingReplicaSet"), "{described}");
        d(&["scale", "deployment/web", "--replicas", "1"])?;
        d(&["rollout", "status", "deployment/web", "--timeout", "60s"])?;
        let greeting = run(&mut cluster.decapod(&[
            "exec",
            "deploy/web",
            "-n",
            ns,
            "--",
            "cat",
            "/etc/web/greeting.txt",
        ]))?;
        ensure!(greeting == "Hello from a ConfigMap\n", "{greeting}");
        let code = cluster
            .decapod(&["exec", "deploy/web", "-n", ns, "--", "sh", "-c", "exit 5"])
            .output()?
            .status
            .code();
        ensure!(code == Some(5), "{code:?}");
        let logs = d(&["logs", "deploy/web", "--tail", "5"])?;
        ensure!(logs.contains("/healthz"), "{logs}");
        let unknown = fails(cluster.decapod(&["get", "podz", "-n", ns]).arg("--no-headers"))?;
        ensure!(unknown.contains("doesn't have a resource type \"podz\""), "{unknown}");
        let missing = fails(cluster.decapod(&["get", "pod", "nobody", "-n", ns]).arg("--no-headers"))?;
        ensure!(missing.contains("pods \"nobody\" not found"), "{missing}");
        let deleted = d(&["delete", "-f", &file])?;
        ensure!(deleted.contains("deployment.apps \"web\" deleted"), "{deleted}");
        Ok(())
    })
}

pub(crate) fn an_image_is_built_and_runs(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("build", |ns| {
        let context = cluster.scratch().join("context");
        std::fs::create_dir_all(&context)?;
        std::fs::write(context.join("greeting"), "hello from the context\n")?;
        std::fs::write(
            context.join("Dockerfile"),
            "FROM busybox:1 AS made\nRUN echo from the build && echo made > /made\n\
             FROM busybox:1\nCOPY --from=made /made /app/\nCOPY greeting /app/\nWORKDIR /app\n\
             CMD [\"-c\", \"cat made greeting\"]\n",
        )?;
        let image = |verb: &str, rest: &[&str]| {
            let mut command = cluster.decapod(&["image", verb, "--name", "dcptest", "--data-dir"]);
            command.arg(cluster.data()).args(rest);
            command
        };
        let folder = context.display().to_string();
        let first = run(&mut image("build", &["-t", "built:1", &folder]))?;
        ensure!(first.contains("\nfrom the build\n") && first.contains("built built:1"), "{first}");
        let again = run(&mut image("build", &["-t", "built:1", &folder]))?;
        ensure!(again.matches("CACHED").count() == 4 && !again.contains("\nfrom the build\n"), "{again}");
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: built, namespace: {ns}}}, spec: {{restartPolicy: Never, \
             containers: [{{name: c, image: 'built:1', imagePullPolicy: Never}}]}}}}"
        ))?;
        let done = "--for=jsonpath={.status.phase}=Succeeded";
        cluster.k(&["wait", done, "pod/built", "-n", ns, "--timeout", "180s"])?;
        let log = cluster.k(&["logs", "built", "-n", ns])?;
        ensure!(log == "made\nhello from the context\n", "{log}");
        std::fs::write(context.join("Dockerfile"), "FROM busybox:1\nRUN exit 7\n")?;
        let failed = fails(&mut image("build", &["-t", "bad:1", &folder]))?;
        ensure!(failed.contains("Dockerfile:2: RUN: the command ended with exit code 7"), "{failed}");
        cluster.k(&["delete", "pod", "built", "-n", ns, "--now"])?;
        // The node takes the container away a moment after the pod is gone.
        poll::until("the image to go", PATIENCE, || {
            Ok(run(&mut image("rm", &["built:1"])).map(drop).map_err(|error| format!("{error:#}")))
        })
    })
}
