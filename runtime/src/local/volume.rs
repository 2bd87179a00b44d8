//! Images as volumes (KEP-4639): a read-only view of an image's files, mounted beside the container's root file system
//! and bound into it by the specification.
//!
//! **Invariant**: a view lies in the folder of root file systems under the container's id and a number, so that
//! whatever removes the container's root, also after a crash, finds its views.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use decapod_proto::cri;
use nix::fcntl::OFlag;

use crate::error::{Error, Result};
use crate::image::Image;
use crate::sys::{mount, rooted};

/// Mounts the view of each image; what is to be bound at each target.
pub(super) fn mount_all(
    rootfs: &Path,
    layers: &Path,
    empty: &Path,
    images: &BTreeMap<String, Arc<Image>>,
    mounts: &[cri::Mount],
) -> Result<BTreeMap<String, PathBuf>> {
    let views = images.iter().enumerate().map(|(number, (target, image))| {
        let at = PathBuf::from(format!("{}.{number}", rootfs.display()));
        let mounted = fs::create_dir_all(&at).and_then(|()| mount::view(&image.lower(), layers, empty, &at));
        mounted.map_err(|error| Error::internal("mount an image as a volume", error))?;
        let sub = mounts.iter().find(|mount| mount.container_path == *target);
        let sub = sub.map(|mount| mount.image_sub_path.as_str()).unwrap_or_default();
        let source = resolve(&at, sub);
        let source = source.map_err(|error| {
            Error::invalid("mounts", format!("{target}: subPath {sub:?} of the image: {error}"))
        })?;
        Ok((target.clone(), source))
    });
    views.collect()
}

/// What a path in the view is, with its links resolved as inside.
fn resolve(view: &Path, sub: &str) -> io::Result<PathBuf> {
    if sub.is_empty() {
        return Ok(view.to_owned());
    }
    let root = rooted::open_dir(view)?;
    let found = rooted::open_in_root(root.as_fd(), Path::new(sub), OFlag::O_PATH | OFlag::O_CLOEXEC)?;
    fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

/// Takes the views of a container away again.
pub(super) fn unmount_all(rootfs: &Path) -> io::Result<()> {
    let (Some(folder), Some(id)) = (rootfs.parent(), rootfs.file_name()) else { return Ok(()) };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let prefix = format!("{}.", id.to_string_lossy());
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            mount::unmount(&entry.path())?;
            fs::remove_dir(entry.path())?;
        }
    }
    Ok(())
}
