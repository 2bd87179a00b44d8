//! What the node has left, as the kernel says.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use super::plan::{Observation, Observations};
use super::threshold::Signal;
use crate::shared::Shared;

/// Looks at the node. Remembers where images are.
#[derive(Debug, Default)]
pub(super) struct Observer {
    /// The folder with images, once the runtime said so, and whether it has a file system of its own.
    images: Option<(PathBuf, bool)>,
}

impl Observer {
    /// Whether images and what containers write have a file system of their own.
    pub(super) fn dedicated_images(&self) -> bool {
        self.images.as_ref().is_some_and(|(_, own)| *own)
    }

    /// What there is now; what cannot be read is told and left out.
    pub(super) async fn look(&mut self, shared: &Shared) -> Observations {
        let data = &shared.options.data_dir;
        let images = self.images(shared).await;
        let mut observations = Observations::new();
        let mut note = |signal, observation: io::Result<Option<Observation>>| match observation {
            Ok(observation) => observations.extend(observation.map(|seen| (signal, seen))),
            Err(error) => {
                tracing::warn!(signal = Signal::name(signal), %error, "a signal cannot be observed")
            }
        };
        note(Signal::MemoryAvailable, memory());
        note(Signal::PidAvailable, processes());
        let places = [
            (data.clone(), Signal::NodeFsAvailable, Signal::NodeFsInodesFree),
            (images.unwrap_or_else(|| data.clone()), Signal::ImageFsAvailable, Signal::ImageFsInodesFree),
        ];
        for (path, bytes, inodes) in places {
            match file_system(&path) {
                Ok((room, files)) => {
                    note(bytes, Ok(Some(room)));
                    note(inodes, Ok(files));
                }
                Err(error) => note(bytes, Err(error)),
            }
        }
        observations
    }

    /// Where the images are; the runtime is asked until it says so.
    async fn images(&mut self, shared: &Shared) -> Option<PathBuf> {
        if self.images.is_none() {
            let info = match shared.runtime.image_fs().await {
                Ok(info) => info,
                Err(error) => {
                    tracing::warn!(%error, "the runtime does not say where images are");
                    return None;
                }
            };
            let place = info.image_filesystems.into_iter().find_map(|fs| fs.fs_id);
            let path = PathBuf::from(place?.mountpoint);
            let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
            let own =
                device(&path).is_some_and(|device_of| Some(device_of) != device(&shared.options.data_dir));
            self.images = Some((path, own));
        }
        self.images.as_ref().map(|(path, _)| path.clone())
    }
}

fn memory() -> io::Result<Option<Observation>> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let field = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(rest.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    };
    // The kernel's own estimate: free memory, and caches that it can drop.
    let (available, capacity) = (field("MemAvailable"), field("MemTotal"));
    Ok(available.zip(capacity).map(|(available, capacity)| Observation { available, capacity }))
}

fn processes() -> io::Result<Option<Observation>> {
    let max = fs::read_to_string("/proc/sys/kernel/pid_max")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let running = load.split_whitespace().nth(3).and_then(|tasks| tasks.split('/').nth(1)?.parse().ok());
    let capacity = max.trim().parse::<u64>().ok();
    Ok(capacity.zip(running).map(|(capacity, running): (u64, u64)| Observation {
        available: capacity.saturating_sub(running),
        capacity,
    }))
}

/// Bytes and, where the file system counts them, inodes.
fn file_system(path: &Path) -> io::Result<(Observation, Option<Observation>)> {
    let stat = statvfs(path)?;
    let unit = stat.fragment_size();
    let room = Observation { available: stat.blocks_available() * unit, capacity: stat.blocks() * unit };
    let inodes = Observation { available: stat.files_available(), capacity: stat.files() };
    Ok((room, Some(inodes).filter(|inodes| inodes.capacity > 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_read() {
        let seen = [memory(), processes()].map(|seen| seen.unwrap().unwrap());
        let (room, _) = file_system(Path::new("/")).unwrap();
        for seen in seen.into_iter().chain([room]) {
            assert!(seen.capacity > 0 && seen.available <= seen.capacity, "{seen:?}");
        }
    }
}
