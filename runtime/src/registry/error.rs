//! What can go wrong between this node and a registry, in words that say what to do about it.

use std::io;

use http::StatusCode;

use super::config;

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a registry did not give or take what was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// The file about registries cannot be used.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// Nobody answers, or not in a way that can be trusted.
    #[error("registry {registry} cannot be reached")]
    Unreachable {
        registry: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It answers, but not any more.
    #[error("registry {registry} broke off while it sent {what}")]
    Broken {
        registry: String,
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing came for too long.
    #[error("registry {registry} sent nothing of {what} for {seconds} s")]
    Stalled { registry: String, what: String, seconds: u64 },
    /// There is no such repository, tag or digest (or it is hidden from these credentials).
    #[error("{what}: not found in registry {registry}{}", detail(message))]
    NotFound { registry: String, what: String, message: String },
    /// The registry wants credentials, or others.
    #[error("registry {registry}: {}{}", unauthorized(*.given), detail(message))]
    Unauthorized {
        registry: String,
        /// Credentials were sent.
        given: bool,
        message: String,
    },
    /// Any other refusal.
    #[error("registry {registry} answered {status} when asked for {what}{}", detail(message))]
    Refused { registry: String, what: String, status: StatusCode, message: String },
    /// The answer is not what the protocol says.
    #[error("registry {registry}: {what}")]
    Protocol { registry: String, what: String },
    /// The mirrors failed, and so did the registry itself.
    #[error("no mirror has it ({tried})")]
    Mirrors {
        tried: String,
        #[source]
        source: Box<Error>,
    },
    /// A file to send cannot be read.
    #[error("cannot read what is to be sent")]
    Read(#[source] io::Error),
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

fn unauthorized(given: bool) -> &'static str {
    if given {
        "the credentials were refused (unauthorized)"
    } else {
        "authentication required (unauthorized): name a secret of type kubernetes.io/dockerconfigjson in imagePullSecrets"
    }
}

impl Error {
    /// Trying the same again soon may help.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Error::Broken { .. } | Error::Stalled { .. } => true,
            Error::Refused { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            _ => false,
        }
    }

    /// The other side is there, but shows no certificate that is trusted: no reason to try without one.
    pub(super) fn is_distrust(&self) -> bool {
        let Error::Unreachable { source, .. } = self else { return false };
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(source.as_ref());
        while let Some(error) = cause {
            if matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))) {
                return true;
            }
            // An I/O error's source is that of what it wraps: what it wraps has to be asked for.
            let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            cause = match wrapped {
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        false
    }

    /// Another endpoint of the same registry may do better.
    pub(super) fn is_unreachable(&self) -> bool {
        matches!(self, Error::Unreachable { .. } | Error::Broken { .. } | Error::Stalled { .. })
    }
}
