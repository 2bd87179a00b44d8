//! Authenticating a request: the client certificate of its connection, or its bearer token.

use std::sync::Arc;

use http::HeaderMap;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use jiff::Timestamp;

use super::UserInfo;
use super::bootstrap_token::BootstrapTokens;
use super::service_account::Tokens;
use super::token_file::TokenFile;

/// Browsers cannot set headers on WebSockets, so Kubernetes takes the token as a subprotocol.
pub(crate) const WEBSOCKET_BEARER: &str = "base64url.bearer.authorization.k8s.io.";

/// Why a bearer token is refused, in words that a token review may show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("invalid bearer token")]
    Unknown,
    #[error("[invalid bearer token, {0}]")]
    Because(String),
}

/// All the ways by which a request can be authenticated.
pub(crate) struct Authenticator {
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) file: TokenFile,
    pub(crate) bootstrap: BootstrapTokens,
}

impl Authenticator {
    /// The user of a request, or `None` if it brings no good credentials. A bearer token that is
    /// no good is not made up for by the connection's certificate.
    pub(crate) async fn authenticate(
        &self,
        headers: &HeaderMap,
        certificate: Option<&UserInfo>,
        now: Timestamp,
    ) -> Option<UserInfo> {
        if let Some(user) = certificate {
            return Some(user.clone());
        }
        let token = bearer(headers)?;
        match self.token(&token, &[], now).await {
            Ok((user, _)) => Some(user),
            Err(refusal) => {
                tracing::debug!(%refusal, "bearer token refused");
                None
            }
        }
    }

    /// The user of a bearer token, and which of `audiences` (empty: the API server's) it is good for.
    pub(crate) async fn token(
        &self,
        token: &str,
        audiences: &[String],
        now: Timestamp,
    ) -> Result<(UserInfo, Vec<String>), Refusal> {
        if let Some(user) = self.elsewhere(token, now).await {
            return self.for_server(user, audiences);
        }
        self.tokens.authenticate(token, audiences, now).await.map_err(|error| {
            if error.is_foreign() { Refusal::Unknown } else { Refusal::Because(error.to_string()) }
        })
    }

    /// The user of a token that names no audience: from the file, or from a bootstrap Secret.
    async fn elsewhere(&self, token: &str, now: Timestamp) -> Option<UserInfo> {
        match self.file.authenticate(token) {
            Some(user) => Some(user),
            None => self.bootstrap.authenticate(token, now).await,
        }
    }

    /// Such tokens are good for the API server alone.
    fn for_server(&self, user: UserInfo, audiences: &[String]) -> Result<(UserInfo, Vec<String>), Refusal> {
        let own = &self.tokens.options().audiences;
        let matched: Vec<String> = own.iter().filter(|a| audiences.contains(a)).cloned().collect();
        if audiences.is_empty() {
            return Ok((user, own.clone()));
        }
        if !matched.is_empty() {
            return Ok((user, matched));
        }
        Err(Refusal::Unknown)
    }
}

fn bearer(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        let token = token.trim();
        return (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned());
    }
    let protocols = headers.get_all(SEC_WEBSOCKET_PROTOCOL);
    let mut protocols = protocols.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    let encoded = protocols.find_map(|p| p.trim().strip_prefix(WEBSOCKET_BEARER))?;
    use base64::Engine;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).ok()?;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn finds_bearer_tokens() {
        let mut headers = HeaderMap::new();
        assert_eq!(bearer(&headers), None);
        headers.insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static("v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.YWJj"),
        );
        assert_eq!(bearer(&headers).as_deref(), Some("abc"));
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Basic abc"));
        assert_eq!(bearer(&headers), None);
        headers.insert(AUTHORIZATION, HeaderValue::from_static("bearer xyz"));
        assert_eq!(bearer(&headers).as_deref(), Some("xyz"));
    }
}
