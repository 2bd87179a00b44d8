//! Two machines of one name would fight over one Node, each ending the pods of the other: the second one is
//! refused before it keeps anything.

use std::net::IpAddr;

use decapod_client::clock::Clock;
use jiff::SignedDuration;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;

use crate::failure::Failure;

/// Where nodes show that they live.
const LEASES: &str = "kube-node-lease";
/// A node that has not shown itself for as long may be replaced: its lease has ended.
const SILENCE: SignedDuration = SignedDuration::from_secs(40);

/// Refuses the name of a node that lives elsewhere. `client` is the node's own: the token may not read Nodes.
pub(super) async fn refuse(
    client: &kube::Client,
    name: &str,
    address: IpAddr,
    clock: &dyn Clock,
) -> Result<(), Failure> {
    let Some(node) = Api::<Node>::all(client.clone()).get_opt(name).await? else { return Ok(()) };
    let status = node.status.unwrap_or_default();
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    let addresses = status.addresses.unwrap_or_default();
    let elsewhere = addresses.iter().find(|a| a.type_ == "InternalIP" && a.address != address.to_string());
    let (true, Some(elsewhere)) = (ready, elsewhere) else { return Ok(()) };
    let lease = Api::<Lease>::namespaced(client.clone(), LEASES).get_opt(name).await?;
    let renewed = lease.and_then(|lease| lease.spec?.renew_time);
    if renewed.is_some_and(|at| clock.now().duration_since(at.0) > SILENCE) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "a node \"{name}\" is Ready at {}: two machines cannot have one name",
        elsewhere.address
    ))
    .hint(format!(
        "--node-name gives this machine another name; if the other is gone for good, `kubectl delete node {name}` first"
    )))
}
