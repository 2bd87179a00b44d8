//! User namespaces of pods (KEP-127): root inside is nobody outside, and files are whose they are on disk.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use decapod_proto::cri;
use decapod_runtime::About;

use super::archive::BUSYBOX;
use super::support::{World, context, script};

/// The ids of the machine that the test's pod gets.
const FIRST: u32 = 1_966_080;
const COUNT: u32 = 65_536;

fn range(first: u32) -> Vec<cri::IdMapping> {
    vec![cri::IdMapping { host_id: first, container_id: 0, length: COUNT }]
}

fn pod_config(world: &World, name: &str, pid: cri::NamespaceMode) -> cri::PodSandboxConfig {
    let mut config = world.pod_config(name);
    let linux = config.linux.as_mut().unwrap();
    linux.security_context.as_mut().unwrap().namespace_options = Some(cri::NamespaceOption {
        pid: pid.into(),
        userns_options: Some(cri::UserNamespace {
            mode: cri::NamespaceMode::Pod.into(),
            uids: range(FIRST),
            gids: range(FIRST),
        }),
        ..Default::default()
    });
    config
}

fn in_users(mut config: cri::ContainerConfig, pod: &cri::PodSandboxConfig) -> cri::ContainerConfig {
    let options = pod.linux.as_ref().unwrap().security_context.as_ref().unwrap().namespace_options.clone();
    context(&mut config).namespace_options = options;
    config
}

fn volume(path: &Path, target: &str) -> cri::Mount {
    cri::Mount {
        container_path: target.into(),
        host_path: path.display().to_string(),
        uid_mappings: range(FIRST),
        gid_mappings: range(FIRST),
        ..Default::default()
    }
}

/// What a container of the pod sees of itself and of what it was given.
const LOOK: &str = "id -u; busybox awk '{print $1, $2, $3}' /proc/self/uid_map; \
    busybox stat -c '%n %u:%g' / /bin/busybox /etc/hosts /data /data/root /data/user /image/bin/busybox /work/dir; \
    echo more >> /data/root && echo made > /data/made && busybox chown 33:34 /data/user && echo wrote; \
    touch /dev/shm/x /made && echo touched; busybox stat -c %u /dev/shm /made; \
    echo out > /dev/stdout; hostname; \
    busybox mount -t tmpfs none /tmp 2>/dev/null && echo mounted; \
    busybox mknod /node c 1 1 2>/dev/null && echo node; \
    busybox cat /outside/secret 2>/dev/null; echo end";

/// What a privileged container may do: all that concerns its pod, and nothing to the machine.
const PRIVILEGED: &str = "id -u; busybox awk '{print $1, $2, $3}' /proc/self/uid_map; \
    busybox mount -t tmpfs none /tmp && echo mounted; test -c /dev/full && test -c /dev/ptmx && echo devices; \
    busybox mknod /node c 1 1 2>/dev/null && echo node; \
    (echo none > /proc/sys/kernel/core_pattern) 2>/dev/null && echo kernel; echo end";

pub(crate) async fn pods_have_users_of_their_own() {
    let world = World::new("users").await;
    for (name, pid) in [("own", cri::NamespaceMode::Container), ("shared", cri::NamespaceMode::Pod)] {
        let pod_config = pod_config(&world, name, pid);
        let pod = world.run_pod(&pod_config).await.unwrap();
        let data = world.root.join(name);
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("root"), "").unwrap();
        std::fs::write(data.join("user"), "").unwrap();
        chown(data.join("user"), Some(1000), Some(1001)).unwrap();
        let mut config = in_users(script("look", LOOK), &pod_config);
        config.working_dir = "/work/dir".into();
        config.mounts = vec![
            volume(&data, "/data"),
            cri::Mount {
                container_path: "/image".into(),
                image: Some(cri::ImageSpec { image: BUSYBOX.into(), ..Default::default() }),
                ..Default::default()
            },
        ];
        let (status, log) = world.run(&pod, &config).await;
        let expected = format!(
            "0\n0 {FIRST} {COUNT}\n/ 0:0\n/bin/busybox 0:0\n/etc/hosts 0:0\n/data 0:0\n/data/root 0:0\n\
             /data/user 1000:1001\n/image/bin/busybox 0:0\n/work/dir 0:0\nwrote\ntouched\n0\n0\nout\n{name}\nend\n"
        );
        assert_eq!(log, expected, "{}", status.message);
        let owner =
            |file: &str| std::fs::metadata(data.join(file)).map(|meta| (meta.uid(), meta.gid())).unwrap();
        assert_eq!((owner("root"), owner("made"), owner("user")), ((0, 0), (0, 0), (33, 34)));

        let id = world.start(&pod, &in_users(script("up", "sleep 1000"), &pod_config)).await;
        let told = world.runtime.info(About::Container(&id)).await.unwrap();
        let told: serde_json::Value = serde_json::from_str(&told["info"]).unwrap();
        let outside = std::fs::metadata(format!("/proc/{}", told["pid"])).unwrap();
        assert_eq!(outside.uid(), FIRST, "root inside is nobody outside");
        let inside = world
            .exec(&id, &["sh", "-c", "id -u; touch /by-exec; busybox stat -c %u /by-exec /proc/1"])
            .await;
        assert_eq!(inside.stdout, b"0\n0\n0\n", "{inside:?}");
        let mut config =
            in_users(script("user", "id -u; id -g; echo x > /dev/stderr; touch /data/theirs"), &pod_config);
        context(&mut config).run_as_user = Some(cri::Int64Value { value: 1000 });
        context(&mut config).run_as_group = Some(cri::Int64Value { value: 1001 });
        chown(&data, Some(1000), None).unwrap();
        config.mounts = vec![volume(&data, "/data")];
        let (status, log) = world.run(&pod, &config).await;
        assert_eq!((status.exit_code, log.as_str()), (0, "1000\n1001\nx\n"));
        assert_eq!(owner("theirs"), (1000, 1001));

        let mut config = in_users(script("privileged", PRIVILEGED), &pod_config);
        context(&mut config).privileged = true;
        let (status, log) = world.run(&pod, &config).await;
        assert_eq!(log, format!("0\n0 {FIRST} {COUNT}\nmounted\ndevices\nend\n"), "{}", status.message);
    }
    world.end().await;
}

pub(crate) async fn what_no_user_namespace_can_have_is_refused() {
    let world = World::new("nousers").await;
    let mut config = pod_config(&world, "host", cri::NamespaceMode::Node);
    let refused = world.run_pod(&config).await.unwrap_err();
    assert!(refused.chain().contains("cannot have namespaces of the node"), "{}", refused.chain());
    let options = |config: &mut cri::PodSandboxConfig, gids| {
        let linux = config.linux.as_mut().unwrap();
        let options = linux.security_context.as_mut().unwrap().namespace_options.as_mut().unwrap();
        options.pid = cri::NamespaceMode::Container.into();
        options.userns_options.as_mut().unwrap().gids = gids;
    };
    options(&mut config, range(FIRST + COUNT));
    let refused = world.run_pod(&config).await.unwrap_err();
    assert!(refused.chain().contains("the same for users and groups"), "{}", refused.chain());
    options(&mut config, range(FIRST));
    let pod = world.run_pod(&config).await.unwrap();
    let mut beyond = in_users(script("beyond", "true"), &config);
    context(&mut beyond).run_as_user = Some(cri::Int64Value { value: 70_000 });
    let refused = world.create(&pod, &beyond).await.unwrap_err();
    assert!(refused.chain().contains("70000: the pod's user namespace ends at 65535"), "{}", refused.chain());
    let mut unmapped = in_users(script("proc", "true"), &config);
    unmapped.mounts = vec![volume(Path::new("/proc/sys"), "/data")];
    let refused = world.create(&pod, &unmapped).await.unwrap_err();
    assert!(refused.chain().contains("/proc/sys: its file system cannot show files"), "{}", refused.chain());
    // What was refused has left nothing in the way.
    let (status, _) = world.run(&pod, &in_users(script("after", "true"), &config)).await;
    assert_eq!(status.exit_code, 0);
    world.end().await;
}
