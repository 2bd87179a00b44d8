//! `[sig-network] ServiceCIDR and IPAddress API`, and what of `EndpointSlice` is its API and its ports.

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{PATIENCE, Scene, pod, scene};
use crate::application::http_try;

pub(super) const TESTS: &[Test<Cluster>] = &[
    ("[sig-network] ServiceCIDR and IPAddress API should support ServiceCIDR API operations", service_cidrs),
    ("[sig-network] ServiceCIDR and IPAddress API should support IPAddress API operations", ip_addresses),
    ("[sig-network] EndpointSlice should support creating EndpointSlice API operations", slices_api),
    (
        "[sig-network] EndpointSlice should support a Service with multiple ports specified in multiple EndpointSlices",
        ports_in_slices,
    ),
];

/// Whether discovery names the resource with these verbs.
fn discovered(cluster: &Cluster, group: &str, resource: &str) -> Result<()> {
    let groups: Value = serde_json::from_str(&cluster.k(&["get", "--raw", "/apis"])?)?;
    let named = |one: &Value| one["name"] == group;
    ensure!(groups["groups"].as_array().is_some_and(|groups| groups.iter().any(named)), "no {group}");
    let path = format!("/apis/{group}/v1");
    let resources: Value = serde_json::from_str(&cluster.k(&["get", "--raw", &path])?)?;
    let mut all = resources["resources"].as_array().context("no resources")?.iter();
    let found = all.find(|one| one["name"] == resource).with_context(|| format!("no {resource}"))?;
    let verbs = found["verbs"].as_array().context("no verbs")?;
    for verb in ["create", "get", "list", "watch", "update", "patch", "delete", "deletecollection"] {
        ensure!(verbs.iter().any(|one| one == verb), "{resource} cannot be asked to {verb}");
    }
    Ok(())
}

/// What every kind can: two objects with the label `set=conf` are made, read, listed, watched, changed and deleted, the
/// one by its name, the other with its like. `collection` is the path of the collection.
fn operations(scene: &Scene<'_>, kind: &str, collection: &str, objects: [Value; 2]) -> Result<()> {
    let name = |object: &Value| format!("{kind}/{}", object["metadata"]["name"].as_str().unwrap_or_default());
    let (one, other) = (name(&objects[0]), name(&objects[1]));
    for object in &objects {
        scene.create(object)?;
    }
    let patched = scene.merge(&one, &json!({"metadata": {"annotations": {"patched": "true"}}}))?;
    ensure!(patched["metadata"]["annotations"]["patched"] == "true", "{patched:#}");
    poll::until("the object to be updated", PATIENCE, || {
        let mut object = scene.get(&[&one])?;
        object["metadata"]["annotations"]["updated"] = json!("true");
        // A controller may have been faster.
        Ok(scene.send(&["replace"], &object).map_err(|error| format!("{error:#}")))
    })?;
    // `wait` lists and watches.
    let updated = "--for=jsonpath={.metadata.annotations.updated}=true";
    scene.k(&["wait", &one, updated, "--timeout=60s"])?;
    ensure!(scene.list(&[kind, "-l", "set=conf"])?.len() == 2);
    // What a controller holds on to for a while goes at the same time.
    scene.k(&["delete", &one, "--wait=false"])?;
    scene.k(&["delete", "--raw", &format!("{collection}?labelSelector=set%3Dconf")])?;
    scene.until_gone(&one)?;
    scene.until_gone(&other)
}

fn service_cidrs(cluster: &Cluster) -> Result<()> {
    scene(cluster, "cidrs", |scene| {
        discovered(cluster, "networking.k8s.io", "servicecidrs")?;
        let cidr = |name: &str, range: &str| {
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
                "metadata": {"name": name, "labels": {"set": "conf"}}, "spec": {"cidrs": [range]}})
        };
        // The status has a way of its own, for updates and patches.
        let mut alone = cidr("conf-status", "10.119.252.0/30");
        alone["metadata"]["labels"] = json!({"set": "alone"});
        scene.create(&alone)?;
        let condition = json!({"type": "Test", "status": "True", "reason": "Test", "message": "Set by a test",
            "lastTransitionTime": "2024-01-01T00:00:00Z"});
        let patch = json!({"status": {"conditions": [condition]}}).to_string();
        let patched = scene.k(&[
            "patch",
            "servicecidr/conf-status",
            "--subresource=status",
            "-p",
            &patch,
            "-o",
            "json",
        ])?;
        ensure!(patched.contains("Set by a test"), "{patched}");
        poll::until("the status to be updated", PATIENCE, || {
            let mut object = scene.get(&["servicecidr/conf-status"])?;
            for condition in object["status"]["conditions"].as_array_mut().into_iter().flatten() {
                if condition["type"] == "Test" {
                    condition["message"] = json!("updated by a test");
                }
            }
            let sent = scene.send(&["replace", "--subresource=status"], &object);
            Ok(sent.map_err(|error| format!("{error:#}")))
        })?;
        scene.until("servicecidr/conf-status", "the status", |one| {
            one["status"].to_string().contains("updated by a test")
        })?;
        scene.k(&["delete", "servicecidr/conf-status", "--wait=false"])?;
        let objects = [cidr("conf-1", "10.119.253.0/24"), cidr("conf-2", "10.119.254.0/24")];
        operations(scene, "servicecidr", "/apis/networking.k8s.io/v1/servicecidrs", objects)?;
        scene.until_gone("servicecidr/conf-status")
    })
}

fn ip_addresses(cluster: &Cluster) -> Result<()> {
    scene(cluster, "addresses", |scene| {
        discovered(cluster, "networking.k8s.io", "ipaddresses")?;
        let address = |ip: &str| {
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
                "metadata": {"name": ip, "labels": {"set": "conf"}}, "spec": {"parentRef":
                    {"group": "example.com", "resource": "links", "name": "link", "namespace": scene.namespace}}})
        };
        let objects = [address("169.254.117.1"), address("fe80::117")];
        operations(scene, "ipaddress", "/apis/networking.k8s.io/v1/ipaddresses", objects)
    })
}

fn slices_api(cluster: &Cluster) -> Result<()> {
    scene(cluster, "slices-api", |scene| {
        discovered(cluster, "discovery.k8s.io", "endpointslices")?;
        let slice = |name: &str, address: &str| {
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": name, "labels": {"set": "conf"}}, "addressType": "IPv4",
                "endpoints": [{"addresses": [address]}], "ports": [{"name": "http", "port": 80}]})
        };
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", scene.namespace);
        operations(scene, "endpointslice", &path, [slice("one", "10.1.2.3"), slice("two", "10.1.2.4")])
    })
}

/// One address with two ports, each in a slice of its own.
fn ports_in_slices(cluster: &Cluster) -> Result<()> {
    scene(cluster, "slices-ports", |scene| {
        let mut web = pod("web", "web");
        web["spec"]["containers"] = json!([{"name": "c", "image": "nginx:1"},
            {"name": "d", "image": "busybox:1", "command": ["sh", "-c",
                "mkdir /www && echo second > /www/version && exec httpd -f -p 81 -h /www"]}]);
        scene.create(&web)?;
        let made = scene
            .create(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"ports": [{"name": "p1", "port": 91}, {"name": "p2", "port": 92}]}}))?;
        let ready = cluster.ready(scene.namespace, "web")?;
        let address = ready["status"]["podIP"].as_str().context("no address")?;
        for (name, port) in [("p1", 80), ("p2", 81)] {
            scene.create(&json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": format!("hand-{name}"), "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4", "ports": [{"name": name, "port": port}],
                "endpoints": [{"addresses": [address]}]}))?;
        }
        let ip = made["spec"]["clusterIP"].as_str().context("no clusterIP")?;
        for (port, expected) in [(91, "1\n"), (92, "second\n")] {
            let at = format!("{ip}:{port}");
            poll::text(&at, PATIENCE, || http_try(&at, "/version"), |text| text == expected)?;
        }
        Ok(())
    })
}
