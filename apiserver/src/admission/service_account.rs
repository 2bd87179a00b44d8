//! Each pod runs as a service account, and gets its token, the cluster's CA and its namespace in
//! a projected volume.

use decapod_api::status::Error;
use serde_json::{Value, json};

use crate::registry::create::suffix;
use crate::registry::object::{items_mut, map_mut};
use crate::registry::{Call, Registry, core};

const DEFAULT: &str = "default";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// A little over an hour, as Kubernetes asks for; the kubelet renews it in time.
const TOKEN_SECONDS: i64 = 3607;
const MIRROR: &str = "kubernetes.io/config.mirror";

pub(super) async fn admit(registry: &Registry, call: &Call, pod: &mut Value) -> Result<(), Error> {
    if pod["metadata"]["annotations"][MIRROR].is_string() {
        return Ok(());
    }
    let spec = map_mut(pod, "spec");
    let name = match spec.get("serviceAccountName").and_then(Value::as_str).filter(|n| !n.is_empty()) {
        Some(name) => name.to_owned(),
        None => DEFAULT.to_owned(),
    };
    spec.insert("serviceAccountName".to_owned(), name.clone().into());
    spec.insert("serviceAccount".to_owned(), name.clone().into());
    let account = registry.find(core("serviceaccounts"), &call.namespace, &name).await?;
    let account = account.ok_or_else(|| {
        call.forbidden(format!(
            "error looking up service account {}/{name}: serviceaccount \"{name}\" not found",
            call.namespace
        ))
    })?;
    complete(pod, &account, || format!("{VOLUME_PREFIX}{}", suffix()));
    Ok(())
}

/// Adds the volume and its mounts, and the account's pull secrets, where the pod has none.
fn complete(pod: &mut Value, account: &Value, volume_name: impl Fn() -> String) {
    let wanted = pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or(account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if wanted {
        mount_token(pod, volume_name);
    }
    let secrets = &account["imagePullSecrets"];
    let own = pod["spec"]["imagePullSecrets"].as_array().is_some_and(|s| !s.is_empty());
    if !own && secrets.as_array().is_some_and(|s| !s.is_empty()) {
        pod["spec"]["imagePullSecrets"] = secrets.clone();
    }
}

fn mount_token(pod: &mut Value, volume_name: impl Fn() -> String) {
    let volumes = pod["spec"]["volumes"].as_array();
    let names = volumes.into_iter().flatten().filter_map(|v| v["name"].as_str());
    let existing = names.clone().find(|n| n.starts_with(VOLUME_PREFIX)).map(str::to_owned);
    let name = existing.clone().unwrap_or_else(volume_name);
    let mut used = false;
    for field in ["initContainers", "containers"] {
        for container in items_mut(pod, &["spec", field]) {
            let mounts = container["volumeMounts"].as_array();
            if mounts.into_iter().flatten().any(|m| m["mountPath"] == MOUNT_PATH) {
                continue;
            }
            let mount = json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH});
            push(container, "volumeMounts", mount);
            used = true;
        }
    }
    if used && existing.is_none() {
        push(&mut pod["spec"], "volumes", volume(&name));
    }
}

fn volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}

fn push(object: &mut Value, field: &str, item: Value) {
    match object[field].as_array_mut() {
        Some(list) => list.push(item),
        None => object[field] = json!([item]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(mut pod: Value, account: Value) -> Value {
        complete(&mut pod, &account, || "kube-api-access-x".to_owned());
        pod
    }

    #[test]
    fn mounts_the_token_once() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [
            {"name": "own", "mountPath": MOUNT_PATH}]}]}});
        let pod = completed(pod, json!({"imagePullSecrets": [{"name": "s"}]}));
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"], MOUNT_PATH);
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        assert_eq!(pod["spec"]["volumes"][0]["projected"]["sources"].as_array().unwrap().len(), 3);
        assert_eq!(pod["spec"]["imagePullSecrets"][0]["name"], "s");
        assert_eq!(completed(pod.clone(), json!({})), pod);
    }

    #[test]
    fn opting_out() {
        let pod = json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(completed(pod.clone(), json!({"automountServiceAccountToken": false})), pod);
        let mut asks = pod.clone();
        asks["spec"]["automountServiceAccountToken"] = true.into();
        let mounted = completed(asks, json!({"automountServiceAccountToken": false}));
        assert_eq!(mounted["spec"]["volumes"].as_array().unwrap().len(), 1);
    }
}
