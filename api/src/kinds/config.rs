//! ConfigMaps, Secrets, service accounts, namespaces, limits and quotas.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, LimitRange, Namespace, ResourceQuota, Secret, ServiceAccount};

use super::{Kind, or_text};

super::plain!(ConfigMap, Namespace, ResourceQuota, ServiceAccount);

impl Kind for LimitRange {
    /// A container's limit is by default the largest that it may have, its request its limit.
    fn default_fields(&mut self) {
        let items = self.spec.iter_mut().flat_map(|s| &mut s.limits).filter(|i| i.type_ == "Container");
        for item in items {
            let default = item.default.get_or_insert_default();
            for (name, most) in item.max.iter().flatten() {
                default.entry(name.clone()).or_insert_with(|| most.clone());
            }
            let request = item.default_request.get_or_insert_default();
            for (name, amount) in default.iter().chain(item.min.iter().flatten()) {
                request.entry(name.clone()).or_insert_with(|| amount.clone());
            }
        }
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
