//! Lists: a concatenation of bytes that are there already, and pages of one snapshot.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use decapod_api::status::Error;
use serde::{Deserialize, Serialize};

use super::options::ListOptions;
use super::reads::{At, Filter, View};
use super::{Call, Registry, fields, object};

/// Where a list goes on: opaque to clients, but of Kubernetes' form, which some look into.
#[derive(Debug, Serialize, Deserialize)]
struct Token {
    #[serde(rename = "v")]
    version: String,
    /// The revision that all pages are read at; negative: the newest there is.
    rv: i64,
    /// From where the next page is, without the prefix of its kind: the key before it and a zero.
    start: String,
}

/// The only version of tokens.
const TOKEN_VERSION: &str = "meta.k8s.io/v1";

/// A page of a list.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) view: View,
    pub(crate) continue_token: Option<String>,
    pub(crate) remaining: Option<usize>,
}

impl Registry {
    /// Lists the objects of the call's kind and namespace (empty: of all).
    pub(crate) async fn list(&self, call: &Call, options: &ListOptions) -> Result<Listed, Error> {
        let filter = filter(call, options)?;
        let root = object::prefix(call.resource, "").ok_or(Error::UnknownPath)?;
        let prefix = object::prefix(call.resource, &call.namespace).ok_or(Error::UnknownPath)?;
        let (at, after) = match &options.continue_token {
            None => (options.at, None),
            Some(token) => {
                let (at, after) = decode(token)?;
                (at, Some(Arc::from(format!("{root}{after}"))))
            }
        };
        let view = self.reads.list(call.resource, &prefix, &filter, at, options.limit, after.clone()).await;
        let view = view.map_err(|error| match (error, &after) {
            (Error::Expired { .. }, Some(after)) => Error::Expired {
                message: CONTINUE_EXPIRED.to_owned(),
                continue_token: Some(encode(&root, after, None)),
            },
            (Error::Expired { .. }, None) => Error::Expired {
                message: "The resourceVersion for the provided list is too old.".to_owned(),
                continue_token: None,
            },
            (other, _) => other,
        })?;
        let continue_token = view.next.as_ref().map(|key| encode(&root, key, Some(view.revision)));
        let remaining = view.remaining.filter(|_| continue_token.is_some());
        Ok(Listed { view, continue_token, remaining })
    }
}

/// What a list or watch selects; a field that its kind has no selector for is refused.
pub(crate) fn filter(call: &Call, options: &ListOptions) -> Result<Filter, Error> {
    let selector = options.fields.clone().renamed(|field| fields::renamed(call.resource, field));
    if let Some(term) = selector.terms().iter().find(|term| !fields::is_known(call.resource, &term.field)) {
        return Err(Error::BadRequest(fields::refusal(call.resource, &term.field)));
    }
    let mut filter = Filter { labels: options.labels.clone(), fields: selector };
    if !call.name.is_empty() && filter.fields.exact("metadata.name").is_none() {
        // A watch of one object by its path.
        let text = format!("{},metadata.name={}", filter.fields, call.name);
        filter.fields =
            text.trim_start_matches(',').parse().map_err(|e| Error::BadRequest(format!("{e}")))?;
    }
    Ok(filter)
}

/// What a client is told whose token is of a state that is gone.
const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// The token of the page after a key, at a revision or at the newest there will be.
fn encode(root: &str, key: &str, revision: Option<u64>) -> String {
    let start = format!("{}\0", key.strip_prefix(root).unwrap_or(key));
    let rv = revision.map_or(-1, |revision| i64::try_from(revision).unwrap_or(i64::MAX));
    let token = Token { version: TOKEN_VERSION.to_owned(), rv, start };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).expect("a number and texts are JSON"))
}

/// Which state the next page is of, and the key before it.
fn decode(token: &str) -> Result<(At, String), Error> {
    let refuse = |why: &str| Error::BadRequest(format!("continue key is not valid: {why}"));
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|e| refuse(&e.to_string()))?;
    let token: Token = serde_json::from_slice(&bytes).map_err(|e| refuse(&e.to_string()))?;
    if token.version != TOKEN_VERSION {
        return Err(refuse(&format!("server does not recognize this encoded version {}", token.version)));
    }
    if token.rv == 0 {
        return Err(refuse("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
    }
    if token.start.is_empty() {
        return Err(refuse("encoded start key empty (version meta.k8s.io/v1)"));
    }
    let clean = token.start.trim_start_matches('/');
    if clean.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Error::BadRequest(format!("continue key is not valid: {}", token.start)));
    }
    let at = u64::try_from(token.rv).map_or(At::Newest, At::Exact);
    Ok((at, clean.strip_suffix('\0').unwrap_or(clean).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_and_rubbish_is_refused() {
        let token = |text: &str| URL_SAFE_NO_PAD.encode(text);
        assert_eq!(
            decode(&encode("/registry/pods/", "/registry/pods/web/a", Some(7))).unwrap(),
            (At::Exact(7), "web/a".to_owned())
        );
        assert_eq!(decode(&encode("/r/", "/r/a", None)).unwrap(), (At::Newest, "a".to_owned()));
        let ours =
            |rv: i64, start: &str| token(&format!(r#"{{"v":"meta.k8s.io/v1","rv":{rv},"start":"{start}"}}"#));
        for bad in [
            "".to_owned(),
            "x".to_owned(),
            "!!".to_owned(),
            token("{}"),
            ours(0, "a"),
            ours(1, ""),
            ours(1, "../secrets/a"),
            ours(1, "a//b"),
            token(r#"{"v":"v2","rv":1,"start":"a"}"#),
        ] {
            let refused = decode(&bad);
            assert!(
                matches!(&refused, Err(Error::BadRequest(m)) if m.starts_with("continue key is not valid")),
                "{bad}: {refused:?}"
            );
        }
    }
}
