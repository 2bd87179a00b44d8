//! Service account tokens for projected volumes: requested for the pod that they are bound to, kept until 80 % of
//! their life is over, then requested anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use decapod_client::clock::Clock;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use kube::Api;
use kube::api::PostParams;

use crate::pod::{Uid, spec};

/// Kubernetes' default life of a projected token.
const DEFAULT_SECONDS: i64 = 3600;
/// A token is never kept longer than this, however long it lives.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// The API server refused a token or did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("failed to fetch token")]
    Api(#[from] kube::Error),
    #[error("the API server answered without a token")]
    Empty,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    pod: Uid,
    account: String,
    audience: String,
    seconds: i64,
}

#[derive(Clone, Debug)]
struct Token {
    text: String,
    renew_at: Timestamp,
}

/// The tokens of all pods of the node.
pub(crate) struct Tokens {
    client: kube::Client,
    clock: Arc<dyn Clock>,
    tokens: Mutex<HashMap<Key, Token>>,
}

impl Tokens {
    pub(crate) fn new(client: kube::Client, clock: Arc<dyn Clock>) -> Self {
        Self { client, clock, tokens: Mutex::default() }
    }

    /// A token that is good for a while yet, and when the next one is due.
    pub(crate) async fn get(
        &self,
        pod: &Pod,
        projection: &ServiceAccountTokenProjection,
    ) -> Result<(String, Timestamp), Error> {
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).unwrap_or("default");
        let key = Key {
            pod: spec::uid(pod).to_owned(),
            account: account.to_owned(),
            audience: projection.audience.clone().unwrap_or_default(),
            seconds: projection.expiration_seconds.unwrap_or(DEFAULT_SECONDS),
        };
        let now = self.clock.now();
        let kept = self.lock().get(&key).filter(|t| t.renew_at > now).cloned();
        if let Some(token) = kept {
            return Ok((token.text, token.renew_at));
        }
        let token = self.request(pod, &key, now).await?;
        let answer = (token.text.clone(), token.renew_at);
        self.lock().insert(key, token);
        Ok(answer)
    }

    /// Forgets the tokens of a pod that is gone.
    pub(crate) fn release(&self, pod: &str) {
        self.lock().retain(|key, _| key.pod != pod);
    }

    async fn request(&self, pod: &Pod, key: &Key, now: Timestamp) -> Result<Token, Error> {
        let audience = Some(key.audience.clone()).filter(|a| !a.is_empty());
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: audience.map(|a| vec![a]),
                expiration_seconds: Some(key.seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(spec::name(pod).to_owned()),
                    uid: Some(key.pod.clone()),
                }),
            }),
            ..TokenRequest::default()
        };
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), spec::namespace(pod));
        let answer = accounts.create_token_request(&key.account, &PostParams::default(), &request).await?;
        let status = answer.status.unwrap_or_default();
        let life = status.expiration_timestamp.map(|at| at.0.duration_since(now));
        let life = life.and_then(|l| l.try_into().ok()).unwrap_or(Duration::ZERO);
        let text = status.token.filter(|t| !t.is_empty()).ok_or(Error::Empty)?;
        Ok(Token { text, renew_at: renewal(now, life) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Token>> {
        // Nothing panics while the lock is held.
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When a token that lives for `life` from `now` is renewed.
fn renewal(now: Timestamp, life: Duration) -> Timestamp {
    let keep = (life * 4 / 5).min(MAX_AGE);
    let keep = SignedDuration::try_from(keep).unwrap_or(SignedDuration::ZERO);
    now.checked_add(keep).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_before_they_expire_and_once_a_day() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(renewal(now, Duration::from_secs(3600)).as_second(), 2880);
        assert_eq!(renewal(now, Duration::from_secs(365 * 86400)).as_second(), 86400);
    }
}
