//! A container's log as the messages of a WebSocket, which no client library has a call for.

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::suite::Test;
use futures::TryFutureExt;
use http::header::{CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{NAMESPACE, pod, sh, stage};
use crate::conformance::PATIENCE;
use crate::kube_client::with_client;

pub(super) const TESTS: &[Test<Cluster>] =
    &[("[sig-node] Pods should support retrieving logs from the container over websockets", logs)];

/// The kinds of messages (RFC 6455, 5.2).
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
/// The bit of a message's last frame.
const LAST: u8 = 0x80;

pub(super) fn pods() -> Vec<Value> {
    vec![pod("logged", json!([sh("c", "echo first; echo second; exec sleep 3600", json!({}))]), json!({}))]
}

fn logs(cluster: &Cluster) -> Result<()> {
    stage(cluster)?.cluster.ready(NAMESPACE, "logged")?;
    // Both lines, however late the second is: the log is followed for as many bytes.
    let path =
        format!("/api/v1/namespaces/{NAMESPACE}/pods/logged/log?container=c&follow=true&limitBytes=13");
    let request = http::Request::get(path)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
        .header(SEC_WEBSOCKET_PROTOCOL, "binary.k8s.io")
        .body(kube::client::Body::empty())?;
    with_client(cluster, async |client| {
        let answer = client.send(request).await?;
        ensure!(answer.status() == http::StatusCode::SWITCHING_PROTOCOLS, "{answer:?}");
        ensure!(answer.headers()[SEC_WEBSOCKET_PROTOCOL] == "binary.k8s.io", "{answer:?}");
        let socket = TokioIo::new(hyper::upgrade::on(answer).await?);
        let read = tokio::time::timeout(PATIENCE, messages(socket)).map_err(anyhow::Error::from);
        let read = read.await.context("the log has no end")??;
        ensure!(read == b"first\nsecond\n", "{:?}", String::from_utf8_lossy(&read));
        Ok(())
    })
}

/// What all binary messages say, until the server closes. They are short: no length takes more than its seven bits.
async fn messages(mut socket: impl AsyncRead + Unpin) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let (kind, length) = (socket.read_u8().await?, socket.read_u8().await?);
        ensure!(length < 126, "a message of more than 125 bytes, or one that is masked");
        let mut message = vec![0; usize::from(length)];
        socket.read_exact(&mut message).await?;
        match kind & !LAST {
            CLOSE => return Ok(all),
            BINARY => all.extend(message),
            other => anyhow::bail!("a message of kind {other}: {message:?}"),
        }
    }
}
