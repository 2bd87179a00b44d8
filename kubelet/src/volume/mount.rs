//! Mounts that the kubelet itself makes (tmpfs, sub-path binds), and their removal.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

/// Mounts a tmpfs of at most `size` bytes (half of the memory without a limit).
pub(crate) fn tmpfs(path: &Path, size: Option<u64>, mode: u32, group: Option<u32>) -> io::Result<()> {
    memory("tmpfs", path, &[("size", size)], mode, group)
}

/// Mounts huge pages of `page` bytes each, at most `size` bytes together.
pub(crate) fn huge_pages(
    path: &Path,
    page: u64,
    size: Option<u64>,
    mode: u32,
    group: Option<u32>,
) -> io::Result<()> {
    memory("hugetlbfs", path, &[("pagesize", Some(page)), ("size", size)], mode, group)
}

/// Mounts a file system that is in memory; it is there with its mode and group, or not at all.
fn memory(
    kind: &str,
    path: &Path,
    numbers: &[(&str, Option<u64>)],
    mode: u32,
    group: Option<u32>,
) -> io::Result<()> {
    let mut options = format!("mode={mode:o}");
    let numbers = numbers.iter().copied().chain([("gid", group.map(u64::from))]);
    for (name, value) in numbers.filter_map(|(name, value)| Some((name, value?))) {
        options.push_str(&format!(",{name}={value}"));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some(kind), path, Some(kind), flags, Some(options.as_str())).map_err(io::Error::from)
}

/// Whether files at `path` lie in memory only.
pub(crate) fn is_tmpfs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path).map_err(io::Error::from)?.filesystem_type() == TMPFS_MAGIC)
}

/// Whether something is mounted exactly at `path`.
pub(crate) fn is_mount_point(path: &Path) -> io::Result<bool> {
    let path = fs::canonicalize(path)?;
    Ok(below(&path)?.contains(&path))
}

/// Binds what `fd` refers to, and nothing that a path could be made to mean later, at `path`.
pub(crate) fn bind(fd: impl AsFd, path: &Path) -> io::Result<()> {
    let source = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(io::Error::from)
}

/// All mount points at or below `path`, the deepest last.
pub(crate) fn below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = table.lines().filter_map(point).filter(|p| p.starts_with(path)).collect();
    found.sort();
    Ok(found)
}

/// The mount point of one line of mountinfo.
fn point(line: &str) -> Option<PathBuf> {
    let field = line.split(' ').nth(4)?;
    // The kernel writes blanks and the like as three octal digits.
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(code) if byte == b'\\' => {
                bytes.push(code);
                rest = &after[3..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    Some(PathBuf::from(std::ffi::OsString::from(String::from_utf8(bytes).ok()?)))
}

/// Unmounts everything at and below `path`.
pub(crate) fn unmount_below(path: &Path) -> io::Result<()> {
    let Ok(path) = fs::canonicalize(path) else {
        return Ok(());
    };
    for point in below(&path)?.iter().rev() {
        umount2(point, MntFlags::MNT_DETACH)?;
    }
    Ok(())
}

/// Removes a folder with everything in it, after unmounting what is mounted there.
///
/// **Invariant**: nothing is deleted through a mount. A bind that could not be undone would lead into the host's own
/// files, so each entry on another device stops the removal.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    unmount_below(path)?;
    let meta = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let canonical = fs::canonicalize(path)?;
    if !below(&canonical)?.is_empty() {
        return Err(io::Error::other(format!("{} still has mounts below it", path.display())));
    }
    if meta.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        let line = r"36 35 98:0 /mnt1 /mnt\0402/a rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(point(line).unwrap(), Path::new("/mnt 2/a"));
    }

    #[test]
    fn a_tree_is_removed_without_what_is_mounted_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let (host, pod) = (dir.path().join("host"), dir.path().join("pod"));
        fs::create_dir_all(&host).unwrap();
        fs::create_dir_all(pod.join("v/w")).unwrap();
        fs::write(host.join("precious"), "x").unwrap();
        bind(fs::File::open(&host).unwrap(), &pod.join("v/w")).unwrap();
        assert!(is_mount_point(&pod.join("v/w")).unwrap() && !is_mount_point(&pod).unwrap());
        remove_tree(&pod).unwrap();
        assert!(!pod.exists());
        assert_eq!(fs::read_to_string(host.join("precious")).unwrap(), "x");
    }
}
