//! The store: revisioned keys with etcd's semantics, behind one narrow trait.
//!
//! Nothing but the API server depends on this crate. Keys are laid out as Kubernetes lays them
//! out (`/registry/pods/<namespace>/<name>`), values are opaque bytes. Every write is a
//! compare-and-swap: a blind put does not exist. A watch delivers every revision after the one
//! it was asked for, in order and once, or it ends with an error that says why.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

/// A revision of the whole store: each successful write makes the next one. The first is 1.
pub type Revision = u64;

/// One key with its value, as it was at some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key, `/registry/…`.
    pub key: Arc<str>,
    /// The value as it was written.
    pub value: Bytes,
    /// The revision that created the key.
    pub created: Revision,
    /// The revision that wrote this value.
    pub modified: Revision,
}

/// What must hold for an update or a delete to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// The key exists and was last written at this revision.
    ModifiedAt(Revision),
}

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct List {
    /// The revision to read at; `None` reads the newest, linearizably.
    pub at: Option<Revision>,
    /// At most this many entries; `None` for all.
    pub limit: Option<usize>,
    /// Only keys strictly after this one.
    pub after: Option<Arc<str>>,
}

/// A part of a list, all of it read at one revision.
#[derive(Clone, Debug)]
pub struct Page {
    /// The entries, by key.
    pub entries: Vec<Entry>,
    /// The revision at which they were read.
    pub revision: Revision,
    /// How many entries follow the last one at that revision.
    pub remaining: usize,
}

/// One change of one key.
#[derive(Clone, Debug)]
pub enum Change {
    /// The key was created or updated.
    Put {
        /// What is there now.
        entry: Entry,
        /// What was there before, if anything.
        previous: Option<Entry>,
    },
    /// The key was deleted.
    Delete {
        /// What was there before.
        previous: Entry,
        /// The revision of the deletion.
        revision: Revision,
    },
}

/// What a watch delivers.
#[derive(Clone, Debug)]
pub enum Event {
    /// Changes of one or more consecutive revisions, in order.
    Changes(Vec<Change>),
    /// Nothing under the prefix changed up to and including this revision.
    Progress(Revision),
}

/// A running watch. It ends after its first error.
pub type Watch = BoxStream<'static, Result<Event, Error>>;

/// Why a store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A create found the key there already.
    #[error("the key exists already, written at revision {}", .0.modified)]
    Exists(Box<Entry>),
    /// An update or delete found something else than its precondition demands.
    #[error("the key is not what the precondition demands")]
    Conflict(Option<Box<Entry>>),
    /// The revision is gone.
    #[error("revision {requested} was compacted: the oldest kept is {oldest}")]
    Compacted {
        /// The revision that was asked for.
        requested: Revision,
        /// The oldest revision that can still be read or watched from.
        oldest: Revision,
    },
    /// The revision does not exist yet.
    #[error("revision {requested} is in the future: the newest is {current}")]
    Future {
        /// The revision that was asked for.
        requested: Revision,
        /// The newest revision.
        current: Revision,
    },
    /// A watcher did not keep up and was ended: it may resume from what it saw last.
    #[error("the watcher did not keep up")]
    Lagged,
    /// The store cannot serve now; whether a write took place is not known.
    #[error("the store is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A store of revisioned keys.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest value of a key, linearizably.
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error>;

    /// The entries whose keys start with `prefix`, by key.
    async fn list(&self, prefix: &str, list: List) -> Result<Page, Error>;

    /// Writes a key that must not exist. Returns once the write is durable.
    async fn create(&self, key: &str, value: Bytes) -> Result<Entry, Error>;

    /// Replaces the value of a key. Returns once the write is durable.
    async fn update(&self, key: &str, value: Bytes, when: Precondition) -> Result<Entry, Error>;

    /// Deletes a key; returns the revision of the deletion once it is durable.
    async fn delete(&self, key: &str, when: Precondition) -> Result<Revision, Error>;

    /// All changes under `prefix` after revision `after`, from there on for ever.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, Error>;

    /// The newest revision, linearizably.
    async fn revision(&self) -> Result<Revision, Error>;

    /// Forgets what was overwritten or deleted before `revision`.
    async fn compact(&self, revision: Revision) -> Result<(), Error>;
}
