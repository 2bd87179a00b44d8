//! Tokens in Secrets that were made for a service account without being asked for, and that nobody uses: they are marked
//! as invalid first, and removed when nobody missed them for as long again.
//!
//! Kubernetes makes none any more; they come with objects that were restored from an older cluster. What somebody made
//! by hand is left alone: no service account lists it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::error::{self, ErrorExt};
use decapod_client::informer::{Informer, Selection};
use jiff::civil::Date;
use jiff::{Timestamp, ToSpan};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::tokens::{ACCOUNT, ACCOUNT_UID, TYPE};
use crate::common::{Context, Result, Says};

const NAME: &str = "legacy-serviceaccount-token-cleaner-controller";
/// How often unused tokens are looked for: their age is told in days.
const EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// A look that failed is taken again so soon.
const AGAIN: Duration = Duration::from_secs(60);

const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Since when the API server notes the use of tokens.
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";

struct Cleaner {
    context: Context,
    secrets: Informer<Secret>,
    accounts: Informer<ServiceAccount>,
    pods: Informer<Pod>,
    unused: Duration,
}

/// Starts the controller: what was not used for so long is of no use.
pub(crate) fn start(context: &Context, unused: Duration) {
    let fields = format!("type={TYPE}");
    let cleaner = Cleaner {
        context: context.clone(),
        secrets: context.informers.selected(Selection { fields, ..Selection::default() }),
        accounts: context.informers.of(),
        pods: context.informers.of(),
        unused,
    };
    context.supervisor.spawn_until_shutdown(NAME, cleaner.run());
}

/// What is to be done about a Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Keep,
    Invalidate,
    Remove,
}

/// What was noted of a Secret, and who refers to it.
struct Facts {
    created: Option<Timestamp>,
    deleting: bool,
    last_used: Option<String>,
    invalid_since: Option<String>,
    /// Its service account lists it: nobody made it by hand.
    listed: bool,
    /// A pod reads it.
    mounted: bool,
}

/// Decides by the day before which nothing may have happened.
fn plan(facts: &Facts, limit: Timestamp) -> Step {
    let day = Date::from(limit.to_zoned(jiff::tz::TimeZone::UTC));
    let parsed = |text: &str| text.parse::<Date>().ok();
    let young = facts.created.is_none_or(|created| created >= limit);
    if young || facts.deleting || !facts.listed || facts.mounted {
        return Step::Keep;
    }
    // Without the label it was not used since its use is noted. What is no date says nothing.
    let used = facts.last_used.as_deref().map(parsed);
    if used.is_some_and(|used| used.is_none_or(|used| used >= day)) {
        return Step::Keep;
    }
    match facts.invalid_since.as_deref().and_then(parsed) {
        None => Step::Invalidate,
        Some(since) if since >= day => Step::Keep,
        Some(_) => Step::Remove,
    }
}

impl Cleaner {
    async fn run(self) -> Infallible {
        loop {
            let pause = match self.clean().await {
                Ok(()) => EVERY,
                Err(error) => {
                    tracing::warn!(error = error::chain(&error), "unused tokens were not looked for");
                    AGAIN
                }
            };
            self.context.clock.sleep(pause).await;
        }
    }

    async fn clean(&self) -> Result<()> {
        self.secrets.synced().await;
        self.accounts.synced().await;
        self.pods.synced().await;
        let now = self.context.clock.now();
        let limit = now - jiff::SignedDuration::try_from(self.unused).unwrap_or(jiff::SignedDuration::MAX);
        let Some(noted) = self.noted_since().await? else { return Ok(()) };
        if noted >= limit {
            return Ok(());
        }
        for secret in self.secrets.list() {
            let step = plan(&self.facts(&secret), limit);
            self.apply(&secret, step, now).await?;
        }
        Ok(())
    }

    /// The day after the one on which the API server began to note the use of tokens.
    async fn noted_since(&self) -> Result<Option<Timestamp>> {
        let api: Api<ConfigMap> = Api::namespaced(self.context.client.clone(), "kube-system");
        let map = api.get_opt(TRACKING).await.says("find out since when the use of tokens is noted")?;
        let since =
            map.and_then(|map| map.data?.remove("since")).and_then(|since| since.parse::<Date>().ok());
        let next = since.and_then(|since| since.checked_add(1.day()).ok());
        Ok(next.and_then(|day| day.to_zoned(jiff::tz::TimeZone::UTC).ok()).map(|day| day.timestamp()))
    }

    fn facts(&self, secret: &Secret) -> Facts {
        let (name, namespace) = (secret.name_any(), secret.namespace().unwrap_or_default());
        let label = |label: &str| secret.labels().get(label).cloned();
        let annotation = |key: &str| secret.annotations().get(key).cloned().unwrap_or_default();
        let account = self.accounts.get(&ObjectKey::new(&namespace, annotation(ACCOUNT)));
        let uid = annotation(ACCOUNT_UID);
        let listed = account.is_some_and(|account| {
            let its = uid.is_empty() || account.uid().as_deref() == Some(&uid);
            its && account.secrets.iter().flatten().any(|one| one.name.as_deref() == Some(&name))
        });
        Facts {
            created: secret.creation_timestamp().map(|time| time.0),
            deleting: secret.metadata.deletion_timestamp.is_some(),
            last_used: label(LAST_USED),
            invalid_since: label(INVALID_SINCE),
            listed,
            // Only what may be removed is worth looking at all pods for.
            mounted: self.pods.list_in(&namespace).iter().any(|pod| reads(pod, &name)),
        }
    }

    async fn apply(&self, secret: &Arc<Secret>, step: Step, now: Timestamp) -> Result<()> {
        let (name, namespace) = (secret.name_any(), secret.namespace().unwrap_or_default());
        let api: Api<Secret> = Api::namespaced(self.context.client.clone(), &namespace);
        let done = match step {
            Step::Keep => return Ok(()),
            Step::Invalidate => {
                let today = now.strftime("%Y-%m-%d").to_string();
                tracing::info!(
                    namespace,
                    name,
                    "an unused token of a service account is invalid from now on"
                );
                let metadata = json!({"uid": secret.uid(), "labels": {INVALID_SINCE: today}});
                let patch = Patch::Merge(json!({"metadata": metadata}));
                api.patch(&name, &PatchParams::default(), &patch).await.map(drop)
            }
            Step::Remove => {
                tracing::info!(namespace, name, "an unused token of a service account is removed");
                let resource_version = secret.resource_version();
                let preconditions = Preconditions { uid: secret.uid(), resource_version };
                api.delete(&name, &DeleteParams::default().preconditions(preconditions)).await.map(drop)
            }
        };
        match done {
            // It went, or was used: it is looked at again the next time.
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            done => done.says("put an unused token of a service account out of use"),
        }
    }
}

/// Whether a pod refers to a Secret, wherever a pod may: volumes, environment, pull secrets, keys of volume drivers.
fn reads(pod: &Pod, secret: &str) -> bool {
    let spec = serde_json::to_value(&pod.spec).expect("a pod's spec is a tree of JSON");
    refers(&spec, secret)
}

/// Each place where a pod names a Secret has one of these keys.
fn refers(value: &Value, secret: &str) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(key, value)| {
            let named = match key.as_str() {
                "secretName" => value == secret,
                "secretRef" | "secretKeyRef" | "secret" | "nodePublishSecretRef" => value["name"] == secret,
                "imagePullSecrets" => value.as_array().into_iter().flatten().any(|one| one["name"] == secret),
                _ => false,
            };
            named || refers(value, secret)
        }),
        Value::Array(list) => list.iter().any(|value| refers(value, secret)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unused() -> Facts {
        Facts {
            created: Some("2024-01-01T00:00:00Z".parse().unwrap()),
            deleting: false,
            last_used: None,
            invalid_since: None,
            listed: true,
            mounted: false,
        }
    }

    #[test]
    fn a_token_is_marked_first_and_removed_later() {
        let limit = "2025-06-01T12:00:00Z".parse().unwrap();
        let text = |day: &str| Some(day.to_owned());
        for (facts, step) in [
            (unused(), Step::Invalidate),
            (Facts { last_used: text("2025-05-31"), ..unused() }, Step::Invalidate),
            (Facts { last_used: text("2025-06-01"), ..unused() }, Step::Keep),
            (Facts { last_used: text("lately"), ..unused() }, Step::Keep),
            (Facts { invalid_since: text("2025-05-31"), ..unused() }, Step::Remove),
            (Facts { invalid_since: text("2025-06-02"), ..unused() }, Step::Keep),
            (Facts { invalid_since: text("?"), ..unused() }, Step::Invalidate),
            (Facts { listed: false, ..unused() }, Step::Keep),
            (Facts { mounted: true, ..unused() }, Step::Keep),
            (Facts { deleting: true, ..unused() }, Step::Keep),
            (Facts { created: Some("2025-06-02T00:00:00Z".parse().unwrap()), ..unused() }, Step::Keep),
        ] {
            assert_eq!(plan(&facts, limit), step);
        }
    }

    #[test]
    fn all_ways_in_which_pods_name_secrets_are_seen() {
        for spec in [
            json!({"containers": [], "volumes": [{"name": "v", "secret": {"secretName": "s"}}]}),
            json!({"containers": [], "volumes": [{"name": "v", "projected": {"sources": [{"secret": {"name": "s"}}]}}]}),
            json!({"containers": [], "volumes": [{"name": "v", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "s"}}}]}),
            json!({"containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "s"}}]}]}),
            json!({"containers": [], "initContainers": [{"name": "c", "env": [{"name": "E", "valueFrom":
                {"secretKeyRef": {"name": "s", "key": "k"}}}]}]}),
            json!({"containers": [], "imagePullSecrets": [{"name": "s"}]}),
        ] {
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
            assert!(reads(&pod, "s"), "{pod:?}");
            assert!(!reads(&pod, "other"));
        }
    }
}
