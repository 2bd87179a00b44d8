//! One request: to an endpoint and back.
//!
//! What always holds: a request that an endpoint may have seen is not sent again. Another endpoint is tried only
//! where a connection was refused, or had been closed before anything of the request was sent.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use decapod_client::clock::timeout;
use decapod_client::error::chain;
use http::header::{CONNECTION, HOST, HeaderName, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper_util::rt::TokioIo;

use super::pool::{Connection, Pool};
use super::upstream::Upstream;
use super::{Body, Shared};

/// How long an endpoint may take until its answer begins: nginx' default, which people know.
const ANSWER: Duration = Duration::from_secs(60);
/// The most endpoints that are tried for one request.
const TRIES: usize = 4;
/// What belongs to one connection and is not handed on (RFC 9110, 7.6.1).
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "proxy-connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
];

/// From where a request came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    pub(super) address: SocketAddr,
    pub(super) tls: bool,
    /// The port that it spoke to.
    pub(super) port: u16,
}

/// Answers a request: by an endpoint, or by the reason why none does.
pub(super) async fn answer(shared: &Shared, client: Client, request: Request<Incoming>) -> Response<Body> {
    let host = host_of(&request);
    let path = request.uri().path().to_owned();
    let current = shared.current();
    let Some(backend) = current.routes.find(without_port(&host), &path) else {
        return refusal(
            StatusCode::NOT_FOUND,
            &format!("no Ingress has a rule for host \"{host}\" and path {path}"),
        );
    };
    let targets = match current.upstreams.get(backend) {
        Some(Upstream::At(targets)) => targets.turn().take(TRIES).map(str::to_owned).collect::<Vec<_>>(),
        Some(Upstream::Nowhere(why)) => return refusal(StatusCode::SERVICE_UNAVAILABLE, why),
        None => {
            return refusal(
                StatusCode::SERVICE_UNAVAILABLE,
                "the rule is new: its Service is being looked up",
            );
        }
    };
    drop(current);
    match forward(shared, client, &host, &targets, request).await {
        Ok(response) => response,
        Err(Broken { status, why }) => {
            tracing::debug!(host, path, ?targets, why, "a request failed");
            refusal(status, &why)
        }
    }
}

/// Why there is no answer of an endpoint.
struct Broken {
    status: StatusCode,
    why: String,
}

async fn forward(
    shared: &Shared,
    client: Client,
    host: &str,
    targets: &[String],
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Broken> {
    let upgrade = upgrade_of(request.headers());
    let client_side = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let request = outward(request, client, host, upgrade.as_ref());
    let (mut response, connection) = send(&shared.pool, targets, request).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client_side) = client_side
    {
        let server_side = hyper::upgrade::on(&mut response);
        let headers = response.headers().clone();
        shared.supervisor.spawn_until_shutdown("ingress-upgraded", async move {
            // The endpoint's connection must live as long as what goes through it.
            let _connection = connection;
            let (client, server) = match tokio::try_join!(client_side, server_side) {
                Ok(both) => both,
                Err(error) => return tracing::debug!(error = chain(&error), "an upgrade was not completed"),
            };
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut server).await {
                tracing::debug!(%error, "an upgraded connection broke");
            }
        });
        let mut switching = Response::new(empty());
        *switching.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *switching.headers_mut() = headers;
        return Ok(switching);
    }
    let (mut parts, body) = response.into_parts();
    hop_by_hop_remove(&mut parts.headers);
    parts.version = Version::HTTP_11;
    let body = Returning { body, connection: Some(connection), pool: shared.pool.clone() };
    Ok(Response::from_parts(parts, BodyExt::boxed_unsync(body)))
}

/// Sends a request to the first of the targets that takes it.
async fn send(
    pool: &Pool,
    targets: &[String],
    mut request: Request<Body>,
) -> Result<(Response<Incoming>, Connection), Broken> {
    let mut last = String::new();
    for target in targets {
        let mut connection = match pool.get(target).await {
            Ok(connection) => connection,
            Err(error) => {
                last = format!("cannot connect to {target}: {error}");
                continue;
            }
        };
        // One that waited may be closed just now: then a new one to the same endpoint is tried.
        loop {
            let sent = timeout(pool.clock(), ANSWER, connection.sender.try_send_request(request)).await;
            let Some(sent) = sent else {
                let why = format!("{target} did not answer within {} s", ANSWER.as_secs());
                return Err(Broken { status: StatusCode::GATEWAY_TIMEOUT, why });
            };
            let mut failed = match sent {
                Ok(response) => return Ok((response, connection)),
                Err(failed) => failed,
            };
            let Some(unsent) = failed.take_message() else {
                let why = format!("{target} broke off: {}", chain(failed.error()));
                return Err(Broken { status: StatusCode::BAD_GATEWAY, why });
            };
            request = unsent;
            last = format!("{target} closed the connection");
            if !connection.used {
                break;
            }
            connection = match pool.connect(target).await {
                Ok(connection) => connection,
                Err(error) => {
                    last = format!("cannot connect to {target}: {error}");
                    break;
                }
            };
        }
    }
    Err(Broken { status: StatusCode::BAD_GATEWAY, why: last })
}

/// The request as the endpoint gets it.
fn outward(
    request: Request<Incoming>,
    client: Client,
    host: &str,
    upgrade: Option<&HeaderValue>,
) -> Request<Body> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().cloned();
    parts.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    parts.version = Version::HTTP_11;
    hop_by_hop_remove(&mut parts.headers);
    parts.headers.remove(UPGRADE);
    if let Some(protocol) = upgrade {
        parts.headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        parts.headers.insert(UPGRADE, protocol.clone());
    }
    let mut set = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            parts.headers.insert(HeaderName::from_static(name), value);
        }
    };
    // What a client says of itself is not believed: these are for the servers behind.
    let address = client.address.ip().to_canonical().to_string();
    set("host", host);
    set("x-forwarded-for", &address);
    set("x-real-ip", &address);
    set("x-forwarded-proto", if client.tls { "https" } else { "http" });
    set("x-forwarded-host", host);
    set("x-forwarded-port", &client.port.to_string());
    Request::from_parts(parts, BodyExt::boxed_unsync(body))
}

/// The protocol that a client wants to go on with.
fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut connection = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let wanted =
        connection.any(|value| value.split(',').any(|word| word.trim().eq_ignore_ascii_case("upgrade")));
    headers.get(UPGRADE).filter(|_| wanted).cloned()
}

fn hop_by_hop_remove(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    named.iter().for_each(|name| _ = headers.remove(name));
    HOP_BY_HOP.iter().for_each(|name| _ = headers.remove(*name));
}

/// The host that is asked for, with its port if the client named one.
fn host_of(request: &Request<Incoming>) -> String {
    let header = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let authority = request.uri().authority().map(|authority| authority.as_str());
    authority.or(header).unwrap_or_default().to_owned()
}

fn without_port(host: &str) -> &str {
    let port = |(_, port): &(&str, &str)| port.bytes().all(|byte| byte.is_ascii_digit());
    host.rsplit_once(':').filter(port).map_or(host, |(name, _)| name)
}

fn refusal(status: StatusCode, why: &str) -> Response<Body> {
    let reason = status.canonical_reason().unwrap_or_default();
    let text = format!("{} {reason}: {why}\n", status.as_u16());
    let mut response = Response::new(BodyExt::boxed_unsync(Full::from(text).map_err(|never| match never {})));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, plain);
    response
}

fn empty() -> Body {
    BodyExt::boxed_unsync(Full::new(Bytes::new()).map_err(|never| match never {}))
}

/// A body that gives its connection back at its end.
struct Returning {
    body: Incoming,
    connection: Option<Connection>,
    pool: Pool,
}

impl Returning {
    fn end(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.put(connection);
        }
    }
}

impl HttpBody for Returning {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(None) => self.end(),
            Poll::Ready(Some(Ok(_))) if self.body.is_end_stream() => self.end(),
            Poll::Ready(Some(Err(_))) => self.connection = None,
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Returning {
    fn drop(&mut self) {
        // A server that is not asked for the end (it was known to be empty) never hears it.
        if self.body.is_end_stream() {
            self.end();
        }
    }
}
