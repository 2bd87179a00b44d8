//! Connections that end at a kubelet: logs, exec, attach, port forwarding, and its own paths; and
//! those that end at a pod, its own or one of a Service's.
//!
//! The API server authorizes the request, finds the pod's node, and from then on only carries
//! bytes: what the kubelet answers, and upgraded connections (WebSocket) as they are.

mod dial;
mod service;
mod target;

use decapod_api::status::Error;
use http::header::{
    AUTHORIZATION, CONNECTION, COOKIE, HOST, HeaderMap, HeaderValue, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use crate::endpoint;
use crate::http::Body;
use crate::http::body;
pub(crate) use dial::Kubelets;

/// Subprotocols that carry a bearer token end here.
const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// Carries a request to the kubelet that it is for, and the answer back.
pub(crate) async fn connect(
    request: &endpoint::Request<'_>,
    mut incoming: Request<Body>,
    headers: &HeaderMap,
) -> Result<Response<Body>, Error> {
    let target = target::find(request, incoming.uri()).await?;
    let upgrade = headers.get(UPGRADE).cloned();
    let client = upgrade.is_some().then(|| hyper::upgrade::on(&mut incoming));
    let mut outgoing = Request::builder().method(incoming.method().clone()).uri(&target.path);
    if let Some(map) = outgoing.headers_mut() {
        *map = forwarded(headers, upgrade.as_ref());
        map.insert(
            HOST,
            HeaderValue::from_str(&target.authority()).map_err(|e| unreachable_node(&target, &e))?,
        );
    }
    let outgoing = outgoing.body(incoming.into_body()).map_err(|e| Error::BadRequest(e.to_string()))?;
    let mut answer =
        request.core.kubelets.send(&target, outgoing).await.map_err(|e| unreachable_node(&target, &*e))?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = client
    {
        let kubelet = hyper::upgrade::on(&mut answer);
        let stop = request.core.stopping.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                carried = carry(client, kubelet) => if let Err(error) = carried {
                    tracing::debug!(%error, "an upgraded connection ended");
                }
            }
        });
        return Ok(answer.map(|_| body::empty()));
    }
    answer.headers_mut().remove(CONNECTION);
    Ok(answer.map(body::erase))
}

fn unreachable_node(target: &target::Target, error: &dyn std::fmt::Display) -> Error {
    Error::Internal(format!("error dialing backend: {}: {error}", target.authority()))
}

async fn carry(
    client: hyper::upgrade::OnUpgrade,
    kubelet: hyper::upgrade::OnUpgrade,
) -> Result<(), body::BoxError> {
    let (client, kubelet) = futures::try_join!(client, kubelet)?;
    let (mut client, mut kubelet) = (TokioIo::new(client), TokioIo::new(kubelet));
    tokio::io::copy_bidirectional(&mut client, &mut kubelet).await?;
    Ok(())
}

/// The headers that the kubelet gets: none of the client's credentials.
fn forwarded(headers: &HeaderMap, upgrade: Option<&HeaderValue>) -> HeaderMap {
    let mut forwarded = headers.clone();
    for name in [AUTHORIZATION, COOKIE, HOST, CONNECTION, UPGRADE, SEC_WEBSOCKET_PROTOCOL] {
        forwarded.remove(name);
    }
    if let Some(upgrade) = upgrade {
        forwarded.insert(UPGRADE, upgrade.clone());
        forwarded.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL);
    let offered = offered.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    let offered: Vec<&str> = offered.map(str::trim).filter(|p| !p.starts_with(TOKEN_PROTOCOL)).collect();
    if !offered.is_empty()
        && let Ok(value) = HeaderValue::from_str(&offered.join(", "))
    {
        forwarded.insert(SEC_WEBSOCKET_PROTOCOL, value);
    }
    forwarded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_stay_here() {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        headers.insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static("v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.YQ"),
        );
        let forwarded = forwarded(&headers, Some(&HeaderValue::from_static("websocket")));
        assert!(forwarded.get(AUTHORIZATION).is_none());
        assert_eq!(forwarded[SEC_WEBSOCKET_PROTOCOL], "v5.channel.k8s.io");
        assert_eq!(forwarded[CONNECTION], "Upgrade");
    }
}
