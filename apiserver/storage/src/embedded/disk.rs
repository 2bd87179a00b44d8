//! The log on disk: one row per revision in a redb B-tree, ordered by revision, and in front of it the
//! [journal](super::journal), from which rows are carried over many at a time.
//!
//! New rows always go to the right-hand edge of the tree, so that they touch a handful of
//! pages, however the keys are spread. A row that no kept revision needs is removed, or never gets there. What lives
//! now is found by reading the rows in order once, at opening; afterwards nothing is read from disk.
//!
//! **Invariants:** a transaction moves the log from one consistent state to the next: its rows, and
//! how far it is compacted, change together or not at all. A row is in the journal until it is in the database or
//! not needed any more; what a commit that came with changes compacted may come back after a `kill -9`, as more
//! history than asked for.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::journal::{self, Direct, Journal};
use super::row;
use super::state::{State, Trim};
use crate::{Change, Entry, Revision};

/// revision -> row
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// name -> number
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// The revision up to which the log is compacted.
const COMPACTED: &str = "compacted";
/// The layout of the rows; a file with an unknown one is refused.
const FORMAT: &str = "format";
/// The newest rows may be in the journal, of which programs that know only format 1 do not know.
const FORMAT_VERSION: u64 = 2;
const FORMAT_WITHOUT_JOURNAL: u64 = 1;

/// Pages that redb keeps in memory. We read only at opening, and a batch writes few pages, so a
/// small cache loses nothing: see the figures in `examples/rate.rs`.
const CACHE_BYTES: usize = 4 << 20;

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
    journal: Journal,
    /// What is in the journal and not in the database: not more than the journal holds.
    pending: Vec<Change>,
    /// What is to be forgotten with the next transaction.
    trim: Trim,
}

/// Why what is on the disk could not be read.
enum ReadError {
    Io(io::Error),
    Damaged(OpenError),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
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
        let beside = journal_path(path);
        let journal = Direct::open(&beside).map_err(io(&beside))?;
        // The names of new files must survive a power cut as much as what is in them.
        if let Some(folder) = folder {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(io(folder))?;
        }
        let failed = |source: redb::Error| OpenError::Database {
            path: path.display().to_string(),
            source: Box::new(source),
        };
        drop(file);
        let database = open_patiently(path).map_err(|e| failed(e.into()))?;
        // Only now: whoever has the database has the journal.
        let journal = Journal::open(Box::new(journal), journal::CAPACITY).map_err(io(&beside))?;
        Self::with(database, journal, failed)
    }

    /// Makes a database of entries that are as old as they say, at this revision: all before is compacted.
    pub(super) fn make(path: &Path, entries: &[Entry], revision: Revision) -> Result<(), OpenError> {
        let failed = |source: redb::Error| OpenError::Database {
            path: path.display().to_string(),
            source: Box::new(source),
        };
        let io = |source| OpenError::Io { path: path.display().to_string(), source };
        drop(private_file(path).map_err(io)?);
        let database = open_patiently(path).map_err(|e| failed(e.into()))?;
        let fill = || {
            let transaction = database.begin_write()?;
            {
                let mut meta = transaction.open_table(META)?;
                meta.insert(FORMAT, FORMAT_VERSION)?;
                meta.insert(COMPACTED, revision)?;
                let mut log = transaction.open_table(LOG)?;
                for entry in entries {
                    let entry = Arc::new(entry.clone());
                    row_write(&mut log, &Change::Put { entry, previous: None })?;
                }
            }
            transaction.commit()?;
            Ok(())
        };
        fill().map_err(failed)
    }

    /// Reads what the database and the journal hold.
    pub(super) fn with(
        database: Database,
        journal: Journal,
        failed: impl Fn(redb::Error) -> OpenError,
    ) -> Result<(Self, State), OpenError> {
        let mut disk = Self { database, journal, pending: Vec::new(), trim: Trim::default() };
        let (format, compacted) = disk.meta().map_err(&failed)?;
        if format != FORMAT_VERSION {
            return Err(OpenError::Format { found: format });
        }
        let mut state = disk.load(compacted, &failed)?;
        disk.recover(&mut state).map_err(|error| match error {
            ReadError::Io(error) => failed(redb::Error::Io(error)),
            ReadError::Damaged(error) => error,
        })?;
        disk.carry_over().map_err(&failed)?;
        disk.journal.start().map_err(|error| failed(redb::Error::Io(error)))?;
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
            let outdated = matches!(format, None | Some(FORMAT_WITHOUT_JOURNAL));
            if outdated {
                meta.insert(FORMAT, FORMAT_VERSION)?;
            }
            (format.filter(|_| !outdated), compacted)
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
        failed: &impl Fn(redb::Error) -> OpenError,
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

    /// Adds to what the database holds the rows of the journal that are not in it.
    fn recover(&mut self, state: &mut State) -> Result<(), ReadError> {
        let pending = &mut self.pending;
        self.journal.read(|revision, row| {
            if revision <= state.revision {
                return Ok(());
            }
            let compacted = state.oldest;
            let change = replay(state, compacted, revision, row)
                .map_err(|what| ReadError::Damaged(OpenError::Damaged { revision, what }))?;
            pending.extend(change);
            Ok(())
        })
    }

    /// Makes the changes durable in one step, and forgets the rows that are no longer needed: at once where no
    /// change comes along.
    pub(super) fn commit(&mut self, changes: &[Change], trim: Option<Trim>) -> Result<(), redb::Error> {
        if let Some(trim) = trim {
            self.trim.rows.extend(trim.rows);
            self.trim.oldest = trim.oldest;
        }
        if !changes.is_empty() && self.journal.append(changes).map_err(redb::Error::Io)? {
            self.pending.extend_from_slice(changes);
            return Ok(());
        }
        self.pending.extend_from_slice(changes);
        self.carry_over()
    }

    /// Makes the database as new as the journal, whose room is free then.
    pub(super) fn carry_over(&mut self) -> Result<(), redb::Error> {
        if self.pending.is_empty() && self.trim == Trim::default() {
            return Ok(());
        }
        // Without redb's quick repair: after a kill it saves verifying the pages, which reading all of
        // them at opening dwarfs (0.1 s for 38 MiB either way), and it costs a quarter of the rate
        // and twice the file.
        let transaction = self.database.begin_write()?;
        let mut gone: BTreeSet<Revision> = self.trim.rows.iter().copied().collect();
        {
            let mut log = transaction.open_table(LOG)?;
            for change in &self.pending {
                // What came and went since the last time needs no row.
                if !gone.remove(&change.revision()) {
                    row_write(&mut log, change)?;
                }
            }
            for revision in gone {
                log.remove(revision)?;
            }
        }
        if self.trim.oldest > 0 {
            transaction.open_table(META)?.insert(COMPACTED, self.trim.oldest)?;
        }
        transaction.commit()?;
        self.pending.clear();
        self.trim = Trim::default();
        self.journal.rewind();
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
pub(super) fn private_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Where the journal of a database lies.
pub(super) fn journal_path(database: &Path) -> PathBuf {
    let mut name = OsString::from(database);
    name.push(".journal");
    name.into()
}

fn row_write(log: &mut redb::Table<'_, u64, &'static [u8]>, change: &Change) -> Result<(), redb::Error> {
    let mut row = log.insert_reserve(change.revision(), row::length(change))?;
    let mut rest = row.as_mut();
    row::parts(change, |part| {
        let (place, behind) = std::mem::take(&mut rest).split_at_mut(part.len());
        place.copy_from_slice(part);
        rest = behind;
    });
    Ok(())
}

/// Adds one row to what the rows before it made; gives the change that it was, unless it is compacted.
fn replay(
    state: &mut State,
    compacted: Revision,
    revision: Revision,
    row: &[u8],
) -> Result<Option<Change>, &'static str> {
    let row = row::read(row)?;
    let previous = state.get(row.key).cloned();
    // A key that is there already is not kept twice.
    let key = previous.as_ref().map_or_else(|| Arc::from(row.key), |previous| Arc::clone(&previous.key));
    let value = Bytes::copy_from_slice(row.value);
    let entry = Entry { key, value, created: row.created, modified: revision };
    if revision <= compacted {
        if row.kind != row::PUT {
            return Err("a deletion that compaction should have removed");
        }
        let new = state.load_base(entry);
        return if new { Ok(None) } else { Err("a value that compaction should have removed") };
    }
    if revision != state.revision + 1 {
        return Err("revisions before it are missing");
    }
    if row.created != previous.as_ref().map_or(revision, |previous| previous.created) {
        return Err("the revision of creation contradicts the rows before it");
    }
    let change = match (row.kind, previous) {
        (row::PUT, previous) => Change::Put { entry: Arc::new(entry), previous },
        (row::DELETE, Some(previous)) => Change::Delete { previous, revision },
        (row::DELETE, None) => return Err("the deletion of what is not there"),
        _ => return Err("the row is of an unknown kind"),
    };
    state.apply(change.clone());
    Ok(Some(change))
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
    fn a_file_from_before_the_journal_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let database = builder().create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert(FORMAT, FORMAT_WITHOUT_JOURNAL).unwrap();
        let old = row(row::PUT, 1, "/a", "x");
        transaction.open_table(LOG).unwrap().insert(1, old.as_slice()).unwrap();
        transaction.commit().unwrap();
        drop(database);
        let (disk, state) = Disk::open(&path).unwrap();
        assert_eq!((disk.meta().unwrap(), state.revision), ((FORMAT_VERSION, 0), 1));
        assert_eq!(state.get("/a").unwrap().value, "x");
    }

    #[test]
    fn damaged_rows_are_refused() {
        let mut state = State::starting_at(5);
        assert!(replay(&mut state, 5, 3, &row(row::PUT, 2, "/a", "x")).is_ok());
        let mut bad = |revision, row: Vec<u8>| replay(&mut state, 5, revision, &row).unwrap_err();
        assert!(bad(4, row(row::PUT, 2, "/a", "y")).contains("compaction"));
        assert!(bad(4, row(row::DELETE, 2, "/b", "")).contains("compaction"));
        assert!(bad(7, row(row::PUT, 7, "/b", "")).contains("missing"));
        assert!(bad(6, row(row::DELETE, 6, "/b", "")).contains("not there"));
        assert!(bad(6, row(9, 6, "/b", "")).contains("unknown"));
        assert!(bad(6, vec![1, 2]).contains("cut off"));
        assert!(bad(6, row(row::PUT, 6, "/b", "")[..14].to_vec()).contains("cut off"));
        assert!(bad(6, row(row::PUT, 1, "/a", "y")).contains("creation"));
    }
}
