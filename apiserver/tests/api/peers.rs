//! Two servers on one store: both serve the same, and clients find both.

use std::collections::BTreeSet;
use std::time::Duration;

use decapod_apiserver::pki::MASTERS;
use decapod_apiserver::{Options, UserInfo};
use serde_json::{Value, json};

use crate::harness::{Client, Cluster};

/// Of a documentation network: endpoints of other Services than `kubernetes` itself may not be loopback addresses.
const ADDRESS: &str = "192.0.2.1";
const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints/kubernetes";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const SERVICES: &str = "/api/v1/namespaces/default/services";

fn ports(endpoints: &Value) -> BTreeSet<u64> {
    let subsets = endpoints["subsets"].as_array().into_iter().flatten();
    subsets.filter_map(|subset| subset["ports"][0]["port"].as_u64()).collect()
}

/// Waits until the `kubernetes` Service leads to these ports, in Endpoints and EndpointSlices.
async fn leads_to(client: &Client, wanted: &[u16]) {
    let wanted: BTreeSet<u64> = wanted.iter().map(|port| u64::from(*port)).collect();
    let mut last = (json!(null), json!(null));
    for _ in 0..12_000 {
        last = (client.get(ENDPOINTS).await.1, client.get(SLICES).await.1);
        let slices = last.1["items"].as_array().into_iter().flatten();
        let in_slices: BTreeSet<u64> =
            slices.filter_map(|slice| slice["ports"][0]["port"].as_u64()).collect();
        if ports(&last.0) == wanted && in_slices == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not {wanted:?}: {last:#?}");
}

#[tokio::test]
async fn two_servers_are_one_cluster() {
    let named = |options: &mut Options, name: &str| {
        options.identity = Some(name.to_owned());
        options.advertise = ADDRESS.parse().unwrap();
    };
    let cluster = Cluster::start_with(|options, _| named(options, "Host.one_1")).await;
    let second = cluster.another(|options| named(options, "two")).await;
    let one = cluster.admin();
    let two = Client(kube::Client::new(second.service_as(UserInfo::new("admin", &[MASTERS])), "default"));
    let (first_port, second_port) = (cluster.handle.address().port(), second.address().port());
    leads_to(&one, &[first_port, second_port]).await;

    // Whoever is asked, no address is given twice, and all see what was written by the other.
    let service = |name: String| json!({"metadata": {"name": name}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
    let made = (0..10).map(|n| {
        let (one, two) = (&one, &two);
        async move {
            let (a, b) = tokio::join!(
                one.create(SERVICES, service(format!("a{n}"))),
                two.create(SERVICES, service(format!("b{n}")))
            );
            assert_eq!((a.0, b.0), (201, 201), "{} {}", a.1, b.1);
            assert_eq!(two.get(&format!("{SERVICES}/a{n}")).await.1, a.1);
            assert_eq!(one.get(&format!("{SERVICES}/b{n}")).await.1, b.1);
            [a.1, b.1].map(|made| {
                (made["spec"]["clusterIP"].to_string(), made["spec"]["ports"][0]["nodePort"].to_string())
            })
        }
    });
    let taken: Vec<_> = futures::future::join_all(made).await.into_iter().flatten().collect();
    let addresses: BTreeSet<_> = taken.iter().map(|(address, _)| address).collect();
    let node_ports: BTreeSet<_> = taken.iter().map(|(_, port)| port).collect();
    assert_eq!((addresses.len(), node_ports.len()), (20, 20));

    // Of two writes of the same version one is refused, whichever server each goes to.
    let path = format!("{SERVICES}/a0");
    let mut changed = one.get(&path).await.1;
    changed["metadata"]["labels"]["by"] = "one".into();
    let mut other = changed.clone();
    other["metadata"]["labels"]["by"] = "two".into();
    let (a, b) = tokio::join!(one.update(&path, changed), two.update(&path, other));
    let mut codes = [a.0, b.0];
    codes.sort_unstable();
    assert_eq!(codes, [200, 409]);

    second.shutdown().await;
    leads_to(&one, &[first_port]).await;
}
