//! The API servers that share a store: each shows that it lives by a Lease in `kube-system`, as kube-apiserver's
//! identity Leases are, and the `kubernetes` Service leads to all that live.
//!
//! A Lease counts from when this server saw it change, by its own clock: no clocks are compared. A server that stops takes
//! itself out; one that dies is taken out by the others when its Lease is over.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use decapod_api::meta;
use decapod_api::status::Error;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::Core;
use super::bootstrap::ensure;
use crate::clock::rfc3339_micros;
use crate::registry::options::DeleteOptions;
use crate::registry::update::Part;
use crate::registry::{Call, Registry, core, row};

/// A server that is not heard of for this long is gone, as Kubernetes has it.
const HOLDS: Duration = Duration::from_secs(15);
/// The time between two renewals: several may fail before a server is taken out.
const RENEWAL: Duration = Duration::from_secs(3);

const NAMESPACE: &str = "kube-system";
/// The label of the Leases of API servers, and its value.
const IDENTITY: (&str, &str) = ("apiserver.kubernetes.io/identity", "kube-apiserver");
/// Where a server is reached, on its Lease.
const ENDPOINT: &str = "decapod.dev/endpoint";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// This server among the others.
pub(super) struct Member {
    identity: String,
    lease: String,
    endpoint: SocketAddr,
    /// The Leases of all, as they stand there, and since when.
    seen: HashMap<String, (String, Instant)>,
}

impl Member {
    /// A server of this name that is reached there.
    pub(super) fn new(identity: &str, endpoint: SocketAddr) -> Self {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let suffix: String = identity.chars().map(plain).collect();
        Self {
            identity: identity.to_owned(),
            lease: format!("apiserver-{}", suffix.trim_matches('-')),
            endpoint,
            seen: HashMap::new(),
        }
    }

    /// Shows that this server lives, and brings the Service in line with all that do.
    pub(super) async fn renew(&mut self, registry: &Registry) -> Result<(), Error> {
        let now = rfc3339_micros(registry.clock.now());
        let spec = json!({"holderIdentity": self.identity, "leaseDurationSeconds": HOLDS.as_secs(), "renewTime": now});
        let annotations = json!({ENDPOINT: self.endpoint.to_string()});
        let wanted = json!({"metadata": {"labels": {IDENTITY.0: IDENTITY.1}, "annotations": annotations}, "spec": spec});
        ensure(registry, leases(), NAMESPACE, &self.lease, wanted).await?;
        let change = |old: &Value| {
            let mut new = old.clone();
            new["metadata"]["annotations"][ENDPOINT] = annotations[ENDPOINT].clone();
            new["spec"] = spec.clone();
            Ok(new)
        };
        registry.modify(&Call::own(leases(), NAMESPACE, &self.lease), Part::Main, change).await?;
        let all = registry.all(leases(), NAMESPACE).await?;
        let (alive, dead) = self.look(&all, Instant::now());
        for lease in dead {
            tracing::info!(lease, "an API server is gone");
            remove(registry, leases(), NAMESPACE, &lease).await?;
        }
        publish(registry, &alive).await
    }

    /// Takes this server out.
    async fn leave(&mut self, registry: &Registry) -> Result<(), Error> {
        remove(registry, leases(), NAMESPACE, &self.lease).await?;
        let mut all = registry.all(leases(), NAMESPACE).await?;
        all.retain(|lease| meta::name(lease) != self.lease);
        let (alive, _) = self.look(&all, Instant::now());
        // The last one stays: who comes back finds it where it was.
        if alive.is_empty() { Ok(()) } else { publish(registry, &alive).await }
    }

    /// Where those that live are reached, and the Leases of those that do not.
    fn look(&mut self, leases: &[Value], now: Instant) -> (BTreeSet<SocketAddr>, Vec<String>) {
        let (mut alive, mut dead) = (BTreeSet::new(), Vec::new());
        let mut seen = HashMap::new();
        for lease in leases.iter().filter(|lease| lease["metadata"]["labels"][IDENTITY.0] == IDENTITY.1) {
            let endpoint = lease["metadata"]["annotations"][ENDPOINT].as_str().and_then(|at| at.parse().ok());
            // A foreign kube-apiserver looks after its own.
            let Some(endpoint) = endpoint else { continue };
            let name = meta::name(lease).to_owned();
            let renewed = lease["spec"]["renewTime"].as_str().unwrap_or_default().to_owned();
            let unchanged = self.seen.get(&name).filter(|(before, _)| *before == renewed);
            let since = unchanged.map_or(now, |(_, since)| *since);
            if now.duration_since(since) < HOLDS {
                alive.insert(endpoint);
            } else {
                dead.push(name.clone());
            }
            seen.insert(name, (renewed, since));
        }
        self.seen = seen;
        (alive, dead)
    }
}

fn leases() -> &'static decapod_api::resource::Resource {
    row("coordination.k8s.io", "v1", "leases")
}

async fn remove(
    registry: &Registry,
    resource: &'static decapod_api::resource::Resource,
    namespace: &str,
    name: &str,
) -> Result<(), Error> {
    match registry.delete(&Call::own(resource, namespace, name), &DeleteOptions::default()).await {
        Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The EndpointSlices of the `kubernetes` Service by name: those of one slice share their port.
fn slices(alive: &BTreeSet<SocketAddr>) -> BTreeMap<String, Value> {
    let mut groups: BTreeMap<(u16, bool), Vec<String>> = BTreeMap::new();
    for endpoint in alive {
        groups.entry((endpoint.port(), endpoint.is_ipv6())).or_default().push(endpoint.ip().to_string());
    }
    let named = groups.into_iter().enumerate().map(|(index, ((port, v6), addresses))| {
        let family = if v6 { "IPv6" } else { "IPv4" };
        let name = match index {
            0 => "kubernetes".to_owned(),
            _ => format!("kubernetes-{}-{port}", family.to_lowercase()),
        };
        let endpoints: Vec<Value> =
            addresses.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
        let slice = json!({
            "metadata": {"labels": {SERVICE_NAME: "kubernetes"}}, "addressType": family,
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}], "endpoints": endpoints});
        (name, slice)
    });
    named.collect()
}

/// The Endpoints of the `kubernetes` Service.
fn endpoints(alive: &BTreeSet<SocketAddr>) -> Value {
    let mut groups: BTreeMap<u16, Vec<Value>> = BTreeMap::new();
    for endpoint in alive {
        groups.entry(endpoint.port()).or_default().push(json!({"ip": endpoint.ip().to_string()}));
    }
    let subset = |(port, addresses): (u16, Vec<Value>)| json!({"addresses": addresses, "ports": [{"name": "https", "port": port, "protocol": "TCP"}]});
    let subsets: Vec<Value> = groups.into_iter().map(subset).collect();
    json!({"metadata": {"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}, "subsets": subsets})
}

/// Makes the `kubernetes` Service lead to these servers.
pub(super) async fn publish(registry: &Registry, alive: &BTreeSet<SocketAddr>) -> Result<(), Error> {
    put(registry, core("endpoints"), "kubernetes", &endpoints(alive)).await?;
    let resource = row("discovery.k8s.io", "v1", "endpointslices");
    let wanted = slices(alive);
    for (name, slice) in &wanted {
        put(registry, resource, name, slice).await?;
    }
    for slice in registry.all(resource, "default").await? {
        let name = meta::name(&slice);
        let ours =
            slice["metadata"]["labels"][SERVICE_NAME] == "kubernetes" && name.starts_with("kubernetes-ipv");
        if ours && !wanted.contains_key(name) {
            remove(registry, resource, "default", name).await?;
        }
    }
    Ok(())
}

/// Makes an object in `default` say this, whatever it says now. The kind of its addresses cannot change: it is made anew.
async fn put(
    registry: &Registry,
    resource: &'static decapod_api::resource::Resource,
    name: &str,
    object: &Value,
) -> Result<(), Error> {
    let call = Call::own(resource, "default", name);
    if let Some((there, _)) = registry.current(&call).await?
        && there["addressType"] != object["addressType"]
    {
        remove(registry, resource, "default", name).await?;
    }
    ensure(registry, resource, "default", name, object.clone()).await?;
    let change = |old: &Value| {
        let mut new = old.clone();
        for (field, value) in object.as_object().into_iter().flatten().filter(|(f, _)| *f != "metadata") {
            new[field] = value.clone();
        }
        Ok(new)
    };
    registry.modify(&call, Part::Main, change).await.map(drop)
}

/// Shows that this server lives, until it stops.
pub(super) fn keep(core: &Arc<Core>, mut member: Member, tasks: &TaskTracker) {
    let core = core.clone();
    tasks.spawn(async move {
        let stop = core.stopping.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(RENEWAL) => {}
            }
            if let Err(error) = member.renew(&core.registry).await {
                tracing::warn!(%error, "this API server cannot show that it lives");
            }
        }
        match tokio::time::timeout(RENEWAL, member.leave(&core.registry)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the others find out by themselves that this API server is gone")
            }
            Err(_) => tracing::warn!(
                "the store does not answer: the others find out by themselves that this API server is gone"
            ),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(name: &str, endpoint: &str, renewed: &str) -> Value {
        json!({"metadata": {"name": name, "labels": {IDENTITY.0: IDENTITY.1}, "annotations": {ENDPOINT: endpoint}},
            "spec": {"renewTime": renewed}})
    }

    #[test]
    fn a_server_that_falls_silent_is_gone() {
        let mut member = Member::new("me", "10.0.0.1:6443".parse().unwrap());
        let begin = Instant::now();
        let (one, other) = (lease("a", "10.0.0.1:6443", "1"), lease("b", "10.0.0.2:6443", "1"));
        let foreign = json!({"metadata": {"name": "c", "labels": {IDENTITY.0: IDENTITY.1}}});
        let (alive, dead) = member.look(&[one, other.clone(), foreign], begin);
        assert_eq!((alive.len(), dead.len()), (2, 0));
        let (alive, dead) = member.look(&[lease("a", "10.0.0.1:6443", "2"), other], begin + HOLDS);
        assert_eq!(alive.into_iter().collect::<Vec<_>>(), ["10.0.0.1:6443".parse().unwrap()]);
        assert_eq!(dead, ["b"]);
    }

    #[test]
    fn servers_on_other_ports_are_in_other_slices() {
        let alive = ["10.0.0.1:6443", "10.0.0.2:6443", "10.0.0.1:7443"].map(|at| at.parse().unwrap());
        let alive = BTreeSet::from(alive);
        let slices = slices(&alive);
        assert_eq!(slices.keys().collect::<Vec<_>>(), ["kubernetes", "kubernetes-ipv4-7443"]);
        assert_eq!(slices["kubernetes"]["endpoints"].as_array().unwrap().len(), 2);
        assert_eq!(endpoints(&alive)["subsets"].as_array().unwrap().len(), 2);
    }
}
