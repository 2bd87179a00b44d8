//! Writes a set of files so that a reader sees either all of the old ones or all of the new ones.
//!
//! As in Kubernetes: the files lie in a time-stamped folder, `..data` is a symbolic link to it that is replaced by
//! renaming, and each name that the user sees is a link through `..data`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

/// The link that is swapped.
const DATA: &str = "..data";
/// Its new version before the swap.
const DATA_NEW: &str = "..data_tmp";
/// Kubernetes' limit for a path inside a volume.
const MAX_PATH: usize = 4096;

/// One file to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) data: Vec<u8>,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Owner, where it must not be root.
    pub(crate) owner: Option<u32>,
}

/// The files of a volume by their relative paths.
pub(crate) type Payload = BTreeMap<String, Entry>;

/// Why a payload was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("invalid path: {0}")]
    Path(String),
    #[error("failed to write {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn io(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}

/// Makes `target` contain exactly `payload`; `group` owns the files if given, and may read them. Returns whether
/// anything was written.
pub(crate) fn write(target: &Path, payload: &Payload, group: Option<u32>) -> Result<bool, Error> {
    for path in payload.keys() {
        check(path)?;
    }
    let old = current(target)?;
    let unchanged = match &old {
        Some(old) => same(&target.join(old), payload, group).map_err(io(target))?,
        None => false,
    };
    if unchanged {
        // A crash may have come between the swap and the links.
        link_names(target, payload).map_err(io(target))?;
        return Ok(false);
    }
    let folder = new_folder(target, group).map_err(io(target))?;
    fill(&target.join(&folder), payload, group)?;
    let new = target.join(DATA_NEW);
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io(&new)(e)),
        _ => {}
    }
    symlink(&folder, &new).map_err(io(&new))?;
    fs::rename(&new, target.join(DATA)).map_err(io(&new))?;
    link_names(target, payload).map_err(io(target))?;
    sweep(target, &folder, payload).map_err(io(target))?;
    Ok(true)
}

fn check(path: &str) -> Result<(), Error> {
    let plain = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    if path.is_empty() || path.len() > MAX_PATH || !plain || path.starts_with("..") {
        return Err(Error::Path(path.to_owned()));
    }
    Ok(())
}

/// The folder that `..data` points to.
fn current(target: &Path) -> Result<Option<PathBuf>, Error> {
    match fs::read_link(target.join(DATA)) {
        Ok(folder) => Ok(Some(folder)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io(target)(e)),
    }
}

/// The permission bits that the file gets: its group may read what the owner may, as `fsGroup` has it.
fn mode(entry: &Entry, group: Option<u32>) -> u32 {
    if group.is_some() { entry.mode | 0o440 } else { entry.mode }
}

fn same(folder: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let entries = match fs::read_dir(&next) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        for entry in entries {
            let path = entry?.path();
            let meta = fs::symlink_metadata(&path)?;
            if meta.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
            let Some(wanted) = payload.get(&name) else { return Ok(false) };
            let bits = meta.permissions().mode() & 0o7777;
            if bits != mode(wanted, group) || fs::read(&path)? != wanted.data {
                return Ok(false);
            }
            found.insert(name);
        }
    }
    Ok(found.len() == payload.len())
}

/// A new folder with a name that no other has: the next number after those that are there.
fn new_folder(target: &Path, group: Option<u32>) -> io::Result<PathBuf> {
    fs::create_dir_all(target)?;
    for number in 0..u32::MAX {
        let name = PathBuf::from(format!("..{number:010}"));
        match DirBuilder::new().mode(0o755).create(target.join(&name)) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
            Ok(()) => {
                let path = target.join(&name);
                // The mode given at creation is cut by the umask.
                fs::set_permissions(&path, Permissions::from_mode(0o755))?;
                chown(&path, None, group)?;
                return Ok(name);
            }
        }
    }
    Err(io::Error::other("no free folder name"))
}

fn fill(folder: &Path, payload: &Payload, group: Option<u32>) -> Result<(), Error> {
    for (name, entry) in payload {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(io(parent))?;
        }
        let mut file: File =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(io(&path))?;
        file.write_all(&entry.data).map_err(io(&path))?;
        chown(&path, entry.owner, group).map_err(io(&path))?;
        file.set_permissions(Permissions::from_mode(mode(entry, group))).map_err(io(&path))?;
    }
    Ok(())
}

fn first(path: &str) -> &str {
    path.split('/').next().unwrap_or(path)
}

fn link_names(target: &Path, payload: &Payload) -> io::Result<()> {
    let names: BTreeSet<&str> = payload.keys().map(|p| first(p)).collect();
    for name in names {
        let link = target.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    Ok(())
}

/// Removes old folders and links to names that are gone.
fn sweep(target: &Path, folder: &Path, payload: &Payload) -> io::Result<()> {
    let names: BTreeSet<&str> = payload.keys().map(|p| first(p)).collect();
    for entry in fs::read_dir(target)? {
        let entry = entry?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        if text == DATA || Path::new(&name) == folder || names.contains(text.as_ref()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, data)| {
                ((*path).to_owned(), Entry { data: data.as_bytes().to_vec(), mode: 0o644, owner: None })
            })
            .collect()
    }

    fn read(dir: &Path, name: &str) -> String {
        fs::read_to_string(dir.join(name)).unwrap()
    }

    #[test]
    fn files_are_swapped_together_and_stale_names_vanish() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path(), &payload(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert_eq!((read(dir.path(), "a"), read(dir.path(), "d/b")), ("1".into(), "2".into()));
        let held = fs::canonicalize(dir.path().join("..data")).unwrap();
        assert!(write(dir.path(), &payload(&[("a", "9"), ("c", "3")]), None).unwrap());
        assert_eq!((read(dir.path(), "a"), read(dir.path(), "c")), ("9".into(), "3".into()));
        assert!(!dir.path().join("d").exists() && !held.exists());
        let names = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 4, "two links, ..data and its folder");
    }

    #[test]
    fn the_same_payload_is_not_written_again_but_another_mode_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = payload(&[("a", "1")]);
        assert!(write(dir.path(), &files, None).unwrap());
        let before = fs::read_link(dir.path().join("..data")).unwrap();
        assert!(!write(dir.path(), &files, None).unwrap());
        assert_eq!(fs::read_link(dir.path().join("..data")).unwrap(), before);
        files.get_mut("a").unwrap().mode = 0o600;
        assert!(write(dir.path(), &files, None).unwrap());
        let mode = fs::metadata(dir.path().join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(write(dir.path(), &Payload::new(), None).unwrap(), "to nothing");
        assert!(!dir.path().join("a").exists());
    }

    #[test]
    fn paths_cannot_leave_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["../x", "/etc/x", "a/../../x", "..data", ""] {
            let result = write(dir.path(), &payload(&[(bad, "1")]), None);
            assert!(matches!(result, Err(Error::Path(_))), "{bad}");
        }
    }
}
