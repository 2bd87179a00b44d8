//! The log on disk: one row per revision in a redb B-tree, ordered by revision.
//!
//! New rows always go to the right-hand edge of the tree, so a batch of writes touches a handful of
//! pages, however the keys are spread. A row that no kept revision needs is removed. What lives now
//! is found by reading the rows in order once, at opening; afterwards nothing is read from disk.
//!
//! **Invariant:** a transaction moves the log from one consistent state to the next: its rows, and
//! how far it is compacted, change together or not at all.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::state::{State, Trim};
use crate::{Change, Entry, Revision};

/// revision -> row
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// name -> number
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// The revision up to which the log is compacted.
const COMPACTED: &str = "compacted";
/// The layout of the rows; a file with another one is refused.
const FORMAT: &str = "format";
const FORMAT_VERSION: u64 = 1;

/// Pages that redb keeps in memory. We read only at opening, and a batch writes few pages, so a
/// small cache loses nothing: see the figures in `examples/rate.rs`.
const CACHE_BYTES: usize = 4 << 20;

const ROW_PUT: u8 = 1;
const ROW_DELETE: u8 = 2;
/// Kind, revision of creation, length of the key.
const ROW_HEAD: usize = 1 + 8 + 4;

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder or file could not be made or reached.
    #[error("cannot use {path}")]
    Io {
        /// The folder or file.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The database refused: it is damaged, or another process has it open.
    #[error("cannot open the database {path}")]
    Database {
        /// The file.
        path: String,
        /// What redb said.
        #[source]
        source: Box<redb::Error>,
    },
    /// The file was written by another version of this program.
    #[error("the database has format {found}, this program knows {FORMAT_VERSION}")]
    Format {
        /// The format that was found.
        found: u64,
    },
    /// The rows contradict each other.
    #[error("the database is damaged at revision {revision}: {what}")]
    Damaged {
        /// The row.
        revision: Revision,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The writer thread could not be started.
    #[error("cannot start the writer thread")]
    Thread(#[source] std::io::Error),
}

/// The open log.
#[derive(Debug)]
pub(super) struct Disk {
    database: Database,
}

impl Disk {
    /// Opens the file, which is made if it is not there, and reads all of it.
    pub(super) fn open(path: &Path) -> Result<(Self, State), OpenError> {
        let io = |path: &Path| {
            let path = path.display().to_string();
            move |source| OpenError::Io { path, source }
        };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder {
            std::fs::create_dir_all(folder).map_err(io(folder))?;
        }
        let file = private_file(path).map_err(io(path))?;
        // The name of a new file must survive a power cut as much as what is in it.
        if let Some(folder) = folder {
            std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io(folder))?;
        }
        let failed = |source: redb::Error| OpenError::Database {
            path: path.display().to_string(),
            source: Box::new(source),
        };
        drop(file);
        let database = open_patiently(path).map_err(|e| failed(e.into()))?;
        Self::with_database(database, failed)
    }

    /// Reads what the database holds.
    pub(super) fn with_database(
        database: Database,
        failed: impl Fn(redb::Error) -> OpenError,
    ) -> Result<(Self, State), OpenError> {
        let disk = Self { database };
        let (format, compacted) = disk.meta().map_err(&failed)?;
        if format != FORMAT_VERSION {
            return Err(OpenError::Format { found: format });
        }
        let state = disk.load(compacted, failed)?;
        Ok((disk, state))
    }

    /// The format of the rows and how far they are compacted; a new file gets both.
    fn meta(&self) -> Result<(u64, Revision), redb::Error> {
        let transaction = self.database.begin_write()?;
        let found = {
            let mut meta = transaction.open_table(META)?;
            transaction.open_table(LOG)?;
            let format = meta.get(FORMAT)?.map(|value| value.value());
            let compacted = meta.get(COMPACTED)?.map(|value| value.value());
            if format.is_none() {
                meta.insert(FORMAT, FORMAT_VERSION)?;
            }
            (format, compacted)
        };
        if found.0.is_none() {
            transaction.commit()?;
        } else {
            transaction.abort()?;
        }
        Ok((found.0.unwrap_or(FORMAT_VERSION), found.1.unwrap_or(0)))
    }

    fn load(
        &self,
        compacted: Revision,
        failed: impl Fn(redb::Error) -> OpenError,
    ) -> Result<State, OpenError> {
        let transaction = self.database.begin_read().map_err(|e| failed(e.into()))?;
        let log = transaction.open_table(LOG).map_err(|e| failed(e.into()))?;
        let mut state = State::starting_at(compacted);
        for item in log.iter().map_err(|e| failed(e.into()))? {
            let (revision, row) = item.map_err(|e| failed(e.into()))?;
            let revision = revision.value();
            replay(&mut state, compacted, revision, row.value())
                .map_err(|what| OpenError::Damaged { revision, what })?;
        }
        Ok(state)
    }

    /// Makes the changes, and forgets the rows that are no longer needed, in one durable step.
    pub(super) fn commit(&self, changes: &[Change], trim: Option<&Trim>) -> Result<(), redb::Error> {
        // Without redb's quick repair: after a kill it saves verifying the pages, which reading all of
        // them at opening dwarfs (0.1 s for 38 MiB either way), and it costs a quarter of the rate
        // and twice the file.
        let transaction = self.database.begin_write()?;
        {
            let mut log = transaction.open_table(LOG)?;
            for change in changes {
                row_write(&mut log, change)?;
            }
            for revision in trim.iter().flat_map(|trim| &trim.rows) {
                log.remove(revision)?;
            }
        }
        if let Some(trim) = trim {
            transaction.open_table(META)?.insert(COMPACTED, trim.oldest)?;
        }
        transaction.commit()?;
        Ok(())
    }
}

pub(super) fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Opens the database, and waits a little for one that is still open: a process that was killed
/// holds its lock until the kernel has taken its memory apart.
fn open_patiently(path: &Path) -> Result<Database, redb::DatabaseError> {
    const TRIES: u32 = 20;
    const PAUSE: Duration = Duration::from_millis(50);
    let mut tries = 1;
    loop {
        match builder().create(path) {
            Err(redb::DatabaseError::DatabaseAlreadyOpen) if tries < TRIES => std::thread::sleep(PAUSE),
            result => return result,
        }
        tries += 1;
    }
}

/// Opens the file so that only its owner reads it: it holds every Secret of the cluster.
fn private_file(path: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn row_write(log: &mut redb::Table<'_, u64, &'static [u8]>, change: &Change) -> Result<(), redb::Error> {
    let entry = change.entry();
    let (kind, value): (u8, &[u8]) = match change {
        Change::Put { entry, .. } => (ROW_PUT, &entry.value),
        Change::Delete { .. } => (ROW_DELETE, &[]),
    };
    let key = entry.key.as_bytes();
    let key_length = u32::try_from(key.len()).expect("the store bounds its keys");
    let mut row = log.insert_reserve(change.revision(), ROW_HEAD + key.len() + value.len())?;
    let (head, rest) = row.as_mut().split_at_mut(ROW_HEAD);
    head[0] = kind;
    head[1..9].copy_from_slice(&entry.created.to_le_bytes());
    head[9..13].copy_from_slice(&key_length.to_le_bytes());
    rest[..key.len()].copy_from_slice(key);
    rest[key.len()..].copy_from_slice(value);
    Ok(())
}

struct Row<'a> {
    kind: u8,
    created: Revision,
    key: &'a str,
    value: &'a [u8],
}

fn row_read(row: &[u8]) -> Result<Row<'_>, &'static str> {
    let (head, rest) = row.split_at_checked(ROW_HEAD).ok_or("the row is cut off")?;
    let created = u64::from_le_bytes(head[1..9].try_into().expect("eight bytes"));
    let key_length = u32::from_le_bytes(head[9..13].try_into().expect("four bytes")) as usize;
    let (key, value) = rest.split_at_checked(key_length).ok_or("the key is cut off")?;
    let key = std::str::from_utf8(key).map_err(|_| "the key is not UTF-8")?;
    Ok(Row { kind: head[0], created, key, value })
}

/// Adds one row to what the rows before it made.
fn replay(
    state: &mut State,
    compacted: Revision,
    revision: Revision,
    row: &[u8],
) -> Result<(), &'static str> {
    let row = row_read(row)?;
    let previous = state.get(row.key).cloned();
    // A key that is there already is not kept twice.
    let key = previous.as_ref().map_or_else(|| Arc::from(row.key), |previous| Arc::clone(&previous.key));
    let value = Bytes::copy_from_slice(row.value);
    let entry = Entry { key, value, created: row.created, modified: revision };
    if revision <= compacted {
        if row.kind != ROW_PUT {
            return Err("a deletion that compaction should have removed");
        }
        let new = state.load_base(entry);
        return if new { Ok(()) } else { Err("a value that compaction should have removed") };
    }
    if revision != state.revision + 1 {
        return Err("revisions before it are missing");
    }
    if row.created != previous.as_ref().map_or(revision, |previous| previous.created) {
        return Err("the revision of creation contradicts the rows before it");
    }
    state.apply(match (row.kind, previous) {
        (ROW_PUT, previous) => Change::Put { entry: Arc::new(entry), previous },
        (ROW_DELETE, Some(previous)) => Change::Delete { previous, revision },
        (ROW_DELETE, None) => return Err("the deletion of what is not there"),
        _ => return Err("the row is of an unknown kind"),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kind: u8, created: Revision, key: &str, value: &str) -> Vec<u8> {
        let mut row = vec![kind];
        row.extend(created.to_le_bytes());
        row.extend((key.len() as u32).to_le_bytes());
        row.extend(key.as_bytes());
        row.extend(value.as_bytes());
        row
    }

    #[test]
    fn damaged_rows_are_refused() {
        let mut state = State::starting_at(5);
        assert!(replay(&mut state, 5, 3, &row(ROW_PUT, 2, "/a", "x")).is_ok());
        let mut bad = |revision, row: Vec<u8>| replay(&mut state, 5, revision, &row).unwrap_err();
        assert!(bad(4, row(ROW_PUT, 2, "/a", "y")).contains("compaction"));
        assert!(bad(4, row(ROW_DELETE, 2, "/b", "")).contains("compaction"));
        assert!(bad(7, row(ROW_PUT, 7, "/b", "")).contains("missing"));
        assert!(bad(6, row(ROW_DELETE, 6, "/b", "")).contains("not there"));
        assert!(bad(6, row(9, 6, "/b", "")).contains("unknown"));
        assert!(bad(6, vec![1, 2]).contains("cut off"));
        assert!(bad(6, row(ROW_PUT, 6, "/b", "")[..14].to_vec()).contains("cut off"));
        assert!(bad(6, row(ROW_PUT, 1, "/a", "y")).contains("creation"));
    }
}
