//! `/containerLogs`: a container's log, as far as it is, or as it grows; as a body, or as messages of a WebSocket.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::ws::Message;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use decapod_client::error::chain;
use decapod_cri::stream::{self, Farewell, Refusal, Upgrade};
use futures::{SinkExt, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::find;
use crate::logs::{self, Alive, Options};
use crate::pod::observed::{Container, Observed, State as Running};
use crate::pod::spec;
use crate::shared::Shared;
use crate::worker::before;

/// The subprotocols of a log's messages.
const BINARY: &str = "binary.k8s.io";
const BASE64: &str = "base64.binary.k8s.io";

/// Pieces of a log that wait for a slow reader.
const AHEAD: usize = 4;

pub(super) async fn handle(
    State(shared): State<Arc<Shared>>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    upgrade: Result<Upgrade, Refusal>,
) -> Result<Response, Refusal> {
    let options = options(&query, shared.clock.now())?;
    let previous = flag(&query, "previous");
    let (pod, observed) = find(&shared, &namespace, &name).await?;
    let found = select(&pod, &observed, &container, previous)?;
    let path = PathBuf::from(&found.log_path);
    if let Err(error) = tokio::fs::metadata(&path).await {
        let message = format!("failed to open the log of container \"{container}\": {error}");
        return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message));
    }
    let alive = alive(&shared, found.id.clone());
    let (sink, source) = mpsc::channel::<Bytes>(AHEAD);
    let clock = shared.clock.clone();
    shared.supervisor.spawn_until_shutdown("log-reader", async move {
        if let Err(error) = logs::send(&path, options, alive, clock, sink).await {
            tracing::warn!(error = chain(&error), "a log could not be read to its end");
        }
    });
    if headers.contains_key(header::UPGRADE) {
        return messages(upgrade?, &headers, source);
    }
    let body = Body::from_stream(ReceiverStream::new(source).map(Ok::<_, std::convert::Infallible>));
    Ok(([(header::CONTENT_TYPE, "text/plain")], body).into_response())
}

/// Sends a log as messages.
fn messages(
    upgrade: Upgrade,
    headers: &HeaderMap,
    mut source: mpsc::Receiver<Bytes>,
) -> Result<Response, Refusal> {
    let Upgrade::WebSocket(upgrade) = upgrade else {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "unable to upgrade: logs go over WebSocket only"));
    };
    let upgrade = stream::agree(*upgrade, headers, &[BINARY, BASE64])?;
    Ok(upgrade.on_upgrade(async move |socket| {
        let text = stream::protocol(&socket) == BASE64;
        let (sink, mut client) = socket.split();
        let send = async {
            let mut sink = Farewell::new(sink);
            while let Some(bytes) = source.recv().await {
                let message = match text {
                    true => Message::Text(BASE64_STANDARD.encode(bytes).into()),
                    false => Message::Binary(bytes),
                };
                if sink.send(message).await.is_err() {
                    return;
                }
            }
            // A client that went away needs no farewell.
            let _gone = sink.close().await;
        };
        // A reader has nothing to say, but it can go away.
        let gone = async { while client.next().await.is_some_and(|message| message.is_ok()) {} };
        tokio::select! {
            () = send => {}
            () = gone => {}
        }
    }))
}

fn alive(shared: &Arc<Shared>, id: String) -> Alive {
    let shared = shared.clone();
    Box::new(move || {
        let (shared, id) = (shared.clone(), id.clone());
        Box::pin(async move {
            let running = decapod_proto::cri::ContainerState::ContainerRunning as i32;
            // A container that cannot be asked for has no more to say.
            shared.runtime.container_status(&id).await.is_ok_and(|s| s.state == running)
        })
    })
}

/// The attempt whose log is meant, or why there is none, in Kubernetes' words.
fn select<'a>(
    pod: &Pod,
    observed: &'a Observed,
    container: &str,
    previous: bool,
) -> Result<&'a Container, Refusal> {
    let bad = |message| Refusal::new(StatusCode::BAD_REQUEST, message);
    let name = spec::name(pod);
    if pod.spec.as_ref().and_then(|s| spec::find(s, container)).is_none() {
        return Err(bad(format!("container \"{container}\" in pod \"{name}\" is not available")));
    }
    if previous {
        let mut ended = observed.containers.iter().filter(|c| c.name == container);
        // A container that waits for its restart has ended itself: its last end is the one before.
        let newest = ended.next();
        let found = match newest {
            Some(c) if c.state == Running::Exited && waits(pod, container) => Some(c),
            _ => ended.next(),
        };
        return found.ok_or_else(|| {
            bad(format!("previous terminated container \"{container}\" in pod \"{name}\" not found"))
        });
    }
    match observed.newest(container) {
        Some(found) if found.state != Running::Created => Ok(found),
        _ => {
            let reason = waiting_reason(pod, container).unwrap_or_else(|| "ContainerCreating".to_owned());
            let reason = match reason.as_str() {
                "ErrImagePull" => "image can't be pulled",
                "ImagePullBackOff" => "trying and failing to pull image",
                other => other,
            };
            Err(bad(format!("container \"{container}\" in pod \"{name}\" is waiting to start: {reason}")))
        }
    }
}

fn waiting_reason(pod: &Pod, container: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let found = lists.into_iter().flatten().flatten().find(|s| s.name == container)?;
    found.state.as_ref()?.waiting.as_ref()?.reason.clone()
}

fn waits(pod: &Pod, container: &str) -> bool {
    waiting_reason(pod, container).is_some()
}

pub(super) fn flag(query: &HashMap<String, String>, name: &str) -> bool {
    query.get(name).is_some_and(|v| matches!(v.as_str(), "1" | "true" | "True" | "t"))
}

fn options(query: &HashMap<String, String>, now: jiff::Timestamp) -> Result<Options, Refusal> {
    let number = |name: &str| -> Result<Option<u64>, Refusal> {
        let Some(text) = query.get(name).filter(|t| !t.is_empty()) else { return Ok(None) };
        let parsed = text.parse().map(Some);
        parsed.map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, format!("invalid {name}: {text:?}")))
    };
    let since = match query.get("sinceTime").filter(|t| !t.is_empty()) {
        Some(text) => Some(
            text.parse()
                .map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, format!("invalid sinceTime: {text:?}")))?,
        ),
        None => number("sinceSeconds")?.map(|s| before(now, i64::try_from(s).unwrap_or(i64::MAX))),
    };
    let stream = query.get("stream").map(|s| s.to_lowercase()).filter(|s| s == "stdout" || s == "stderr");
    Ok(Options {
        follow: flag(query, "follow"),
        tail: number("tailLines")?,
        since,
        timestamps: flag(query, "timestamps"),
        limit_bytes: number("limitBytes")?,
        stream,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_those_of_kubectl() {
        let query = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let now = jiff::Timestamp::from_second(1000).unwrap();
        let all = options(
            &query(&[("follow", "true"), ("tailLines", "5"), ("sinceSeconds", "60"), ("limitBytes", "9")]),
            now,
        )
        .unwrap();
        assert!(all.follow && !all.timestamps);
        assert_eq!((all.tail, all.limit_bytes, all.since.unwrap().as_second()), (Some(5), Some(9), 940));
        assert!(options(&query(&[("tailLines", "x")]), now).is_err());
        assert!(options(&query(&[("sinceTime", "yesterday")]), now).is_err());
    }
}
