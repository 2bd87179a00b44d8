//! Questions that callers ask of an API error, so that nobody matches on status codes or messages.

use std::error::Error as StdError;

/// What a failed request means to the caller.
pub trait ErrorExt {
    /// The object (or its kind) does not exist: HTTP 404.
    fn is_not_found(&self) -> bool;
    /// An object of that name exists already: HTTP 409, reason `AlreadyExists`.
    fn is_already_exists(&self) -> bool;
    /// The object changed since it was read, or a precondition did not hold: HTTP 409, reason `Conflict`.
    fn is_conflict(&self) -> bool;
    /// The revision was compacted away: HTTP 410, reasons `Expired` and `Gone`. List again.
    fn is_expired(&self) -> bool;
    /// The server understood the object and refused it: HTTP 422. Retrying the same object is no use.
    fn is_invalid(&self) -> bool;
    /// The identity may not do this, or admission refused it: HTTP 403.
    fn is_forbidden(&self) -> bool;
    /// The creation was refused because the namespace is being deleted.
    fn is_namespace_terminating(&self) -> bool;
}

impl ErrorExt for kube::Error {
    fn is_not_found(&self) -> bool {
        status(self).is_some_and(|status| status.code == 404)
    }

    fn is_already_exists(&self) -> bool {
        status(self).is_some_and(|status| status.code == 409 && status.reason == "AlreadyExists")
    }

    fn is_conflict(&self) -> bool {
        status(self).is_some_and(|status| status.code == 409 && status.reason != "AlreadyExists")
    }

    fn is_expired(&self) -> bool {
        status(self).is_some_and(|status| status.code == 410)
    }

    fn is_invalid(&self) -> bool {
        status(self).is_some_and(|status| status.code == 422)
    }

    fn is_forbidden(&self) -> bool {
        status(self).is_some_and(|status| status.code == 403)
    }

    fn is_namespace_terminating(&self) -> bool {
        status(self).is_some_and(|status| {
            let causes = status.details.iter().flat_map(|details| &details.causes);
            status.code == 403 && causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
        })
    }
}

fn status(error: &kube::Error) -> Option<&kube::core::Status> {
    match error {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

/// An error and all its sources in one line, `outer: inner: innermost`, for logs and conditions.
///
/// A source whose text the outer error repeats already is left out.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = words(error);
    let mut source = error.source();
    while let Some(cause) = source {
        let words = words(cause);
        // The source of an API error is its own `Status`, which says the same again.
        let is_status = cause.is::<kube::core::Status>() || cause.is::<Box<kube::core::Status>>();
        if !is_status && !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

/// What an error says of itself; of an API error the message, without the whole `Status`.
fn words(error: &(dyn StdError + 'static)) -> String {
    match as_kube(error) {
        Some(kube::Error::Api(status)) => status.message.clone(),
        _ => error.to_string(),
    }
}

/// The error as that of a request, whether it is held directly or in a box.
pub(crate) fn as_kube<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a kube::Error> {
    let boxed = || error.downcast_ref::<Box<kube::Error>>().map(|boxed| &**boxed);
    error.downcast_ref::<kube::Error>().or_else(boxed)
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn api(code: u16, reason: &str) -> kube::Error {
        kube::Error::Api(Status::failure("no", reason).with_code(code).boxed())
    }

    #[test]
    fn the_two_meanings_of_409_are_told_apart() {
        assert!(api(409, "AlreadyExists").is_already_exists());
        assert!(!api(409, "AlreadyExists").is_conflict());
        assert!(api(409, "Conflict").is_conflict());
        assert!(!api(409, "Conflict").is_already_exists());
    }

    #[test]
    fn a_chain_names_every_source_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot write")]
        struct Outer(#[source] Box<kube::Error>);
        let refused = Outer(Box::new(api(409, "Conflict")));
        assert_eq!(chain(&refused), "cannot write: no");
        assert!(as_kube(std::error::Error::source(&refused).unwrap()).unwrap().is_conflict());
        let inner = std::io::Error::other("disk on fire");
        let outer = kube::Error::ReadEvents(inner);
        assert_eq!(chain(&outer), "Error reading events stream: disk on fire");
    }
}
