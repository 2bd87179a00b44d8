//! What a command failed with: what failed, why, and what to do about it.

use std::fmt;

/// A failure as a person reads it.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    hint: Option<String>,
    /// The `reason` of the server's `Status`.
    reason: Option<String>,
}

impl Failure {
    /// A failure that says what failed and why.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), hint: None, reason: None }
    }

    /// Adds what to do about it.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Whether the server refused for this reason.
    pub(crate) fn is(&self, reason: &str) -> bool {
        self.reason.as_deref() == Some(reason)
    }

    /// What failed, before the cause that is there already.
    #[must_use]
    pub(crate) fn within(mut self, what: impl fmt::Display) -> Self {
        self.what = format!("{what}: {}", self.what);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// The chain of an error's causes, each said once.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if !status.message.is_empty() => {
                let mut failure = Self::new(format!("from server ({}): {}", status.reason, status.message));
                failure.reason = Some(status.reason.clone());
                match status.code {
                    401 => failure.hint("the kubeconfig's credentials are not those of this cluster: is KUBECONFIG the one that `decapod up` wrote?"),
                    403 => failure.hint("ask for a Role that allows it, or use the administrator's kubeconfig"),
                    _ => failure,
                }
            }
            kube::Error::Service(_) | kube::Error::HyperError(_) => {
                Self::new(format!("the server cannot be reached: {}", chain(&error)))
                    .hint("is the cluster up? `decapod status` tells, `decapod up` starts it")
            }
            _ => Self::new(chain(&error)),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(chain(&error))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(format!("{error:#}"))
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::new(format!("the server's answer is not what was expected: {error}"))
    }
}
