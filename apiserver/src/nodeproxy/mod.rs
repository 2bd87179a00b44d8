//! Connections that end at a kubelet: logs, exec, attach, port forwarding, and its own paths; and
//! those that end at a pod, its own or one of a Service's.
//!
//! The API server authorizes the request, finds the pod's node, and from then on only carries
//! bytes: what the kubelet answers, and upgraded connections (WebSocket, SPDY) as they are.

mod dial;
mod fetch;
mod headers;
pub(crate) mod insecure;
mod log;
mod rewrite;
mod service;
mod target;

use decapod_api::status::Error;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName,
    HeaderValue, LOCATION, UPGRADE,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use crate::auth::{Attributes, Decision, forbidden_message};
use crate::endpoint;
use crate::http::Body;
use crate::http::body;
pub(crate) use dial::Kubelets;
pub(crate) use fetch::fetch;
use rewrite::Place;
use target::{Backend, Found, Target};

/// What an upgraded connection carries at once, in each direction: what clients and kubelets send at once.
const CHUNK: usize = 32 * 1024;
/// What a kubelet says is wrong is one line.
const REFUSAL_MAX: usize = 64 * 1024;
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// The address that a request comes from, among its extensions; a client in process has none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client(pub(crate) std::net::IpAddr);

/// Carries a request to the kubelet or pod that it is for, and the answer back.
pub(crate) async fn connect(
    request: &endpoint::Request<'_>,
    mut incoming: Request<Body>,
    headers: &HeaderMap,
) -> Result<Response<Body>, Error> {
    may_create(request).await?;
    let target = match target::find(request, incoming.uri()).await? {
        Found::At(target) => target,
        Found::Nothing => return Ok(Response::new(body::empty())),
    };
    let upgrade = headers.get(UPGRADE).cloned();
    let proxied = request.info.attributes.subresource == "proxy";
    let bare = target.path.is_empty() || target.path.starts_with('?');
    if bare && upgrade.is_none() && matches!(*incoming.method(), Method::GET | Method::HEAD) {
        return redirect(&incoming);
    }
    let place = place(&incoming, headers, &target);
    let client = upgrade.is_some().then(|| hyper::upgrade::on(&mut incoming));
    let outgoing = outgoing(&target, incoming, headers, upgrade.as_ref(), &place)?;
    let method = outgoing.method().clone();
    let answer = request.core.kubelets.send(&target, outgoing).await;
    let mut answer = answer.map_err(|error| unreachable(&target, &*error))?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = client
    {
        let backend = hyper::upgrade::on(&mut answer);
        let stop = request.core.stopping.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                carried = carry(client, backend) => if let Err(error) = carried {
                    tracing::debug!(%error, "an upgraded connection ended");
                }
            }
        });
        return Ok(answer.map(|_| body::empty()));
    }
    if proxied {
        return Ok(answered(answer, place, &method));
    }
    headers::strip(answer.headers_mut());
    if request.info.attributes.subresource == "log" && answer.status().as_u16() >= 400 {
        return Err(refusal(&request.info.attributes, answer).await);
    }
    Ok(answer.map(body::erase))
}

/// To run something in a pod is to create it, whichever method a client's WebSocket library uses.
async fn may_create(request: &endpoint::Request<'_>) -> Result<(), Error> {
    let a = &request.info.attributes;
    if !matches!(a.subresource.as_str(), "exec" | "attach" | "portforward") || a.verb == "create" {
        return Ok(());
    }
    let wanted = Attributes { verb: "create".to_owned(), ..a.clone() };
    match request.core.authorizer.authorize(request.user, &wanted).await {
        Decision::NoOpinion(reason) => Err(Error::Forbidden {
            resource: a.resource.clone(),
            name: a.name.clone(),
            why: forbidden_message(request.user, &wanted, &reason),
        }),
        _ => Ok(()),
    }
}

/// A root without its slash is redirected to the root, for the sake of relative links.
fn redirect(incoming: &Request<Body>) -> Result<Response<Body>, Error> {
    let query = incoming.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
    let location = format!("{}/{query}", incoming.uri().path());
    let location = HeaderValue::from_str(&location).map_err(|e| Error::BadRequest(e.to_string()))?;
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

/// Where the target is, for its links.
fn place(incoming: &Request<Body>, headers: &HeaderMap, target: &Target) -> Place {
    let path = incoming.uri().path();
    let inside = target.path.split('?').next().unwrap_or_default();
    let prefix = path.strip_suffix(inside).unwrap_or(path).to_owned();
    let host = headers.get(HOST).and_then(|h| h.to_str().ok()).map(str::to_owned);
    let host = host.or_else(|| incoming.uri().authority().map(ToString::to_string)).unwrap_or_default();
    Place { prefix, authority: target.authority(), host }
}

/// The request as the target gets it.
fn outgoing(
    target: &Target,
    incoming: Request<Body>,
    headers: &HeaderMap,
    upgrade: Option<&HeaderValue>,
    place: &Place,
) -> Result<Request<Body>, Error> {
    let path = if target.path.starts_with('/') { target.path.clone() } else { format!("/{}", target.path) };
    let mut map = headers::forwarded(headers, upgrade);
    if let Some(Client(address)) = incoming.extensions().get() {
        headers::came_from(&mut map, *address);
    }
    let host = match target.backend {
        Backend::Kubelet => {
            headers::for_kubelet(&mut map);
            // What it refuses it says in one line, which becomes a Status here.
            map.remove(ACCEPT);
            target.authority()
        }
        // A pod hears by which name it was asked for.
        Backend::Plain | Backend::Tls if !place.host.is_empty() => place.host.clone(),
        Backend::Plain | Backend::Tls => target.authority(),
    };
    let bad = |error: http::header::InvalidHeaderValue| Error::BadRequest(error.to_string());
    map.insert(HOST, HeaderValue::from_str(&host).map_err(bad)?);
    let uri = path.split('?').next().unwrap_or_default();
    map.insert(FORWARDED_URI, HeaderValue::from_str(&format!("{}{uri}", place.prefix)).map_err(bad)?);
    let page = map.get(ACCEPT).and_then(|a| a.to_str().ok()).is_some_and(|a| a.contains("text/html"));
    if page && target.backend != Backend::Kubelet {
        // Links can only be rewritten where they can be read.
        map.remove(ACCEPT_ENCODING);
    }
    let mut outgoing = Request::builder().method(incoming.method().clone()).uri(path);
    if let Some(headers) = outgoing.headers_mut() {
        *headers = map;
    }
    outgoing.body(incoming.into_body()).map_err(|e| Error::BadRequest(e.to_string()))
}

/// What a pod answers, as the client needs it.
fn answered(mut answer: Response<Incoming>, place: Place, method: &Method) -> Response<Body> {
    let headers = answer.headers_mut();
    headers::answered(headers);
    if let Some(location) = headers.get(LOCATION).and_then(|l| l.to_str().ok()) {
        if let Ok(location) = HeaderValue::from_str(&place.url(location)) {
            headers.insert(LOCATION, location);
        }
        return answer.map(body::erase);
    }
    let kind = headers.get(CONTENT_TYPE).and_then(|t| t.to_str().ok()).unwrap_or_default();
    let html = kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/html"));
    if !html || headers.contains_key(CONTENT_ENCODING) || *method == Method::HEAD {
        return answer.map(body::erase);
    }
    headers.remove(CONTENT_LENGTH);
    answer.map(|page| place.page(body::erase(page)))
}

/// What a kubelet says is wrong with a request for a log, as an error of the API.
async fn refusal(a: &Attributes, answer: Response<Incoming>) -> Error {
    let status = answer.status();
    let text = Limited::new(answer.into_body(), REFUSAL_MAX).collect().await;
    let text =
        text.map(|t| String::from_utf8_lossy(&t.to_bytes()).into_owned()).unwrap_or_else(|e| e.to_string());
    match status {
        StatusCode::BAD_REQUEST => Error::BadRequest(text),
        StatusCode::NOT_FOUND => Error::NotFound { resource: "pods".to_owned(), name: a.name.clone() },
        _ => Error::Internal(text),
    }
}

fn unreachable(target: &Target, error: &dyn std::fmt::Display) -> Error {
    match target.backend {
        Backend::Kubelet => {
            Error::Internal(format!("error dialing backend: {}: {error}", target.authority()))
        }
        Backend::Plain | Backend::Tls => {
            Error::Unavailable(format!("error trying to reach service: {}: {error}", target.authority()))
        }
    }
}

async fn carry(
    client: hyper::upgrade::OnUpgrade,
    backend: hyper::upgrade::OnUpgrade,
) -> Result<(), body::BoxError> {
    let (client, backend) = futures::try_join!(client, backend)?;
    let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
    tokio::io::copy_bidirectional_with_sizes(&mut client, &mut backend, CHUNK, CHUNK).await?;
    Ok(())
}
