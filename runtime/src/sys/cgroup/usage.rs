//! What a group uses, from the files of either version.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Usage of one group and those below it. `None` where the controller is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
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
    /// Memory that was moved to swap, in bytes.
    pub(crate) swap: Option<u64>,
    /// How long tasks waited for a processor; of version 2 only, as the next ones.
    pub(crate) cpu_pressure: Option<Pressure>,
    /// How long tasks waited for memory.
    pub(crate) memory_pressure: Option<Pressure>,
    /// How long tasks waited for disks.
    pub(crate) io_pressure: Option<Pressure>,
}

/// Averages over 10, 60 and 300 seconds in hundredths, and the sum in microseconds: of the time in which some tasks
/// waited, and of that in which all did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Pressure {
    pub(crate) some: Option<[f64; 4]>,
    pub(crate) full: Option<[f64; 4]>,
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
        swap: field(&stat, "total_swap"),
        ..Usage::default()
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
        swap: number(&directory.join("memory.swap.current"))?,
        cpu_pressure: pressure(&directory.join("cpu.pressure")),
        memory_pressure: pressure(&directory.join("memory.pressure")),
        io_pressure: pressure(&directory.join("io.pressure")),
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

/// Pressure, where the kernel was built to tell it.
fn pressure(file: &Path) -> Option<Pressure> {
    let text = fs::read_to_string(file).ok()?;
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let kind = words.next();
        let values: Option<Vec<f64>> =
            words.map(|word| word.split_once('=').and_then(|(_, value)| value.parse().ok())).collect();
        let values = values.and_then(|values| <[f64; 4]>::try_from(values).ok());
        match kind {
            Some("some") => pressure.some = values,
            Some("full") => pressure.full = values,
            _ => {}
        }
    }
    Some(pressure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_of_version_2_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            ("memory.current", "1000\n"),
            ("memory.stat", "anon 600\nfile 300\ninactive_file 200\npgfault 7\npgmajfault 1\n"),
            ("memory.max", "max\n"),
            ("memory.swap.current", "50\n"),
            (
                "memory.pressure",
                "some avg10=1.50 avg60=0.10 avg300=0.00 total=900\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=4\n",
            ),
            ("cpu.stat", "usage_usec 12\nuser_usec 8\n"),
            ("pids.current", "3\n"),
        ];
        for (file, text) in files {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let pressure = Pressure { some: Some([1.5, 0.1, 0.0, 900.0]), full: Some([0.0, 0.0, 0.0, 4.0]) };
        let wanted = Usage {
            cpu: Some(12_000),
            memory: Some(1000),
            working_set: Some(800),
            rss: Some(600),
            faults: Some((7, 1)),
            processes: Some(3),
            swap: Some(50),
            memory_pressure: Some(pressure),
            ..Usage::default()
        };
        assert_eq!(read_v2(dir.path()).unwrap(), wanted);
    }
}
