//! Content by its digest.
//!
//! **Invariant**: a blob that is there is whole, on disk, and has the digest that it is named by.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::error::{Error, Result};
use super::reference::is_digest;

/// Copied at once: large enough that hashing, not system calls, takes the time.
const CHUNK: usize = 256 * 1024;

/// How the names of blobs begin that are being fetched.
pub(crate) const PARTIAL: &str = "part-";

/// A blob of which the beginning is here.
pub(crate) struct Partial {
    file: File,
    path: PathBuf,
    hasher: Sha256,
    length: u64,
}

impl Partial {
    /// The bytes that are here.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Writes what comes until nothing does. What cannot be written is thrown away: a full disk needs the room.
    pub(crate) fn receive(mut self, mut pieces: mpsc::Receiver<Bytes>) -> Result<Self> {
        while let Some(piece) = pieces.blocking_recv() {
            self.hasher.update(&piece);
            if let Err(error) = self.file.write_all(&piece) {
                // The first error is the one to report; a leftover is removed at the next start.
                fs::remove_file(&self.path).ok();
                return Err(Error::io("write", &self.path)(error));
            }
            self.length += piece.len() as u64;
        }
        Ok(self)
    }
}

/// A directory of blobs.
#[derive(Clone, Debug)]
pub(crate) struct Blobs {
    directory: PathBuf,
}

impl Blobs {
    /// Opens the directory, creating it.
    pub(crate) fn open(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        Ok(Blobs { directory })
    }

    /// Where the blob is; its digest has been checked to be one.
    pub(crate) fn path(&self, digest: &str) -> PathBuf {
        self.directory.join(digest.trim_start_matches("sha256:"))
    }

    /// Stores what is read, if it has that digest. `file` is what errors name.
    pub(crate) fn put(&self, digest: &str, file: &str, reader: &mut dyn Read) -> Result<PathBuf> {
        if !is_digest(digest) {
            return Err(Error::corrupt(file, format!("{digest:?} is not a SHA-256 digest")));
        }
        let path = self.path(digest);
        if path.exists() {
            return Ok(path);
        }
        let temporary = self.directory.join(format!("new-{}", uuid::Uuid::new_v4().simple()));
        let result = write_verified(&temporary, digest, file, reader).and_then(|()| {
            fs::rename(&temporary, &path).map_err(Error::io("rename", &temporary))?;
            sync_directory(&self.directory)
        });
        if result.is_err() {
            // The first error is the one to report; a leftover is removed at the next start.
            fs::remove_file(&temporary).ok();
        }
        result.map(|()| path)
    }

    /// What an earlier attempt has fetched of a blob of `size` bytes, to be gone on with. One at a time for a blob.
    pub(crate) fn resume(&self, digest: &str, size: u64) -> Result<Partial> {
        let path = self.directory.join(format!("{PARTIAL}{}", digest.trim_start_matches("sha256:")));
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(Error::io("create", &path))?;
        let mut hasher = Sha256::new();
        let mut length = 0;
        let mut chunk = vec![0; CHUNK];
        loop {
            match file.read(&mut chunk).map_err(Error::io("read", &path))? {
                0 => break,
                read => {
                    hasher.update(&chunk[..read]);
                    length += read as u64;
                }
            }
        }
        if length > size {
            file.set_len(0).map_err(Error::io("write", &path))?;
            file.rewind().map_err(Error::io("write", &path))?;
            (hasher, length) = (Sha256::new(), 0);
        }
        Ok(Partial { file, path, hasher, length })
    }

    /// Names a blob that has come as a whole, if it is what its digest says; otherwise it is thrown away.
    pub(crate) fn complete(&self, partial: Partial, digest: &str, file: &str) -> Result<PathBuf> {
        let actual = format_digest(&partial.hasher.finalize());
        if actual != digest {
            fs::remove_file(&partial.path).map_err(Error::io("remove", &partial.path))?;
            return Err(Error::Digest { file: file.to_owned(), actual, expected: digest.to_owned() });
        }
        partial.file.sync_data().map_err(Error::io("sync", &partial.path))?;
        let path = self.path(digest);
        fs::rename(&partial.path, &path).map_err(Error::io("rename", &partial.path))?;
        sync_directory(&self.directory)?;
        Ok(path)
    }

    /// Removes a blob that may not be there.
    pub(crate) fn remove(&self, digest: &str) -> Result<()> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
            _ => Ok(()),
        }
    }
}

fn write_verified(path: &Path, digest: &str, file: &str, reader: &mut dyn Read) -> Result<()> {
    let mut output = File::create(path).map_err(Error::io("create", path))?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = match reader.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::corrupt(file, format!("cannot be read: {error}"))),
        };
        hasher.update(&chunk[..length]);
        output.write_all(&chunk[..length]).map_err(Error::io("write", path))?;
    }
    let actual = format_digest(&hasher.finalize());
    if actual != digest {
        return Err(Error::Digest { file: file.to_owned(), actual, expected: digest.to_owned() });
    }
    output.sync_data().map_err(Error::io("sync", path))
}

/// Makes a rename in this directory last.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(Error::io("sync", path))
}

/// `sha256:` and hexadecimal digits.
pub(crate) fn format_digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(7 + 64);
    text.push_str("sha256:");
    for byte in bytes {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
    }
    text
}

/// The digest of bytes in memory.
pub(crate) fn digest_of(content: &[u8]) -> String {
    format_digest(&Sha256::digest(content))
}

/// Passes bytes through and digests them.
pub(crate) struct Digesting<T> {
    inner: T,
    hasher: Sha256,
}

impl<T> Digesting<T> {
    pub(crate) fn new(inner: T) -> Self {
        Digesting { inner, hasher: Sha256::new() }
    }

    pub(crate) fn digest(self) -> String {
        format_digest(&self.hasher.finalize())
    }

    /// What the bytes passed to or from, and their digest.
    pub(crate) fn finish(self) -> (T, String) {
        (self.inner, format_digest(&self.hasher.finalize()))
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        Ok(length)
    }
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
