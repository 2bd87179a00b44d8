//! What one pod uses: memory and processes as the runtime says, disk as its folders on the node say.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, DirEntry};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use decapod_proto::cri;
use k8s_openapi::api::core::v1::Pod;

use crate::config;
use crate::pod::{mark, spec};
use crate::shared::Shared;

/// Room on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

impl std::ops::Add for Disk {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, inodes: self.inodes + other.inodes }
    }
}

impl std::iter::Sum for Disk {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| sum + one)
    }
}

/// What one container uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ContainerUsage {
    /// Bytes that cannot be reclaimed at once.
    pub(crate) memory: Option<u64>,
    /// What it has written into its root file system.
    pub(crate) rootfs: Disk,
    pub(crate) logs: Disk,
}

/// What a pod uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodUsage {
    pub(crate) memory: Option<u64>,
    pub(crate) processes: Option<u64>,
    pub(crate) containers: BTreeMap<String, ContainerUsage>,
    /// Its emptyDir volumes on disk, by name.
    pub(crate) volumes: BTreeMap<String, Disk>,
}

impl PodUsage {
    /// What counts against `ephemeral-storage`: what its containers wrote, their logs, and its volumes.
    pub(crate) fn disk(&self) -> Disk {
        let containers = self.containers.values().map(|container| container.rootfs + container.logs);
        containers.chain(self.volumes.values().copied()).sum()
    }
}

/// Measures a pod; what cannot be read is absent.
pub(crate) async fn of_pod(shared: &Arc<Shared>, pod: &Arc<Pod>) -> PodUsage {
    let mut usage = from_runtime(shared, spec::uid(pod)).await.unwrap_or_else(|error| {
        tracing::warn!(pod = spec::name(pod), %error, "what a pod uses cannot be read");
        PodUsage::default()
    });
    let (shared, pod) = (shared.clone(), pod.clone());
    // A walk through all files of the pod's folders.
    let disk = tokio::task::spawn_blocking(move || on_disk(&shared, &pod)).await;
    let (logs, volumes) = disk.unwrap_or_else(|error| {
        tracing::error!(%error, "measuring a pod's folders panicked");
        Default::default()
    });
    for (container, disk) in logs {
        usage.containers.entry(container).or_default().logs = disk;
    }
    usage.volumes = volumes;
    usage
}

async fn from_runtime(shared: &Shared, uid: &str) -> Result<PodUsage, decapod_runtime::Error> {
    let filter = cri::PodSandboxFilter {
        label_selector: [(mark::POD_UID.to_owned(), uid.to_owned())].into(),
        state: Some(cri::PodSandboxStateValue { state: cri::PodSandboxState::SandboxReady as i32 }),
        ..Default::default()
    };
    let Some(sandbox) = shared.runtime.sandbox_list(Some(&filter)).await?.into_iter().next() else {
        return Ok(PodUsage::default());
    };
    let stats = match shared.runtime.sandbox_stats(&sandbox.id).await {
        // It went meanwhile.
        Err(decapod_runtime::Error::NotFound { .. }) => return Ok(PodUsage::default()),
        stats => stats?.linux.unwrap_or_default(),
    };
    let value = |number: Option<&cri::UInt64Value>| number.map(|number| number.value);
    let memory = |usage: Option<&cri::MemoryUsage>| usage.and_then(|m| value(m.working_set_bytes.as_ref()));
    let container = |stats: &cri::ContainerStats| {
        let name = stats.attributes.as_ref()?.labels.get(mark::CONTAINER_NAME)?.clone();
        let layer = stats.writable_layer.as_ref();
        let amount = |of: fn(&cri::FilesystemUsage) -> Option<&cri::UInt64Value>| {
            layer.and_then(|layer| value(of(layer))).unwrap_or(0)
        };
        let rootfs =
            Disk { bytes: amount(|l| l.used_bytes.as_ref()), inodes: amount(|l| l.inodes_used.as_ref()) };
        Some((name, ContainerUsage { memory: memory(stats.memory.as_ref()), rootfs, logs: Disk::default() }))
    };
    Ok(PodUsage {
        memory: memory(stats.memory.as_ref()),
        processes: stats.process.as_ref().and_then(|process| value(process.process_count.as_ref())),
        containers: stats.containers.iter().filter_map(container).collect(),
        volumes: BTreeMap::new(),
    })
}

type Disks = BTreeMap<String, Disk>;

/// The pod's logs by container, and its emptyDir volumes on disk by name.
fn on_disk(shared: &Shared, pod: &Pod) -> (Disks, Disks) {
    let logs =
        config::log_directory(&shared.logs_root(), spec::namespace(pod), spec::name(pod), spec::uid(pod));
    let by_container = fs::read_dir(&logs).into_iter().flatten().flatten();
    let by_container = by_container.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some((name, measured(&entry.path())))
    });
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let on_disk = volumes.filter(|volume| {
        volume.empty_dir.as_ref().is_some_and(|dir| dir.medium.as_deref().unwrap_or_default().is_empty())
    });
    let folder = |name: &str| -> PathBuf { shared.volumes.empty_dir(spec::uid(pod), name) };
    let volumes = on_disk.map(|volume| (volume.name.clone(), measured(&folder(&volume.name))));
    (by_container.collect(), volumes.collect())
}

fn measured(path: &Path) -> Disk {
    measure(path).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "a folder cannot be measured");
        Disk::default()
    })
}

/// The room that a tree takes on its file system. Links to one file count once; other file systems that are mounted
/// inside do not count, nor does what vanishes meanwhile.
pub(crate) fn measure(path: &Path) -> io::Result<Disk> {
    let root = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Disk::default()),
        meta => meta?,
    };
    let mut disk = Disk { bytes: root.blocks() * 512, inodes: 1 };
    let mut linked = HashSet::new();
    let mut folders = if root.is_dir() { vec![path.to_owned()] } else { Vec::new() };
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry: DirEntry = entry?;
            let meta = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                meta => meta?,
            };
            // Only of folders: files of an overlay may have the device of one of its layers.
            if meta.is_dir() && meta.dev() != root.dev() {
                continue;
            }
            if meta.is_dir() {
                folders.push(entry.path());
            } else if meta.nlink() > 1 && !linked.insert(meta.ino()) {
                continue;
            }
            disk = disk + Disk { bytes: meta.blocks() * 512, inodes: 1 };
        }
    }
    Ok(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_measured_once() {
        let dir = tempfile::tempdir().unwrap();
        let empty = measure(dir.path()).unwrap();
        assert_eq!(empty.inodes, 1);
        let inner = dir.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("file"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(inner.join("file"), dir.path().join("same")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("elsewhere")).unwrap();
        let full = measure(dir.path()).unwrap();
        assert_eq!(full.inodes, 5, "three folders, a file, a symbolic link");
        assert!((1 << 20..2 << 20).contains(&(full.bytes - empty.bytes)), "{full:?}");
        assert_eq!(measure(&dir.path().join("none")).unwrap(), Disk::default());
    }
}
