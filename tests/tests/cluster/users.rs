//! Pods with a user namespace of their own (`hostUsers: false`, KEP-127), as users of kubectl see them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(180);

/// What the pod says about itself and about each kind of volume: the owners are those that the pod knows.
const LOOK: &str = "cat /proc/self/uid_map; id -u; \
    stat -c '%n %u:%g' /empty /memory /claim /map/..data/key /secret/..data/key /info/..data/name \
        /var/run/secrets/kubernetes.io/serviceaccount/..data/token; \
    cat /map/key /secret/key /info/name; echo; \
    echo kept > /claim/file && echo out > /dev/stdout && touch /empty/ready /memory/x && sleep 3600";

/// Everything that pods usually have works as it does without; only the machine sees other ids.
pub(crate) fn pods_have_users_of_their_own(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.get(&["nodes"])?;
    let handlers = &nodes["items"][0]["status"]["runtimeHandlers"];
    ensure!(
        handlers
            .as_array()
            .is_some_and(|all| all.iter().all(|one| one["features"]["userNamespaces"] == true)),
        "{handlers}"
    );
    cluster.in_namespace("users", |ns| {
        let (first, second) = (manifest(ns, "first"), manifest(ns, "second"));
        cluster.apply(&[config(ns), first, second].join("\n---\n"))?;
        let mut ranges = BTreeSet::new();
        for name in ["first", "second"] {
            cluster.k(&["wait", "--for=condition=Ready", "--timeout=180s", "pod", name, "-n", ns])?;
            let logs = || cluster.k(&["logs", name, "-n", ns]);
            let said = poll::text("what the pod sees", PATIENCE, logs, |said| said.ends_with("out\n"))?;
            let mut lines = said.lines();
            let range: Vec<&str> = lines.next().context("no map")?.split_whitespace().collect();
            ensure!(range.len() == 3 && range[0] == "0" && range[2] == "65536", "{said}");
            ensure!(range[1].parse::<u32>()? >= 1 << 16 && ranges.insert(range[1].to_owned()), "{said}");
            let rest: Vec<&str> = lines.collect();
            let token = "/var/run/secrets/kubernetes.io/serviceaccount/..data/token 0:2000";
            let wanted = [
                "0", "/empty 0:2000", "/memory 0:2000", "/claim 0:2000", "/map/..data/key 0:2000",
                "/secret/..data/key 0:2000", "/info/..data/name 0:2000", token,
            ];
            ensure!(rest[..wanted.len()] == wanted, "{said}");
            ensure!(said.contains("mapsecret"), "{said}");
            let look = "id -u; stat -c %u:%g /claim/file /empty/by-user; touch /by-exec; stat -c %u /by-exec /proc/1";
            let seen = cluster.k(&["exec", name, "-n", ns, "--", "sh", "-c", look])?;
            // The folder's group goes to what is made in it.
            ensure!(seen == "0\n0:2000\n1000:2000\n0\n0\n", "{seen}");
        }
        let host = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "host", "namespace": ns},
            "spec": {"hostUsers": false, "hostNetwork": true, "containers": [{"name": "c", "image": "busybox:1"}]}});
        let refused = cluster.apply(&host.to_string()).err().context("taken")?;
        ensure!(format!("{refused:#}").contains("when `hostUsers` is false"), "{refused:#}");
        Ok(())
    })
}

fn config(ns: &str) -> String {
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "claim", "namespace": ns},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}});
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "map", "namespace": ns},
        "data": {"key": "map"}});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "secret", "namespace": ns},
        "stringData": {"key": "secret"}});
    [claim, map, secret].map(|object| object.to_string()).join("\n---\n")
}

fn manifest(ns: &str, name: &str) -> String {
    let mount = |name: &str| json!({"name": name, "mountPath": format!("/{name}")});
    let kinds = ["empty", "memory", "claim", "map", "secret", "info"];
    let info = json!([{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]);
    let probe =
        |exec: [&str; 3]| json!({"exec": {"command": exec}, "periodSeconds": 1, "timeoutSeconds": 30});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": ns},
    "spec": {
        "hostUsers": false,
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"fsGroup": 2000},
        "initContainers": [{"name": "i", "image": "busybox:1",
            "command": ["sh", "-c", "test $(id -u) = 1000 && touch /empty/by-user"],
            "securityContext": {"runAsUser": 1000, "runAsGroup": 3000},
            "volumeMounts": [mount("empty")]}],
        "containers": [{"name": "c", "image": "busybox:1", "command": ["sh", "-c", LOOK],
            "readinessProbe": probe(["sh", "-c", "test -f /empty/ready"]),
            "volumeMounts": kinds.map(mount)}],
        "volumes": [
            {"name": "empty", "emptyDir": {}},
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
            {"name": "claim", "persistentVolumeClaim": {"claimName": "claim"}},
            {"name": "map", "configMap": {"name": "map"}},
            {"name": "secret", "secret": {"secretName": "secret", "defaultMode": 0o400}},
            {"name": "info", "downwardAPI": {"items": info}}
        ]}})
    .to_string()
}
