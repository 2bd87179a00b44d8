//! Mounts of the runtime: overlays of image layers, shared memory, names of namespaces.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::rooted;

/// Bytes of mount options that the kernel takes: a page, less room for the other options.
const MAX_OPTIONS: usize = 4000;

/// One writable view of stacked read-only directories.
pub(crate) struct Overlay<'a> {
    /// Names of directories in `base`, the topmost first.
    pub(crate) lower: &'a [String],
    /// Where those directories are.
    pub(crate) base: &'a Path,
    /// Receives what is written.
    pub(crate) upper: &'a Path,
    /// The kernel's own, on the same file system as `upper`.
    pub(crate) work: &'a Path,
    /// Where the view is to be seen.
    pub(crate) target: &'a Path,
}

impl Overlay<'_> {
    /// Mounts it. Layers are named through a descriptor of their directory, so that more than a
    /// hundred of them fit the kernel's one page of options.
    pub(crate) fn mount(&self) -> io::Result<()> {
        let base: OwnedFd = rooted::open_dir(self.base)?;
        let lower: Vec<String> =
            self.lower.iter().map(|name| super::fds::short_path(&base, name).display().to_string()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},index=off,metacopy=off,redirect_dir=off",
            lower.join(":"),
            escape(self.upper),
            escape(self.work)
        );
        if options.len() > MAX_OPTIONS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the image has too many layers"));
        }
        mount(Some("overlay"), self.target, Some("overlay"), MsFlags::empty(), Some(options.as_str()))?;
        Ok(())
    }
}

/// Shows stacked directories of `base`, the topmost first, as one that is only read. `empty` has nothing in it: a view
/// needs two directories at least.
pub(crate) fn view(lower: &[String], base: &Path, empty: &Path, target: &Path) -> io::Result<()> {
    let base: OwnedFd = rooted::open_dir(base)?;
    let lower = lower.iter().map(|name| super::fds::short_path(&base, name).display().to_string());
    let lower: Vec<String> = lower.chain([escape(empty)]).collect();
    let options = format!("lowerdir={}", lower.join(":"));
    if options.len() > MAX_OPTIONS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the image has too many layers"));
    }
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("overlay"), target, Some("overlay"), flags, Some(options.as_str()))?;
    Ok(())
}

/// Overlay options separate by commas and colons.
fn escape(path: &Path) -> String {
    path.display().to_string().replace('\\', "\\\\").replace(',', "\\,").replace(':', "\\:")
}

/// Mounts a file system in memory that holds at most `size` bytes and belongs to `owner`, a user and its group.
pub(crate) fn tmpfs(target: &Path, size: u64, owner: u32) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = format!("mode=1777,size={size},uid={owner},gid={owner}");
    mount(Some("shm"), target, Some("tmpfs"), flags, Some(options.as_str()))?;
    Ok(())
}

/// Shows `source` at `target` too: for namespaces, which live as long as they are shown.
pub(crate) fn bind(source: &Path, target: &Path) -> io::Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

/// Takes away all that is mounted on the path; what is still in use goes when it is not. A path
/// with nothing mounted, or that is not there, is no error.
pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    loop {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}
