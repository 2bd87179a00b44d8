//! Writing a selection into the root file system of an image.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, mkdirat, mknodat};
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};

use super::source::{Item, Node, attributes};
use super::{Error, Owner, Selection, Source};
use crate::image::Meta;
use crate::sys::{fds, rooted};

/// The directory that a copy goes to, or the file that it becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Absolute in the image.
    pub(crate) path: PathBuf,
    /// Whether it was written as a directory: with a slash at its end.
    pub(crate) directory: bool,
}

/// Writes below a root.
pub(crate) struct Placer {
    root: OwnedFd,
    owner: Owner,
    /// Permission bits of everything, where they are given.
    mode: Option<u32>,
    /// The times of new directories, set last.
    times: Vec<(PathBuf, i64)>,
    /// Where files with several names were placed first.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Placer {
    /// Below this directory.
    pub(crate) fn new(root: &Path, owner: Owner, mode: Option<u32>) -> Result<Self, Error> {
        let root = rooted::open_dir(root).map_err(Error::io("open", root))?;
        Ok(Placer { root, owner, mode, times: Vec::new(), links: HashMap::new() })
    }

    /// Copies all that was selected.
    pub(crate) fn copy(
        &mut self,
        source: &Source,
        selection: &Selection,
        target: &Target,
    ) -> Result<(), Error> {
        let many = selection.items.len() > 1;
        let into = target.directory || many || self.is_directory(&target.path);
        for item in &selection.items {
            let top = item.nodes.first().ok_or_else(|| Error::Wrong("nothing is selected".to_owned()))?;
            let to = match top.kind == SFlag::S_IFDIR {
                // Of a directory its content is copied.
                true => target.path.clone(),
                false if into => target.path.join(&item.name),
                false => target.path.clone(),
            };
            self.item(source, item, &to)?;
        }
        // Names of another source's files are not these.
        self.links.clear();
        self.finish()
    }

    /// Does something with the owners of the source, if `keep`.
    pub(crate) fn keeping_owners<T>(&mut self, keep: bool, work: impl FnOnce(&mut Self) -> T) -> T {
        let owner = self.owner;
        if keep {
            self.owner = Owner::Kept;
        }
        let result = work(self);
        self.owner = owner;
        result
    }

    /// Writes a file of that content.
    pub(crate) fn write(&mut self, path: &Path, content: &[u8]) -> Result<(), Error> {
        let (parent, name) = self.parent(path)?;
        let file = self.create(&parent, &name, path)?;
        (&file).write_all(content).map_err(Error::io("write", path))?;
        let (uid, gid) = self.owner_of((0, 0));
        let meta = Meta { uid, gid, mode: self.mode.unwrap_or(0o644), mtime: 0, xattrs: Vec::new() };
        meta.apply(&parent, &name, false).map_err(Error::io("change", path))
    }

    /// Makes a directory, and those above it.
    pub(crate) fn directory(&mut self, path: &Path) -> Result<(), Error> {
        self.ensure(path)
    }

    fn item(&mut self, source: &Source, item: &Item, to: &Path) -> Result<(), Error> {
        for node in &item.nodes {
            let path = match node.below.as_os_str().is_empty() {
                true => to.to_owned(),
                false => to.join(&node.below),
            };
            match node.kind {
                SFlag::S_IFDIR if node.below.as_os_str().is_empty() => self.ensure(&path)?,
                SFlag::S_IFDIR => self.new_directory(source, node, &path)?,
                _ => self.place(source, node, &path)?,
            }
        }
        Ok(())
    }

    fn is_directory(&self, path: &Path) -> bool {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        rooted::open_in_root(self.root.as_fd(), path, flags).is_ok()
    }

    fn owner_of(&self, kept: (u32, u32)) -> (u32, u32) {
        match self.owner {
            Owner::Kept => kept,
            Owner::Given(uid, gid) => (uid, gid),
        }
    }

    /// The directory that the path is in, made if need be, and the name.
    fn parent(&mut self, path: &Path) -> Result<(OwnedFd, OsString), Error> {
        let name =
            path.file_name().ok_or_else(|| Error::Wrong(format!("{}: is no file's path", path.display())))?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        self.ensure(parent)?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let fd = rooted::open_in_root(self.root.as_fd(), &absolute(parent), flags);
        Ok((fd.map_err(Error::io("open", parent))?, name.to_owned()))
    }

    /// Makes directories that are not there; links on the way lead where they would inside.
    fn ensure(&mut self, path: &Path) -> Result<(), Error> {
        if self.is_directory(&absolute(path)) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.ensure(parent)?;
        }
        let Some(name) = path.file_name() else { return Ok(()) };
        let parent = path.parent().unwrap_or(Path::new("/"));
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let fd = rooted::open_in_root(self.root.as_fd(), &absolute(parent), flags)
            .map_err(Error::io("open", parent))?;
        mkdirat(&fd, name, Mode::from_bits_truncate(0o755)).map_err(|errno| match errno {
            Errno::EEXIST => Error::Wrong(format!("{}: is there and is no directory", path.display())),
            errno => Error::io("create", path)(errno.into()),
        })?;
        let (uid, gid) = self.owner_of((0, 0));
        let meta = Meta { uid, gid, mode: 0o755, mtime: 0, xattrs: Vec::new() };
        meta.apply(&fd, name, true).map_err(Error::io("change", path))
    }

    /// A directory of the source's permissions, unless one is there.
    fn new_directory(&mut self, source: &Source, node: &Node, path: &Path) -> Result<(), Error> {
        if self.is_directory(&absolute(path)) {
            return Ok(());
        }
        self.ensure(path)?;
        let (parent, name) = self.parent(path)?;
        let meta = self.meta(source, node)?;
        meta.apply(&parent, &name, true).map_err(Error::io("change", path))?;
        self.times.push((path.to_owned(), node.mtime));
        Ok(())
    }

    fn meta(&self, source: &Source, node: &Node) -> Result<Meta, Error> {
        let (uid, gid) = self.owner_of(node.owner);
        let mode = self.mode.unwrap_or(node.mode);
        let mut xattrs = Vec::new();
        if node.kind != SFlag::S_IFLNK {
            let path = fds::short_path(source.root(), "").join(&node.path);
            for (key, value) in attributes(&path).map_err(Error::io("read the attributes of", &node.path))? {
                let key = std::ffi::CString::new(key);
                xattrs.push((
                    key.map_err(|e| Error::io("read the attributes of", &node.path)(e.into()))?,
                    value,
                ));
            }
        }
        Ok(Meta { uid, gid, mode, mtime: node.mtime, xattrs })
    }

    fn place(&mut self, source: &Source, node: &Node, path: &Path) -> Result<(), Error> {
        let (parent, name) = self.parent(path)?;
        if let Some(first) = node.inode.and_then(|inode| self.links.get(&inode).cloned()) {
            let (from, first_name) = self.parent(&first)?;
            remove(&parent, &name, path)?;
            return linkat(&from, first_name.as_os_str(), &parent, name.as_os_str(), AtFlags::empty())
                .map_err(|errno| Error::io("link", path)(errno.into()));
        }
        self.links.extend(node.inode.map(|inode| (inode, path.to_owned())));
        match node.kind {
            SFlag::S_IFREG => {
                let mut input = source.file(node)?;
                let mut output = self.create(&parent, &name, path)?;
                io::copy(&mut input, &mut output).map_err(Error::io("copy", &node.path))?;
            }
            SFlag::S_IFLNK => {
                remove(&parent, &name, path)?;
                let link = node.link.as_deref().unwrap_or_default();
                symlinkat(link, &parent, name.as_os_str())
                    .map_err(|errno| Error::io("create", path)(errno.into()))?;
            }
            // What overlayfs takes for a file that is not there.
            SFlag::S_IFCHR if node.device == 0 => return Ok(()),
            SFlag::S_IFCHR | SFlag::S_IFBLK | SFlag::S_IFIFO => {
                remove(&parent, &name, path)?;
                let mode = Mode::from_bits_truncate(0o600);
                mknodat(&parent, name.as_os_str(), node.kind, mode, node.device)
                    .map_err(|errno| Error::io("create", path)(errno.into()))?;
            }
            // A socket is its listener's, and nobody listens in an image.
            _ => return Ok(()),
        }
        self.meta(source, node)?.apply(&parent, &name, false).map_err(Error::io("change", path))
    }

    fn create(&self, parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<File, Error> {
        remove(parent, name, path)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(parent, name, flags, Mode::from_bits_truncate(0o600));
        Ok(File::from(fd.map_err(|errno| Error::io("create", path)(errno.into()))?))
    }

    fn finish(&mut self) -> Result<(), Error> {
        for (path, mtime) in std::mem::take(&mut self.times) {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
            let fd = rooted::open_in_root(self.root.as_fd(), &absolute(&path), flags)
                .map_err(Error::io("open", &path))?;
            crate::image::set_time(&fd, OsStr::new("."), mtime).map_err(Error::io("change", &path))?;
        }
        Ok(())
    }
}

/// `openat2` wants a path, and the root's own is none.
fn absolute(path: &Path) -> PathBuf {
    Path::new("/").join(path)
}

fn remove(parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), Error> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EISDIR) => {
            Err(Error::Wrong(format!("{}: is a directory, and would be replaced by a file", path.display())))
        }
        Err(errno) => Err(Error::io("replace", path)(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::super::Ignore;
    use super::*;

    struct Case {
        source: tempfile::TempDir,
        target: tempfile::TempDir,
    }

    impl Case {
        fn new() -> Self {
            let source = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(source.path().join("dir/sub")).unwrap();
            std::fs::write(source.path().join("dir/sub/x"), "x").unwrap();
            std::fs::write(source.path().join("file"), "file").unwrap();
            symlink("../file", source.path().join("dir/link")).unwrap();
            Case { source, target: tempfile::tempdir().unwrap() }
        }

        fn copy(&self, what: &str, path: &str, mode: Option<u32>) -> Result<(), String> {
            let source = Source::open(self.source.path(), Ignore::default()).unwrap();
            let selection = source.select(&[what.to_owned()]).map_err(|e| e.to_string())?;
            let me = nix::unistd::getuid().as_raw();
            let mut placer = Placer::new(self.target.path(), Owner::Given(me, me), mode).unwrap();
            let target = Target { path: path.into(), directory: path.ends_with('/') };
            placer.copy(&source, &selection, &target).map_err(|e| e.to_string())
        }

        fn read(&self, path: &str) -> String {
            std::fs::read_to_string(self.target.path().join(path)).unwrap()
        }
    }

    #[test]
    fn files_and_the_content_of_directories() {
        let case = Case::new();
        case.copy("file", "/new/name", Some(0o751)).unwrap();
        assert_eq!(case.read("new/name"), "file");
        let mode = std::fs::metadata(case.target.path().join("new/name")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o751);
        case.copy("file", "/into/", None).unwrap();
        assert_eq!(case.read("into/file"), "file");
        case.copy("file", "/into", None).unwrap();
        case.copy("dir", "/into", None).unwrap();
        assert_eq!(case.read("into/sub/x"), "x");
        let link = std::fs::read_link(case.target.path().join("into/link")).unwrap();
        assert_eq!(link, Path::new("../file"));
        let error = case.copy("file", "/into/sub/x/y", None).unwrap_err();
        assert!(error.contains("is no directory"), "{error}");
        let times = |dir: &tempfile::TempDir, path| dir.path().join(path).metadata().unwrap().mtime();
        assert_eq!(times(&case.source, "dir/sub"), times(&case.target, "into/sub"));
        std::fs::hard_link(case.source.path().join("dir/sub/x"), case.source.path().join("dir/sub/y"))
            .unwrap();
        case.copy("dir", "/linked", None).unwrap();
        assert_eq!(case.target.path().join("linked/sub/y").metadata().unwrap().nlink(), 2);
    }

    #[test]
    fn links_of_the_image_do_not_lead_out() {
        let case = Case::new();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), case.target.path().join("etc")).unwrap();
        std::fs::write(outside.path().join("victim"), "whole").unwrap();
        symlink(outside.path().join("victim"), case.target.path().join("name")).unwrap();
        // The link's target is not there inside.
        assert!(case.copy("file", "/etc/file", None).is_err());
        case.copy("file", "/name", None).unwrap();
        assert_eq!(case.read("name"), "file");
        assert_eq!(std::fs::read_to_string(outside.path().join("victim")).unwrap(), "whole");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
        // A link within the image is followed, as a process inside would.
        std::fs::create_dir(case.target.path().join("usr")).unwrap();
        symlink("usr", case.target.path().join("lib")).unwrap();
        case.copy("file", "/lib/", None).unwrap();
        assert_eq!(case.read("usr/file"), "file");
    }
}
