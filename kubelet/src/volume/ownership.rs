//! `fsGroup` for volumes that outlive their pod: everything in them becomes the group's, and the group may use it.
//!
//! **Invariant**: nothing outside the volume changes, whatever links a container puts there meanwhile: each entry is
//! opened beneath the volume's root without following any, and changed by its descriptor.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::unistd::{Gid, fchownat};

/// What the group may do with files, and with folders beside that.
const FILES: u32 = 0o660;
const FILES_READ_ONLY: u32 = 0o440;
const FOLDERS: u32 = 0o110;
/// What is made in a folder belongs to the folder's group.
const SET_GROUP: u32 = 0o2000;

/// Makes the volume at `root` the group's. With `on_root_mismatch`, only if its root is not the group's already.
pub(super) fn give(root: &Path, group: u32, read_only: bool, on_root_mismatch: bool) -> io::Result<()> {
    let files = if read_only { FILES_READ_ONLY } else { FILES };
    let meta = fs::metadata(root)?;
    let wanted = files | FOLDERS | SET_GROUP;
    if on_root_mismatch && meta.gid() == group && meta.mode() & wanted == wanted {
        return Ok(());
    }
    let volume = File::open(root)?;
    let mut folders = vec![PathBuf::from(".")];
    // The root last: as long as it is not the group's, the work is not done.
    let mut index = 0;
    while let Some(folder) = folders.get(index).cloned() {
        index += 1;
        let Some(opened) = open(&volume, &folder)? else { continue };
        let listed = match fs::read_dir(proc_path(&opened)) {
            Ok(listed) => listed,
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => continue,
            Err(e) => return Err(e),
        };
        for entry in listed {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else {
                give_one(&volume, &path, group, files)?;
            }
        }
    }
    for folder in folders.iter().rev() {
        give_one(&volume, folder, group, files)?;
    }
    Ok(())
}

/// One entry; one that went meanwhile needs nothing.
fn give_one(volume: &File, path: &Path, group: u32, files: u32) -> io::Result<()> {
    let Some(entry) = open(volume, path)? else { return Ok(()) };
    let stat = nix::sys::stat::fstat(&entry).map_err(io::Error::from)?;
    if stat.st_gid != group {
        fchownat(&entry, "", None, Some(Gid::from_raw(group)), AtFlags::AT_EMPTY_PATH)
            .map_err(io::Error::from)?;
    }
    let kind = stat.st_mode & libc::S_IFMT;
    if kind == libc::S_IFLNK {
        return Ok(()); // A link has no mode of its own.
    }
    let mode = stat.st_mode & 0o7777;
    let wanted = if kind == libc::S_IFDIR { mode | files | FOLDERS | SET_GROUP } else { mode | files };
    // The set-id bits went with the old group, where there was a change.
    if wanted != mode || stat.st_gid != group {
        fs::set_permissions(proc_path(&entry), Permissions::from_mode(wanted))?;
    }
    Ok(())
}

fn proc_path(entry: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", entry.as_raw_fd())
}

/// What is at a path in the volume, links themselves included; `None` if nothing is there any more, or a link or
/// another file system is on the way.
fn open(volume: &File, path: &Path) -> io::Result<Option<OwnedFd>> {
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).resolve(
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV,
    );
    match openat2(volume, path, how).map_err(io::Error::from) {
        Ok(entry) => Ok(Some(entry)),
        Err(e) if e.raw_os_error() == Some(libc::ELOOP) || e.raw_os_error() == Some(libc::EXDEV) => Ok(None),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn group_and_mode(path: &Path) -> (u32, u32) {
        let meta = fs::symlink_metadata(path).unwrap();
        (meta.gid(), meta.mode() & 0o7777)
    }

    #[test]
    fn everything_becomes_the_groups_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("v"), dir.path().join("outside"));
        fs::create_dir_all(volume.join("a/b")).unwrap();
        fs::write(volume.join("a/b/f"), "x").unwrap();
        fs::set_permissions(volume.join("a/b/f"), Permissions::from_mode(0o600)).unwrap();
        fs::write(&outside, "x").unwrap();
        let before = group_and_mode(&outside);
        symlink(&outside, volume.join("a/link")).unwrap();
        give(&volume, 4711, false, false).unwrap();
        assert_eq!(group_and_mode(&volume.join("a/b/f")), (4711, 0o660));
        assert_eq!(group_and_mode(&volume.join("a/b")), (4711, 0o2775));
        assert_eq!(group_and_mode(&volume).0, 4711);
        assert_eq!(group_and_mode(&volume.join("a/link")).0, 4711, "the link itself");
        assert_eq!(group_and_mode(&outside), before);
    }

    #[test]
    fn a_root_that_is_the_groups_may_mean_that_all_is() {
        let dir = tempfile::tempdir().unwrap();
        give(dir.path(), 4711, false, true).unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "x").unwrap();
        nix::unistd::chown(&file, None, Some(Gid::from_raw(0))).unwrap();
        give(dir.path(), 4711, false, true).unwrap();
        assert_eq!(group_and_mode(&file).0, 0);
        give(dir.path(), 4711, false, false).unwrap();
        assert_eq!(group_and_mode(&file).0, 4711);
    }
}
