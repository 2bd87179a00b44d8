//! Keeps container logs small: a log that has grown too large is moved aside, older ones are packed, the oldest go.
//!
//! The names are those of Kubernetes: `0.log` is written, `0.log.20260102-030405` was before it, and
//! `0.log.20260102-020304.gz` before that. **Invariant**: the names of one container's logs sort by the time of what
//! is in them, so that a reader finds what follows the file that it reads ([`after`]).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use decapod_client::error::chain;
use decapod_proto::cri;
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use crate::pod::mark;
use crate::shared::Shared;

const STAMP: &str = "%Y%m%d-%H%M%S";
const PACKED: &str = ".gz";
const UNFINISHED: &str = ".tmp";

/// A log that was moved aside.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Old {
    /// When it was moved aside, as its name says.
    stamp: String,
    /// A plain file sorts before the packed one of the same time: packing that did not finish leaves both.
    pub(crate) packed: bool,
    pub(crate) path: PathBuf,
}

/// The logs that were moved aside from `path`, the oldest first.
pub(crate) fn old(path: &Path) -> io::Result<Vec<Old>> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Ok(Vec::new());
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut old = Vec::new();
    for entry in entries {
        let entry = entry?;
        let file = entry.file_name();
        let Some(stamp) = file.to_str().and_then(|f| f.strip_prefix(name)?.strip_prefix('.')) else {
            continue;
        };
        if !stamp.ends_with(UNFINISHED) {
            let packed = stamp.ends_with(PACKED);
            let stamp = stamp.strip_suffix(PACKED).unwrap_or(stamp).to_owned();
            old.push(Old { stamp, packed, path: entry.path() });
        }
    }
    old.sort();
    old.dedup_by(|later, earlier| later.stamp == earlier.stamp);
    Ok(old)
}

/// The file that follows one that had this name when it was looked at; `None` if that was the newest one.
pub(crate) fn after(path: &Path, current: &Path) -> io::Result<Option<Old>> {
    let stamp_of = |name: &Path| {
        let name =
            name.file_name()?.to_str()?.strip_prefix(path.file_name()?.to_str()?)?.strip_prefix('.')?;
        Some(name.strip_suffix(PACKED).unwrap_or(name).to_owned())
    };
    let Some(stamp) = stamp_of(current) else { return Ok(None) };
    Ok(old(path)?.into_iter().find(|old| old.stamp > stamp))
}

/// Removes a log with all that was moved aside from it.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let all = old(path)?.into_iter().map(|old| old.path).chain([path.to_owned()]);
    for file in all {
        gone(fs::remove_file(&file))?;
    }
    Ok(())
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Packs and removes what was moved aside before, and moves the log aside. Whoever writes it must open it anew then;
/// returns the name that it has until that is done.
pub(crate) fn rotate(path: &Path, max_files: usize, now: Timestamp) -> io::Result<PathBuf> {
    let mut all = old(path)?;
    // The one that is moved aside now and the one that is written come on top.
    let excess = all.len().saturating_sub(max_files.saturating_sub(2));
    for old in all.drain(..excess) {
        gone(fs::remove_file(&old.path))?;
    }
    for old in all.iter().filter(|old| !old.packed) {
        pack(&old.path)?;
    }
    let mut now = now;
    let newest = all.last().map(|old| old.stamp.clone()).unwrap_or_default();
    // A clock that was set back must not turn the order around.
    while stamp(now) <= newest {
        now = now.checked_add(1.second()).map_err(io::Error::other)?;
    }
    let mut aside = path.as_os_str().to_owned();
    aside.push(".");
    aside.push(stamp(now));
    fs::rename(path, &aside)?;
    Ok(aside.into())
}

fn stamp(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).strftime(STAMP).to_string()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn pack(path: &Path) -> io::Result<()> {
    let unfinished = with_suffix(path, UNFINISHED);
    let mut packer = GzEncoder::new(File::create(&unfinished)?, Compression::default());
    io::copy(&mut File::open(path)?, &mut packer)?;
    packer.finish()?.sync_data()?;
    fs::rename(&unfinished, with_suffix(path, PACKED))?;
    gone(fs::remove_file(path))
}

/// Looks at the sizes of all logs that are written, until it is dropped.
pub(crate) async fn run(shared: Arc<Shared>) {
    loop {
        shared.clock.sleep(shared.options.logs.period).await;
        if let Err(error) = pass(&shared).await {
            tracing::warn!(error = chain(&error), "the sizes of logs cannot be looked at");
        }
    }
}

async fn pass(shared: &Arc<Shared>) -> Result<(), decapod_runtime::Error> {
    let running = cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning as i32 };
    let filter = cri::ContainerFilter { state: Some(running), ..Default::default() };
    for container in shared.runtime.container_list(Some(&filter)).await? {
        if !container.labels.contains_key(mark::POD_UID) {
            continue;
        }
        let status = match shared.runtime.container_status(&container.id).await {
            Ok(status) => status,
            Err(decapod_runtime::Error::NotFound { .. }) => continue,
            Err(error) => return Err(error),
        };
        let path = PathBuf::from(status.log_path);
        let size = fs::metadata(&path).map_or(0, |meta| meta.len());
        if size < shared.options.logs.max_size {
            continue;
        }
        if let Err(error) = one(shared, &container.id, path.clone()).await {
            tracing::warn!(log = %path.display(), error, "a log that is too large cannot be moved aside");
        }
    }
    Ok(())
}

async fn one(shared: &Arc<Shared>, id: &str, path: PathBuf) -> Result<(), String> {
    let (max_files, now, log) = (shared.options.logs.max_files, shared.clock.now(), path.clone());
    let aside = tokio::task::spawn_blocking(move || rotate(&log, max_files, now)).await;
    let aside = aside.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    if let Err(error) = shared.runtime.log_reopen(id).await {
        // It goes on as it was, and is tried again.
        if !path.exists() {
            fs::rename(&aside, &path).map_err(|error| error.to_string())?;
        }
        return Err(chain(&error));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn older_logs_are_packed_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        for n in 0..4 {
            fs::write(&path, format!("{n}\n")).unwrap();
            // The clock stands still, or was set back: the order is that of the moves all the same.
            rotate(&path, 4, now - (n * 10).seconds()).unwrap();
        }
        fs::write(&path, "4\n").unwrap();
        let all = old(&path).unwrap();
        let names: Vec<_> = all.iter().map(|old| old.path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(
            names,
            ["0.log.20260102-030406.gz", "0.log.20260102-030407.gz", "0.log.20260102-030408"],
            "with the one that is written, four"
        );
        let mut text = String::new();
        flate2::read::GzDecoder::new(File::open(&all[0].path).unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "1\n");
        let next = after(&path, &dir.path().join("0.log.20260102-030406")).unwrap().unwrap();
        assert_eq!(next.path, all[1].path);
        assert_eq!(after(&path, &all[2].path).unwrap(), None);
        assert_eq!(after(&path, &path).unwrap(), None);
        fs::write(dir.path().join("0.log.20260102-030408.gz"), "half packed").unwrap();
        assert_eq!(old(&path).unwrap(), all, "the plain one counts");
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "asked twice, nothing is left");
    }
}
