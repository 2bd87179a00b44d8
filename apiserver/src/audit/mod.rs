//! The audit log: who did what, recorded as a policy says.
//!
//! Handlers note what they know through the functions here, which find the request that their task
//! answers; without a policy, and outside of a request, they do nothing. **Invariant**: no request waits
//! for the log.

mod counts;
mod exchange;
mod log;
mod policy;
mod webhook;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Response};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{Decision, UserInfo};
use crate::clock::Clock;
use crate::http::Body;
pub(crate) use counts::Counts;
pub(crate) use exchange::Exchange;
use log::Log;
pub use log::LogOptions;
use policy::Policy;
pub use policy::PolicyError;
use webhook::Webhook;
pub use webhook::{WebhookError, WebhookOptions};

tokio::task_local! {
    static CURRENT: Option<Arc<Exchange>>;
}

/// What is recorded, and where.
#[derive(Clone, Debug)]
pub struct AuditOptions {
    /// The file with the policy (`audit.k8s.io/v1`).
    pub policy_file: PathBuf,
    /// The file that events go to, if any.
    pub log: Option<LogOptions>,
    /// The server elsewhere that events go to, if any.
    pub webhook: Option<WebhookOptions>,
}

/// Why there is no audit log.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The policy is of no use.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The webhook cannot be used.
    #[error("cannot use the audit webhook")]
    Webhook(#[from] WebhookError),
    /// The log cannot be written.
    #[error("cannot write the audit log {path}")]
    Log {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// The audit log of a server.
pub(crate) struct Audit {
    policy: Policy,
    log: Option<Log>,
    webhook: Option<Webhook>,
    counts: Counts,
    clock: Arc<dyn Clock>,
}

impl Audit {
    /// Starts to record. What is sent elsewhere is sent by one of `tasks`, until `stop`.
    pub(crate) fn open(
        options: &AuditOptions,
        counts: Counts,
        clock: Arc<dyn Clock>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Arc<Self>, AuditError> {
        let policy = read(&options.policy_file)?;
        let log = options.log.clone().map(|log| {
            let failed = |source| AuditError::Log { path: log.path.clone(), source };
            Log::open(log.clone(), counts.clone(), clock.clone()).map_err(failed)
        });
        let mut webhook = None;
        if let Some(options) = &options.webhook {
            let (put, worker) = webhook::open(options, &counts)?;
            tasks.spawn(worker.run(stop.clone()));
            webhook = Some(put);
        }
        Ok(Arc::new(Self { policy, log: log.transpose()?, webhook, counts, clock }))
    }

    /// Records an event, a JSON object.
    fn put(&self, event: String) {
        self.counts.event();
        match (&self.log, &self.webhook) {
            (Some(log), Some(webhook)) => {
                log.put(event.clone());
                webhook.put(event);
            }
            (Some(log), None) => log.put(event),
            (None, Some(webhook)) => webhook.put(event),
            (None, None) => {}
        }
    }
}

fn read(file: &Path) -> Result<Policy, PolicyError> {
    Policy::parse(&std::fs::read_to_string(file)?)
}

fn with(note: impl FnOnce(&Exchange)) {
    // Outside of a request, or without a policy, there is nobody to tell.
    let _ = CURRENT.try_with(|current| {
        if let Some(exchange) = current {
            note(exchange);
        }
    });
}

/// Notes something about the request that this task answers. Of several notes under one key the first
/// counts. Keys are qualified: `pod-security.kubernetes.io/enforce-policy`.
pub(crate) fn annotate(key: &str, value: impl Into<String>) {
    with(|exchange| exchange.annotate(key, value.into()));
}

/// Who asks is known.
pub(crate) fn authenticated(user: &UserInfo) {
    with(|exchange| exchange.authenticated(user));
}

/// As whom the request is made, where that is another, and by which constrained right.
pub(crate) fn impersonated(user: &UserInfo, constraint: Option<&'static str>) {
    with(|exchange| exchange.impersonated(user, constraint));
}

/// What the authorizer said.
pub(crate) fn authorized(decision: &Decision) {
    annotate("authorization.k8s.io/decision", if decision.allowed() { "allow" } else { "forbid" });
    annotate("authorization.k8s.io/reason", decision.reason());
}

/// The request's body was read.
pub(crate) fn request(headers: &HeaderMap, bytes: &Bytes) {
    let content_type = headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    with(|exchange| exchange.request(content_type.unwrap_or_default(), bytes));
}

/// Answers a request, with what its handlers note going to `exchange`.
pub(crate) async fn within<T>(exchange: Option<Arc<Exchange>>, answer: impl Future<Output = T>) -> T {
    match exchange {
        None => answer.await,
        exchange => CURRENT.scope(exchange, answer).await,
    }
}

/// A handler panicked.
pub(crate) fn panicked(exchange: Option<&Exchange>, what: &str) {
    if let Some(exchange) = exchange {
        exchange.panicked(what);
    }
}

/// Records the response; `long` ones are recorded also when they end.
pub(crate) async fn finish(
    exchange: Option<Arc<Exchange>>,
    response: Response<Body>,
    long: bool,
) -> Response<Body> {
    match exchange {
        None => response,
        Some(exchange) => exchange.finish(response, long).await,
    }
}
