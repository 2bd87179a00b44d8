//! One request and its response, as the audit log sees them.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::Audit;
use super::policy::{Level, Stage, Verdict};
use crate::auth::{Attributes, UserInfo};
use crate::clock::rfc3339_micros;
use crate::http::Body;
use crate::http::body::{self, BoxError};

/// What is known of a request when it comes in.
struct Head {
    id: String,
    uri: String,
    user_agent: Option<String>,
    sources: Vec<String>,
    received: Timestamp,
}

/// What becomes known on the way.
#[derive(Default)]
struct State {
    verdict: Option<Verdict>,
    user: UserInfo,
    impersonated: Option<UserInfo>,
    /// The right of constrained impersonation by which it is.
    constraint: Option<&'static str>,
    annotations: BTreeMap<String, String>,
    request: Option<Value>,
    identity: Map<String, Value>,
}

/// One request under audit.
pub(crate) struct Exchange {
    audit: Arc<Audit>,
    attributes: Attributes,
    head: Head,
    state: Mutex<State>,
}

impl Exchange {
    pub(crate) fn new(
        audit: Arc<Audit>,
        attributes: &Attributes,
        request: &Request<Body>,
        address: Option<std::net::SocketAddr>,
        id: &http::HeaderValue,
    ) -> Self {
        let text = |value: &http::HeaderValue| value.to_str().map(str::to_owned).ok();
        let head = Head {
            id: text(id).unwrap_or_default(),
            uri: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
            user_agent: request.headers().get(USER_AGENT).and_then(text),
            sources: sources(request.headers(), address),
            received: audit.clock.now(),
        };
        Self { audit, attributes: attributes.clone(), head, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Who asks is known, and so is what is to be recorded.
    pub(super) fn authenticated(&self, user: &UserInfo) {
        let verdict = self.audit.policy.verdict(user, &self.attributes);
        self.audit.counts.level(verdict.level.as_str());
        let mut state = self.lock();
        state.user = user.clone();
        state.verdict = Some(verdict);
        self.emit(&state, Stage::RequestReceived, Map::new());
    }

    pub(super) fn impersonated(&self, user: &UserInfo, constraint: Option<&'static str>) {
        let mut state = self.lock();
        state.impersonated = Some(user.clone());
        state.constraint = constraint;
    }

    pub(super) fn annotate(&self, key: &str, value: String) {
        self.lock().annotations.entry(key.to_owned()).or_insert(value);
    }

    /// The request's body was read.
    pub(super) fn request(&self, content_type: &str, bytes: &Bytes) {
        let level = self.level();
        if level == Level::None || bytes.is_empty() {
            return;
        }
        let Some(mut object) = decoded(content_type, bytes) else { return };
        let mut state = self.lock();
        for (field, name) in [
            ("name", "name"),
            ("namespace", "namespace"),
            ("uid", "uid"),
            ("resourceVersion", "resourceVersion"),
        ] {
            if let Some(text) = object["metadata"][field].as_str() {
                state.identity.insert(name.to_owned(), text.into());
            }
        }
        if level >= Level::Request {
            self.strip(&state, &mut object);
            state.request = Some(object);
        }
    }

    fn level(&self) -> Level {
        self.lock().verdict.as_ref().map(|verdict| verdict.level).unwrap_or_default()
    }

    fn strip(&self, state: &State, object: &mut Value) {
        if state.verdict.as_ref().is_some_and(|verdict| verdict.omit_managed_fields) {
            without_managed_fields(object);
            let items = object.get_mut("items").and_then(Value::as_array_mut);
            items.into_iter().flatten().for_each(without_managed_fields);
        }
    }

    pub(super) fn panicked(&self, what: &str) {
        let status = json!({"metadata": {}, "status": "Failure", "code": 500, "reason": "InternalError",
            "message": format!("APIServer panic'd: {what}")});
        let state = self.lock();
        self.emit(&state, Stage::Panic, Map::from_iter([("responseStatus".to_owned(), status)]));
    }

    /// The response is there. What is needed of its body is read, and put back.
    pub(super) async fn finish(self: Arc<Self>, response: Response<Body>, long: bool) -> Response<Body> {
        self.decide_at_last();
        let level = self.level();
        if level == Level::None {
            return response;
        }
        let (parts, body) = response.into_parts();
        let code = parts.status.as_u16();
        if long && code < 400 {
            let status = Map::from_iter([("responseStatus".to_owned(), success(code))]);
            self.emit(&self.lock(), Stage::ResponseStarted, status.clone());
            let watched = Watched { inner: body, end: Some((self, status)) };
            return Response::from_parts(parts, body::erase(watched));
        }
        let whole = code >= 400 || (level == Level::RequestResponse && self.attributes.is_resource());
        let (body, bytes) = if whole { buffered(body).await } else { (body, Bytes::new()) };
        let object = decoded_response(&parts.headers, &bytes);
        let mut outcome = Map::new();
        outcome.insert("responseStatus".to_owned(), status(code, object.as_ref()));
        if let Some(mut object) = object.filter(|_| level == Level::RequestResponse) {
            self.strip(&self.lock(), &mut object);
            outcome.insert("responseObject".to_owned(), object);
        }
        self.emit(&self.lock(), Stage::ResponseComplete, outcome);
        Response::from_parts(parts, body)
    }

    /// A request that was not authenticated is nobody's.
    fn decide_at_last(&self) {
        let mut state = self.lock();
        if state.verdict.is_none() {
            state.verdict = Some(self.audit.policy.verdict(&UserInfo::default(), &self.attributes));
        }
    }

    fn emit(&self, state: &State, stage: Stage, outcome: Map<String, Value>) {
        let Some(verdict) = &state.verdict else { return };
        if verdict.level == Level::None || verdict.omit_stages.contains(&stage) {
            return;
        }
        let mut event = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": verdict.level.as_str(),
            "auditID": self.head.id, "stage": stage.as_str(), "requestURI": self.head.uri,
            "verb": self.attributes.verb, "user": state.user,
            "requestReceivedTimestamp": rfc3339_micros(self.head.received),
            "stageTimestamp": rfc3339_micros(self.audit.clock.now()),
        });
        let mut add = |field: &str, value: Value| event[field] = value;
        if let Some(user) = &state.impersonated {
            add("impersonatedUser", json!(user));
        }
        if let Some(constraint) = state.constraint {
            add("authenticationMetadata", json!({"impersonationConstraint": constraint}));
        }
        if !self.head.sources.is_empty() {
            add("sourceIPs", json!(self.head.sources));
        }
        if let Some(agent) = &self.head.user_agent {
            add("userAgent", agent.as_str().into());
        }
        if self.attributes.is_resource() {
            add("objectRef", self.reference(state));
        }
        let ended = stage != Stage::RequestReceived;
        if let Some(request) = state.request.as_ref().filter(|_| ended) {
            add("requestObject", request.clone());
        }
        if !state.annotations.is_empty() {
            add("annotations", json!(state.annotations));
        }
        outcome.into_iter().for_each(|(field, value)| add(&field, value));
        self.audit.put(event.to_string());
    }

    fn reference(&self, state: &State) -> Value {
        let a = &self.attributes;
        let mut reference = state.identity.clone();
        for (field, text) in [
            ("resource", &a.resource),
            ("namespace", &a.namespace),
            ("name", &a.name),
            ("apiGroup", &a.group),
            ("apiVersion", &a.version),
            ("subresource", &a.subresource),
        ] {
            if !text.is_empty() {
                reference.insert(field.to_owned(), text.as_str().into());
            }
        }
        Value::Object(reference)
    }
}

/// From where a request came, as proxies say, and as the connection does.
fn sources(headers: &HeaderMap, address: Option<std::net::SocketAddr>) -> Vec<String> {
    let named =
        |name: &str| headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    let valid = |text: &str| text.trim().parse::<std::net::IpAddr>().ok().map(|ip| ip.to_string());
    let mut sources: Vec<String> = named("x-forwarded-for").filter_map(valid).collect();
    let own = address.map(|address| address.ip().to_canonical().to_string());
    for source in named("x-real-ip").filter_map(valid).chain(own).collect::<Vec<_>>() {
        if sources.last() != Some(&source) {
            sources.push(source);
        }
    }
    sources
}

fn without_managed_fields(object: &mut Value) {
    // Not by index: it adds what is not there, and a body that is no object at all has none to add to.
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
    }
}

/// An object as JSON, whatever it came in.
fn decoded(content_type: &str, bytes: &[u8]) -> Option<Value> {
    let media = content_type.split(';').next().unwrap_or_default().trim();
    let media = if media.ends_with("+json") { "application/json" } else { media };
    let media = if media.ends_with("+yaml") { "application/yaml" } else { media };
    crate::registry::body::parse(media, bytes).ok().map(|parsed| parsed.value)
}

fn decoded_response(headers: &HeaderMap, bytes: &Bytes) -> Option<Value> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if bytes.is_empty() {
        return None;
    }
    if text(CONTENT_ENCODING) != "gzip" {
        return decoded(text(CONTENT_TYPE), bytes);
    }
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(bytes.as_ref()), &mut plain).ok()?;
    decoded(text(CONTENT_TYPE), &plain)
}

/// A body that is there already, read and put back.
async fn buffered(body: Body) -> (Body, Bytes) {
    match body.collect().await {
        Ok(collected) => {
            let bytes = collected.to_bytes();
            (body::full(bytes.clone()), bytes)
        }
        // The client gets what it would have got: the end of the stream.
        Err(error) => (body::stream(Box::pin(futures::stream::iter([Err(error)]))), Bytes::new()),
    }
}

fn success(code: u16) -> Value {
    json!({"metadata": {}, "code": code})
}

/// The outcome of a request: of an error all that its `Status` says.
fn status(code: u16, object: Option<&Value>) -> Value {
    let Some(object) = object.filter(|object| code >= 400 && object["kind"] == "Status") else {
        return success(code);
    };
    let mut status = object.clone();
    if let Some(map) = status.as_object_mut() {
        map.remove("kind");
        map.remove("apiVersion");
    }
    status
}

/// A long response, whose end is recorded, however it comes.
struct Watched {
    inner: Body,
    end: Option<(Arc<Exchange>, Map<String, Value>)>,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some((exchange, status)) = self.end.take() {
            let state = exchange.lock();
            exchange.emit(&state, Stage::ResponseComplete, status);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_request_came_from() {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "10.0.0.1, junk, 10.0.0.2".parse().unwrap());
        headers.insert("x-real-ip", "10.0.0.2".parse().unwrap());
        let address = Some("10.0.0.9:1234".parse().unwrap());
        assert_eq!(sources(&headers, address), ["10.0.0.1", "10.0.0.2", "10.0.0.9"]);
        assert_eq!(sources(&HeaderMap::new(), None), Vec::<String>::new());
    }

    #[test]
    fn managers_are_left_out_of_whatever_body() {
        for (body, want) in [
            (json!({"metadata": {"name": "a", "managedFields": []}}), json!({"metadata": {"name": "a"}})),
            (json!({"spec": {}}), json!({"spec": {}})),
            (json!([{"op": "remove", "path": "/a"}]), json!([{"op": "remove", "path": "/a"}])),
            (json!("text"), json!("text")),
        ] {
            let mut object = body;
            without_managed_fields(&mut object);
            assert_eq!(object, want);
        }
    }

    #[test]
    fn outcomes() {
        let refused =
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": 404, "reason": "NotFound"});
        assert_eq!(status(404, Some(&refused)), json!({"metadata": {}, "code": 404, "reason": "NotFound"}));
        assert_eq!(status(200, Some(&json!({"kind": "Pod"}))), json!({"metadata": {}, "code": 200}));
    }
}
