//! User namespaces of pods (KEP-127): which ids of the machine a pod's ids are, and mounts that show files with the
//! pod's ids.
//!
//! An id-mapped mount is made from outside the namespace, by whoever may mount anything; what is in the namespace only
//! binds it. Files on disk keep the ids that the pod uses, whatever range of the machine it has got.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;

/// What the kernel takes to change a mount.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// The ids of a pod: its 0 is the machine's `first`, and so on for `count` ids; for users and groups alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Users {
    pub(crate) first: u32,
    pub(crate) count: u32,
}

impl Users {
    /// What the machine calls an id of the pod; `None` where the pod has no such id.
    pub(crate) fn outside(self, id: u32) -> Option<u32> {
        (id < self.count).then(|| self.first.checked_add(id)).flatten()
    }

    /// In the form of `/proc/PID/uid_map`.
    pub(crate) fn map(self) -> String {
        format!("0 {} {}\n", self.first, self.count)
    }
}

/// Shows `source`, a file or a folder, at `target` with the ids that `namespace` gives them.
pub(crate) fn bind(source: &Path, target: &Path, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let path = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from);
    let (from, to) = (path(source)?, path(target)?);
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC.cast_unsigned() | libc::AT_RECURSIVE.cast_unsigned();
    // SAFETY: the path lives through the call, which returns a new descriptor or -1.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, from.as_ptr(), flags) };
    if tree < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor; nobody else owns it.
    let tree = unsafe { OwnedFd::from_raw_fd(i32::try_from(tree).expect("a descriptor fits an int")) };
    let attributes = Attributes {
        set: MOUNT_ATTR_IDMAP,
        user_namespace: u64::try_from(namespace.as_raw_fd()).expect("an open descriptor is not negative"),
        ..Attributes::default()
    };
    let (empty, size) = (c"", size_of::<Attributes>());
    // SAFETY: path and structure live through the call, and the size is the structure's.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size,
        )
    };
    if set != 0 {
        return Err(not_mapped(source, io::Error::last_os_error()));
    }
    let flags = MOVE_MOUNT_F_EMPTY_PATH;
    // SAFETY: both paths live through the call.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            flags,
        )
    };
    if moved == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What the kernel means by an invalid argument here.
fn not_mapped(source: &Path, error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EINVAL) => io::Error::new(
            io::ErrorKind::Unsupported,
            format!(
                "{}: its file system cannot show files to a user namespace (ID-mapped mounts): use another volume, \
                 or leave out spec.hostUsers",
                source.display()
            ),
        ),
        _ => error,
    }
}

/// Makes what a mount of `source` can be seen at: a folder or an empty file.
pub(crate) fn mount_point(source: &Path, target: &Path) -> io::Result<()> {
    match fs::metadata(source)?.is_dir() {
        true => fs::create_dir_all(target),
        false => File::create(target).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_beyond_the_pods_own_are_nobodys() {
        let users = Users { first: 131_072, count: 65_536 };
        assert_eq!(users.outside(0), Some(131_072));
        assert_eq!(users.outside(65_535), Some(196_607));
        assert_eq!(users.outside(65_536), None);
        assert_eq!(users.map(), "0 131072 65536\n");
    }
}
