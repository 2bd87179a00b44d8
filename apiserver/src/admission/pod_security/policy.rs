//! Levels, versions, and what a namespace's labels ask for (KEP-2579).

use std::collections::BTreeMap;

use decapod_api::field;

const PREFIX: &str = "pod-security.kubernetes.io/";

/// How strict a policy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "privileged" => Some(Self::Privileged),
            "baseline" => Some(Self::Baseline),
            "restricted" => Some(Self::Restricted),
            _ => None,
        }
    }
}

/// A level as it was at a minor version of Kubernetes; `None` is the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) level: Level,
    pub(super) minor: Option<u32>,
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.minor {
            Some(minor) => write!(f, "{level}:v1.{minor}"),
            None => write!(f, "{level}:latest"),
        }
    }
}

/// What is refused, noted for auditors, and warned of in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policies {
    pub(super) enforce: Policy,
    pub(super) audit: Policy,
    pub(super) warn: Policy,
}

impl Policies {
    pub(super) fn all_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|policy| policy.level == Level::Privileged)
    }

    /// What labels ask for, with the defaults for what they do not name, and what is wrong with them. A broken label enforces the strictest; it
    /// notes and warns of nothing.
    pub(super) fn of(labels: &BTreeMap<&str, &str>, defaults: Self) -> (Self, Vec<field::Error>) {
        let mut errors = Vec::new();
        let (enforce, said) = mode(labels, "enforce", (defaults.enforce, Level::Restricted), &mut errors);
        let (audit, _) = mode(labels, "audit", (defaults.audit, Level::Privileged), &mut errors);
        let (mut warn, _) = mode(labels, "warn", (defaults.warn, Level::Privileged), &mut errors);
        // What is refused is warned of, too, where nothing else was said.
        let silent = !labels.contains_key("pod-security.kubernetes.io/warn");
        if silent && said && enforce.level > warn.level {
            warn.level = enforce.level;
            if !labels.contains_key("pod-security.kubernetes.io/warn-version") {
                warn.minor = enforce.minor;
            }
        }
        (Self { enforce, audit, warn }, errors)
    }
}

/// One mode's policy, which is the default where nothing is said, and whether its level was said well.
fn mode(
    labels: &BTreeMap<&str, &str>,
    mode: &str,
    (default, broken): (Policy, Level),
    errors: &mut Vec<field::Error>,
) -> (Policy, bool) {
    let path = field::Path::new("metadata").child("labels");
    let mut policy = default;
    let mut said = false;
    let key = format!("{PREFIX}{mode}");
    if let Some(text) = labels.get(key.as_str()) {
        said = Level::parse(text).is_some();
        policy.level = Level::parse(text).unwrap_or(broken);
        if !said {
            let why = "must be one of privileged, baseline, restricted";
            errors.push(field::Error::invalid(&path.key(&key), *text, why));
        }
    }
    let key = format!("{PREFIX}{mode}-version");
    if let Some(text) = labels.get(key.as_str()) {
        match version(text) {
            Some(minor) => policy.minor = minor,
            None => {
                let why = "must be \"latest\" or \"v1.x\"";
                errors.push(field::Error::invalid(&path.key(&key), *text, why));
            }
        }
    }
    (policy, said)
}

/// A version's minor; `Some(None)` is the latest.
pub(super) fn version(text: &str) -> Option<Option<u32>> {
    if text == "latest" {
        return Some(None);
    }
    let digits = text.strip_prefix("v1.")?;
    let plain = digits == "0" || !digits.starts_with('0');
    let number = plain && !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if number { digits.parse().ok().map(Some) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(labels: &[(&'static str, &'static str)]) -> (Policies, Vec<field::Error>) {
        let full: Vec<(String, &str)> = labels.iter().map(|(k, v)| (format!("{PREFIX}{k}"), *v)).collect();
        let defaults = super::super::Config::default().defaults;
        Policies::of(&full.iter().map(|(k, v)| (k.as_str(), *v)).collect(), defaults)
    }

    #[test]
    fn labels_become_policies() {
        assert!(of(&[]).0.all_privileged());
        let (policies, errors) = of(&[("enforce", "baseline"), ("enforce-version", "v1.29")]);
        assert!(errors.is_empty());
        assert_eq!(policies.enforce.to_string(), "baseline:v1.29");
        assert_eq!(policies.warn.to_string(), "baseline:v1.29", "what is refused is warned of");
        assert_eq!(policies.audit.level, Level::Privileged);
        let (policies, _) = of(&[("enforce", "restricted"), ("warn", "baseline"), ("audit", "restricted")]);
        assert_eq!(
            (policies.warn.to_string(), policies.audit.to_string()),
            ("baseline:latest".into(), "restricted:latest".into())
        );
    }

    #[test]
    fn broken_labels_are_told() {
        let (policies, errors) = of(&[("enforce", "strict"), ("warn", "x"), ("audit-version", "v1.01")]);
        assert_eq!((policies.enforce.level, policies.warn.level), (Level::Restricted, Level::Privileged));
        assert_eq!(errors.len(), 3);
        assert_eq!(
            errors[0].to_string(),
            "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": must be one of privileged, baseline, restricted"
        );
    }
}
