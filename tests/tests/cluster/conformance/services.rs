//! `[sig-network] Services`, `API Server`, `Ingress API` and `IngressClass API`.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{PATIENCE, Scene, deployment, scene};
use crate::application::http_try;

pub(super) const TESTS: &[Test<Cluster>] = &[
    ("[sig-network] API Server should provide secure master service", of_the_api),
    ("[sig-network] API Server should have Endpoints and EndpointSlices pointing to API Server", of_the_api),
    ("[sig-network] Services should serve a basic endpoint from pods", one_endpoint),
    ("[sig-network] Services should serve multiport endpoints from pods", ports),
    ("[sig-network] Services should serve endpoints on same port and different protocols", protocols),
    ("[sig-network] Services should be able to create a functioning NodePort service", node_port),
    (
        "[sig-network] Services should have session affinity work for service with type clusterIP",
        affinity_of_addresses,
    ),
    (
        "[sig-network] Services should be able to switch session affinity for service with type clusterIP",
        affinity_of_addresses,
    ),
    ("[sig-network] Services should have session affinity work for NodePort service", affinity_of_node_ports),
    (
        "[sig-network] Services should be able to switch session affinity for NodePort service",
        affinity_of_node_ports,
    ),
    ("[sig-network] Services should be able to change the type from ExternalName to ClusterIP", types),
    ("[sig-network] Services should be able to change the type from ClusterIP to ExternalName", types),
    ("[sig-network] Services should be able to change the type from ExternalName to NodePort", types),
    ("[sig-network] Services should be able to change the type from NodePort to ExternalName", types),
    ("[sig-network] Services should find a service from listing all namespaces", listed),
    ("[sig-network] Services should delete a collection of services", collection),
    ("[sig-network] Services should complete a service status lifecycle", status),
    ("[sig-network] Ingress API should support creating Ingress API operations", ingress_api),
    ("[sig-network] IngressClass API should support creating IngressClass API operations", class_api),
];

/// So many pods of nginx, which answer with their names.
fn servers(scene: &Scene<'_>, count: u32) -> Result<()> {
    let mut web = deployment("web", count, json!({}));
    web["spec"]["template"]["spec"]["containers"] = json!([{"name": "c", "image": "nginx:1",
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 80}, "periodSeconds": 1}}]);
    scene.create(&web)?;
    scene.rolled_out("deployment/web")
}

fn service(more: Value) -> Value {
    let mut spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80}]});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "labels": {"set": "conf"}}, "spec": spec})
}

/// Where a Service answers: at its address, or at the node's port.
fn address(service: &Value, node_port: bool) -> Result<String> {
    if node_port {
        let port = service["spec"]["ports"][0]["nodePort"].as_i64().context("no nodePort")?;
        return Ok(format!("127.0.0.1:{port}"));
    }
    Ok(format!("{}:80", service["spec"]["clusterIP"].as_str().context("no clusterIP")?))
}

/// Waits until so many different servers answered of forty asked.
fn until_seen(address: &str, count: usize) -> Result<()> {
    poll::until(&format!("{count} servers at {address}"), PATIENCE, || {
        let seen: BTreeSet<String> = (0..40).map(|_| http_try(address, "/")).collect::<Result<_>>()?;
        let good = seen.len() == count && seen.iter().all(|one| one.starts_with("web-"));
        Ok(if good { Ok(()) } else { Err(format!("{seen:?}")) })
    })
}

fn of_the_api(cluster: &Cluster) -> Result<()> {
    let service = cluster.get(&["service", "kubernetes", "-n", "default"])?;
    let port = &service["spec"]["ports"][0];
    ensure!(port["name"] == "https" && port["port"] == 443, "{service:#}");
    let endpoints = cluster.get(&["endpoints", "kubernetes", "-n", "default"])?;
    let of = "kubernetes.io/service-name=kubernetes";
    let slices = cluster.get(&["endpointslices", "-n", "default", "-l", of])?;
    let target = &port["targetPort"];
    ensure!(endpoints["subsets"][0]["ports"][0]["port"] == *target, "{endpoints:#}");
    ensure!(slices["items"][0]["ports"][0]["port"] == *target, "{slices:#}");
    let (one, other) = (&endpoints["subsets"][0]["addresses"][0]["ip"], &slices["items"][0]["endpoints"][0]);
    ensure!(other["addresses"][0] == *one && one.is_string(), "{one} {other}");
    Ok(())
}

fn one_endpoint(cluster: &Cluster) -> Result<()> {
    scene(cluster, "svc-basic", |scene| {
        let made = scene.create(&service(json!({})))?;
        servers(scene, 2)?;
        until_seen(&address(&made, false)?, 2)?;
        scene.k(&["scale", "deployment/web", "--replicas=1"])?;
        until_seen(&address(&made, false)?, 1)?;
        scene.k(&["scale", "deployment/web", "--replicas=0"])?;
        poll::until("a Service without endpoints to refuse", PATIENCE, || {
            let answer = http_try(&address(&made, false)?, "/")?;
            Ok(if answer.contains("refused") { Ok(()) } else { Err(answer) })
        })
    })
}

fn ports(cluster: &Cluster) -> Result<()> {
    scene(cluster, "svc-ports", |scene| {
        let ports = json!([{"name": "one", "port": 80, "targetPort": 80}, {"name": "two", "port": 81, "targetPort": 80}]);
        let made = scene.create(&service(json!({"ports": ports})))?;
        servers(scene, 1)?;
        let first = address(&made, false)?;
        until_seen(&first, 1)?;
        until_seen(&first.replace(":80", ":81"), 1)
    })
}

fn protocols(cluster: &Cluster) -> Result<()> {
    scene(cluster, "svc-protocols", |scene| {
        let ports = json!([{"name": "tcp", "port": 80}, {"name": "udp", "port": 80, "protocol": "UDP"}]);
        let made = scene.create(&service(json!({"ports": ports})))?;
        servers(scene, 1)?;
        until_seen(&address(&made, false)?, 1)?;
        let slices = scene.list(&["endpointslices", "-l", "kubernetes.io/service-name=web"])?;
        let mut protocols: Vec<_> = slices[0]["ports"].as_array().context("no ports")?.clone();
        protocols.sort_by_key(|port| port["name"].to_string());
        ensure!(protocols[0]["protocol"] == "TCP" && protocols[1]["protocol"] == "UDP", "{protocols:?}");
        Ok(())
    })
}

fn node_port(cluster: &Cluster) -> Result<()> {
    scene(cluster, "svc-nodeport", |scene| {
        let made = scene.create(&service(json!({"type": "NodePort"})))?;
        servers(scene, 2)?;
        until_seen(&address(&made, true)?, 2)?;
        until_seen(&address(&made, false)?, 2)
    })
}

fn affinity_of_addresses(cluster: &Cluster) -> Result<()> {
    affinity(cluster, "svc-affinity", false)
}

fn affinity_of_node_ports(cluster: &Cluster) -> Result<()> {
    affinity(cluster, "svc-affinity-port", true)
}

/// A client stays with a server for as long as the Service says so.
fn affinity(cluster: &Cluster, name: &str, node_port: bool) -> Result<()> {
    scene(cluster, name, |scene| {
        let kind = if node_port { "NodePort" } else { "ClusterIP" };
        let made = scene.create(&service(json!({"type": kind})))?;
        servers(scene, 3)?;
        let at = address(&made, node_port)?;
        until_seen(&at, 3)?;
        scene.merge("service/web", &json!({"spec": {"sessionAffinity": "ClientIP"}}))?;
        until_seen(&at, 1)?;
        scene.merge(
            "service/web",
            &json!({"spec": {"sessionAffinity": "None", "sessionAffinityConfig": null}}),
        )?;
        until_seen(&at, 3)
    })
}

/// From a name elsewhere to an address, to a port of the node, and back to the name.
fn types(cluster: &Cluster) -> Result<()> {
    scene(cluster, "svc-types", |scene| {
        servers(scene, 1)?;
        let name = json!({"type": "ExternalName", "externalName": "example.invalid"});
        let made = scene.create(&service(name.clone()))?;
        ensure!(made["spec"]["clusterIP"].is_null(), "{made:#}");
        for kind in ["ClusterIP", "NodePort"] {
            let changed =
                scene.merge("service/web", &json!({"spec": {"type": kind, "externalName": null}}))?;
            until_seen(&address(&changed, kind == "NodePort")?, 1)?;
            let back = json!({"spec": {"type": "ExternalName", "externalName": "example.invalid",
                "clusterIP": null, "clusterIPs": null}});
            let back = scene.merge("service/web", &back)?;
            ensure!(
                back["spec"]["clusterIP"].is_null() && back["spec"]["ports"][0]["nodePort"].is_null(),
                "{back:#}"
            );
        }
        Ok(())
    })
}

fn listed(cluster: &Cluster) -> Result<()> {
    scene(cluster, "svc-listed", |scene| {
        scene.create(&service(json!({})))?;
        let all = cluster.get(&["services", "-A", "-l", "set=conf"])?;
        let found = |one: &Value| one["metadata"]["namespace"] == scene.namespace;
        ensure!(all["items"].as_array().is_some_and(|items| items.iter().any(found)), "{all:#}");
        let kubernetes = cluster.get(&["services", "-A", "--field-selector", "metadata.name=kubernetes"])?;
        ensure!(kubernetes["items"].as_array().is_some_and(|items| items.len() == 1), "{kubernetes:#}");
        Ok(())
    })
}

fn collection(cluster: &Cluster) -> Result<()> {
    scene(cluster, "svc-collection", |scene| {
        let of = |name: &str, set: &str| {
            let mut one = service(json!({}));
            one["metadata"] = json!({"name": name, "labels": {"set": set}});
            one
        };
        scene.create_all(vec![of("a", "go"), of("b", "go"), of("c", "stay")])?;
        let path = format!("/api/v1/namespaces/{}/services?labelSelector=set%3Dgo", scene.namespace);
        scene.k(&["delete", "--raw", &path])?;
        scene.until_list("services", "one Service to be left", |left| {
            left.len() == 1 && left[0]["metadata"]["name"] == "c"
        })?;
        Ok(())
    })
}

/// The status of a load balancer of another class is written by whoever keeps that.
fn status(cluster: &Cluster) -> Result<()> {
    scene(cluster, "svc-status", |scene| {
        scene.create(&service(json!({"type": "LoadBalancer", "loadBalancerClass": "example.com/other"})))?;
        let balancer = json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}}).to_string();
        scene.k(&["patch", "service/web", "--subresource=status", "--type=merge", "-p", &balancer])?;
        let mut shown = scene.until("service/web", "the address", |one| {
            one["status"]["loadBalancer"]["ingress"][0]["ip"] == "203.0.113.1"
        })?;
        // As Go's clients write a time that nobody set.
        shown["status"]["conditions"] = json!([{"type": "StatusUpdate", "status": "True", "reason": "Test",
            "message": "Set by a test", "lastTransitionTime": null}]);
        let updated = scene.send(&["replace", "--subresource=status"], &shown)?;
        ensure!(updated["status"]["conditions"][0]["type"] == "StatusUpdate", "{updated:#}");
        scene.k(&["delete", "service/web"]).map(drop)
    })
}

fn ingress_api(cluster: &Cluster) -> Result<()> {
    scene(cluster, "ingress-api", |scene| {
        let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
        let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {"name": "web", "labels": {"set": "conf"}},
            "spec": {"defaultBackend": backend, "rules": [{"host": "foo.test", "http": {"paths": [
                {"path": "/", "pathType": "Prefix", "backend": backend}]}}]}});
        scene.create(&object)?;
        let patched =
            scene.merge("ingress/web", &json!({"metadata": {"annotations": {"patched": "true"}}}))?;
        ensure!(patched["metadata"]["annotations"]["patched"] == "true", "{patched:#}");
        let balancer = json!({"status": {"loadBalancer": {"ingress": [{"ip": "169.1.1.1"}]}}}).to_string();
        scene.k(&["patch", "ingress/web", "--subresource=status", "--type=merge", "-p", &balancer])?;
        let shown = scene.get(&["ingress/web"])?;
        ensure!(shown["status"]["loadBalancer"]["ingress"][0]["ip"] == "169.1.1.1", "{shown:#}");
        ensure!(!scene.list(&["ingresses", "-l", "set=conf"])?.is_empty());
        scene.k(&["delete", "ingresses", "-l", "set=conf"])?;
        scene.until_gone("ingress/web")
    })
}

fn class_api(cluster: &Cluster) -> Result<()> {
    let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
        "metadata": {"name": "conf-class", "labels": {"set": "conf"}}, "spec": {"controller": "example.com/controller"}});
    scene(cluster, "class-api", |scene| {
        scene.create(&object)?;
        let patched = scene
            .merge("ingressclass/conf-class", &json!({"metadata": {"annotations": {"patched": "true"}}}))?;
        ensure!(patched["metadata"]["annotations"]["patched"] == "true", "{patched:#}");
        ensure!(scene.list(&["ingressclasses", "-l", "set=conf"])?.len() == 1);
        scene.k(&["delete", "ingressclasses", "-l", "set=conf"])?;
        scene.until_gone("ingressclass/conf-class")
    })
}
