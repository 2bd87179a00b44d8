//! Control groups of version 1 (one hierarchy per controller, also beside an empty version 2)
//! and of version 2.
//!
//! libcontainer creates a container's group and moves processes into it. Here is the rest:
//! groups above it, killing and removing whole groups, usage, and limits changed later.

mod device;
mod usage;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use decapod_proto::cri;

pub(crate) use device::Rule;
pub(crate) use usage::{Pressure, Usage};

/// Where control groups are mounted; every distribution agrees on it.
const ROOT: &str = "/sys/fs/cgroup";

/// Hierarchies of version 1 in which libcontainer makes a container's group.
const CONTROLLERS: [&str; 12] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
];

/// How long a group of killed processes may take to become empty: exits of large processes free
/// their memory first.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// Between two looks at a group that is to become empty.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The hierarchies of this machine.
#[derive(Clone, Debug)]
pub(crate) enum Hierarchies {
    /// One per controller (or set of them), by its mount point.
    V1(Vec<PathBuf>),
    /// One for all.
    V2(PathBuf),
}

impl Hierarchies {
    /// Finds out which version this machine uses.
    pub(crate) fn detect() -> io::Result<Self> {
        let root = PathBuf::from(ROOT);
        if root.join("cgroup.controllers").exists() {
            return Ok(Hierarchies::V2(root));
        }
        // Controllers that share a hierarchy have links to it: count each once.
        let mut mounts = BTreeSet::new();
        for entry in fs::read_dir(&root)? {
            let path = entry?.path();
            if path.join("cgroup.procs").exists() {
                mounts.insert(fs::canonicalize(path)?);
            }
        }
        if mounts.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no control groups at /sys/fs/cgroup"));
        }
        Ok(Hierarchies::V1(mounts.into_iter().collect()))
    }

    /// The directories of a group, one per hierarchy.
    fn directories(&self, group: &str) -> Vec<PathBuf> {
        let relative = group.trim_start_matches('/');
        match self {
            Hierarchies::V1(mounts) => mounts.iter().map(|mount| mount.join(relative)).collect(),
            Hierarchies::V2(root) => vec![root.join(relative)],
        }
    }

    /// The directory of a group in the hierarchy of one controller.
    fn directory(&self, controller: &str, group: &str) -> PathBuf {
        let relative = group.trim_start_matches('/');
        match self {
            Hierarchies::V1(_) => Path::new(ROOT).join(controller).join(relative),
            Hierarchies::V2(root) => root.join(relative),
        }
    }

    /// With version 1, the directories of a group and the names that they have below
    /// `/sys/fs/cgroup`; nothing with version 2, where one mount shows all.
    pub(crate) fn views(&self, group: &str) -> Vec<(PathBuf, String)> {
        let Hierarchies::V1(mounts) = self else { return Vec::new() };
        let relative = group.trim_start_matches('/');
        let named = mounts.iter().filter_map(|mount| Some((mount, mount.file_name()?.to_str()?)));
        let views = named.filter(|(_, name)| name.split(',').any(|part| CONTROLLERS.contains(&part)));
        views.map(|(mount, name)| (mount.join(relative), name.to_owned())).collect()
    }

    /// True where the group exists.
    pub(crate) fn exists(&self, group: &str) -> bool {
        self.directory("memory", group).is_dir()
    }

    /// Creates a group and those above it.
    pub(crate) fn create(&self, group: &str) -> io::Result<()> {
        for directory in self.directories(group) {
            fs::create_dir_all(&directory)?;
            inherit_cpuset(&directory)?;
        }
        if let Hierarchies::V2(root) = self {
            delegate_controllers(root, group)?;
        }
        Ok(())
    }

    /// Lets a group that exists use certain devices only. With version 1 the controller does
    /// that, by the container's specification.
    pub(crate) fn restrict_devices(&self, group: &str, rules: &[Rule]) -> io::Result<()> {
        match self {
            Hierarchies::V1(_) => Ok(()),
            Hierarchies::V2(_) => device::restrict(&self.directory("", group), rules),
        }
    }

    /// Moves a process into a group that exists.
    pub(crate) fn join(&self, group: &str, pid: i32) -> io::Result<()> {
        for directory in self.directories(group) {
            fs::write(directory.join("cgroup.procs"), pid.to_string())?;
        }
        Ok(())
    }

    /// Moves a process into a container's group, wherever the container has one.
    pub(crate) fn enter(&self, group: &str, pid: i32) -> io::Result<()> {
        let mut entered = false;
        for directory in self.directories(group) {
            match fs::write(directory.join("cgroup.procs"), pid.to_string()) {
                Ok(()) => entered = true,
                // libcontainer makes no groups in hierarchies without a controller.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        match entered {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::NotFound, format!("no control group {group}"))),
        }
    }

    /// The processes of a group and of those below it, in any hierarchy.
    pub(crate) fn processes(&self, group: &str) -> io::Result<BTreeSet<i32>> {
        let mut pids = BTreeSet::new();
        for directory in self.directories(group) {
            for directory in below(&directory)? {
                match fs::read_to_string(directory.join("cgroup.procs")) {
                    Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
                    Err(error) if is_gone(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        pids.remove(&0);
        Ok(pids)
    }

    /// Kills all processes of a group, and those that they start meanwhile. Does not wait for
    /// their end.
    pub(crate) fn kill(&self, group: &str) -> io::Result<()> {
        if let Hierarchies::V2(root) = self {
            let switch = root.join(group.trim_start_matches('/')).join("cgroup.kill");
            match fs::write(&switch, "1") {
                Ok(()) => return Ok(()),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        // Each round kills who was there when it looked; a fork bomb dies by its limit of
        // processes, anything else within a few rounds.
        let mut killed = BTreeSet::new();
        for _ in 0..16 {
            let fresh: Vec<i32> =
                self.processes(group)?.into_iter().filter(|pid| killed.insert(*pid)).collect();
            if fresh.is_empty() {
                break;
            }
            for pid in fresh {
                // SAFETY: kill has no memory effects. The group is ours, so are its processes.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
        Ok(())
    }

    /// Removes an empty group with those below it; what is not there is no error.
    pub(crate) fn remove(&self, group: &str) -> io::Result<()> {
        for directory in self.directories(group) {
            for directory in below(&directory)?.into_iter().rev() {
                match fs::remove_dir(&directory) {
                    Err(error) if !is_gone(&error) => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Kills what is in a group and removes it, waiting for the processes to end. Blocks.
    pub(crate) fn destroy(&self, group: &str) -> io::Result<()> {
        let mut left = EMPTY_WITHIN;
        loop {
            self.kill(group)?;
            match self.remove(group) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && !left.is_zero() => {
                    std::thread::sleep(LOOK_AGAIN);
                    left = left.saturating_sub(LOOK_AGAIN);
                }
                result => return result,
            }
        }
    }

    /// Processes of the group that the kernel killed for want of memory.
    pub(crate) fn oom_kills(&self, group: &str) -> u64 {
        let file = match self {
            Hierarchies::V1(_) => "memory.oom_control",
            Hierarchies::V2(_) => "memory.events",
        };
        usage::field(&self.directory("memory", group).join(file), "oom_kill").unwrap_or(0)
    }

    /// What the group uses now.
    pub(crate) fn usage(&self, group: &str) -> io::Result<Usage> {
        match self {
            Hierarchies::V1(_) => usage::read_v1(|controller| self.directory(controller, group)),
            Hierarchies::V2(_) => usage::read_v2(&self.directory("", group)),
        }
    }

    /// Changes the limits that are given; zero leaves one as it is.
    pub(crate) fn update(&self, group: &str, limits: &cri::LinuxContainerResources) -> io::Result<()> {
        for (controller, file, value) in self.settings(limits) {
            fs::write(self.directory(controller, group).join(file), value)?;
        }
        Ok(())
    }

    fn settings(&self, limits: &cri::LinuxContainerResources) -> Vec<(&'static str, &'static str, String)> {
        let v1 = matches!(self, Hierarchies::V1(_));
        let mut settings = Vec::new();
        let mut add = |controller, file, value| settings.push((controller, file, value));
        if limits.cpu_shares > 0 {
            match v1 {
                true => add("cpu", "cpu.shares", limits.cpu_shares.to_string()),
                false => add("cpu", "cpu.weight", weight(limits.cpu_shares).to_string()),
            }
        }
        if limits.cpu_quota != 0 && limits.cpu_period > 0 {
            match v1 {
                true => {
                    add("cpu", "cpu.cfs_period_us", limits.cpu_period.to_string());
                    add("cpu", "cpu.cfs_quota_us", limits.cpu_quota.to_string());
                }
                false if limits.cpu_quota < 0 => add("cpu", "cpu.max", format!("max {}", limits.cpu_period)),
                false => add("cpu", "cpu.max", format!("{} {}", limits.cpu_quota, limits.cpu_period)),
            }
        }
        if limits.memory_limit_in_bytes > 0 {
            let file = if v1 { "memory.limit_in_bytes" } else { "memory.max" };
            add("memory", file, limits.memory_limit_in_bytes.to_string());
        }
        settings
    }
}

/// CPU shares (2 to 262144) as the weight of version 2 (1 to 10000), as Kubernetes converts.
pub(crate) fn weight(shares: i64) -> i64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

/// The directory and all below it, parents first.
fn below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![directory.to_owned()];
    let mut next = 0;
    while next < found.len() {
        match fs::read_dir(&found[next]) {
            Ok(entries) => {
                for entry in entries {
                    let entry = entry?;
                    if entry.file_type()?.is_dir() {
                        found.push(entry.path());
                    }
                }
            }
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
        next += 1;
    }
    Ok(found)
}

/// A group may vanish between two system calls.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// A new cpuset of version 1 is empty, and takes no process until it is not.
fn inherit_cpuset(directory: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let mut above: Vec<&Path> = Vec::new();
        for path in directory.ancestors().take_while(|path| path.join(file).exists()) {
            above.push(path);
        }
        let Some(mut value) = above.last().map(|path| fs::read_to_string(path.join(file))).transpose()?
        else {
            return Ok(());
        };
        for path in above.iter().rev().skip(1) {
            let own = fs::read_to_string(path.join(file))?;
            match own.trim().is_empty() {
                true => fs::write(path.join(file), value.trim())?,
                false => value = own,
            }
        }
    }
    Ok(())
}

/// Version 2 gives a group only the controllers that the group above it passes on.
fn delegate_controllers(root: &Path, group: &str) -> io::Result<()> {
    let mut directory = root.to_owned();
    let parts: Vec<&str> = group.split('/').filter(|part| !part.is_empty()).collect();
    for part in &parts {
        let available = fs::read_to_string(directory.join("cgroup.controllers"))?;
        for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
            if available.split_ascii_whitespace().any(|name| name == controller) {
                // Refused where the group above has processes of its own, or is not ours. A limit
                // that needs the controller fails then, and says so.
                fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}")).ok();
            }
        }
        directory.push(part);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_span_the_range() {
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 39, 10_000));
    }

    #[test]
    fn groups_are_made_killed_and_removed() {
        let hierarchies = Hierarchies::detect().unwrap();
        let group = format!("/dcp-cgroup-{}/inner", std::process::id());
        hierarchies.create(&group).unwrap();
        assert!(hierarchies.exists(&group));
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id().cast_signed();
        hierarchies.join(&group, pid).unwrap();
        assert!(hierarchies.processes(&group).unwrap().contains(&pid));
        assert_eq!(hierarchies.usage(&group).unwrap().processes, Some(1));
        hierarchies.kill(&group).unwrap();
        assert!(!child.wait().unwrap().success());
        hierarchies.destroy(&format!("/dcp-cgroup-{}", std::process::id())).unwrap();
        assert!(!hierarchies.exists(&group));
    }
}
