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
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};

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
struct Refusal(String);

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
    let spec = cri::ImageSpec { image: image.name.clone(), ..Default::default() };
    if runtime.image_status(&spec).await?.is_none() {
        return Err(Refusal(format!("no such image: {}", image.name)));
    }
    Ok(Json(runtime.image_remove(&spec).await?))
}

/// Serves the socket at `path` until the supervisor shuts down.
pub(super) fn serve(
    path: &Path,
    runtime: Arc<dyn Runtime>,
    builds: Router,
    supervisor: &Supervisor,
) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let router = Router::new()
        .route("/images", get(list))
        .route("/images/import", post(import))
        .route("/images/remove", post(remove))
        .with_state(runtime)
        .merge(builds);
    let shutdown = supervisor.shutdown_token();
    supervisor.spawn("control-socket", async move {
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

    async fn call<T: serde::de::DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Vec<u8>,
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
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
        };
        let (status, body) = tokio::select! {
            result = exchange => result.map_err(|e| unreachable(&e))?,
            Err(e) = connection => return Err(unreachable(&e)),
        };
        if !status.is_success() {
            return Err(Failure::new(String::from_utf8_lossy(&body).into_owned()));
        }
        Ok(serde_json::from_slice(&body)?)
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
