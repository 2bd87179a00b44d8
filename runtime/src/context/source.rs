//! What an instruction copies: files of a context or of another image, found and digested.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstat, fstatat};
use sha2::{Digest, Sha256};

use super::Error;
use super::ignore::Ignore;
use super::pattern::Pattern;
use crate::sys::{fds, rooted};

/// Files that one instruction copies.
const MAX_ENTRIES: usize = 2_000_000;

/// Depth of directories; each is opened anew by its path.
const MAX_DEPTH: usize = 256;

/// Read at once.
const CHUNK: usize = 256 * 1024;

/// Whose the copied files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// As in the source.
    Kept,
    /// This user and group.
    Given(u32, u32),
}

/// A folder to copy from.
pub(crate) struct Source {
    root: OwnedFd,
    ignore: Ignore,
}

/// What is to be copied: by the path in the source.
#[derive(Debug)]
pub(crate) struct Selection {
    /// Each with its tree.
    pub(crate) items: Vec<Item>,
}

/// A file or directory that a pattern matched.
#[derive(Debug)]
pub(crate) struct Item {
    /// Its own name.
    pub(crate) name: OsString,
    /// Itself first, then what is below it, parents before children.
    pub(crate) nodes: Vec<Node>,
}

/// A file or directory of a source.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Its path in the source; links in it have been resolved.
    pub(crate) path: PathBuf,
    /// Its path below the item; empty for the item itself.
    pub(crate) below: PathBuf,
    /// What `stat` says of it.
    pub(crate) kind: SFlag,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Its owner in the source.
    pub(crate) owner: (u32, u32),
    /// Seconds since 1970.
    pub(crate) mtime: i64,
    /// Of a device.
    pub(crate) device: u64,
    /// Of a link.
    pub(crate) link: Option<OsString>,
    /// Of what has several names: which it is.
    pub(crate) inode: Option<(u64, u64)>,
}

impl Node {
    fn new(path: PathBuf, below: PathBuf, stat: &FileStat, link: Option<OsString>) -> Self {
        Node {
            path,
            below,
            kind: SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()),
            mode: stat.st_mode & 0o7777,
            owner: (stat.st_uid, stat.st_gid),
            mtime: stat.st_mtime,
            device: stat.st_rdev,
            link,
            inode: (stat.st_nlink > 1 && stat.st_mode & libc::S_IFMT != libc::S_IFDIR)
                .then_some((stat.st_dev, stat.st_ino)),
        }
    }
}

impl Source {
    /// A folder of which only what is not ignored is there.
    pub(crate) fn open(root: &Path, ignore: Ignore) -> Result<Self, Error> {
        let fd = rooted::open_dir(root).map_err(Error::io("open", root))?;
        Ok(Source { root: fd, ignore })
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Finds what the patterns name; each must name something.
    pub(crate) fn select(&self, patterns: &[String]) -> Result<Selection, Error> {
        let mut items = Vec::new();
        let mut count = 0;
        for text in patterns {
            let pattern = Pattern::new(text);
            let paths = match pattern.literal() {
                Some(path) => vec![PathBuf::from(path)],
                None => self.matches(&pattern)?,
            };
            let before = items.len();
            for path in paths {
                items.extend(self.item(&path, &mut count)?);
            }
            if items.len() == before {
                return Err(Error::Wrong(format!(
                    "{text:?}: there is no such file in what is copied from (or .dockerignore leaves it out)"
                )));
            }
        }
        Ok(Selection { items })
    }

    /// The paths that a pattern matches.
    fn matches(&self, pattern: &Pattern) -> Result<Vec<PathBuf>, Error> {
        let mut nodes = Vec::new();
        let mut count = 0;
        self.walk(PathBuf::new(), Path::new(""), &mut nodes, &mut count)?;
        let found = nodes.into_iter().map(|node| node.path);
        Ok(found.filter(|path| pattern.matches(&names(path))).collect())
    }

    /// A file or directory with what is below it; none where it is not there.
    fn item(&self, path: &Path, count: &mut usize) -> Result<Option<Item>, Error> {
        let in_root = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let fd = match rooted::open_in_root(self.root.as_fd(), in_root, OFlag::O_PATH) {
            Ok(fd) => fd,
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(None),
            Err(error) => return Err(Error::io("open", path)(error)),
        };
        // Where it really is: a link that is named itself stands for what it leads to.
        let real = self.real_path(&fd).map_err(Error::io("open", path))?;
        if !real.as_os_str().is_empty() && self.ignore.excludes(&names(&real)) && self.ignore.is_final() {
            return Ok(None);
        }
        let stat = fstat(&fd).map_err(|errno| Error::io("look at", path)(errno.into()))?;
        let top = Node::new(real.clone(), PathBuf::new(), &stat, None);
        let is_directory = top.kind == SFlag::S_IFDIR;
        let ignored = !real.as_os_str().is_empty() && self.ignore.excludes(&names(&real));
        let mut nodes = vec![top];
        if is_directory {
            self.walk(real, Path::new(""), &mut nodes, count)?;
        }
        if ignored && nodes.len() == 1 {
            return Ok(None);
        }
        let name = path.file_name().map(OsStr::to_owned).unwrap_or_default();
        Ok(Some(Item { name, nodes }))
    }

    fn real_path(&self, fd: &OwnedFd) -> io::Result<PathBuf> {
        let path_of = |fd: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let (own, real) = (path_of(&self.root)?, path_of(fd)?);
        Ok(real.strip_prefix(&own).map(Path::to_owned).unwrap_or_default())
    }

    /// What is below a directory, in the order of names.
    fn walk(
        &self,
        path: PathBuf,
        below: &Path,
        nodes: &mut Vec<Node>,
        count: &mut usize,
    ) -> Result<(), Error> {
        if path.components().count() > MAX_DEPTH {
            return Err(Error::Wrong(format!("{}: nested more than {MAX_DEPTH} deep", path.display())));
        }
        let failed = |doing| Error::io(doing, &path);
        let directory = rooted::open_plain(self.root.as_fd(), &path, OFlag::O_PATH | OFlag::O_DIRECTORY)
            .map_err(failed("open"))?;
        let listed = std::fs::read_dir(fds::short_path(&directory, "")).map_err(failed("list"))?;
        let listed = listed.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>();
        let mut listed = listed.map_err(failed("list"))?;
        listed.sort();
        for name in listed {
            let own = path.join(&name);
            let excluded = self.ignore.excludes(&names(&own));
            if excluded && self.ignore.is_final() {
                continue;
            }
            let stat = fstatat(&directory, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(|errno| Error::io("look at", &own)(errno.into()))?;
            let is_link = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFLNK.bits();
            let link = match is_link {
                true => Some(
                    readlinkat(&directory, name.as_os_str())
                        .map_err(|errno| Error::io("read", &own)(errno.into()))?,
                ),
                false => None,
            };
            let node = Node::new(own.clone(), below.join(&name), &stat, link);
            let is_directory = node.kind == SFlag::S_IFDIR;
            let place = nodes.len();
            if !excluded || is_directory {
                *count += 1;
                if *count > MAX_ENTRIES {
                    return Err(Error::Wrong(format!("more than {MAX_ENTRIES} files")));
                }
                nodes.push(node);
            }
            if is_directory {
                self.walk(own, &below.join(&name), nodes, count)?;
                // Of what is left out only the directories above an exception are there.
                if excluded && nodes.len() == place + 1 {
                    nodes.pop();
                }
            }
        }
        Ok(())
    }

    /// Opens a regular file of a selection.
    pub(crate) fn file(&self, node: &Node) -> Result<File, Error> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
        let fd = rooted::open_plain(self.root.as_fd(), &node.path, flags)
            .map_err(Error::io("open", &node.path))?;
        Ok(File::from(fd))
    }

    /// What changes when anything that is copied does; times do not count.
    pub(crate) fn digest(&self, selection: &Selection, owner: Owner) -> Result<String, Error> {
        let mut hasher = Sha256::new();
        let mut chunk = vec![0; CHUNK];
        for item in &selection.items {
            for node in &item.nodes {
                let (uid, gid) = match owner {
                    Owner::Kept => node.owner,
                    Owner::Given(uid, gid) => (uid, gid),
                };
                let path = Path::new(&item.name).join(&node.below);
                for part in [path.as_os_str(), node.link.as_deref().unwrap_or_default()] {
                    hasher.update((part.len() as u64).to_le_bytes());
                    hasher.update(part.as_bytes());
                }
                let numbers = [node.kind.bits(), node.mode, uid, gid];
                numbers.iter().for_each(|number| hasher.update(number.to_le_bytes()));
                hasher.update(node.device.to_le_bytes());
                if node.kind != SFlag::S_IFREG {
                    continue;
                }
                let mut file = self.file(node)?;
                let mut length = 0u64;
                loop {
                    let read = file.read(&mut chunk).map_err(Error::io("read", &node.path))?;
                    if read == 0 {
                        break;
                    }
                    length += read as u64;
                    hasher.update(&chunk[..read]);
                }
                hasher.update(length.to_le_bytes());
            }
        }
        Ok(crate::image::format_digest(&hasher.finalize()))
    }
}

/// A path by its names, for patterns: what is no text is matched by what it looks like.
fn names(path: &Path) -> Vec<&str> {
    path.iter().map(|name| name.to_str().unwrap_or("\u{fffd}")).collect()
}

/// Attributes of an open file or directory that belong into an image.
pub(crate) fn attributes(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for name in crate::sys::xattr::list(path)? {
        let ours = [&b"user."[..], b"security.capability"].iter().any(|start| name.starts_with(start));
        if ours
            && !name.starts_with(b"user.overlay.")
            && let Some(value) = crate::sys::xattr::get(path, &name)?
        {
            found.insert(name, value);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn context() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in ["src/a.rs", "src/b.rs", "src/deep/c.txt", "README.md", "target/x"] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "content").unwrap();
        }
        symlink("/etc", dir.path().join("out")).unwrap();
        symlink("src/a.rs", dir.path().join("inside")).unwrap();
        dir
    }

    fn selected(rules: &str, patterns: &[&str]) -> Result<Vec<String>, String> {
        let dir = context();
        let source = Source::open(dir.path(), Ignore::parse(rules)).unwrap();
        let patterns: Vec<String> = patterns.iter().map(|text| (*text).to_owned()).collect();
        let selection = source.select(&patterns).map_err(|error| error.to_string())?;
        let nodes = selection.items.iter().flat_map(|item| &item.nodes);
        Ok(nodes.map(|node| node.path.display().to_string()).collect())
    }

    #[test]
    fn patterns_select() {
        assert_eq!(selected("", &["src/*.rs"]).unwrap(), ["src/a.rs", "src/b.rs"]);
        assert_eq!(
            selected("", &["/src"]).unwrap(),
            ["src", "src/a.rs", "src/b.rs", "src/deep", "src/deep/c.txt"]
        );
        assert_eq!(selected("", &["../../README.md"]).unwrap(), ["README.md"]);
        assert_eq!(selected("", &["inside"]).unwrap(), ["src/a.rs"]);
        assert!(selected("", &["nothing"]).unwrap_err().contains("\"nothing\": there is no such file"));
        assert!(selected("", &["*.none"]).is_err());
        // In the root that the context is, /etc is not there.
        assert!(selected("", &["out"]).is_err() && selected("", &["out/passwd"]).is_err());
    }

    #[test]
    fn what_is_ignored_is_not_there() {
        let all = selected("src\n!src/deep\ntarget\nout\ninside", &["."]).unwrap();
        assert_eq!(all, ["", "README.md", "src", "src/deep", "src/deep/c.txt"]);
        assert!(selected("target", &["target/x"]).is_err());
        assert!(selected("target\n!README.md", &["target"]).is_err());
        assert_eq!(selected("*\n!README.md", &["."]).unwrap(), ["", "README.md"]);
    }

    #[test]
    fn digests_follow_the_content() {
        let dir = context();
        let digest = || {
            let source = Source::open(dir.path(), Ignore::default()).unwrap();
            let selection = source.select(&["src".to_owned()]).unwrap();
            source.digest(&selection, Owner::Given(0, 0)).unwrap()
        };
        let before = digest();
        std::fs::write(dir.path().join("src/a.rs"), "content").unwrap();
        assert_eq!(digest(), before, "times do not count");
        std::fs::write(dir.path().join("src/a.rs"), "other").unwrap();
        assert_ne!(digest(), before);
    }
}
