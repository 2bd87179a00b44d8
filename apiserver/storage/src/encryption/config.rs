//! Kubernetes' `EncryptionConfiguration`: which resources are enciphered, by which keys.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::rand::{SecureRandom, SystemRandom};
use serde::Deserialize;

use super::cipher::{Key, Keyring, NoRandomness};

/// A configuration holds a few keys.
const MAX_BYTES: u64 = 1 << 20;

/// Which resources are enciphered, and how.
#[derive(Debug)]
pub struct Config {
    /// In the order of the file: the first that names a resource counts.
    pub rules: Vec<Rule>,
}

/// Some resources and their keys.
#[derive(Debug)]
pub struct Rule {
    /// As the file names them: `secrets`, `deployments.apps`, `*.apps`, `*.` (the core group), `*.*`.
    pub resources: Vec<String>,
    /// Their keys.
    pub keys: std::sync::Arc<Keyring>,
}

/// Why a configuration is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read or made.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is no `EncryptionConfiguration`.
    #[error("{path} is no EncryptionConfiguration: {why}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        why: String,
    },
    /// No key can be made.
    #[error("cannot make a key")]
    Randomness(#[from] NoRandomness),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    resources: Vec<FileRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRule {
    resources: Vec<String>,
    providers: Vec<FileProvider>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct FileProvider {
    aesgcm: Option<FileKeys>,
    aescbc: Option<FileKeys>,
    secretbox: Option<FileKeys>,
    identity: Option<Empty>,
    kms: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileKeys {
    keys: Vec<FileKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileKey {
    name: String,
    secret: String,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, or anything in it is unknown or wrong.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let file = |source| ConfigError::File { path: path.to_owned(), source };
        let size = fs::metadata(path).map_err(file)?.len();
        let wrong = |why: String| ConfigError::Format { path: path.to_owned(), why };
        if size > MAX_BYTES {
            return Err(wrong(format!("it is larger than {MAX_BYTES} bytes")));
        }
        let text = fs::read_to_string(path).map_err(file)?;
        Self::parse(&text).map_err(wrong)
    }

    /// Reads this cluster's own file, or makes it with a new key: Secrets by `aesgcm`, and plain text is
    /// still read. The file is readable by its owner only.
    ///
    /// # Errors
    /// As [`Config::read`]; and if the file cannot be made.
    pub fn read_or_make(path: &Path) -> Result<Self, ConfigError> {
        if !path.exists() {
            make(path)?;
        }
        Self::read(path)
    }

    fn parse(text: &str) -> Result<Self, String> {
        // A parser's message may quote the line, and the line may hold a key: only its place is told.
        let file: File = serde_saphyr::from_str(text).map_err(|error| match error.location() {
            Some(at) => {
                format!("line {}, column {}: unknown field, wrong type or syntax", at.line(), at.column())
            }
            None => "unknown field, wrong type or syntax".to_owned(),
        })?;
        if file.kind != "EncryptionConfiguration" || file.api_version != "apiserver.config.k8s.io/v1" {
            return Err(format!("it says {}, {}", file.api_version, file.kind));
        }
        let rules = file.resources.into_iter().enumerate();
        let rules = rules.map(|(number, rule)| parse_rule(&format!("resources[{number}]"), rule));
        Ok(Self { rules: rules.collect::<Result<_, _>>()? })
    }
}

fn parse_rule(at: &str, rule: FileRule) -> Result<Rule, String> {
    if rule.resources.is_empty() {
        return Err(format!("{at}.resources: Required value"));
    }
    if rule.providers.is_empty() {
        return Err(format!("{at}.providers: Required value"));
    }
    let mut keys = Vec::new();
    for (number, provider) in rule.providers.into_iter().enumerate() {
        parse_provider(&format!("{at}.providers[{number}]"), provider, &mut keys)?;
    }
    Ok(Rule { resources: rule.resources, keys: Keyring::new(keys).into() })
}

type Make = fn(&str, &[u8]) -> Option<Key>;

fn parse_provider(at: &str, provider: FileProvider, keys: &mut Vec<Key>) -> Result<(), String> {
    let FileProvider { aesgcm, aescbc, secretbox, identity, kms } = provider;
    if kms.is_some() {
        return Err(format!("{at}.kms: Unsupported value: only aesgcm, aescbc, secretbox and identity"));
    }
    let named: [(&str, Option<FileKeys>, Make, &str); 3] = [
        ("aesgcm", aesgcm, Key::aesgcm, "16 or 32"),
        ("aescbc", aescbc, Key::aescbc, "16, 24 or 32"),
        ("secretbox", secretbox, Key::secretbox, "32"),
    ];
    let count =
        named.iter().filter(|(_, given, ..)| given.is_some()).count() + usize::from(identity.is_some());
    if count != 1 {
        return Err(format!("{at}: exactly one provider is named in each element, not {count}"));
    }
    for (name, given, make, lengths) in named {
        let Some(given) = given else { continue };
        if given.keys.is_empty() {
            return Err(format!("{at}.{name}.keys: Required value"));
        }
        for (number, key) in given.keys.iter().enumerate() {
            let at = format!("{at}.{name}.keys[{number}]");
            if key.name.is_empty() || key.name.contains(':') {
                return Err(format!("{at}.name: it must not be empty nor contain a colon"));
            }
            let secret = BASE64.decode(&key.secret).map_err(|_| format!("{at}.secret: it is no base64"))?;
            let made = make(&key.name, &secret);
            keys.push(
                made.ok_or_else(|| {
                    format!("{at}.secret: it must have {lengths} bytes, not {}", secret.len())
                })?,
            );
        }
    }
    if identity.is_some() {
        keys.push(Key::identity());
    }
    Ok(())
}

/// Writes a configuration with a new key, whole or not at all.
fn make(path: &Path) -> Result<(), ConfigError> {
    let mut secret = [0; 32];
    SystemRandom::new().fill(&mut secret).map_err(|_| NoRandomness)?;
    let text = format!(
        "# Made at the first start: whoever has this file can read the Secrets in the store; without it,\n\
         # nobody can. To change the key, put a new one before the old one and restart.\n\
         apiVersion: apiserver.config.k8s.io/v1\n\
         kind: EncryptionConfiguration\n\
         resources:\n\
         - resources: [secrets]\n\
         \x20 providers:\n\
         \x20 - aesgcm:\n\
         \x20     keys:\n\
         \x20     - name: key1\n\
         \x20       secret: {}\n\
         \x20 - identity: {{}}\n",
        BASE64.encode(secret)
    );
    let temporary = path.with_extension("new");
    let write = || {
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(folder)?.sync_all()
    };
    write().map_err(|source| ConfigError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    fn wrong(providers: &str) -> String {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n\
             resources:\n- resources: [secrets]\n  providers: {providers}\n"
        );
        Config::parse(&text).map(|config| format!("{config:?}")).unwrap_or_else(|why| why)
    }

    #[test]
    fn kubernetes_own_format_is_read() {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
             - resources: [secrets, configmaps]\n  providers:\n\
             \x20 - secretbox: {{keys: [{{name: a, secret: {KEY}}}, {{name: b, secret: {KEY}}}]}}\n\
             \x20 - aescbc: {{keys: [{{name: c, secret: {KEY}}}]}}\n  - identity: {{}}\n\
             - resources: ['*.*']\n  providers: [identity: {{}}]\n"
        );
        let config = Config::parse(&text).unwrap();
        assert_eq!(config.rules.len(), 2);
        assert_eq!(config.rules[0].resources, ["secrets", "configmaps"]);
        let keys = format!("{:?}", config.rules[0].keys);
        assert_eq!(keys, r#"[("secretbox", "a"), ("secretbox", "b"), ("aescbc", "c"), ("identity", "")]"#);
    }

    #[test]
    fn what_is_wrong_is_named_and_no_key_is_told() {
        let secret = "c2VjcmV0IHNlY3JldCBzZWNyZXQ=";
        for (providers, words) in [
            ("[]".to_owned(), "resources[0].providers: Required value"),
            ("[kms: {name: x}]".to_owned(), "kms"),
            ("[aesgcm: {keys: []}]".to_owned(), "resources[0].providers[0].aesgcm.keys: Required"),
            ("[{identity: {}, aesgcm: {keys: []}}]".to_owned(), "exactly one provider"),
            (format!("[aesgcm: {{keys: [{{name: a, secret: {secret}}}]}}]"), "16 or 32 bytes, not 20"),
            (format!("[secretbox: {{keys: [{{name: 'a:b', secret: {KEY}}}]}}]"), "colon"),
            ("[aescbc: {keys: [{name: a, secret: '?'}]}]".to_owned(), "base64"),
            (format!("[aescbc: {{keys: [{{name: a, secrets: {secret}}}]}}]"), "unknown field"),
            ("[rot13: {}]".to_owned(), "unknown field"),
        ] {
            let told = wrong(&providers);
            assert!(told.contains(words), "{providers}: {told}");
            assert!(!told.contains(secret) && !told.contains(KEY), "{told}");
        }
    }

    #[test]
    fn a_clusters_own_file_is_made_once_and_private() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("pki/encryption.yaml");
        let config = Config::read_or_make(&path).unwrap();
        assert_eq!(config.rules[0].resources, ["secrets"]);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        Config::read_or_make(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        let mine = config.rules[0].keys.seal("/k", b"x").unwrap();
        let again = Config::read(&path).unwrap();
        assert_eq!(again.rules[0].keys.open("/k", &mine).unwrap().value, b"x");
    }
}
