//! Bootstrap tokens: removes them when they have expired, and signs the public ConfigMap `cluster-info`
//! with each that is for signing, so that who holds such a token can tell a true one.

mod jws;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::informer::{Informer, Selection};
use decapod_client::reconcile::{self, Queue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::common::{Context, Result, Says};

const CLEANER: &str = "token-cleaner";
const SIGNER: &str = "bootstrap-signer";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const SECRETS_NAMESPACE: &str = "kube-system";
const MAP_NAMESPACE: &str = "kube-public";
const MAP: &str = "cluster-info";
const KUBECONFIG: &str = "kubeconfig";
const SIGNATURE_PREFIX: &str = "jws-kubeconfig-";

/// Starts both.
pub(crate) fn start(context: &Context) {
    let selection = Selection { fields: format!("type={TYPE}"), ..Selection::default() };
    let secrets: Informer<Secret> = context.informers.selected(selection);
    start_cleaner(context, &secrets);
    start_signer(context, secrets);
}

fn start_cleaner(context: &Context, secrets: &Informer<Secret>) {
    let queue = Queue::new(context.clock.clone());
    let supervisor = &context.supervisor;
    reconcile::feed(supervisor, CLEANER, secrets.subscribe(), &queue, |change| [change.key.clone()]);
    let (context, secrets) = (context.clone(), secrets.clone());
    reconcile::run(supervisor, CLEANER, &queue, 1, move |key: ObjectKey| {
        let (context, secrets) = (context.clone(), secrets.clone());
        async move { clean(&context, &secrets, &key).await }
    });
}

fn start_signer(context: &Context, secrets: Informer<Secret>) {
    let queue = Queue::new(context.clock.clone());
    let supervisor = &context.supervisor;
    let fields = format!("metadata.name={MAP}");
    let maps: Informer<ConfigMap> = context.informers.selected(Selection { fields, ..Selection::default() });
    reconcile::feed(supervisor, SIGNER, secrets.subscribe(), &queue, |_| [()]);
    reconcile::feed(supervisor, SIGNER, maps.subscribe(), &queue, |change| {
        (change.key.namespace == MAP_NAMESPACE).then_some(())
    });
    let context = context.clone();
    reconcile::run(supervisor, SIGNER, &queue, 1, move |()| {
        let (context, secrets, maps) = (context.clone(), secrets.clone(), maps.clone());
        async move { sign(&context, &secrets, &maps).await }
    });
}

fn text(secret: &Secret, key: &str) -> String {
    let value = secret.data.as_ref().and_then(|data| data.get(key));
    // What is no text is as good as missing.
    value.and_then(|value| String::from_utf8(value.0.clone()).ok()).unwrap_or_default()
}

/// When a token ends; `None` if never. What cannot be read has ended.
fn ends(secret: &Secret) -> Option<Timestamp> {
    let expiration = text(secret, "expiration");
    (!expiration.is_empty()).then(|| expiration.parse().unwrap_or(Timestamp::MIN))
}

async fn clean(context: &Context, secrets: &Informer<Secret>, key: &ObjectKey) -> Result<Option<Duration>> {
    let Some(secret) = secrets.get(key).filter(|_| key.namespace == SECRETS_NAMESPACE) else {
        return Ok(None);
    };
    let Some(end) = ends(&secret) else { return Ok(None) };
    let left = Duration::try_from(end.duration_since(context.clock.now())).unwrap_or_default();
    if !left.is_zero() {
        return Ok(Some(left));
    }
    let api: Api<Secret> = Api::namespaced(context.client.clone(), SECRETS_NAMESPACE);
    let preconditions = Preconditions { uid: secret.uid(), resource_version: None };
    match api.delete(&key.name, &DeleteParams::default().preconditions(preconditions)).await {
        Ok(_) => Ok(None),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(None),
        Err(error) => Err(error).says("remove an expired bootstrap token"),
    }
}

async fn sign(
    context: &Context,
    secrets: &Informer<Secret>,
    maps: &Informer<ConfigMap>,
) -> Result<Option<Duration>> {
    secrets.synced().await;
    let Some(map) = maps.get(&ObjectKey::new(MAP_NAMESPACE, MAP)) else { return Ok(None) };
    let Some(signed) = plan(&map, &secrets.list_in(SECRETS_NAMESPACE), context.clock.now()) else {
        return Ok(None);
    };
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), MAP_NAMESPACE);
    match api.replace(MAP, &PostParams::default(), &signed).await {
        Err(error) if error.is_not_found() => Ok(None),
        written => written.map(|_| None).says("sign cluster-info"),
    }
}

/// The map with one signature for each token that is for signing; `None` if it is so already.
fn plan(map: &ConfigMap, secrets: &[Arc<Secret>], now: Timestamp) -> Option<ConfigMap> {
    let kubeconfig = map.data.as_ref()?.get(KUBECONFIG)?;
    let signing = secrets.iter().filter(|secret| {
        text(secret, "usage-bootstrap-signing") == "true"
            && secret.metadata.deletion_timestamp.is_none()
            && ends(secret).is_none_or(|end| end > now)
    });
    let mut data: BTreeMap<String, String> = map.data.clone().unwrap_or_default();
    data.retain(|key, _| !key.starts_with(SIGNATURE_PREFIX));
    for secret in signing {
        let (id, secret) = (text(secret, "token-id"), text(secret, "token-secret"));
        if !id.is_empty() && !secret.is_empty() {
            data.insert(format!("{SIGNATURE_PREFIX}{id}"), jws::detached(kubeconfig, &id, &secret));
        }
    }
    (Some(&data) != map.data.as_ref()).then(|| ConfigMap { data: Some(data), ..map.clone() })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn token(id: &str, more: &[(&str, &str)]) -> Arc<Secret> {
        let usual =
            [("token-id", id), ("token-secret", "0123456789abcdef"), ("usage-bootstrap-signing", "true")];
        let data =
            usual.iter().chain(more).map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec())));
        Arc::new(Secret { data: Some(data.collect()), ..Secret::default() })
    }

    #[test]
    fn each_signing_token_signs() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let data = [(KUBECONFIG, "text"), ("jws-kubeconfig-gone00", "x"), ("other", "y")];
        let data = data.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let map = ConfigMap { data: Some(data), ..ConfigMap::default() };
        let secrets = [
            token("aaaaaa", &[]),
            token("bbbbbb", &[("expiration", "2025-01-01T00:00:00Z")]),
            token("cccccc", &[("usage-bootstrap-signing", "false")]),
        ];
        let signed = plan(&map, &secrets, now).unwrap();
        let keys: Vec<&str> = signed.data.as_ref().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["jws-kubeconfig-aaaaaa", KUBECONFIG, "other"]);
        assert_eq!(plan(&signed, &secrets, now), None, "nothing to write twice");
        assert_eq!(plan(&ConfigMap::default(), &secrets, now), None);
    }
}
