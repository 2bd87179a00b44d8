//! The embedded store: the default, for clusters whose state one machine holds.
//!
//! All state is in memory ([`state`]); all of it is also in
//! a file and the journal beside it, to which one thread appends with group commit ([`writer`], [`disk`],
//! [`journal`]). A write is
//! answered when it is on the disk. Watchers follow the history in memory ([`hub`]), which after
//! opening the file again is what it was before.

mod disk;
mod hub;
mod journal;
#[cfg(test)]
mod power;
mod row;
mod state;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

pub use disk::OpenError;

use crate::{Change, Entry, Error, List, Page, Precondition, Revision, Store, Watch};
use disk::Disk;
use hub::{Closed, Hub};
use state::State;
use writer::{Action, INBOX, Request, Writer};

/// Tells the time since some fixed moment.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// How much history is kept, at most (each bound may be exceeded by an eighth before it is enforced).
#[derive(Clone, Debug)]
pub struct History {
    /// How many changes. A watcher that falls further behind is ended.
    pub changes: usize,
    /// How many bytes of values that only the history still holds.
    pub bytes: usize,
    /// For how long.
    pub age: Duration,
}

impl Default for History {
    /// Ten thousand changes let a watcher sleep for a second at full rate; 32 MiB is what the
    /// history may take of a large cluster's 300 MiB; and clients that page through a list or take
    /// up a watch again do so within the five minutes that Kubernetes gives them, too.
    fn default() -> Self {
        Self { changes: 10_000, bytes: 32 << 20, age: Duration::from_secs(300) }
    }
}

/// How to open the embedded store.
#[derive(Clone)]
pub struct Options {
    /// How much history to keep.
    pub history: History,
    /// What tells the age of history.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        let start = Instant::now();
        Self { history: History::default(), clock: Arc::new(move || start.elapsed()) }
    }
}

/// The embedded store. Dropping it finishes the writes that were handed in, ends its watches and
/// closes the file.
#[derive(Debug)]
pub struct Embedded {
    file: PathBuf,
    hub: Arc<Hub>,
    /// Taken on drop, which tells the writer to stop.
    inbox: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

impl Embedded {
    /// Opens the store in this file, which is made, with its folder, if it is not there; only one
    /// process can have it open. Reads the whole file, so it blocks for a while: about a second for
    /// each gigabyte.
    pub fn open(path: &Path, options: Options) -> Result<Self, OpenError> {
        let (disk, state) = Disk::open(path)?;
        Self::start(disk, state, options, path)
    }

    /// Makes a store of these entries, at this revision, in the place of the one in this file: that one, if it is there,
    /// is kept beside it as `aside`. Nobody may have it open. A crash leaves the old store or the new one, or the old
    /// one beside: then it is begun again.
    ///
    /// # Errors
    /// If files cannot be written or moved.
    pub fn replace(
        path: &Path,
        aside: &Path,
        entries: &[Entry],
        revision: Revision,
    ) -> Result<(), OpenError> {
        let io = |path: &Path| {
            let path = path.display().to_string();
            move |source| OpenError::Io { path, source }
        };
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(io(folder))?;
        let new = path.with_extension("new");
        remove(&new).map_err(io(&new))?;
        Disk::make(&new, entries, revision)?;
        for (from, to) in
            [(path.to_owned(), aside.to_owned()), (disk::journal_path(path), disk::journal_path(aside))]
        {
            match std::fs::rename(&from, &to) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(&from)(error)),
                _ => {}
            }
        }
        std::fs::rename(&new, path).map_err(io(path))?;
        std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io(folder))
    }

    fn start(disk: Disk, state: State, options: Options, file: &Path) -> Result<Self, OpenError> {
        let hub = Arc::new(Hub::new(state));
        let (inbox, requests) = mpsc::channel(INBOX);
        let writer = Writer::new(disk, Arc::clone(&hub), requests, options.history, options.clock);
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run())
            .map_err(OpenError::Thread)?;
        Ok(Self { file: file.to_owned(), hub, inbox: Some(inbox), writer: Some(writer) })
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Request,
    ) -> Result<T, Error> {
        let closed = || Error::Unavailable(Box::new(Closed));
        let (reply, answer) = oneshot::channel();
        let inbox = self.inbox.as_ref().expect("only taken on drop");
        inbox.send(request(reply)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    async fn write(&self, key: &str, action: Action) -> Result<Change, Error> {
        let key = Arc::from(key);
        self.ask(|reply| Request::Write { key, action, reply }).await
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        drop(self.inbox.take());
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the writer thread of the store panicked");
        }
    }
}

fn remove(file: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A copy that takes no more room than it needs: buffers that values were encoded into are often
/// twice as large, and these are kept.
fn exact(value: &Bytes) -> Bytes {
    Bytes::copy_from_slice(value)
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &str) -> Result<Option<Arc<Entry>>, Error> {
        Ok(self.hub.read(|state| state.get(key).cloned()))
    }

    async fn list(&self, prefix: &str, list: List) -> Result<Page, Error> {
        let snapshot = self.hub.read(|state| state.snapshot(prefix, list.at))?;
        Ok(snapshot.list(prefix, &list))
    }

    async fn create(&self, key: &str, value: Bytes) -> Result<Arc<Entry>, Error> {
        let change = self.write(key, Action::Create(exact(&value))).await?;
        Ok(Arc::clone(change.entry()))
    }

    async fn update(&self, key: &str, value: Bytes, when: Precondition) -> Result<Arc<Entry>, Error> {
        let change = self.write(key, Action::Update(exact(&value), when)).await?;
        Ok(Arc::clone(change.entry()))
    }

    async fn delete(&self, key: &str, when: Precondition) -> Result<Revision, Error> {
        Ok(self.write(key, Action::Delete(when)).await?.revision())
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, Error> {
        self.hub.watch(prefix, after)
    }

    async fn progress(&self) -> Result<(), Error> {
        self.hub.progress();
        Ok(())
    }

    async fn revision(&self) -> Result<Revision, Error> {
        Ok(self.hub.read(|state| state.revision))
    }

    async fn size(&self) -> Result<u64, Error> {
        let file = self.file.clone();
        let look = move || {
            let journal = std::fs::metadata(disk::journal_path(&file))?;
            Ok::<_, std::io::Error>(std::fs::metadata(file)?.len() + journal.len())
        };
        let looked = tokio::task::spawn_blocking(look).await;
        let found = looked.map_err(|error| Error::Unavailable(Box::new(error)))?;
        found.map_err(|error| Error::Unavailable(Box::new(error)))
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.ask(|reply| Request::Compact { revision, reply }).await
    }
}
