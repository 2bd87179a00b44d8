//! Images as volumes (KEP-4639): a read-only view of an image's files, mounted beside the container's root file system
//! and bound into it by the specification; and views of anything with the ids of a user namespace (KEP-127).
//!
//! **Invariant**: a view lies in the folder of root file systems under the container's id and a number, so that
//! whatever removes the container's root, also after a crash, finds its views.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use decapod_proto::cri;
use nix::fcntl::OFlag;

use crate::error::{Error, Result};
use crate::image::Image;
use crate::sys::idmap::{self, Users};
use crate::sys::{mount, rooted};

/// Mounts the view of each image, numbered from `first` on; what is to be bound at each target.
pub(super) fn mount_all(
    rootfs: &Path,
    layers: &Path,
    empty: &Path,
    (images, mounts): (&BTreeMap<String, Arc<Image>>, &[cri::Mount]),
    first: usize,
) -> Result<BTreeMap<String, PathBuf>> {
    let views = (first..).zip(images).map(|(number, (target, image))| {
        let at = beside(rootfs, number);
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

/// Where the view of that number is mounted.
pub(super) fn beside(rootfs: &Path, number: usize) -> PathBuf {
    PathBuf::from(format!("{}.{number}", rootfs.display()))
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

/// What a pod with a user namespace of its own sees: everything from outside through mounts with its ids.
pub(super) struct Mapped<'a> {
    pub(super) users: Users,
    /// The mounted user namespace.
    pub(super) namespace: PathBuf,
    pub(super) rootfs: &'a Path,
    /// The number of the next view.
    pub(super) next: usize,
}

impl Mapped<'_> {
    /// Shows a file or folder with the pod's ids; where it is seen.
    pub(super) fn view(&mut self, source: &Path) -> io::Result<PathBuf> {
        let at = beside(self.rootfs, self.next);
        self.next += 1;
        // Not below, where a link could lead astray: the caller names what the pod is to see.
        idmap::mount_point(source, &at)?;
        idmap::bind(source, &at, File::open(&self.namespace)?.as_fd())?;
        Ok(at)
    }
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
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
    }
    Ok(())
}
