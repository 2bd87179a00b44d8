//! The watch cache: what clients read and watch, beside the store.
//!
//! A [`Cacher`] per row of the resource table, made when the row is first used, holds the row's objects
//! as bytes that are ready to be served, and its last events. One *feed* follows the whole store by a
//! single watch and hands each change to its row: an idle row costs nothing, and one number says how far
//! all of them are, which makes consistent reads cheap: ask the store for its newest revision, wait until
//! the feed is there, read from memory.
//!
//! A row starts at the oldest revision that the store keeps, so that clients may resume their watches
//! after the server was restarted.
//!
//! **Invariants:** a list is the row at exactly the revision that it carries. A watch delivers each change
//! after its revision in order and once, or ends with an error. What [`Reached`] says is in every row.

mod decode;
mod event;
mod feed;
mod marks;
mod object;
mod pairs;
mod reached;
mod row;
mod select;
mod state;
#[cfg(test)]
mod tests;
mod watch;
mod watchers;

use std::sync::Arc;

use decapod_storage::{self as storage, Revision};

pub(crate) use decode::{AsStored, BoxError, Decode, Decoded, Field, Scanner};
pub(crate) use event::{Delivery, Kind};
pub(crate) use feed::Cache;
pub(crate) use object::Object;
pub(crate) use row::{Cacher, Query, Row, View};
pub(crate) use select::Selection;
pub(crate) use watch::{Start, Watching};

/// Which state a read wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// The newest there is when the read begins.
    Newest,
    /// Any that is there.
    Any,
    /// That of this revision or a later one.
    NotOlderThan(Revision),
    /// That of this revision.
    Exact(Revision),
}

/// Why a read or a watch failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The revision is no longer kept, or a watch fell behind what is: `410 Expired`.
    #[error("revision {requested} is no longer kept: the oldest is {oldest}")]
    Expired {
        /// The revision that was wanted.
        requested: Revision,
        /// The oldest that could be had.
        oldest: Revision,
    },
    /// The row starts anew, and what happened in between is not known: `410 Expired` to a watch, a
    /// reason to try again to a read.
    #[error("the cache of the row was dropped")]
    Ended,
    /// The revision was not reached within the time that a read waits: "Too large resource version".
    #[error("revision {requested} is in the future: the newest is {current}")]
    Future {
        /// The revision that was wanted.
        requested: Revision,
        /// The newest.
        current: Revision,
    },
    /// The cache did not become as new as the store within the time that a read waits.
    #[error("the cache did not catch up with the store")]
    Timeout,
    /// A stored object cannot be read.
    #[error("unable to transform key {key:?}: {why}")]
    Unreadable {
        /// Its key.
        key: Arc<str>,
        /// What is wrong with it.
        why: Arc<str>,
    },
    /// The store failed.
    #[error("the store failed")]
    Store(#[source] storage::Error),
}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Self {
        match error {
            storage::Error::Compacted { requested, oldest } => Self::Expired { requested, oldest },
            storage::Error::Future { requested, current } => Self::Future { requested, current },
            storage::Error::Undecipherable { key, why } => Self::Unreadable { key, why: why.into() },
            other => Self::Store(other),
        }
    }
}
