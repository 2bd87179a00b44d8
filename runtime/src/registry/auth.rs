//! How a client shows who it is: Basic, or a token of the registry's token server.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// Who asks a registry. [`Default`] is nobody.
#[derive(Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Credentials {
    /// The user.
    pub username: String,
    /// The user's password.
    pub password: String,
    /// `username:password` in base64, in their place.
    pub auth: String,
    /// An OAuth2 refresh token, by which the token server gives tokens.
    #[serde(alias = "identitytoken")]
    pub identity_token: String,
    /// A token that is sent to the registry as it is.
    #[serde(alias = "registrytoken")]
    pub registry_token: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Secrets stay out of logs.
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Credentials {
    /// As the Container Runtime Interface has them.
    pub fn from_cri(auth: &decapod_proto::cri::AuthConfig) -> Self {
        Self {
            username: auth.username.clone(),
            password: auth.password.clone(),
            auth: auth.auth.clone(),
            identity_token: auth.identity_token.clone(),
            registry_token: auth.registry_token.clone(),
        }
    }

    /// Nobody in particular.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// User and password, if it has them.
    fn pair(&self) -> Option<(String, String)> {
        if !self.username.is_empty() {
            return Some((self.username.clone(), self.password.clone()));
        }
        let decoded = STANDARD.decode(self.auth.trim()).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (user, password) = text.split_once(':')?;
        Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
    }

    /// The value of the `Authorization` header with user and password.
    pub(super) fn basic(&self) -> Option<String> {
        let (user, password) = self.pair()?;
        Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
    }
}

/// What a registry wants to see, by its `WWW-Authenticate` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: String, scope: String },
}

impl Challenge {
    /// The first challenge that we can answer.
    pub(super) fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut challenge = (String::new(), String::new(), String::new());
        for (key, value) in parameters(rest) {
            match key.to_ascii_lowercase().as_str() {
                "realm" => challenge.0 = value,
                "service" => challenge.1 = value,
                "scope" => challenge.2 = value,
                _ => {}
            }
        }
        let (realm, service, scope) = challenge;
        (!realm.is_empty()).then_some(Challenge::Bearer { realm, service, scope })
    }
}

/// `key="value"` pairs with commas between them, which values may contain too.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut rest = text.trim();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',']).to_owned();
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => {
                let mut value = String::new();
                let mut end = quoted.len();
                let mut escaped = false;
                for (at, c) in quoted.char_indices() {
                    match c {
                        '\\' if !escaped => escaped = true,
                        '"' if !escaped => {
                            end = at;
                            break;
                        }
                        c => {
                            escaped = false;
                            value.push(c);
                        }
                    }
                }
                (value, quoted.get(end + 1..).unwrap_or(""))
            }
            None => {
                let (value, after) = after.split_once(',').unwrap_or((after, ""));
                (value.trim().to_owned(), after)
            }
        };
        pairs.push((key, value));
        rest = after;
    }
    pairs
}

/// What a token server answers.
#[derive(Deserialize)]
pub(super) struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl TokenAnswer {
    /// The token, by either of its names.
    pub(super) fn token(self) -> Option<String> {
        Some(if self.token.is_empty() { self.access_token } else { self.token }).filter(|t| !t.is_empty())
    }
}

/// Text as part of a query.
pub(super) fn escape(text: &str) -> String {
    use std::fmt::Write as _;
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(char::from(byte))
            }
            byte => write!(escaped, "%{byte:02X}").expect("writing to a String does not fail"),
        }
    }
    escaped
}

impl Credentials {
    /// The body of the request by which an identity token becomes a token.
    pub(super) fn refresh_form(&self, service: &str, scope: &str) -> Option<String> {
        (!self.identity_token.is_empty()).then(|| {
            format!(
                "grant_type=refresh_token&service={}&scope={}&client_id=decapod&refresh_token={}",
                escape(service),
                escape(scope),
                escape(&self.identity_token)
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let header =
            r#"Bearer realm="https://auth.example/token",service="r",scope="repository:a/b:pull,push""#;
        let expected = Challenge::Bearer {
            realm: "https://auth.example/token".into(),
            service: "r".into(),
            scope: "repository:a/b:pull,push".into(),
        };
        assert_eq!(Challenge::parse(header), Some(expected));
        assert_eq!(Challenge::parse("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("basic"), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(Challenge::parse("Bearer service=x"), None);
    }

    #[test]
    fn credentials_come_in_two_forms() {
        let pair = Credentials { username: "u".into(), password: "p:w".into(), ..Default::default() };
        let auth = Credentials { auth: STANDARD.encode("u:p:w"), ..Default::default() };
        assert_eq!(pair.basic(), auth.basic());
        assert!(pair.basic().is_some());
        assert!(Credentials { auth: "!".into(), ..Default::default() }.basic().is_none());
        assert!(!format!("{pair:?}").contains("p:w"));
        assert_eq!(escape("a b/c"), "a%20b%2Fc");
    }
}
