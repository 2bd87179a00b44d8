//! What containers may do, and what not.

use decapod_proto::cri;

use super::support::{World, context, script};

/// The lines of /proc/self/status that say what a process may do.
const LOOK: &str = "grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups|Uid|Gid)' /proc/self/status | tr '\\t' ' '";

fn look() -> String {
    // The test image has no grep and tr of its own name.
    LOOK.replace("grep", "busybox grep").replace("| tr", "| busybox tr")
}

fn line<'a>(text: &'a str, key: &str) -> &'a str {
    let found = text.lines().find_map(|line| line.strip_prefix(key));
    found.unwrap_or_else(|| panic!("no {key} in {text}")).trim_start_matches(':').trim()
}

pub(crate) async fn defaults_are_kubernetes() {
    let world = World::new("caps").await;
    let pod = world.pod("caps").await;
    let (_, log) = world.run(&pod, &script("default", &look())).await;
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(line(&log, set), "00000000a80425fb", "{set}: {log}");
    }
    assert_eq!(line(&log, "CapInh"), "0000000000000000");
    assert_eq!((line(&log, "NoNewPrivs"), line(&log, "Seccomp")), ("0", "2"), "{log}");
    assert_eq!(line(&log, "Groups"), "0");
    let mut config = script("strict", &look());
    let strict = context(&mut config);
    strict.capabilities = Some(cri::Capability {
        drop_capabilities: vec!["ALL".into()],
        add_capabilities: vec!["NET_BIND_SERVICE".into()],
        ..Default::default()
    });
    strict.no_new_privs = true;
    strict.run_as_user = Some(cri::Int64Value { value: 33 });
    strict.supplemental_groups = vec![1234];
    let (_, log) = world.run(&pod, &config).await;
    assert_eq!(line(&log, "CapBnd"), "0000000000000400");
    assert_eq!(line(&log, "CapEff"), "0000000000000000");
    assert_eq!((line(&log, "NoNewPrivs"), line(&log, "Seccomp")), ("1", "2"));
    assert_eq!(line(&log, "Uid"), "33 33 33 33");
    assert_eq!(line(&log, "Gid"), "34 34 34 34");
    assert_eq!(line(&log, "Groups"), "34 50 1234");
    // An exec has what the container has.
    let mut config = script("up", "sleep 1000");
    context(&mut config).no_new_privs = true;
    let id = world.start(&pod, &config).await;
    let inside = world.exec(&id, &["sh", "-c", &look()]).await;
    let log = String::from_utf8(inside.stdout).unwrap();
    assert_eq!((line(&log, "NoNewPrivs"), line(&log, "Seccomp")), ("1", "2"), "{log}");
    assert_eq!(line(&log, "CapBnd"), "00000000a80425fb");
    world.end().await;
}

pub(crate) async fn filters_forbid() {
    let world = World::new("filter").await;
    let pod = world.pod("filter").await;
    let attempts = "unshare -U true 2>/dev/null && echo user; mount -t tmpfs x /tmp 2>/dev/null && echo mount; \
                    echo x 2>/dev/null > /proc/sys/kernel/hostname && echo sysctl; \
                    busybox cat /proc/kcore 2>/dev/null | head -c 1; \
                    mknod /tmp/disk b 8 0 && head -c 1 /tmp/disk 2>/dev/null && echo disk; \
                    ls /sys/firmware; echo end";
    let (_, log) = world.run(&pod, &script("c", attempts)).await;
    assert_eq!(log, "end\n");
    world.end().await;
}

pub(crate) async fn profiles_of_the_node_are_enforced() {
    let world = World::new("profile").await;
    let pod = world.pod("profile").await;
    let profile = world.root.join("no-folders.json");
    let text = r#"{ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
        { "names": ["mkdir", "mkdirat", "call_of_tomorrow"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 },
        { "names": ["kill"], "action": "SCMP_ACT_ERRNO",
          "args": [{ "index": 1, "value": 15, "op": "SCMP_CMP_EQ" }] } ] }"#;
    std::fs::write(&profile, text).unwrap();
    let attempts = "mkdir /tmp/x; echo made $?; kill -15 $$; kill -0 $$ && echo alive";
    let confine = |config: &mut cri::ContainerConfig, path: &std::path::Path| {
        context(config).seccomp = Some(cri::SecurityProfile {
            profile_type: cri::security_profile::ProfileType::Localhost.into(),
            localhost_ref: path.display().to_string(),
        });
    };
    let mut config = script("confined", &format!("({attempts}) 2>&1; sleep 1000"));
    confine(&mut config, &profile);
    let id = world.start(&pod, &config).await;
    // An exec has what the container has, and the container what the profile said when it was created.
    std::fs::remove_file(&profile).unwrap();
    let inside = world.exec(&id, &["sh", "-c", &format!("({attempts}) 2>&1")]).await;
    let said = String::from_utf8(inside.stdout).unwrap();
    assert!(said.contains("No space left on device") && said.contains("made 1"), "{said}");
    assert!(said.contains("Operation not permitted") && said.contains("alive"), "{said}");
    let mut config = script("lost", "true");
    confine(&mut config, &profile);
    let error = world.create(&pod, &config).await.unwrap_err();
    assert!(error.chain().contains("no-folders.json"), "{error}");
    world.end().await;
}

pub(crate) async fn privileged_containers_may() {
    let world = World::new("priv").await;
    let mut pod = world.pod_config("priv");
    let sandbox = pod.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    sandbox.namespace_options =
        Some(cri::NamespaceOption { pid: cri::NamespaceMode::Pod.into(), ..Default::default() });
    let pod = world.run_pod(&pod).await.unwrap();
    let mut config = script("privileged", &format!("mount -t tmpfs x /tmp && echo mounted; {}", look()));
    context(&mut config).privileged = true;
    let (_, log) = world.run(&pod, &config).await;
    assert!(log.starts_with("mounted\n"), "{log}");
    assert_eq!(line(&log, "Seccomp"), "0");
    let mut config = script("readonly", "touch /x 2>/dev/null || echo no; touch /dev/shm/x && echo yes");
    context(&mut config).readonly_rootfs = true;
    assert_eq!(world.run(&pod, &config).await.1, "no\nyes\n");
    world.end().await;
}

pub(crate) async fn mounts_are_as_asked() {
    let world = World::new("mounts").await;
    let pod = world.pod("mounts").await;
    let volume = world.root.join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("file"), "from outside\n").unwrap();
    let mount = |target: &str, readonly| cri::Mount {
        container_path: target.into(),
        host_path: volume.display().to_string(),
        readonly,
        ..Default::default()
    };
    let mut config = script(
        "c",
        "cat /ro/file; touch /ro/x 2>/dev/null || echo denied; echo inside > /rw/new; pwd; busybox dmesg -h 2>/dev/null; true",
    );
    config.mounts = vec![mount("/ro", true), mount("/rw", false)];
    config.working_dir = "/made/for/it".into();
    let (_, log) = world.run_for_lines(&pod, &config, 3).await;
    assert_eq!(log, "from outside\ndenied\n/made/for/it\n");
    assert_eq!(std::fs::read_to_string(volume.join("new")).unwrap(), "inside\n");
    world.end().await;
}
