//! The folders that this node's persistent volumes of the provisioner `decapod.dev/local-path` stand for.
//!
//! **Invariant**: nothing outside is ever made or removed: a name is one plain component, no link is followed, and
//! nothing is removed through a mount. A folder is renamed before it is removed, so that a removal that was
//! interrupted is finished at the next start and a half-removed folder is never mounted again.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::mount::remove_tree;

/// What is being removed has this before its name.
const REMOVED: &str = ".removed-";
/// A volume's name is an object's name: Kubernetes' limit.
const NAME_LIMIT: usize = 253;

/// The folders.
pub(crate) struct Folders {
    root: PathBuf,
}

impl Folders {
    /// The folders below `root`; what was being removed goes now.
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o711).create(root)?;
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(REMOVED) {
                remove_tree(&entry.path())?;
            }
        }
        // Containers get there by mounts; a path in an object must not depend on where a process was started.
        Ok(Self { root: fs::canonicalize(root)? })
    }

    /// Makes the folder of this name, if it is not there, and returns its path. Any user of a container may write
    /// in it, as there is nobody who would know which.
    pub(crate) fn make(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.path(name)?;
        match DirBuilder::new().mode(0o700).create(&path) {
            // The mode given at creation is cut by the umask.
            Ok(()) => fs::set_permissions(&path, Permissions::from_mode(0o777))?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        if !fs::symlink_metadata(&path)?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is there and no folder"));
        }
        Ok(path)
    }

    /// Removes the folder of this name with all that is in it, if it is there.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path(name)?;
        let removed = self.root.join(format!("{REMOVED}{name}"));
        // A rename takes a link itself, not what it leads to; so does the removal.
        match fs::rename(&path, &removed) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        match fs::symlink_metadata(&removed) {
            Ok(meta) if meta.is_symlink() => fs::remove_file(&removed),
            Ok(_) => remove_tree(&removed),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn path(&self, name: &str) -> io::Result<PathBuf> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        let starts = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        if !starts || name.len() > NAME_LIMIT || !name.chars().all(plain) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no name of a volume"));
        }
        Ok(self.root.join(name))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn folders_are_made_once_and_removed_with_their_contents() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("local-path");
        let folders = Folders::open(&root).unwrap();
        let path = folders.make("pvc-1").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o777);
        fs::create_dir_all(path.join("a/b")).unwrap();
        fs::write(path.join("a/b/c"), "x").unwrap();
        assert_eq!(folders.make("pvc-1").unwrap(), path);
        assert!(path.join("a/b/c").exists(), "what is there stays");
        folders.remove("pvc-1").unwrap();
        folders.remove("pvc-1").unwrap();
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    }

    #[test]
    fn nothing_outside_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("local-path"), dir.path().join("outside"));
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("precious"), "x").unwrap();
        let folders = Folders::open(&root).unwrap();
        for bad in ["", ".", "..", "../outside", "a/b", "/etc", ".removed-x", "A", "a b"] {
            assert_eq!(folders.make(bad).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{bad:?}");
            assert_eq!(folders.remove(bad).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{bad:?}");
        }
        symlink(&outside, root.join("pvc-link")).unwrap();
        assert!(folders.make("pvc-link").is_err());
        folders.remove("pvc-link").unwrap();
        let path = folders.make("pvc-inner").unwrap();
        symlink(&outside, path.join("link")).unwrap();
        folders.remove("pvc-inner").unwrap();
        assert!(outside.join("precious").exists());
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    }

    #[test]
    fn an_interrupted_removal_is_finished_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join(format!("{REMOVED}pvc-1"));
        fs::create_dir_all(left.join("a")).unwrap();
        Folders::open(dir.path()).unwrap();
        assert!(!left.exists());
    }
}
