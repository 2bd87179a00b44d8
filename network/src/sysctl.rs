//! Kernel settings under `/proc/sys`, of the network namespace of the calling thread.
//!
//! A setting of the machine that we change is written down before, so that it can be put back when the
//! cluster is removed, by whichever process does that.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Why a setting could not be changed or restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The setting could not be read or written.
    #[error("cannot change the kernel setting {name}")]
    Setting {
        /// The setting, as a path below `/proc/sys`.
        name: String,
        /// The reason.
        source: io::Error,
    },
    /// The record of former values could not be read or written.
    #[error("cannot keep the former kernel settings in {}", path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

type Record = BTreeMap<String, String>;

/// Sets a setting that disappears with what it belongs to.
pub(crate) fn set(name: &str, value: &str) -> Result<(), Error> {
    fs::write(path(name), value).map_err(|source| Error::Setting { name: name.to_owned(), source })
}

/// Sets a setting of the machine, after writing down in `record` what it was.
pub(crate) fn change(record: &Path, name: &str, value: &str) -> Result<(), Error> {
    let before =
        fs::read_to_string(path(name)).map_err(|source| Error::Setting { name: name.to_owned(), source })?;
    if before.trim() == value {
        return Ok(());
    }
    let mut former = read(record)?.unwrap_or_default();
    former.entry(name.to_owned()).or_insert_with(|| before.trim().to_owned());
    let failed = |source| Error::Record { path: record.to_owned(), source };
    if let Some(folder) = record.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let text = serde_json::to_vec(&former).expect("strings always serialize");
    let draft = record.with_extension("new");
    fs::write(&draft, text).and_then(|()| fs::rename(&draft, record)).map_err(failed)?;
    set(name, value)
}

/// Puts back what `record` has, and deletes the record.
pub(crate) fn restore(record: &Path) -> Result<(), Error> {
    let Some(former) = read(record)? else { return Ok(()) };
    for (name, value) in &former {
        set(name, value)?;
    }
    fs::remove_file(record).map_err(|source| Error::Record { path: record.to_owned(), source })
}

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

fn read(record: &Path) -> Result<Option<Record>, Error> {
    let failed = |source| Error::Record { path: record.to_owned(), source };
    match fs::read(record) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| failed(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}
