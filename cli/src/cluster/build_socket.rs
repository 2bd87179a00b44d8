//! Builds of images over the agent's socket: the request, then line by line what is done, then how it ended.
//!
//! **Invariant**: a build whose client goes away is cancelled, and so is one whose agent ends.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use bytes::Bytes;
use decapod_client::task::Supervisor;
use decapod_runtime::{BuildRequest, Embedded, PROGRESS_LINES};
use futures::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::control::ImageRow;
use crate::failure::{Failure, chain};

/// Where builds are asked for.
pub(super) const PATH: &str = "/images/build";

/// Longest message: a line of output, which the runtime bounds far below.
const MAX_MESSAGE: usize = 16 << 20;

/// One line of the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Line(String),
    Done(ImageRow),
    Failed(String),
}

impl Message {
    fn encode(&self) -> Bytes {
        let mut text = serde_json::to_vec(self).expect("strings and numbers are JSON");
        text.push(b'\n');
        text.into()
    }
}

struct Shared {
    runtime: Embedded,
    supervisor: Supervisor,
}

/// The route of builds.
pub(super) fn routes(runtime: Embedded, supervisor: Supervisor) -> Router {
    Router::new().route(PATH, post(build)).with_state(Arc::new(Shared { runtime, supervisor }))
}

async fn build(State(shared): State<Arc<Shared>>, Json(request): Json<BuildRequest>) -> Response {
    let (progress, lines) = mpsc::channel(PROGRESS_LINES);
    let (sender, ended) = oneshot::channel();
    let cancel = shared.supervisor.shutdown_token().child_token();
    let guard = cancel.clone().drop_guard();
    let runtime = shared.runtime.clone();
    shared.supervisor.spawn("image-build", async move {
        let built = runtime.image_build(request, progress, cancel).await;
        if sender.send(built).is_err() {
            tracing::info!("nobody waits for a build any more");
        }
    });
    let end = async move {
        // Dropped with the answer, however that ends.
        let _guard = guard;
        match ended.await {
            Ok(Ok(image)) => Message::Done(image.into()),
            Ok(Err(error)) => Message::Failed(chain(&error)),
            Err(_) => Message::Failed("the agent ended".to_owned()),
        }
    };
    let answer = lines_of(lines).map(Message::Line).chain(stream::once(end));
    Body::from_stream(answer.map(|message| Ok::<_, Infallible>(message.encode()))).into_response()
}

fn lines_of(lines: mpsc::Receiver<String>) -> impl Stream<Item = String> {
    stream::unfold(lines, |mut lines| async move { lines.recv().await.map(|line| (line, lines)) })
}

/// Has the agent at that socket build, and passes on what it says.
pub(super) async fn request(
    socket: &Path,
    request: &BuildRequest,
    progress: &mpsc::Sender<String>,
    cancel: &CancellationToken,
) -> Result<ImageRow, Failure> {
    let unreachable = |e: &(dyn std::error::Error + 'static)| {
        Failure::new(format!("the agent at {} cannot be reached: {}", socket.display(), chain(e)))
    };
    let stream = UnixStream::connect(socket).await.map_err(|e| unreachable(&e))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| unreachable(&e))?;
    let body = http::Request::post(PATH)
        .header("host", "agent")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(request)?)))
        .map_err(|e| unreachable(&e))?;
    let exchange = async {
        let response = sender.send_request(body).await.map_err(|e| unreachable(&e))?;
        let status = response.status();
        let mut body = response.into_body();
        if !status.is_success() {
            let why = body.collect().await.map_err(|e| unreachable(&e))?.to_bytes();
            return Err(Failure::new(String::from_utf8_lossy(&why).into_owned()));
        }
        let mut received = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| unreachable(&e))?;
            received.extend_from_slice(frame.data_ref().map(Bytes::as_ref).unwrap_or_default());
            while let Some(message) = take(&mut received)? {
                match message {
                    // Whether somebody reads it changes nothing.
                    Message::Line(line) => drop(progress.send(line).await),
                    Message::Done(image) => return Ok(image),
                    Message::Failed(what) => return Err(Failure::new(what)),
                }
            }
        }
        Err(Failure::new(format!("the agent ended the build early ({status})")))
    };
    tokio::select! {
        result = exchange => result,
        Err(e) = connection => Err(unreachable(&e)),
        () = cancel.cancelled() => Err(Failure::new("the build was cancelled")),
    }
}

/// The first whole message of what was received.
fn take(received: &mut Vec<u8>) -> Result<Option<Message>, Failure> {
    let Some(end) = received.iter().position(|byte| *byte == b'\n') else {
        return match received.len() > MAX_MESSAGE {
            true => Err(Failure::new("the agent sends more than a line can have")),
            false => Ok(None),
        };
    };
    let line: Vec<u8> = received.drain(..=end).collect();
    Ok(Some(serde_json::from_slice(&line)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_in_pieces() {
        let whole = [Message::Line("a\nb".into()).encode(), Message::Failed("x".into()).encode()].concat();
        let mut received = whole[..5].to_vec();
        assert!(take(&mut received).unwrap().is_none());
        received.extend_from_slice(&whole[5..]);
        assert!(matches!(take(&mut received).unwrap(), Some(Message::Line(line)) if line == "a\nb"));
        assert!(matches!(take(&mut received).unwrap(), Some(Message::Failed(_))));
        assert!(take(&mut received).unwrap().is_none());
    }
}
