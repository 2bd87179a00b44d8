//! Streams of processes and ports, as Kubernetes' clients ask for them: SPDY/3.1, WebSockets, and SPDY in WebSockets.
//!
//! Two servers speak it, the node's and that of CRI's URLs; the one client is for URLs of other runtimes.

mod channel;
pub(crate) mod client;
mod forward;
mod session;
mod spdy;
mod upgrade;

use std::sync::Arc;

use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use decapod_client::clock::Clock;
use decapod_client::error::chain;
use decapod_client::task::Supervisor;

pub use channel::Farewell;
pub use forward::{Target, serve as forward};
pub use session::{Open, Request, serve};
pub use upgrade::{Upgrade, agree, protocol};

/// What streams need of the process that they run in.
#[derive(Clone, Debug)]
pub struct Host {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Who watches over connections.
    pub supervisor: Supervisor,
}

/// An error before a stream begins, as the API server passes it on: a code and one line of text.
#[derive(Clone, Debug)]
pub struct Refusal {
    status: StatusCode,
    message: String,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Refusal {
    /// An error with this code.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), header: None }
    }

    /// The HTTP code.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What is wrong, for the user.
    pub fn message(&self) -> &str {
        &self.message
    }

    fn with_header(self, name: HeaderName, value: HeaderValue) -> Self {
        Self { header: Some((name, value)), ..self }
    }
}

impl IntoResponse for Refusal {
    /// The text; the refusal itself is among the response's extensions, for whoever words it otherwise.
    fn into_response(self) -> Response {
        let mut response = (self.status, self.message.clone()).into_response();
        response.headers_mut().extend(self.header.clone());
        response.extensions_mut().insert(self);
        response
    }
}

impl From<decapod_runtime::Error> for Refusal {
    fn from(error: decapod_runtime::Error) -> Self {
        let status = match error {
            decapod_runtime::Error::NotFound { .. } => StatusCode::NOT_FOUND,
            decapod_runtime::Error::InvalidArgument { .. } => StatusCode::BAD_REQUEST,
            decapod_runtime::Error::WrongState { .. } => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, chain(&error))
    }
}
