//! Paths below a directory that whoever wrote its content cannot lead astray.
//!
//! **Invariant**: no function here follows a link out of the root: `openat2` resolves in the
//! kernel, so that there is no gap between check and use.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Gid, Uid, fchownat};

/// Links are resolved as if the root were `/`: how processes inside will see it.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    Ok(openat2(root, path, how)?)
}

/// No component may be a link: `ELOOP` if one is.
pub(crate) fn open_plain(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    Ok(openat2(root, path, how)?)
}

/// Opens a directory to be a root of the functions here.
pub(crate) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open(path, OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Reads a file as a process inside the root would; at most `limit` bytes, since whoever wrote
/// it is not trusted.
pub(crate) fn read(root: &Path, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let root = open_dir(root)?;
    let fd = open_in_root(root.as_fd(), path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
    let file = File::from(fd);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut content = Vec::new();
    file.take(limit).read_to_end(&mut content)?;
    Ok(content)
}

/// Creates a directory and those above it, following links as a process inside would. What it makes belongs to `owner`,
/// a user and its group.
pub(crate) fn create_dir_all(root: &Path, path: &Path, owner: u32) -> io::Result<()> {
    let root = open_dir(root)?;
    let mut done = PathBuf::new();
    for part in path.components() {
        let Component::Normal(name) = part else { continue };
        let parent = open_in_root(root.as_fd(), &non_empty(&done), OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        let mode = Mode::from_bits_truncate(0o755);
        match mkdirat(&parent, name, mode) {
            Ok(()) => {
                let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
                fchownat(&parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
                done.push(name);
            }
            Err(Errno::EEXIST) => done.push(name),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn non_empty(path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { PathBuf::from(".") } else { path.to_owned() }
}

/// Splits into parent and name, with `.` and leading slashes taken off. `None` where the path is
/// the root itself; an error where it has `..`.
pub(crate) fn split(path: &Path) -> Result<Option<(PathBuf, &OsStr)>, &'static str> {
    let mut parts: Vec<&OsStr> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(name),
            Component::ParentDir => return Err("it leads upwards with \"..\""),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Ok(parts.pop().map(|name| (parts.iter().collect(), name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).unwrap();
        create_dir_all(dir.path(), Path::new("/etc"), 0).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "inside").unwrap();
        assert_eq!(read(dir.path(), Path::new("/out/passwd"), 100).unwrap(), b"inside");
        let root = open_dir(dir.path()).unwrap();
        let plain = open_plain(root.as_fd(), Path::new("out/passwd"), OFlag::O_RDONLY);
        assert_eq!(plain.unwrap_err().raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn directories_are_made_behind_links() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/data", dir.path().join("link")).unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        create_dir_all(dir.path(), Path::new("/link/a/b"), 0).unwrap();
        assert!(dir.path().join("data/a/b").is_dir());
    }

    #[test]
    fn upward_paths_are_refused() {
        assert!(split(Path::new("a/../../b")).is_err());
        assert_eq!(split(Path::new("./")).unwrap(), None);
        assert_eq!(split(Path::new("/a/b")).unwrap(), Some((PathBuf::from("a"), OsStr::new("b"))));
    }
}
