//! ConfigMaps, Secrets, service accounts, namespaces, limits and quotas.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, LimitRange, Namespace, ResourceQuota, Secret, ServiceAccount};

use super::{Kind, or_text};
use crate::field::{Error, Path};
use crate::names;

super::plain!(LimitRange, Namespace, ResourceQuota, ServiceAccount);

/// The most bytes of all values of a ConfigMap or Secret.
const MAX_SIZE: usize = 1024 * 1024;

impl Kind for ConfigMap {
    fn validate(&self, old: Option<&Self>, errors: &mut Vec<Error>) {
        let (data, binary) = (Path::new("data"), Path::new("binaryData"));
        let mut size = 0;
        for (key, value) in self.data.iter().flatten() {
            config_key(key, &data, errors);
            size += value.len();
        }
        for (key, value) in self.binary_data.iter().flatten() {
            config_key(key, &binary, errors);
            size += value.0.len();
            if self.data.as_ref().is_some_and(|d| d.contains_key(key)) {
                errors.push(Error::invalid(
                    &data.key(key),
                    key.as_str(),
                    format!("duplicate of key present in {binary}"),
                ));
            }
        }
        if size > MAX_SIZE {
            errors.push(Error::too_long(&Path::root(), MAX_SIZE));
        }
        if let Some(old) = old.filter(|o| o.immutable == Some(true)) {
            immutable(self.immutable, self.data != old.data || self.binary_data != old.binary_data, errors);
        }
    }
}

fn config_key(key: &str, path: &Path, errors: &mut Vec<Error>) {
    errors.extend(names::config_key(key).into_iter().map(|why| Error::invalid(&path.key(key), key, why)));
}

fn immutable(flag: Option<bool>, changed: bool, errors: &mut Vec<Error>) {
    const WHY: &str = "field is immutable when `immutable` is set";
    if flag != Some(true) {
        errors.push(Error::forbidden(&Path::new("immutable"), WHY));
    }
    if changed {
        errors.push(Error::forbidden(&Path::new("data"), WHY));
    }
}

impl Kind for Secret {
    /// `stringData` is write-only: it becomes `data`.
    fn default_fields(&mut self) {
        or_text(&mut self.type_, "Opaque");
        if let Some(strings) = self.string_data.take() {
            let data = self.data.get_or_insert_with(BTreeMap::new);
            data.extend(strings.into_iter().map(|(k, v)| (k, ByteString(v.into_bytes()))));
        }
    }

    fn validate(&self, old: Option<&Self>, errors: &mut Vec<Error>) {
        let path = Path::new("data");
        let mut size = 0;
        for (key, value) in self.data.iter().flatten() {
            config_key(key, &path, errors);
            size += value.0.len();
        }
        if size > MAX_SIZE {
            errors.push(Error::too_long(&path, MAX_SIZE));
        }
        let required: &[&str] = match self.type_.as_deref() {
            Some("kubernetes.io/dockercfg") => &[".dockercfg"],
            Some("kubernetes.io/dockerconfigjson") => &[".dockerconfigjson"],
            Some("kubernetes.io/ssh-auth") => &["ssh-privatekey"],
            Some("kubernetes.io/tls") => &["tls.crt", "tls.key"],
            _ => &[],
        };
        for key in required {
            if !self.data.as_ref().is_some_and(|d| d.contains_key(*key)) {
                errors.push(Error::required(&path.key(key), ""));
            }
        }
        if let Some(old) = old {
            if old.type_ != self.type_ {
                errors.push(Error::invalid(
                    &Path::new("type"),
                    self.type_.clone().unwrap_or_default(),
                    "field is immutable",
                ));
            }
            if old.immutable == Some(true) {
                immutable(self.immutable, self.data != old.data, errors);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{errors, normalized};
    use serde_json::json;

    #[test]
    fn string_data_becomes_data() {
        let got = normalized(
            "",
            "v1",
            "secrets",
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"},
            "stringData": {"k": "v"}, "data": {"k": "b2xk", "l": "bA=="}}),
        );
        assert_eq!(got["data"], json!({"k": "dg==", "l": "bA=="}));
        assert_eq!(got["type"], "Opaque");
        assert!(got.get("stringData").is_none());
    }

    #[test]
    fn keys_are_checked() {
        let got = errors(
            "",
            "v1",
            "configmaps",
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"},
            "data": {"a/b": "x", "ok": "y"}, "binaryData": {"ok": "eQ=="}}),
        );
        assert_eq!(got.len(), 2, "{got:?}");
        assert!(got[0].starts_with("data[a/b]: Invalid value: \"a/b\""), "{got:?}");
        let got = errors(
            "",
            "v1",
            "secrets",
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "type": "kubernetes.io/tls"}),
        );
        assert_eq!(got, ["data[tls.crt]: Required value", "data[tls.key]: Required value"]);
    }
}
