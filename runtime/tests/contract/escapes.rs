//! Ways out of a container that were found in other runtimes: each ends inside, or with an error.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use decapod_proto::cri;
use decapod_runtime::Error;
use serde_json::json;

use super::archive::{Archive, Compression, Entry, busybox_layer, tar_of};
use super::support::{World, context, script};

/// What must not be seen from inside.
const SECRET: &str = "secret of the host";

/// A folder of the host, with everything about it that could be changed.
struct Outside {
    path: PathBuf,
    before: BTreeMap<PathBuf, (u32, u64, i64, String)>,
}

impl Outside {
    fn new(world: &World) -> Self {
        let path = world.root.join("outside");
        std::fs::create_dir_all(path.join("dir")).unwrap();
        std::fs::write(path.join("secret"), SECRET).unwrap();
        let before = look(&path);
        Outside { path, before }
    }

    fn text(&self) -> &'static str {
        Box::leak(self.path.display().to_string().into_boxed_str())
    }

    fn is_untouched(&self, what: &str) {
        assert_eq!(look(&self.path), self.before, "{what}: changed what is outside");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.text()), "{what}: mounted outside");
    }
}

fn look(path: &Path) -> BTreeMap<PathBuf, (u32, u64, i64, String)> {
    let mut found = BTreeMap::new();
    let mut open = vec![path.to_owned()];
    while let Some(path) = open.pop() {
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let content = std::fs::read_to_string(&path).unwrap_or_default();
        found.insert(path, (meta.mode(), meta.nlink(), meta.mtime(), content));
    }
    found
}

/// Imports an image that has more than the test image.
async fn image(world: &World, name: &str, entries: &[Entry], config: &serde_json::Value) {
    let layers = [(busybox_layer(), Compression::Gzip), (tar_of(entries), Compression::None)];
    let archive = Archive::oci(name, &layers, config).save(&world.root, "escape.tar");
    world.import(&archive).await.unwrap();
}

fn of_image(mut config: cri::ContainerConfig, image: &str) -> cri::ContainerConfig {
    config.image = Some(cri::ImageSpec { image: image.into(), ..Default::default() });
    config
}

/// Runs a container whatever may come of it: its log, or why it did not start.
async fn attempt(world: &World, pod: &str, config: &cri::ContainerConfig) -> Result<String, Error> {
    let id = world.create(pod, config).await?;
    world.runtime.container_start(&id).await?;
    let status = world.exited(&id).await;
    let log = std::fs::read_to_string(&status.log_path).unwrap();
    world.runtime.container_remove(&id).await?;
    Ok(log)
}

/// CVE-2024-21626: descriptors of the runtime as a working directory, or in the container's hands.
pub(crate) async fn descriptors_do_not_leak() {
    let world = World::new("leaks").await;
    let outside = Outside::new(&world);
    let pod = world.pod("leaks").await;
    let up = format!("cat ../../../../../../../..{}/secret 2>/dev/null; echo end", outside.text());
    for number in 3..=20 {
        let mut config = script(&format!("fd{number}"), &up);
        config.working_dir = format!("/proc/self/fd/{number}");
        // Where it starts after all, it starts inside.
        if let Ok(log) = attempt(&world, &pod, &config).await {
            assert!(!log.contains(SECRET), "descriptor {number}: {log}");
        }
    }
    let list = "for fd in /proc/self/fd/*; do busybox readlink $fd; done; echo end";
    let (_, log) = world.run(&pod, &script("own", list)).await;
    assert!(!log.contains(&world.root.display().to_string()), "{log}");
    let id = world.start(&pod, &script("up", "sleep 1000")).await;
    for command in [list, "busybox ls -l /proc/1/fd"] {
        let seen = world.exec(&id, &["sh", "-c", command]).await;
        let seen = String::from_utf8(seen.stdout).unwrap();
        assert!(!seen.contains(&world.root.display().to_string()) && !seen.contains("shim"), "{seen}");
    }
    outside.is_untouched("descriptors");
    world.end().await;
}

/// CVE-2021-30465, CVE-2025-31133, CVE-2025-52565 and their like: an image in whose root the places that the
/// runtime mounts on are links that lead out.
pub(crate) async fn mount_points_that_are_links_stay_inside() {
    let world = World::new("links").await;
    let outside = Outside::new(&world);
    let pod = world.pod("links").await;
    let volume = world.root.join("volume");
    std::fs::create_dir(&volume).unwrap();
    let (to, up) = (outside.text(), "../../../../../../../../../../../../");
    let up: &'static str = Box::leak(format!("{up}{}/dir", to.trim_start_matches('/')).into_boxed_str());
    let secret: &'static str = Box::leak(format!("{to}/secret").into_boxed_str());
    let cases: Vec<(&str, Vec<Entry>)> = vec![
        ("proc", vec![Entry::symlink("proc", to)]),
        ("sys", vec![Entry::symlink("sys", up)]),
        ("dev", vec![Entry::symlink("dev", to)]),
        ("shm", vec![Entry::dir("dev/"), Entry::symlink("dev/shm", to)]),
        ("null", vec![Entry::dir("dev/"), Entry::symlink("dev/null", secret)]),
        ("console", vec![Entry::dir("dev/"), Entry::symlink("dev/console", secret)]),
        ("pts", vec![Entry::dir("dev/"), Entry::symlink("dev/pts", to)]),
        ("hosts", vec![Entry::symlink("etc/hosts", secret)]),
        ("resolv", vec![Entry::symlink("etc/resolv.conf", up)]),
        ("volume", vec![Entry::symlink("data", to)]),
        ("volume-above", vec![Entry::symlink("data", up)]),
        ("chain", vec![Entry::symlink("data", "second"), Entry::symlink("second", to)]),
        ("self-root", vec![Entry::symlink("data", "/proc/self/root/../../..")]),
        ("work", vec![Entry::symlink("work", to)]),
        ("cgroup", vec![Entry::dir("sys/"), Entry::dir("sys/fs/"), Entry::symlink("sys/fs/cgroup", to)]),
    ];
    for (name, entries) in cases {
        let tag = format!("links.internal/{name}:1");
        image(&world, &tag, &entries, &json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"] })).await;
        let mut config =
            of_image(script(name, "echo mine > /data/x; touch /work/dir/y; cat /etc/hosts"), &tag);
        config.mounts = vec![cri::Mount {
            container_path: "/data/x".into(),
            host_path: volume.display().to_string(),
            ..Default::default()
        }];
        config.working_dir = "/work/dir".into();
        config.tty = name == "console";
        if let Ok(log) = attempt(&world, &pod, &config).await {
            assert!(!log.contains(SECRET), "{name}: {log}");
        }
        outside.is_untouched(name);
    }
    world.end().await;
}

/// What an image says about how to run it, made to confuse.
pub(crate) async fn hostile_images_are_refused_or_contained() {
    let world = World::new("confuse").await;
    let outside = Outside::new(&world);
    let pod = world.pod("confuse").await;
    let secret: &'static str = Box::leak(format!("{}/secret", outside.text()).into_boxed_str());
    let fifo = Entry { kind: tar::EntryType::Fifo, ..Entry::file("etc/passwd", "") };
    let zero =
        Entry { kind: tar::EntryType::Char, device: (1, 5), mode: 0o666, ..Entry::file("etc/passwd", "") };
    let cases: Vec<(&str, Vec<Entry>, serde_json::Value, Option<&str>)> = vec![
        ("fifo", vec![fifo], json!({}), Some("/etc/passwd")),
        ("zero", vec![zero], json!({}), Some("/etc/passwd")),
        ("directory", vec![Entry::dir("etc/passwd/")], json!({}), Some("/etc/passwd")),
        (
            "link",
            vec![Entry::symlink("etc/passwd", secret)],
            json!({ "User": "secret" }),
            Some("no matching entries"),
        ),
        ("negative", vec![], json!({ "User": "-1" }), Some("invalid user")),
        ("beyond", vec![], json!({ "User": "4294967296" }), Some("invalid user")),
        ("group", vec![], json!({ "User": "0:-5" }), Some("invalid group")),
        (
            "root-by-name",
            vec![Entry::file("etc/passwd", "evil:x:99999999999:0::/:/bin/sh\n")],
            json!({ "User": "evil" }),
            Some("invalid user"),
        ),
        ("zero-byte", vec![], json!({ "Env": ["A=\u{0}b"] }), None),
        ("no-equals", vec![], json!({ "Env": ["=", "A", "PATH=/bin"] }), None),
        ("signal", vec![], json!({ "StopSignal": "SIGNONE" }), Some("SIGNONE")),
        ("upwards", vec![], json!({ "WorkingDir": "/../../../../../.." }), None),
        ("relative", vec![], json!({ "WorkingDir": "../../.." }), None),
    ];
    for (name, entries, mut config, expected) in cases {
        let tag = format!("confuse.internal/{name}:1");
        if config.get("Env").is_none() {
            config["Env"] = json!(["PATH=/bin"]);
        }
        image(&world, &tag, &entries, &config).await;
        let up = format!("cat ../../../../../../../..{secret} 2>/dev/null; echo end");
        let ran = attempt(&world, &pod, &of_image(script(name, &up), &tag)).await;
        match (ran, expected) {
            (Ok(log), None) => assert!(!log.contains(SECRET), "{name}: {log}"),
            (Err(error), Some(why)) => assert!(error.chain().contains(why), "{name}: {}", error.chain()),
            (Err(_), None) => {}
            (Ok(log), Some(why)) => panic!("{name}: ran, expected {why:?}: {log}"),
        }
        outside.is_untouched(name);
    }
    world.end().await;
}

/// What root in a container tries first: each line that is printed is a way out.
const ATTEMPTS: &str = r#"
for file in /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/release_agent /sys/fs/cgroup/*/notify_on_release; do
    test -e $file && (echo 1 > $file) 2>/dev/null && echo wrote $file
done
for file in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/fs/binfmt_misc/register \
        /proc/sysrq-trigger /sys/kernel/uevent_helper /proc/irq/0/smp_affinity /proc/sys/vm/panic_on_oom; do
    (echo x > $file) 2>/dev/null && echo wrote $file
done
for file in /proc/kcore /proc/keys /proc/timer_list /sys/firmware/acpi/tables/DSDT; do
    test -n "$(busybox head -c 1 $file 2>/dev/null | busybox od -c | busybox head -1)" && test -s $file && echo read $file
done
busybox mkdir /tmp/m
busybox mount -t cgroup -o memory x /tmp/m 2>/dev/null && echo mounted cgroup
busybox mount -t proc x /tmp/m 2>/dev/null && echo mounted proc
busybox mount -o remount,rw /proc/sys 2>/dev/null && echo remounted
busybox mount --bind / /tmp/m 2>/dev/null && echo bound
busybox umount /proc/kcore 2>/dev/null && echo unmasked
busybox umount /proc/sys 2>/dev/null && echo unprotected
busybox unshare -m true 2>/dev/null && echo unshared
busybox unshare -U true 2>/dev/null && echo user namespace
busybox nsenter -t 1 -m -n true 2>/dev/null && test "$(busybox readlink /proc/1/ns/mnt)" != "$(busybox readlink /proc/self/ns/mnt)" && echo entered
busybox chroot /proc/1/root/.. busybox test -e "$OUTSIDE/secret" 2>/dev/null && echo chroot
busybox insmod /bin/busybox 2>/dev/null && echo module
busybox hostname evil 2>/dev/null && echo hostname
for pid in /proc/[0-9]*; do
    (echo x > $pid/exe) 2>/dev/null && echo wrote $pid/exe
    test -e "$pid/root$OUTSIDE/secret" && echo saw through $pid/root
    test -e "$pid/cwd$OUTSIDE/secret" && echo saw through $pid/cwd
done
busybox dmesg >/dev/null 2>&1 && test "$(busybox cat /proc/sys/kernel/dmesg_restrict)" = 1 && echo dmesg
echo end
"#;

pub(crate) async fn root_inside_stays_inside() {
    let world = World::new("rootin").await;
    let outside = Outside::new(&world);
    let pod = world.pod("rootin").await;
    let mut config = script("c", ATTEMPTS);
    config.envs = vec![cri::KeyValue { key: "OUTSIDE".into(), value: outside.text().into() }];
    let (_, log) = world.run(&pod, &config).await;
    assert_eq!(log, "end\n");
    outside.is_untouched("root inside");
    world.end().await;
}

/// CVE-2019-5736: the runtime's own program, seen through /proc from a container into which it executes.
pub(crate) async fn the_runtimes_program_is_not_written() {
    let world = World::new("exe").await;
    let outside = Outside::new(&world);
    let program = std::fs::metadata("/proc/self/exe").unwrap();
    let pod = world.pod("exe").await;
    // The program itself as the container's.
    for command in ["/proc/self/exe", "/proc/thread-self/exe", "/proc/1/exe"] {
        let mut config = script(&command.replace('/', "-"), "");
        config.command = vec![command.into(), "shim".into()];
        if let Ok(log) = attempt(&world, &pod, &config).await {
            assert!(!log.contains(SECRET), "{log}");
        }
    }
    let hunt = "while :; do for exe in /proc/[0-9]*/exe; do case $(busybox readlink $exe) in */busybox|'') ;; \
                *) (: >> $exe) 2>/dev/null && echo opened $exe;; esac; done; done";
    let hunter = world.start(&pod, &script("hunter", hunt)).await;
    for _ in 0..20 {
        assert_eq!(world.exec(&hunter, &["echo", "x"]).await.stdout, b"x\n");
    }
    let status = world.runtime.container_status(&hunter).await.unwrap();
    assert_eq!(std::fs::read_to_string(&status.log_path).unwrap(), "");
    let after = std::fs::metadata("/proc/self/exe").unwrap();
    assert_eq!((after.len(), after.mtime(), after.ino()), (program.len(), program.mtime(), program.ino()));
    outside.is_untouched("exe");
    world.end().await;
}

/// CVE-2016-9962: a process that enters the container, before it has let go of what is the runtime's, seen from inside;
/// also by one that may look into every process, and could take over one that has more privileges.
pub(crate) async fn who_enters_is_not_entered() {
    let world = World::new("enter").await;
    let outside = Outside::new(&world);
    let pod = world.pod("enter").await;
    let hunt = "own=$(busybox grep CapPrm /proc/self/status); while :; do for pid in /proc/[0-9]*; do \
                test -e $pid/root$OUTSIDE/secret && echo root of $pid; \
                test -e $pid/cwd/secret && echo cwd of $pid; \
                privileges=$(busybox grep CapPrm $pid/status 2>/dev/null); \
                case $privileges in ''|$own) ;; *) echo $pid has $privileges;; esac; \
                for fd in $pid/fd/*; do test -e $fd/secret && echo folder $fd; \
                case $(busybox readlink $fd) in $OUTSIDE*|*shim*|*/decapod*|*socket*|*pidfd*) echo file $fd;; esac; \
                done; done; done";
    for (name, added) in [("hunter", &[][..]), ("tracer", &["SYS_PTRACE", "DAC_READ_SEARCH"][..])] {
        let mut config = script(name, hunt);
        config.envs = vec![cri::KeyValue { key: "OUTSIDE".into(), value: outside.text().into() }];
        context(&mut config).capabilities = Some(cri::Capability {
            add_capabilities: added.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        });
        let hunter = world.start(&pod, &config).await;
        for _ in 0..30 {
            assert_eq!(world.exec(&hunter, &["echo", "x"]).await.stdout, b"x\n");
        }
        let status = world.runtime.container_status(&hunter).await.unwrap();
        assert_eq!(std::fs::read_to_string(&status.log_path).unwrap(), "", "{name}");
    }
    outside.is_untouched("entering");
    world.end().await;
}

/// What a container mounts in a volume stays its own, unless it is asked for otherwise.
pub(crate) async fn mounts_do_not_spread() {
    let world = World::new("spread").await;
    let volume = world.root.join("volume");
    std::fs::create_dir(&volume).unwrap();
    let pod = world.pod("spread").await;
    for propagation in
        [cri::MountPropagation::PropagationPrivate, cri::MountPropagation::PropagationHostToContainer]
    {
        let name = format!("c{}", propagation as i32);
        let mut config = script(&name, "mount -t tmpfs x /volume && echo mounted && touch /volume/inside");
        context(&mut config).privileged = true;
        config.mounts = vec![cri::Mount {
            container_path: "/volume".into(),
            host_path: volume.display().to_string(),
            propagation: propagation.into(),
            ..Default::default()
        }];
        assert_eq!(world.run(&pod, &config).await.1, "mounted\n");
        assert_eq!(std::fs::read_dir(&volume).unwrap().count(), 0, "{propagation:?}");
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&volume.display().to_string()), "{mounts}");
    world.end().await;
}
