//! Volumes that are folders: `emptyDir` and `hostPath`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use decapod_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource, PodSpec, Volume};

use super::{Error, io_at, mount};
use crate::pod::qos;

/// What a pod's `emptyDir` volumes depend on beside their own fields.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Room {
    /// The group that they belong to.
    pub(super) group: Option<u32>,
    /// Bytes that the pod may use at most; one in memory is not larger.
    pub(super) memory: Option<u64>,
    /// The only size of huge pages, in bytes, that the pod asks for.
    pub(super) huge_page: Option<u64>,
}

impl Room {
    /// Of a pod on a node that lets its pods use `node_memory` bytes together.
    pub(super) fn of(spec: &PodSpec, node_memory: Option<u64>) -> Self {
        let group = spec.security_context.as_ref().and_then(|context| context.fs_group);
        let limit =
            qos::pod(spec).memory.and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0);
        let requests = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let requests = requests.filter_map(|container| container.resources.as_ref()?.requests.as_ref());
        let sizes: BTreeSet<&str> =
            requests.flat_map(BTreeMap::keys).filter_map(|name| name.strip_prefix(HUGE_PAGES)).collect();
        let only = sizes.first().filter(|_| sizes.len() == 1);
        Self {
            group: group.and_then(|group| u32::try_from(group).ok()),
            memory: [limit, node_memory].into_iter().flatten().min(),
            huge_page: only.and_then(|size| bytes(size)),
        }
    }

    /// The set-group-id bit hands the group on to what is made inside.
    fn mode(self) -> u32 {
        if self.group.is_some() { 0o2777 } else { 0o777 }
    }
}

/// The resource of huge pages, before their size.
const HUGE_PAGES: &str = "hugepages-";

fn bytes(text: &str) -> Option<u64> {
    u64::try_from(text.parse::<Quantity>().ok()?.units()).ok().filter(|bytes| *bytes > 0)
}

/// Makes the folder, on disk or in memory, that all containers of the pod may write.
pub(super) fn empty_dir(path: &Path, source: &EmptyDirVolumeSource, room: Room) -> Result<(), Error> {
    let medium = source.medium.as_deref().unwrap_or_default();
    if medium.is_empty() {
        return folder(path, room).map_err(io_at(path));
    }
    fs::create_dir_all(path).map_err(io_at(path))?;
    if mount::is_mount_point(path).map_err(io_at(path))? {
        return Ok(());
    }
    let limit = source.size_limit.as_ref().and_then(|size| bytes(&size.0));
    let size = [limit, room.memory].into_iter().flatten().min();
    if medium == "Memory" {
        return mount::tmpfs(path, size, room.mode(), room.group).map_err(io_at(path));
    }
    let page = match medium.strip_prefix("HugePages") {
        Some("") => room.huge_page.ok_or(Error::HugePages)?,
        Some(size) => {
            size.strip_prefix('-').and_then(bytes).ok_or_else(|| Error::Medium(medium.to_owned()))?
        }
        None => return Err(Error::Medium(medium.to_owned())),
    };
    mount::huge_pages(path, page, limit, room.mode(), room.group).map_err(io_at(path))
}

/// A folder that is there with its mode and group, or not at all: what a container made of it later stays.
fn folder(path: &Path, room: Room) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let new = path.with_extension("new~");
    fs::create_dir_all(&new)?;
    chown(&new, None, room.group)?;
    fs::set_permissions(&new, Permissions::from_mode(room.mode()))?;
    fs::rename(&new, path)
}

/// Checks that the host's path is of the kind that the spec names, and makes it where the kind says so.
pub(super) fn host_path(source: &HostPathVolumeSource) -> Result<PathBuf, Error> {
    let path = PathBuf::from(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    match kind {
        "DirectoryOrCreate" if !path.exists() => {
            fs::create_dir_all(&path).map_err(io_at(&path))?;
            fs::set_permissions(&path, Permissions::from_mode(0o755)).map_err(io_at(&path))?;
        }
        "FileOrCreate" if !path.exists() => fs::write(&path, "").map_err(io_at(&path))?,
        _ => {}
    }
    let wrong = |kind| Error::HostPath { path: source.path.clone(), kind };
    let meta = fs::metadata(&path);
    let is = |test: fn(&fs::Metadata) -> bool| meta.as_ref().is_ok_and(test);
    match kind {
        "Directory" | "DirectoryOrCreate" if !is(fs::Metadata::is_dir) => Err(wrong("directory")),
        "File" | "FileOrCreate" if !is(fs::Metadata::is_file) => Err(wrong("file")),
        "Socket" if !is(|m| m.file_type().is_socket()) => Err(wrong("socket file")),
        "CharDevice" if !is(|m| m.file_type().is_char_device()) => Err(wrong("character device")),
        "BlockDevice" if !is(|m| m.file_type().is_block_device()) => Err(wrong("block device")),
        // Without a type Kubernetes checks nothing, and runtimes make a missing folder.
        "" if meta.is_err() => {
            fs::create_dir_all(&path).map_err(io_at(&path))?;
            Ok(path)
        }
        _ => Ok(path),
    }
}

/// The kind of a volume that this node cannot mount.
pub(super) fn name(volume: &Volume) -> &'static str {
    let kinds =
        [(volume.csi.is_some(), "csi"), (volume.nfs.is_some(), "nfs"), (volume.iscsi.is_some(), "iscsi")];
    kinds.iter().find(|(is, _)| *is).map_or("given", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_dirs_keep_their_contents_when_prepared_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let grouped = Room { group: Some(2000), ..Room::default() };
        empty_dir(&path, &EmptyDirVolumeSource::default(), grouped).unwrap();
        fs::write(path.join("x"), "1").unwrap();
        empty_dir(&path, &EmptyDirVolumeSource::default(), grouped).unwrap();
        assert_eq!(fs::read_to_string(path.join("x")).unwrap(), "1");
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, 0o2777);
    }

    #[test]
    fn memory_is_bounded_and_mounted_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let size = k8s_openapi::apimachinery::pkg::api::resource::Quantity("1Mi".into());
        let source = EmptyDirVolumeSource { medium: Some("Memory".into()), size_limit: Some(size) };
        empty_dir(&path, &source, Room::default()).unwrap();
        empty_dir(&path, &source, Room::default()).unwrap();
        let result = fs::write(path.join("big"), vec![0; 2 << 20]);
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        assert_eq!(mount::below(&fs::canonicalize(&path).unwrap()).unwrap().len(), 1);
        mount::remove_tree(&path).unwrap();
    }

    #[test]
    fn a_volume_in_memory_is_not_larger_than_its_pod_and_belongs_to_its_group() {
        let spec =
            serde_json::from_value::<PodSpec>(serde_json::json!({"securityContext": {"fsGroup": 2000},
            "containers": [{"name": "c", "resources": {"requests": {"hugepages-2Mi": "4Mi", "memory": "1Mi"},
                "limits": {"memory": "1Mi", "hugepages-2Mi": "4Mi"}}}]}));
        let room = Room::of(&spec.unwrap(), Some(1 << 30));
        assert_eq!((room.group, room.memory, room.huge_page), (Some(2000), Some(1 << 20), Some(2 << 20)));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let source = EmptyDirVolumeSource { medium: Some("Memory".into()), size_limit: None };
        empty_dir(&path, &source, room).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(
            (std::os::unix::fs::MetadataExt::gid(&meta), meta.permissions().mode() & 0o7777),
            (2000, 0o2777)
        );
        let result = fs::write(path.join("big"), vec![0; 2 << 20]);
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        mount::remove_tree(&path).unwrap();
        let pages = EmptyDirVolumeSource { medium: Some("HugePages".into()), size_limit: None };
        assert!(matches!(empty_dir(&path, &pages, Room::default()), Err(Error::HugePages)));
        mount::remove_tree(&path).unwrap();
    }

    #[test]
    fn host_paths_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let source = |name: &str, kind: &str| HostPathVolumeSource {
            path: dir.path().join(name).to_string_lossy().into_owned(),
            type_: Some(kind.into()),
        };
        assert!(host_path(&source("d", "Directory")).is_err());
        host_path(&source("d", "DirectoryOrCreate")).unwrap();
        host_path(&source("d", "Directory")).unwrap();
        let error = host_path(&source("d", "File")).unwrap_err();
        assert!(error.to_string().ends_with("is not a file"), "{error}");
        host_path(&source("f", "FileOrCreate")).unwrap();
        assert!(host_path(&source("f", "Socket")).is_err());
    }
}
