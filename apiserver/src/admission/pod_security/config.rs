//! What holds where a namespace says nothing, and who is exempt (`PodSecurityConfiguration`).

use serde::Deserialize;

use super::policy::{Level, Policies, Policy, version};

const KIND: &str = "PodSecurityConfiguration";
const GROUP: &str = "pod-security.admission.config.k8s.io";

/// Defaults and exemptions. Without a file all is allowed where labels say nothing, and nobody is exempt.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(super) defaults: Policies,
    usernames: Vec<String>,
    runtime_classes: Vec<String>,
    namespaces: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        let policy = Policy { level: Level::Privileged, minor: None };
        Self {
            defaults: Policies { enforce: policy, audit: policy, warn: policy },
            usernames: Vec::new(),
            runtime_classes: Vec::new(),
            namespaces: Vec::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    defaults: Defaults,
    #[serde(default)]
    exemptions: Exemptions,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Defaults {
    enforce: Option<String>,
    enforce_version: Option<String>,
    audit: Option<String>,
    audit_version: Option<String>,
    warn: Option<String>,
    warn_version: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Exemptions {
    usernames: Vec<String>,
    runtime_classes: Vec<String>,
    namespaces: Vec<String>,
}

impl Config {
    /// Reads a configuration; the errors name their fields.
    pub(crate) fn parse(value: serde_json::Value) -> Result<Self, String> {
        let file: File = serde_json::from_value(value).map_err(|error| error.to_string())?;
        let known = ["v1", "v1beta1", "v1alpha1"].iter().any(|v| file.api_version == format!("{GROUP}/{v}"));
        if !known || file.kind != KIND {
            return Err(format!(
                "expected kind {KIND} of {GROUP}/v1, not {} of {}",
                file.kind, file.api_version
            ));
        }
        let d = &file.defaults;
        let defaults = Policies {
            enforce: policy("enforce", d.enforce.as_deref(), d.enforce_version.as_deref())?,
            audit: policy("audit", d.audit.as_deref(), d.audit_version.as_deref())?,
            warn: policy("warn", d.warn.as_deref(), d.warn_version.as_deref())?,
        };
        let Exemptions { usernames, runtime_classes, namespaces } = file.exemptions;
        let not_empty = |name: &str| {
            if name.is_empty() { vec!["username must not be empty".to_owned()] } else { Vec::new() }
        };
        names("usernames", &usernames, not_empty)?;
        names("runtimeClasses", &runtime_classes, decapod_api::names::dns_subdomain)?;
        names("namespaces", &namespaces, decapod_api::names::dns_label)?;
        Ok(Self { defaults, usernames, runtime_classes, namespaces })
    }

    pub(super) fn exempts_namespace(&self, namespace: &str) -> bool {
        self.namespaces.iter().any(|exempt| exempt == namespace)
    }

    /// As [`Self::exempts_namespace`], for tests of what was read.
    #[cfg(test)]
    pub(crate) fn exempts(&self, namespace: &str) -> bool {
        self.exempts_namespace(namespace)
    }

    pub(super) fn exempts_user(&self, username: &str) -> bool {
        self.usernames.iter().any(|exempt| exempt == username)
    }

    /// By the runtime class of a pod, from its specification.
    pub(super) fn exempts_runtime(&self, spec: &serde_json::Value) -> bool {
        spec["runtimeClassName"]
            .as_str()
            .is_some_and(|class| self.runtime_classes.iter().any(|exempt| exempt == class))
    }
}

fn policy(mode: &str, level: Option<&str>, at: Option<&str>) -> Result<Policy, String> {
    let level = level.unwrap_or("privileged");
    let at = at.unwrap_or("latest");
    let words = "must be one of privileged, baseline, restricted";
    Ok(Policy {
        level: Level::parse(level)
            .ok_or_else(|| format!("defaults.{mode}: Invalid value: {level:?}: {words}"))?,
        minor: version(at).ok_or_else(|| {
            format!("defaults.{mode}-version: Invalid value: {at:?}: must be \"latest\" or \"v1.x\"")
        })?,
    })
}

fn names(field: &str, names: &[String], wrong: impl Fn(&str) -> Vec<String>) -> Result<(), String> {
    for (index, name) in names.iter().enumerate() {
        let why = wrong(name);
        if !why.is_empty() {
            return Err(format!("exemptions.{field}[{index}]: Invalid value: {name:?}: {}", why.join(", ")));
        }
        if names[..index].contains(name) {
            return Err(format!("exemptions.{field}[{index}]: Duplicate value: {name:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(mut value: serde_json::Value) -> Result<Config, String> {
        value["apiVersion"] = format!("{GROUP}/v1").into();
        value["kind"] = KIND.into();
        Config::parse(value)
    }

    #[test]
    fn a_file_is_read() {
        let config = of(json!({"defaults": {"enforce": "baseline", "enforce-version": "v1.30"},
            "exemptions": {"namespaces": ["kube-system"], "usernames": ["jane"], "runtimeClasses": ["kata"]}}))
        .unwrap();
        assert_eq!(config.defaults.enforce.to_string(), "baseline:v1.30");
        assert!(config.exempts_namespace("kube-system") && !config.exempts_namespace("default"));
        assert!(config.exempts_user("jane") && config.exempts_runtime(&json!({"runtimeClassName": "kata"})));
    }

    #[test]
    fn errors_name_their_fields() {
        for (value, wanted) in [
            (json!({"defaults": {"enforce": "strict"}}), "defaults.enforce: Invalid value: \"strict\""),
            (json!({"defaults": {"warn-version": "1.2"}}), "defaults.warn-version"),
            (json!({"exemptions": {"namespaces": ["A"]}}), "exemptions.namespaces[0]: Invalid value"),
            (json!({"exemptions": {"usernames": ["a", "a"]}}), "exemptions.usernames[1]: Duplicate value"),
            (json!({"exempt": {}}), "unknown field `exempt`"),
        ] {
            let error = of(value).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
        assert!(Config::parse(json!({"apiVersion": "v1", "kind": "Pod"})).is_err());
    }
}
