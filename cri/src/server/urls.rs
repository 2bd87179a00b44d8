//! Exec, attach and port forwarding are answered with a URL, by which the client then opens its streams.
//!
//! **Invariant**: whoever has such a URL has what it stands for. Hence it cannot be guessed, is good once, and not for
//! long; and those that nobody fetches are bounded in number.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::get;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use decapod_client::clock::Clock;
use decapod_proto::cri;
use futures::FutureExt;
use rand::TryRngCore;
use rand::rngs::OsRng;
use tonic::Status;

use super::Service;
use crate::stream::{self, Refusal, Request, Target, Upgrade};

/// How long a URL is good, as in other runtimes.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// URLs that wait to be fetched, as in other runtimes.
const WAITING: usize = 1000;
/// Random bytes of a token.
const TOKEN: usize = 32;

/// What a URL stands for.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    Exec(cri::ExecRequest),
    Attach(cri::AttachRequest),
    PortForward(cri::PortForwardRequest),
}

impl Wanted {
    /// The first part of its path.
    fn name(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }
}

/// The URLs that were given out and not fetched yet.
pub(super) struct Urls {
    address: SocketAddr,
    clock: Arc<dyn Clock>,
    /// By token, with the time at which it ends.
    waiting: Mutex<HashMap<String, (Duration, Wanted)>>,
}

impl Urls {
    pub(super) fn new(address: SocketAddr, clock: Arc<dyn Clock>) -> Self {
        Self { address, clock, waiting: Mutex::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, (Duration, Wanted)>> {
        // Held for single operations, none of which panics half way.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A URL for it.
    pub(super) fn offer(&self, wanted: Wanted) -> Result<String, Status> {
        let mut bytes = [0; TOKEN];
        OsRng.try_fill_bytes(&mut bytes).map_err(|e| Status::internal(format!("no random numbers: {e}")))?;
        let token = BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let now = self.clock.monotonic();
        let mut waiting = self.waiting();
        waiting.retain(|_, (end, _)| *end > now);
        if waiting.len() >= WAITING {
            return Err(Status::resource_exhausted("maximum number of in-flight requests exceeded"));
        }
        let url = format!("http://{}/{}/{token}", self.address, wanted.name());
        waiting.insert(token, (now + GOOD_FOR, wanted));
        Ok(url)
    }

    /// What a URL stands for, once.
    fn take(&self, kind: &str, token: &str) -> Option<Wanted> {
        let mut waiting = self.waiting();
        if waiting.get(token)?.1.name() != kind {
            return None;
        }
        let (end, wanted) = waiting.remove(token)?;
        (end > self.clock.monotonic()).then_some(wanted)
    }
}

/// Answers the URLs.
pub(super) fn router(service: Service) -> Router {
    Router::new().route("/{kind}/{token}", get(open).post(open)).with_state(service)
}

async fn open(
    State(service): State<Service>,
    Path((kind, token)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    upgrade: Result<Upgrade, Refusal>,
) -> Result<Response, Refusal> {
    let missing =
        || Refusal::new(StatusCode::NOT_FOUND, "this stream was opened already, or its time has run out");
    // A request that asks for no upgrade does not use the URL up.
    let upgrade = upgrade?;
    let wanted = service.urls.take(&kind, &token).ok_or_else(missing)?;
    let runtime = service.runtime.clone();
    match wanted {
        Wanted::Exec(call) => {
            let request = Request {
                command: call.cmd.clone(),
                stdin: call.stdin,
                stdout: call.stdout,
                stderr: call.stderr && !call.tty,
                tty: call.tty,
                detach: false,
            };
            let open = async move { runtime.exec(&call).await };
            stream::serve(upgrade, &headers, open.boxed(), &request, &service.host)
        }
        Wanted::Attach(call) => {
            let request = Request {
                stdin: call.stdin,
                stdout: call.stdout,
                stderr: call.stderr && !call.tty,
                tty: call.tty,
                ..Request::default()
            };
            let open = async move { runtime.attach(&call).await };
            stream::serve(upgrade, &headers, open.boxed(), &request, &service.host)
        }
        Wanted::PortForward(call) => {
            let (sandbox, host) = (call.pod_sandbox_id, service.host.clone());
            let target = Target { runtime, host, name: sandbox.clone(), sandbox, uid: String::new() };
            // Over channels the ports are those of the call, if the client does not name any.
            let ports: Vec<String> = call.port.iter().map(ToString::to_string).collect();
            let query = query.or_else(|| Some(format!("port={}", ports.join(","))));
            stream::forward(target, query.as_deref(), &headers, upgrade)
        }
    }
}

#[cfg(test)]
mod tests {
    use decapod_client::clock::ManualClock;

    use super::*;

    fn urls() -> (Urls, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::default());
        (Urls::new(([127, 0, 0, 1], 5).into(), clock.clone()), clock)
    }

    fn offer(urls: &Urls) -> String {
        let url = urls.offer(Wanted::Exec(cri::ExecRequest::default())).unwrap();
        url.strip_prefix("http://127.0.0.1:5/exec/").unwrap().to_owned()
    }

    #[test]
    fn a_url_is_good_once_and_for_what_it_was_given() {
        let (urls, _) = urls();
        let token = offer(&urls);
        assert_eq!(token.len(), 43);
        assert!(urls.take("attach", &token).is_none());
        assert!(urls.take("exec", "other").is_none());
        assert!(matches!(urls.take("exec", &token), Some(Wanted::Exec(_))));
        assert!(urls.take("exec", &token).is_none());
        assert_ne!(offer(&urls), offer(&urls));
    }

    #[test]
    fn urls_grow_old_and_do_not_pile_up() {
        let (urls, clock) = urls();
        let token = offer(&urls);
        for _ in 1..WAITING {
            offer(&urls);
        }
        let refused = urls.offer(Wanted::Attach(Default::default())).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        clock.advance(GOOD_FOR);
        assert!(urls.take("exec", &token).is_none(), "too late");
        offer(&urls);
    }
}
