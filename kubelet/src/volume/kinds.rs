//! Volumes that are folders: `emptyDir` and `hostPath`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use decapod_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource, Volume};

use super::{Error, io_at, mount};

/// Makes the folder, on disk or in memory, that all containers of the pod may write.
pub(super) fn empty_dir(path: &Path, source: &EmptyDirVolumeSource, group: Option<u32>) -> Result<(), Error> {
    let new = !path.exists();
    fs::create_dir_all(path).map_err(io_at(path))?;
    match source.medium.as_deref() {
        None | Some("") => {
            if !new {
                return Ok(());
            }
        }
        Some("Memory") => {
            if mount::is_mount_point(path).map_err(io_at(path))? {
                return Ok(());
            }
            let limit = source.size_limit.as_ref().and_then(|q| Quantity::try_from(q).ok());
            let size = limit.and_then(|q| u64::try_from(q.units()).ok()).filter(|s| *s > 0);
            mount::tmpfs(path, size, 0o777).map_err(io_at(path))?;
        }
        Some(_) => return Err(Error::Unsupported("emptyDir with huge pages")),
    }
    // The set-group-id bit hands the group on to what is made inside.
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    chown(path, None, group).map_err(io_at(path))?;
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(io_at(path))
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
    let kinds = [
        (volume.persistent_volume_claim.is_some(), "persistentVolumeClaim"),
        (volume.csi.is_some(), "csi"),
        (volume.ephemeral.is_some(), "ephemeral"),
        (volume.nfs.is_some(), "nfs"),
        (volume.iscsi.is_some(), "iscsi"),
        (volume.image.is_some(), "image"),
    ];
    kinds.iter().find(|(is, _)| *is).map_or("given", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_dirs_keep_their_contents_when_prepared_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        empty_dir(&path, &EmptyDirVolumeSource::default(), Some(2000)).unwrap();
        fs::write(path.join("x"), "1").unwrap();
        empty_dir(&path, &EmptyDirVolumeSource::default(), Some(2000)).unwrap();
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
        empty_dir(&path, &source, None).unwrap();
        empty_dir(&path, &source, None).unwrap();
        let result = fs::write(path.join("big"), vec![0; 2 << 20]);
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        assert_eq!(mount::below(&fs::canonicalize(&path).unwrap()).unwrap().len(), 1);
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
