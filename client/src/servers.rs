//! One client for all API servers of a cluster: requests go to one of them for as long as it answers, and to another
//! one from then on.
//!
//! What always holds: a server is left only for one that says that it is ready. With a single server, or while none
//! answers, all is as with a plain client: the caller gets the error and tries again.
//!
//! A server that refuses connections is left by the request that finds out, and that request is sent to the next: it was
//! not sent yet. One that falls silent is found by [`Servers::keep`], which ends what is open there: watches are taken up
//! again elsewhere, where they were, and not when TCP gives up.

use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::{Request, Response, Uri};
use hyper::body::{Body as _, Frame, SizeHint};
use kube::client::Body;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tower::BoxError;

use crate::clock::{self, Clock};
use crate::error::chain;

/// After so much silence a server is asked whether it is ready. A node renews its Lease every 2 s: as long as that is
/// answered, nobody asks.
const SILENCE: Duration = Duration::from_secs(3);
/// A server that does not say so within this time is not ready. Together they leave a node time to show that it lives
/// before it counts as lost (8 s).
const ANSWER: Duration = Duration::from_secs(3);
/// When no other server was ready, the others are not asked again for so long: many requests may fail at once.
const PAUSE: Duration = Duration::from_secs(1);
/// How many servers the cluster may name: each is asked at once when one is looked for. An etcd serves three or five.
const MOST: usize = 32;

/// Makes the client of one server.
pub type Connect = Arc<dyn Fn(&Uri) -> kube::Result<kube::Client> + Send + Sync>;

/// The request was open at a server that is silent.
#[derive(Debug, thiserror::Error)]
#[error("the API server {0} does not answer any more, and was left for another one")]
struct Left(Uri);

/// The API servers of a cluster. Cheap to clone; clones share what they know.
#[derive(Clone)]
pub struct Servers(Arc<Shared>);

struct Shared {
    clock: Arc<dyn Clock>,
    state: RwLock<State>,
    /// When the server that requests go to last answered, in milliseconds of the monotonic clock.
    heard: AtomicU64,
    /// Held by who looks for another server; when nobody was found the last time.
    search: tokio::sync::Mutex<Option<Duration>>,
}

struct State {
    connect: Connect,
    /// Named by the user: they stay.
    named: Vec<Uri>,
    /// Named by the cluster itself.
    told: Vec<Uri>,
    current: Member,
}

/// The server that requests go to.
#[derive(Clone)]
struct Member {
    url: Uri,
    client: kube::Client,
    /// Ends what is open there.
    left: CancellationToken,
    /// Tells it from the same server at another time.
    turn: u64,
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.read();
        f.debug_struct("Servers").field("current", &state.current.url).field("named", &state.named).finish()
    }
}

impl Servers {
    /// Requests go to the first of `named` (or of `told`, those that the cluster named at another time), as long as it
    /// answers. `None` if nobody is named.
    ///
    /// # Errors
    /// That the first client cannot be made.
    pub fn new(
        named: Vec<Uri>,
        told: Vec<Uri>,
        connect: Connect,
        clock: Arc<dyn Clock>,
    ) -> kube::Result<Option<Self>> {
        let Some(first) = named.iter().chain(&told).next().cloned() else { return Ok(None) };
        let client = connect(&first)?;
        let current = Member { url: first, client, left: CancellationToken::new(), turn: 0 };
        let heard = AtomicU64::new(millis(clock.monotonic()));
        let state = RwLock::new(State { connect, named, told, current });
        Ok(Some(Self(Arc::new(Shared { clock, state, heard, search: tokio::sync::Mutex::new(None) }))))
    }

    /// A client that sends each request to the server whose turn it is.
    pub fn client(&self) -> kube::Client {
        let servers = self.clone();
        let service = tower::service_fn(move |request| servers.clone().send(request));
        kube::Client::new(service, "default")
    }

    /// From now on clients are made by `connect`: with a new certificate, say. What is open stays open.
    ///
    /// # Errors
    /// That the client of the current server cannot be made so; then nothing is changed.
    pub fn reconnect(&self, connect: Connect) -> kube::Result<()> {
        let mut state = self.write();
        state.current.client = connect(&state.current.url)?;
        state.connect = connect;
        Ok(())
    }

    /// The cluster says that these are its servers. Those that the user named count beside them.
    pub fn learn(&self, mut told: Vec<Uri>) {
        told.truncate(MOST);
        self.write().told = told;
    }

    /// Where requests go at the moment.
    pub fn current(&self) -> Uri {
        self.read().current.url.clone()
    }

    /// Leaves a server that has fallen silent or says that it is not ready, as soon as another one is.
    pub async fn keep(self) {
        let clock = self.0.clock.clone();
        loop {
            clock.sleep(SILENCE).await;
            let member = self.read().current.clone();
            let silent = millis(clock.monotonic()).saturating_sub(self.0.heard.load(Ordering::Relaxed))
                >= millis(SILENCE);
            if !silent || self.others(&member.url).is_empty() {
                continue;
            }
            match self.is_ready(&member.client).await {
                Ok(()) => self.heard(),
                Err(why) => {
                    let found = self.elsewhere(&member).await.is_some();
                    tracing::debug!(server = %member.url, why, found, "an API server is silent");
                }
            }
        }
    }

    async fn send(self, request: Request<Body>) -> Result<Response<Until>, BoxError> {
        let (parts, body) = request.into_parts();
        // It may have to be sent again; bodies of requests are whole objects in memory.
        let body = body.collect_bytes().await?;
        let mut member = self.read().current.clone();
        let mut moved = false;
        loop {
            let request = Request::from_parts(parts.clone(), Body::from(body.clone()));
            let answer = tokio::select! {
                biased;
                answer = member.client.send(request) => answer,
                () = member.left.cancelled() => return Err(Left(member.url).into()),
            };
            match answer {
                Ok(response) => {
                    if !response.status().is_server_error() {
                        self.heard();
                    }
                    return Ok(response.map(|body| Until::new(body, &member)));
                }
                Err(error) if !moved && unsent(&error) => match self.elsewhere(&member).await {
                    Some(next) => (member, moved) = (next, true),
                    None => return Err(error.into()),
                },
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The server that takes the place of `failed`; `None` if no other one is ready.
    async fn elsewhere(&self, failed: &Member) -> Option<Member> {
        let mut nobody = self.0.search.lock().await;
        let current = self.read().current.clone();
        if current.turn != failed.turn {
            return Some(current);
        }
        let clock = &*self.0.clock;
        if nobody.is_some_and(|at| clock.monotonic().saturating_sub(at) < PAUSE) {
            return None;
        }
        let mut asked: FuturesUnordered<_> =
            self.others(&failed.url).into_iter().map(|url| self.ready(url)).collect();
        while let Some(found) = asked.next().await {
            if let Some((url, client)) = found {
                *nobody = None;
                return Some(self.move_to(failed, url, client));
            }
        }
        *nobody = Some(clock.monotonic());
        None
    }

    fn move_to(&self, failed: &Member, url: Uri, client: kube::Client) -> Member {
        let next = Member { url, client, left: CancellationToken::new(), turn: failed.turn + 1 };
        self.write().current = next.clone();
        self.heard();
        failed.left.cancel();
        tracing::warn!(left = %failed.url, now = %next.url, "an API server does not answer: another one does");
        next
    }

    /// A server and its client, if it is ready.
    async fn ready(&self, url: Uri) -> Option<(Uri, kube::Client)> {
        let connect = self.read().connect.clone();
        let client = match connect(&url) {
            Ok(client) => client,
            Err(error) => {
                tracing::warn!(server = %url, error = chain(&error), "no client can be made for an API server");
                return None;
            }
        };
        match self.is_ready(&client).await {
            Ok(()) => Some((url, client)),
            Err(why) => {
                tracing::debug!(server = %url, why, "an API server is not ready");
                None
            }
        }
    }

    async fn is_ready(&self, client: &kube::Client) -> Result<(), String> {
        let request = Request::get("/readyz").body(Vec::new()).map_err(|error| error.to_string())?;
        match clock::timeout(&*self.0.clock, ANSWER, client.request_text(request)).await {
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(chain(&error)),
            None => Err(format!("no answer in {ANSWER:?}")),
        }
    }

    /// All servers but this one, each once.
    fn others(&self, url: &Uri) -> Vec<Uri> {
        let state = self.read();
        let mut others: Vec<Uri> = Vec::new();
        for other in state.named.iter().chain(&state.told) {
            if other != url && !others.contains(other) {
                others.push(other.clone());
            }
        }
        others
    }

    fn heard(&self) {
        self.0.heard.store(millis(self.0.clock.monotonic()), Ordering::Relaxed);
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Whether no connection was made for a request: it has not been seen by anybody.
fn unsent(error: &kube::Error) -> bool {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|error| error.is_connect()) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The body of an answer, which breaks off when its server is left.
struct Until {
    body: Body,
    url: Uri,
    left: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Until {
    fn new(body: Body, member: &Member) -> Self {
        // What is whole already cannot break off.
        let whole = body.size_hint().exact().is_some();
        let left = (!whole).then(|| Box::pin(member.left.clone().cancelled_owned()));
        Self { body, url: member.url.clone(), left }
    }
}

impl hyper::body::Body for Until {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // What has come counts, whatever became of the server.
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)));
        }
        let left = self.left.as_mut().is_some_and(|left| left.as_mut().poll(cx).is_ready());
        if left {
            self.left = None;
            return Poll::Ready(Some(Err(Left(self.url.clone()).into())));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
