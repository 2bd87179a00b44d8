//! What the kubelet has to know of the service network: when a pod that ends is out of it.

use std::net::IpAddr;

/// Answers when this node's service rules stopped sending new connections to a pod.
///
/// The kubelet asks before it stops the containers of a deleted pod, and waits a bounded time only: Kubernetes
/// itself leaves the two to race, so that a rolling update refuses connections now and then.
#[async_trait::async_trait]
pub trait Traffic: Send + Sync {
    /// Returns once no Service of this node's rules has `address` among its ready endpoints.
    async fn left(&self, address: IpAddr);
}

/// For a node without service rules of its own, where another program proxies: nothing to wait for.
#[derive(Clone, Copy, Debug)]
pub struct NoServices;

#[async_trait::async_trait]
impl Traffic for NoServices {
    async fn left(&self, _address: IpAddr) {}
}
