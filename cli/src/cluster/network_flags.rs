//! The flags about how Services are reached from outside.

use std::collections::BTreeMap;

use clap::Args;
use decapod_controllers::loadbalancer::{self, Pool};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::settings::Settings;
use crate::failure::Failure;

/// What is said about traffic from outside.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct NetworkFlags {
    /// The addresses of Services of type LoadBalancer, as CIDR blocks and ranges: 192.0.2.16/28,192.0.2.40-192.0.2.49
    /// (default: those of the nodes). None gives them no addresses: something else does.
    #[arg(long, value_name = "POOL", value_parser = pool)]
    load_balancer_pool: Option<String>,
    /// On which addresses of nodes the ports of Services answer, as CIDR blocks (default: on all).
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    pub(super) nodeport_addresses: Vec<Ipv4Net>,
    /// Run the built-in Ingress controller, and make its class the default. It takes its two ports on every node
    /// (or on an address of the pool), which is why it is not there unasked.
    #[arg(long)]
    ingress: bool,
    /// The port of the Ingress controller for HTTP (default: 80).
    #[arg(long, value_name = "PORT", requires = "ingress", value_parser = clap::value_parser!(u16).range(1..))]
    ingress_http_port: Option<u16>,
    /// The port of the Ingress controller for HTTPS (default: 443).
    #[arg(long, value_name = "PORT", requires = "ingress", value_parser = clap::value_parser!(u16).range(1..))]
    ingress_https_port: Option<u16>,
}

/// What stands for no load balancers at all.
const NONE: &str = "none";

/// A pool, kept as it was written.
fn pool(text: &str) -> Result<String, String> {
    if !text.eq_ignore_ascii_case(NONE) {
        text.parse::<Pool>().map_err(|error| error.to_string())?;
    }
    Ok(text.to_owned())
}

impl NetworkFlags {
    /// The flags that say the same to a server.
    pub(crate) fn flags(&self) -> Vec<String> {
        let nodeport_addresses =
            self.nodeport_addresses.iter().map(Ipv4Net::to_string).collect::<Vec<_>>().join(",");
        let given = [
            ("load-balancer-pool", self.load_balancer_pool.clone()),
            ("nodeport-addresses", Some(nodeport_addresses).filter(|text| !text.is_empty())),
            ("ingress-http-port", self.ingress_http_port.map(|port| port.to_string())),
            ("ingress-https-port", self.ingress_https_port.map(|port| port.to_string())),
        ];
        let given = given.into_iter().filter_map(|(flag, value)| Some(format!("--{flag}={}", value?)));
        self.ingress.then(|| "--ingress".to_owned()).into_iter().chain(given).collect()
    }

    /// The ports of the Ingress controller for HTTP and HTTPS; `None` if there is none.
    pub(crate) fn ingress(&self) -> Option<(u16, u16)> {
        self.ingress.then(|| (self.ingress_http_port.unwrap_or(80), self.ingress_https_port.unwrap_or(443)))
    }

    /// How Services of type LoadBalancer get addresses; `None` if not from here.
    pub(crate) fn load_balancers(
        &self,
        settings: &Settings,
    ) -> Result<Option<loadbalancer::Options>, Failure> {
        let text = self.load_balancer_pool.as_deref().unwrap_or_default();
        if text.eq_ignore_ascii_case(NONE) {
            return Ok(None);
        }
        let pool: Pool =
            text.parse().map_err(|error| Failure::new(format!("--load-balancer-pool: {error}")))?;
        for (flag, range) in [("--pod-cidr", settings.pod_cidr), ("--service-cidr", settings.service_cidr)] {
            if pool.overlaps(range.network(), range.broadcast()) {
                return Err(Failure::new(format!("--load-balancer-pool {pool} and {flag} {range} overlap")));
            }
        }
        let ports =
            [(settings.listen.port(), "the API server"), (settings.kubelet_port, "the node's server")];
        let reserved: BTreeMap<u16, String> =
            ports.into_iter().map(|(port, whose)| (port, whose.to_owned())).collect();
        Ok(Some(loadbalancer::Options { pool, reserved }))
    }
}
