//! Pods and containers from their beginning to their end.

use std::time::Duration;

use decapod_proto::cri;
use decapod_runtime::Error;
use futures::StreamExt;

use super::support::{PATIENCE, Way, World, command, context, eventually, resources, script, way};

pub(crate) async fn exit_codes_and_logs() {
    let world = World::new("exits").await;
    let pod = world.pod("exits").await;
    let status = world.runtime.sandbox_status(&pod).await.unwrap();
    assert_eq!(status.state(), cri::PodSandboxState::SandboxReady);
    let expected = if way() == Way::Containerd { "10.180.77." } else { "10.244.0.7" };
    assert!(status.network.as_ref().unwrap().ip.starts_with(expected), "{status:?}");
    let (status, log) =
        world.run_for_lines(&pod, &script("ok", "echo out; echo err >&2; hostname; echo $FROM"), 4).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    assert_eq!(
        log.lines().filter(|line| ["out", "err", "exits", "image"].contains(line)).count(),
        4,
        "{log}"
    );
    assert!(status.created_at <= status.started_at && status.created_at <= status.finished_at);
    // containerd takes note of a start when its shim has answered: the process may have ended by then.
    assert!(status.started_at <= status.finished_at || way() == Way::Containerd, "{status:?}");
    let raw = std::fs::read_to_string(&status.log_path).unwrap();
    assert!(raw.contains(" stdout F out\n") && raw.contains(" stderr F err\n"), "{raw}");
    let (status, _) = world.run(&pod, &script("seven", "exit 7")).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    let (status, log) = world
        .run_for_lines(&pod, &script("signal", "exec 2>/dev/null; sh -c 'kill -9 $$'; echo $?"), 1)
        .await;
    assert!(status.exit_code == 0 && log.lines().any(|line| line == "137"), "{log}");
    // No newline at the end, and more than a pipe holds: of which containerd now and then loses the end.
    if way() != Way::Containerd {
        let (_, log) = world.run(&pod, &script("long", "seq 1 50000; echo -n end")).await;
        assert_eq!(log.lines().count(), 50_001);
        assert!(log.ends_with("50000\nend\n"), "{:?}", &log[log.len() - 30..]);
    }
    world.end().await;
}

pub(crate) async fn wrong_commands_are_named() {
    let world = World::new("wrong").await;
    let pod = world.pod("wrong").await;
    for (line, code, message) in [
        (["nonsense", ""], 127, "exec: \"nonsense\": executable file not found in $PATH"),
        (["/no/such", ""], 127, "stat /no/such: no such file or directory"),
        (["/etc/passwd", ""], 126, "permission denied"),
        (["/tmp", ""], 126, "permission denied"),
    ] {
        let config = command("wrong", &line[..1]);
        let id = world.create(&pod, &config).await.unwrap();
        match world.runtime.container_start(&id).await.unwrap_err() {
            Error::StartFailed { exit_code, message: found } => {
                assert_eq!(exit_code, code, "{found}");
                assert!(found.contains(message), "{found}");
            }
            other => panic!("{other:?}"),
        }
        let status = world.runtime.container_status(&id).await.unwrap();
        assert_eq!(status.state(), cri::ContainerState::ContainerExited);
        assert_eq!((status.exit_code, status.reason.as_str()), (code, "StartError"));
        assert!(status.message.contains(message));
        world.runtime.container_remove(&id).await.unwrap();
    }
    let mut config = script("user", "true");
    context(&mut config).run_as_username = "nobody-there".into();
    let error = world.create(&pod, &config).await.unwrap_err();
    assert!(error.to_string().contains("no matching entries in passwd file"), "{error}");
    let id = world.start(&pod, &script("up", "sleep 1000")).await;
    let error = world.runtime.exec_sync(&id, &["nonsense".to_owned()], Duration::ZERO).await.unwrap_err();
    assert!(matches!(error, Error::StartFailed { exit_code: 127, .. }), "{error:?}");
    world.end().await;
}

pub(crate) async fn stopping_asks_first() {
    let world = World::new("stop").await;
    let pod = world.pod("stop").await;
    let polite = world
        .start(&pod, &script("polite", "trap 'echo bye; exit 3' TERM; >/up; while :; do sleep 0.05; done"))
        .await;
    let rude = world.start(&pod, &script("rude", "trap '' TERM; >/up; while :; do sleep 0.05; done")).await;
    // Until the handler is there the first process of a namespace ignores the signal.
    for id in [&polite, &rude] {
        eventually("the handler to be there", || async {
            (world.exec(id, &["sh", "-c", "test -e /up"]).await.exit_code == 0).then_some(())
        })
        .await;
    }
    world.runtime.container_stop(&polite, Duration::from_secs(60)).await.unwrap();
    assert_eq!(world.runtime.container_status(&polite).await.unwrap().exit_code, 3);
    world.runtime.container_stop(&rude, Duration::from_millis(200)).await.unwrap();
    assert_eq!(world.runtime.container_status(&rude).await.unwrap().exit_code, 137);
    // Idempotent, also for what is not there.
    world.runtime.container_stop(&rude, Duration::ZERO).await.unwrap();
    world.runtime.container_remove(&rude).await.unwrap();
    world.runtime.container_remove(&rude).await.unwrap();
    world.runtime.sandbox_remove("nonsense").await.unwrap();
    assert!(world.runtime.container_status(&rude).await.unwrap_err().is_not_found());
    world.end().await;
}

pub(crate) async fn memory_limits_kill() {
    let world = World::new("oom").await;
    let pod = world.pod("oom").await;
    let mut config = script("hungry", "dd if=/dev/zero of=/dev/null bs=300M count=1; exit $?");
    resources(&mut config).memory_limit_in_bytes = 32 << 20;
    let (status, _) = world.run(&pod, &config).await;
    assert_eq!(status.reason, "OOMKilled", "{status:?}");
    assert_ne!(status.exit_code, 0);
    world.end().await;
}

pub(crate) async fn limits_and_usage() {
    let world = World::new("limits").await;
    let pod = world.pod("limits").await;
    let mut config = script("limited", "while :; do sleep 0.01; done");
    let limits = resources(&mut config);
    limits.memory_limit_in_bytes = 64 << 20;
    limits.cpu_shares = 512;
    limits.cpu_quota = 50_000;
    limits.cpu_period = 100_000;
    limits.oom_score_adj = 456;
    let id = world.start(&pod, &config).await;
    assert_eq!(world.exec(&id, &["cat", "/proc/1/oom_score_adj"]).await.stdout, b"456\n");
    let stats = eventually("usage", || async {
        let stats = world.runtime.container_stats(&id).await.unwrap();
        (stats.cpu.as_ref()?.usage_core_nano_seconds.as_ref()?.value > 0).then_some(stats)
    })
    .await;
    let memory = stats.memory.unwrap();
    assert!(memory.working_set_bytes.unwrap().value > 0);
    assert!(memory.available_bytes.unwrap().value <= 64 << 20);
    let update = cri::LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..Default::default() };
    world.runtime.container_update(&id, &update).await.unwrap();
    let stats = world.runtime.container_stats(&id).await.unwrap();
    assert!(stats.memory.unwrap().available_bytes.unwrap().value > 64 << 20);
    let stats = world.runtime.sandbox_stats(&pod).await.unwrap();
    assert!(stats.linux.unwrap().process.unwrap().process_count.unwrap().value >= 1);
    world.end().await;
}

pub(crate) async fn namespaces_are_shared_in_a_pod() {
    let world = World::new("share").await;
    let mut config = world.pod_config("share");
    let linux = config.linux.as_mut().unwrap();
    linux.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "0".into());
    let options = cri::NamespaceOption { pid: cri::NamespaceMode::Pod.into(), ..Default::default() };
    linux.security_context.as_mut().unwrap().namespace_options = Some(options);
    let pod = world.run_pod(&config).await.unwrap();
    let one = world.start(&pod, &script("one", "echo hello > /dev/shm/word; sleep 1000")).await;
    let two = world.start(&pod, &script("two", "sleep 2000")).await;
    eventually("shared memory", || async {
        (world.exec(&two, &["cat", "/dev/shm/word"]).await.stdout == b"hello\n").then_some(())
    })
    .await;
    // The pod's processes are one family, whose first one is none of the containers.
    let own = |id: String, name: &'static str| {
        let world = &world;
        async move {
            world
                .exec(
                    &id,
                    &["sh", "-c", &format!("readlink /proc/self/ns/{name} || ls -l /proc/self/ns/{name}")],
                )
                .await
                .stdout
        }
    };
    for name in ["net", "ipc", "uts", "pid"] {
        assert_eq!(own(one.clone(), name).await, own(two.clone(), name).await, "{name}");
    }
    assert_ne!(own(one.clone(), "mnt").await, own(two.clone(), "mnt").await);
    let processes = world.exec(&one, &["ps"]).await.stdout;
    assert!(String::from_utf8_lossy(&processes).contains("sleep 2000"));
    let sysctl = world.exec(&one, &["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"]).await.stdout;
    assert_eq!(sysctl, b"0\n");
    let resolv = world.exec(&one, &["cat", "/etc/resolv.conf"]).await.stdout;
    assert_eq!(resolv, b"nameserver 10.96.0.10\n");
    let hosts = world.exec(&one, &["cat", "/etc/hosts"]).await.stdout;
    assert!(String::from_utf8_lossy(&hosts).contains("10.244.0.7\tshare"));
    // With many processes before it, numbers differ from those on the machine.
    for n in 0..5 {
        world
            .run(&pod, &script(&format!("more-{n}"), "for i in 1 2 3 4 5 6 7 8 9; do true & done; wait"))
            .await;
    }
    // The first container's end leaves the namespace to the second.
    world.runtime.container_stop(&one, Duration::ZERO).await.unwrap();
    assert_eq!(world.exec(&two, &["echo", "on"]).await.stdout, b"on\n");
    world.runtime.sandbox_stop(&pod).await.unwrap();
    assert_eq!(
        world.network.calls.lock().unwrap().as_slice(),
        [format!("attach {pod}"), format!("detach {pod}")]
    );
    let status = world.runtime.sandbox_status(&pod).await.unwrap();
    assert_eq!(status.state(), cri::PodSandboxState::SandboxNotready);
    let error = world.create(&pod, &script("x", "true")).await;
    assert!(matches!(error.unwrap_err(), Error::WrongState { .. }));
    world.end().await;
}

pub(crate) async fn pods_on_the_host() {
    let world = World::new("host").await;
    let mut config = world.pod_config("host");
    // The host's own.
    config.hostname.clear();
    let node = cri::NamespaceMode::Node.into();
    let options = cri::NamespaceOption { network: node, pid: node, ipc: node, ..Default::default() };
    let linux = config.linux.as_mut().unwrap();
    linux.security_context.as_mut().unwrap().namespace_options = Some(options);
    let pod = world.run_pod(&config).await.unwrap();
    let id = world.start(&pod, &script("c", "sleep 1000 & sleep 1000")).await;
    for name in ["net", "ipc", "uts", "pid"] {
        let inside = world.exec(&id, &["ls", "-l", &format!("/proc/self/ns/{name}")]).await.stdout;
        let outside = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert!(String::from_utf8_lossy(&inside).contains(&outside.display().to_string()), "{name}");
    }
    assert!(world.network.calls.lock().unwrap().is_empty());
    world.end().await;
}

pub(crate) async fn events_tell_what_happens() {
    let world = World::new("events").await;
    let mut events = world.runtime.events().await.unwrap();
    let pod = world.pod("events").await;
    let (status, _) = world.run(&pod, &script("c", "exit 4")).await;
    world.runtime.sandbox_remove(&pod).await.unwrap();
    let mut kinds = Vec::new();
    loop {
        let event = tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap();
        kinds.push((event.container_id == pod, event.container_event_type()));
        if event.container_id == status.id
            && event.container_event_type() == cri::ContainerEventType::ContainerStoppedEvent
        {
            assert_eq!(event.containers_statuses[0].exit_code, 4);
            assert_eq!(event.pod_sandbox_status.as_ref().unwrap().id, pod);
        }
        if event.container_id == pod
            && event.container_event_type() == cri::ContainerEventType::ContainerDeletedEvent
        {
            break;
        }
    }
    use cri::ContainerEventType::*;
    let container: Vec<_> = kinds.iter().filter(|(pod, _)| !pod).map(|(_, kind)| *kind).collect();
    assert_eq!(container.len(), 4, "{container:?}");
    for kind in [ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent, ContainerDeletedEvent] {
        assert!(kinds.contains(&(true, kind)) && kinds.contains(&(false, kind)), "{kind:?}");
    }
    world.end().await;
}

pub(crate) async fn sandboxes_that_fail_leave_nothing() {
    let world = World::new("fail").await;
    let mut config = world.pod_config("fail");
    config.linux.as_mut().unwrap().sysctls.insert("net.no.such".into(), "1".into());
    let error = world.run_pod(&config).await.unwrap_err().chain();
    assert!(error.contains("net.no.such"), "{error}");
    let error = world.runtime.sandbox_run(&world.pod_config("x"), "kata").await.unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { .. }), "{error:?}");
    assert!(error.to_string().contains("runtime_handler"), "{error}");
    assert!(world.runtime.sandbox_list(None).await.unwrap().is_empty());
    assert!(std::fs::read_dir(world.root.join("run")).unwrap().next().is_none());
    world.end().await;
}

pub(crate) async fn many_pods_at_once() {
    let world = World::new("many").await;
    // Each has a process of containerd's beside it, of which some tens of MiB are resident.
    let count = if way() == Way::Containerd { 4 } else { 16 };
    let pods = (0..count).map(|index| {
        let world = &world;
        async move {
            let name = format!("many-{index}");
            let pod = world.pod(&name).await;
            for round in 0..3 {
                let config = script(&format!("c{round}"), &format!("hostname; exit {round}"));
                let (status, log) = world.run_for_lines(&pod, &config, 1).await;
                assert_eq!((status.exit_code, log), (round, format!("{name}\n")));
            }
            let up = world.start(&pod, &script("up", "sleep 1000")).await;
            let answers = (0..4).map(|_| world.exec(&up, &["echo", "yes"]));
            for answer in futures::future::join_all(answers).await {
                assert_eq!(answer.stdout, b"yes\n");
            }
            world.runtime.sandbox_remove(&pod).await.unwrap();
        }
    });
    futures::future::join_all(pods).await;
    assert!(world.runtime.sandbox_list(None).await.unwrap().is_empty());
    assert!(world.runtime.container_list(None).await.unwrap().is_empty());
    world.end().await;
}
