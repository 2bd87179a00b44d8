//! From the upper directory of an overlay to a layer's tar stream: the inverse of unpacking.
//!
//! **Invariant**: the same files give the same bytes. Names are in order, owners are numbers, and what
//! depends on the machine or the hour (inodes, access times, parts of seconds) is not in it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::error::{Error, Result};
use crate::context::attributes;
use crate::sys::xattr;

/// Longest name in a header of its own; longer ones go into an extension.
const MAX_NAME: usize = 100;

/// Depth of directories, as much as is unpacked again.
const MAX_DEPTH: usize = 256;

const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// Writes what an upper directory has; returns whether it has anything. Times after `latest`, in seconds
/// since 1970, become that.
pub(super) fn write(upper: &Path, output: impl Write, latest: Option<i64>) -> Result<(impl Write, bool)> {
    let mut writer = Writer { builder: Builder::new(output), links: HashMap::new(), latest, any: false };
    writer.directory(upper, Path::new(""))?;
    let any = writer.any;
    let output = writer.builder.into_inner().map_err(Error::io("write the layer of", upper))?;
    Ok((output, any))
}

struct Writer<W: Write> {
    builder: Builder<W>,
    /// Files with several names, by device and inode: the name that was written first.
    links: HashMap<(u64, u64), PathBuf>,
    latest: Option<i64>,
    any: bool,
}

impl<W: Write> Writer<W> {
    fn directory(&mut self, path: &Path, name: &Path) -> Result<()> {
        if name.components().count() > MAX_DEPTH {
            return Err(Error::corrupt(
                name.display().to_string(),
                format!("nested more than {MAX_DEPTH} deep"),
            ));
        }
        let entries = fs::read_dir(path).map_err(Error::io("list", path))?;
        let names = entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>();
        let mut names = names.map_err(Error::io("list", path))?;
        names.sort();
        for entry in names {
            self.any = true;
            self.entry(&path.join(&entry), &name.join(&entry), &entry)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, name: &Path, own: &OsStr) -> Result<()> {
        let failed = |error| Error::io("read", path)(error);
        let meta = fs::symlink_metadata(path).map_err(failed)?;
        let kind = meta.file_type();
        if kind.is_char_device() && meta.rdev() == 0 {
            let mut hidden = b".wh.".to_vec();
            hidden.extend_from_slice(own.as_bytes());
            return self.append(
                &name.with_file_name(OsStr::from_bytes(&hidden)),
                whiteout(),
                &[],
                &mut io::empty(),
            );
        }
        if own.as_bytes().starts_with(b".wh.") {
            return Err(Error::corrupt(
                name.display().to_string(),
                "a layer cannot have a name that begins with .wh.",
            ));
        }
        // A socket is its listener's, and nobody listens in an image.
        if kind.is_socket() {
            return Ok(());
        }
        if !kind.is_dir() && meta.nlink() > 1 {
            if let Some(first) = self.links.get(&(meta.dev(), meta.ino())) {
                let mut header = self.header(&meta, EntryType::Link);
                header.set_size(0);
                let first = first.clone();
                return self.append(name, header, first.as_os_str().as_bytes(), &mut io::empty());
            }
            self.links.insert((meta.dev(), meta.ino()), name.to_owned());
        }
        if !kind.is_symlink() {
            self.attributes(path)?;
        }
        if kind.is_dir() {
            self.append(name, self.header(&meta, EntryType::Directory), &[], &mut io::empty())?;
            let opaque = xattr::get(path, OPAQUE).map_err(failed)?;
            if opaque.as_deref() == Some(b"y") {
                self.append(&name.join(".wh..wh..opq"), whiteout(), &[], &mut io::empty())?;
            }
            return self.directory(path, name);
        }
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(failed)?;
            let header = self.header(&meta, EntryType::Symlink);
            return self.append(name, header, target.as_os_str().as_bytes(), &mut io::empty());
        }
        if kind.is_file() {
            let mut header = self.header(&meta, EntryType::Regular);
            header.set_size(meta.len());
            return self.append(name, header, &[], &mut File::open(path).map_err(failed)?);
        }
        let number = |part: libc::c_uint| part;
        let mut header = match (kind.is_char_device(), kind.is_block_device()) {
            (true, _) => self.header(&meta, EntryType::Char),
            (_, true) => self.header(&meta, EntryType::Block),
            _ => self.header(&meta, EntryType::Fifo),
        };
        header.set_device_major(number(libc::major(meta.rdev()))).map_err(failed)?;
        header.set_device_minor(number(libc::minor(meta.rdev()))).map_err(failed)?;
        self.append(name, header, &[], &mut io::empty())
    }

    fn header(&self, meta: &Metadata, kind: EntryType) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(meta.mode() & 0o7777);
        header.set_uid(meta.uid().into());
        header.set_gid(meta.gid().into());
        let mtime = self.latest.map_or(meta.mtime(), |latest| meta.mtime().min(latest));
        // Before 1970 there were no files.
        header.set_mtime(u64::try_from(mtime).unwrap_or(0));
        header.set_size(0);
        header
    }

    /// Writes a file's attributes, which belong to the entry that follows.
    fn attributes(&mut self, path: &Path) -> Result<()> {
        let mut records = Vec::new();
        for (name, value) in attributes(path).map_err(Error::io("read the attributes of", path))? {
            let key = [b"SCHILY.xattr.", name.as_slice()].concat();
            record(&mut records, &key, &value);
        }
        self.extension(&records)
    }

    fn extension(&mut self, records: &[u8]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(records.len() as u64);
        header.set_cksum();
        self.builder.append(&header, records).map_err(Error::io("write", "the layer"))
    }

    fn append(
        &mut self,
        name: &Path,
        mut header: Header,
        link: &[u8],
        data: &mut dyn io::Read,
    ) -> Result<()> {
        let mut name = name.as_os_str().as_bytes().to_vec();
        if header.entry_type() == EntryType::Directory {
            name.push(b'/');
        }
        let mut records = Vec::new();
        if name.len() > MAX_NAME {
            record(&mut records, b"path", &name);
        }
        if link.len() > MAX_NAME {
            record(&mut records, b"linkpath", link);
        }
        self.extension(&records)?;
        let fields = header.as_old_mut();
        copy_into(&mut fields.name, &name);
        copy_into(&mut fields.linkname, link);
        header.set_cksum();
        let size = header.entry_size().unwrap_or(0);
        // A file that grows meanwhile must not break the archive.
        let data = io::Read::take(data, size);
        self.builder.append(&header, data).map_err(Error::io("write the layer's", OsStr::from_bytes(&name)))
    }
}

fn copy_into(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// A mark that hides a name of the layers below; it has nothing but its name.
fn whiteout() -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tar_of(upper: &Path) -> Vec<u8> {
        let mut bytes = Vec::new();
        {
            let (_, _) = write(upper, &mut bytes, Some(1000)).unwrap();
        }
        bytes
    }

    #[test]
    fn records_count_their_own_length() {
        let mut records = Vec::new();
        record(&mut records, b"a", b"bc");
        assert_eq!(records, b"7 a=bc\n");
        records.clear();
        // One more digit makes one more digit necessary.
        record(&mut records, b"k", &[b'x'; 94]);
        let length = records.len().to_string();
        assert!(records.starts_with(format!("{length} k=").as_bytes()));
    }

    #[test]
    fn files_come_back_and_bytes_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let long = "d".repeat(120);
        fs::create_dir_all(dir.path().join(&long)).unwrap();
        fs::write(dir.path().join("file"), "content").unwrap();
        fs::hard_link(dir.path().join("file"), dir.path().join("second")).unwrap();
        symlink("t".repeat(130), dir.path().join(&long).join("link")).unwrap();
        let first = tar_of(dir.path());
        fs::write(dir.path().join("file"), "content").unwrap();
        assert_eq!(first, tar_of(dir.path()), "times after the latest do not count");
        let mut archive = tar::Archive::new(first.as_slice());
        let entries: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                assert_eq!(entry.header().mtime().unwrap(), 1000);
                let link = entry.link_name_bytes().map(|link| link.len()).unwrap_or(0);
                format!("{:?} {} {link}", entry.header().entry_type(), entry.path_bytes().len())
            })
            .collect();
        assert_eq!(entries, ["Directory 121 0", "Symlink 125 130", "Regular 4 0", "Link 6 4"]);
    }

    #[test]
    fn names_that_would_hide_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".wh.passwd"), "").unwrap();
        let error = write(dir.path(), io::sink(), None).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(".wh.passwd") && error.contains("begins with .wh."), "{error}");
    }
}
