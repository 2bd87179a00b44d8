//! Patches: functions from a JSON tree to a JSON tree.
//!
//! JSON patch (RFC 6902), merge patch (RFC 7386) and Kubernetes' strategic merge patch, which merges
//! lists by the keys that [`crate::facts`] declares.

mod json;
mod merge;
mod strategic;

pub use json::{JsonPatch, apply_json};
pub use merge::apply_merge;
pub use strategic::apply_strategic;

/// Why a patch cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The patch itself is malformed.
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit the object: a missing path, a failed test.
    #[error("{0}")]
    Inapplicable(String),
}
