//! What a group uses, from the files of either version.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Usage of one group and those below it. `None` where the controller is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// CPU time, in nanoseconds.
    pub(crate) cpu: Option<u64>,
    /// Memory with all caches, in bytes.
    pub(crate) memory: Option<u64>,
    /// Memory that cannot be reclaimed at once: what eviction looks at.
    pub(crate) working_set: Option<u64>,
    /// Anonymous memory, in bytes.
    pub(crate) rss: Option<u64>,
    /// The limit, if there is one.
    pub(crate) memory_limit: Option<u64>,
    /// Page faults, and those that went to the disk.
    pub(crate) faults: Option<(u64, u64)>,
    /// Processes and threads.
    pub(crate) processes: Option<u64>,
}

/// A limit above this is none: version 1 shows the largest page-aligned number.
const NO_LIMIT: u64 = 1 << 60;

/// Reads a group of version 1; `directory` gives its place in a controller's hierarchy.
pub(super) fn read_v1(directory: impl Fn(&str) -> PathBuf) -> io::Result<Usage> {
    let memory = directory("memory");
    let stat = memory.join("memory.stat");
    let used = number(&memory.join("memory.usage_in_bytes"))?;
    let inactive = field(&stat, "total_inactive_file").unwrap_or(0);
    Ok(Usage {
        cpu: number(&directory("cpuacct").join("cpuacct.usage"))?,
        memory: used,
        working_set: used.map(|used| used.saturating_sub(inactive)),
        rss: field(&stat, "total_rss"),
        memory_limit: number(&memory.join("memory.limit_in_bytes"))?.filter(|limit| *limit < NO_LIMIT),
        faults: field(&stat, "total_pgfault").zip(field(&stat, "total_pgmajfault")),
        processes: number(&directory("pids").join("pids.current"))?,
    })
}

/// Reads a group of version 2.
pub(super) fn read_v2(directory: &Path) -> io::Result<Usage> {
    let stat = directory.join("memory.stat");
    let used = number(&directory.join("memory.current"))?;
    let inactive = field(&stat, "inactive_file").unwrap_or(0);
    Ok(Usage {
        cpu: field(&directory.join("cpu.stat"), "usage_usec").map(|micros| micros * 1000),
        memory: used,
        working_set: used.map(|used| used.saturating_sub(inactive)),
        rss: field(&stat, "anon"),
        memory_limit: number(&directory.join("memory.max"))?,
        faults: field(&stat, "pgfault").zip(field(&stat, "pgmajfault")),
        processes: number(&directory.join("pids.current"))?,
    })
}

/// The one number of a file; `None` where the file is not there, or says `max`.
fn number(file: &Path) -> io::Result<Option<u64>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(text.trim().parse().ok()),
        Err(error) if super::is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The number behind a key, in a file with one key and number per line.
pub(super) fn field(file: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}
