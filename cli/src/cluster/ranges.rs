//! The addresses of pods and Services are the cluster's own: where the machine has them already, packets
//! would go to whoever is nearer, and what fails then does not say why.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use nix::ifaddrs::getifaddrs;

use super::settings::{Place, Settings};
use crate::failure::Failure;

/// Refuses ranges that overlap with a network that this machine is in.
pub(super) fn check(place: &Place, settings: &Settings) -> Result<(), Failure> {
    clash(settings, &networks(place)?)
}

/// The networks of this machine's links, those of the cluster itself left out.
fn networks(place: &Place) -> Result<Vec<(String, Ipv4Net)>, Failure> {
    let own = [place.bridge(), place.wire()];
    let links = getifaddrs().map_err(std::io::Error::from)?;
    let network = |link: nix::ifaddrs::InterfaceAddress| {
        let address: Ipv4Addr = link.address.as_ref()?.as_sockaddr_in()?.ip();
        let mask: Ipv4Addr = link.netmask.as_ref()?.as_sockaddr_in()?.ip();
        let network = Ipv4Net::with_netmask(address, mask).ok()?;
        (!own.contains(&link.interface_name)).then_some((link.interface_name, network))
    };
    Ok(links.filter_map(network).collect())
}

fn clash(settings: &Settings, networks: &[(String, Ipv4Net)]) -> Result<(), Failure> {
    // The network plugin of a foreign runtime has a bridge of its own among the pods.
    let pods = settings.container_runtime_endpoint.is_none().then_some(("--pod-cidr", settings.pod_cidr));
    for (flag, range) in pods.into_iter().chain([("--service-cidr", settings.service_cidr)]) {
        let overlaps = |net: &Ipv4Net| net.contains(&range) || range.contains(net);
        if let Some((link, network)) = networks.iter().find(|(_, network)| overlaps(network)) {
            return Err(Failure::new(format!(
                "{flag} {range} overlaps with {} of this machine's {link}",
                network.trunc()
            ))
            .hint(format!(
                "{flag} takes a range that nothing else uses; if {link} is another cluster's, give each its own"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::settings::Which;
    use crate::cluster::settings::tests::settings;

    #[test]
    fn a_range_that_the_machine_is_in_is_refused_by_both_names() {
        let own = settings(&["--pod-cidr", "10.1.0.0/16"]);
        let network = |text: &str| ("eth0".to_owned(), text.parse().unwrap());
        clash(&own, &[network("192.168.1.7/24")]).unwrap();
        let error = clash(&own, &[network("10.1.7.3/24")]).unwrap_err().to_string();
        assert!(
            error.starts_with("--pod-cidr 10.1.0.0/16 overlaps with 10.1.7.0/24 of this machine's eth0"),
            "{error}"
        );
        let foreign = ["--pod-cidr", "10.1.0.0/16", "--container-runtime-endpoint", "unix:///run/x.sock"];
        clash(&settings(&foreign), &[network("10.1.7.3/24")]).unwrap();
        let error = clash(&own, &[network("10.96.0.1/12")]).unwrap_err().to_string();
        assert!(error.contains("--service-cidr 10.96.0.0/16 overlaps with 10.96.0.0/12"), "{error}");
    }

    #[test]
    fn what_the_cluster_made_itself_is_no_clash() {
        let place = Which { name: "x".into(), data_dir: "/x".into() }.place().unwrap();
        let found = networks(&place).unwrap();
        assert!(found.iter().any(|(_, network)| network.addr().is_loopback()), "{found:?}");
    }
}
