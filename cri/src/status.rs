//! Errors of a runtime as gRPC's codes, and back.
//!
//! **Invariant**: the kind of an error survives both ways, as far as code and call tell it; what a code cannot say goes
//! along as metadata, which other clients do not look at.

use decapod_runtime::{Error, Kind};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// The exit code of a container that could not be started.
const START_EXIT: &str = "decapod-start-exit-code";
/// What kind of object is not known.
const MISSING: &str = "decapod-missing";

/// The code that kubelets and crictl expect, with the error and its causes as the message.
pub(crate) fn status(error: &Error) -> Status {
    let code = match error {
        Error::NotFound { .. } => Code::NotFound,
        Error::InvalidArgument { .. } => Code::InvalidArgument,
        Error::WrongState { .. } => Code::FailedPrecondition,
        Error::DeadlineExceeded { .. } => Code::DeadlineExceeded,
        Error::Unavailable { .. } => Code::Unavailable,
        Error::Internal { .. } => Code::Internal,
        _ => Code::Unknown,
    };
    let mut status = Status::new(code, error.chain());
    let metadata = status.metadata_mut();
    match error {
        Error::StartFailed { exit_code, .. } => {
            metadata.insert(START_EXIT, MetadataValue::from(*exit_code));
        }
        Error::NotFound { kind, .. } => {
            let kind = match kind {
                Kind::Sandbox => "sandbox",
                Kind::Container => "container",
                Kind::Image => "image",
            };
            metadata.insert(MISSING, MetadataValue::from_static(kind));
        }
        _ => {}
    }
    status
}

/// What a call was call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    /// What it does, as an infinitive.
    pub(crate) doing: &'static str,
    /// The object that it names.
    pub(crate) object: Option<(Kind, &'a str)>,
}

/// The error that a status of a runtime stands for.
pub(crate) fn error(status: Status, call: Call<'_>) -> Error {
    let message = status.message().to_owned();
    let missing = status.metadata().get(MISSING).and_then(|kind| kind.to_str().ok());
    let kind = match missing {
        Some("sandbox") => Some(Kind::Sandbox),
        Some("container") => Some(Kind::Container),
        Some("image") => Some(Kind::Image),
        _ => call.object.map(|(kind, _)| kind),
    };
    let id = call.object.map(|(_, id)| id.to_owned()).unwrap_or_default();
    let exit = status.metadata().get(START_EXIT).and_then(|code| code.to_str().ok()?.parse().ok());
    if let Some(exit_code) = exit {
        let message = message.strip_prefix("failed to start: ").unwrap_or(&message).to_owned();
        return Error::StartFailed { exit_code, message };
    }
    match (status.code(), kind) {
        (Code::NotFound, Some(kind)) => Error::NotFound { kind, id },
        (Code::InvalidArgument, _) => Error::invalid("request", message),
        (Code::FailedPrecondition, Some(kind)) => {
            Error::WrongState { kind, id, state: "in a state that does not allow this" }
        }
        // The client knows how long it waited, if it was the client.
        (Code::DeadlineExceeded, _) => Error::DeadlineExceeded { what: call.doing, seconds: 0 },
        (Code::Unavailable, _) => {
            Error::Unavailable { what: "what the container runtime needs", source: message.into() }
        }
        (_, Some(Kind::Image)) => Error::Image { reference: id, source: message.into() },
        _ => Error::internal(call.doing, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(sent: &Error, object: Option<(Kind, &str)>) -> Error {
        error(status(sent), Call { doing: "try", object })
    }

    #[test]
    fn kinds_survive() {
        let object = Some((Kind::Container, "c"));
        let gone = there_and_back(&Error::not_found(Kind::Image, "c"), object);
        assert!(matches!(gone, Error::NotFound { kind: Kind::Image, .. }), "{gone:?}");
        let start = Error::StartFailed { exit_code: 127, message: "no such file".into() };
        match there_and_back(&start, object) {
            Error::StartFailed { exit_code: 127, message } => assert_eq!(message, "no such file"),
            other => panic!("{other:?}"),
        }
        let state = Error::WrongState { kind: Kind::Container, id: "c".into(), state: "not running" };
        assert!(matches!(there_and_back(&state, object), Error::WrongState { .. }));
        assert!(matches!(there_and_back(&Error::invalid("x", "y"), None), Error::InvalidArgument { .. }));
        let late = Error::DeadlineExceeded { what: "the command", seconds: 1 };
        assert!(matches!(there_and_back(&late, object), Error::DeadlineExceeded { .. }));
        let image = Error::Image { reference: "x".into(), source: "no registry".into() };
        let image = there_and_back(&image, Some((Kind::Image, "x")));
        assert!(image.chain().contains("no registry"), "{image:?}");
    }
}
