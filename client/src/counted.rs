//! What a component's own requests cost: client-go's `rest_client_*`, by the transport that all requests go through.

use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Instant;

use futures::future::BoxFuture;
use http::{Request, Response};
use kube::client::Body;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use tower::Service;

use crate::metrics::{Times, register};

/// client-go's buckets: seconds until an answer begins, and bytes of bodies.
const SECONDS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
const BYTES: [f64; 11] =
    [64.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    code: String,
    method: &'static str,
    host: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    verb: &'static str,
    host: String,
}

struct Requests {
    total: Family<Answered, Counter>,
    times: Times<Asked>,
    sent: Times<Asked>,
    received: Times<Asked>,
}

static REQUESTS: LazyLock<Requests> = LazyLock::new(|| Requests {
    total: register(
        "rest_client_requests",
        "Number of HTTP requests, partitioned by status code, method, and host.",
        Family::default(),
    ),
    times: register(
        "rest_client_request_duration_seconds",
        "Request latency in seconds. Broken down by verb, and host.",
        Family::new_with_constructor(|| Histogram::new(SECONDS)),
    ),
    sent: register(
        "rest_client_request_size_bytes",
        "Request size in bytes. Broken down by verb and host.",
        Family::new_with_constructor(|| Histogram::new(BYTES)),
    ),
    received: register(
        "rest_client_response_size_bytes",
        "Response size in bytes. Broken down by verb and host.",
        Family::new_with_constructor(|| Histogram::new(BYTES)),
    ),
});

/// The methods that the API knows; there are no others to count.
fn method(method: &http::Method) -> &'static str {
    ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
        .into_iter()
        .find(|known| *known == method.as_str())
        .unwrap_or("other")
}

/// A transport whose requests are counted as sent to `host`.
#[derive(Clone, Debug)]
pub(crate) struct Counted<S> {
    service: S,
    host: Arc<str>,
}

impl<S> Counted<S> {
    pub(crate) fn new(service: S, host: &str) -> Self {
        Self { service, host: host.into() }
    }
}

impl<S, B> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    B: hyper::body::Body + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (method, host) = (method(request.method()), self.host.clone());
        let size = hyper::body::Body::size_hint(request.body()).exact();
        let began = Instant::now();
        let answer = self.service.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let took = began.elapsed();
            let code = answer
                .as_ref()
                .map_or_else(|_| "<error>".to_owned(), |answer| answer.status().as_str().to_owned());
            let requests = &*REQUESTS;
            let asked = Asked { verb: method, host: host.to_string() };
            requests.times.get_or_create(&asked).observe(took.as_secs_f64());
            if let Some(bytes) = size {
                requests.sent.get_or_create(&asked).observe(bytes as f64);
            }
            // A stream has no size that is known at its beginning.
            let received = answer.as_ref().ok().and_then(|answer| answer.body().size_hint().exact());
            if let Some(bytes) = received {
                requests.received.get_or_create(&asked).observe(bytes as f64);
            }
            let answered = Answered { code, method, host: asked.host };
            requests.total.get_or_create(&answered).inc();
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;

    #[tokio::test]
    async fn requests_are_counted_by_client_gos_names() {
        let service = tower::service_fn(|request: Request<Body>| async move {
            match request.uri().path() {
                "/away" => Err(std::io::Error::other("away")),
                _ => Ok(Response::builder().status(404).body(Full::new(bytes::Bytes::from("none"))).unwrap()),
            }
        });
        let mut counted = Counted::new(service, "tested:1");
        let request = |path: &str| Request::get(path).body(Body::empty()).unwrap();
        let answer = counted.call(request("/")).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "none");
        assert!(counted.call(request("/away")).await.is_err());
        let text = crate::metrics::text().unwrap();
        for line in [
            "rest_client_requests_total{code=\"404\",method=\"GET\",host=\"tested:1\"} 1",
            "rest_client_requests_total{code=\"<error>\",method=\"GET\",host=\"tested:1\"} 1",
            "rest_client_request_duration_seconds_count{verb=\"GET\",host=\"tested:1\"} 2",
            "rest_client_request_size_bytes_count{verb=\"GET\",host=\"tested:1\"} 2",
            "rest_client_response_size_bytes_sum{verb=\"GET\",host=\"tested:1\"} 4.0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
    }
}
