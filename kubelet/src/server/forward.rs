//! `/portForward` over WebSocket: two channels per port, data and error, each opened by the port's number.

use std::sync::Arc;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use decapod_client::clock;
use decapod_client::error::chain;
use decapod_proto::cri;
use decapod_runtime::Connection;
use futures::StreamExt;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::channel::{self, AHEAD, V4};
use super::session::form;
use super::{Refusal, find, upgradable};
use crate::pod::{mark, spec};
use crate::shared::Shared;

/// Ports per connection: channel numbers are bytes, two to a port.
const MAX_PORTS: usize = 64;

pub(super) async fn handle(
    State(shared): State<Arc<Shared>>,
    Path((namespace, name)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Refusal> {
    let bad = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message);
    let mut ports = Vec::new();
    for (key, value) in form(query.as_deref().unwrap_or_default()) {
        if matches!(key.as_str(), "port" | "ports") {
            for text in value.split(',') {
                ports.push(
                    text.parse::<u16>().map_err(|_| bad(format!("unable to parse {text:?} as a port")))?,
                );
            }
        }
    }
    if ports.is_empty() || ports.len() > MAX_PORTS {
        return Err(bad("query parameter \"port\" is required".to_owned()));
    }
    let (pod, _) = find(&shared, &namespace, &name).await?;
    let labels = [(mark::POD_UID.to_owned(), spec::uid(&pod).to_owned())];
    let filter = cri::PodSandboxFilter { label_selector: labels.into(), ..Default::default() };
    let ready = cri::PodSandboxState::SandboxReady as i32;
    let sandboxes = shared.runtime.sandbox_list(Some(&filter)).await?;
    let sandbox = sandboxes.into_iter().find(|s| s.state == ready);
    let sandbox = sandbox.ok_or_else(|| {
        Refusal::new(StatusCode::CONFLICT, format!("pod \"{namespace}/{name}\" is not running"))
    })?;
    let upgrade = upgradable(upgrade)?;
    Ok(upgrade.protocols([V4]).on_upgrade(move |socket| run(shared, socket, sandbox.id, ports)))
}

async fn run(shared: Arc<Shared>, socket: WebSocket, sandbox: String, ports: Vec<u16>) {
    let (sink, mut stream) = socket.split();
    let (out, messages) = mpsc::channel(AHEAD);
    let work = async move {
        let mut inputs: Vec<Option<WriteHalf<Connection>>> = Vec::new();
        let mut pumps = JoinSet::new();
        for (index, port) in ports.iter().enumerate() {
            let data = u8::try_from(index * 2).unwrap_or(u8::MAX);
            let number = port.to_le_bytes();
            for channel in [data, data + 1] {
                if out.send(channel::message(channel, &number)).await.is_err() {
                    return;
                }
            }
            match shared.runtime.port_forward(&sandbox, *port).await {
                Ok(connection) => {
                    let (source, input) = split(connection);
                    pumps.spawn(pump(source, data, out.clone()));
                    inputs.push(Some(input));
                }
                Err(error) => {
                    let text = format!("error forwarding port {port} to pod: {}", chain(&error));
                    if out.send(channel::message(data + 1, text.as_bytes())).await.is_err() {
                        return;
                    }
                    inputs.push(None);
                }
            }
        }
        drop(out);
        let client = async {
            while let Some((channel, data)) = channel::next(&mut stream).await {
                feed(&mut inputs, channel, &data).await;
            }
        };
        let mut client = std::pin::pin!(client);
        // The connection ends when the client goes, or when all ports have been closed from inside.
        tokio::select! {
            () = &mut client => {}
            () = async { while pumps.join_next().await.is_some() {} } => {
                let _late = clock::timeout(&*shared.clock, channel::LINGER, client).await;
            }
        }
    };
    tokio::join!(work, channel::drain(messages, sink));
}

async fn pump(source: ReadHalf<Connection>, channel: u8, out: mpsc::Sender<Bytes>) {
    if let Err(error) = channel::pump(source, channel, out).await {
        tracing::debug!(%error, "a forwarded connection ended early");
    }
}

async fn feed(inputs: &mut [Option<WriteHalf<Connection>>], channel: u8, data: &Bytes) {
    // Odd channels carry errors, which clients do not send.
    if !channel.is_multiple_of(2) {
        return;
    }
    let Some(slot) = inputs.get_mut(usize::from(channel / 2)) else { return };
    let Some(input) = slot else { return };
    let written = async {
        input.write_all(data).await?;
        input.flush().await
    };
    if let Err(error) = written.await {
        tracing::debug!(%error, "a forwarded connection does not read");
        *slot = None;
    }
}
