//! Tokens kept in Secrets of type `kubernetes.io/service-account-token`: they never expire, and are good
//! only while the Secret holds exactly them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Error, Reference, Tokens, USER_PREFIX, account_user};
use crate::auth::UserInfo;
use decapod_api::meta;

/// Who issues the tokens of Secrets.
const ISSUER: &str = "kubernetes/serviceaccount";

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    uid: String,
    sub: String,
}

/// Whether a token says that it was issued for a Secret. Its signature is not looked at.
pub(super) fn is_issuer(issuer: &str) -> bool {
    issuer == ISSUER
}

impl Tokens {
    /// Signs the token that a Secret of the service account is to hold.
    pub(crate) fn sign_legacy(
        &self,
        namespace: &str,
        account: &Reference,
        secret: &str,
    ) -> Result<String, Error> {
        let claims = Claims {
            iss: ISSUER.to_owned(),
            namespace: namespace.to_owned(),
            secret: secret.to_owned(),
            account: account.name.clone(),
            uid: account.uid.clone(),
            sub: format!("{USER_PREFIX}{namespace}:{}", account.name),
        };
        Ok(self.keys.sign(&claims)?)
    }

    /// The user of a token that a Secret holds.
    pub(super) async fn authenticate_legacy(&self, token: &str) -> Result<UserInfo, Error> {
        let claims: Claims = self.keys.verify(token)?;
        if claims.sub != format!("{USER_PREFIX}{}:{}", claims.namespace, claims.account) {
            return Err(Error::Subject);
        }
        let secret = self.lookup.object("secrets", &claims.namespace, &claims.secret).await;
        let secret = secret.filter(|secret| !meta::deleting(secret)).ok_or(Error::SecretGone)?;
        if !holds(&secret, token) {
            return Err(Error::NotTheSecrets);
        }
        let account = Reference { name: claims.account.clone(), uid: claims.uid.clone() };
        self.check_account(&claims.namespace, &account).await?;
        Ok(account_user(&claims.namespace, &account))
    }
}

/// Whether the Secret's token is this one.
fn holds(secret: &Value, token: &str) -> bool {
    use base64::Engine;
    let kept = secret["data"]["token"].as_str().unwrap_or_default();
    let kept = base64::engine::general_purpose::STANDARD.decode(kept).unwrap_or_default();
    crate::auth::same_secret(&kept, token.as_bytes())
}
