//! The store: revisioned keys with etcd's semantics, behind one narrow trait.
//!
//! Nothing but the API server depends on this crate. Keys are laid out as Kubernetes lays them
//! out (`/registry/pods/<namespace>/<name>`), values are opaque bytes. Every write is a
//! compare-and-swap: a blind put does not exist. A watch delivers every revision after the one
//! it was asked for, in order and once, or it ends with an error that says why.
//!
//! What every store upholds is written down as code in `tests/suite`, and each store runs all of it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub mod embedded;
pub mod encryption;
pub mod etcd;
pub mod snapshot;

pub use embedded::Embedded;
pub use encryption::Encrypted;
pub use etcd::Etcd;

/// A revision of the whole store: each successful write makes the next one. The first is 1; at 0
/// the store is empty.
pub type Revision = u64;

/// One key with its value, as it was at some revision. Shared, never changed.
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
    pub entries: Vec<Arc<Entry>>,
    /// The revision at which they were read: the one asked for, or the store's newest. To go on,
    /// ask for the same revision with `after` the last key.
    pub revision: Revision,
    /// How many entries follow the last one at that revision.
    pub remaining: usize,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key was created or updated.
    Put {
        /// What is there now.
        entry: Arc<Entry>,
        /// What was there before, if anything.
        previous: Option<Arc<Entry>>,
    },
    /// The key was deleted.
    Delete {
        /// What was there before.
        previous: Arc<Entry>,
        /// The revision of the deletion.
        revision: Revision,
    },
}

impl Change {
    /// The revision that this change made.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put { entry, .. } => entry.modified,
            Self::Delete { revision, .. } => *revision,
        }
    }

    /// The key that changed.
    pub fn key(&self) -> &Arc<str> {
        &self.entry().key
    }

    /// What was put, or the last that was there of a deleted key.
    pub fn entry(&self) -> &Arc<Entry> {
        match self {
            Self::Put { entry, .. } => entry,
            Self::Delete { previous, .. } => previous,
        }
    }

    /// What was there before the change, if anything.
    pub fn previous(&self) -> Option<&Arc<Entry>> {
        match self {
            Self::Put { previous, .. } => previous.as_ref(),
            Self::Delete { previous, .. } => Some(previous),
        }
    }
}

/// What a watch delivers.
#[derive(Clone, Debug)]
pub enum Event {
    /// Changes in the order of their revisions, each once; never empty. What was committed
    /// together may come together.
    Changes(Vec<Change>),
    /// All changes under the prefix up to and including this revision were delivered. Comes only
    /// after [`Store::progress`] asked for it, so that an idle watch costs nothing.
    Progress(Revision),
}

/// A running watch. It ends after its first error; dropping it ends it.
pub type Watch = BoxStream<'static, Result<Event, Error>>;

/// Why a store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A create found the key there already.
    #[error("the key exists already, written at revision {}", .0.modified)]
    Exists(Arc<Entry>),
    /// An update or delete found something else than its precondition demands: this, or nothing.
    #[error("the key is not what the precondition demands")]
    Conflict(Option<Arc<Entry>>),
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
    /// A watcher did not keep up and was ended: it may resume from what it saw last, if that is
    /// still kept.
    #[error("the watcher did not keep up")]
    Lagged,
    /// The value is larger than the store takes: etcd's limit is 1.5 MiB.
    #[error("the value is larger than the store takes")]
    TooLarge,
    /// The value of a key cannot be deciphered: no configured key fits, or it was tampered with.
    #[error("the value of {key} cannot be deciphered: {why}")]
    Undecipherable {
        /// The key of the value.
        key: Arc<str>,
        /// What is wrong, without anything of the value.
        why: String,
    },
    /// The store cannot serve now; whether a write took place is not known.
    #[error("the store is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A store of revisioned keys.
///
/// A *prefix* is a plain string prefix of the key: end it with `/` to mean a folder. Dropping the
/// future of a write does not undo the write: it may or may not take place.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest value of a key, linearizably.
    async fn get(&self, key: &str) -> Result<Option<Arc<Entry>>, Error>;

    /// The entries whose keys start with `prefix`, by key. At a revision that is no longer kept:
    /// [`Error::Compacted`]; at one that is not there yet: [`Error::Future`].
    async fn list(&self, prefix: &str, list: List) -> Result<Page, Error>;

    /// Writes a key that must not exist, else [`Error::Exists`]. Returns once the write is
    /// durable.
    async fn create(&self, key: &str, value: Bytes) -> Result<Arc<Entry>, Error>;

    /// Replaces the value of a key, else [`Error::Conflict`] with what is there. Returns once the
    /// write is durable.
    async fn update(&self, key: &str, value: Bytes, when: Precondition) -> Result<Arc<Entry>, Error>;

    /// Deletes a key, else [`Error::Conflict`] with what is there; returns the revision of the
    /// deletion once it is durable.
    async fn delete(&self, key: &str, when: Precondition) -> Result<Revision, Error>;

    /// All changes under `prefix` after revision `after`, from there on for ever. At a revision
    /// that is no longer kept: [`Error::Compacted`]; at one that is not there yet:
    /// [`Error::Future`]. A watcher that keeps so little pace that the changes it has yet to see
    /// are no longer kept is ended with [`Error::Lagged`].
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, Error>;

    /// Asks every running watch of this store to deliver an [`Event::Progress`] of at least the
    /// revision that is the newest now (or changes that reach it). Calls are coalesced.
    async fn progress(&self) -> Result<(), Error>;

    /// The newest revision, linearizably.
    async fn revision(&self) -> Result<Revision, Error>;

    /// How many bytes the store takes on its disk; of a store of several members, on that of one.
    async fn size(&self) -> Result<u64, Error>;

    /// Forgets what was overwritten or deleted up to `revision`, which becomes the oldest that can
    /// be read or watched from. Compacting what is compacted already does nothing.
    async fn compact(&self, revision: Revision) -> Result<(), Error>;
}

/// The least text behind all that start with the prefix; `None` if there is no such.
fn prefix_end(prefix: &str) -> Option<String> {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        // The order of characters is that of their bytes; surrogates are none.
        if let Some(next) = (last..=char::MAX).nth(1) {
            end.push(next);
            return Some(end);
        }
    }
    None
}
