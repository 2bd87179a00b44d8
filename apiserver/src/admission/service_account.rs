//! Each pod runs as a service account, and gets its token, the cluster's CA and its namespace in
//! a projected volume.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use decapod_api::status::Error;
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin};
use crate::registry::create::suffix;
use crate::registry::object::{items_mut, map_mut};
use crate::registry::{Call, Registry, core};

const DEFAULT: &str = "default";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// A little over an hour, as Kubernetes asks for; the kubelet renews it in time.
const TOKEN_SECONDS: i64 = 3607;
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Set on an account whose pods may use no other secrets than those that the account names.
const ENFORCE_SECRETS: &str = "kubernetes.io/enforce-mountable-secrets";
/// The account of a new namespace is made by a controller: a pod that comes right after the
/// namespace waits for it this often and long, as with Kubernetes about a second in all.
const LOOKS: usize = 10;
const LOOK_AGAIN: Duration = Duration::from_millis(100);

pub(super) struct ServiceAccount;

#[async_trait]
impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn handles(&self, write: &Attributes<'_>) -> bool {
        match write.operation {
            Operation::Create => write.is("", "pods"),
            Operation::Update => write.is_sub("", "pods", "ephemeralcontainers"),
            Operation::Delete => false,
        }
    }

    async fn mutate(&self, write: &Attributes<'_>, pod: &mut Value) -> Result<(), Error> {
        if !write.creates() || is_mirror(pod) {
            return Ok(());
        }
        let spec = map_mut(pod, "spec");
        let name = spec.get("serviceAccountName").and_then(Value::as_str).filter(|n| !n.is_empty());
        let name = name.unwrap_or(DEFAULT).to_owned();
        spec.insert("serviceAccountName".to_owned(), name.clone().into());
        spec.insert("serviceAccount".to_owned(), name.clone().into());
        let account = account_of(write.registry, write.call, &name).await?;
        complete(pod, &account, || format!("{VOLUME_PREFIX}{}", suffix()));
        Ok(())
    }

    async fn validate(&self, write: &Attributes<'_>, pod: &Value) -> Result<(), Error> {
        let refuse = |why: String| Err(write.call.forbidden(why));
        let name = pod["spec"]["serviceAccountName"].as_str().unwrap_or_default();
        if is_mirror(pod) && write.creates() {
            return mirror_refusal(pod).map_or(Ok(()), |why| refuse(why.to_owned()));
        }
        if name.is_empty() {
            let call = write.call;
            return refuse(format!("no service account specified for pod {}/{}", call.namespace, call.name));
        }
        let account = account_of(write.registry, write.call, name).await?;
        if !super::annotated(&account, ENFORCE_SECRETS, "true") {
            return Ok(());
        }
        let why = if write.creates() {
            foreign_secret(pod, &account)
        } else {
            foreign_secret_of_containers(pod, "ephemeralContainers", "ephemeral container", &account)
        };
        why.map_or(Ok(()), refuse)
    }
}

fn is_mirror(pod: &Value) -> bool {
    pod["metadata"]["annotations"][MIRROR].is_string()
}

async fn account_of(registry: &Registry, call: &Call, name: &str) -> Result<Arc<Value>, Error> {
    let looks = if name == DEFAULT { LOOKS } else { 1 };
    for look in 0..looks {
        if look > 0 {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        if let Some(account) = registry.setting(core("serviceaccounts"), &call.namespace, name).await? {
            return Ok(account);
        }
    }
    Err(call.forbidden(format!(
        "error looking up service account {}/{name}: serviceaccount \"{name}\" not found",
        call.namespace
    )))
}

/// What a mirror pod, whose spec a kubelet read from a file, may not use.
fn mirror_refusal(pod: &Value) -> Option<&'static str> {
    let spec = &pod["spec"];
    if spec["serviceAccountName"].as_str().is_some_and(|name| !name.is_empty()) {
        return Some("a mirror pod may not reference service accounts");
    }
    let volumes = || spec["volumes"].as_array().into_iter().flatten();
    let sources = || volumes().flat_map(|v| v["projected"]["sources"].as_array().into_iter().flatten());
    let of_containers = ["initContainers", "containers", "ephemeralContainers"]
        .iter()
        .flat_map(|field| spec[field].as_array().into_iter().flatten())
        .any(|container| secrets_of(container).next().is_some());
    let secrets = of_containers
        || volumes().any(|volume| volume["secret"].is_object())
        || sources().any(|source| source["secret"].is_object())
        || spec["imagePullSecrets"].as_array().is_some_and(|secrets| !secrets.is_empty());
    if secrets {
        return Some("a mirror pod may not reference secrets");
    }
    sources()
        .any(|source| source["serviceAccountToken"].is_object())
        .then_some("a mirror pod may not use ServiceAccountToken volume projections")
}

/// The secrets that a container's environment is made from, with the variable if it is one.
fn secrets_of(container: &Value) -> impl Iterator<Item = (Option<&str>, &str)> {
    let list = |field: &str| container[field].as_array().into_iter().flatten();
    let variables = list("env")
        .filter_map(|var| Some((var["name"].as_str(), var["valueFrom"]["secretKeyRef"]["name"].as_str()?)));
    variables.chain(list("envFrom").filter_map(|from| Some((None, from["secretRef"]["name"].as_str()?))))
}

/// Why a pod may not use a secret that its account does not name.
fn foreign_secret(pod: &Value, account: &Value) -> Option<String> {
    let spec = &pod["spec"];
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        let secret = volume["secret"]["secretName"].as_str().filter(|name| !names(account, "secrets", name));
        if let Some(secret) = secret {
            return Some(format!(
                "volume with secret.secretName=\"{secret}\" is not allowed because service account {} does not reference that secret",
                decapod_api::meta::name(account)
            ));
        }
    }
    foreign_secret_of_containers(pod, "initContainers", "init container", account)
        .or_else(|| foreign_secret_of_containers(pod, "containers", "container", account))
        .or_else(|| {
            let pulls = spec["imagePullSecrets"].as_array().into_iter().flatten().enumerate();
            let mut foreign = pulls.filter_map(|(i, pull)| Some((i, pull["name"].as_str()?)));
            let (index, name) = foreign.find(|(_, name)| !names(account, "imagePullSecrets", name))?;
            Some(format!(
                "imagePullSecrets[{index}].name=\"{name}\" is not allowed because service account {} does not reference that imagePullSecret",
                decapod_api::meta::name(account)
            ))
        })
}

fn foreign_secret_of_containers(pod: &Value, field: &str, what: &str, account: &Value) -> Option<String> {
    pod["spec"][field].as_array().into_iter().flatten().find_map(|container| {
        let (variable, secret) =
            secrets_of(container).find(|(_, secret)| !names(account, "secrets", secret))?;
        let place = match variable {
            Some(variable) => format!("envVar {variable}"),
            None => "envFrom".to_owned(),
        };
        Some(format!(
            "{what} {} with {place} referencing secret.secretName=\"{secret}\" is not allowed because service account {} does not reference that secret",
            container["name"].as_str().unwrap_or_default(),
            decapod_api::meta::name(account)
        ))
    })
}

fn names(account: &Value, list: &str, secret: &str) -> bool {
    account[list].as_array().into_iter().flatten().any(|one| one["name"] == secret)
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
    fn an_account_may_limit_the_secrets_of_its_pods() {
        let account = json!({"metadata": {"name": "a"}, "secrets": [{"name": "own"}]});
        let with = |secret: &str| json!({"spec": {"volumes": [{"secret": {"secretName": secret}}]}});
        assert_eq!(foreign_secret(&with("own"), &account), None);
        let why = foreign_secret(&with("x"), &account).unwrap();
        assert!(why.starts_with("volume with secret.secretName=\"x\" is not allowed"), "{why}");
        let env = json!({"spec": {"containers": [{"name": "c", "env": [
            {"name": "V", "valueFrom": {"secretKeyRef": {"name": "x", "key": "k"}}}]}]}});
        let why = foreign_secret(&env, &account).unwrap();
        assert!(why.starts_with("container c with envVar V referencing secret.secretName=\"x\""), "{why}");
        let pull = json!({"spec": {"imagePullSecrets": [{"name": "own"}]}});
        assert!(foreign_secret(&pull, &account).unwrap().starts_with("imagePullSecrets[0].name=\"own\""));
    }

    #[test]
    fn mirror_pods_use_nothing_of_the_api() {
        assert_eq!(mirror_refusal(&json!({"spec": {"containers": [{"name": "c"}]}})), None);
        for (spec, why) in [
            (json!({"serviceAccountName": "a"}), "service accounts"),
            (json!({"containers": [{"envFrom": [{"secretRef": {"name": "s"}}]}]}), "secrets"),
            (json!({"volumes": [{"projected": {"sources": [{"serviceAccountToken": {}}]}}]}), "projections"),
        ] {
            assert!(mirror_refusal(&json!({"spec": spec})).unwrap().ends_with(why), "{why}");
        }
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
