//! Service account tokens: JSON web tokens (ES256) bound to a service account and mostly to a pod.
//!
//! **Invariant**: a token is good only while its service account, and the object it is bound to,
//! still exist with the same uid; both are read through [`Lookup`] at each use.

mod keys;
mod legacy;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use decapod_api::meta;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{SERVICE_ACCOUNTS, UserInfo};
use crate::pki::Pki;
use keys::Keys;

/// The prefix of a service account's user name.
pub(crate) const USER_PREFIX: &str = "system:serviceaccount:";
/// Kubernetes grants no token of less than ten minutes.
pub(crate) const MIN_LIFETIME: Duration = Duration::from_secs(600);
/// What is asked for is given up to this bound.
pub(crate) const MAX_LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// What the tokens that are mounted into pods ask for. Clients that never read the file again would
/// fail after an hour, so such tokens are honoured for a year and their overdue use is audited.
pub(crate) const MOUNTED_LIFETIME: Duration = Duration::from_secs(3607);
/// Clocks of servers differ: this much earlier or later is still on time.
const LEEWAY_SECONDS: i64 = 60;

/// How service account tokens are issued, and which are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOptions {
    /// Who issues tokens: the first issues, the others are still believed. Empty takes the API server's name in
    /// the cluster.
    pub issuers: Vec<String>,
    /// What a token has to be for, to be taken by the API server; empty takes the issuers.
    pub audiences: Vec<String>,
    /// The longest life of a token: longer ones are shortened.
    pub max_lifetime: Duration,
    /// Whether tokens that are mounted into pods are honoured longer than they say, for clients that never
    /// read the file again.
    pub extend: bool,
    /// Where others find the keys to verify tokens; none takes the first issuer.
    pub jwks_uri: Option<String>,
}

impl Default for TokenOptions {
    fn default() -> Self {
        Self {
            issuers: Vec::new(),
            audiences: Vec::new(),
            max_lifetime: MAX_LIFETIME,
            extend: true,
            jwks_uri: None,
        }
    }
}

impl TokenOptions {
    /// With what was left out taken from the cluster's domain.
    pub(crate) fn completed(&self, domain: &str) -> Self {
        let mut options = self.clone();
        if options.issuers.is_empty() {
            options.issuers.push(format!("https://kubernetes.default.svc.{domain}"));
        }
        if options.audiences.is_empty() {
            options.audiences.clone_from(&options.issuers);
        }
        let first = options.issuers[0].trim_end_matches('/');
        options.jwks_uri.get_or_insert_with(|| format!("{first}/openid/v1/jwks"));
        options
    }
}

/// A named object with its uid; the uid of a node may be unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) uid: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Bound {
    namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<Reference>,
    serviceaccount: Reference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    warnafter: Option<i64>,
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

/// The one claim that tells which kind of token this is.
#[derive(Deserialize)]
struct Issued {
    iss: String,
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

/// A signed token.
pub(crate) struct Signed {
    pub(crate) token: String,
    /// When its user should have asked for another one; it may be honoured for longer.
    pub(crate) expires: Timestamp,
    /// Its id, as audit logs and user infos show it.
    pub(crate) credential_id: String,
}

/// Reads the objects that tokens are bound to.
#[async_trait]
pub(crate) trait Lookup: Send + Sync + 'static {
    /// An object of the core group (`resource` is the plural), if it exists.
    async fn object(&self, resource: &str, namespace: &str, name: &str) -> Option<Value>;

    /// Labels a Secret, if it still is the one with this uid. What fails is logged: nobody waits for it.
    async fn label(&self, secret: &Reference, namespace: &str, key: &str, value: &str);
}

/// Why a bearer token is not a good service account token. The words are Kubernetes'.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the token is malformed or not signed by this cluster")]
    Malformed(#[from] jsonwebtoken::errors::Error),
    #[error("the token is not of this cluster's issuer")]
    Foreign,
    #[error("service account token has expired")]
    Expired,
    #[error("service account token is not valid yet")]
    Early,
    #[error("token audiences {found:?} is invalid for the target audiences {wanted:?}")]
    Audience { found: Vec<String>, wanted: Vec<String> },
    #[error("service account token has been invalidated")]
    Unbound,
    #[error("{0} UID ({1}) does not match {2} ({3})")]
    OtherUid(&'static str, String, &'static str, String),
    #[error("serviceaccounts \"{0}\" not found")]
    AccountGone(String),
    #[error("service account {0}/{1} has been deleted")]
    AccountDeleted(String, String),
    #[error("sub claim is invalid")]
    Subject,
    #[error("Token has been invalidated")]
    SecretGone,
    #[error(
        "the token in secret {0}/{1} for service account {0}/{2} has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the 'kubernetes.io/legacy-token-invalid-since' label from the secret to temporarily allow use of this token"
    )]
    Invalidated(String, String, String),
    #[error("Token does not match server's copy")]
    NotTheSecrets,
}

impl Error {
    /// Whether the token is none of this cluster's, so that there is nothing to say about it.
    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self, Self::Malformed(_) | Self::Foreign)
    }
}

/// Signs and verifies service account tokens.
pub(crate) struct Tokens {
    keys: Keys,
    options: TokenOptions,
    lookup: Arc<dyn Lookup>,
}

impl Tokens {
    /// The options are complete.
    pub(crate) fn new(pki: &Pki, options: TokenOptions, lookup: Arc<dyn Lookup>) -> Self {
        Self { keys: Keys::of(pki), options, lookup }
    }

    /// How tokens are issued.
    pub(crate) fn options(&self) -> &TokenOptions {
        &self.options
    }

    /// Who issues the tokens.
    pub(crate) fn issuer(&self) -> &str {
        &self.options.issuers[0]
    }

    /// The keys, for OpenID discovery.
    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Signs a token.
    pub(crate) fn sign(&self, grant: &Grant, now: Timestamp) -> Result<Signed, Error> {
        let asked = grant.lifetime.clamp(MIN_LIFETIME, self.options.max_lifetime.max(MIN_LIFETIME));
        let for_server = grant.audiences.iter().all(|audience| self.options.audiences.contains(audience));
        let extended = self.options.extend && grant.pod.is_some() && asked == MOUNTED_LIFETIME && for_server;
        let issued = now.as_second();
        let after = |lifetime: Duration| issued.saturating_add_unsigned(lifetime.as_secs());
        let audiences =
            if grant.audiences.is_empty() { self.options.audiences.clone() } else { grant.audiences.clone() };
        let jti = uuid::Uuid::new_v4().to_string();
        let credential_id = credential_id(&jti);
        let claims = Claims {
            aud: audiences,
            exp: after(if extended { self.options.max_lifetime } else { asked }),
            iat: issued,
            iss: self.issuer().to_owned(),
            jti,
            kubernetes: Bound {
                namespace: grant.namespace.clone(),
                serviceaccount: grant.account.clone(),
                pod: grant.pod.clone(),
                node: grant.node.clone(),
                secret: grant.secret.clone(),
                warnafter: extended.then(|| after(asked)),
            },
            nbf: issued,
            sub: format!("{USER_PREFIX}{}:{}", grant.namespace, grant.account.name),
        };
        let token = self.keys.sign(&claims)?;
        let expires = Timestamp::from_second(after(asked)).unwrap_or(Timestamp::MAX);
        Ok(Signed { token, expires, credential_id })
    }

    /// The user of a token that is good for one of `audiences` (empty: the API server's own), and
    /// the audiences that matched.
    pub(crate) async fn authenticate(
        &self,
        token: &str,
        audiences: &[String],
        now: Timestamp,
    ) -> Result<(UserInfo, Vec<String>), Error> {
        let own = &self.options.audiences;
        let wanted = if audiences.is_empty() { &own[..] } else { audiences };
        let issuer = issuer_of(token).ok_or(Error::Foreign)?;
        if legacy::is_issuer(&issuer) {
            // Tokens of Secrets name no audience: they are the API server's.
            let matched = matched(own, wanted)?;
            return Ok((self.authenticate_legacy(token, now).await?, matched));
        }
        if !self.options.issuers.contains(&issuer) {
            return Err(Error::Foreign);
        }
        let claims: Claims = self.keys.verify(token)?;
        let matched = matched(&claims.aud, wanted)?;
        self.check(&claims, now).await?;
        Ok((user_of(&claims), matched))
    }

    async fn check(&self, claims: &Claims, now: Timestamp) -> Result<(), Error> {
        let second = now.as_second();
        if second > claims.exp.saturating_add(LEEWAY_SECONDS) {
            return Err(Error::Expired);
        }
        if second < claims.nbf.saturating_sub(LEEWAY_SECONDS) {
            return Err(Error::Early);
        }
        let bound = &claims.kubernetes;
        self.check_account(&bound.namespace, &bound.serviceaccount).await?;
        if let Some(secret) = &bound.secret {
            self.check_bound("secrets", ("secret", SECRET_CLAIM), &bound.namespace, secret, now).await?;
        }
        match (&bound.pod, &bound.node) {
            (Some(pod), _) => {
                self.check_bound("pods", ("pod", POD_CLAIM), &bound.namespace, pod, now).await?;
            }
            (None, Some(node)) => self.check_bound("nodes", ("node", NODE_CLAIM), "", node, now).await?,
            (None, None) => {}
        }
        if bound.warnafter.is_some_and(|warn| second > warn) {
            let late = second - bound.warnafter.unwrap_or(second);
            crate::audit::annotate(
                "authentication.k8s.io/stale-token",
                format!("subject: {}, seconds after warning threshold: {late}", claims.sub),
            );
        }
        Ok(())
    }

    /// The account, which must be there and be the same.
    async fn check_account(&self, namespace: &str, account: &Reference) -> Result<Value, Error> {
        let found = self.lookup.object("serviceaccounts", namespace, &account.name).await;
        let found = found.ok_or_else(|| Error::AccountGone(account.name.clone()))?;
        if meta::uid(&found) != account.uid {
            let uid = meta::uid(&found).to_owned();
            return Err(Error::OtherUid("service account", uid, "claim", account.uid.clone()));
        }
        if meta::deleting(&found) {
            return Err(Error::AccountDeleted(namespace.to_owned(), account.name.clone()));
        }
        Ok(found)
    }

    async fn check_bound(
        &self,
        resource: &str,
        (what, claim): (&'static str, &'static str),
        namespace: &str,
        reference: &Reference,
        now: Timestamp,
    ) -> Result<(), Error> {
        let found = self.lookup.object(resource, namespace, &reference.name).await.ok_or(Error::Unbound)?;
        if meta::uid(&found) != reference.uid {
            let uid = meta::uid(&found).to_owned();
            return Err(Error::OtherUid(what, uid, claim, reference.uid.clone()));
        }
        // A pod may use its token until its grace period is over.
        let deleted = meta::text(&found, "deletionTimestamp").and_then(|t| t.parse::<Timestamp>().ok());
        if deleted.is_some_and(|at| at.as_second() < now.as_second() - LEEWAY_SECONDS) {
            return Err(Error::Unbound);
        }
        Ok(())
    }
}

const SECRET_CLAIM: &str = "service account secret ref claim";
const POD_CLAIM: &str = "service account pod ref claim";
const NODE_CLAIM: &str = "service account node ref claim";

fn matched(found: &[String], wanted: &[String]) -> Result<Vec<String>, Error> {
    let matched: Vec<String> = wanted.iter().filter(|a| found.contains(a)).cloned().collect();
    if matched.is_empty() {
        return Err(Error::Audience { found: found.to_vec(), wanted: wanted.to_vec() });
    }
    Ok(matched)
}

/// The issuer that a token claims to have; nothing is verified.
fn issuer_of(token: &str) -> Option<String> {
    let payload = token.split('.').nth(1)?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).ok()?;
    serde_json::from_slice::<Issued>(&bytes).ok().map(|issued| issued.iss)
}

fn credential_id(jti: &str) -> String {
    format!("JTI={jti}")
}

/// The user that a service account is.
fn account_user(namespace: &str, account: &Reference) -> UserInfo {
    let mut user = UserInfo {
        username: format!("{USER_PREFIX}{namespace}:{}", account.name),
        uid: account.uid.clone(),
        groups: vec![SERVICE_ACCOUNTS.to_owned(), format!("{SERVICE_ACCOUNTS}:{namespace}")],
        ..UserInfo::default()
    };
    user.mark_authenticated();
    user
}

fn user_of(claims: &Claims) -> UserInfo {
    let bound = &claims.kubernetes;
    let mut user = account_user(&bound.namespace, &bound.serviceaccount);
    let mut extra = |key: &str, value: &str| {
        if !value.is_empty() {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        }
    };
    extra("credential-id", &credential_id(&claims.jti));
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

/// `system:serviceaccount:<namespace>:<name>` taken apart.
pub(crate) fn split_username(username: &str) -> Option<(&str, &str)> {
    username
        .strip_prefix(USER_PREFIX)?
        .split_once(':')
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains(':'))
}

#[cfg(test)]
mod tests;
