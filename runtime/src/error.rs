//! What can go wrong at the border of the runtime, typed so that the node agent decides by kind
//! and never by message, and so that a CRI server can map each kind to one gRPC code.

use std::fmt;

/// The result of every call of [`crate::Runtime`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any cause that is carried along.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// What was asked for by identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A pod sandbox.
    Sandbox,
    /// A container.
    Container,
    /// An image.
    Image,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Sandbox => "sandbox",
            Kind::Container => "container",
            Kind::Image => "image",
        })
    }
}

/// Why the runtime did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such object (gRPC `NOT_FOUND`).
    #[error("{kind} {id:?} is not known")]
    NotFound {
        /// What kind of object.
        kind: Kind,
        /// The id or the name by which it was asked for.
        id: String,
    },
    /// The request cannot be carried out as it is (gRPC `INVALID_ARGUMENT`); the same request
    /// will fail again.
    #[error("invalid {field}: {reason}")]
    InvalidArgument {
        /// The field of the CRI message.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The object is in a state that does not allow this (gRPC `FAILED_PRECONDITION`), such as
    /// an exec in a container that has exited.
    #[error("{kind} {id:?} is {state}")]
    WrongState {
        /// What kind of object.
        kind: Kind,
        /// Its id.
        id: String,
        /// The state that it is in.
        state: &'static str,
    },
    /// The container's process could not be started: the fault is the container's, not the
    /// runtime's. Kubernetes shows it as `RunContainerError`, or as a termination with this
    /// exit code.
    #[error("failed to start: {message}")]
    StartFailed {
        /// 127 where the executable was not found, 126 where it cannot be executed, else 128.
        exit_code: i32,
        /// What a user understands: `exec: "foo": executable file not found in $PATH`.
        message: String,
    },
    /// An image could not be imported, pulled or unpacked.
    #[error("image {reference:?}")]
    Image {
        /// The reference or the file.
        reference: String,
        /// What is wrong.
        #[source]
        source: Source,
    },
    /// It took longer than the caller allows (gRPC `DEADLINE_EXCEEDED`).
    #[error("{what} did not end within {seconds} s")]
    DeadlineExceeded {
        /// What was waited for.
        what: &'static str,
        /// How long.
        seconds: u64,
    },
    /// Something that the runtime needs does not answer (gRPC `UNAVAILABLE`); to be tried again.
    #[error("{what} is not available")]
    Unavailable {
        /// What is missing: the shim of a pod, the pod network.
        what: &'static str,
        /// Why.
        #[source]
        source: Source,
    },
    /// The runtime or the machine failed (gRPC `INTERNAL`).
    #[error("failed to {doing}")]
    Internal {
        /// What was being done, as an infinitive.
        doing: String,
        /// Why it failed.
        #[source]
        source: Source,
    },
}

impl Error {
    /// A fault of the runtime or the machine while `doing` (an infinitive) something.
    pub fn internal(doing: impl Into<String>, source: impl Into<Source>) -> Self {
        Error::Internal { doing: doing.into(), source: source.into() }
    }

    /// The object is not known.
    pub fn not_found(kind: Kind, id: impl Into<String>) -> Self {
        Error::NotFound { kind, id: id.into() }
    }

    /// A field of the request is wrong.
    pub fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Error::InvalidArgument { field, reason: reason.into() }
    }

    /// True where the object is not there: a removal may take this as success.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::NotFound { .. })
    }

    /// The message with those of all its causes, for statuses and events.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// An error's message with those of all its causes.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
