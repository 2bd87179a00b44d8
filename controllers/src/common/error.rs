//! Why a reconciliation failed. The driver logs it and tries again; nobody matches on it.

use decapod_api::labels::ParseError;
use decapod_client::error;

/// A failed reconciliation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A request was refused or not answered.
    #[error("cannot {what}")]
    Api {
        /// What the request was to do, as a verb and its object.
        what: &'static str,
        /// The API server's answer.
        source: Box<kube::Error>,
    },
    /// The object's selector cannot be used; only a change of the object helps.
    #[error("the selector is invalid")]
    Selector(#[from] ParseError),
    /// The cache did not show in time what the controller wrote, or what the API server says.
    #[error("the cache lags behind the API server")]
    StaleCache,
    /// Some of the requests of one step failed; the first of them.
    #[error("{failed} of {total} requests failed")]
    Some {
        /// How many failed.
        failed: usize,
        /// How many were made.
        total: usize,
        /// Why the first of them failed.
        source: Box<kube::Error>,
    },
    /// The certificate authority, or the key of tokens, did not sign.
    #[error("the authority does not sign: {0}")]
    Authority(String),
    /// An object refers to a kind that discovery does not know (yet).
    #[error("no resource of kind {kind} in {api_version} is known")]
    UnknownKind {
        /// The group and version.
        api_version: String,
        /// The kind.
        kind: String,
    },
}

impl Error {
    /// The outcome of a step of `total` requests of which these failed.
    pub(crate) fn of_some(failures: Vec<kube::Error>, total: usize) -> Result<()> {
        let failed = failures.len();
        match failures.into_iter().next() {
            None => Ok(()),
            Some(source) => Err(Self::Some { failed, total, source: Box::new(source) }),
        }
    }

    /// What users are told in a condition: the API server's own words where it answered.
    pub(crate) fn reported(&self) -> String {
        match self {
            Self::Api { source, .. } | Self::Some { source, .. } => error::chain(&**source),
            other => error::chain(other),
        }
    }
}

/// The outcome of a reconciliation or of a part of it.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Says what a request was for, where it fails.
pub(crate) trait Says<T> {
    fn says(self, what: &'static str) -> Result<T>;
}

impl<T> Says<T> for kube::Result<T> {
    fn says(self, what: &'static str) -> Result<T> {
        self.map_err(|source| Error::Api { what, source: Box::new(source) })
    }
}
