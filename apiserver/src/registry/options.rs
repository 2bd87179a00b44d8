//! The options of requests: from the query, and for deletions from the body.

use decapod_api::status::Error;
use decapod_api::{fields, labels};
use serde::Deserialize;

use super::reads::At;
use crate::http::query::Query;

/// What is done about unknown and duplicate fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    /// The request fails.
    Strict,
    /// The client is warned.
    #[default]
    Warn,
    /// Nothing.
    Ignore,
}

/// What create, update and patch have in common.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WriteOptions {
    /// Everything but the write is done.
    pub(crate) dry_run: bool,
    /// What is done about unknown and duplicate fields.
    pub(crate) validation: FieldValidation,
}

impl WriteOptions {
    pub(crate) fn parse(query: &Query) -> Result<Self, Error> {
        let dry_run = dry_run(query.all("dryRun"))?;
        let validation = match query.get("fieldValidation") {
            None => FieldValidation::default(),
            Some("Strict") => FieldValidation::Strict,
            Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some(other) => {
                return Err(Error::BadRequest(format!(
                    "fieldValidation: Unsupported value: \"{other}\": supported values: \"Ignore\", \"Strict\", \"Warn\""
                )));
            }
        };
        Ok(Self { dry_run, validation })
    }
}

fn dry_run<'a>(mut values: impl Iterator<Item = &'a str>) -> Result<bool, Error> {
    values.try_fold(false, |_, value| match value {
        "All" => Ok(true),
        other => Err(Error::BadRequest(format!(
            "dryRun: Unsupported value: \"{other}\": supported values: \"All\""
        ))),
    })
}

/// How dependents of a deleted object are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum Propagation {
    /// They are kept.
    Orphan,
    /// They go after the object.
    Background,
    /// They go before the object.
    Foreground,
}

/// What must hold of the object that is deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Preconditions {
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
}

/// `DeleteOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DeleteOptions {
    pub(crate) grace_period_seconds: Option<i64>,
    pub(crate) preconditions: Option<Preconditions>,
    pub(crate) propagation_policy: Option<Propagation>,
    pub(crate) orphan_dependents: Option<bool>,
    pub(crate) dry_run: Option<Vec<String>>,
    #[serde(skip)]
    pub(crate) dry: bool,
}

impl DeleteOptions {
    /// From the body if there is one, else from the query.
    pub(crate) fn parse(content_type: &str, body: &[u8], query: &Query) -> Result<Self, Error> {
        let mut options = if body.is_empty() {
            Self::from_query(query)?
        } else {
            Self::from_value(super::body::parse(content_type, body)?.value)?
        };
        if options.orphan_dependents.is_some() && options.propagation_policy.is_some() {
            return Err(Error::BadRequest(
                "orphanDependents and deletionPropagation cannot be both set".to_owned(),
            ));
        }
        options.dry = dry_run(options.dry_run.iter().flatten().map(String::as_str))?;
        Ok(options)
    }

    /// From a decoded body.
    pub(crate) fn from_value(value: serde_json::Value) -> Result<Self, Error> {
        serde_json::from_value(value)
            .map_err(|e| Error::BadRequest(format!("cannot decode DeleteOptions: {e}")))
    }

    fn from_query(query: &Query) -> Result<Self, Error> {
        let grace = query.get("gracePeriodSeconds").map(str::parse).transpose();
        let propagation = match query.get("propagationPolicy") {
            None => None,
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(other) => {
                return Err(Error::BadRequest(format!("propagationPolicy: Unsupported value: \"{other}\"")));
            }
        };
        Ok(Self {
            grace_period_seconds: grace
                .map_err(|_| Error::BadRequest("gracePeriodSeconds must be a number".to_owned()))?,
            propagation_policy: propagation,
            orphan_dependents: query.get("orphanDependents").map(|v| v == "true"),
            dry_run: Some(query.all("dryRun").map(str::to_owned).collect()),
            ..Self::default()
        })
    }

    /// What becomes of dependents; `None` keeps what the object's finalizers say.
    pub(crate) fn propagation(&self) -> Option<Propagation> {
        self.propagation_policy.or(match self.orphan_dependents {
            Some(true) => Some(Propagation::Orphan),
            Some(false) => Some(Propagation::Background),
            None => None,
        })
    }
}

/// `ListOptions`, also of a watch.
#[derive(Clone, Debug)]
pub(crate) struct ListOptions {
    pub(crate) labels: labels::Selector,
    pub(crate) fields: fields::Selector,
    pub(crate) at: At,
    pub(crate) limit: Option<usize>,
    pub(crate) continue_token: Option<String>,
    pub(crate) bookmarks: bool,
    pub(crate) send_initial_events: Option<bool>,
    pub(crate) timeout_seconds: Option<u64>,
    pub(crate) resource_version: Option<u64>,
}

impl ListOptions {
    pub(crate) fn parse(query: &Query) -> Result<Self, Error> {
        let bad = |e: &dyn std::fmt::Display| Error::BadRequest(e.to_string());
        let number = |key: &str| -> Result<Option<u64>, Error> {
            query.get(key).map(str::parse).transpose().map_err(|_| {
                Error::BadRequest(format!("{key}: Invalid value: \"{}\"", query.get(key).unwrap_or_default()))
            })
        };
        let resource_version = number("resourceVersion")?;
        let continue_token = query.get("continue").map(str::to_owned);
        let exactly = query.get("resourceVersionMatch");
        let limit = number("limit")?.filter(|&l| l > 0).map(|l| usize::try_from(l).unwrap_or(usize::MAX));
        let watch = query.flag("watch");
        let send_initial_events = query.get("sendInitialEvents").map(|v| v == "true");
        check_match(watch, exactly, resource_version, send_initial_events, continue_token.is_some())?;
        let at = match (resource_version, exactly) {
            (Some(0), _) => At::Any,
            (Some(revision), Some("Exact")) => At::Exact(revision),
            // Without a match, a limited list is of exactly that revision.
            (Some(revision), None) if limit.is_some() && !watch => At::Exact(revision),
            (Some(revision), _) => At::NotOlderThan(revision),
            (None, _) => At::Newest,
        };
        Ok(Self {
            labels: query.get("labelSelector").unwrap_or_default().parse().map_err(|e| bad(&e))?,
            fields: query.get("fieldSelector").unwrap_or_default().parse().map_err(|e| bad(&e))?,
            at,
            limit,
            continue_token,
            bookmarks: query.flag("allowWatchBookmarks"),
            send_initial_events,
            timeout_seconds: number("timeoutSeconds")?,
            resource_version,
        })
    }
}

fn check_match(
    watch: bool,
    exactly: Option<&str>,
    revision: Option<u64>,
    initial: Option<bool>,
    continued: bool,
) -> Result<(), Error> {
    let refuse = |field: &str, why: &str| Err(Error::BadRequest(format!("{field}: Forbidden: {why}")));
    match exactly {
        Some("NotOlderThan") if watch && initial.is_some() => Ok(()),
        Some(_) if watch => refuse(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
        Some(_) if continued => {
            refuse("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided")
        }
        Some("Exact") if revision == Some(0) => refuse(
            "resourceVersionMatch",
            "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        ),
        Some("Exact" | "NotOlderThan") if revision.is_none() => refuse(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        Some(other) if !matches!(other, "Exact" | "NotOlderThan") => Err(Error::BadRequest(format!(
            "resourceVersionMatch: Unsupported value: \"{other}\": supported values: \"Exact\", \"NotOlderThan\""
        ))),
        None if watch && initial.is_some() => refuse(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        _ if continued && revision.is_some_and(|r| r > 0) => {
            refuse("resourceVersion", "specifying resource version is not allowed when using continue")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(query: &str) -> Result<ListOptions, Error> {
        ListOptions::parse(&Query::parse(Some(query)))
    }

    #[test]
    fn what_state_a_list_reads() {
        for (query, want) in [
            ("", At::Newest),
            ("resourceVersion=0", At::Any),
            ("resourceVersion=5", At::NotOlderThan(5)),
            ("resourceVersion=5&resourceVersionMatch=Exact", At::Exact(5)),
            ("resourceVersion=5&limit=3", At::Exact(5)),
            ("resourceVersion=5&resourceVersionMatch=NotOlderThan&limit=3", At::NotOlderThan(5)),
        ] {
            assert_eq!(list(query).unwrap().at, want, "{query}");
        }
        for query in [
            "resourceVersionMatch=Exact",
            "resourceVersion=x",
            "watch=1&resourceVersion=3&resourceVersionMatch=Exact",
            "watch=1&sendInitialEvents=true",
            "labelSelector=a%3Db%3Dc",
            "continue=x&resourceVersion=5",
            "resourceVersion=5&resourceVersionMatch=Maybe",
        ] {
            assert!(list(query).is_err(), "{query}");
        }
    }

    #[test]
    fn delete_options() {
        let query = Query::parse(Some("gracePeriodSeconds=3&propagationPolicy=Orphan"));
        let options = DeleteOptions::parse("", b"", &query).unwrap();
        assert_eq!(
            (options.grace_period_seconds, options.propagation()),
            (Some(3), Some(Propagation::Orphan))
        );
        let body = br#"{"kind":"DeleteOptions","preconditions":{"uid":"u"},"orphanDependents":false,"dryRun":["All"]}"#;
        let options = DeleteOptions::parse("application/json", body, &Query::default()).unwrap();
        assert!(options.dry && options.propagation() == Some(Propagation::Background));
        assert!(DeleteOptions::parse("", br#"{"propagationPolicy":"Never"}"#, &Query::default()).is_err());
    }
}
