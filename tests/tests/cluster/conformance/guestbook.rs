//! `[sig-cli] Kubectl client Guestbook application`: three tiers of BusyBox's web server and shell scripts.

use anyhow::Result;
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{PATIENCE, Scene, scene};

pub(super) const TESTS: &[Test<Cluster>] = &[(
    "[sig-cli] Kubectl client Guestbook application should create and stop a working application",
    guestbook,
)];

const HEAD: &str = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\n";

/// A tier: a Deployment of a web server with scripts under `/cgi-bin`, and its Service.
fn tier(name: &str, replicas: u32, port: u16, scripts: &[(&str, &str)]) -> Vec<Value> {
    let texts: serde_json::Map<String, Value> =
        scripts.iter().map(|(name, text)| ((*name).to_owned(), json!(format!("{HEAD}{text}\n")))).collect();
    let labels = json!({"app": "guestbook", "tier": name});
    let container = json!({"name": "c", "image": "busybox:1", "ports": [{"containerPort": port}],
        "command": ["httpd", "-f", "-p", port.to_string(), "-h", "/www"],
        "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1},
        "volumeMounts": [{"name": "scripts", "mountPath": "/www/cgi-bin"}]});
    let scripts = json!({"name": "scripts", "configMap": {"name": name, "defaultMode": 0o755}});
    let meta = json!({"name": name, "labels": labels});
    let spec = json!({"terminationGracePeriodSeconds": 0, "containers": [container], "volumes": [scripts]});
    vec![
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": texts}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta,
            "spec": {"selector": labels, "ports": [{"port": port}]}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": {"replicas": replicas,
            "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}}}),
    ]
}

/// Entries are written to the primary and read from the replicas, which ask the primary.
fn tiers() -> Vec<Value> {
    let entries = "cat /tmp/entries 2>/dev/null";
    let primary = [("set", "echo \"$QUERY_STRING\" >> /tmp/entries\necho updated"), ("get", entries)];
    let replica = [("get", "wget -qO- http://primary:6379/cgi-bin/get")];
    let frontend = [
        ("set", "wget -qO- \"http://primary:6379/cgi-bin/set?$QUERY_STRING\""),
        ("get", "wget -qO- http://replica:6379/cgi-bin/get"),
    ];
    let all = [
        tier("primary", 1, 6379, &primary),
        tier("replica", 2, 6379, &replica),
        tier("frontend", 3, 80, &frontend),
    ];
    all.concat()
}

fn guestbook(cluster: &Cluster) -> Result<()> {
    scene(cluster, "guestbook", |scene| {
        for object in tiers() {
            scene.create(&object)?;
        }
        for name in ["primary", "replica", "frontend"] {
            scene.rolled_out(&format!("deployment/{name}"))?;
        }
        let ask = |what: &str| ask(scene, what);
        poll::text("an empty book", PATIENCE, || Ok(ask("get")), str::is_empty)?;
        poll::text(
            "the entry to be written",
            PATIENCE,
            || Ok(ask("set?entry=TestEntry")),
            |said| said == "updated\n",
        )?;
        poll::text("the entry", PATIENCE, || Ok(ask("get")), |said| said.starts_with("entry=TestEntry\n"))?;
        scene.k(&["delete", "deployments,services,configmaps", "-l", "app=guestbook", "--timeout=90s"])?;
        scene.until_list("pods", "no pod", <[Value]>::is_empty).map(drop)
    })
}

/// What the frontend says, by its Service; the data path follows readiness a moment later.
fn ask(scene: &Scene<'_>, what: &str) -> String {
    let path = format!("/api/v1/namespaces/{}/services/frontend:80/proxy/cgi-bin/{what}", scene.namespace);
    scene.k(&["get", "--raw", &path]).unwrap_or_else(|error| format!("{error:#}"))
}
