//! An API server in the essentials that informers need: list and watch of any resource.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::watch;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Objects by resource, namespace and name, and all that happened to them.
#[derive(Clone)]
pub(crate) struct Api {
    state: Arc<Mutex<State>>,
    revision: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<(String, String), Value>,
    events: Vec<(u64, String, Value)>,
}

impl Api {
    pub(crate) fn new() -> Self {
        Self { state: Arc::default(), revision: watch::Sender::new(1) }
    }

    /// Makes or replaces an object.
    pub(crate) fn put(&self, resource: &str, namespace: &str, name: &str, object: &Value) {
        let mut object = object.clone();
        object["metadata"]["name"] = name.into();
        object["metadata"]["namespace"] = namespace.into();
        let (version, kind) = match resource {
            "endpointslices" => ("discovery.k8s.io/v1", "EndpointSlice"),
            "services" => ("v1", "Service"),
            "pods" => ("v1", "Pod"),
            "secrets" => ("v1", "Secret"),
            "networkpolicies" => ("networking.k8s.io/v1", "NetworkPolicy"),
            "ingresses" => ("networking.k8s.io/v1", "Ingress"),
            "ingressclasses" => ("networking.k8s.io/v1", "IngressClass"),
            _ => ("v1", "Namespace"),
        };
        object["apiVersion"] = version.into();
        object["kind"] = kind.into();
        self.write(resource, format!("{namespace}/{name}"), Some(object));
    }

    /// Deletes an object.
    pub(crate) fn delete(&self, resource: &str, namespace: &str, name: &str) {
        self.write(resource, format!("{namespace}/{name}"), None);
    }

    fn write(&self, resource: &str, key: String, object: Option<Value>) {
        let mut state = self.state.lock().unwrap();
        let revision = *self.revision.borrow() + 1;
        let key = (resource.to_owned(), key);
        let event = match object {
            Some(mut object) => {
                object["metadata"]["resourceVersion"] = revision.to_string().into();
                let kind =
                    if state.objects.insert(key, object.clone()).is_some() { "MODIFIED" } else { "ADDED" };
                json!({"type": kind, "object": object})
            }
            None => {
                let mut object = state.objects.remove(&key).expect("it exists");
                object["metadata"]["resourceVersion"] = revision.to_string().into();
                json!({"type": "DELETED", "object": object})
            }
        };
        state.events.push((revision, resource.to_owned(), event));
        drop(state);
        self.revision.send_replace(revision);
    }

    /// A client of this server.
    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let answer = api.answer(&request);
            async { Ok::<_, Infallible>(answer) }
        });
        decapod_client::transport::in_process(service, ())
    }

    fn answer(&self, request: &Request<kube::client::Body>) -> Response<Body> {
        let resource = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let query = request.uri().query().unwrap_or_default();
        let body = if query.contains("watch=true") {
            let since = query.split('&').find_map(|part| part.strip_prefix("resourceVersion="));
            self.watch(resource, since.and_then(|text| text.parse().ok()).unwrap_or(0))
        } else {
            Full::from(self.list(&resource).to_string()).boxed_unsync()
        };
        Response::builder().header("content-type", "application/json").body(body).unwrap()
    }

    fn list(&self, resource: &str) -> Value {
        let state = self.state.lock().unwrap();
        let items: Vec<_> = state
            .objects
            .iter()
            .filter(|((found, _), _)| found == resource)
            .map(|(_, object)| object)
            .collect();
        let revision = self.revision.borrow().to_string();
        json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": revision}, "items": items})
    }

    /// Events after a revision, for ever.
    fn watch(&self, resource: String, since: u64) -> Body {
        let (state, changes) = (self.state.clone(), self.revision.subscribe());
        let frames = stream::unfold((since, changes), move |(since, mut changes)| {
            let (state, resource) = (state.clone(), resource.clone());
            async move {
                let revision = *changes.wait_for(|revision| *revision > since).await.ok()?;
                let state = state.lock().unwrap();
                let wanted =
                    |(at, of, _): &&(u64, String, Value)| *at > since && *at <= revision && *of == resource;
                let lines: String =
                    state.events.iter().filter(wanted).map(|(_, _, event)| format!("{event}\n")).collect();
                Some((Ok(Frame::data(Bytes::from(lines))), (revision, changes)))
            }
        });
        BodyExt::boxed_unsync(StreamBody::new(frames.boxed()))
    }
}
