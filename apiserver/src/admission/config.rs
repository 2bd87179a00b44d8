//! The file that configures admission (`apiserver.config.k8s.io/v1` `AdmissionConfiguration`).

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Chosen, Tolerations, pod_security};

const GROUP: &str = "apiserver.config.k8s.io";

/// What the plugins are told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    pub(crate) pod_security: pod_security::Config,
    /// Which of them run.
    pub(crate) plugins: Chosen,
    /// For how long pods stay on lost nodes.
    pub(crate) tolerations: Tolerations,
}

/// Why admission cannot be configured as its file says.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// Plugins are named that are unknown, or not there.
    #[error("{0}")]
    Plugins(String),
    /// A file could not be read.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// What is in it cannot be used.
    #[error("{path}: {why}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its field.
        why: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    plugins: Vec<PluginFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginFile {
    name: String,
    #[serde(default)]
    path: Option<PathBuf>,
    #[serde(default)]
    configuration: Option<serde_json::Value>,
}

impl Config {
    /// Reads a file, and those that it names.
    pub(crate) fn read(path: &Path) -> Result<Self, AdmissionError> {
        let wrong = |why: String| AdmissionError::Content { path: path.to_owned(), why };
        let file: File = parsed(path)?;
        if !file.api_version.starts_with(&format!("{GROUP}/")) || file.kind != "AdmissionConfiguration" {
            return Err(wrong(format!("expected kind AdmissionConfiguration of {GROUP}/v1")));
        }
        let mut config = Self::default();
        for (index, plugin) in file.plugins.into_iter().enumerate() {
            let field = format!("plugins[{index}]");
            let (from, value) = match (plugin.configuration, plugin.path) {
                (Some(value), _) if !value.is_null() => (path.to_owned(), value),
                // A path is relative to the file that names it.
                (_, Some(other)) => {
                    let other = path.parent().unwrap_or(Path::new(".")).join(other);
                    let value = parsed(&other)?;
                    (other, value)
                }
                _ => continue,
            };
            match plugin.name.as_str() {
                "PodSecurity" => {
                    config.pod_security = pod_security::Config::parse(value).map_err(|why| {
                        AdmissionError::Content { path: from, why: format!("{field}: {why}") }
                    })?;
                }
                other => return Err(wrong(format!("{field}.name: {other:?} has nothing to configure"))),
            }
        }
        Ok(config)
    }
}

fn parsed<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, AdmissionError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| AdmissionError::File { path: path.to_owned(), source })?;
    serde_saphyr::from_str(&text)
        .map_err(|error| AdmissionError::Content { path: path.to_owned(), why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_configured_here_or_in_files_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("admission.yaml");
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:\n";
        let own = "apiVersion: pod-security.admission.config.k8s.io/v1\nkind: PodSecurityConfiguration\n\
                   exemptions: {namespaces: [infra]}\n";
        std::fs::write(dir.path().join("own.yaml"), own).unwrap();
        let read = |plugins: &str| {
            std::fs::write(&file, format!("{head}{plugins}")).unwrap();
            Config::read(&file).map_err(|error| error.to_string())
        };
        assert!(read("- {name: PodSecurity, path: own.yaml}").unwrap().pod_security.exempts("infra"));
        let inline = "- name: PodSecurity\n  configuration:\n    apiVersion: pod-security.admission.config.k8s.io/v1\n    \
                      kind: PodSecurityConfiguration\n    defaults: {enforce: none}";
        let error = read(inline).unwrap_err();
        assert!(error.contains("plugins[0]: defaults.enforce: Invalid value: \"none\""), "{error}");
        assert!(
            read("- {name: Priority, configuration: {a: 1}}").unwrap_err().contains("nothing to configure")
        );
        assert!(read("- {name: PodSecurity, path: gone.yaml}").unwrap_err().contains("cannot read"));
    }
}
