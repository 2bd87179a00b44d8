//! What a build copies: the context folder, stages and images as sources; and how it gets into an image.
//!
//! **Invariant**: neither the names and links in a context nor those in an image lead out of it. Sources are
//! opened below their root and targets below theirs, by the kernel's own resolution.

mod ignore;
mod pattern;
mod place;
mod source;

pub(crate) use ignore::Ignore;
pub(crate) use place::{Placer, Target};
pub(crate) use source::{Owner, Selection, Source, attributes};

use std::io;
use std::path::PathBuf;

/// Why a copy is not possible.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The instruction asks for what is not there, or cannot be.
    #[error("{0}")]
    Wrong(String),
    /// The disk failed, or a name is not of the kind that it should be.
    #[error("{path}: cannot {doing}: {source}", path = path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file, as it is called in the context or in the image.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`.
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io { doing, path, source }
    }
}
