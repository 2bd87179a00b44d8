//! `[sig-network] Networking`, `HostPort`, `Proxy` and `Service endpoints latency`: ways to pods.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{PATIENCE, Scene, deployment, pod, scene};
use crate::application::http_try;
use crate::streams::Running;

pub(super) const TESTS: &[Test<Cluster>] = &[
    (
        "[sig-network] Networking Granular Checks: Pods should function for intra-pod communication: http",
        by_http,
    ),
    (
        "[sig-network] Networking Granular Checks: Pods should function for intra-pod communication: udp",
        by_udp,
    ),
    (
        "[sig-network] Networking Granular Checks: Pods should function for node-pod communication: http",
        by_http,
    ),
    (
        "[sig-network] Networking Granular Checks: Pods should function for node-pod communication: udp",
        by_udp,
    ),
    (
        "[sig-network] HostPort validates that there is no conflict between pods with same hostPort but different hostIP and protocol",
        host_ports,
    ),
    (
        "[sig-network] Proxy version v1 A set of valid responses are returned for both pod and service Proxy",
        proxy_methods,
    ),
    (
        "[sig-network] Proxy version v1 A set of valid responses are returned for both pod and service ProxyWithPath",
        proxy_methods,
    ),
    ("[sig-network] Proxy version v1 should proxy through a service and a pod", proxy_names),
    ("[sig-network] Service endpoints latency should not be very high", latency),
];

/// The image that is the decapod binary: a name server, and so a server of UDP.
const SELF_IMAGE: &str = "decapod.internal/decapod:self";
/// How often a question by UDP is asked again: a datagram may be lost.
const TRIES: u32 = 30;

fn pod_ip(cluster: &Cluster, namespace: &str, name: &str) -> Result<String> {
    let ready = cluster.ready(namespace, name)?;
    Ok(ready["status"]["podIP"].as_str().context("no address")?.to_owned())
}

fn nginx(name: &str) -> Value {
    let mut one = pod(name, "web");
    one["spec"]["containers"] = json!([{"name": "c", "image": "nginx:1",
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 80}, "periodSeconds": 1}}]);
    one
}

/// A name server of a domain of its own, which needs nothing of the cluster to answer.
fn name_server(name: &str, domain: &str) -> Value {
    let mut one = pod(name, "udp");
    let arguments = ["dns", &format!("--domain={domain}"), "--listen=0.0.0.0:5300"];
    one["spec"]["containers"] =
        json!([{"name": "c", "image": SELF_IMAGE, "imagePullPolicy": "Never", "args": arguments}]);
    one
}

/// From a pod to pods, to itself, and from the node to the pods.
fn by_http(cluster: &Cluster) -> Result<()> {
    scene(cluster, "net-http", |scene| {
        scene.create_all(vec![nginx("web-0"), nginx("web-1"), pod("client", "client")])?;
        cluster.ready(scene.namespace, "client")?;
        for name in ["web-0", "web-1"] {
            let ip = pod_ip(cluster, scene.namespace, name)?;
            for from in ["client", "web-0", "web-1"] {
                let asked = ["timeout", "60", "wget", "-qO-", &format!("http://{ip}/")];
                ensure!(cluster.exec(scene.namespace, from, &asked)?.trim() == name, "from {from}");
            }
            ensure!(http_try(&format!("{ip}:80"), "/")?.trim() == name, "from the node");
        }
        Ok(())
    })
}

/// The same by UDP: each pod is asked for the version of its own domain.
fn by_udp(cluster: &Cluster) -> Result<()> {
    scene(cluster, "net-udp", |scene| {
        let names = ["udp-0", "udp-1"];
        scene.create_all(vec![
            name_server(names[0], "udp-0.test"),
            name_server(names[1], "udp-1.test"),
            pod("client", "client"),
        ])?;
        cluster.ready(scene.namespace, "client")?;
        for name in names {
            let ip = pod_ip(cluster, scene.namespace, name)?;
            // The state of the cluster is not known to it: it says that it cannot tell, and nothing is that to others.
            let script = format!("nslookup -type=a x.svc.{name}.test {ip}:5300 2>&1; true");
            let told = || cluster.exec(scene.namespace, "client", &["sh", "-c", &script]);
            poll::text("an answer by UDP", PATIENCE, told, |text| text.contains("SERVFAIL"))?;
            ensure!(answers(&format!("{ip}:5300"), &format!("{name}.test"))?, "from the node");
        }
        Ok(())
    })
}

/// Whether a name server answers by UDP for a name in its own domain; asked again until it does.
fn answers(address: &str, domain: &str) -> Result<bool> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address.parse::<SocketAddr>()?)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    // id, no flags, one question
    let mut question = vec![5, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["x", "svc"].into_iter().chain(domain.split('.')) {
        question.push(u8::try_from(label.len())?);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let mut answer = [0; 512];
    for _ in 0..TRIES {
        // What is lost, or refused by a server that has only begun, is asked again.
        let asked = socket.send(&question).and_then(|_| socket.recv(&mut answer));
        if asked.is_ok_and(|length| length > question.len() / 2) {
            return Ok(answer[..2] == [5, 3] && answer[2] & 0x80 != 0);
        }
    }
    Ok(false)
}

/// Three pods with the same port of the node: by its loopback, by its address, and there by UDP.
fn host_ports(cluster: &Cluster) -> Result<()> {
    const PORT: u16 = 26_084;
    scene(cluster, "host-port", |scene| {
        let nodes = cluster.get(&["nodes"])?;
        let addresses = nodes["items"][0]["status"]["addresses"].as_array().context("no addresses")?;
        let internal = addresses.iter().find(|one| one["type"] == "InternalIP").context("no InternalIP")?;
        let node = internal["address"].as_str().context("no address")?;
        let (mut first, mut second, mut third) =
            (nginx("pod1"), nginx("pod2"), name_server("pod3", "host-port.test"));
        let port = |inner: u16, host: &str, protocol: &str| json!([{"containerPort": inner, "hostPort": PORT, "hostIP": host, "protocol": protocol}]);
        first["spec"]["containers"][0]["ports"] = port(80, "127.0.0.1", "TCP");
        second["spec"]["containers"][0]["ports"] = port(80, node, "TCP");
        third["spec"]["containers"][0]["ports"] = port(5300, node, "UDP");
        scene.create_all(vec![first, second, third])?;
        for (name, address) in [("pod1", "127.0.0.1"), ("pod2", node)] {
            cluster.ready(scene.namespace, name)?;
            let at = format!("{address}:{PORT}");
            poll::text(
                &format!("{name} at {at}"),
                PATIENCE,
                || http_try(&at, "/"),
                |text| text.trim() == name,
            )?;
        }
        cluster.ready(scene.namespace, "pod3")?;
        ensure!(answers(&format!("{node}:{PORT}"), "host-port.test")?, "no answer by UDP");
        // Another one with the very same port has no place on a node that is the only one.
        let mut fourth = nginx("pod4");
        fourth["spec"]["containers"][0]["ports"] = port(80, node, "TCP");
        scene.create(&fourth)?;
        scene
            .until("pod/pod4", "it to find no place", |pod| {
                pod["status"]["conditions"][0]["message"]
                    .as_str()
                    .is_some_and(|why| why.contains("free ports"))
            })
            .map(drop)
    })
}

/// nginx that answers with how it was asked; on 81 with another word before it.
const ECHO: &str = "user root; pid /tmp/pid; error_log /dev/stderr; events {} http { access_log /dev/stdout; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f; \
    uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s; \
    server { listen 80; return 200 '$request_method $request_uri'; } \
    server { listen 81; return 200 'other $request_method $request_uri'; } }";

/// The pod `echo`, its Service `echo` and kubectl's proxy, which hands requests on as they are.
fn echo(scene: &Scene<'_>) -> Result<(Running, String)> {
    let mut one = pod("echo", "echo");
    let command = "mkdir -p /run /tmp && echo \"$CONF\" > /tmp/conf && exec /usr/sbin/nginx -c /tmp/conf -g 'daemon off;'";
    one["spec"]["containers"] = json!([{"name": "c", "image": "nginx:1", "command": ["sh", "-c", command],
        "env": [{"name": "CONF", "value": ECHO}],
        "ports": [{"name": "first", "containerPort": 80}, {"name": "second", "containerPort": 81}],
        "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1}}]);
    scene.create(&one)?;
    scene.create(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "echo"}, "spec": {
        "selector": {"app": "echo"}, "ports": [{"name": "one", "port": 80, "targetPort": "first"},
            {"name": "two", "port": 8081, "targetPort": 81}]}}))?;
    scene.cluster.ready(scene.namespace, "echo")?;
    let mut proxy = Running::start(&mut scene.cluster.kubectl(&["proxy", "--port=0"]))?;
    let address = format!("127.0.0.1:{}", proxy.port()?);
    Ok((proxy, address))
}

/// Sends a request; returns the status line and the body.
fn request(address: &str, method: &str, path: &str) -> Result<(String, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no HTTP answer: {text:?}"))?;
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
}

/// Waits until a way through the API server answers: endpoints come a moment after the pod.
fn until_answered(address: &str, method: &str, path: &str, expected: &str) -> Result<()> {
    poll::until(&format!("{method} {path}"), PATIENCE, || {
        let (status, body) = request(address, method, path)?;
        Ok(if status.contains(" 200 ") && body.contains(expected) {
            Ok(())
        } else {
            Err(format!("{status}\n{body}"))
        })
    })
}

fn proxy_methods(cluster: &Cluster) -> Result<()> {
    scene(cluster, "proxy-methods", |scene| {
        let (_proxy, address) = echo(scene)?;
        let root = format!("/api/v1/namespaces/{}", scene.namespace);
        for place in ["pods/echo", "services/echo:one"] {
            for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
                for (path, seen) in [("/proxy/", "/"), ("/proxy/some/path/with/it", "/some/path/with/it")] {
                    let expected = if method == "HEAD" { String::new() } else { format!("{method} {seen}") };
                    until_answered(&address, method, &format!("{root}/{place}{path}"), &expected)?;
                }
            }
            // Relative links of a page need the slash.
            let (status, _) = request(&address, "GET", &format!("{root}/{place}/proxy"))?;
            ensure!(status.contains(" 301 "), "{status}");
        }
        Ok(())
    })
}

/// Ports by number and by name, with and without a scheme.
fn proxy_names(cluster: &Cluster) -> Result<()> {
    scene(cluster, "proxy-names", |scene| {
        let (_proxy, address) = echo(scene)?;
        let root = format!("/api/v1/namespaces/{}", scene.namespace);
        for (place, expected) in [
            ("pods/echo", "GET /a"),
            ("pods/echo:80", "GET /a"),
            ("pods/echo:81", "other GET /a"),
            ("pods/http:echo:81", "other GET /a"),
            ("services/echo:one", "GET /a"),
            ("services/echo:80", "GET /a"),
            ("services/echo:two", "other GET /a"),
            ("services/echo:8081", "other GET /a"),
            ("services/http:echo:two", "other GET /a"),
        ] {
            until_answered(&address, "GET", &format!("{root}/{place}/proxy/a"), expected)?;
        }
        let (status, body) = request(&address, "GET", &format!("{root}/services/echo:three/proxy/"))?;
        ensure!(status.contains(" 503 ") && body.contains("no endpoints available"), "{status}\n{body}");
        Ok(())
    })
}

/// A hundred Services at once, each with the pods' addresses a moment later.
fn latency(cluster: &Cluster) -> Result<()> {
    const SERVICES: usize = 100;
    scene(cluster, "svc-latency", |scene| {
        scene.create(&deployment("web", 1, json!({})))?;
        scene.rolled_out("deployment/web")?;
        let service = |number: usize| {
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("svc-{number}")},
                "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}})
        };
        scene.create_all((0..SERVICES).map(service).collect())?;
        let label = "kubernetes.io/service-name";
        poll::until("endpoints of a hundred Services", PATIENCE, || {
            let slices = scene.list(&["endpointslices"])?;
            let full = slices.iter().filter(|slice| slice["endpoints"][0]["conditions"]["ready"] == true);
            let named: BTreeSet<_> =
                full.filter_map(|slice| slice["metadata"]["labels"][label].as_str()).collect();
            Ok(if named.len() == SERVICES { Ok(()) } else { Err(format!("{} of them", named.len())) })
        })
    })
}
