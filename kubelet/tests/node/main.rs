//! A node agent on the embedded runtime with real containers, against a small API server.
//!
//! Needs root and Debian's `busybox-static`, and `containerd` with `runc` and `containernetworking-plugins`. The binary is also the shim of its own containers: hence no test
//! harness, whose threads would be in the way.

#![expect(clippy::unwrap_used, reason = "a test without a harness")]

mod api;
// The archives of the runtime's contract, and its containerd.
#[expect(dead_code, reason = "the contract has more kinds of images")]
#[path = "../../../runtime/tests/contract/archive.rs"]
mod archive;
#[path = "../../../runtime/tests/contract/containerd.rs"]
mod containerd;
mod foreign;
mod resources;
mod tls;
mod volumes;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use api::Api;
use async_trait::async_trait;
use decapod_client::clock::{Clock, SystemClock};
use decapod_client::informer::Informers;
use decapod_client::task::Supervisor;
use decapod_kubelet::{Dependencies, Drain, EvictionOptions, Kubelet, NoServices, Options, teardown};
use decapod_runtime::{Attachment, Embedded, ImageConfig, ImageFile, Network, Runtime, Source, shim};
use serde_json::{Value, json};
use volumes::claims_images_and_expanded_paths_are_mounted;

const NODE: &str = "dcp-node";
const IMAGE: &str = "test.internal/busybox:1";
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// All pods here are on the host's network.
struct NoNetwork;

#[async_trait]
impl Network for NoNetwork {
    async fn attach(&self, _sandbox: &Attachment) -> Result<Vec<IpAddr>, Source> {
        Err("there is no pod network in this test".into())
    }

    async fn detach(&self, _sandbox: &Attachment) -> Result<(), Source> {
        Ok(())
    }

    async fn ready(&self) -> Result<(), Source> {
        Ok(())
    }
}

/// One node with its API server.
struct World {
    api: Api,
    ca: tls::Ca,
    /// Where the node server listens.
    address: std::net::SocketAddr,
    dir: tempfile::TempDir,
    /// What a test wants otherwise.
    change: Option<fn(&mut Options)>,
    agent: Option<(Supervisor, Option<Embedded>)>,
    drain: Option<Drain>,
    /// Whether its containers are containerd's.
    foreign: bool,
}

impl World {
    async fn new() -> Self {
        Self::with(None).await
    }

    async fn with(change: Option<fn(&mut Options)>) -> Self {
        Self::on(change, false).await
    }

    async fn on(change: Option<fn(&mut Options)>, foreign: bool) -> Self {
        // A port that was free a moment ago.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (api, ca) = (Api::new(), tls::Ca::new());
        let mut world = Self { api, ca, address, dir, change, agent: None, drain: None, foreign };
        world.start().await;
        world
    }

    fn options(&self) -> Options {
        Options {
            data_dir: self.dir.path().join("data"),
            run_dir: self.dir.path().join("run"),
            static_pods: Some(self.dir.path().join("manifests")),
            cgroup_root: format!("/dcp-kubelet-test-{}", std::process::id()),
            // Whatever this machine is short of.
            eviction: EvictionOptions { thresholds: Vec::new(), ..EvictionOptions::default() },
            ..Options::new(NODE, vec![IpAddr::from([127, 0, 0, 1])])
        }
    }

    async fn runtime(&self) -> Embedded {
        let network = Arc::new(NoNetwork);
        let (data, run) = (self.dir.path().join("data/runtime"), self.dir.path().join("run/runtime"));
        let mut options = decapod_runtime::Options::new(data, run, network).unwrap();
        options.shim_cgroup = Some(format!("/dcp-kubelet-test-{}-shims", std::process::id()));
        let runtime = Embedded::open(options).await.unwrap();
        let file =
            |target: &str| ImageFile { source: "/bin/busybox".into(), target: target.into(), mode: 0o755 };
        let files = ["/bin/busybox", "/bin/sh", "/bin/sleep", "/bin/cat"].map(file).to_vec();
        runtime.image_from_files(IMAGE, files, ImageConfig::default()).await.unwrap();
        runtime
    }

    /// Starts an agent, as at the start of the machine or after the agent died; on a port of its own each time, since
    /// another process of the machine may have taken the last one meanwhile.
    async fn start(&mut self) {
        let supervisor = Supervisor::new();
        let (runtime, embedded): (Arc<dyn Runtime>, _) = match self.foreign {
            true => (foreign::runtime(&supervisor), None),
            false => {
                let embedded = self.runtime().await;
                (Arc::new(embedded.clone()), Some(embedded))
            }
        };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let client = self.api.client();
        let informers = Informers::new(client.clone(), supervisor.clone(), clock.clone());
        let dependencies = Dependencies {
            client,
            informers,
            runtime,
            traffic: Arc::new(NoServices),
            supervisor: supervisor.clone(),
            clock,
        };
        let mut options = Options { server: Some(self.ca.server(self.address)), ..self.options() };
        if let Some(change) = self.change {
            change(&mut options);
        }
        let kubelet = Kubelet::new(options, dependencies).await.unwrap();
        self.drain = Some(kubelet.drain());
        kubelet.run();
        self.agent = Some((supervisor, embedded));
    }

    /// Ends the agent; containers run on.
    async fn stop(&mut self) {
        let (supervisor, runtime) = self.agent.take().unwrap();
        supervisor.shutdown(PATIENCE).await;
        if let Some(runtime) = runtime {
            runtime.close().await;
        }
    }

    async fn end(mut self) {
        self.stop().await;
        if self.foreign {
            foreign::end(&self.options()).await;
        } else {
            let runtime = self.runtime().await;
            teardown(&self.options(), &runtime).await.unwrap();
            runtime.remove_all().await.unwrap();
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let dir = self.dir.path().to_string_lossy().into_owned();
        assert!(!mounts.contains(&dir), "mounts remain: {mounts}");
        let root = self.options().cgroup_root;
        for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap() {
            let path = controller.unwrap().path().join(root.trim_start_matches('/'));
            assert!(!path.exists(), "{} remains", path.display());
        }
    }

    fn create(&self, name: &str, spec: Value) {
        let mut spec = spec;
        spec["nodeName"] = json!(NODE);
        spec["hostNetwork"] = json!(true);
        let container = &mut spec["containers"][0];
        container["name"] = json!("c");
        container["image"] = json!(IMAGE);
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": spec });
        self.api.put("pods", "default", name, pod);
    }

    fn pod(&self, name: &str) -> Option<Value> {
        self.api.get("pods", "default", name)
    }

    /// Waits until the pod is as `wanted` says, and returns it.
    async fn until(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let pod = self.pod(name).unwrap_or(Value::Null);
            if wanted(&pod) {
                return pod;
            }
            let late = tokio::time::Instant::now() > deadline;
            assert!(!late, "{name} is not {what}: {:#} {:?}", pod["status"], self.api.reasons(name));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_running(&self, name: &str) -> Value {
        self.until(name, "ready", |p| condition(p, "Ready") == "True").await
    }

    fn pod_dir(&self, pod: &Value) -> PathBuf {
        self.dir.path().join("data/pods").join(pod["metadata"]["uid"].as_str().unwrap())
    }
}

fn condition(pod: &Value, kind: &str) -> String {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.into_iter().find(|c| c["type"] == kind);
    found.map(|c| c["status"].as_str().unwrap().to_owned()).unwrap_or_default()
}

fn container(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

fn sh(script: &str) -> Value {
    json!({ "containers": [{ "command": ["/bin/sh", "-c", script] }], "terminationGracePeriodSeconds": 5 })
}

const SLEEP: &str = "trap 'exit 0' TERM; while true; do /bin/sleep 1; done";

async fn a_pod_runs_survives_its_agent_and_goes() {
    let mut world = World::new().await;
    world.create("p", sh(SLEEP));
    let pod = world.until_running("p").await;
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["podIP"], "127.0.0.1");
    let id = container(&pod)["containerID"].clone();

    world.stop().await;
    world.create("q", sh(SLEEP));
    world.start().await;
    world.until_running("q").await;
    let pod = world.pod("p").unwrap();
    assert_eq!(container(&pod)["containerID"], id, "the container is the same");
    assert_eq!((&container(&pod)["restartCount"], condition(&pod, "Ready").as_str()), (&json!(0), "True"));

    let dir = world.pod_dir(&pod);
    assert!(dir.exists());
    world.api.delete("p", 5);
    world.until("p", "gone", Value::is_null).await;
    assert!(!dir.exists(), "nothing of it is left");
    world.end().await;
}

async fn what_was_deleted_meanwhile_is_cleaned_up() {
    let mut world = World::new().await;
    world.create("p", sh(SLEEP));
    let pod = world.until_running("p").await;
    let dir = world.pod_dir(&pod);
    world.stop().await;
    let other = Api::new();
    world.api = other;
    world.start().await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while dir.exists() {
        assert!(tokio::time::Instant::now() < deadline, "the pod's folder is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.end().await;
}

async fn exits_are_counted_and_told() {
    let world = World::new().await;
    world.create("crash", sh("echo why > /dev/termination-log; exit 7"));
    let mut once = sh("exit 0");
    once["restartPolicy"] = json!("Never");
    world.create("once", once);
    let pod = world
        .until("crash", "in its back-off", |p| {
            container(p)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
                && container(p)["restartCount"] == 1
        })
        .await;
    let last = &container(&pod)["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["message"]), (&json!(7), &json!("why\n")));
    let pod = world.until("once", "done", |p| p["status"]["phase"] == "Succeeded").await;
    assert_eq!(container(&pod)["state"]["terminated"]["reason"], "Completed");
    world.until("crash", "told of", |_| world.api.reasons("crash").contains(&"BackOff".to_owned())).await;
    world.end().await;
}

async fn a_missing_config_map_is_waited_for_and_its_changes_arrive() {
    let world = World::new().await;
    let script = "until [ \"$(cat /v/key)\" = new ]; do /bin/sleep 0.1; done; exit 0";
    let mut spec = sh(script);
    spec["restartPolicy"] = json!("Never");
    spec["volumes"] = json!([{ "name": "v", "configMap": { "name": "late" } }]);
    spec["containers"][0]["volumeMounts"] = json!([{ "name": "v", "mountPath": "/v" }]);
    world.create("p", spec);
    world.until("p", "told of", |_| world.api.reasons("p").contains(&"FailedMount".to_owned())).await;
    let waiting = world.until("p", "waiting", |p| container(p)["state"]["waiting"].is_object()).await;
    assert_eq!(container(&waiting)["state"]["waiting"]["reason"], "ContainerCreating");
    let map = |value: &str| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": {}, "data": { "key": value } });
    world.api.put("configmaps", "default", "late", map("old"));
    world.until_running("p").await;
    world.api.put("configmaps", "default", "late", map("new"));
    world.until("p", "done", |p| p["status"]["phase"] == "Succeeded").await;
    world.end().await;
}

async fn a_failing_liveness_probe_restarts() {
    let world = World::new().await;
    let mut spec = sh(SLEEP);
    spec["terminationGracePeriodSeconds"] = json!(1);
    spec["containers"][0]["livenessProbe"] = json!({
        "exec": { "command": ["/bin/cat", "/nothing"] }, "periodSeconds": 1, "failureThreshold": 1,
    });
    world.create("p", spec);
    world.until("p", "restarted", |p| container(p)["restartCount"] == 1).await;
    world.until("p", "told of", |_| world.api.reasons("p").contains(&"Unhealthy".to_owned())).await;
    world.end().await;
}

async fn what_does_not_fit_is_refused() {
    let world = World::new().await;
    let mut elsewhere = sh(SLEEP);
    elsewhere["nodeSelector"] = json!({ "disk": "none" });
    world.create("elsewhere", elsewhere);
    let mut sysctl = sh(SLEEP);
    sysctl["securityContext"] = json!({ "sysctls": [{ "name": "kernel.sem", "value": "1" }] });
    world.create("sysctl", sysctl);
    for (name, reason) in [("elsewhere", "NodeAffinity"), ("sysctl", "SysctlForbidden")] {
        let pod = world.until(name, "refused", |p| p["status"]["phase"] == "Failed").await;
        assert_eq!(pod["status"]["reason"], reason);
        assert!(pod["status"]["message"].as_str().unwrap().starts_with("Pod was rejected: "), "{pod}");
        assert!(pod["status"]["containerStatuses"].is_null(), "{pod}");
        world.until(name, "told of", |_| world.api.reasons(name).contains(&reason.to_owned())).await;
    }
    world.end().await;
}

async fn hooks_run_and_variables_come_from_files() {
    let world = World::new().await;
    let mut spec = sh(&format!("echo $FROM_FILE > /v/said; {SLEEP}"));
    let mount = json!([{ "name": "v", "mountPath": "/v" }]);
    spec["volumes"] = json!([{ "name": "v", "emptyDir": {} }]);
    let script = "echo \"# made\" > /v/env; echo \"WORD='one two'\" >> /v/env";
    spec["initContainers"] = json!([{
        "name": "first", "image": IMAGE, "command": ["/bin/sh", "-c", script], "volumeMounts": mount,
    }]);
    let hook =
        |word: &str| json!({ "exec": { "command": ["/bin/sh", "-c", format!("echo {word} >> /v/hooks")] } });
    let reference = json!({ "volumeName": "v", "path": "env", "key": "WORD" });
    let container = &mut spec["containers"][0];
    container["volumeMounts"] = mount;
    container["env"] = json!([{ "name": "FROM_FILE", "valueFrom": { "fileKeyRef": reference } }]);
    container["lifecycle"] = json!({ "postStart": hook("begun"), "preStop": hook("ends") });
    world.create("p", spec);
    let pod = world.until_running("p").await;
    let volume = world.pod_dir(&pod).join("volumes/kubernetes.io~empty-dir/v");
    assert_eq!(std::fs::read_to_string(volume.join("said")).unwrap(), "one two\n");
    // What the hook writes goes with the pod: a link keeps it.
    let kept = world.dir.path().join("kept");
    std::fs::hard_link(volume.join("hooks"), &kept).unwrap();
    world.api.delete("p", 60);
    world.until("p", "gone", Value::is_null).await;
    assert_eq!(std::fs::read_to_string(kept).unwrap(), "begun\nends\n");
    world.end().await;
}

async fn sidecars_hear_first_and_end_last() {
    let world = World::new().await;
    let mount = json!([{ "name": "v", "mountPath": "/v" }]);
    // The app ends once the sidecar's hook has run, which is before the sidecar is asked to end.
    let app = "trap 'until [ -e /v/hook ]; do /bin/sleep 0.1; done; echo app >> /v/ends; exit 0' TERM; \
               while true; do /bin/sleep 1; done";
    let mut spec = sh(app);
    spec["terminationGracePeriodSeconds"] = json!(600);
    spec["volumes"] = json!([{ "name": "v", "emptyDir": {} }]);
    spec["containers"][0]["volumeMounts"] = mount.clone();
    let side = "trap 'echo sidecar >> /v/ends; exit 0' TERM; while true; do /bin/sleep 1; done";
    spec["initContainers"] = json!([{
        "name": "side", "image": IMAGE, "restartPolicy": "Always", "command": ["/bin/sh", "-c", side],
        "volumeMounts": mount,
        "lifecycle": { "preStop": { "exec": { "command": ["/bin/sh", "-c", "echo > /v/hook"] } } },
    }]);
    world.create("p", spec);
    let pod = world.until_running("p").await;
    let volume = world.pod_dir(&pod).join("volumes/kubernetes.io~empty-dir/v");
    let kept = world.dir.path().join("ends");
    std::fs::write(volume.join("ends"), "").unwrap();
    std::fs::hard_link(volume.join("ends"), &kept).unwrap();
    world.api.delete("p", 600);
    world.until("p", "gone", Value::is_null).await;
    assert_eq!(std::fs::read_to_string(kept).unwrap(), "app\nsidecar\n");
    world.end().await;
}

async fn one_end_may_restart_all() {
    let world = World::new().await;
    // The first attempt of the first container fails once the other runs.
    let mut spec = sh("[ -e /v/again ] || until [ -e /v/other ]; do /bin/sleep 0.1; done; \
                       [ -e /v/again ] || { echo > /v/again; exit 42; }; while true; do /bin/sleep 1; done");
    let mount = json!([{ "name": "v", "mountPath": "/v" }]);
    let script = |script: &str| json!(["/bin/sh", "-c", script]);
    spec["volumes"] = json!([{ "name": "v", "emptyDir": {} }]);
    spec["terminationGracePeriodSeconds"] = json!(1);
    spec["restartPolicy"] = json!("Never");
    spec["initContainers"] = json!([{
        "name": "first", "image": IMAGE, "command": script("echo x >> /v/inits"), "volumeMounts": mount,
    }]);
    let rule = json!({ "action": "RestartAllContainers", "exitCodes": { "operator": "In", "values": [42] } });
    spec["containers"][0]["volumeMounts"] = mount.clone();
    spec["containers"][0]["restartPolicy"] = json!("Never");
    spec["containers"][0]["restartPolicyRules"] = json!([rule]);
    let other = script("echo > /v/other; while true; do /bin/sleep 1; done");
    let other = json!({ "name": "other", "image": IMAGE, "command": other, "volumeMounts": mount });
    spec["containers"].as_array_mut().unwrap().push(other);
    world.create("p", spec);
    let again = |p: &Value| condition(p, "Ready") == "True" && container(p)["restartCount"] == 1;
    let pod = world.until("p", "restarted", again).await;
    let counts = pod["status"]["containerStatuses"].as_array().unwrap().iter().map(|c| &c["restartCount"]);
    assert!(counts.into_iter().all(|count| count == 1), "{:#}", pod["status"]);
    let volume = world.pod_dir(&pod).join("volumes/kubernetes.io~empty-dir/v");
    assert_eq!(std::fs::read_to_string(volume.join("inits")).unwrap(), "x\nx\n");
    world.end().await;
}

async fn a_file_is_a_pod() {
    let mut world = World::new().await;
    let manifest = world.dir.path().join("manifests/web.yaml");
    let name = format!("web-{NODE}");
    let write = |word: &str| {
        let spec = json!({ "hostNetwork": true, "terminationGracePeriodSeconds": 1, "containers": [{
            "name": "c", "image": IMAGE, "command": ["/bin/sh", "-c", format!(": {word}; {SLEEP}")] }] });
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "web" }, "spec": spec });
        std::fs::write(&manifest, pod.to_string()).unwrap();
    };
    let id = |pod: &Value| container(pod)["containerID"].clone();
    write("one");
    let first = world.until_running(&name).await;
    assert_eq!(first["metadata"]["annotations"]["kubernetes.io/config.source"], "file");

    // An agent that starts again finds the container, and a mirror that was deleted comes back.
    world.stop().await;
    world.start().await;
    let uid = first["metadata"]["uid"].clone();
    world.api.remove_pod(&name);
    let ready = |p: &Value| condition(p, "Ready") == "True";
    let again = world.until(&name, "mirrored again", |p| ready(p) && p["metadata"]["uid"] != uid).await;
    assert_eq!(id(&again), id(&first));
    assert_eq!(container(&again)["restartCount"], 0);

    write("two");
    let second = world.until(&name, "another", |p| ready(p) && id(p) != id(&first)).await;
    let hash = |pod: &Value| pod["metadata"]["annotations"]["kubernetes.io/config.hash"].clone();
    assert_ne!(hash(&first), hash(&second));
    let log =
        world.ca.get(world.address, Some(("api", "any")), "/containerLogs/default/web-dcp-node/c").await;
    assert!(log.starts_with("HTTP/1.1 200"), "{log}");

    std::fs::remove_file(&manifest).unwrap();
    world.until(&name, "gone", Value::is_null).await;
    let folder = world.dir.path().join("data/pods").join(hash(&second).as_str().unwrap());
    assert!(!folder.exists(), "nothing of it is left");
    world.end().await;
}

async fn the_node_server_serves_the_api_server_alone() {
    let world = World::new().await;
    world.create("p", sh("echo one; echo two; exec /bin/sleep 1000"));
    world.until_running("p").await;
    let get = |user, path: &'static str| world.ca.get(world.address, user, path);
    let api = Some(("api", "any"));
    assert!(get(None, "/healthz").await.starts_with("HTTP/1.1 401"));
    assert!(get(Some(("system:node:other", "system:nodes")), "/healthz").await.starts_with("HTTP/1.1 403"));
    assert!(get(Some(("admin", "system:masters")), "/healthz").await.starts_with("HTTP/1.1 200"));
    let log = get(api, "/containerLogs/default/p/c?tailLines=1").await;
    assert!(log.starts_with("HTTP/1.1 200") && log.contains("two") && !log.contains("one"), "{log}");
    let none = get(api, "/containerLogs/default/p/c?previous=true").await;
    assert!(none.starts_with("HTTP/1.1 400"), "{none}");
    assert!(none.contains(r#"previous terminated container \"c\" in pod \"p\" not found"#), "{none}");
    assert!(get(api, "/containerLogs/default/x/c").await.starts_with("HTTP/1.1 404"));
    assert!(get(api, "/metrics").await.contains("kubelet_running_pods 1"));
    let own = get(api, "/metrics").await;
    assert!(own.contains("kubelet_pod_start_duration_seconds_count 1"), "{own}");
    assert!(
        own.contains("kubelet_started_containers_total 1") && own.contains("process_cpu_seconds_total"),
        "{own}"
    );
    assert!(get(api, "/configz").await.contains("\"kubeletconfig\":{"));
    let summary = get(api, "/stats/summary").await;
    let (_, summary) = summary.split_once("\r\n\r\n").unwrap();
    let summary: serde_json::Value = serde_json::from_str(summary).unwrap();
    let pod = &summary["pods"][0];
    assert_eq!(
        (&pod["podRef"]["name"], &pod["containers"][0]["name"]),
        (&json!("p"), &json!("c")),
        "{summary}"
    );
    assert!(pod["cpu"]["usageCoreNanoSeconds"].as_u64() > Some(0), "{summary}");
    assert!(summary["node"]["memory"]["workingSetBytes"].as_u64() > Some(0), "{summary}");
    assert!(get(api, "/logs/").await.contains("<pre>"));
    assert!(get(api, "/logs/../../etc/passwd").await.starts_with("HTTP/1.1 404"));
    let usage = get(api, "/metrics/resource").await;
    assert!(
        usage.contains("container_cpu_usage_seconds_total{container=\"c\",namespace=\"default\",pod=\"p\"}"),
        "{usage}"
    );
    assert!(usage.contains("resource_scrape_error 0"), "{usage}");
    let cadvisor = get(api, "/metrics/cadvisor").await;
    for name in [
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_fs_usage_bytes",
    ] {
        let line = cadvisor.lines().find(|l| l.starts_with(&format!("{name}{{container=\"c\"")));
        assert!(line.is_some_and(|l| l.contains("namespace=\"default\",pod=\"p\"")), "{name}: {cadvisor}");
    }
    assert!(cadvisor.contains("machine_memory_bytes "), "{cadvisor}");
    assert!(summary["node"]["fs"]["capacityBytes"].as_u64() > Some(0), "{summary}");
    assert!(pod["containers"][0]["logs"]["usedBytes"].as_u64() > Some(0), "{summary}");
    assert!(
        summary["node"]["systemContainers"][0]["memory"]["workingSetBytes"].as_u64() > Some(0),
        "{summary}"
    );
    assert!(get(api, "/metrics/probes").await.contains("# TYPE prober_probe_total counter"));
    assert!(get(api, "/exec/default/p/c?command=true&stdout=true").await.contains("WebSocket"));
    world.end().await;
}

use foreign::pods_run_on_containerd;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == shim::ARGUMENT) {
        return shim::main(&arguments[1..]);
    }
    let wanted = arguments.iter().filter_map(|a| a.to_str()).find(|a| !a.starts_with('-')).unwrap_or("");
    let mut failed = false;
    macro_rules! test {
        ($($name:path),* $(,)?) => {$(
            if stringify!($name).contains(wanted) {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
                let runtime = runtime.unwrap();
                let outcome =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on($name())));
                println!("test {} ... {}", stringify!($name), if outcome.is_ok() { "ok" } else { "FAILED" });
                failed |= outcome.is_err();
            }
        )*};
    }
    test!(
        a_pod_runs_survives_its_agent_and_goes,
        what_was_deleted_meanwhile_is_cleaned_up,
        exits_are_counted_and_told,
        a_missing_config_map_is_waited_for_and_its_changes_arrive,
        claims_images_and_expanded_paths_are_mounted,
        a_failing_liveness_probe_restarts,
        what_does_not_fit_is_refused,
        hooks_run_and_variables_come_from_files,
        sidecars_hear_first_and_end_last,
        one_end_may_restart_all,
        a_file_is_a_pod,
        the_node_server_serves_the_api_server_alone,
        resources::a_pod_over_its_limits_of_disk_is_evicted,
        resources::a_node_short_of_memory_evicts_and_refuses,
        resources::a_killed_process_is_named,
        resources::logs_are_kept_small,
        resources::pods_end_before_the_machine_does,
        pods_run_on_containerd,
    );
    containerd::end();
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
