//! NetworkPolicy on this machine's node: a pod's rules are in place before it runs.

use std::net::IpAddr;

use decapod_network::policy::{self, PodIdentity, Policies};
use decapod_runtime::{Attachment, Source};

use super::settings::Place;

/// How the policies of a node are kept.
pub(super) fn options(place: &Place, node: &str) -> policy::Options {
    policy::Options { table: place.policy_table(), ..policy::Options::new(node) }
}

/// Puts the policies of a pod in place that was given these addresses.
pub(super) async fn attach(
    policies: &Policies,
    sandbox: &Attachment,
    addresses: &[IpAddr],
) -> Result<(), Source> {
    let metadata = sandbox.config.metadata.clone().unwrap_or_default();
    let pod = PodIdentity {
        namespace: metadata.namespace,
        name: metadata.name,
        uid: metadata.uid,
        labels: sandbox.config.labels.clone().into_iter().collect(),
    };
    for address in addresses {
        // The rules are IPv4's, as the pod network is.
        if let IpAddr::V4(address) = address {
            policies.attach(*address, pod.clone()).await?;
        }
    }
    Ok(())
}
