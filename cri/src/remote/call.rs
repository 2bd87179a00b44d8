//! Calls with an end, and what their errors mean.

use std::time::Duration;

use decapod_client::clock;
use decapod_runtime::{Error, Kind, Result};
use tonic::{Code, Response, Status};

use super::Remote;
use crate::status::{self, Call};

/// How long a runtime may take for an answer; as long as Kubernetes' kubelet waits.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// A call that has no time of its own, such as a pull of any size or a command without a limit.
pub(super) const FOR_EVER: Option<Duration> = None;

impl Remote {
    /// Awaits an answer, `limit` at most.
    pub(super) async fn answer<T>(
        &self,
        call: Call<'_>,
        limit: Option<Duration>,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T> {
        let answered = match limit {
            None => answer.await,
            Some(limit) => match clock::timeout(&*self.host.clock, limit, answer).await {
                Some(answered) => answered,
                None => {
                    let (what, seconds) = (call.doing, limit.as_secs());
                    return Err(Error::DeadlineExceeded { what, seconds });
                }
            },
        };
        answered.map(Response::into_inner).map_err(|status| status::error(status, call))
    }

    /// As [`Remote::answer`]; what is not there is as good as done.
    pub(super) async fn done<T>(
        &self,
        call: Call<'_>,
        limit: Option<Duration>,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<()> {
        match self.answer(call, limit, answer).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

pub(super) fn sandbox<'a>(doing: &'static str, id: &'a str) -> Call<'a> {
    Call { doing, object: Some((Kind::Sandbox, id)) }
}

pub(super) fn container<'a>(doing: &'static str, id: &'a str) -> Call<'a> {
    Call { doing, object: Some((Kind::Container, id)) }
}

pub(super) fn image<'a>(doing: &'static str, name: &'a str) -> Call<'a> {
    Call { doing, object: Some((Kind::Image, name)) }
}

pub(super) fn any(doing: &'static str) -> Call<'static> {
    Call { doing, object: None }
}

/// What a runtime must not leave out.
pub(super) fn given<T>(answer: Option<T>, doing: &'static str) -> Result<T> {
    answer.ok_or_else(|| Error::internal(doing, "the runtime's answer is empty"))
}

/// A container that did not start is the container's fault unless the runtime says that it is another's. Runtimes that
/// do not tell the exit code have 128 in the status afterwards.
pub(super) fn not_started(status: Status, id: &str) -> Error {
    let message = status.message().to_owned();
    let known = status.code() != Code::Unknown;
    match status::error(status, container("start a container", id)) {
        error @ Error::StartFailed { .. } => error,
        error if known => error,
        _ => Error::StartFailed { exit_code: 128, message },
    }
}
