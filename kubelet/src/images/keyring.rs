//! Which credentials fit which image: Docker's configuration files and the Secrets made of them, matched as Kubernetes
//! matches them. Pure.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use decapod_proto::cri;
use k8s_openapi::api::core::v1::Secret;
use serde::{Deserialize, Serialize};

/// Docker Hub by the name that Docker's configuration has for it.
const DOCKER_HUB: &str = "index.docker.io";

/// Why a Secret or file holds no credentials.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{place} is not of Docker's form")]
    Json {
        place: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{place}: the auth of {registry:?} is not user:password in base64")]
    Auth { place: String, registry: String },
}

/// The Secret from which credentials came.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Source {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// Credentials, and where they are from: a Secret, or the node itself.
#[derive(Clone, PartialEq)]
pub(crate) struct Known {
    pub(crate) auth: cri::AuthConfig,
    pub(crate) source: Option<Source>,
}

/// A file of Docker's: `config.json`, of which only the registries matter here.
#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identitytoken: String,
}

/// Credentials by registry.
#[derive(Default)]
pub(crate) struct Keyring {
    /// By host and path, which may have wildcards.
    entries: BTreeMap<String, Vec<Known>>,
}

impl Keyring {
    /// Adds what a Secret of one of Docker's two types holds; others hold nothing.
    pub(crate) fn add_secret(&mut self, secret: &Secret) -> Result<(), Error> {
        let data = |key: &str| {
            secret.data.as_ref().and_then(|d| d.get(key)).map(|b| b.0.as_slice()).filter(|b| !b.is_empty())
        };
        let meta = &secret.metadata;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let source =
            Source { uid: text(&meta.uid), namespace: text(&meta.namespace), name: text(&meta.name) };
        let place = format!("secret {}/{}", source.namespace, source.name);
        match secret.type_.as_deref() {
            Some("kubernetes.io/dockerconfigjson") => match data(".dockerconfigjson") {
                Some(json) => self.add_config(json, &place, Some(&source)),
                None => Ok(()),
            },
            Some("kubernetes.io/dockercfg") => match data(".dockercfg") {
                Some(json) => self.add_entries(parse(json, &place)?, &place, Some(&source)),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Adds the content of a `config.json`.
    pub(crate) fn add_config(
        &mut self,
        json: &[u8],
        place: &str,
        source: Option<&Source>,
    ) -> Result<(), Error> {
        let config: ConfigJson = parse(json, place)?;
        self.add_entries(config.auths, place, source)
    }

    fn add_entries(
        &mut self,
        entries: BTreeMap<String, Entry>,
        place: &str,
        source: Option<&Source>,
    ) -> Result<(), Error> {
        for (registry, entry) in entries {
            let (mut username, mut password) = (entry.username, entry.password);
            if !entry.auth.is_empty() {
                let bad = || Error::Auth { place: place.to_owned(), registry: registry.clone() };
                let decoded = STANDARD.decode(entry.auth.trim()).map_err(|_| bad())?;
                let text = String::from_utf8(decoded).map_err(|_| bad())?;
                let (user, word) = text.split_once(':').ok_or_else(bad)?;
                (username, password) = (user.to_owned(), word.trim_end_matches('\0').to_owned());
            }
            let auth = cri::AuthConfig {
                username,
                password,
                identity_token: entry.identitytoken,
                ..Default::default()
            };
            let known = Known { auth, source: source.cloned() };
            self.entries.entry(key_of(&registry)).or_default().push(known);
        }
        Ok(())
    }

    /// The credentials for a repository (a full name without tag), the most specific first.
    pub(crate) fn lookup(&self, repository: &str) -> Vec<Known> {
        let fitting = self.entries.iter().rev().filter(|(key, _)| fits(key, repository));
        let found: Vec<Known> = fitting.flat_map(|(_, known)| known.iter().cloned()).collect();
        if found.is_empty() && repository.starts_with("docker.io/") {
            return self.entries.get(DOCKER_HUB).cloned().unwrap_or_default();
        }
        found
    }
}

fn parse<T: serde::de::DeserializeOwned>(json: &[u8], place: &str) -> Result<T, Error> {
    serde_json::from_slice(json).map_err(|source| Error::Json { place: place.to_owned(), source })
}

/// Host and path of what Docker's configuration calls a registry, which may be a URL of either API version.
fn key_of(registry: &str) -> String {
    let bare =
        registry.strip_prefix("https://").or_else(|| registry.strip_prefix("http://")).unwrap_or(registry);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let path = path.strip_prefix("v1/").or_else(|| path.strip_prefix("v2/")).unwrap_or(path);
    if path.is_empty() { host.to_owned() } else { format!("{host}/{path}") }
}

/// Whether a key of the configuration covers a repository: each part of the host by wildcards, the port as it is, the
/// path as a beginning.
fn fits(key: &str, repository: &str) -> bool {
    let split = |text: &str| -> (String, String, String) {
        let (host, path) = text.split_once('/').map_or((text, ""), |(host, path)| (host, path));
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (name, port),
            _ => (host, ""),
        };
        (name.to_owned(), port.to_owned(), path.to_owned())
    };
    let (key_host, key_port, key_path) = split(key);
    let (host, port, path) = split(repository);
    let parts = (key_host.split('.').count(), host.split('.').count());
    key_port == port
        && parts.0 == parts.1
        && path.starts_with(&key_path)
        && key_host
            .split('.')
            .zip(host.split('.'))
            .all(|(pattern, part)| wild(pattern.as_bytes(), part.as_bytes()))
}

/// `*` is any number of characters, `?` is one.
fn wild(pattern: &[u8], text: &[u8]) -> bool {
    // Where the last star was, and what of the text it has taken so far.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (p, t) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn users(keyring: &Keyring, repository: &str) -> Vec<String> {
        keyring.lookup(repository).into_iter().map(|known| known.auth.username).collect()
    }

    fn keyring(registries: &[&str]) -> Keyring {
        let entries: Vec<String> =
            registries.iter().map(|r| format!(r#""{r}":{{"username":"{r}","password":"p"}}"#)).collect();
        let mut keyring = Keyring::default();
        keyring
            .add_config(format!(r#"{{"auths":{{{}}}}}"#, entries.join(",")).as_bytes(), "test", None)
            .unwrap();
        keyring
    }

    #[test]
    fn the_most_specific_comes_first() {
        let ring = keyring(&[
            "registry.example",
            "registry.example/coreos",
            "https://*.example.com:5000",
            "https://index.docker.io/v1/",
        ]);
        assert_eq!(
            users(&ring, "registry.example/coreos/etcd"),
            ["registry.example/coreos", "registry.example"]
        );
        assert_eq!(users(&ring, "registry.example/other"), ["registry.example"]);
        assert_eq!(users(&ring, "a.example.com:5000/x"), ["https://*.example.com:5000"]);
        assert!(users(&ring, "a.example.com/x").is_empty(), "another port");
        assert!(users(&ring, "a.b.example.com:5000/x").is_empty(), "a wildcard is for one part");
        assert_eq!(users(&ring, "docker.io/library/nginx"), ["https://index.docker.io/v1/"]);
        assert!(users(&ring, "other.example/x").is_empty());
    }

    #[test]
    fn wildcards() {
        for (pattern, text, fits) in [
            ("*", "", true),
            ("a*c", "abc", true),
            ("a*c", "abcd", false),
            ("*b*", "abc", true),
            ("a?c", "abc", true),
            ("a?", "a", false),
            ("**x", "yyx", true),
        ] {
            assert_eq!(wild(pattern.as_bytes(), text.as_bytes()), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn both_types_of_secrets() {
        let secret = |kind: &str, key: &str, json: &str| Secret {
            type_: Some(kind.to_owned()),
            data: Some([(key.to_owned(), ByteString(json.as_bytes().to_vec()))].into()),
            ..Secret::default()
        };
        let mut ring = Keyring::default();
        // crab:geheim
        ring.add_secret(&secret(
            "kubernetes.io/dockercfg",
            ".dockercfg",
            r#"{"a.io":{"auth":"Y3JhYjpnZWhlaW0="}}"#,
        ))
        .unwrap();
        ring.add_secret(&secret("Opaque", ".dockerconfigjson", "nonsense")).unwrap();
        let found = ring.lookup("a.io/x");
        assert_eq!((found[0].auth.username.as_str(), found[0].auth.password.as_str()), ("crab", "geheim"));
        assert!(found[0].source.is_some());
        let broken = secret("kubernetes.io/dockerconfigjson", ".dockerconfigjson", "{");
        assert!(ring.add_secret(&broken).unwrap_err().to_string().contains("not of Docker's form"));
    }
}
