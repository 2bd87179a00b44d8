//! Pods that come and go, with agents that are killed in the middle of it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use decapod_proto::cri;
use futures::StreamExt;

use super::support::{World, script};

/// Pods of the short run; `cargo xtask soak` says more.
const PODS: usize = 24;
/// Pods at once.
const AT_ONCE: usize = 8;
/// Steps that an agent has announced when it is killed: each kill falls into another step, in the first or a later pod.
const KILLED_AFTER: [usize; 10] = [1, 2, 3, 4, 5, 6, 7, 8, 14, 20];

/// An agent that makes one pod after the other, says each step before it takes it, and waits to be killed.
pub(crate) async fn agent(name: &str) {
    let world = World::open(name).await;
    for number in 0.. {
        println!("run");
        let pod = world.pod(&format!("p{number}-{}", std::process::id())).await;
        println!("create");
        let up = world.create(&pod, &script("up", "sleep 1000")).await.unwrap();
        let brief = world.create(&pod, &script("brief", "exit 3")).await.unwrap();
        println!("start");
        world.runtime.container_start(&up).await.unwrap();
        world.runtime.container_start(&brief).await.unwrap();
        println!("stop");
        world.runtime.sandbox_stop(&pod).await.unwrap();
        println!("remove");
        world.runtime.sandbox_remove(&pod).await.unwrap();
    }
}

/// Whatever step an agent dies in, the next one knows of every container how it is, and can remove everything.
pub(crate) async fn agents_die_at_any_step() {
    let name = format!("churn-{}", std::process::id());
    let world = World::open(&name).await;
    let archive = super::archive::busybox().save(&world.root, "busybox.tar");
    world.import(&archive).await.unwrap();
    world.embedded().close().await;
    drop(world);
    for steps in KILLED_AFTER {
        let mut agent = Command::new(std::env::current_exe().unwrap())
            .args(["churn", &name])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(agent.stdout.take().unwrap()).lines();
        for _ in 0..steps {
            said.next().expect("the agent does not end by itself").unwrap();
        }
        agent.kill().unwrap();
        agent.wait().unwrap();
    }
    let world = World::open(&name).await;
    for container in world.runtime.container_list(None).await.unwrap() {
        let status = world.runtime.container_status(&container.id).await.unwrap();
        let brief = status.metadata.as_ref().unwrap().name == "brief";
        match status.state() {
            cri::ContainerState::ContainerExited if brief => {
                assert!([3, 137, 255].contains(&status.exit_code), "{status:?}")
            }
            cri::ContainerState::ContainerExited => {
                assert!([137, 255].contains(&status.exit_code), "{status:?}")
            }
            state => assert_ne!(state, cri::ContainerState::ContainerUnknown),
        }
    }
    world.end().await;
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Processes, mounts, cgroups and directories are looked for at the end of every test; here it is many pods, and what
/// the agent itself holds.
pub(crate) async fn short_pods_leave_nothing() {
    let world = World::new("soak").await;
    let pods =
        std::env::var("DECAPOD_SOAK_PODS").map_or(PODS, |pods| pods.parse().expect("a number of pods"));
    let one = |number: usize| {
        let world = &world;
        async move {
            let pod = world.pod(&format!("soak-{number}")).await;
            let (status, _) = world.run(&pod, &script("c", "exit 5")).await;
            assert_eq!(status.exit_code, 5);
            world.runtime.sandbox_remove(&pod).await.unwrap();
        }
    };
    // What is made once is there after the first pods.
    let run = |numbers: std::ops::Range<usize>| {
        futures::stream::iter(numbers).map(one).buffer_unordered(AT_ONCE).collect::<Vec<()>>()
    };
    run(0..AT_ONCE).await;
    let before = descriptors();
    run(AT_ONCE..pods.max(AT_ONCE)).await;
    let after = descriptors();
    // Connections that are being closed: not more than there are pods at once.
    assert!(after <= before + 2 * AT_ONCE, "{before} descriptors became {after}");
    world.end().await;
}
