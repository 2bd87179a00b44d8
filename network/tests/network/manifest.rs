//! The manifest of the DNS pod agrees with the program that it runs.

use decapod_network::dns::Options;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, Probe, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn object<T: DeserializeOwned>(kind: &str) -> T {
    let text = include_str!("../../../deploy/dns.yaml");
    let objects: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    let found = objects.into_iter().find(|object| object["kind"] == kind).unwrap();
    serde_json::from_value(found).unwrap()
}

fn port(container: &Container, name: &IntOrString) -> i32 {
    let IntOrString::String(name) = name else { panic!("ports are named") };
    let ports = container.ports.iter().flatten();
    ports.into_iter().find(|port| port.name.as_ref() == Some(name)).unwrap().container_port
}

#[test]
fn ports_and_probes_are_those_that_are_served() {
    let set: DaemonSet = object("DaemonSet");
    let pod = set.spec.unwrap().template.spec.unwrap();
    let container = &pod.containers[0];
    let options = Options::default();
    let probe = |probe: &Option<Probe>| {
        let http = probe.as_ref().unwrap().http_get.clone().unwrap();
        (http.path.unwrap(), port(container, &http.port))
    };
    let served = |address: Option<std::net::SocketAddr>| i32::from(address.unwrap().port());
    assert_eq!(probe(&container.liveness_probe), ("/health".into(), served(options.health)));
    assert_eq!(probe(&container.readiness_probe), ("/ready".into(), served(options.ready)));
    let service: Service = object("Service");
    for exposed in service.spec.unwrap().ports.unwrap() {
        assert_eq!(exposed.port, 53);
        let target = port(container, &exposed.target_port.unwrap());
        assert_eq!(target, i32::from(options.listen.port()));
    }
    let arguments = container.args.clone().unwrap();
    assert_eq!(arguments, ["dns".to_owned(), format!("--domain={}", options.domain)]);
}
