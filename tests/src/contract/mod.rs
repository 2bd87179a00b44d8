//! The watch contract: what is recorded while writers write, watchers watch and the server is killed, and
//! what must hold of it.
//!
//! * **ordered**: a watch's revisions only grow, over all its resumptions;
//! * **unique**: no revision comes twice;
//! * **atomic**: an event carries exactly what one write wrote, and the same at every watcher;
//! * **reliable**: every write that was acknowledged is delivered to every watch that selects it, and so is
//!   everything that any other watch was told; the list at the end is what the events add up to;
//! * **resumable**: a watch that broke off goes on from the last revision that it saw;
//! * **bookmarkable**: at a bookmark everything up to its revision was delivered, and nothing of it comes
//!   later; the objects before the bookmark that ends the initial events are the state at its revision.

pub mod check;
pub mod load;

pub use check::check;

/// A revision of the store: an object's `resourceVersion`.
pub type Revision = u64;

/// What an object is after a write: the write's number and what else it wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Which write this is; no two have the same.
    pub number: u64,
    /// Whether all parts of the object are of the same write.
    pub whole: bool,
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It came.
    Added,
    /// It changed.
    Modified,
    /// It went.
    Deleted,
}

/// An event, as a watch told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The object's revision.
    pub revision: Revision,
    /// The object's name.
    pub key: String,
    /// What happened.
    pub what: What,
    /// The object (the last there was, if it went).
    pub content: Content,
}

/// What a watch told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// An object that was there at the beginning.
    Initial(Seen),
    /// A change.
    Event(Seen),
    /// How far the watch is.
    Bookmark(Revision),
}

/// One watch, from its start until it broke off.
#[derive(Clone, Debug)]
pub struct Leg {
    /// After which revision it was asked for; `None` with the state at its beginning.
    pub after: Option<Revision>,
    /// What came.
    pub items: Vec<Item>,
}

/// A watcher: what it selects, and its watches.
#[derive(Clone, Debug)]
pub struct Watcher {
    /// What it is called in what is wrong.
    pub name: String,
    /// What it selects: the beginning of the objects' names.
    pub prefix: String,
    /// Its watches.
    pub legs: Vec<Leg>,
}

/// A write that was acknowledged.
#[derive(Clone, Debug)]
pub struct Write {
    /// The object's name.
    pub key: String,
    /// The revision, and the number of the write; a deletion tells neither.
    pub put: Option<(Revision, u64)>,
}

/// All that was recorded.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// The watchers.
    pub watchers: Vec<Watcher>,
    /// By writer (no two write the same object), in their order.
    pub writes: Vec<Vec<Write>>,
    /// The list after the last write: name, revision, content.
    pub list: Vec<(String, Revision, Content)>,
}
