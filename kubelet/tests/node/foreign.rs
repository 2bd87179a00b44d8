//! The node agent on Debian's containerd, through the same trait as on its own runtime.

use std::sync::Arc;

use decapod_client::clock::SystemClock;
use decapod_client::task::Supervisor;
use decapod_cri::Remote;
use decapod_cri::stream::Host;
use decapod_kubelet::{Options, teardown};
use decapod_runtime::Runtime;
use serde_json::{Value, json};

use super::{SLEEP, World, condition, container, containerd, sh};

pub(super) fn runtime(supervisor: &Supervisor) -> Arc<dyn Runtime> {
    let host = Host { clock: Arc::new(SystemClock::new()), supervisor: supervisor.clone() };
    Arc::new(Remote::new(containerd::endpoint(), host).unwrap())
}

/// Removes all pods.
pub(super) async fn end(options: &Options) {
    let supervisor = Supervisor::new();
    let runtime = runtime(&supervisor);
    teardown(options, &*runtime).await.unwrap();
    containerd::remove_all(&*runtime).await;
}

pub(super) async fn pods_run_on_containerd() {
    let mut world = World::on(None, true).await;
    let mut spec = sh(&format!("echo hello; echo bye >&2; {SLEEP}"));
    spec["containers"][0]["readinessProbe"] =
        json!({ "exec": { "command": ["/bin/cat", "/etc/hosts"] }, "periodSeconds": 1 });
    world.create("p", spec);
    world.create("crash", sh("echo why > /dev/termination-log; exit 7"));
    let pod = world.until_running("p").await;
    let id = container(&pod)["containerID"].clone();
    assert!(id.as_str().unwrap().starts_with("containerd://"), "{id}");
    let log = world.ca.get(world.address, Some(("api", "any")), "/containerLogs/default/p/c").await;
    assert!(log.starts_with("HTTP/1.1 200") && log.contains("hello\n") && log.contains("bye\n"), "{log}");
    // Its exits are seen although it tells of none.
    let crash = world.until("crash", "restarted", |p| container(p)["restartCount"] == 1).await;
    let last = &container(&crash)["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["message"]), (&json!(7), &json!("why\n")));

    world.stop().await;
    world.start().await;
    world.create("q", sh("exit 0"));
    world.until("q", "told of", |p| container(p)["state"] != Value::Null).await;
    let pod = world.pod("p").unwrap();
    assert_eq!((&container(&pod)["containerID"], &container(&pod)["restartCount"]), (&id, &json!(0)));
    assert_eq!(condition(&pod, "Ready"), "True");
    let dir = world.pod_dir(&pod);
    world.api.delete("p", 5);
    world.until("p", "gone", Value::is_null).await;
    assert!(!dir.exists(), "nothing of it is left");
    world.end().await;
}
