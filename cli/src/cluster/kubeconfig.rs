//! Kubeconfigs: the administrator's of a cluster, and its context among those that a person has.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::settings::write_whole;
use crate::failure::Failure;

/// A kubeconfig with one cluster, one user and one context, all of this name.
pub(crate) fn make(name: &str, server: &str, ca_pem: &str, certificate_pem: &str, key_pem: &str) -> Value {
    let encode = |text: &str| STANDARD.encode(text);
    json!({
        "apiVersion": "v1", "kind": "Config", "preferences": {}, "current-context": name,
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": encode(ca_pem)}}],
        "users": [{"name": name, "user": {"client-certificate-data": encode(certificate_pem), "client-key-data": encode(key_pem)}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    })
}

/// The certificate of the authority that a kubeconfig made here trusts.
pub(crate) fn authority(kubeconfig: &Value) -> Option<String> {
    let encoded = kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"].as_str()?;
    String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
}

/// Writes a kubeconfig, readable by its owner only.
pub(crate) fn write(file: &Path, kubeconfig: &Value) -> Result<(), Failure> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let text = serde_saphyr::to_string(kubeconfig)
        .map_err(|e| Failure::new(format!("the kubeconfig cannot be written: {e}")))?;
    write_whole(file, text.as_bytes(), 0o600)
}

/// Reads a kubeconfig; `None` if there is none.
pub(crate) fn read(file: &Path) -> Result<Option<Value>, Failure> {
    match std::fs::read_to_string(file) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => serde_saphyr::from_str(&text).map(Some).map_err(|e| {
            Failure::new(format!("{} is no kubeconfig: {e}", file.display()))
                .hint("mend or move it; --kubeconfig FILE leaves it alone")
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Failure::new(format!("{} cannot be read: {e}", file.display()))),
    }
}

/// The file that a person's contexts are in: the first of $KUBECONFIG, or ~/.kube/config.
pub(crate) fn users_file() -> Option<PathBuf> {
    let named = std::env::var_os("KUBECONFIG")
        .and_then(|v| std::env::split_paths(&v).next())
        .filter(|p| !p.as_os_str().is_empty());
    named.or_else(|| std::env::home_dir().map(|home| home.join(".kube/config")))
}

const LISTS: [&str; 3] = ["clusters", "users", "contexts"];

/// Puts the entries of `new` in place of those of the same name, and makes its context the current one.
pub(crate) fn merge(existing: Option<Value>, new: &Value) -> Value {
    let Some(mut merged) = existing.filter(Value::is_object) else { return new.clone() };
    for list in LISTS {
        let mut entries = merged[list].as_array().cloned().unwrap_or_default();
        let added = new[list].as_array().cloned().unwrap_or_default();
        entries.retain(|e| !added.iter().any(|a| a["name"] == e["name"]));
        entries.extend(added);
        merged[list] = entries.into();
    }
    merged["current-context"] = new["current-context"].clone();
    merged
}

/// Takes the entries of this name out, if they are still those of `server`.
pub(crate) fn forget(mut existing: Value, name: &str, server: &str) -> Option<Value> {
    let ours = existing["clusters"]
        .as_array()?
        .iter()
        .any(|c| c["name"] == name && c["cluster"]["server"] == server);
    if !ours {
        return None;
    }
    for list in LISTS {
        existing[list].as_array_mut()?.retain(|e| e["name"] != name);
    }
    if existing["current-context"] == name {
        existing["current-context"] = "".into();
    }
    Some(existing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_of_others_stay() {
        let ours = make("decapod", "https://127.0.0.1:6443", "ca", "cert", "key");
        let others = make("prod", "https://prod", "ca", "cert", "key");
        let merged = merge(Some(others.clone()), &ours);
        assert_eq!(merged["clusters"].as_array().unwrap().len(), 2);
        assert_eq!(merged["current-context"], "decapod");
        assert_eq!(merge(Some(merged.clone()), &ours), merged);
        let forgotten = forget(merged.clone(), "decapod", "https://127.0.0.1:6443").unwrap();
        assert_eq!(forgotten["users"], others["users"]);
        assert_eq!(forgotten["current-context"], "");
        assert!(forget(merged, "decapod", "https://elsewhere").is_none());
    }
}
