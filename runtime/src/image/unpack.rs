//! A layer's tar stream as a directory for overlayfs.
//!
//! **Invariant**: whatever the stream says, nothing outside the target directory is touched.
//! Parents are opened by the kernel's own rules (no links, nothing above the root), entries are
//! made relative to that descriptor and never followed, and the attributes by which overlayfs
//! is told what to hide are ours alone to set.

use std::collections::HashSet;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, makedev, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use tar::{Entry, EntryType};

use super::error::{Error, Result};
use super::guard::Guard;
use crate::sys::rooted;

/// Entries of one layer; the largest public images have some hundred thousand.
const MAX_ENTRIES: usize = 4_000_000;

/// Bytes of the names of one layer, which are kept while it is unpacked; the largest public images have some
/// ten megabytes.
const MAX_NAMES: usize = 256 << 20;

/// From this size on a file must fit the disk as it says it is, before anything is written.
const LARGE: u64 = 16 << 20;

/// Bytes that one layer may become: a few kilobytes can unpack to anything.
const MAX_BYTES: u64 = 64 << 30;

/// Depth of directories; each costs a descriptor while it is removed again.
const MAX_DEPTH: usize = 256;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Unpacks a layer into an empty directory; returns the bytes of its files. `layer` is what
/// errors name.
pub(crate) fn unpack(layer: &str, reader: impl Read, target: &Path) -> Result<u64> {
    let root = rooted::open_dir(target).map_err(Error::io("open", target))?;
    let mut unpacker = Unpacker {
        layer,
        root,
        parent: None,
        directories: Vec::new(),
        made: HashSet::new(),
        names: 0,
        bytes: 0,
    };
    let mut archive = tar::Archive::new(Guard::new(reader));
    let entries = archive.entries().map_err(|error| Error::corrupt(layer, error.to_string()))?;
    for (count, entry) in entries.enumerate() {
        if count >= MAX_ENTRIES {
            return Err(Error::corrupt(layer, format!("more than {MAX_ENTRIES} entries")));
        }
        let entry = entry.map_err(|error| Error::corrupt(layer, format!("not a tar archive: {error}")))?;
        unpacker.entry(entry)?;
    }
    unpacker.finish()?;
    Ok(unpacker.bytes)
}

struct Unpacker<'a> {
    layer: &'a str,
    root: OwnedFd,
    /// The directory of the last entry: most have the same as the one before.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Their times are set last, since each entry made in them changes them.
    directories: Vec<(PathBuf, i64)>,
    /// What this layer has itself: a whiteout hides layers below, never the own.
    made: HashSet<PathBuf>,
    /// The bytes of all names so far.
    names: usize,
    bytes: u64,
}

/// Owner, permissions, time and attributes of a file.
pub(crate) struct Meta {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
    pub(crate) mtime: i64,
    pub(crate) xattrs: Vec<(CString, Vec<u8>)>,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<()> {
        let path = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
        if entry.header().entry_type() == EntryType::XGlobalHeader {
            return Ok(());
        }
        self.names += path.as_os_str().len();
        if self.names > MAX_NAMES {
            return Err(Error::corrupt(self.layer, format!("names of more than {MAX_NAMES} bytes")));
        }
        let shown = path.display().to_string();
        let refuse = |what: &str| Error::Entry {
            layer: self.layer.to_owned(),
            entry: shown.clone(),
            what: what.to_owned(),
        };
        let meta = Meta::read(&mut entry).map_err(|what| refuse(&what))?;
        let Some((parent, name)) = rooted::split(&path).map_err(refuse)? else {
            if entry.header().entry_type().is_dir() {
                let root = self.root.try_clone().map_err(self.failed(&shown))?;
                meta.apply(&root, OsStr::new("."), true).map_err(self.failed(&shown))?;
            }
            return Ok(());
        };
        if parent.components().count() > MAX_DEPTH {
            return Err(refuse("it is nested too deeply"));
        }
        let directory = match self.parent_of(&parent) {
            Ok(directory) => directory,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP)) => {
                return Err(refuse("it passes through a symbolic link"));
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTDIR)) => {
                return Err(refuse("it passes through something that is no directory"));
            }
            Err(error) => return Err(self.failed(&shown)(error)),
        };
        let full = parent.join(name);
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.whiteout(&directory, &parent, name, hidden, &shown);
        }
        self.create(&mut entry, &directory, name, &full, &meta, &shown)?;
        self.made.insert(full);
        Ok(())
    }

    /// Opens the parent, making what is missing: archives may leave directories out.
    fn parent_of(&mut self, parent: &Path) -> io::Result<OwnedFd> {
        if let Some((path, fd)) = &self.parent
            && path == parent
        {
            return fd.try_clone();
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let fd = match rooted::open_plain(self.root.as_fd(), parent, flags) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut done = PathBuf::new();
                for part in parent.components() {
                    let above = rooted::open_plain(self.root.as_fd(), &done, flags)?;
                    match mkdirat(&above, part.as_os_str(), Mode::from_bits_truncate(0o755)) {
                        Ok(()) | Err(Errno::EEXIST) => done.push(part),
                        Err(errno) => return Err(errno.into()),
                    }
                }
                rooted::open_plain(self.root.as_fd(), parent, flags)?
            }
            result => result?,
        };
        self.parent = Some((parent.to_owned(), fd.try_clone()?));
        Ok(fd)
    }

    /// A mark that hides a name, or all names of a directory, of the layers below.
    fn whiteout(
        &mut self,
        directory: &OwnedFd,
        parent: &Path,
        name: &OsStr,
        hidden: &[u8],
        shown: &str,
    ) -> Result<()> {
        if name.as_bytes() == OPAQUE {
            let key = c"trusted.overlay.opaque";
            return set_xattr(directory, OsStr::new("."), key, b"y").map_err(self.failed(shown));
        }
        if hidden.is_empty() || hidden.starts_with(WHITEOUT) || hidden == b"." || hidden == b".." {
            return Err(Error::Entry {
                layer: self.layer.to_owned(),
                entry: shown.to_owned(),
                what: "it is no whiteout that the image specification knows".to_owned(),
            });
        }
        let hidden = OsStr::from_bytes(hidden);
        if self.made.contains(&parent.join(hidden)) {
            return Ok(());
        }
        match mknodat(directory, hidden, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(self.failed(shown)(errno.into())),
        }
    }

    fn create<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        directory: &OwnedFd,
        name: &OsStr,
        full: &Path,
        meta: &Meta,
        shown: &str,
    ) -> Result<()> {
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            self.directory(directory, name).map_err(self.failed(shown))?;
            meta.apply(directory, name, true).map_err(self.failed(shown))?;
            self.directories.push((full.to_owned(), meta.mtime));
            return Ok(());
        }
        // A later entry of the same name replaces an earlier one, as tar does.
        self.replace(directory, name).map_err(self.failed(shown))?;
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.regular(entry, directory, name, shown)?;
            }
            EntryType::Link => return self.hard_link(entry, directory, name, shown),
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                symlinkat(OsStr::from_bytes(&target), directory, name)
                    .map_err(|errno| self.failed(shown)(errno.into()))?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                self.special(entry, directory, name, kind, shown)?;
            }
            other => {
                return Err(Error::Entry {
                    layer: self.layer.to_owned(),
                    entry: shown.to_owned(),
                    what: format!("it has the unknown type {:?}", char::from(other.as_byte())),
                });
            }
        }
        meta.apply(directory, name, kind == EntryType::Symlink || kind.is_dir()).map_err(self.failed(shown))
    }

    fn directory(&mut self, directory: &OwnedFd, name: &OsStr) -> io::Result<()> {
        match mkdirat(directory, name, Mode::from_bits_truncate(0o700)) {
            Ok(()) => Ok(()),
            Err(Errno::EEXIST) => {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                if openat(directory, name, flags, Mode::empty()).is_ok() {
                    return Ok(());
                }
                unlinkat(directory, name, UnlinkatFlags::NoRemoveDir)?;
                Ok(mkdirat(directory, name, Mode::from_bits_truncate(0o700))?)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn replace(&mut self, directory: &OwnedFd, name: &OsStr) -> io::Result<()> {
        match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(Errno::EISDIR) => {
                // Held open, the path of the directory cannot be exchanged meanwhile.
                let path = crate::sys::fds::short_path(directory, "").join(name);
                std::fs::remove_dir_all(path)?;
                self.parent = None;
                Ok(())
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn regular<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        directory: &OwnedFd,
        name: &OsStr,
        shown: &str,
    ) -> Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(directory, name, flags, Mode::from_bits_truncate(0o600))
            .map_err(|errno| self.failed(shown)(errno.into()))?;
        let left = MAX_BYTES.saturating_sub(self.bytes);
        let size = entry.size();
        if size > left {
            return Err(Error::corrupt(self.layer, format!("unpacks to more than {MAX_BYTES} bytes")));
        }
        if size > LARGE {
            let disk = nix::sys::statvfs::fstatvfs(&fd).map_err(|errno| self.failed(shown)(errno.into()))?;
            let free = disk.blocks_available().saturating_mul(disk.fragment_size());
            if size > free {
                return Err(Error::corrupt(
                    self.layer,
                    format!("{shown}: {size} bytes, and the disk has room for {free}"),
                ));
            }
        }
        let written = io::copy(&mut entry.take(left), &mut File::from(fd)).map_err(self.failed(shown))?;
        if written < size {
            return Err(Error::corrupt(self.layer, format!("{shown}: truncated")));
        }
        self.bytes += written;
        Ok(())
    }

    fn hard_link<R: Read>(
        &mut self,
        entry: &Entry<'_, R>,
        directory: &OwnedFd,
        name: &OsStr,
        shown: &str,
    ) -> Result<()> {
        let refuse = |what: &str| Error::Entry {
            layer: self.layer.to_owned(),
            entry: shown.to_owned(),
            what: format!("its link target: {what}"),
        };
        let target = entry.link_name_bytes().unwrap_or_default();
        let target = PathBuf::from(OsStr::from_bytes(&target));
        let (parent, target) =
            rooted::split(&target).map_err(refuse)?.ok_or_else(|| refuse("it is the root"))?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let from = rooted::open_plain(self.root.as_fd(), &parent, flags)
            .map_err(|error| refuse(&error.to_string()))?;
        linkat(&from, target, directory, name, AtFlags::empty()).map_err(|errno| refuse(errno.desc()))
    }

    fn special<R: Read>(
        &mut self,
        entry: &Entry<'_, R>,
        directory: &OwnedFd,
        name: &OsStr,
        kind: EntryType,
        shown: &str,
    ) -> Result<()> {
        let number = |part: io::Result<Option<u32>>| part.ok().flatten().unwrap_or(0);
        let major = number(entry.header().device_major());
        let minor = number(entry.header().device_minor());
        let kind = match kind {
            EntryType::Char if (major, minor) == (0, 0) => {
                return Err(Error::Entry {
                    layer: self.layer.to_owned(),
                    entry: shown.to_owned(),
                    what: "a character device 0:0 is overlayfs' own mark".to_owned(),
                });
            }
            EntryType::Char => SFlag::S_IFCHR,
            EntryType::Block => SFlag::S_IFBLK,
            _ => SFlag::S_IFIFO,
        };
        let device = makedev(major.into(), minor.into());
        mknodat(directory, name, kind, Mode::from_bits_truncate(0o600), device)
            .map_err(|errno| self.failed(shown)(errno.into()))
    }

    /// Sets the directories' times, now that nothing more is made in them.
    fn finish(&mut self) -> Result<()> {
        for (path, mtime) in std::mem::take(&mut self.directories) {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
            // A later entry may have replaced the directory.
            if let Ok(fd) = rooted::open_plain(self.root.as_fd(), &path, flags) {
                set_time(&fd, OsStr::new("."), mtime).map_err(self.failed(&path.display().to_string()))?;
            }
        }
        Ok(())
    }

    fn failed(&self, entry: &str) -> impl FnOnce(io::Error) -> Error + use<> {
        let (layer, entry) = (self.layer.to_owned(), entry.to_owned());
        move |source| Error::Unpack { layer, entry, source }
    }
}

impl Meta {
    /// Owner first, since changing it clears the set-id bits and file capabilities.
    pub(crate) fn apply(&self, directory: &OwnedFd, name: &OsStr, late_time: bool) -> io::Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        fchownat(directory, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if !is_link(directory, name)? {
            let mode = Mode::from_bits_truncate(self.mode & 0o7777);
            fchmodat(directory, name, mode, FchmodatFlags::FollowSymlink)?;
        }
        for (key, value) in &self.xattrs {
            set_xattr(directory, name, key, value)?;
        }
        if !late_time || is_link(directory, name)? {
            set_time(directory, name, self.mtime)?;
        }
        Ok(())
    }

    fn read<R: Read>(entry: &mut Entry<'_, R>) -> Result<Self, String> {
        let mut xattrs = Vec::new();
        if let Some(extensions) = entry.pax_extensions().map_err(|error| error.to_string())? {
            for extension in extensions {
                let extension = extension.map_err(|error| error.to_string())?;
                let Some(key) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else { continue };
                if key.starts_with(b"trusted.overlay.") || key.starts_with(b"user.overlay.") {
                    return Err("it has an attribute that is overlayfs' own".to_owned());
                }
                let key = CString::new(key).map_err(|_| "an attribute's name has a zero byte")?;
                xattrs.push((key, extension.value_bytes().to_vec()));
            }
        }
        let header = entry.header();
        let text = |error: io::Error| error.to_string();
        let id = |value: u64| u32::try_from(value).map_err(|_| "its owner is out of range".to_owned());
        Ok(Meta {
            uid: id(header.uid().map_err(text)?)?,
            gid: id(header.gid().map_err(text)?)?,
            mode: header.mode().map_err(text)?,
            mtime: i64::try_from(header.mtime().map_err(text)?).unwrap_or(0),
            xattrs,
        })
    }
}

fn is_link(directory: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    let stat = nix::sys::stat::fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK)
}

/// Sets the time of a file, of a link itself.
pub(crate) fn set_time(directory: &OwnedFd, name: &OsStr, mtime: i64) -> io::Result<()> {
    let time = TimeSpec::new(mtime, 0);
    Ok(utimensat(directory, name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}

/// Sets an attribute without following a link. Attributes that the file system does not know
/// are left out, as every other unpacker does.
fn set_xattr(directory: &OwnedFd, name: &OsStr, key: &std::ffi::CStr, value: &[u8]) -> io::Result<()> {
    let path = crate::sys::fds::short_path(directory, "").join(name);
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both strings end with a zero byte, and the value's length is its own.
    let result =
        unsafe { libc::lsetxattr(path.as_ptr(), key.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    match result {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOTSUP) => Ok(()),
            error => Err(error),
        },
    }
}
