//! The socket by which commands on this machine reach the running agent: what the Kubernetes API does not
//! have, such as the import of image archives. Only root can open it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use decapod_client::task::Supervisor;
use decapod_proto::cri;
use decapod_runtime::Runtime;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};

use super::transfer::{Ask, Display, Way, Word};
use crate::failure::{Failure, chain};

/// An image, as commands show it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ImageRow {
    pub(super) id: String,
    pub(super) tags: Vec<String>,
    pub(super) bytes: u64,
}

impl From<cri::Image> for ImageRow {
    fn from(image: cri::Image) -> Self {
        Self { id: image.id, tags: image.repo_tags, bytes: image.size }
    }
}

#[derive(Serialize, Deserialize)]
struct Named {
    name: String,
}

/// Why the agent refused, as text.
pub(super) struct Refusal(pub(super) String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (StatusCode::UNPROCESSABLE_ENTITY, self.0).into_response()
    }
}

impl From<decapod_runtime::Error> for Refusal {
    fn from(error: decapod_runtime::Error) -> Self {
        Self(chain(&error))
    }
}

type Shared = State<Arc<dyn Runtime>>;

async fn list(State(runtime): Shared) -> Result<Json<Vec<ImageRow>>, Refusal> {
    Ok(Json(runtime.image_list(None).await?.into_iter().map(ImageRow::from).collect()))
}

async fn import(State(runtime): Shared, Json(archive): Json<Named>) -> Result<Json<Vec<ImageRow>>, Refusal> {
    let images = runtime.image_import(Path::new(&archive.name)).await?;
    Ok(Json(images.into_iter().map(ImageRow::from).collect()))
}

async fn remove(State(runtime): Shared, Json(image): Json<Named>) -> Result<Json<()>, Refusal> {
    remove_unused(&*runtime, &image.name).await.map(Json).map_err(Refusal)
}

/// Removes an image unless a container uses it; why not, as text.
pub(super) async fn remove_unused(runtime: &dyn Runtime, name: &str) -> Result<(), String> {
    let failed = |error: decapod_runtime::Error| chain(&error);
    let spec = cri::ImageSpec { image: name.to_owned(), ..Default::default() };
    let image = runtime.image_status(&spec).await.map_err(failed)?;
    let image = image.ok_or_else(|| format!("no such image: {name}"))?;
    let users = runtime.container_list(None).await.map_err(failed)?;
    // One of several names can go at any time.
    let last = image.repo_tags.len() <= 1 || image.id.contains(name);
    // Older runtimes tell the image's id as its reference only.
    let uses = |user: &&cri::Container| user.image_id == image.id || user.image_ref == image.id;
    if last && let Some(user) = users.iter().find(uses) {
        let label = |key: &str| user.labels.get(key).map_or("?", String::as_str);
        return Err(format!(
            "image {name} is in use by container {} of pod {}/{}: delete the pod first",
            label("io.kubernetes.container.name"),
            label("io.kubernetes.pod.namespace"),
            label("io.kubernetes.pod.name")
        ));
    }
    runtime.image_remove(&spec).await.map_err(failed)
}

/// Routes that are not for this node, and why.
pub(super) fn refuse(paths: &[&str], why: &'static str) -> Router {
    let refusal = move || async move { Refusal(why.to_owned()) };
    paths.iter().fold(Router::new(), |router, path| router.route(path, post(refusal)))
}

/// Serves the socket at `path`, with `more` routes, until the supervisor shuts down.
pub(super) fn serve(
    path: &Path,
    runtime: Arc<dyn Runtime>,
    more: Router,
    supervisor: &Supervisor,
) -> Result<(), Failure> {
    let router = Router::new()
        .route("/images", get(list))
        .route("/images/import", post(import))
        .route("/images/remove", post(remove))
        .with_state(runtime)
        .merge(more);
    listen("control-socket", path, router, supervisor)
}

/// Serves a socket that only root can open, as a task of this name, until the supervisor shuts down.
pub(super) fn listen(
    task: &'static str,
    path: &Path,
    router: Router,
    supervisor: &Supervisor,
) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let shutdown = supervisor.shutdown_token();
    supervisor.spawn(task, async move {
        axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
    });
    Ok(())
}

/// The agent at the other end of the socket.
pub(super) struct Control(PathBuf);

impl Control {
    /// By the socket's path; connects at each call.
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Asks the agent, and has its answer read while it comes.
    async fn ask<T>(
        &self,
        method: &str,
        path: &str,
        body: Vec<u8>,
        read: impl AsyncFnOnce(http::Response<Incoming>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let unreachable = |e: &(dyn std::error::Error + 'static)| {
            Failure::new(format!("the agent at {} cannot be reached: {}", self.0.display(), chain(e)))
        };
        let stream = UnixStream::connect(&self.0).await.map_err(|e| unreachable(&e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| unreachable(&e))?;
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "agent")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| unreachable(&e))?;
        // The connection is driven only for as long as the answer takes.
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|e| unreachable(&e))?;
            if !response.status().is_success() {
                let why = response.into_body().collect().await.map_err(|e| unreachable(&e))?.to_bytes();
                return Err(Failure::new(String::from_utf8_lossy(&why).into_owned()));
            }
            read(response).await
        };
        tokio::select! {
            result = exchange => result,
            Err(e) = connection => Err(unreachable(&e)),
        }
    }

    pub(super) async fn call<T: serde::de::DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, Failure> {
        let whole = async |response: http::Response<Incoming>| {
            let body = response.into_body().collect().await;
            let body = body.map_err(|e| Failure::new(format!("the agent broke off: {}", chain(&e))))?;
            Ok(serde_json::from_slice(&body.to_bytes())?)
        };
        self.ask(method, path, body, whole).await
    }

    /// Has the agent move an image, and shows how far it has come.
    pub(super) async fn transfer(&self, way: Way, ask: &Ask, display: &mut Display) -> Result<Word, Failure> {
        let listen = async |response: http::Response<Incoming>| {
            let mut body = response.into_body();
            let mut heard = Vec::new();
            while let Some(frame) = body.frame().await {
                let broken = |e: hyper::Error| Failure::new(format!("the agent broke off: {}", chain(&e)));
                heard.extend_from_slice(&frame.map_err(broken)?.into_data().unwrap_or_default());
                while let Some(end) = heard.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = heard.drain(..=end).collect();
                    if let Some(last) = display.hear(serde_json::from_slice(&line)?)? {
                        return Ok(last);
                    }
                }
            }
            Err(Failure::new("the agent ended before the image was moved"))
        };
        self.ask("POST", way.path(), serde_json::to_vec(ask)?, listen).await
    }

    pub(super) async fn images(&self) -> Result<Vec<ImageRow>, Failure> {
        self.call("GET", "/images", Vec::new()).await
    }

    pub(super) async fn image_import(&self, archive: &Path) -> Result<Vec<ImageRow>, Failure> {
        let body = serde_json::to_vec(&Named { name: archive.display().to_string() })?;
        self.call("POST", "/images/import", body).await
    }

    pub(super) async fn image_remove(&self, name: &str) -> Result<(), Failure> {
        let body = serde_json::to_vec(&Named { name: name.to_owned() })?;
        self.call("POST", "/images/remove", body).await
    }
}
