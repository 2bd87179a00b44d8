//! `[sig-network] EndpointSlice`, `EndpointSliceMirroring` and `Endpoints`.

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{PATIENCE, Scene, pod, scene};
use crate::application::http_try;

pub(super) const TESTS: &[Test<Cluster>] = &[
    (
        "[sig-network] EndpointSlice should create Endpoints and EndpointSlices for Pods matching a Service",
        matching,
    ),
    (
        "[sig-network] EndpointSlice should create and delete EndpointSlices for a Service with a selector that matches no pods",
        empty,
    ),
    (
        "[sig-network] EndpointSlice should support a Service with multiple endpoint IPs specified in multiple EndpointSlices",
        by_hand,
    ),
    (
        "[sig-network] EndpointSliceMirroring should mirror a custom Endpoints resource through create update and delete",
        mirrored,
    ),
    ("[sig-network] Endpoints should test the lifecycle of an Endpoint", lifecycle),
    ("[sig-network] EndpointsController should create Endpoints for Pods matching a Service", matching),
    (
        "[sig-network] EndpointsController should create and delete Endpoints for a Service with a selector that matches no pods",
        empty,
    ),
];

fn service(name: &str, selector: Value, ports: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": selector, "ports": ports}})
}

/// The slices of a Service.
fn slices(scene: &Scene<'_>, service: &str) -> Result<Vec<Value>> {
    scene.list(&["endpointslices", "-l", &format!("kubernetes.io/service-name={service}")])
}

/// The addresses in slices, sorted.
fn addresses(slices: &[Value]) -> Vec<String> {
    let endpoints = slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    let mut all: Vec<_> =
        endpoints.filter_map(|endpoint| endpoint["addresses"][0].as_str().map(str::to_owned)).collect();
    all.sort();
    all
}

fn until_slices(scene: &Scene<'_>, service: &str, expected: &[String]) -> Result<Vec<Value>> {
    poll::until(&format!("slices of {expected:?}"), PATIENCE, || {
        let slices = slices(scene, service)?;
        let present = addresses(&slices);
        Ok(if present == expected { Ok(slices) } else { Err(format!("{present:?}")) })
    })
}

/// Pods of which one offers a named port, and Services that select one or both.
fn matching(cluster: &Cluster) -> Result<()> {
    scene(cluster, "eps-pods", |scene| {
        let mut addresses_of = Vec::new();
        for (name, port) in [("one", 3000), ("two", 3001)] {
            let mut pod = pod(name, "both");
            pod["metadata"]["labels"][name] = json!("yes");
            pod["spec"]["containers"][0]["ports"] = json!([{"name": "example", "containerPort": port}]);
            scene.create(&pod)?;
            let ready = cluster.ready(scene.namespace, name)?;
            addresses_of.push(ready["status"]["podIP"].as_str().context("no address")?.to_owned());
        }
        let ports = json!([{"name": "example", "port": 80, "targetPort": "example"}]);
        scene.create(&service(
            "one",
            json!({"one": "yes"}),
            json!([{"name": "plain", "port": 80, "targetPort": 3000}]),
        ))?;
        scene.create(&service("both", json!({"app": "both"}), ports))?;
        until_slices(scene, "one", &addresses_of[..1])?;
        let mut all = addresses_of.clone();
        all.sort();
        let both = until_slices(scene, "both", &all)?;
        ensure!(both.len() == 2, "pods with different ports share a slice: {both:#?}");
        for slice in &both {
            let endpoint = &slice["endpoints"][0];
            ensure!(slice["addressType"] == "IPv4" && endpoint["targetRef"]["kind"] == "Pod", "{slice:#}");
            ensure!(endpoint["conditions"] == json!({"ready": true, "serving": true, "terminating": false}));
            ensure!(!endpoint["nodeName"].is_null(), "{slice:#}");
        }
        let legacy = scene.until("endpoints/both", "both addresses", |one| {
            one["subsets"].as_array().is_some_and(|subsets| subsets.len() == 2)
        })?;
        ensure!(legacy["subsets"][0]["ports"][0]["name"] == "example", "{legacy:#}");
        Ok(())
    })
}

fn empty(cluster: &Cluster) -> Result<()> {
    scene(cluster, "eps-empty", |scene| {
        scene.create(&service("web", json!({"app": "nobody"}), json!([{"port": 80}])))?;
        poll::until("an empty slice", PATIENCE, || {
            let slices = slices(scene, "web")?;
            Ok(if slices.len() == 1 && addresses(&slices).is_empty() {
                Ok(())
            } else {
                Err(format!("{slices:?}"))
            })
        })?;
        let legacy = scene.until("service/web", "the service", |_| true)?;
        ensure!(legacy["kind"] == "Service");
        poll::until("the Endpoints", PATIENCE, || {
            let found = scene.k(&["get", "endpoints/web", "--ignore-not-found", "-o", "name"])?;
            Ok(if found.is_empty() { Err("none".to_owned()) } else { Ok(()) })
        })?;
        scene.k(&["delete", "service/web"])?;
        scene.until_gone("endpoints/web")?;
        poll::until("the slice to go", PATIENCE, || {
            let left = slices(scene, "web")?;
            Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) })
        })
    })
}

fn by_hand(cluster: &Cluster) -> Result<()> {
    scene(cluster, "eps-hand", |scene| {
        let mut addresses_of = Vec::new();
        for name in ["one", "two"] {
            let mut pod = pod(name, "web");
            pod["spec"]["containers"] = json!([{"name": "c", "image": "nginx:1"}]);
            scene.create(&pod)?;
            let ready = cluster.ready(scene.namespace, name)?;
            addresses_of.push(ready["status"]["podIP"].as_str().context("no address")?.to_owned());
        }
        let ports = json!([{"name": "p1", "port": 81, "targetPort": 80}, {"name": "p2", "port": 82, "targetPort": 80}]);
        let made = scene.create(&service("web", Value::Null, ports))?;
        for (index, address) in addresses_of.iter().enumerate() {
            let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": format!("hand-{index}"), "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4", "ports": [{"name": format!("p{}", index + 1), "port": 80}],
                "endpoints": [{"addresses": [address]}]});
            scene.create(&slice)?;
        }
        let ip = made["spec"]["clusterIP"].as_str().context("no clusterIP")?;
        for port in [81, 82] {
            let address = format!("{ip}:{port}");
            poll::text(
                &format!("{address} to answer"),
                PATIENCE,
                || http_try(&address, "/version"),
                |text| text == "1\n",
            )?;
        }
        Ok(())
    })
}

fn mirrored(cluster: &Cluster) -> Result<()> {
    scene(cluster, "eps-mirror", |scene| {
        scene.create(&service("db", Value::Null, json!([{"name": "p", "port": 5432}])))?;
        let endpoints = |ip: &str| {
            json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "db"},
                "subsets": [{"addresses": [{"ip": ip}], "ports": [{"name": "p", "port": 5432}]}]})
        };
        scene.create(&endpoints("10.1.2.3"))?;
        let slices = until_slices(scene, "db", &["10.1.2.3".to_owned()])?;
        let manager = &slices[0]["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"];
        ensure!(manager == "endpointslicemirroring-controller.k8s.io", "{manager}");
        scene.send(&["replace"], &endpoints("10.2.3.4"))?;
        until_slices(scene, "db", &["10.2.3.4".to_owned()])?;
        scene.k(&["delete", "endpoints/db"])?;
        poll::until("the mirrored slice to go", PATIENCE, || {
            let left = self::slices(scene, "db")?;
            Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) })
        })
    })
}

fn lifecycle(cluster: &Cluster) -> Result<()> {
    scene(cluster, "endpoints-life", |scene| {
        let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": "life", "labels": {"test": "life"}},
            "subsets": [{"addresses": [{"ip": "10.0.0.24"}], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}]});
        scene.create(&endpoints)?;
        let found = cluster.get(&["endpoints", "--all-namespaces", "-l", "test=life"])?;
        ensure!(found["items"].as_array().map(Vec::len) == Some(1), "{found:#}");
        let mut object = scene.get(&["endpoints/life"])?;
        object["metadata"]["labels"]["updated"] = json!("yes");
        scene.send(&["replace"], &object)?;
        let patch = json!({"subsets": [{"addresses": [{"ip": "10.0.0.25"}],
            "ports": [{"name": "http-test", "port": 8080, "protocol": "TCP"}]}]});
        let patched = scene.merge("endpoints/life", &patch)?;
        ensure!(patched["metadata"]["labels"]["updated"] == "yes", "{patched:#}");
        ensure!(patched["subsets"][0]["ports"][0]["port"] == 8080, "{patched:#}");
        scene.k(&["delete", "endpoints", "-l", "test=life"])?;
        scene.until_gone("endpoints/life")
    })
}
