//! Which version of the Kubernetes API this is.

use serde_json::{Value, json};

const KUBERNETES: (&str, &str) = ("1", "36");

/// The document at `/version`.
pub(crate) fn info() -> Value {
    let (major, minor) = KUBERNETES;
    json!({
        "major": major, "minor": minor,
        "emulationMajor": major, "emulationMinor": minor,
        "minCompatibilityMajor": major, "minCompatibilityMinor": "35",
        "gitVersion": git_version(),
        "gitCommit": "", "gitTreeState": "", "buildDate": "",
        "goVersion": "rust", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, architecture()),
    })
}

/// `v1.36.0+decapod.0.1.0`: the version of Kubernetes' API, and ours.
pub fn git_version() -> String {
    let (major, minor) = KUBERNETES;
    format!("v{major}.{minor}.0+decapod.{}", env!("CARGO_PKG_VERSION"))
}

/// The machine's architecture in Kubernetes' words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The OpenID configuration: how others verify service account tokens.
pub(crate) fn openid(issuer: &str, jwks_uri: &str) -> Value {
    json!({
        "issuer": issuer,
        "jwks_uri": jwks_uri,
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}
