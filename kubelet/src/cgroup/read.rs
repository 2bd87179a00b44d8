//! What a control group uses and may use, by the names of cAdvisor: for `/metrics/cadvisor`.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Cgroups, Hierarchy, join};

/// A v1 limit above this is none: the kernel shows the largest page-aligned number.
const NO_LIMIT: u64 = 1 << 60;

/// One control group. `None` where the kernel does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Reading {
    /// Processor time in seconds: all, in user mode, in the kernel.
    pub(crate) cpu: Option<f64>,
    pub(crate) cpu_user: Option<f64>,
    pub(crate) cpu_system: Option<f64>,
    /// Periods of a quota: all, those in which it was used up, and the seconds waited.
    pub(crate) periods: Option<f64>,
    pub(crate) throttled_periods: Option<f64>,
    pub(crate) throttled: Option<f64>,
    /// Memory in bytes.
    pub(crate) memory: Option<f64>,
    pub(crate) working_set: Option<f64>,
    pub(crate) rss: Option<f64>,
    pub(crate) cache: Option<f64>,
    pub(crate) mapped: Option<f64>,
    pub(crate) swap: Option<f64>,
    pub(crate) peak: Option<f64>,
    /// How often the limit was reached.
    pub(crate) failures: Option<f64>,
    pub(crate) faults: Option<f64>,
    pub(crate) major_faults: Option<f64>,
    /// Processes that were killed for want of memory.
    pub(crate) oom_kills: Option<f64>,
    pub(crate) tasks: Option<f64>,
    /// Limits; 0 for no limit, as cAdvisor has it.
    pub(crate) memory_limit: Option<f64>,
    pub(crate) quota: Option<f64>,
    pub(crate) period: Option<f64>,
    pub(crate) shares: Option<f64>,
}

impl Cgroups {
    /// Reads a control group; one that is gone says nothing.
    pub(crate) fn read(&self, group: &str) -> Reading {
        match &self.hierarchy {
            Hierarchy::V1(trees) => v1(|controller| {
                let tree = trees.iter().find(|tree| tree.controllers.iter().any(|c| c == controller));
                tree.map(|tree| join(&tree.path, group))
            }),
            Hierarchy::V2(root) => v2(&join(root, group)),
        }
    }

    /// A process of the group, if there is one.
    pub(crate) fn process(&self, group: &str) -> Option<u32> {
        let mut texts =
            self.trees().into_iter().filter_map(|tree| text(&join(&tree, group).join("cgroup.procs")));
        texts.find_map(|text| text.lines().next()?.parse().ok())
    }
}

fn v1(folder: impl Fn(&str) -> Option<PathBuf>) -> Reading {
    let number = |controller: &str, file: &str| Some(number(&folder(controller)?.join(file))? as f64);
    let fields = |controller: &str, file: &str| folder(controller).map(|f| Fields::read(&f.join(file)));
    let cpu = fields("cpu", "cpu.stat").unwrap_or_default();
    let times = fields("cpuacct", "cpuacct.stat").unwrap_or_default();
    let memory = fields("memory", "memory.stat").unwrap_or_default();
    let oom = fields("memory", "memory.oom_control").unwrap_or_default();
    let used = number("memory", "memory.usage_in_bytes");
    let limit = number("memory", "memory.limit_in_bytes");
    Reading {
        cpu: number("cpuacct", "cpuacct.usage").map(|nanos| nanos / 1e9),
        // Ticks are a hundredth of a second on every Linux that we run on.
        cpu_user: times.get("user").map(|ticks| ticks / 100.0),
        cpu_system: times.get("system").map(|ticks| ticks / 100.0),
        periods: cpu.get("nr_periods"),
        throttled_periods: cpu.get("nr_throttled"),
        throttled: cpu.get("throttled_time").map(|nanos| nanos / 1e9),
        memory: used,
        working_set: used.map(|used| (used - memory.get("total_inactive_file").unwrap_or(0.0)).max(0.0)),
        rss: memory.get("total_rss"),
        cache: memory.get("total_cache"),
        mapped: memory.get("total_mapped_file"),
        swap: memory.get("total_swap"),
        peak: number("memory", "memory.max_usage_in_bytes"),
        failures: number("memory", "memory.failcnt"),
        faults: memory.get("total_pgfault"),
        major_faults: memory.get("total_pgmajfault"),
        oom_kills: oom.get("oom_kill"),
        tasks: number("pids", "pids.current"),
        memory_limit: limit.map(|limit| if limit < NO_LIMIT as f64 { limit } else { 0.0 }),
        quota: number("cpu", "cpu.cfs_quota_us").filter(|quota| *quota > 0.0),
        period: number("cpu", "cpu.cfs_period_us"),
        shares: number("cpu", "cpu.shares"),
    }
}

fn v2(folder: &Path) -> Reading {
    let number = |file: &str| number(&folder.join(file)).map(|n| n as f64);
    let cpu = Fields::read(&folder.join("cpu.stat"));
    let memory = Fields::read(&folder.join("memory.stat"));
    let events = Fields::read(&folder.join("memory.events"));
    let micros = |name: &str| cpu.get(name).map(|micros| micros / 1e6);
    let used = number("memory.current");
    let max = text(&folder.join("cpu.max"));
    let (quota, period) = match max.as_deref().map(str::trim).and_then(|text| text.split_once(' ')) {
        Some((quota, period)) => (quota.parse().ok(), period.parse().ok()),
        None => (None, None),
    };
    Reading {
        cpu: micros("usage_usec"),
        cpu_user: micros("user_usec"),
        cpu_system: micros("system_usec"),
        periods: cpu.get("nr_periods"),
        throttled_periods: cpu.get("nr_throttled"),
        throttled: micros("throttled_usec"),
        memory: used,
        working_set: used.map(|used| (used - memory.get("inactive_file").unwrap_or(0.0)).max(0.0)),
        rss: memory.get("anon"),
        cache: memory.get("file"),
        mapped: memory.get("file_mapped"),
        swap: number("memory.swap.current"),
        peak: number("memory.peak"),
        failures: events.get("max"),
        faults: memory.get("pgfault"),
        major_faults: memory.get("pgmajfault"),
        oom_kills: events.get("oom_kill"),
        tasks: number("pids.current"),
        memory_limit: used.and(Some(number("memory.max").unwrap_or(0.0))),
        quota,
        period,
        // The inverse of what the kubelet's own weights are made by.
        shares: number("cpu.weight").map(|weight| (2.0 + (weight - 1.0) * 262_142.0 / 9999.0).floor()),
    }
}

/// What a file of the kernel's says: nothing where it is not there, be it that the group has gone or that this kernel
/// does not have it. That it cannot be read for another reason is no reason to tell nothing about the rest.
pub(crate) fn text(file: &Path) -> Option<String> {
    match fs::read_to_string(file) {
        Ok(text) => Some(text),
        Err(error) => {
            // A group or process that goes while it is read answers so.
            let gone = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ESRCH));
            if !gone && error.raw_os_error() != Some(libc::EOPNOTSUPP) {
                tracing::warn!(path = %file.display(), %error, "a figure of the kernel's cannot be read");
            }
            None
        }
    }
}

/// A file with one key and number per line.
#[derive(Debug, Default)]
struct Fields(String);

impl Fields {
    fn read(file: &Path) -> Self {
        Self(text(file).unwrap_or_default())
    }

    fn get(&self, key: &str) -> Option<f64> {
        let mut lines = self.0.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(name, _)| *name == key)?.1.trim().parse().ok()
    }
}

/// The one number of a file; `None` where it is not there, or says `max`.
fn number(file: &Path) -> Option<i64> {
    text(file)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        for (file, text) in files {
            fs::write(dir.join(file), text).unwrap();
        }
    }

    #[test]
    fn both_versions_say_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("v1"), dir.path().join("v2"));
        fs::create_dir_all(&old).unwrap();
        fs::create_dir_all(&new).unwrap();
        let old_files = [
            ("cpuacct.usage", "1500000000\n"),
            ("cpuacct.stat", "user 100\nsystem 50\n"),
            ("cpu.stat", "nr_periods 10\nnr_throttled 2\nthrottled_time 2000000000\n"),
            ("cpu.cfs_quota_us", "50000\n"),
            ("cpu.cfs_period_us", "100000\n"),
            ("cpu.shares", "1024\n"),
            ("memory.usage_in_bytes", "1000\n"),
            ("memory.max_usage_in_bytes", "2000\n"),
            ("memory.failcnt", "3\n"),
            ("memory.limit_in_bytes", "4096\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
            (
                "memory.stat",
                "cache 0\ntotal_cache 300\ntotal_rss 600\ntotal_mapped_file 20\ntotal_swap 5\n\
                 total_pgfault 7\ntotal_pgmajfault 1\ntotal_inactive_file 200\n",
            ),
            ("pids.current", "4\n"),
        ];
        let new_files = [
            (
                "cpu.stat",
                "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnr_periods 10\nnr_throttled 2\n\
                 throttled_usec 2000000\n",
            ),
            ("cpu.max", "50000 100000\n"),
            ("cpu.weight", "40\n"),
            ("memory.current", "1000\n"),
            ("memory.peak", "2000\n"),
            ("memory.max", "4096\n"),
            ("memory.swap.current", "5\n"),
            ("memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n"),
            (
                "memory.stat",
                "anon 600\nfile 300\nfile_mapped 20\ninactive_file 200\npgfault 7\npgmajfault 1\n",
            ),
            ("pids.current", "4\n"),
        ];
        write(&old, &old_files);
        write(&new, &new_files);
        let (old, new) = (v1(|_| Some(old.clone())), v2(&new));
        assert_eq!((old.cpu, old.throttled, old.working_set), (Some(1.5), Some(2.0), Some(800.0)));
        // Shares of 1024 have no exact weight.
        assert_eq!(Reading { shares: None, ..old }, Reading { shares: None, ..new });
        assert_eq!(v2(Path::new("/nowhere")), Reading::default());
    }

    #[test]
    fn no_limit_is_zero() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[("memory.max", "max\n"), ("memory.current", "1\n"), ("cpu.max", "max 100000\n")]);
        let reading = v2(dir.path());
        assert_eq!((reading.memory_limit, reading.quota, reading.period), (Some(0.0), None, Some(100_000.0)));
    }
}
