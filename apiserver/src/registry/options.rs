//! The options of requests: from the query, and for deletions from the body.

use decapod_api::field::{self, Path};
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
    /// Reads the options of a write by a verb, `apply` being a patch of its own sort.
    pub(crate) fn parse(query: &Query, verb: &str) -> Result<Self, Error> {
        let kind = match verb {
            "create" => "CreateOptions",
            "update" => "UpdateOptions",
            "patch" | "apply" => "PatchOptions",
            // A deletion's are read from its body.
            _ => return Ok(Self::default()),
        };
        let mut errors = check_manager(query, verb);
        let dry_run = dry_run(query.all("dryRun"), &mut errors);
        let validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Strict") => FieldValidation::Strict,
            Some("Ignore") => FieldValidation::Ignore,
            Some(other) => {
                let supported = ["Ignore", "Strict", "Warn"];
                errors.push(field::Error::not_supported(&Path::new("fieldValidation"), other, &supported));
                FieldValidation::Warn
            }
        };
        if errors.is_empty() { Ok(Self { dry_run, validation }) } else { Err(invalid(kind, errors)) }
    }
}

fn invalid(kind: &str, errors: Vec<field::Error>) -> Error {
    Error::Invalid { group: "meta.k8s.io".to_owned(), kind: kind.to_owned(), name: String::new(), errors }
}

fn check_manager(query: &Query, verb: &str) -> Vec<field::Error> {
    /// The longest name of a manager, in bytes.
    const MAX: usize = 128;
    let mut errors = Vec::new();
    let (path, manager) = (Path::new("fieldManager"), query.get("fieldManager").unwrap_or_default());
    if verb == "apply" && manager.is_empty() {
        errors.push(field::Error::required(&path, "is required for apply patch"));
    }
    if verb == "patch" && query.get("force").is_some() {
        let why = "may not be specified for non-apply patch";
        errors.push(field::Error::forbidden(&Path::new("force"), why));
    }
    if manager.len() > MAX {
        errors.push(field::Error::too_long(&path, MAX));
    }
    if let Some((at, _)) = manager.char_indices().find(|(_, c)| c.is_control()) {
        let why = format!("should only contain printable characters, offset {at}");
        errors.push(field::Error::invalid(&path, manager, why));
    }
    errors
}

fn dry_run<'a>(values: impl Iterator<Item = &'a str>, errors: &mut Vec<field::Error>) -> bool {
    let mut asked = false;
    for value in values {
        asked = true;
        if value != "All" {
            errors.push(field::Error::not_supported(&Path::new("dryRun"), value, &["All"]));
        }
    }
    asked
}

/// How dependents of a deleted object are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    /// They are kept.
    Orphan,
    /// They go after the object.
    Background,
    /// They go before the object.
    Foreground,
}

impl Propagation {
    fn parse(policy: &str) -> Option<Self> {
        match policy {
            "Orphan" => Some(Self::Orphan),
            "Background" => Some(Self::Background),
            "Foreground" => Some(Self::Foreground),
            _ => None,
        }
    }
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
    pub(crate) propagation_policy: Option<String>,
    pub(crate) orphan_dependents: Option<bool>,
    pub(crate) dry_run: Option<Vec<String>>,
    #[serde(skip)]
    pub(crate) dry: bool,
}

impl DeleteOptions {
    /// From the body if there is one, else from the query.
    pub(crate) fn parse(content_type: &str, body: &[u8], query: &Query) -> Result<Self, Error> {
        if body.is_empty() {
            return Self::from_query(query)?.checked();
        }
        Self::from_value(super::body::parse(content_type, body)?.value)
    }

    /// From a decoded body.
    pub(crate) fn from_value(value: serde_json::Value) -> Result<Self, Error> {
        let options: Self = serde_json::from_value(value)
            .map_err(|e| Error::BadRequest(format!("cannot decode DeleteOptions: {e}")))?;
        options.checked()
    }

    fn checked(mut self) -> Result<Self, Error> {
        let mut errors = Vec::new();
        let path = Path::new("propagationPolicy");
        if let Some(policy) = &self.propagation_policy {
            if self.orphan_dependents.is_some() {
                let why = "orphanDependents and deletionPropagation cannot be both set";
                errors.push(field::Error::invalid(&path, policy.as_str(), why));
            }
            if Propagation::parse(policy).is_none() {
                let supported = ["Foreground", "Background", "Orphan", "nil"];
                errors.push(field::Error::not_supported(&path, policy.as_str(), &supported));
            }
        }
        self.dry = dry_run(self.dry_run.iter().flatten().map(String::as_str), &mut errors);
        if errors.is_empty() { Ok(self) } else { Err(invalid("DeleteOptions", errors)) }
    }

    fn from_query(query: &Query) -> Result<Self, Error> {
        let grace = query.get("gracePeriodSeconds").map(str::parse).transpose();
        let uid = query.get("uid").map(str::to_owned);
        Ok(Self {
            grace_period_seconds: grace
                .map_err(|_| Error::BadRequest("gracePeriodSeconds must be a number".to_owned()))?,
            preconditions: uid.map(|uid| Preconditions { uid: Some(uid), resource_version: None }),
            propagation_policy: query.get("propagationPolicy").map(str::to_owned),
            orphan_dependents: query.get("orphanDependents").map(|v| v == "true"),
            dry_run: Some(query.all("dryRun").map(str::to_owned).collect()),
            ..Self::default()
        })
    }

    /// What becomes of dependents; `None` keeps what the object's finalizers say.
    pub(crate) fn propagation(&self) -> Option<Propagation> {
        self.propagation_policy.as_deref().and_then(Propagation::parse).or(match self.orphan_dependents {
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
        let number = |key: &str| query.get(key).map(|text| whole(key, text)).transpose();
        let limit = number("limit")?.and_then(|l| usize::try_from(l).ok()).filter(|&l| l > 0);
        let timeout_seconds = number("timeoutSeconds")?.and_then(|s| u64::try_from(s).ok());
        let continue_token = query.get("continue").map(str::to_owned);
        let exactly = query.get("resourceVersionMatch");
        let (watch, asked) = (query.flag("watch"), query.get("resourceVersion"));
        let send_initial_events = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
        check_match(watch, exactly, asked, send_initial_events.is_some(), continue_token.is_some())?;
        let resource_version = asked.map(revision).transpose()?;
        if continue_token.is_some() && resource_version.is_some_and(|r| r > 0) {
            let why = "specifying resource version is not allowed when using continue";
            return Err(Error::BadRequest(why.to_owned()));
        }
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
            timeout_seconds,
            resource_version,
        })
    }
}

/// A whole number in a query, in the words of whoever converts it.
fn whole(key: &str, text: &str) -> Result<i64, Error> {
    text.parse().map_err(|_| {
        let quoted = serde_json::Value::from(text);
        Error::BadRequest(format!("strconv.ParseInt: parsing {quoted}: invalid syntax ({key})"))
    })
}

/// A resource version that a client sends is one that it got.
fn revision(text: &str) -> Result<u64, Error> {
    text.parse().map_err(|_| {
        let error = field::Error::invalid(
            &field::Path::new("resourceVersion"),
            text,
            format!("strconv.ParseUint: parsing \"{text}\": invalid syntax"),
        );
        Error::BadRequest(error.to_string())
    })
}

fn check_match(
    watch: bool,
    exactly: Option<&str>,
    revision: Option<&str>,
    initial: bool,
    continued: bool,
) -> Result<(), Error> {
    let matching = field::Path::new("resourceVersionMatch");
    let mut errors = Vec::new();
    let mut forbid = |path: &field::Path, why: &str| errors.push(field::Error::forbidden(path, why));
    let supported: &[&str] = if watch { &["NotOlderThan"] } else { &["Exact", "NotOlderThan", ""] };
    if watch && initial && exactly != Some("NotOlderThan") {
        forbid(&matching, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
    }
    if let Some(exactly) = exactly {
        if watch && !initial {
            forbid(
                &matching,
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            );
        }
        if !watch && revision.is_none() {
            forbid(&matching, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if continued {
            forbid(&matching, "resourceVersionMatch is forbidden when continue is provided");
        }
        if !watch && exactly == "Exact" && revision == Some("0") {
            forbid(&matching, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
        if !supported.contains(&exactly) {
            errors.push(field::Error::not_supported(&matching, exactly, supported));
        }
    }
    if !watch && initial {
        let path = field::Path::new("sendInitialEvents");
        errors.push(field::Error::forbidden(&path, "sendInitialEvents is forbidden for list"));
    }
    if errors.is_empty() {
        return Ok(());
    }
    let (group, kind) = ("meta.k8s.io".to_owned(), "ListOptions".to_owned());
    Err(Error::Invalid { group, kind, name: String::new(), errors })
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
            "resourceVersion=0&resourceVersionMatch=Exact",
            "resourceVersion=-1",
            "sendInitialEvents=true",
            "limit=x",
            "watch=1&sendInitialEvents=true&resourceVersionMatch=Exact",
            "continue=x&resourceVersion=0&resourceVersionMatch=NotOlderThan",
        ] {
            assert!(list(query).is_err(), "{query}");
        }
    }

    #[test]
    fn all_that_is_wrong_is_said_as_kubernetes_says_it() {
        let error = list("resourceVersionMatch=Maybe&sendInitialEvents=true").unwrap_err();
        assert_eq!((error.code(), error.reason()), (422, "Invalid"));
        assert_eq!(
            error.to_string(),
            "ListOptions.meta.k8s.io \"\" is invalid: [resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided, resourceVersionMatch: Unsupported value: \"Maybe\": supported values: \"\", \"Exact\", \"NotOlderThan\", sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list]"
        );
        let error = list("resourceVersion=x").unwrap_err();
        assert_eq!(
            (error.code(), error.to_string().as_str()),
            (400, "resourceVersion: Invalid value: \"x\": strconv.ParseUint: parsing \"x\": invalid syntax")
        );
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
