//! How long the service proxy takes: all rules at once, and the change of one Service among many.
//!
//! `cargo run --release -p decapod-network --example bench_services` as root. It works in a network
//! namespace of its own and prints one line per size.

use std::sync::Arc;
use std::time::{Duration, Instant};

use decapod_client::ObjectKey;
use decapod_network::proxy::{Options, ServiceProxy};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

const ENDPOINTS: u32 = 5;
const CHANGES: usize = 200;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    for services in [100, 1_000, 5_000] {
        measure(services)?;
    }
    Ok(())
}

fn measure(services: u32) -> Result<(), Failure> {
    let mut proxy = ServiceProxy::new(Options::new("here"));
    let mut slices = Vec::new();
    for number in 0..services {
        let address = format!("10.96.{}.{}", number >> 8, number & 255);
        let service = json!({"spec": {"clusterIP": address, "clusterIPs": [address],
            "ports": [{"port": 80, "protocol": "TCP"}]}});
        let key = ObjectKey::new("default", format!("svc-{number}"));
        proxy.service_set(key, Some(Arc::new(serde_json::from_value(service)?)));
        let slice = slice(number, 0)?;
        proxy.slice_set(None, Some(slice.clone()));
        slices.push(slice);
    }
    let begin = Instant::now();
    proxy.apply()?;
    let whole = begin.elapsed();
    let mut changes = Vec::new();
    for (round, old) in slices.iter().cycle().step_by(7).take(CHANGES).enumerate() {
        let number = u32::try_from(round * 7)? % services;
        let new = slice(number, 1 + u32::try_from(round)?)?;
        proxy.slice_set(Some(old), Some(new.clone()));
        let begin = Instant::now();
        proxy.apply()?;
        changes.push(begin.elapsed());
        proxy.slice_set(Some(&new), Some(old.clone()));
        proxy.apply()?;
    }
    changes.sort();
    let at = |share: usize| milliseconds(changes[(changes.len() - 1) * share / 100]);
    println!(
        "{services} services of {ENDPOINTS}: all {:.1} ms, one changed p50 {:.2} ms, p99 {:.2} ms",
        milliseconds(whole),
        at(50),
        at(99),
    );
    ServiceProxy::remove(&Options::new("here"))?;
    Ok(())
}

fn slice(number: u32, variant: u32) -> Result<Arc<EndpointSlice>, Failure> {
    let address =
        |n: u32| std::net::Ipv4Addr::from(0x0af4_0000 + ((number * ENDPOINTS + n + variant) & 0xffff));
    let endpoints: Vec<_> = (0..ENDPOINTS).map(|n| json!({"addresses": [address(n)]})).collect();
    Ok(Arc::new(serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": format!("svc-{number}-x"),
            "labels": {"kubernetes.io/service-name": format!("svc-{number}")}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
    }))?))
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
