//! What the API server itself wants to know of a node.

use decapod_api::status::Error;
use http::header::HOST;
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Limited};
use serde_json::Value;

use super::dial::Kubelets;
use super::{target, unreachable};
use crate::http::body;

/// Reads a text of at most `limit` bytes from a path of the node's kubelet.
///
/// # Errors
/// If the node has no address, does not answer, refuses, or says more than that.
pub(crate) async fn fetch(
    kubelets: &Kubelets,
    node: &Value,
    path: &str,
    limit: usize,
) -> Result<String, Error> {
    let target = target::at_node(node, path.to_owned())?;
    let bad = |error: &dyn std::fmt::Display| Error::Internal(format!("{}: {error}", target.authority()));
    let host = HeaderValue::from_str(&target.authority()).map_err(|e| bad(&e))?;
    let request = Request::get(path).header(HOST, host).body(body::empty()).map_err(|e| bad(&e))?;
    let answer = kubelets.send(&target, request).await.map_err(|error| unreachable(&target, &*error))?;
    let status = answer.status();
    let bytes = Limited::new(answer.into_body(), limit).collect().await.map_err(|e| bad(&e))?.to_bytes();
    if !status.is_success() {
        return Err(bad(&format!("request failed, status: {status:?}")));
    }
    String::from_utf8(bytes.to_vec()).map_err(|e| bad(&e))
}
