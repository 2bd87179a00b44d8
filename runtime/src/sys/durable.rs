//! Small files that are either there and whole, or not there at all.
//!
//! Whoever is killed, a file that was written is there. What a crash of the *machine* may take is another matter: a
//! record of what that crash ends anyway need not be on the disk at once ([`put`]), which costs a start of a pod
//! milliseconds each; an outcome must be ([`write`]), and has the records that it is about flushed with it
//! ([`flush`]).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Writes a file so that after a crash of the machine it has either its old or its new content.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    replace(path, content, true)?;
    File::open(parent)?.sync_all()
}

/// Writes a value as JSON so that whoever is killed finds its old or its new content. After a crash of the machine
/// it may be missing or blank until [`flush`] was called, which [`read_json`] takes for the same.
pub(crate) fn put_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    replace(path, &serde_json::to_vec(value)?, false)
}

/// Has a file that was [put](put_json) survive a crash of the machine.
pub(crate) fn flush(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn replace(path: &Path, content: &[u8], synced: bool) -> io::Result<()> {
    // How a container ended is written by its shim, and by an agent that takes the shim for dead: each writes a file of
    // its own, or one would find that the other has taken it away.
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}-{}.new", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed)));
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    if synced {
        file.sync_data()?;
    }
    fs::rename(&temporary, path)
}

/// Writes a value as JSON, as [`write`] does.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    write(path, &serde_json::to_vec(value)?)
}

/// Reads a value; `None` where the file is not there, or a crash of the machine took its content: file systems then
/// show a name without content, or zeros of the right length.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(content) if content.iter().all(|byte| *byte == 0) => Ok(None),
        Ok(content) => Ok(Some(serde_json::from_slice(&content)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a directory tree that may not be there.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_crash_left_blank_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.json");
        assert_eq!(read_json::<u32>(&path).unwrap(), None);
        for blank in [&b""[..], &[0; 64]] {
            fs::write(&path, blank).unwrap();
            assert_eq!(read_json::<u32>(&path).unwrap(), None);
        }
        // What is torn in another way is no trace of a crash, and not ours to pass over.
        fs::write(&path, "{\"half").unwrap();
        assert!(read_json::<u32>(&path).is_err());
    }

    #[test]
    fn what_is_put_replaces_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.json");
        for value in [1_u32, 2] {
            put_json(&path, &value).unwrap();
            flush(&path).unwrap();
            assert_eq!(read_json::<u32>(&path).unwrap(), Some(value));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn two_may_write_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.json");
        std::thread::scope(|scope| {
            for value in 0..4_u32 {
                let path = &path;
                scope.spawn(move || (0..200).for_each(|_| put_json(path, &value).unwrap()));
            }
        });
        assert!(read_json::<u32>(&path).unwrap().is_some_and(|value| value < 4));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
