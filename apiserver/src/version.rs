//! Which version of the Kubernetes API this is.

use serde_json::{Value, json};

const KUBERNETES: (&str, &str) = ("1", "36");

/// What stands where Kubernetes tells its version of Go, and its compiler.
pub(crate) const LANGUAGE: &str = "rust";
pub(crate) const COMPILER: &str = "rustc";

/// What a binary was built from, told at `/version`. Empty where the build does not know, as in Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Build {
    /// The commit of the sources, 40 hexadecimal digits.
    pub git_commit: String,
    /// `clean`, or `dirty` where the sources differed from the commit.
    pub git_tree_state: String,
    /// When it was built, or what the build was told instead so that it can be repeated: RFC 3339.
    pub date: String,
}

/// The document at `/version`.
pub(crate) fn info(build: &Build) -> Value {
    let (major, minor) = KUBERNETES;
    json!({
        "major": major, "minor": minor,
        "emulationMajor": major, "emulationMinor": minor,
        "minCompatibilityMajor": major, "minCompatibilityMinor": "35",
        "gitVersion": git_version(),
        "gitCommit": build.git_commit, "gitTreeState": build.git_tree_state, "buildDate": build.date,
        "goVersion": LANGUAGE, "compiler": COMPILER,
        "platform": platform(),
    })
}

/// `v1.36.0+decapod.0.1.0`: the version of Kubernetes' API, and ours.
pub fn git_version() -> String {
    let (major, minor) = KUBERNETES;
    format!("v{major}.{minor}.0+decapod.{}", env!("CARGO_PKG_VERSION"))
}

/// The system that this runs on, in Kubernetes' words.
pub(crate) fn platform() -> String {
    format!("{}/{}", std::env::consts::OS, architecture())
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
