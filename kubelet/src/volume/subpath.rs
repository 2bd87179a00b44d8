//! `subPath`: one file or folder of a volume, mounted alone.
//!
//! **Invariant**: what is mounted lies inside the volume, whatever links a container put there. The path is resolved
//! by the kernel under the volume's root (`openat2` with `RESOLVE_BENEATH`), and the result is bound by its
//! descriptor, so that nothing can be exchanged between the check and the mount.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};

use super::mount;
use crate::environment;

/// Why a sub-path cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("error SubPath `{0}` must not be an absolute path")]
    Absolute(String),
    #[error("unable to provision SubPath `{0}`: must not contain '..'")]
    Path(String),
    #[error("failed to expand subPathExpr {expression:?}: missing value for {names}")]
    Missing { expression: String, names: String },
    #[error("failed to open subPath {path:?} in its volume")]
    Open {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("failed to bind subPath {path:?}")]
    Bind {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// The path that a `subPathExpr` means with these variables. Each that it names must have a value, or everything that
/// lacks one would share a path.
pub(crate) fn expand(expression: &str, environment: &[(String, String)]) -> Result<String, Error> {
    let missing = RefCell::new(BTreeSet::new());
    let expanded = environment::expand(expression, |name| {
        let value = environment.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        if value.as_ref().is_none_or(String::is_empty) {
            missing.borrow_mut().insert(name.to_owned());
        }
        value
    });
    let missing = missing.into_inner();
    if missing.is_empty() {
        return Ok(expanded);
    }
    let names = missing.into_iter().collect::<Vec<_>>().join(", ");
    Err(Error::Missing { expression: expression.to_owned(), names })
}

/// Whether the path stays in its volume, as it is written.
pub(crate) fn check(sub: &str) -> Result<(), Error> {
    if Path::new(sub).is_absolute() {
        return Err(Error::Absolute(sub.to_owned()));
    }
    if Path::new(sub).components().any(|component| component == Component::ParentDir) {
        return Err(Error::Path(sub.to_owned()));
    }
    Ok(())
}

/// Makes `sub` of the volume at `root` appear at `at`, creating a folder where nothing is. Idempotent.
pub(crate) fn bind(root: &Path, sub: &str, at: &Path) -> Result<PathBuf, Error> {
    check(sub)?;
    let open = |source| Error::Open { path: sub.to_owned(), source };
    let bound = |source| Error::Bind { path: sub.to_owned(), source };
    let root = File::open(root).map_err(open)?;
    let found = resolve(&root, sub).map_err(open)?;
    // The target of an earlier attempt of the container holds what the path meant then.
    mount::unmount_below(at).map_err(bound)?;
    let is_dir = File::from(found.try_clone().map_err(bound)?).metadata().map_err(bound)?.is_dir();
    if is_dir {
        fs::create_dir_all(at).map_err(bound)?;
    } else {
        fs::create_dir_all(at.parent().unwrap_or(at)).map_err(bound)?;
        fs::write(at, "").map_err(bound)?;
    }
    mount::bind(&found, at).map_err(bound)?;
    Ok(at.to_owned())
}

fn resolve(root: &File, sub: &str) -> io::Result<OwnedFd> {
    match open_beneath(root, sub) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let mut path = PathBuf::new();
    for component in Path::new(sub).components() {
        let parent =
            if path.as_os_str().is_empty() { ".".into() } else { path.to_string_lossy().into_owned() };
        path.push(component);
        match open_beneath(root, &path.to_string_lossy()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let parent = open_beneath(root, &parent)?;
                let name = Path::new(component.as_os_str());
                match mkdirat(&parent, name, Mode::from_bits_truncate(0o750)) {
                    Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            Err(e) => return Err(e),
            Ok(_) => {}
        }
    }
    open_beneath(root, sub)
}

/// The text of a file of the volume at `root`, up to a limit in bytes.
pub(crate) fn read(root: &Path, path: &str, limit: u64) -> io::Result<String> {
    // Not to wait for a writer, should it be a pipe.
    let file = open(&File::open(root)?, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
    let file = File::from(file);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut text = String::new();
    file.take(limit).read_to_string(&mut text)?;
    Ok(text)
}

fn open_beneath(root: &File, path: &str) -> io::Result<OwnedFd> {
    open(root, path, OFlag::O_PATH)
}

fn open(root: &File, path: &str, flags: OFlag) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let path = if path.is_empty() { "." } else { path };
    openat2(root, path, how).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_inside_are_followed_and_links_outside_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("v"), dir.path().join("outside"));
        fs::create_dir_all(volume.join("real")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(volume.join("real/f"), "in").unwrap();
        fs::write(outside.join("f"), "out").unwrap();
        symlink("real", volume.join("inside")).unwrap();
        symlink(&outside, volume.join("absolute")).unwrap();
        symlink("../outside", volume.join("relative")).unwrap();

        let at = dir.path().join("at");
        bind(&volume, "inside/f", &at).unwrap();
        assert_eq!(fs::read_to_string(&at).unwrap(), "in");
        bind(&volume, "inside/f", &at).unwrap();
        mount::remove_tree(&at).unwrap();

        for bad in ["absolute/f", "relative/f", "relative"] {
            assert!(matches!(bind(&volume, bad, &at), Err(Error::Open { .. })), "{bad}");
        }
        for bad in ["../outside", "a/../../x"] {
            assert!(matches!(bind(&volume, bad, &at), Err(Error::Path(_))), "{bad}");
        }
        assert!(matches!(bind(&volume, "/etc", &at), Err(Error::Absolute(_))));
        assert!(!at.exists());
    }

    /// CVE-2017-1002101, CVE-2021-25741: the pod exchanges a folder for a link while it is being bound.
    #[test]
    fn a_link_that_comes_and_goes_leads_nowhere() {
        const TRIES: usize = 300;
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside, at) = (dir.path().join("v"), dir.path().join("outside"), dir.path().join("at"));
        fs::create_dir_all(volume.join("a")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(volume.join("a/f"), "in").unwrap();
        fs::write(outside.join("f"), "out").unwrap();
        symlink(&outside, volume.join("b")).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let seen = std::thread::scope(|scope| {
            scope.spawn(|| {
                let folder = File::open(&volume).unwrap();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let exchange = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                    nix::fcntl::renameat2(&folder, "a", &folder, "b", exchange).unwrap();
                }
            });
            let bound = (0..TRIES).filter_map(|_| bind(&volume, "a/f", &at).ok());
            let seen: Vec<String> = bound.map(|at| fs::read_to_string(at).unwrap()).collect();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            seen
        });
        if at.exists() {
            mount::remove_tree(&at).unwrap();
        }
        assert!(seen.iter().all(|text| text == "in"), "{seen:?}");
    }

    #[test]
    fn only_files_of_the_volume_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("f"), "text").unwrap();
        symlink("/etc/passwd", volume.join("out")).unwrap();
        assert_eq!(read(&volume, "f", 3).unwrap(), "tex");
        for bad in ["out", "../v/f", "none", "."] {
            assert!(read(&volume, bad, 100).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_variable_of_an_expression_needs_a_value() {
        let environment = [("A".to_owned(), "x".to_owned()), ("EMPTY".to_owned(), String::new())];
        assert_eq!(expand("p/$(A)/$$(A)", &environment).unwrap(), "p/x/$(A)");
        let error = expand("$(B)/$(EMPTY)", &environment).unwrap_err();
        assert!(error.to_string().ends_with("missing value for B, EMPTY"), "{error}");
    }

    #[test]
    fn a_missing_folder_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("at");
        fs::create_dir(dir.path().join("v")).unwrap();
        bind(&dir.path().join("v"), "new/deep", &at).unwrap();
        fs::write(at.join("x"), "1").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("v/new/deep/x")).unwrap(), "1");
        mount::remove_tree(&at).unwrap();
        assert!(dir.path().join("v/new/deep/x").exists());
    }
}
