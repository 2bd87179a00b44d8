//! Bootstrap tokens: what a new node authenticates with until it has a certificate. They are Secrets of
//! type `bootstrap.kubernetes.io/token` in `kube-system`, written `<id>.<secret>`.

use std::sync::Arc;

use base64::Engine;
use decapod_api::meta;
use jiff::Timestamp;
use serde_json::Value;

use super::service_account::Lookup;
use super::{UserInfo, same_secret};

const NAMESPACE: &str = "kube-system";
const NAME_PREFIX: &str = "bootstrap-token-";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const USER_PREFIX: &str = "system:bootstrap:";
/// All users of bootstrap tokens are members of this group, and further ones are below it.
const GROUP: &str = "system:bootstrappers";
/// The lengths of a token's two halves.
const ID: usize = 6;
const SECRET: usize = 16;
/// The longest name of a further group, behind the first.
const MAX_GROUP: usize = 256;

/// Authenticates by the Secrets of bootstrap tokens.
pub(crate) struct BootstrapTokens(pub(crate) Arc<dyn Lookup>);

impl BootstrapTokens {
    /// The user of a token, if a Secret of this id holds it and lets it authenticate.
    pub(crate) async fn authenticate(&self, token: &str, now: Timestamp) -> Option<UserInfo> {
        let (id, secret) = split(token)?;
        let object = self.0.object("secrets", NAMESPACE, &format!("{NAME_PREFIX}{id}")).await?;
        match user(&object, id, secret, now) {
            Ok(user) => Some(user),
            Err(why) => {
                tracing::debug!(id, why, "bootstrap token refused");
                None
            }
        }
    }
}

/// The id and the secret of a token.
fn split(token: &str) -> Option<(&str, &str)> {
    let is = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    token.split_once('.').filter(|(id, secret)| is(id, ID) && is(secret, SECRET))
}

fn user(object: &Value, id: &str, secret: &str, now: Timestamp) -> Result<UserInfo, &'static str> {
    if meta::deleting(object) {
        return Err("its Secret is being deleted");
    }
    if object["type"] != TYPE {
        return Err("its Secret has another type");
    }
    if !same_secret(text(object, "token-secret").as_bytes(), secret.as_bytes()) {
        return Err("the secret differs");
    }
    if text(object, "token-id") != id {
        return Err("the Secret names another id");
    }
    let expiration = text(object, "expiration");
    // A time that cannot be read is over.
    if !expiration.is_empty() && expiration.parse::<Timestamp>().map_or(true, |at| at <= now) {
        return Err("it has expired");
    }
    if text(object, "usage-bootstrap-authentication") != "true" {
        return Err("it is not for authentication");
    }
    let mut groups = vec![GROUP.to_owned()];
    for group in text(object, "auth-extra-groups").split(',').filter(|group| !group.is_empty()) {
        if !is_group(group) {
            return Err("it names a group that is not the bootstrappers'");
        }
        groups.push(group.to_owned());
    }
    groups.sort();
    groups.dedup();
    let mut user = UserInfo { username: format!("{USER_PREFIX}{id}"), groups, ..UserInfo::default() };
    user.mark_authenticated();
    Ok(user)
}

/// `system:bootstrappers:` and letters, digits, colons and hyphens that do not end in a separator.
fn is_group(group: &str) -> bool {
    let Some(rest) = group.strip_prefix(GROUP).and_then(|rest| rest.strip_prefix(':')) else { return false };
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    rest.len() <= MAX_GROUP
        && rest.bytes().all(|b| plain(b) || matches!(b, b':' | b'-'))
        && rest.bytes().last().is_some_and(plain)
}

fn text(secret: &Value, key: &str) -> String {
    let encoded = secret["data"][key].as_str().unwrap_or_default();
    // What is no text is as if it were not there: every key that matters is then refused.
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(changes: &[(&str, &str)]) -> Value {
        let mut data = json!({});
        let usual = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
            ("auth-extra-groups", "system:bootstrappers:nodes"),
        ];
        for (key, value) in usual.iter().chain(changes) {
            data[*key] = base64::engine::general_purpose::STANDARD.encode(value).into();
        }
        json!({"type": TYPE, "metadata": {"name": "bootstrap-token-abcdef"}, "data": data})
    }

    fn of(changes: &[(&str, &str)]) -> Result<UserInfo, &'static str> {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        user(&secret(changes), "abcdef", "0123456789abcdef", now)
    }

    #[test]
    fn a_good_token_has_its_groups() {
        let user = of(&[("expiration", "2030-01-01T00:00:00Z")]).unwrap();
        assert_eq!(user.username, "system:bootstrap:abcdef");
        assert_eq!(user.groups, [GROUP, "system:bootstrappers:nodes", "system:authenticated"]);
    }

    #[test]
    fn what_is_refused() {
        for change in [
            ("token-secret", "0123456789abcdeg"),
            ("token-id", "abcdeg"),
            ("expiration", "2020-01-01T00:00:00Z"),
            ("expiration", "tomorrow"),
            ("usage-bootstrap-authentication", "false"),
            ("auth-extra-groups", "system:masters"),
            ("auth-extra-groups", "system:bootstrappers:a:"),
        ] {
            assert!(of(&[change]).is_err(), "{change:?}");
        }
        assert_eq!(split("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for token in ["abcdef", "abcde.0123456789abcdef", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcde"]
        {
            assert_eq!(split(token), None, "{token}");
        }
    }
}
