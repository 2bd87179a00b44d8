//! Server-side apply: who owns which field of an object, and how configurations that several
//! managers apply become one object. See the Kubernetes concept *server-side apply* (KEP-555).
//!
//! Everything here is a function of JSON trees and of [`crate::facts`]. What a manager owns is a
//! [`FieldSet`], kept in the very form in which it is stored (`FieldsV1`), so that a write neither
//! decodes nor encodes the sets that it does not touch.
//!
//! **Invariants**: applying the same configuration twice changes nothing the second time; what a
//! manager no longer applies, and nobody else owns, is gone; after a forced apply no other manager
//! owns what was forced.

mod diff;
mod element;
mod entry;
mod merge;
mod owned;
mod place;
mod remove;
pub mod scale;
mod set;
#[cfg(test)]
mod tests;
mod validate;
mod write;

pub use diff::{Diff, diff};
pub use entry::{Entry, Managers, Operation};
pub use owned::owned;
pub use set::FieldSet;
pub use write::{Applied, Apply, Conflict, Error, Versions, Writer, applied, created, updated};
