//! Which addresses the installed rules send new connections to, for those who wait until there are none.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use decapod_client::ObjectKey;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::watch;

/// The addresses of ready endpoints as the node's rules have them. Clones see the same.
///
/// A pod that ends is taken out of its Services by whoever writes EndpointSlices, while its node stops its
/// containers. Kubernetes leaves the two to race; with this a node agent can let the rules go first.
#[derive(Clone, Debug)]
pub struct Traffic(Arc<watch::Sender<Ready>>);

/// By Service. One that has no ready endpoint is not listed.
type Ready = HashMap<ObjectKey, Vec<Ipv4Addr>>;

impl Default for Traffic {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Ready::new())))
    }
}

impl Traffic {
    /// Waits until the rules send no new connection to `address` as a ready endpoint; at once if they do not now.
    /// What no other endpoint can serve may still go there while the pod terminates.
    pub async fn left(&self, address: Ipv4Addr) {
        let gone = |ready: &Ready| !ready.values().flatten().any(|ready| *ready == address);
        let mut told = self.0.subscribe();
        // The sender is `self`: it cannot be gone.
        let _gone = told.wait_for(gone).await.is_ok();
    }

    /// Takes note of what the rules have since just now.
    pub(super) fn publish(&self, changed: impl IntoIterator<Item = (ObjectKey, Vec<Ipv4Addr>)>) {
        self.0.send_modify(|ready| {
            for (key, addresses) in changed {
                if addresses.is_empty() {
                    ready.remove(&key);
                } else {
                    ready.insert(key, addresses);
                }
            }
        });
    }
}

/// The addresses of the ready endpoints in the slices of one Service.
pub(super) fn ready<'s>(slices: impl Iterator<Item = &'s EndpointSlice>) -> Vec<Ipv4Addr> {
    let endpoints = slices.flat_map(|slice| slice.endpoints.iter().flatten());
    endpoints
        .filter(|endpoint| endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true))
        .filter_map(|endpoint| endpoint.addresses.first()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn waits_for_the_last_service_to_let_go() {
        let traffic = Traffic::default();
        let pod = Ipv4Addr::new(10, 0, 0, 1);
        let (web, api) = (ObjectKey::new("ns", "web"), ObjectKey::new("ns", "api"));
        traffic.left(pod).await;
        traffic.publish([(web.clone(), vec![pod, Ipv4Addr::new(10, 0, 0, 2)]), (api.clone(), vec![pod])]);
        let mut left = std::pin::pin!(traffic.left(pod));
        assert_eq!(poll!(&mut left), Poll::Pending);
        traffic.publish([(web, vec![Ipv4Addr::new(10, 0, 0, 2)])]);
        assert_eq!(poll!(&mut left), Poll::Pending);
        traffic.publish([(api, Vec::new())]);
        assert_eq!(poll!(&mut left), Poll::Ready(()));
    }
}
