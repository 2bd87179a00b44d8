//! A small API server for one node: get, list, watch, create, patch and delete of whatever path is asked for, with
//! Kubernetes' revisions and deletion of pods in two steps. The real one is in the tests of the whole cluster.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use kube::client::Body as ClientBody;
use serde_json::{Value, json};
use tokio::sync::watch;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// `/api/v1/namespaces/ns/pods/p/status`, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Path {
    resource: String,
    namespace: String,
    name: String,
}

/// The server; clones are the same.
#[derive(Clone)]
pub(crate) struct Api {
    state: Arc<Mutex<State>>,
    revision: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Path, Value>,
    log: Vec<(u64, &'static str, Path, Value)>,
}

impl Api {
    pub(crate) fn new() -> Self {
        Self { state: Arc::default(), revision: watch::Sender::new(1) }
    }

    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<ClientBody>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.handle(request).await) }
        });
        decapod_client::transport::in_process(service, ())
    }

    /// Creates or replaces an object, as another client would.
    pub(crate) fn put(&self, resource: &str, namespace: &str, name: &str, mut object: Value) {
        let path = Path { resource: resource.into(), namespace: namespace.into(), name: name.into() };
        object["metadata"]["name"] = json!(name);
        object["metadata"]["namespace"] = json!(namespace);
        let mut state = self.state.lock().unwrap();
        let known = state.objects.get(&path).map(|o| o["metadata"]["uid"].clone());
        object["metadata"]["uid"] =
            known.unwrap_or_else(|| json!(format!("{name}-{}", self.revision.borrow().clone())));
        self.write(&mut state, path, object);
    }

    pub(crate) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let path = Path { resource: resource.into(), namespace: namespace.into(), name: name.into() };
        self.state.lock().unwrap().objects.get(&path).cloned()
    }

    /// Asks for a deletion: pods get their grace, the kubelet does the rest.
    pub(crate) fn delete(&self, name: &str, grace: i64) {
        let mut pod = self.get("pods", "default", name).unwrap();
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.put("pods", "default", name, pod);
    }

    /// Removes a pod behind the kubelet's back.
    pub(crate) fn remove_pod(&self, name: &str) {
        let path = Path { resource: "pods".into(), namespace: "default".into(), name: name.into() };
        self.remove(&mut self.state.lock().unwrap(), &path).unwrap();
    }

    /// Reasons of the events about an object.
    pub(crate) fn reasons(&self, name: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let events = state.objects.iter().filter(|(path, _)| path.resource == "events");
        let about = events.filter(|(_, e)| e["involvedObject"]["name"] == name);
        about.map(|(_, e)| e["reason"].as_str().unwrap().to_owned()).collect()
    }

    fn write(&self, state: &mut State, path: Path, mut object: Value) {
        let kind = if state.objects.contains_key(&path) { "MODIFIED" } else { "ADDED" };
        let revision = *self.revision.borrow() + 1;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        state.log.push((revision, kind, path.clone(), object.clone()));
        state.objects.insert(path, object);
        self.revision.send_replace(revision);
    }

    fn remove(&self, state: &mut State, path: &Path) -> Option<Value> {
        let mut object = state.objects.remove(path)?;
        let revision = *self.revision.borrow() + 1;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        state.log.push((revision, "DELETED", path.clone(), object.clone()));
        self.revision.send_replace(revision);
        Some(object)
    }

    async fn handle(&self, request: Request<ClientBody>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let path = Path::parse(parts.uri.path());
        let query: BTreeMap<String, String> = pairs(parts.uri.query().unwrap_or_default());
        match parts.method {
            Method::GET if !path.name.is_empty() => {
                let found = self.state.lock().unwrap().objects.get(&path).cloned();
                found.map_or_else(|| status(StatusCode::NOT_FOUND, "NotFound"), |o| ok(&o))
            }
            Method::GET if query.contains_key("watch") => self.watch(path, &query),
            Method::GET => self.list(&path, &query),
            Method::POST => self.create(path, body),
            Method::PATCH => self.patch(&path, &body),
            Method::DELETE => {
                let mut state = self.state.lock().unwrap();
                let asked = &body["preconditions"]["uid"];
                let same = state.objects.get(&path).is_some_and(|o| &o["metadata"]["uid"] == asked);
                if !same {
                    return status(StatusCode::CONFLICT, "Conflict");
                }
                self.remove(&mut state, &path)
                    .map_or_else(|| status(StatusCode::NOT_FOUND, "NotFound"), |o| ok(&o))
            }
            _ => status(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }

    fn list(&self, path: &Path, query: &BTreeMap<String, String>) -> Response<Body> {
        let state = self.state.lock().unwrap();
        let items: Vec<&Value> =
            state.objects.iter().filter(|(p, o)| selected(path, query, p, o)).map(|(_, o)| o).collect();
        let revision = self.revision.borrow().to_string();
        ok(
            &json!({ "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": revision }, "items": items }),
        )
    }

    fn watch(&self, path: Path, query: &BTreeMap<String, String>) -> Response<Body> {
        let from: u64 = query["resourceVersion"].parse().unwrap();
        let (query, state) = (query.clone(), self.state.clone());
        let changes = tokio_stream::wrappers::WatchStream::new(self.revision.subscribe());
        let mut reached = from;
        let frames = changes.map(move |_| {
            let state = state.lock().unwrap();
            let mut text = String::new();
            let before = reached;
            for (revision, kind, at, object) in state.log.iter().filter(|(r, ..)| *r > before) {
                if selected(&path, &query, at, object) {
                    text.push_str(&json!({ "type": kind, "object": object }).to_string());
                    text.push('\n');
                }
                reached = *revision;
            }
            Ok(Frame::data(Bytes::from(text)))
        });
        Response::new(StreamBody::new(frames).boxed_unsync())
    }

    fn create(&self, mut path: Path, mut object: Value) -> Response<Body> {
        path.name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if path.name.is_empty() {
            // generateName
            path.name = format!("generated-{}", *self.revision.borrow());
            object["metadata"]["name"] = json!(path.name);
        }
        let mut state = self.state.lock().unwrap();
        if state.objects.contains_key(&path) {
            return status(StatusCode::CONFLICT, "AlreadyExists");
        }
        object["metadata"]["uid"] = json!(format!("{}-{}", path.name, *self.revision.borrow()));
        self.write(&mut state, path, object.clone());
        ok(&object)
    }

    fn patch(&self, path: &Path, patch: &Value) -> Response<Body> {
        let mut state = self.state.lock().unwrap();
        let Some(mut object) = state.objects.get(path).cloned() else {
            return status(StatusCode::NOT_FOUND, "NotFound");
        };
        let asked = &patch["metadata"]["uid"];
        if !asked.is_null() && asked != &object["metadata"]["uid"] {
            return status(StatusCode::CONFLICT, "Conflict");
        }
        match path.resource.as_str() {
            "pods" => strategic(&mut object, patch, "Pod"),
            "nodes" => strategic(&mut object, patch, "Node"),
            _ => decapod_api::patch::apply_merge(&mut object, patch),
        }
        self.write(&mut state, path.clone(), object.clone());
        ok(&object)
    }
}

impl Path {
    fn parse(path: &str) -> Self {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        // `api/v1` or `apis/<group>/<version>`.
        let rest = if parts[0] == "api" { &parts[2..] } else { &parts[3..] };
        match rest {
            ["namespaces", namespace, resource, tail @ ..] => Self {
                resource: (*resource).into(),
                namespace: (*namespace).into(),
                name: tail.first().copied().unwrap_or_default().into(),
            },
            [resource, tail @ ..] => Self {
                resource: (*resource).into(),
                namespace: String::new(),
                name: tail.first().copied().unwrap_or_default().into(),
            },
            [] => Self::default(),
        }
    }
}

fn strategic(object: &mut Value, patch: &Value, kind: &str) {
    let ty = decapod_api::facts::lookup(&format!("io.k8s.api.core.v1.{kind}")).unwrap();
    decapod_api::patch::apply_strategic(object, patch, ty).unwrap();
}

fn selected(wanted: &Path, query: &BTreeMap<String, String>, path: &Path, object: &Value) -> bool {
    let fields = query.get("fieldSelector").map(String::as_str).unwrap_or_default();
    let field = match fields.split_once('=') {
        Some(("metadata.name", name)) => path.name == name,
        Some(("spec.nodeName", node)) => object["spec"]["nodeName"] == node,
        Some(_) => panic!("unexpected field selector {fields}"),
        None => true,
    };
    let place = wanted.namespace.is_empty() || wanted.namespace == path.namespace;
    wanted.resource == path.resource && place && field
}

fn pairs(query: &str) -> BTreeMap<String, String> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.replace("%3D", "=")))
        .collect()
}

fn ok(object: &Value) -> Response<Body> {
    Response::new(Full::new(Bytes::from(object.to_string())).boxed_unsync())
}

fn status(code: StatusCode, reason: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": reason, "message": reason, "code": code.as_u16(),
    });
    let body = Full::new(Bytes::from(status.to_string())).boxed_unsync();
    Response::builder().status(code).body(body).unwrap()
}
