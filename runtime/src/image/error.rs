//! What can be wrong with an image, naming the file and what is corrupt.

use std::io;
use std::path::PathBuf;

use crate::registry;

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image is not usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// The archive is neither a docker-archive nor an OCI archive.
    #[error("{0}: neither a docker-archive nor an OCI archive (no manifest.json, no index.json)")]
    NotAnImage(PathBuf),
    /// A file of the archive is named by another one, but is not there.
    #[error("{file}: missing in the archive")]
    Missing {
        /// The file, by its path in the archive.
        file: String,
    },
    /// A file of the archive is not what it should be.
    #[error("{file}: {what}")]
    Corrupt {
        /// The file, by its path in the archive.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// A file of the archive is not JSON of the expected form.
    #[error("{file}: not valid JSON")]
    Json {
        /// The file, by its path in the archive.
        file: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// The content is not what its digest says.
    #[error("{file}: content has digest {actual}, expected {expected}")]
    Digest {
        /// The file, by its path in the archive.
        file: String,
        /// What the content's digest is.
        actual: String,
        /// What it must be.
        expected: String,
    },
    /// An entry of a layer would leave the image's root, or harm it.
    #[error("layer {layer}: entry {entry:?}: {what}")]
    Entry {
        /// The layer, by its path in the archive.
        layer: String,
        /// The entry, by its path in the layer.
        entry: String,
        /// What is wrong with it.
        what: String,
    },
    /// An entry of a layer could not be written.
    #[error("layer {layer}: entry {entry:?} cannot be unpacked")]
    Unpack {
        /// The layer, by its path in the archive.
        layer: String,
        /// The entry, by its path in the layer.
        entry: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Not one of the manifests is for this machine.
    #[error("no image for {wanted}; there is one for {available}")]
    Platform {
        /// This machine's platform.
        wanted: String,
        /// The platforms that there are.
        available: String,
    },
    /// A registry did not do what it was asked for.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The name is not an image reference.
    #[error("{reference:?} is not an image reference: {what}")]
    Reference {
        /// What was given.
        reference: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The disk failed.
    #[error("cannot {doing} {path}", path = path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn corrupt(file: impl Into<String>, what: impl Into<String>) -> Self {
        Error::Corrupt { file: file.into(), what: what.into() }
    }

    /// For `map_err`: the disk failed while doing this to that file.
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io { doing, path, source }
    }
}
