//! A transport between a component and the API server that loses requests, loses answers, invents
//! conflicts, ends watches and, on demand, dies in the middle of a write.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use decapod_apiserver::UserInfo;
use futures::future::BoxFuture;
use futures::{Stream, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use tokio::sync::Notify;
use tower::{BoxError, Service};

/// The body of an answer.
type Answer = UnsyncBoxBody<Bytes, BoxError>;

/// How often each fault happens, in per mille.
#[derive(Clone, Copy, Default)]
pub(crate) struct Rates {
    /// A request is answered with 500 and not carried out.
    pub(crate) refused: u64,
    /// A write is answered with a conflict and not carried out.
    pub(crate) conflict: u64,
    /// A write is carried out but its answer is lost.
    pub(crate) lost: u64,
    /// A watch ends after this frame.
    pub(crate) ended: u64,
    /// A frame of a watch is held back for some milliseconds.
    pub(crate) late: u64,
}

/// The faults of one component's life.
pub(crate) struct Faults {
    rates: Mutex<Rates>,
    random: AtomicU64,
    /// Writes until the component dies; negative: it does not.
    left: AtomicI64,
    dead: AtomicBool,
    died: Notify,
    /// Requests that the API server works on. They outlive whoever sent them.
    open: AtomicI64,
}

impl Faults {
    pub(crate) fn new(seed: u64, rates: Rates, writes_to_live: Option<i64>) -> Arc<Self> {
        Arc::new(Self {
            rates: Mutex::new(rates),
            random: AtomicU64::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            left: AtomicI64::new(writes_to_live.unwrap_or(-1)),
            dead: AtomicBool::new(false),
            died: Notify::new(),
            open: AtomicI64::new(0),
        })
    }

    /// From now on all goes well.
    pub(crate) fn stop(&self) {
        *self.rates.lock().unwrap() = Rates::default();
    }

    /// Resolves when the component has died.
    pub(crate) async fn death(&self) {
        loop {
            let died = self.died.notified();
            if self.dead.load(Ordering::SeqCst) {
                return;
            }
            died.await;
        }
    }

    /// Resolves when nothing that the component sent is under way any more.
    pub(crate) async fn quiet(&self) {
        while self.open.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Xorshift: good enough to spread faults, and a seed tells all of them.
    fn draw(&self) -> u64 {
        let step = |mut x: u64| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^ (x << 17)
        };
        let before = self.random.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |x| Some(step(x)));
        before.unwrap()
    }

    fn happens(&self, rate: fn(&Rates) -> u64) -> bool {
        let rate = rate(&self.rates.lock().unwrap());
        rate > 0 && self.draw() % 1000 < rate
    }

    /// Counts a write; whether it is the last one of this life.
    fn is_last(&self) -> bool {
        let before = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            Some(if left > 0 { left - 1 } else { left })
        });
        before == Ok(1)
    }

    fn die(&self) {
        self.dead.store(true, Ordering::SeqCst);
        self.died.notify_waiters();
    }
}

/// The API server as a component with these faults sees it.
#[derive(Clone)]
pub(crate) struct Faulty<S> {
    pub(crate) inner: S,
    pub(crate) faults: Arc<Faults>,
}

pub(crate) fn client(api: &decapod_apiserver::Handle, user: &str, faults: Arc<Faults>) -> kube::Client {
    kube::Client::new(Faulty { inner: api.service_as(UserInfo::new(user, &[])), faults }, "default")
}

impl<S, B> Service<Request<Body>> for Faulty<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError> + Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Answer>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Answer>, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (mut inner, faults) = (self.inner.clone(), self.faults.clone());
        Box::pin(async move {
            if faults.dead.load(Ordering::SeqCst) {
                return std::future::pending().await;
            }
            let path = request.uri().path().to_owned();
            // Events are told, not kept: their fate matters to nobody.
            let writes = request.method() != Method::GET && !path.contains("/events");
            let watches = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            if faults.happens(|rates| rates.refused) {
                return Ok(status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"));
            }
            let changes = matches!(*request.method(), Method::PUT | Method::PATCH);
            if changes && faults.happens(|rates| rates.conflict) {
                return Ok(status(StatusCode::CONFLICT, "Conflict"));
            }
            let last = writes && faults.is_last();
            if last && faults.draw() % 2 == 0 {
                faults.die();
                return std::future::pending().await;
            }
            faults.open.fetch_add(1, Ordering::SeqCst);
            let (call, counted) = (inner.call(request), faults.clone());
            let carried_out = tokio::spawn(async move {
                let answer = call.await.map_err(Into::into);
                counted.open.fetch_sub(1, Ordering::SeqCst);
                answer
            });
            let answer = carried_out.await??;
            if last {
                faults.die();
                return std::future::pending().await;
            }
            if writes && faults.happens(|rates| rates.lost) {
                return Err("the answer was lost".into());
            }
            let (parts, body) = answer.into_parts();
            let body = body.map_err(Into::into);
            let body = if watches {
                StreamBody::new(disturbed(body.into_data_stream(), faults)).boxed_unsync()
            } else {
                body.boxed_unsync()
            };
            Ok(Response::from_parts(parts, body))
        })
    }
}

/// The frames of a watch, some of them late, and not always up to its end.
fn disturbed(
    frames: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
    faults: Arc<Faults>,
) -> impl Stream<Item = Result<http_body::Frame<Bytes>, BoxError>> + Send {
    let frames = Box::pin(frames);
    futures::stream::unfold((frames, faults, false), |(mut frames, faults, over)| async move {
        if over {
            return None;
        }
        let frame = frames.next().await?;
        if faults.happens(|rates| rates.late) {
            tokio::time::sleep(Duration::from_millis(faults.draw() % 40)).await;
        }
        let over = faults.happens(|rates| rates.ended);
        Some((frame.map(http_body::Frame::data), (frames, faults, over)))
    })
}

fn status(code: StatusCode, reason: &str) -> Response<Answer> {
    let text = serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": code.as_u16(), "reason": reason, "message": "injected"});
    let body = Full::new(Bytes::from(text.to_string())).map_err(Into::into).boxed_unsync();
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}
