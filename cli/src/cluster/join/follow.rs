//! Which API servers the cluster has: its `kubernetes` Service says so, and what it said last is kept for a start while
//! the servers that the user named are gone.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use decapod_client::informer::Informer;
use decapod_client::servers::Servers;
use http::Uri;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::cluster::settings::{Place, write_whole};
use crate::failure::Failure;

/// The Service of the API servers.
const SERVICE: (&str, &str) = ("default", "kubernetes");
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The port among those of the Service.
const PORT: &str = "https";

/// Where the servers that the cluster named are kept, one a line.
pub(super) fn file(place: &Place) -> PathBuf {
    place.data().join("servers")
}

/// The servers that the cluster named at an earlier time.
pub(super) fn told_before(file: &Path) -> Result<Vec<Uri>, Failure> {
    let bad = |why: String| {
        Failure::new(format!("{}: {why}", file.display()))
            .hint("remove it: the agent learns anew which servers there are")
    };
    match std::fs::read_to_string(file) {
        Ok(text) => {
            text.lines().map(|line| line.parse::<Uri>().map_err(|e| bad(format!("{line}: {e}")))).collect()
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(bad(error.to_string())),
    }
}

/// Keeps `servers` told, for as long as the mirror of EndpointSlices lives.
pub(in crate::cluster) fn follow(
    slices: Informer<EndpointSlice>,
    servers: Servers,
    place: &Place,
) -> impl Future<Output = ()> + use<> {
    let file = file(place);
    async move {
        let mut changes = slices.subscribe();
        let mut known = Vec::new();
        while let Some(change) = changes.next().await {
            if change.key.namespace != SERVICE.0 || !is_servers(change.latest()) {
                continue;
            }
            let told = told(&slices.list_in(SERVICE.0));
            // That there is none is said by nobody who could say it.
            if told.is_empty() || told == known {
                continue;
            }
            tracing::info!(servers = ?told.iter().map(Uri::to_string).collect::<Vec<_>>(), "the cluster's API servers");
            servers.learn(told.clone());
            let lines: String = told.iter().map(|url| format!("{url}\n")).collect();
            if let Err(error) = write_whole(&file, lines.as_bytes(), 0o600) {
                tracing::warn!(%error, "the cluster's API servers cannot be kept for the next start");
            }
            known = told;
        }
    }
}

fn is_servers(slice: &EndpointSlice) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(SERVICE_NAME)).is_some_and(|service| service == SERVICE.1)
}

/// The URLs that slices name, in an order that is always the same.
fn told(slices: &[Arc<EndpointSlice>]) -> Vec<Uri> {
    let mut addresses = Vec::new();
    for slice in slices.iter().filter(|slice| is_servers(slice)) {
        let ports = slice.ports.iter().flatten().filter(|port| port.name.as_deref() == Some(PORT));
        let ports: Vec<u16> = ports.filter_map(|port| u16::try_from(port.port?).ok()).collect();
        let ready = |endpoint: &&k8s_openapi::api::discovery::v1::Endpoint| {
            endpoint.conditions.as_ref().is_none_or(|conditions| conditions.ready != Some(false))
        };
        let hosts = slice.endpoints.iter().flatten().filter(ready).flat_map(|endpoint| &endpoint.addresses);
        let hosts: Vec<IpAddr> = hosts.filter_map(|address| address.parse().ok()).collect();
        addresses
            .extend(hosts.iter().flat_map(|host| ports.iter().map(|port| SocketAddr::new(*host, *port))));
    }
    addresses.sort_unstable();
    addresses.dedup();
    // An address and a port always make one.
    addresses.iter().filter_map(|address| format!("https://{address}").parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn slice(name: &str, service: &str, port: u16, endpoints: Value) -> Arc<EndpointSlice> {
        let object = json!({"metadata": {"name": name, "namespace": "default", "labels": {SERVICE_NAME: service}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "https", "port": port}, {"name": "metrics", "port": 1}]});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn the_service_says_which_servers_there_are() {
        let ready = |ip: &str| json!({"addresses": [ip], "conditions": {"ready": true}});
        let slices = [
            slice("kubernetes-ipv4-7443", "kubernetes", 7443, json!([ready("10.0.0.1")])),
            slice(
                "kubernetes",
                "kubernetes",
                6443,
                json!([ready("10.0.0.2"), ready("10.0.0.1"),
                {"addresses": ["10.0.0.3"], "conditions": {"ready": false}}]),
            ),
            slice("web-x", "web", 443, json!([ready("10.0.0.9")])),
        ];
        let told: Vec<String> = told(&slices).iter().map(Uri::to_string).collect();
        let expected = ["https://10.0.0.1:6443/", "https://10.0.0.1:7443/", "https://10.0.0.2:6443/"];
        assert_eq!(told, expected);
    }

    #[test]
    fn what_was_told_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("servers");
        assert!(told_before(&file).unwrap().is_empty());
        std::fs::write(&file, "https://10.0.0.1:6443/\nhttps://[fd00::1]:6443/\n").unwrap();
        assert_eq!(told_before(&file).unwrap()[1].host(), Some("[fd00::1]"));
        std::fs::write(&file, "not a url\n").unwrap();
        let error = told_before(&file).unwrap_err().to_string();
        assert!(error.contains("not a url") && error.contains("remove it"), "{error}");
    }
}
