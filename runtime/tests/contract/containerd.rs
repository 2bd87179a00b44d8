//! Debian's containerd with everything of its own: configuration, directories, socket, a network of point-to-point links.
//!
//! What it is left out of, and why: see the table in `main.rs`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use decapod_proto::cri;
use decapod_runtime::Runtime;
use serde_json::json;

use super::PATIENCE;
use super::archive::{Archive, Compression, busybox_layer, busybox_stored};

/// The image of the process that holds a sandbox.
const PAUSE: &str = "test.internal/pause:1";

static RUNNING: OnceLock<Daemon> = OnceLock::new();

struct Daemon {
    root: PathBuf,
    endpoint: String,
    child: Mutex<Child>,
}

/// The socket of the daemon, which is started for the first who asks.
pub(crate) fn endpoint() -> &'static str {
    &RUNNING.get_or_init(start).endpoint
}

/// Where tests run, root may lack the right to lower a process' badness: hence the restriction.
fn configuration(root: &Path) -> String {
    let path = |name: &str| json!(root.join(name).display().to_string()).to_string();
    format!(
        r#"version = 2
root = {root}
state = {state}
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = {socket}
[plugins."io.containerd.internal.v1.opt"]
  path = {opt}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = {runc}
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = {cni}
"#,
        root = path("root"),
        state = path("state"),
        socket = path("c.sock"),
        opt = path("opt"),
        runc = path("runc"),
        cni = path("cni"),
    )
}

/// Each pod at the end of a link to the machine: no bridge that would be left.
fn network(root: &Path) -> String {
    let list = json!({
        "cniVersion": "1.0.0",
        "name": format!("dcp-contract-{}", std::process::id()),
        "plugins": [{
            "type": "ptp",
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": "10.180.77.0/24" }]],
                "dataDir": root.join("addresses"),
            },
        }],
    });
    list.to_string()
}

fn start() -> Daemon {
    // Not named as the directories of tests, which are removed with what is in them when one fails.
    let root = std::env::temp_dir().join(format!("containerd-of-dcp-{}", std::process::id()));
    std::fs::create_dir_all(root.join("cni")).unwrap();
    std::fs::write(root.join("config.toml"), configuration(&root)).unwrap();
    std::fs::write(root.join("cni/10-contract.conflist"), network(&root)).unwrap();
    let log = std::fs::File::create(root.join("log")).unwrap();
    let child = Command::new("containerd")
        .arg("--config")
        .arg(root.join("config.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("Debian's containerd is installed");
    let daemon = Daemon {
        endpoint: format!("unix://{}", root.join("c.sock").display()),
        child: Mutex::new(child),
        root,
    };
    let deadline = Instant::now() + PATIENCE;
    while !daemon.ctr(&["version"]) {
        assert!(Instant::now() < deadline, "containerd does not answer: {}", daemon.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let pause = json!({ "Cmd": ["sleep", "1000000"], "Env": ["PATH=/bin"] });
    // It takes the media type at its word: a layer that is said to be a tar archive must be one.
    let how = Compression::None;
    let pause = Archive::oci(PAUSE, &[(busybox_layer(), how)], &pause);
    for (archive, name) in [(pause, "pause.tar"), (busybox_stored(how), "busybox.tar")] {
        let file = archive.save(&daemon.root, name).display().to_string();
        assert!(daemon.ctr(&["--namespace", "k8s.io", "images", "import", &file]), "{}", daemon.log());
    }
    daemon
}

impl Daemon {
    fn ctr(&self, arguments: &[&str]) -> bool {
        let output = Command::new("ctr")
            .arg("--address")
            .arg(self.root.join("c.sock"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("ctr comes with containerd");
        output.status.success()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }
}

/// Removes all pods of the daemon.
pub(crate) async fn remove_all(runtime: &dyn Runtime) {
    let sandboxes: Vec<cri::PodSandbox> = runtime.sandbox_list(None).await.unwrap();
    for removed in futures::future::join_all(sandboxes.iter().map(|s| runtime.sandbox_remove(&s.id))).await {
        removed.unwrap();
    }
    assert!(runtime.container_list(None).await.unwrap().is_empty());
}

/// Ends the daemon, if it runs, and removes what was its own.
pub(crate) fn end() {
    let Some(daemon) = RUNNING.get() else { return };
    let mut child = daemon.child.lock().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: asks a process of ours to end.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    child.wait().unwrap();
    std::fs::remove_dir_all(&daemon.root).unwrap();
}
