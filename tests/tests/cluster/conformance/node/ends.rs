//! How containers begin and end: init containers, restarts, messages, hooks, deadlines, debugging.

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{condition, container, phase, pod, sh, stage};
use crate::conformance::PATIENCE;

pub(super) const TESTS: &[Test<Cluster>] = &[
    (
        "[sig-node] Container Runtime blackbox test on terminated container should report termination message as empty when pod succeeds and TerminationMessagePolicy FallbackToLogsOnError is set",
        |c| message(c, "empty", ""),
    ),
    (
        "[sig-node] Container Runtime blackbox test on terminated container should report termination message from file when pod succeeds and TerminationMessagePolicy FallbackToLogsOnError is set",
        |c| message(c, "file", "OK"),
    ),
    (
        "[sig-node] Container Runtime blackbox test on terminated container should report termination message from log output if TerminationMessagePolicy FallbackToLogsOnError is set",
        |c| message(c, "log", "DONE"),
    ),
    (
        "[sig-node] Container Runtime blackbox test on terminated container should report termination message if TerminationMessagePath is set as non-root user and at a non-default path",
        |c| message(c, "non-root", "DONE"),
    ),
    (
        "[sig-node] Container Runtime blackbox test when starting a container that exits should run with the expected status",
        statuses,
    ),
    (
        "[sig-node] Kubelet when scheduling a busybox command that always fails in a pod should have an terminated reason",
        |c| {
            let pod = stage(c)?.ended("exits-never")?;
            let state = &container(&pod, "c")["state"]["terminated"];
            ensure!(state["reason"] == "Error" && state["exitCode"] == 1, "{state}");
            Ok(())
        },
    ),
    (
        "[sig-node] Kubelet when scheduling a busybox command that always fails in a pod should be possible to delete",
        |c| {
            let scene = stage(c)?;
            scene.ended("exits-never")?;
            scene.k(&["delete", "pod/exits-never", "--timeout=180s"]).map(drop)
        },
    ),
    ("[sig-node] InitContainer should invoke init containers on a RestartAlways pod", |c| {
        let pod = stage(c)?.until("pod/init-always", "its start", |pod| condition(pod, "Ready") == "True")?;
        initialized(&pod)
    }),
    ("[sig-node] InitContainer should invoke init containers on a RestartNever pod", |c| {
        let pod = stage(c)?.ended("init-never")?;
        ensure!(phase(&pod) == "Succeeded", "{:#}", pod["status"]);
        initialized(&pod)
    }),
    (
        "[sig-node] InitContainer should not start app containers and fail the pod if init containers fail on a RestartNever pod",
        |c| {
            let pod = stage(c)?.ended("init-fails")?;
            ensure!(
                phase(&pod) == "Failed" && condition(&pod, "Initialized") == "False",
                "{:#}",
                pod["status"]
            );
            let failed = &container(&pod, "init1")["state"]["terminated"];
            ensure!(failed["exitCode"] == 1, "{failed}");
            ensure!(container(&pod, "init2")["state"]["waiting"].is_object(), "{:#}", pod["status"]);
            not_started(&pod)
        },
    ),
    (
        "[sig-node] InitContainer should not start app containers if init containers fail on a RestartAlways pod",
        |c| {
            let again = |pod: &Value| container(pod, "init1")["restartCount"].as_i64() > Some(0);
            let pod = stage(c)?.until("pod/init-fails-again", "a second attempt", again)?;
            ensure!(
                phase(&pod) == "Pending" && condition(&pod, "Initialized") == "False",
                "{:#}",
                pod["status"]
            );
            not_started(&pod)
        },
    ),
    (
        "[sig-node] Container Lifecycle Hook when create a pod with lifecycle hook should execute poststart exec hook properly",
        |c| started_with_hook(c, "poststart-exec"),
    ),
    (
        "[sig-node] Container Lifecycle Hook when create a pod with lifecycle hook should execute poststart http hook properly",
        |c| started_with_hook(c, "poststart-http"),
    ),
    (
        "[sig-node] Container Lifecycle Hook when create a pod with lifecycle hook should execute prestop exec hook properly",
        |c| ends_with_hook(c, "prestop-exec"),
    ),
    (
        "[sig-node] Container Lifecycle Hook when create a pod with lifecycle hook should execute prestop http hook properly",
        |c| ends_with_hook(c, "prestop-http"),
    ),
    ("[sig-node] PreStop should call prestop when killing a pod", |c| ends_with_hook(c, "prestop")),
    ("[sig-node] Pods should allow activeDeadlineSeconds to be updated", deadline),
    ("[sig-node] Ephemeral Containers will start an ephemeral container in an existing pod", |c| {
        debugger(c, "first")
    }),
    ("[sig-node] Ephemeral Containers should update the ephemeral containers in an existing pod", |c| {
        debugger(c, "second")?;
        let pod = stage(c)?.get(&["pod/debugged"])?;
        ensure!(pod["spec"]["ephemeralContainers"].as_array().map(Vec::len) == Some(2), "{:#}", pod["spec"]);
        Ok(())
    }),
];

pub(super) fn pods(handler: &str) -> Vec<Value> {
    let mut pods = vec![messages()];
    pods.extend(exits());
    pods.extend(inits());
    pods.extend(hooks(handler));
    pods.push(sleeper("deadline", json!({"activeDeadlineSeconds": 3600})));
    pods.push(sleeper("debugged", json!({})));
    pods
}

/// A pod that runs until it is stopped, which takes no time.
fn sleeper(name: &str, more: Value) -> Value {
    pod(name, json!([sh("c", "exec sleep 3600", json!({}))]), more)
}

fn messages() -> Value {
    let fallback = json!({"terminationMessagePolicy": "FallbackToLogsOnError"});
    let path = "/dev/termination-custom-log";
    let containers = [
        sh("empty", "echo DONE; exit 0", fallback.clone()),
        sh("file", "echo -n OK > /dev/termination-log; echo DONE; exit 0", fallback.clone()),
        sh("log", "echo -n DONE; exit 1", fallback),
        sh(
            "non-root",
            &format!("echo -n DONE > {path}"),
            json!({"terminationMessagePath": path, "securityContext": {"runAsUser": 1000}}),
        ),
    ];
    pod("messages", json!(containers), json!({}))
}

fn message(cluster: &Cluster, name: &str, expected: &str) -> Result<()> {
    let pod = stage(cluster)?.ended("messages")?;
    let state = &container(&pod, name)["state"]["terminated"];
    ensure!(state["message"].as_str().unwrap_or_default() == expected, "{state}");
    Ok(())
}

/// The first attempt fails, the second does as it is told.
fn exits() -> [Value; 3] {
    let once = |name: &str, second: &str, policy: &str| {
        let script = format!("[ -e /v/once ] && {second}; touch /v/once; exit 1");
        let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
        let more = json!({"restartPolicy": policy, "volumes": [{"name": "v", "emptyDir": {}}]});
        pod(name, json!([sh("c", &script, mounts)]), more)
    };
    [
        once("exits-always", "exec sleep 3600", "Always"),
        once("exits-on-failure", "exit 0", "OnFailure"),
        once("exits-never", "exit 0", "Never"),
    ]
}

fn statuses(cluster: &Cluster) -> Result<()> {
    let scene = stage(cluster)?;
    let always = scene.until("pod/exits-always", "its second attempt", |pod| {
        container(pod, "c")["restartCount"] == 1 && condition(pod, "Ready") == "True"
    })?;
    ensure!(container(&always, "c")["state"]["running"].is_object() && phase(&always) == "Running");
    for (name, expected, restarts) in [("exits-on-failure", "Succeeded", 1), ("exits-never", "Failed", 0)] {
        let pod = scene.ended(name)?;
        let status = container(&pod, "c");
        ensure!(phase(&pod) == expected && status["restartCount"] == restarts, "{name}: {:#}", pod["status"]);
        ensure!(condition(&pod, "Ready") == "False" && status["state"]["terminated"].is_object(), "{status}");
    }
    Ok(())
}

fn inits() -> [Value; 4] {
    let one = |name: &str, first: &str, app: &str, policy: &str| {
        let inits = [sh("init1", first, json!({})), sh("init2", "true", json!({}))];
        pod(
            name,
            json!([sh("run1", app, json!({}))]),
            json!({"restartPolicy": policy, "initContainers": inits}),
        )
    };
    [
        one("init-always", "true", "exec sleep 3600", "Always"),
        one("init-never", "true", "true", "Never"),
        one("init-fails", "exit 1", "true", "Never"),
        one("init-fails-again", "exit 1", "true", "Always"),
    ]
}

fn initialized(pod: &Value) -> Result<()> {
    ensure!(condition(pod, "Initialized") == "True", "{:#}", pod["status"]);
    let finished = |name: &str| container(pod, name)["state"]["terminated"]["finishedAt"].clone();
    for name in ["init1", "init2"] {
        let status = container(pod, name);
        ensure!(status["ready"] == true && status["state"]["terminated"]["exitCode"] == 0, "{status}");
    }
    ensure!(finished("init1").as_str() <= finished("init2").as_str(), "one after the other");
    Ok(())
}

fn not_started(pod: &Value) -> Result<()> {
    let status = container(pod, "run1");
    let waiting = &status["state"]["waiting"]["reason"];
    ensure!(waiting == "PodInitializing" && status["restartCount"] == 0, "{status}");
    Ok(())
}

/// Hooks call a web server, whose log says which did. It answers to any query.
fn hooks(handler: &str) -> [Value; 5] {
    let exec = |name: &str| json!({"exec": {"command": ["wget", "-q", "-O", "-", format!("http://{handler}/healthz?{name}")]}});
    let http =
        |name: &str| json!({"httpGet": {"host": handler, "port": 80, "path": format!("/healthz?{name}")}});
    let one = |name: &str, moment: &str, hook: Value| {
        let script = "trap 'exit 0' TERM; while true; do sleep 0.2; done";
        let container = sh("c", script, json!({"lifecycle": {moment: hook}}));
        pod(name, json!([container]), json!({"terminationGracePeriodSeconds": 60}))
    };
    [
        one("poststart-exec", "postStart", exec("poststart-exec")),
        one("poststart-http", "postStart", http("poststart-http")),
        one("prestop-exec", "preStop", exec("prestop-exec")),
        one("prestop-http", "preStop", http("prestop-http")),
        one("prestop", "preStop", http("prestop")),
    ]
}

fn called(cluster: &Cluster, name: &str) -> Result<()> {
    let scene = stage(cluster)?;
    poll::until(&format!("the call of {name}"), PATIENCE, || {
        let log = scene.k(&["logs", "handler"])?;
        let called = log.contains(&format!("GET /healthz?{name} "));
        Ok(if called { Ok(()) } else { Err(log) })
    })
}

fn started_with_hook(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.ready(super::NAMESPACE, name)?;
    called(cluster, name)?;
    stage(cluster)?.k(&["delete", "pod", name, "--force", "--wait=false"]).map(drop)
}

fn ends_with_hook(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.ready(super::NAMESPACE, name)?;
    stage(cluster)?.k(&["delete", "pod", name, "--wait=false"])?;
    called(cluster, name)
}

fn deadline(cluster: &Cluster) -> Result<()> {
    let scene = stage(cluster)?;
    scene.until("pod/deadline", "its start", |pod| phase(pod) == "Running")?;
    scene.merge("pod/deadline", &json!({"spec": {"activeDeadlineSeconds": 1}}))?;
    let pod = scene.ended("deadline")?;
    ensure!(phase(&pod) == "Failed" && pod["status"]["reason"] == "DeadlineExceeded", "{:#}", pod["status"]);
    Ok(())
}

fn debugger(cluster: &Cluster, name: &str) -> Result<()> {
    let scene = stage(cluster)?;
    scene.until("pod/debugged", "its start", |pod| condition(pod, "Ready") == "True")?;
    let script = "ps; echo polo; exec sleep 3600";
    let debug =
        ["debug", "debugged", "--image=busybox:1", "--target=c", "-c", name, "--", "sh", "-c", script];
    scene.k(&debug)?;
    scene
        .until("pod/debugged", "its debugger", |pod| container(pod, name)["state"]["running"].is_object())?;
    let log = poll::until("its words", PATIENCE, || {
        let log = scene.k(&["logs", "debugged", "-c", name])?;
        Ok(if log.contains("polo") { Ok(log) } else { Err(log) })
    })?;
    // It sees the processes of the container that it looks at.
    let first = log.lines().find(|line| line.trim_start().starts_with("1 ")).context("no process 1")?;
    ensure!(first.contains("sleep 3600"), "{log}");
    Ok(())
}
