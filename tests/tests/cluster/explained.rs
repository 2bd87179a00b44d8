//! `decapod why` on a real cluster, and a scheduler that a file configures.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::server::Server;
use decapod_tests::tools::run;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(180);

fn pod(name: &str, ns: &str, spec: &Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": ns}, "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "busybox:1", "command": ["sleep", "3600"]}]}});
    for (field, value) in spec.as_object().into_iter().flatten() {
        match field.as_str() {
            "container" => {
                for (field, value) in value.as_object().into_iter().flatten() {
                    pod["spec"]["containers"][0][field] = value.clone();
                }
            }
            _ => pod["spec"][field] = value.clone(),
        }
    }
    pod
}

fn deployment(name: &str, ns: &str, spec: &Value) -> Value {
    let mut template = pod(name, ns, spec);
    template["metadata"] = json!({"labels": {"app": name}});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": ns}, "spec": {
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": template["metadata"], "spec": template["spec"]}}})
}

pub(crate) fn why_says_what_is_in_the_way(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("explained", |ns| {
        let items = [
            pod("unmounted", ns, &json!({"volumes": [{"name": "v", "secret": {"secretName": "absent-secret"}}]})),
            pod("unset", ns, &json!({"container": {"envFrom": [{"configMapRef": {"name": "absent-map"}}]}})),
            pod("unclaimed", ns, &json!({"volumes": [
                {"name": "v", "persistentVolumeClaim": {"claimName": "absent-claim"}}]})),
            pod("huge", ns, &json!({"container": {"resources": {"requests": {"cpu": "1000"}}}})),
            pod("gated", ns, &json!({"schedulingGates": [{"name": "example.com/wait"}]})),
            pod("misspelt", ns, &json!({"container": {"command": ["no-such-program"]}})),
            deployment("ghostly", ns, &json!({"serviceAccountName": "ghost"})),
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "classless", "namespace": ns},
                "spec": {"storageClassName": "no-such-class", "accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "1Mi"}}}}),
        ];
        cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
        for (what, words) in [
            ("pod/unmounted", &["absent-secret", "must exist in the pod's namespace"][..]),
            ("pod/unset", &["absent-map", "create the ConfigMap, Secret or key"]),
            ("pod/unclaimed", &["absent-claim"]),
            ("pod/huge", &["cpu"]),
            ("pod/gated", &["example.com/wait"]),
            ("pod/misspelt", &["no-such-program"]),
            ("deployment/ghostly", &["its pods cannot be made", "ghost", "service account"]),
            ("pvc/classless", &["no-such-class"]),
        ] {
            let why = || run(&mut cluster.decapod(&["why", what, "-n", ns]));
            poll::text(&format!("why {what}"), PATIENCE, why, |said| words.iter().all(|word| said.contains(word)))?;
        }
        Ok(())
    })?;
    cluster.in_namespace("explained-quota", |ns| {
        let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": ns},
            "spec": {"hard": {"pods": "0"}}});
        cluster.apply(&quota.to_string())?;
        // It holds from when its status has it.
        let hard = || cluster.k(&["get", "quota", "none", "-n", ns, "-o", "jsonpath={.status.hard.pods}"]);
        poll::text("the quota to hold", PATIENCE, hard, |hard| hard == "0")?;
        cluster.apply(&deployment("many", ns, &json!({})).to_string())?;
        let why = || run(&mut cluster.decapod(&["why", "deployment/many", "-n", ns]));
        poll::text("why the quota", PATIENCE, why, |said| said.contains("exceeded quota: none") && said.contains("pods"))
            .map(drop)
    })
}

/// Nodes that nobody runs take pods, too: where they are put shows by which profile.
pub(crate) fn a_file_configures_the_scheduler(cluster: &Cluster) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(configured(cluster.scratch()))
}

async fn configured(scratch: &std::path::Path) -> Result<()> {
    let file = scratch.join("scheduler.yaml");
    let config = |plugin: &str| {
        let packed = json!({"schedulerName": "packed", "pluginConfig": [{"name": plugin, "args": {
            "apiVersion": "kubescheduler.config.k8s.io/v1", "kind": format!("{plugin}Args"),
            "scoringStrategy": {"type": "MostAllocated",
                "resources": [{"name": "cpu", "weight": 1}, {"name": "memory", "weight": 1}]}}}]});
        json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
            "profiles": [{"schedulerName": "default-scheduler"}, packed]})
    };
    let mut server = Server::prepare("dcpsched", vec![format!("--scheduler-config={}", file.display())])?;
    std::fs::write(&file, config("NodeResourcesFitt").to_string())?;
    let Err(refused) = server.start().await else { bail!("a plugin that there is not was taken") };
    let refused = format!("{refused:#}");
    ensure!(refused.contains("--scheduler-config") && refused.contains("NodeResourcesFitt"), "{refused}");
    std::fs::write(&file, config("NodeResourcesFit").to_string())?;
    server.start().await?;
    let client = server.client().await?;
    let (nodes, pods) = (Api::<Node>::all(client.clone()), Api::<Pod>::namespaced(client, "default"));
    for name in ["busy", "free"] {
        let allocatable = json!({"cpu": "8", "memory": "8Gi", "pods": "110"});
        let node = json!({"metadata": {"name": name, "labels": {"is": name}}});
        nodes.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
        let status = Patch::Merge(json!({"status": {"allocatable": allocatable, "capacity": allocatable}}));
        nodes.patch_status(name, &PatchParams::default(), &status).await?;
    }
    // The first two show that the scheduler knows both nodes, and what it counts on them.
    for (name, more, cpu, memory, wanted) in [
        ("little", json!({"nodeSelector": {"is": "free"}}), "500m", "512Mi", "free"),
        ("much", json!({"nodeSelector": {"is": "busy"}}), "2", "2Gi", "busy"),
        ("spread", json!({}), "1", "1Gi", "free"),
        ("packed", json!({"schedulerName": "packed"}), "1", "1Gi", "busy"),
    ] {
        let mut object = pod(name, "default", &more);
        object["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
        object["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": cpu, "memory": memory}});
        let object = serde_json::from_value(object)?;
        let placed = tokio::time::timeout(PATIENCE, async {
            // The namespace's service account is made a moment after the start.
            while let Err(error) = pods.create(&PostParams::default(), &object).await {
                ensure!(matches!(&error, kube::Error::Api(status) if status.code == 403), "{name}: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            loop {
                if let Some(node) = pods.get(name).await?.spec.and_then(|spec| spec.node_name) {
                    return Ok(node);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let node =
            placed.await.with_context(|| format!("{name} is not placed: {}", server.last_words()))??;
        ensure!(node == wanted, "{name} is on {node}");
    }
    Ok(())
}
