//! What a node needs of this machine: room on its disk, settings and parts of the kernel, and its ports.
//!
//! What is looked at comes as text and numbers, so that what is said of it is tested without a machine that lacks it.

use std::path::Path;

use super::super::why::Finding;

/// Kernel settings that a node needs: the least that is enough, and what for.
const SETTINGS: [(&str, u64, &str); 5] = [
    ("net/ipv4/ip_forward", 1, "pods are reached by forwarding"),
    ("fs/inotify/max_user_instances", 128, "programs that watch files fail with \"too many open files\""),
    ("fs/inotify/max_user_watches", 8192, "programs that watch files fail with \"no space left on device\""),
    ("kernel/pid_max", 32_768, "a few hundred pods use up the process numbers"),
    ("user/max_user_namespaces", 1, "pods with hostUsers: false cannot start"),
];
/// Tables of the kernel that fill up: how full, how large, and what happens then.
const TABLES: [(&str, &str, &str); 1] = [(
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
    "then new connections are dropped",
)];
/// A table that is filled to so many hundredths is nearly full.
const FULL: u64 = 90;
/// Where images, volumes and objects lie, unless `--data-dir` says otherwise.
const DATA: &str = "/var/lib/decapod";
/// Where it would lie.
const NO_DATA: &str = "/var/lib";
/// So much has to be free: below a tenth of the disk the node takes no more pods, and the store needs some to write.
const FREE_BYTES: u64 = 1 << 30;
const FREE_HUNDREDTHS: u64 = 10;
/// What limits of pods are kept by.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// The ports of a server and of a node.
const PORTS: [(u16, &str, &str); 2] =
    [(6443, "the API server", "--listen"), (10250, "the node's server", "--kubelet-port")];

/// Room on a disk.
struct Room {
    path: &'static str,
    bytes: (u64, u64),
    files: (u64, u64),
}

/// What is wrong with this machine as a node or server. Where the cluster does not answer, who has its ports is said, too.
pub(super) fn examine(answers: bool) -> Vec<Finding> {
    if answers && !Path::new("/run/decapod").exists() {
        // It is a client's.
        return Vec::new();
    }
    let mut findings: Vec<Finding> = room().iter().filter_map(short).collect();
    for (name, least, why) in SETTINGS {
        findings.extend(number(name).and_then(|value| too_small(name, value, least, why)));
    }
    for (used, most, then) in TABLES {
        findings.extend(number(used).zip(number(most)).and_then(|filled| nearly_full(most, filled, then)));
    }
    findings.extend(text("/proc/filesystems").and_then(|text| no_overlay(&text)));
    let controllers = text("/sys/fs/cgroup/cgroup.controllers").filter(|all| !all.trim().is_empty());
    findings.extend(no_controllers(controllers.as_deref(), text("/proc/cgroups").as_deref()));
    if !answers {
        let sockets = [text("/proc/net/tcp"), text("/proc/net/tcp6")];
        findings.extend(taken(&sockets.into_iter().flatten().collect::<String>()));
    }
    findings
}

/// A file of the kernel; what this kernel does not have says nothing.
fn text(file: &str) -> Option<String> {
    std::fs::read_to_string(file).ok()
}

fn number(setting: &str) -> Option<u64> {
    text(&format!("/proc/sys/{setting}"))?.trim().parse().ok()
}

fn room() -> Option<Room> {
    let path = if Path::new(DATA).exists() { DATA } else { NO_DATA };
    let disk = nix::sys::statvfs::statvfs(path).ok()?;
    let size = disk.fragment_size();
    // What is kept for root counts for neither.
    let all = disk.blocks() - disk.blocks_free() + disk.blocks_available();
    let bytes = (disk.blocks_available() * size, all * size);
    Some(Room { path, bytes, files: (disk.files_available(), disk.files()) })
}

fn short(room: &Room) -> Option<Finding> {
    let way_out =
        "`decapod image rm` and `kubectl delete` make room; --data-dir puts a cluster on another disk";
    let hundredths = |(free, all): (u64, u64)| (free * 100).checked_div(all).unwrap_or(100);
    let (free, all) = room.bytes;
    if free < FREE_BYTES || hundredths(room.bytes) < FREE_HUNDREDTHS {
        let mib = |bytes: u64| bytes >> 20;
        let what = format!("the disk of {} has {} MiB free of {}", room.path, mib(free), mib(all));
        return Some(Finding::new(what).way_out(way_out));
    }
    let what = || format!("the disk of {} has {} files left of {}", room.path, room.files.0, room.files.1);
    (hundredths(room.files) < FREE_HUNDREDTHS).then(|| Finding::new(what()).way_out(way_out))
}

fn too_small(name: &str, value: u64, least: u64, why: &str) -> Option<Finding> {
    let dotted = name.replace('/', ".");
    (value < least).then(|| {
        Finding::new(format!("{dotted} is {value} on this machine: {why}"))
            .way_out(format!("`sysctl -w {dotted}={least}`, and a file in /etc/sysctl.d for the next boot"))
    })
}

fn nearly_full(name: &str, (used, most): (u64, u64), then: &str) -> Option<Finding> {
    let dotted = name.replace('/', ".");
    (used * 100 >= most * FULL).then(|| {
        Finding::new(format!("{used} of {dotted}={most} are used on this machine: {then}"))
            .way_out(format!("`sysctl -w {dotted}={}`", most * 2))
    })
}

fn no_overlay(filesystems: &str) -> Option<Finding> {
    let there = filesystems.lines().any(|line| line.split_whitespace().last() == Some("overlay"));
    (!there).then(|| {
        Finding::new("the kernel has no overlay file system: containers cannot start")
            .way_out("`modprobe overlay`")
    })
}

/// Of version 2 the controllers are named in one line; of version 1 in a table with whether each is enabled.
fn no_controllers(unified: Option<&str>, table: Option<&str>) -> Option<Finding> {
    let in_unified =
        |name: &str| unified.is_some_and(|line| line.split_whitespace().any(|word| word == name));
    let in_table = |name: &str| {
        let rows = table.unwrap_or_default().lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
        rows.into_iter().any(|row| row.first() == Some(&name) && row.get(3) == Some(&"1"))
    };
    let missing: Vec<&str> =
        CONTROLLERS.into_iter().filter(|name| !in_unified(name) && !in_table(name)).collect();
    (!missing.is_empty()).then(|| {
        Finding::new(format!(
            "the kernel has no cgroup controller {}: limits of pods are not kept",
            missing.join(", ")
        ))
        .way_out(format!("boot it with cgroup_enable={}", missing.join(",")))
    })
}

/// Who listens where the cluster would.
fn taken(sockets: &str) -> Vec<Finding> {
    const LISTENS: &str = "0A";
    let listens = |port: u16| {
        sockets.lines().any(|line| {
            let mut fields = line.split_whitespace();
            let local = fields.nth(1).and_then(|local| local.rsplit_once(':'));
            let port_there = local.and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
            port_there == Some(port) && fields.nth(1) == Some(LISTENS)
        })
    };
    let finding = |(port, what, flag): (u16, &str, &str)| {
        Finding::new(format!("something listens on port {port} of this machine, which is that of {what}"))
            .way_out(format!("`ss -ltnp sport = :{port}` says who; {flag} takes another port"))
    };
    PORTS.into_iter().filter(|(port, ..)| listens(*port)).map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_fills_up_is_told() {
        let room =
            |free: u64, files: u64| Room { path: DATA, bytes: (free << 30, 100 << 30), files: (files, 100) };
        assert_eq!(short(&room(50, 50)), None);
        assert!(short(&room(9, 50)).unwrap().what.contains("has 9216 MiB free of 102400"));
        assert!(short(&room(50, 9)).unwrap().what.contains("9 files left of 100"));
        // Some file systems do not count files.
        assert_eq!(short(&Room { files: (0, 0), ..room(50, 1) }), None);
    }

    #[test]
    fn settings_of_the_kernel_are_told_with_what_sets_them() {
        let (name, least, why) = SETTINGS[0];
        assert_eq!(too_small(name, 1, least, why), None);
        let found = too_small(name, 0, least, why).unwrap();
        assert_eq!(found.what, "net.ipv4.ip_forward is 0 on this machine: pods are reached by forwarding");
        assert!(found.way_out.unwrap().contains("sysctl -w net.ipv4.ip_forward=1"));
        let (_, most, then) = TABLES[0];
        assert_eq!(nearly_full(most, (899, 1000), then), None);
        assert!(nearly_full(most, (900, 1000), then).unwrap().what.starts_with("900 of net.netfilter"));
    }

    #[test]
    fn parts_of_the_kernel_that_are_missing_are_told() {
        assert_eq!(no_overlay("nodev\tsysfs\nnodev\toverlay\n\text4\n"), None);
        assert!(no_overlay("nodev\tsysfs\n").unwrap().way_out.unwrap().contains("modprobe overlay"));
        assert_eq!(no_controllers(Some("cpuset cpu io memory pids\n"), None), None);
        let table =
            "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t9\t1\nmemory\t0\t9\t0\npids\t3\t9\t1\n";
        assert!(no_controllers(None, Some(table)).unwrap().what.contains("controller memory:"));
        assert_eq!(no_controllers(Some("memory"), Some(table)), None);
    }

    #[test]
    fn who_has_the_clusters_port_is_told() {
        let head = "  sl  local_address rem_address   st tx_queue\n";
        let line =
            |state: &str| format!("{head}   0: 00000000:192B 00000000:0000 {state} 00000000:00000000\n");
        assert!(taken(&line("01")).is_empty());
        let found = taken(&line("0A"));
        assert!(found[0].what.contains("port 6443") && found.len() == 1, "{found:?}");
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        assert!(room().is_some_and(|room| room.bytes.1 > 0));
        assert!(number("kernel/pid_max").is_some());
    }
}
