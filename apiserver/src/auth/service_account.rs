//! Service account tokens: JSON web tokens (ES256) bound to a service account and mostly to a pod.
//!
//! **Invariant**: a token is good only while its service account, and the object it is bound to,
//! still exist with the same uid; the caller checks both through [`Lookup`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use ring::digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{SERVICE_ACCOUNTS, UserInfo};
use crate::pki::Pki;

/// Who issues the tokens, and the audience they are for by default.
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// The prefix of a service account's user name.
pub(crate) const USER_PREFIX: &str = "system:serviceaccount:";
/// Kubernetes grants no token of less than ten minutes.
pub(crate) const MIN_LIFETIME: Duration = Duration::from_secs(600);
/// What is asked for is given up to this bound.
pub(crate) const MAX_LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A named object with its uid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub(crate) name: String,
    pub(crate) uid: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Bound {
    namespace: String,
    serviceaccount: Reference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<Reference>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bound,
    nbf: i64,
    sub: String,
}

/// What a new token is for.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) namespace: String,
    pub(crate) account: Reference,
    pub(crate) pod: Option<Reference>,
    pub(crate) node: Option<Reference>,
    pub(crate) secret: Option<Reference>,
    pub(crate) audiences: Vec<String>,
    pub(crate) lifetime: Duration,
}

/// Reads the objects that tokens are bound to.
#[async_trait]
pub(crate) trait Lookup: Send + Sync + 'static {
    /// The uid of an object (`resource` is the core group's plural), if it exists and is not
    /// being deleted for longer than its grace period.
    async fn uid(&self, resource: &str, namespace: &str, name: &str) -> Option<String>;
}

/// Why a bearer token is not a good service account token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the token is malformed, expired or not signed by this cluster")]
    Invalid(#[from] jsonwebtoken::errors::Error),
    #[error("the token is not for the audiences {0:?}")]
    Audience(Vec<String>),
    #[error("the {0} that the token is bound to is gone")]
    Unbound(&'static str),
}

/// Signs and verifies service account tokens.
pub(crate) struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
    key_id: String,
    public_key: Vec<u8>,
    lookup: Arc<dyn Lookup>,
}

impl Tokens {
    pub(crate) fn new(pki: &Pki, lookup: Arc<dyn Lookup>) -> Self {
        let key = pki.token_key();
        let digest = digest::digest(&digest::SHA256, key.public_key_raw());
        Self {
            encoding: EncodingKey::from_ec_der(key.serialized_der()),
            decoding: DecodingKey::from_ec_der(key.public_key_raw()),
            key_id: base64_url(digest.as_ref()),
            public_key: key.public_key_raw().to_vec(),
            lookup,
        }
    }

    /// Signs a token; returns it and when it expires.
    pub(crate) fn sign(&self, grant: &Grant, now: Timestamp) -> Result<(String, Timestamp), Error> {
        let lifetime = grant.lifetime.clamp(MIN_LIFETIME, MAX_LIFETIME);
        let issued = now.as_second();
        let expires = issued + lifetime.as_secs() as i64;
        let audiences =
            if grant.audiences.is_empty() { vec![ISSUER.to_owned()] } else { grant.audiences.clone() };
        let claims = Claims {
            aud: audiences,
            exp: expires,
            iat: issued,
            iss: ISSUER.to_owned(),
            jti: uuid::Uuid::new_v4().to_string(),
            kubernetes: Bound {
                namespace: grant.namespace.clone(),
                serviceaccount: grant.account.clone(),
                pod: grant.pod.clone(),
                node: grant.node.clone(),
                secret: grant.secret.clone(),
            },
            nbf: issued,
            sub: format!("{USER_PREFIX}{}:{}", grant.namespace, grant.account.name),
        };
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        header.kid = Some(self.key_id.clone());
        let token = jsonwebtoken::encode(&header, &claims, &self.encoding)?;
        Ok((token, Timestamp::from_second(expires).unwrap_or(Timestamp::MAX)))
    }

    /// The user of a token that is good for one of `audiences` (empty: the API server's own), and
    /// the audiences that matched.
    pub(crate) async fn authenticate(
        &self,
        token: &str,
        audiences: &[String],
        now: Timestamp,
    ) -> Result<(UserInfo, Vec<String>), Error> {
        let claims = self.verify(token, now)?;
        let wanted: Vec<String> =
            if audiences.is_empty() { vec![ISSUER.to_owned()] } else { audiences.to_vec() };
        let matched: Vec<String> = wanted.iter().filter(|a| claims.aud.contains(a)).cloned().collect();
        if matched.is_empty() {
            return Err(Error::Audience(wanted));
        }
        let bound = &claims.kubernetes;
        self.check("serviceaccounts", "service account", &bound.namespace, &bound.serviceaccount).await?;
        if let Some(pod) = &bound.pod {
            self.check("pods", "pod", &bound.namespace, pod).await?;
        }
        if let Some(secret) = &bound.secret {
            self.check("secrets", "secret", &bound.namespace, secret).await?;
        }
        if let (None, Some(node)) = (&bound.pod, &bound.node) {
            self.check("nodes", "node", "", node).await?;
        }
        Ok((user_of(&claims), matched))
    }

    fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, Error> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.validate_aud = false;
        // Time is checked below against the injected clock.
        validation.validate_exp = false;
        validation.set_issuer(&[ISSUER]);
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation)?.claims;
        let now = now.as_second();
        if claims.exp <= now || claims.nbf > now + 60 {
            return Err(
                jsonwebtoken::errors::Error::from(jsonwebtoken::errors::ErrorKind::ExpiredSignature).into()
            );
        }
        Ok(claims)
    }

    async fn check(
        &self,
        resource: &str,
        what: &'static str,
        namespace: &str,
        reference: &Reference,
    ) -> Result<(), Error> {
        match self.lookup.uid(resource, namespace, &reference.name).await {
            Some(uid) if uid == reference.uid => Ok(()),
            _ => Err(Error::Unbound(what)),
        }
    }

    /// The public key as a JSON web key set, for OpenID discovery.
    pub(crate) fn jwks(&self) -> Value {
        // An uncompressed point: 0x04, then x and y of 32 bytes each.
        let (x, y) = (self.public_key.get(1..33), self.public_key.get(33..65));
        serde_json::json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": base64_url(x.unwrap_or_default()), "y": base64_url(y.unwrap_or_default()),
        }]})
    }
}

fn user_of(claims: &Claims) -> UserInfo {
    let bound = &claims.kubernetes;
    let mut user = UserInfo {
        username: claims.sub.clone(),
        uid: bound.serviceaccount.uid.clone(),
        groups: vec![SERVICE_ACCOUNTS.to_owned(), format!("{SERVICE_ACCOUNTS}:{}", bound.namespace)],
        ..UserInfo::default()
    };
    user.mark_authenticated();
    let mut extra = |key: &str, value: &str| {
        user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
    };
    extra("credential-id", &format!("JTI={}", claims.jti));
    if let Some(pod) = &bound.pod {
        extra("pod-name", &pod.name);
        extra("pod-uid", &pod.uid);
    }
    if let Some(node) = &bound.node {
        extra("node-name", &node.name);
        extra("node-uid", &node.uid);
    }
    user
}

fn base64_url(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

/// `system:serviceaccount:<namespace>:<name>` taken apart.
pub(crate) fn split_username(username: &str) -> Option<(&str, &str)> {
    username.strip_prefix(USER_PREFIX)?.split_once(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Known(&'static [(&'static str, &'static str, &'static str)]);

    #[async_trait]
    impl Lookup for Known {
        async fn uid(&self, resource: &str, _: &str, name: &str) -> Option<String> {
            self.0.iter().find(|k| k.0 == resource && k.1 == name).map(|k| k.2.to_owned())
        }
    }

    fn grant() -> Grant {
        Grant {
            namespace: "web".into(),
            account: Reference { name: "bot".into(), uid: "u1".into() },
            pod: Some(Reference { name: "p".into(), uid: "u2".into() }),
            node: None,
            secret: None,
            audiences: vec![],
            lifetime: Duration::from_secs(3600),
        }
    }

    fn tokens(known: &'static [(&'static str, &'static str, &'static str)]) -> Tokens {
        let dir = tempfile::tempdir().unwrap();
        Tokens::new(&Pki::open(dir.path(), Timestamp::now()).unwrap(), Arc::new(Known(known)))
    }

    #[tokio::test]
    async fn a_token_names_its_account_and_pod() {
        let tokens = tokens(&[("serviceaccounts", "bot", "u1"), ("pods", "p", "u2")]);
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let (token, expires) = tokens.sign(&grant(), now).unwrap();
        assert_eq!(expires.as_second(), 1_800_003_600);
        let (user, audiences) = tokens.authenticate(&token, &[], now).await.unwrap();
        assert_eq!(user.username, "system:serviceaccount:web:bot");
        assert!(user.in_group("system:serviceaccounts:web") && user.in_group(AUTHENTICATED_GROUP));
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
        assert_eq!(audiences, [ISSUER]);
        let refused = tokens.authenticate(&token, &["vault".into()], now).await;
        assert!(matches!(refused, Err(Error::Audience(_))));
        let late = Timestamp::from_second(1_800_003_600).unwrap();
        assert!(matches!(tokens.authenticate(&token, &[], late).await, Err(Error::Invalid(_))));
    }

    const AUTHENTICATED_GROUP: &str = super::super::AUTHENTICATED;

    #[tokio::test]
    async fn a_token_dies_with_what_it_is_bound_to() {
        let now = Timestamp::now();
        let gone = tokens(&[("serviceaccounts", "bot", "u1")]);
        let (token, _) = gone.sign(&grant(), now).unwrap();
        assert!(matches!(gone.authenticate(&token, &[], now).await, Err(Error::Unbound("pod"))));
        let reborn = tokens(&[("serviceaccounts", "bot", "other"), ("pods", "p", "u2")]);
        let (token, _) = reborn.sign(&grant(), now).unwrap();
        assert!(matches!(
            reborn.authenticate(&token, &[], now).await,
            Err(Error::Unbound("service account"))
        ));
        // Signed by another cluster's key.
        let (foreign, _) = gone.sign(&grant(), now).unwrap();
        assert!(matches!(reborn.authenticate(&foreign, &[], now).await, Err(Error::Invalid(_))));
    }
}
