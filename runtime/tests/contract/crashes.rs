//! Agents and shims that are killed.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use decapod_proto::cri;

use super::support::{World, eventually, script};

/// The other side of [`agents_may_die`]: an agent that makes a pod and waits to be killed.
pub(crate) async fn victim(name: &str) {
    let world = World::open(name).await;
    let archive = super::archive::busybox().save(&world.root, "busybox.tar");
    world.import(&archive).await.unwrap();
    let pod = world.pod("victim").await;
    let up = world.start(&pod, &script("up", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done")).await;
    let brief = world.start(&pod, &script("brief", "sleep 0.3; exit 6")).await;
    let created = world.create(&pod, &script("later", "echo late")).await;
    println!("{pod} {up} {brief} {}", created.unwrap());
    std::future::pending::<()>().await;
}

fn pid_of(root: &std::path::Path, pod: &str, container: &str) -> i32 {
    let file = root.join("data/pods").join(pod).join("containers").join(container).join("started.json");
    let started: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    i32::try_from(started["process"]["pid"].as_i64().unwrap()).unwrap()
}

pub(crate) async fn agents_may_die() {
    let name = format!("agent-{}", std::process::id());
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["agent", &name])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(agent.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ids: Vec<&str> = line.split_whitespace().collect();
    let [pod, up, brief, created] = ids.as_slice() else { panic!("the agent said {line:?}") };
    agent.kill().unwrap();
    agent.wait().unwrap();
    let root = std::env::temp_dir().join(format!("dcp-{name}"));
    let before = pid_of(&root, pod, up);
    // Ends while nobody looks.
    eventually("the brief container ends", || async {
        root.join("data/pods")
            .join(pod)
            .join("containers")
            .join(brief)
            .join("exit.json")
            .exists()
            .then_some(())
    })
    .await;

    let world = World::open(&name).await;
    let status = world.runtime.container_status(up).await.unwrap();
    assert_eq!(status.state(), cri::ContainerState::ContainerRunning);
    assert_eq!(pid_of(&root, pod, up), before);
    let ended = world.runtime.container_status(brief).await.unwrap();
    assert_eq!((ended.state(), ended.exit_code), (cri::ContainerState::ContainerExited, 6));
    assert!(ended.started_at > 0 && ended.finished_at > ended.started_at);
    // Nothing of the log is missing, and it goes on.
    let length = || std::fs::read_to_string(&status.log_path).unwrap().lines().count();
    let now = length();
    eventually("the log goes on", || async { (length() > now + 5).then_some(()) }).await;
    let log = std::fs::read_to_string(&status.log_path).unwrap();
    for (index, line) in log.lines().enumerate() {
        assert!(line.ends_with(&format!(" F {}", index + 1)), "{index}: {line}");
    }
    assert_eq!(world.exec(up, &["echo", "alive"]).await.stdout, b"alive\n");
    world.runtime.container_start(created).await.unwrap();
    assert_eq!(world.exited(created).await.exit_code, 0);
    // Exits after the take-over are events again.
    world.runtime.container_stop(up, Duration::ZERO).await.unwrap();
    assert_eq!(world.exited(up).await.exit_code, 137);
    world.end().await;
}

pub(crate) async fn shims_may_die() {
    let world = World::new("shim").await;
    let pod = world.pod("shim").await;
    let other = world.pod("other").await;
    let id = world.start(&pod, &script("c", "sleep 1000 & sleep 1000")).await;
    let safe = world.start(&other, &script("c", "sleep 1000")).await;
    let process = pid_of(&world.root, &pod, &id);
    let shim = parent_of(process);
    // SAFETY: kills a process that this test has made.
    assert_eq!(unsafe { libc::kill(shim, libc::SIGKILL) }, 0);
    let status = world.exited(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"), "{status:?}");
    assert!(status.message.contains("shim"));
    let sandbox = world.runtime.sandbox_status(&pod).await.unwrap();
    assert_eq!(sandbox.state(), cri::PodSandboxState::SandboxNotready);
    assert!(!std::path::Path::new(&format!("/proc/{process}")).exists() || is_zombie(process));
    // Others do not notice.
    assert_eq!(world.exec(&safe, &["echo", "fine"]).await.stdout, b"fine\n");
    world.runtime.sandbox_remove(&pod).await.unwrap();
    world.end().await;
}

/// A process number that another process has now is not the container's.
pub(crate) async fn numbers_are_reused() {
    let name = format!("reuse-{}", std::process::id());
    let world = World::open(&name).await;
    let archive = super::archive::busybox().save(&world.root, "busybox.tar");
    world.import(&archive).await.unwrap();
    let pod = world.pod("reuse").await;
    let id = world.start(&pod, &script("c", "sleep 1000")).await;
    let process = pid_of(&world.root, &pod, &id);
    let shim = parent_of(process);
    // The agent goes first, so that the next one finds both dead.
    world.embedded().close().await;
    for pid in [shim, process] {
        // SAFETY: kills processes that this test has made.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    let mut innocent = Command::new("sleep").arg("1000").spawn().unwrap();
    let bundle = world.root.join("data/pods").join(&pod).join("containers").join(&id);
    let record = format!(r#"{{"process":{{"pid":{},"started":1}},"at":1}}"#, innocent.id());
    std::fs::write(bundle.join("started.json"), record).unwrap();
    drop(world);
    let world = World::open(&name).await;
    let status = world.exited(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    assert!(innocent.try_wait().unwrap().is_none(), "an innocent process was killed");
    innocent.kill().unwrap();
    innocent.wait().unwrap();
    world.end().await;
}

/// Of a container that was being removed its folder may be half there; nobody knows then how it ended, or waits for it.
pub(crate) async fn removals_are_cut_short() {
    let name = format!("half-{}", std::process::id());
    let world = World::open(&name).await;
    let archive = super::archive::busybox().save(&world.root, "busybox.tar");
    world.import(&archive).await.unwrap();
    let pod = world.pod("half").await;
    let id = world.start(&pod, &script("c", "exit 3")).await;
    assert_eq!(world.exited(&id).await.exit_code, 3);
    let bundle = world.root.join("data/pods").join(&pod).join("containers").join(&id);
    let kept =
        ["container.json", "started.json"].map(|file| (file, std::fs::read(bundle.join(file)).unwrap()));
    world.runtime.container_remove(&id).await.unwrap();
    world.embedded().close().await;
    drop(world);
    std::fs::create_dir_all(&bundle).unwrap();
    for (file, content) in kept {
        std::fs::write(bundle.join(file), content).unwrap();
    }
    let world = World::open(&name).await;
    world.runtime.container_stop(&id, Duration::from_secs(1000)).await.unwrap();
    let status = world.runtime.container_status(&id).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"), "{status:?}");
    world.runtime.sandbox_remove(&pod).await.unwrap();
    world.end().await;
}

fn parent_of(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat[stat.rfind(')').unwrap() + 2..].split(' ').nth(1).unwrap().parse().unwrap()
}

fn is_zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}
