//! What every request passes on its way to its route: identification, authentication,
//! authorization, limits, and the recording of what came of it.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use decapod_api::status::Error;
use futures::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;

use super::{Core, Peer, admit, health, limits, share};
use crate::audit::{self, Exchange};
use crate::auth::{Decision, UserInfo, forbidden, impersonation};
use crate::http::body::{self, BoxError};
use crate::http::{Body, RequestInfo, reply};
use crate::metrics::{Labels, Route};
use crate::{discovery, endpoint, nodeproxy, openapi, pki};

/// The router with its filters.
#[derive(Clone)]
pub(crate) struct Service(pub(crate) Arc<Core>);

impl Service {
    /// Answers a request; never fails, whatever happens inside.
    pub(crate) async fn handle<B>(&self, request: Request<B>, peer: Peer) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let mut request = request.map(body::erase);
        if let Some(address) = peer.address {
            request.extensions_mut().insert(nodeproxy::Client(address.ip()));
        }
        let started = Instant::now();
        let method = request.method().clone();
        let info = RequestInfo::parse(&method, request.uri().path(), request.uri().query());
        let audit_id = audit_id(&request);
        let exchange =
            self.0.audit.clone().map(|audit| {
                Arc::new(Exchange::new(audit, &info.attributes, &request, peer.address, &audit_id))
            });
        let apply = request.headers().get(http::header::CONTENT_TYPE);
        let apply = apply.is_some_and(|kind| kind.as_bytes().starts_with(b"application/apply-patch"));
        let route = Route::of(&info, apply);
        let answer = AssertUnwindSafe(self.answer(&info, request, &peer)).catch_unwind();
        let answer = audit::within(exchange.clone(), answer).await;
        let mut response = answer.unwrap_or_else(|panic| {
            tracing::error!(
                path = info.attributes.path,
                panic = words(&*panic),
                "a request handler panicked"
            );
            audit::panicked(exchange.as_deref(), words(&*panic));
            reply::error(&Error::Internal("the request could not be handled".to_owned()))
        });
        response.headers_mut().insert(HeaderName::from_static("audit-id"), audit_id);
        if method == Method::HEAD {
            *response.body_mut() = body::empty();
        }
        self.record(&info, route.clone(), &response, started.elapsed());
        let long = long_running(&info);
        if long && response.status().is_success() {
            let slot = self.0.metrics.long_running(&route);
            let counted = move |frame| {
                // Counted until the last of the answer is sent.
                let _slot = &slot;
                frame
            };
            response = response.map(|body| body::erase(body.map_frame(counted)));
        }
        audit::finish(exchange, response, long).await
    }

    async fn answer(&self, info: &RequestInfo, request: Request<Body>, peer: &Peer) -> Response<Body> {
        let core = &*self.0;
        if health::is_path(&info.attributes.path) && matches!(*request.method(), Method::GET | Method::HEAD) {
            return core.health.answer(&core.registry, &info.attributes.path, &info.query).await;
        }
        let long = long_running(info);
        let timeout = match limits::timeout(&info.query, core.limits.timeout) {
            Err(error) if !long => return reply::error(&error),
            // What a watch or stream is asked to take is another thing.
            other => other.unwrap_or(core.limits.timeout),
        };
        let user = match self.authenticate(info, request.headers(), peer).await {
            Ok(user) => user,
            Err(error) => return reply::error(&error),
        };
        let deadline = tokio::time::Instant::now() + timeout;
        let admission = admit::admit(core, info, &user, long, timeout).await;
        let mut response = match &admission.place {
            Err(error) => reply::error(error),
            // Its place is held until it is answered; for a watch, until its events begin.
            Ok(_place) => {
                let work = self.authorized(info, request, &user);
                let result = if long {
                    work.await
                } else {
                    tokio::time::timeout_at(deadline, work).await.unwrap_or_else(|_| {
                        Err(Error::Timeout("request did not complete within the allotted timeout".to_owned()))
                    })
                };
                result.unwrap_or_else(|error| reply::error(&error))
            }
        };
        if let Some(schema) = &admission.schema {
            schema.mark(response.headers_mut());
        }
        response
    }

    async fn authenticate(
        &self,
        info: &RequestInfo,
        headers: &HeaderMap,
        peer: &Peer,
    ) -> Result<UserInfo, Error> {
        let certificate = peer.user.as_deref();
        if let (true, Some(user)) = (peer.trusted, certificate) {
            audit::authenticated(user);
            return Ok(user.clone());
        }
        let core = &*self.0;
        let (started, now) = (Instant::now(), core.clock.now());
        if peer.ends.is_some_and(|ends| ends < now) {
            return Err(Error::Unauthorized);
        }
        let user = core.authenticator.authenticate(headers, certificate, now).await;
        core.metrics.authentication(user.as_ref().map(|user| user.username.as_str()), started.elapsed());
        let user = user.ok_or(Error::Unauthorized)?;
        audit::authenticated(&user);
        impersonation::resolve(user, headers, &info.attributes, &*core.authorizer).await
    }

    async fn authorized(
        &self,
        info: &RequestInfo,
        request: Request<Body>,
        user: &UserInfo,
    ) -> Result<Response<Body>, Error> {
        let core = &*self.0;
        let a = &info.attributes;
        let started = Instant::now();
        let decision = core.authorizer.authorize(user, a).await;
        core.metrics.authorization(decision.allowed(), started.elapsed());
        audit::authorized(&decision);
        if let Decision::NoOpinion(reason) = decision {
            return Err(forbidden(user, a, &reason));
        }
        if a.is_resource() {
            return endpoint::resource(core, info, user, request).await;
        }
        self.path(info, user, request.method(), request.headers()).await
    }

    /// What is served beside resources.
    async fn path(
        &self,
        info: &RequestInfo,
        user: &UserInfo,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, Error> {
        let path = info.attributes.path.as_str();
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Err(Error::MethodNotSupported {
                resource: path.to_owned(),
                verb: info.attributes.verb.clone(),
            });
        }
        if let Some(response) = discovery::answer(path, headers) {
            return Ok(response);
        }
        if let Some(response) = openapi::answer(path, &info.query, headers).await {
            return Ok(response);
        }
        match path.trim_end_matches('/') {
            "" => Ok(reply::json(StatusCode::OK, &serde_json::json!({"paths": paths()}))),
            "/version" => Ok(reply::json(StatusCode::OK, &crate::version::info(&self.0.build))),
            "/metrics" => Ok(self.0.metrics.answer(&*self.0.registry.store).await),
            "/metrics/resources" => crate::metrics::pods::answer(&self.0.registry).await,
            "/openid/v1/jwks" => Ok(discovered("application/jwk-set+json", &self.0.tokens.keys().jwks())),
            "/.well-known/openid-configuration" => {
                let tokens = &self.0.tokens;
                let keys = tokens.options().jwks_uri.as_deref().unwrap_or_default();
                Ok(discovered("application/json", &crate::version::openid(tokens.issuer(), keys)))
            }
            pki::share::PATH => share::answer(self.0.shared.as_ref(), user, headers),
            _ => Err(Error::UnknownPath),
        }
    }

    fn record(&self, info: &RequestInfo, route: Route, response: &Response<Body>, took: Duration) {
        let a = &info.attributes;
        let code = response.status().as_u16();
        let size = http_body::Body::size_hint(response.body()).exact();
        self.0.metrics.request(Labels::new(route, code), took, size);
        let seconds = took.as_secs_f64();
        if code >= 500 {
            tracing::warn!(verb = a.verb, path = a.path, code, seconds, "request failed");
        } else {
            tracing::debug!(verb = a.verb, path = a.path, code, seconds, "request");
        }
    }
}

/// How others verify our tokens: they may keep it for an hour.
fn discovered(content_type: &str, document: &serde_json::Value) -> Response<Body> {
    let mut response = reply::with_type(StatusCode::OK, content_type, document.to_string());
    let cached = HeaderValue::from_static("public, max-age=3600");
    response.headers_mut().insert(http::header::CACHE_CONTROL, cached);
    response
}

/// Every path beside resources that is served to authenticated users, as far as a right to it is enough (for
/// [`pki::share::PATH`] it is not).
pub(crate) fn paths() -> Vec<String> {
    let mut paths = discovery::paths();
    let more = [
        "/.well-known/openid-configuration",
        "/healthz",
        "/livez",
        "/metrics",
        "/metrics/resources",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ];
    paths.extend(more.into_iter().map(str::to_owned));
    paths.sort();
    paths
}

fn long_running(info: &RequestInfo) -> bool {
    let a = &info.attributes;
    a.verb == "watch" || matches!(a.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy")
}

fn audit_id(request: &Request<Body>) -> HeaderValue {
    if let Some(given) = request.headers().get("audit-id").filter(|v| v.len() <= 64) {
        return given.clone();
    }
    HeaderValue::from_str(&random_uuid().to_string()).expect("a uuid is ASCII")
}

/// A random UUID, by the generator of this thread: asking the system for each one is a call or two more.
pub(crate) fn random_uuid() -> uuid::Uuid {
    uuid::Builder::from_random_bytes(rand::random()).into_uuid()
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
