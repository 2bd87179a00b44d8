//! `[sig-network] DNS`: names as pods see them.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::{Cluster, DNS};
use decapod_tests::poll;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{PATIENCE, Scene, pod, scene};

pub(super) const TESTS: &[Test<Cluster>] = &[
    ("[sig-network] DNS should provide DNS for the cluster", of_the_cluster),
    ("[sig-network] DNS should provide /etc/hosts entries for the cluster", hosts_file),
    ("[sig-network] DNS should provide DNS for services", services),
    ("[sig-network] DNS should resolve DNS of partial qualified names for services", partial_names),
    ("[sig-network] DNS should provide DNS for pods for Hostname", hostname),
    ("[sig-network] DNS should provide DNS for pods for Subdomain", subdomain),
    ("[sig-network] DNS should provide DNS for ExternalName services", external_names),
    ("[sig-network] DNS should support configurable pod DNS nameservers", own_nameservers),
];

/// What BusyBox's nslookup finds: what its answers end with. It fails where there is nothing.
fn lookup(scene: &Scene<'_>, kind: &str, name: &str) -> BTreeSet<String> {
    let asked = scene.cluster.exec(scene.namespace, "client", &["nslookup", &format!("-type={kind}"), name]);
    // The server's own address comes first, and is no answer.
    let text = asked.unwrap_or_default();
    let answers = text.split_once("\n\n").map(|(_, answers)| answers).unwrap_or_default();
    let lines = answers.lines().filter(|line| line.contains(" = ") || line.starts_with("Address"));
    lines.filter_map(|line| line.rsplit(' ').next()).map(str::to_owned).collect()
}

/// Waits until the answers to a question are these.
fn until_told(scene: &Scene<'_>, kind: &str, name: &str, expected: &[&str]) -> Result<()> {
    poll::until(&format!("{kind} {name} to be {expected:?}"), PATIENCE, || {
        let found = lookup(scene, kind, name);
        let same = found.iter().eq(expected.iter().copied().collect::<BTreeSet<_>>());
        Ok(if same { Ok(()) } else { Err(format!("{found:?}")) })
    })
}

/// The client from which the tests ask.
fn client(scene: &Scene<'_>) -> Result<Value> {
    scene.create(&pod("client", "client"))?;
    scene.cluster.ready(scene.namespace, "client")
}

fn service(name: &str, selector: &str, more: &[(&str, Value)]) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {
        "selector": {"app": selector}, "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}});
    for (key, value) in more {
        object["spec"][key] = value.clone();
    }
    object
}

fn address(object: &Value, key: &str) -> Result<String> {
    let found = object["spec"][key].as_str().or_else(|| object["status"][key].as_str());
    Ok(found.with_context(|| format!("no {key}"))?.to_owned())
}

/// The name by which an address is looked up backwards.
fn backwards(address: &str) -> String {
    let reversed: Vec<&str> = address.rsplit('.').collect();
    format!("{}.in-addr.arpa", reversed.join("."))
}

/// Asks cluster DNS by TCP for an address; says how many answers there are.
fn asked_by_tcp(name: &str) -> Result<u16> {
    // id, recursion desired, one question
    let mut message = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len())?);
        message.extend(label.as_bytes());
    }
    // the root, A, IN
    message.extend([0, 0, 1, 0, 1]);
    let mut stream = TcpStream::connect((DNS, 53))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(&u16::try_from(message.len())?.to_be_bytes())?;
    stream.write_all(&message)?;
    let mut header = [0; 14];
    stream.read_exact(&mut header)?;
    ensure!(header[2..4] == [7, 7] && header[5] & 0x0f == 0, "{header:?}");
    Ok(u16::from_be_bytes([header[8], header[9]]))
}

fn of_the_cluster(cluster: &Cluster) -> Result<()> {
    scene(cluster, "dns-cluster", |scene| {
        client(scene)?;
        let kubernetes = cluster.get(&["service", "kubernetes", "-n", "default"])?;
        let ip = address(&kubernetes, "clusterIP")?;
        let full = "kubernetes.default.svc.cluster.local";
        until_told(scene, "a", full, &[&ip])?;
        until_told(scene, "ptr", &backwards(&ip), &[full])?;
        ensure!(asked_by_tcp(full)? == 1);
        let of_dns = "kube-dns.kube-system.svc.cluster.local";
        until_told(scene, "a", of_dns, &[DNS])?;
        until_told(scene, "a", "ns.dns.cluster.local", &[DNS])?;
        until_told(scene, "srv", &format!("_dns._udp.{of_dns}"), &[of_dns])
    })
}

fn hosts_file(cluster: &Cluster) -> Result<()> {
    scene(cluster, "dns-hosts", |scene| {
        let mut querier = pod("querier", "querier");
        querier["spec"]["hostname"] = json!("dns-querier-1");
        querier["spec"]["subdomain"] = json!("dns-test");
        scene.create(&querier)?;
        let ip = address(&cluster.ready(scene.namespace, "querier")?, "podIP")?;
        let full = format!("dns-querier-1.dns-test.{}.svc.cluster.local", scene.namespace);
        let hosts = cluster.exec(scene.namespace, "querier", &["cat", "/etc/hosts"])?;
        let line: Vec<&str> =
            hosts.lines().find(|line| line.starts_with(&ip)).context("no line")?.split_whitespace().collect();
        ensure!(line == [&*ip, &*full, "dns-querier-1"], "{hosts}");
        ensure!(hosts.lines().any(|line| line.starts_with("127.0.0.1") && line.contains("localhost")));
        ensure!(cluster.exec(scene.namespace, "querier", &["hostname", "-f"])?.trim() == full);
        Ok(())
    })
}

/// Services of both sorts and their pods: what [`services`] and [`partial_names`] ask for.
fn both_sorts(scene: &Scene<'_>) -> Result<(String, String)> {
    let plain = scene.create(&service("plain", "client", &[]))?;
    scene.create(&service("headless", "client", &[("clusterIP", json!("None"))]))?;
    let pod = address(&client(scene)?, "podIP")?;
    Ok((address(&plain, "clusterIP")?, pod))
}

fn services(cluster: &Cluster) -> Result<()> {
    scene(cluster, "dns-services", |scene| {
        let (plain, pod) = both_sorts(scene)?;
        let zone = format!("{}.svc.cluster.local", scene.namespace);
        let of_pod = format!("{}.headless.{zone}", pod.replace('.', "-"));
        until_told(scene, "a", &format!("plain.{zone}"), &[&plain])?;
        until_told(scene, "srv", &format!("_http._tcp.plain.{zone}"), &[&format!("plain.{zone}")])?;
        until_told(scene, "ptr", &backwards(&plain), &[&format!("plain.{zone}")])?;
        until_told(scene, "a", &format!("headless.{zone}"), &[&pod])?;
        until_told(scene, "a", &of_pod, &[&pod])?;
        until_told(scene, "srv", &format!("_http._tcp.headless.{zone}"), &[&of_pod])?;
        until_told(scene, "ptr", &backwards(&pod), &[&of_pod])?;
        // A Service that goes takes its names along.
        scene.k(&["delete", "service/plain"])?;
        until_told(scene, "a", &format!("plain.{zone}"), &[])
    })
}

/// What the search path completes: the resolver of pods is asked, by `ping`, which tells the address that it found.
fn partial_names(cluster: &Cluster) -> Result<()> {
    scene(cluster, "dns-partial", |scene| {
        let (plain, pod) = both_sorts(scene)?;
        let ns = scene.namespace;
        let of_pod = format!("{}.headless", pod.replace('.', "-"));
        for (name, expected) in [("plain", &plain), ("headless", &pod), (&*of_pod, &pod)] {
            for name in [name.to_owned(), format!("{name}.{ns}"), format!("{name}.{ns}.svc")] {
                let script = format!("ping -c1 -W1 {name} 2>&1; true");
                let found = || cluster.exec(ns, "client", &["sh", "-c", &script]);
                poll::text(&format!("{name} to be {expected}"), PATIENCE, found, |text| {
                    text.contains(&format!("({expected})"))
                })?;
            }
        }
        Ok(())
    })
}

/// A pod with a name and a subdomain of its own, and the headless Service that the subdomain names.
fn named_pod(scene: &Scene<'_>) -> Result<String> {
    scene.create(&service("sub", "named", &[("clusterIP", json!("None"))]))?;
    let mut named = pod("named", "named");
    named["spec"]["hostname"] = json!("one");
    named["spec"]["subdomain"] = json!("sub");
    scene.create(&named)?;
    client(scene)?;
    address(&scene.cluster.ready(scene.namespace, "named")?, "podIP")
}

fn hostname(cluster: &Cluster) -> Result<()> {
    scene(cluster, "dns-hostname", |scene| {
        let ip = named_pod(scene)?;
        let full = format!("one.sub.{}.svc.cluster.local", scene.namespace);
        until_told(scene, "a", &full, &[&ip])?;
        until_told(scene, "ptr", &backwards(&ip), &[&full])?;
        ensure!(cluster.exec(scene.namespace, "named", &["hostname"])?.trim() == "one");
        ensure!(cluster.exec(scene.namespace, "named", &["hostname", "-f"])?.trim() == full);
        Ok(())
    })
}

fn subdomain(cluster: &Cluster) -> Result<()> {
    scene(cluster, "dns-subdomain", |scene| {
        let ip = named_pod(scene)?;
        until_told(scene, "a", &format!("sub.{}.svc.cluster.local", scene.namespace), &[&ip])?;
        scene.k(&["delete", "pod/named", "--wait=false"])?;
        until_told(scene, "a", &format!("one.sub.{}.svc.cluster.local", scene.namespace), &[])
    })
}

fn external_names(cluster: &Cluster) -> Result<()> {
    scene(cluster, "dns-external", |scene| {
        client(scene)?;
        let name = format!("elsewhere.{}.svc.cluster.local", scene.namespace);
        scene.create(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "elsewhere"},
            "spec": {"type": "ExternalName", "externalName": "foo.example.com"}}))?;
        until_told(scene, "cname", &name, &["foo.example.com"])?;
        scene.merge("service/elsewhere", &json!({"spec": {"externalName": "bar.example.com"}}))?;
        until_told(scene, "cname", &name, &["bar.example.com"])?;
        let changed = scene.merge(
            "service/elsewhere",
            &json!({"spec": {"type": "ClusterIP", "externalName": null, "ports": [{"port": 80}]}}),
        )?;
        until_told(scene, "a", &name, &[&address(&changed, "clusterIP")?])
    })
}

fn own_nameservers(cluster: &Cluster) -> Result<()> {
    scene(cluster, "dns-own", |scene| {
        let mut object = pod("client", "client");
        object["spec"]["dnsPolicy"] = json!("None");
        object["spec"]["dnsConfig"] = json!({"nameservers": ["1.1.1.1"], "searches": ["resolv.conf.local"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]});
        scene.create(&object)?;
        cluster.ready(scene.namespace, "client")?;
        let conf = cluster.exec(scene.namespace, "client", &["cat", "/etc/resolv.conf"])?;
        let lines: Vec<&str> = conf.lines().collect();
        ensure!(
            lines == ["nameserver 1.1.1.1", "search resolv.conf.local", "options ndots:2 edns0"],
            "{conf}"
        );
        // Beside the cluster's own, they come after.
        object["metadata"]["name"] = json!("both");
        object["spec"]["dnsPolicy"] = json!("ClusterFirst");
        scene.create(&object)?;
        cluster.ready(scene.namespace, "both")?;
        let conf = cluster.exec(scene.namespace, "both", &["cat", "/etc/resolv.conf"])?;
        ensure!(
            conf.starts_with(&format!(
                "nameserver {DNS}\nnameserver 1.1.1.1\nsearch {}.svc",
                scene.namespace
            ))
        );
        ensure!(conf.contains(" resolv.conf.local\n") && conf.contains("ndots:2"), "{conf}");
        Ok(())
    })
}
