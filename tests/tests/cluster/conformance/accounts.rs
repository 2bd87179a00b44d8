//! `[sig-auth] ServiceAccounts`, as pods see them.

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{Scene, pod, scene};

pub(super) const TESTS: &[Test<Cluster>] = &[
    ("[sig-auth] ServiceAccounts should mount an API token into pods", mounted),
    ("[sig-auth] ServiceAccounts should mount projected service account token", projected),
];

const FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Waits until a pod has ended well.
fn ended(scene: &Scene<'_>, name: &str) -> Result<()> {
    let end = |pod: &Value| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let pod = scene.until(&format!("pod/{name}"), "its end", end)?;
    ensure!(pod["status"]["phase"] == "Succeeded", "{:#}", pod["status"]);
    Ok(())
}

/// Whose token it is, and for which audiences.
fn review(scene: &Scene<'_>, token: &str) -> Result<Value> {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {},
        "spec": {"token": token.trim_end()}});
    let told = scene.create(&review)?;
    ensure!(told["status"]["authenticated"] == true && told["status"]["error"].is_null(), "{told:#}");
    Ok(told["status"].clone())
}

fn mounted(cluster: &Cluster) -> Result<()> {
    scene(cluster, "sa-mount", |scene| {
        scene.k(&["create", "serviceaccount", "mount"])?;
        let mut reader = pod("reader", "reader");
        let files = [("token", "token"), ("root-ca", "ca.crt"), ("default-namespace", "namespace")];
        let containers = files.map(|(name, file)| {
            json!({"name": name, "image": "busybox:1", "command": ["cat", format!("{FOLDER}/{file}")]})
        });
        reader["spec"]["serviceAccountName"] = json!("mount");
        reader["spec"]["restartPolicy"] = json!("Never");
        reader["spec"]["containers"] = json!(containers);
        scene.create(&reader)?;
        ended(scene, "reader")?;
        let said = |container: &str| scene.k(&["logs", "reader", "-c", container]);
        ensure!(said("default-namespace")?.trim_end() == scene.namespace);
        let map = scene.get(&["configmap/kube-root-ca.crt"])?;
        let bundle = map["data"]["ca.crt"].as_str().context("no bundle")?;
        ensure!(said("root-ca")?.trim_end() == bundle.trim_end());
        let whose = review(scene, &said("token")?)?;
        let user = format!("system:serviceaccount:{}:mount", scene.namespace);
        ensure!(whose["user"]["username"] == user.as_str(), "{whose:#}");
        Ok(())
    })
}

fn projected(cluster: &Cluster) -> Result<()> {
    scene(cluster, "sa-projected", |scene| {
        let mut reader = pod("reader", "reader");
        let token = json!({"path": "token", "expirationSeconds": 3600});
        reader["spec"]["volumes"] =
            json!([{"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}}]);
        reader["spec"]["automountServiceAccountToken"] = json!(false);
        reader["spec"]["restartPolicy"] = json!("Never");
        let container = &mut reader["spec"]["containers"][0];
        container["volumeMounts"] = json!([{"name": "token", "mountPath": "/projected", "readOnly": true}]);
        container["command"] = json!(["sh", "-c", "stat -L -c %a /projected/token; cat /projected/token"]);
        scene.create(&reader)?;
        ended(scene, "reader")?;
        let said = scene.k(&["logs", "reader"])?;
        let (mode, token) = said.split_once('\n').context("no token")?;
        ensure!(mode == "644", "the mode of the token is {mode}");
        let whose = review(scene, token)?;
        let user = format!("system:serviceaccount:{}:default", scene.namespace);
        ensure!(whose["user"]["username"] == user.as_str(), "{whose:#}");
        let pods = &whose["user"]["extra"]["authentication.kubernetes.io/pod-name"];
        ensure!(pods == &json!(["reader"]), "{whose:#}");
        Ok(())
    })
}
