//! A small API server for the tests of this crate: keeps objects by path, knows revisions and conflicts.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// Objects by their paths, without query.
#[derive(Clone, Default)]
pub(crate) struct Objects {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    revision: u64,
    /// Answers every request with this, if set.
    failure: Option<u16>,
}

impl Objects {
    /// A client of this server.
    pub(crate) fn client(&self) -> Client {
        let objects = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let objects = objects.clone();
            async move { Ok::<_, Infallible>(objects.answer(request).await) }
        });
        crate::transport::in_process(service, ())
    }

    /// All objects, by path.
    pub(crate) fn all(&self) -> BTreeMap<String, Value> {
        self.state.lock().unwrap().objects.clone()
    }

    /// Forgets all objects.
    pub(crate) fn clear(&self) {
        self.state.lock().unwrap().objects.clear();
    }

    /// Fails every request with this code, or none.
    pub(crate) fn fail(&self, code: Option<u16>) {
        self.state.lock().unwrap().failure = code;
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let answer = self.state.lock().unwrap().answer(&method, path, body);
        let (code, value) = match answer {
            Ok(value) => (200, value),
            Err((code, reason)) => (
                code,
                json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason}),
            ),
        };
        let body = Body::from(value.to_string().into_bytes());
        Response::builder().status(StatusCode::from_u16(code).unwrap()).body(body).unwrap()
    }
}

impl State {
    fn answer(&mut self, method: &Method, path: String, body: Value) -> Result<Value, (u16, &'static str)> {
        if let Some(code) = self.failure {
            return Err((code, "Failed"));
        }
        let path = match *method {
            Method::POST => format!("{path}/{}", body["metadata"]["name"].as_str().unwrap()),
            _ => path,
        };
        let known = self.objects.get(&path).cloned();
        let mut object = match (method, known) {
            (&Method::GET, Some(known)) => return Ok(known),
            (&Method::POST, Some(_)) => return Err((409, "AlreadyExists")),
            (&Method::POST, None) => body,
            (_, None) => return Err((404, "NotFound")),
            (&Method::PUT, Some(known)) => {
                let is_stale = known["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"];
                if is_stale {
                    return Err((409, "Conflict"));
                }
                body
            }
            (_, Some(mut known)) => {
                let fields = body.as_object().unwrap();
                fields.iter().for_each(|(key, value)| known[key] = value.clone());
                known
            }
        };
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.objects.insert(path, object.clone());
        Ok(object)
    }
}
