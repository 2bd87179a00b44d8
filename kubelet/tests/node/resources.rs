//! What a node does when something runs short: eviction, killed processes, large logs.

use std::time::Duration;

use decapod_kubelet::{Amount, Options, Signal, Threshold};
use serde_json::{Value, json};

use super::{SLEEP, World, container, sh};

fn phase(pod: &Value) -> (&Value, &Value) {
    (&pod["status"]["phase"], &pod["status"]["reason"])
}

async fn until_evicted(world: &World, name: &str) -> Value {
    world.until(name, "evicted", |pod| phase(pod) == (&json!("Failed"), &json!("Evicted"))).await
}

pub(super) async fn a_pod_over_its_limits_of_disk_is_evicted() {
    let world = World::with(Some(often)).await;
    let fill = |to: &str| sh(&format!("/bin/busybox dd if=/dev/zero of={to} bs=1M count=8; {SLEEP}"));
    let mut volume = fill("/v/file");
    volume["volumes"] = json!([{"name": "v", "emptyDir": {"sizeLimit": "5Mi"}}]);
    volume["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    world.create("volume", volume);
    let mut layer = fill("/file");
    layer["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "5Mi"}});
    world.create("layer", layer);
    let mut within = fill("/file");
    within["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "500Mi"}});
    world.create("within", within);
    let pod = until_evicted(&world, "volume").await;
    assert_eq!(pod["status"]["message"], "Usage of EmptyDir volume \"v\" exceeds the limit \"5Mi\". ");
    let pod = until_evicted(&world, "layer").await;
    assert_eq!(
        pod["status"]["message"],
        "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. "
    );
    assert!(world.api.reasons("layer").contains(&"Evicted".to_owned()));
    let pod = world.until_running("within").await;
    assert_eq!(pod["status"]["phase"], "Running");
    world.end().await;
}

fn often(options: &mut Options) {
    options.eviction.period = Duration::from_millis(200);
}

/// Whatever the machine has is too little: the node is short of memory from its first look on.
fn never_enough(options: &mut Options) {
    let value = Amount::Absolute(1 << 60);
    let signal = Signal::MemoryAvailable;
    often(options);
    options.eviction.thresholds = vec![Threshold { signal, value, grace: None, reclaim: None }];
}

pub(super) async fn a_node_short_of_memory_evicts_and_refuses() {
    let mut world = World::new().await;
    let requests = json!({"requests": {"memory": "1Gi"}});
    let mut modest = sh(SLEEP);
    modest["containers"][0]["resources"] = requests;
    world.create("modest", modest.clone());
    world.create("greedy", sh(SLEEP));
    let mut critical = sh(SLEEP);
    critical["priority"] = json!(2_000_001_000);
    world.create("critical", critical);
    for pod in ["modest", "greedy", "critical"] {
        world.until_running(pod).await;
    }
    world.stop().await;
    world.change = Some(never_enough);
    world.start().await;
    let pod = until_evicted(&world, "greedy").await;
    let message = pod["status"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("The node was low on resource: memory. Threshold quantity: 1Ei, "),
        "{message}"
    );
    assert!(message.contains("Container c was using "), "{message}");
    let target = super::condition(&pod, "DisruptionTarget");
    assert_eq!(target, "True", "{:#}", pod["status"]);
    // It is new, and asks for no memory: not taken on. One that asks for some is.
    world.create("late", sh(SLEEP));
    let pod = until_evicted(&world, "late").await;
    assert_eq!(pod["status"]["message"], "Pod was rejected: The node had condition: [MemoryPressure]. ");
    until_evicted(&world, "modest").await;
    let pod = world.pod("critical").unwrap();
    assert_eq!(pod["status"]["phase"], "Running", "whatever happens");
    world.end().await;
}

pub(super) async fn a_killed_process_is_named() {
    let world = World::new().await;
    // The first process lives on: it is a child that is killed.
    let mut spec = sh(&format!("/bin/busybox tail /dev/zero; {SLEEP}"));
    spec["containers"][0]["resources"] = json!({"limits": {"memory": "16Mi"}});
    spec["restartPolicy"] = json!("Never");
    world.create("p", spec);
    if std::fs::File::open("/dev/kmsg").is_ok() {
        world.until("p", "told of", |_| world.api.reasons("p").contains(&"OOMKilling".to_owned())).await;
    }
    world.api.delete("p", 1);
    world.until("p", "gone", Value::is_null).await;
    let mut spec = sh("exec /bin/busybox tail /dev/zero");
    spec["containers"][0]["resources"] = json!({"limits": {"memory": "16Mi"}});
    spec["restartPolicy"] = json!("Never");
    world.create("q", spec);
    let pod = world.until("q", "killed", |pod| pod["status"]["phase"] == "Failed").await;
    let ended = &container(&pod)["state"]["terminated"];
    assert_eq!((&ended["reason"], &ended["exitCode"]), (&json!("OOMKilled"), &json!(137)));
    world.end().await;
}

fn small_logs(options: &mut Options) {
    options.logs.max_size = 64 << 10;
    options.logs.max_files = 3;
    options.logs.period = Duration::from_millis(200);
}

pub(super) async fn logs_are_kept_small() {
    let world = World::with(Some(small_logs)).await;
    // Without an end: the log grows until the test has seen enough.
    let script = "while true; do i=0; while [ $i -lt 300 ]; do echo line $i of the log; i=$((i+1)); done; \
                  /bin/sleep 0.05; done";
    let mut spec = sh(script);
    spec["restartPolicy"] = json!("Never");
    world.create("p", spec);
    let pod = world.until_running("p").await;
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let folder = world.dir.path().join(format!("data/logs/pods/default_p_{uid}/c"));
    let names = || -> Vec<String> {
        let entries = std::fs::read_dir(&folder).unwrap().flatten();
        let mut names: Vec<String> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let deadline = tokio::time::Instant::now() + super::PATIENCE;
    while !names().iter().any(|name| name.ends_with(".gz")) {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", names());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Three, and while one is packed it is there under two names; another may come meanwhile.
    let logs = names().into_iter().filter(|name| !name.ends_with(".tmp")).count();
    assert!(logs <= 5, "{:?}", names());
    world.end().await;
}

pub(super) async fn pods_end_before_the_machine_does() {
    let world = World::new().await;
    let script = "trap 'echo asked > /dev/termination-log; exit 0' TERM; while true; do /bin/sleep 0.2; done";
    let mut first = sh(script);
    first["terminationGracePeriodSeconds"] = json!(60);
    world.create("first", first);
    let mut critical = sh(SLEEP);
    critical["priority"] = json!(2_000_001_000);
    world.create("last", critical);
    world.until_running("first").await;
    world.until_running("last").await;
    let drain = world.drain.clone().unwrap();
    drain.pods(2 * super::PATIENCE, super::PATIENCE).await;
    let first = world.pod("first").unwrap();
    assert_eq!(phase(&first), (&json!("Failed"), &json!("Terminated")));
    assert_eq!(first["status"]["message"], "Pod was terminated in response to imminent node shutdown.");
    let ended = |pod: &Value| container(pod)["state"]["terminated"].clone();
    let first = world.until("first", "ended", |pod| ended(pod).is_object()).await;
    assert_eq!(ended(&first)["message"], "asked\n", "it had its grace");
    let last = world.until("last", "ended", |pod| ended(pod).is_object()).await;
    let at = |pod: &Value| ended(pod)["finishedAt"].as_str().unwrap().to_owned();
    assert!(at(&first) <= at(&last), "{} {}", at(&first), at(&last));
    world.create("late", sh(SLEEP));
    let late = world.until("late", "refused", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(late["status"]["reason"], "NodeShutdown");
    world.end().await;
}
