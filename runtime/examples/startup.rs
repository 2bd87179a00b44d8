//! How long a container takes: create and start, and the whole life with removal, beside other
//! runtimes on the same root file system.
//!
//! `cargo run --release -p decapod-runtime --example startup -- [ROUNDS]`, as root, with
//! Debian's `busybox-static`; `runc` and `crun` are measured where they are installed.

#![expect(clippy::unwrap_used, reason = "a bench: a panic is how it fails")]

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use decapod_proto::cri;
use decapod_runtime::{Attachment, Embedded, ImageConfig, ImageFile, Network, Options, Runtime, Source};

struct NoNetwork;

#[async_trait]
impl Network for NoNetwork {
    async fn attach(&self, _: &Attachment) -> Result<Vec<IpAddr>, Source> {
        Ok(Vec::new())
    }

    async fn detach(&self, _: &Attachment) -> Result<(), Source> {
        Ok(())
    }

    async fn ready(&self) -> Result<(), Source> {
        Ok(())
    }
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|first| first == decapod_runtime::shim::ARGUMENT) {
        return decapod_runtime::shim::main(&args[1..]);
    }
    let rounds = args.first().and_then(|first| first.to_str()?.parse().ok()).unwrap_or(30);
    let root = std::env::temp_dir().join(format!("dcp-bench-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let ours = runtime.block_on(ours(&root, rounds));
    for program in ["runc", "crun"] {
        let theirs = match Command::new(program).arg("--version").output() {
            Ok(_) => theirs(program, &root, rounds),
            Err(_) => {
                println!("{program}: not installed");
                None
            }
        };
        if let Some(theirs) = theirs {
            let verdict = if ours <= theirs { "kept" } else { "MISSED" };
            println!("create + start, p50: mark at or below {program}: {verdict}");
        }
    }
    std::fs::remove_dir_all(root).unwrap();
    ExitCode::SUCCESS
}

/// The middle of what create and start took.
async fn ours(root: &Path, rounds: usize) -> Duration {
    let mut options = Options::new(root.join("data"), root.join("run"), Arc::new(NoNetwork)).unwrap();
    let cgroup = format!("/dcp-bench-{}", std::process::id());
    options.shim_cgroup = Some(format!("{cgroup}/shims"));
    let runtime = Embedded::open(options).await.unwrap();
    let file = ImageFile { source: "/bin/busybox".into(), target: "/bin/sleep".into(), mode: 0o755 };
    let config = ImageConfig { env: vec!["PATH=/bin".into()], ..Default::default() };
    let image = runtime.image_from_files("bench.internal/sleep:1", vec![file], config).await.unwrap();
    let pod = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata { name: "bench".into(), ..Default::default() }),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: format!("{cgroup}/pod"),
            ..Default::default()
        }),
        ..Default::default()
    };
    let (mut sandboxes, mut starts, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let began = Instant::now();
        let id = runtime.sandbox_run(&pod, "").await.unwrap();
        sandboxes.push(began.elapsed());
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "c".into(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: image.clone(), ..Default::default() }),
            command: vec!["sleep".into(), "1000".into()],
            ..Default::default()
        };
        let began = Instant::now();
        let container = runtime.container_create(&id, &config, &pod).await.unwrap();
        runtime.container_start(&container).await.unwrap();
        starts.push(began.elapsed());
        runtime.container_remove(&container).await.unwrap();
        whole.push(began.elapsed());
        if sandboxes.len() == rounds {
            println!("shim: {}", memory_of_shims());
        }
        runtime.sandbox_remove(&id).await.unwrap();
    }
    report("decapod: sandbox", sandboxes);
    let middle = report("decapod: container create + start", starts);
    report("decapod: container create + start + remove", whole);
    runtime.remove_all().await.unwrap();
    runtime.close().await;
    // The group above the pod's and the shims' is this program's own.
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        std::fs::remove_dir(hierarchy.path().join(cgroup.trim_start_matches('/'))).ok();
    }
    middle
}

/// Private memory of our shims, which are the processes with this program and that argument.
fn memory_of_shims() -> String {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0).skip(1);
        if words.next() != Some(decapod_runtime::shim::ARGUMENT.as_bytes()) {
            continue;
        }
        let rollup = std::fs::read_to_string(process.path().join("smaps_rollup")).unwrap_or_default();
        let sum: u64 = rollup
            .lines()
            .filter(|line| line.starts_with("Private_"))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum();
        found.push(format!("{sum} KiB private"));
    }
    found.join(", ")
}

/// The same of another runtime, where it runs.
fn theirs(program: &str, root: &Path, rounds: usize) -> Option<Duration> {
    let bundle = root.join("bundle");
    std::fs::create_dir_all(bundle.join("rootfs/bin")).unwrap();
    std::fs::copy("/bin/busybox", bundle.join("rootfs/bin/sleep")).unwrap();
    std::fs::remove_file(bundle.join("config.json")).ok();
    let run = |args: &[&str]| -> bool {
        let status = Command::new(program)
            .args(args)
            .current_dir(&bundle)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        status.success()
    };
    if !run(&["spec"]) {
        println!("{program}: does not run on this machine");
        return None;
    }
    let spec = std::fs::read_to_string(bundle.join("config.json")).unwrap();
    let mut spec: serde_json::Value = serde_json::from_str(&spec).unwrap();
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = serde_json::json!(["/bin/sleep", "1000"]);
    // Machines that run this may not be allowed to raise limits.
    spec["process"].as_object_mut().unwrap().remove("rlimits");
    std::fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
    let (mut starts, mut whole) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let id = format!("dcp-bench-{}-{round}", std::process::id());
        let began = Instant::now();
        // crun of Debian 12 refuses machines with both versions of control groups.
        if !run(&["create", &id]) || !run(&["start", &id]) {
            println!("{program}: does not run containers on this machine");
            return None;
        }
        starts.push(began.elapsed());
        assert!(run(&["delete", "--force", &id]), "{program} delete");
        whole.push(began.elapsed());
    }
    let middle = report(&format!("{program}: create + start"), starts);
    report(&format!("{program}: create + start + delete"), whole);
    Some(middle)
}

/// Tells the times, and returns the middle one.
fn report(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e3;
    println!("{what:<45} p50 {:6.1} ms   p99 {:6.1} ms   min {:6.1} ms", at(50), at(99), at(0));
    times[(times.len() - 1) / 2]
}
