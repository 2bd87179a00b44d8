//! Lists: a concatenation of bytes that are there already, and pages of one snapshot.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use decapod_api::status::Error;
use serde::{Deserialize, Serialize};

use super::options::ListOptions;
use super::reads::{At, Filter, View};
use super::{Call, Registry, fields, object};

/// Where a list goes on: opaque to clients.
#[derive(Debug, Serialize, Deserialize)]
struct Token {
    /// The revision that all pages are read at.
    rv: u64,
    /// The key after which the next page starts, without the prefix of its kind.
    after: String,
}

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
                let token = decode(token)?;
                (At::Exact(token.rv), Some(Arc::from(format!("{root}{}", token.after))))
            }
        };
        let continued = after.is_some();
        let view = self.reads.list(call.resource, &prefix, &filter, at, options.limit, after).await;
        let view = view.map_err(|error| match error {
            Error::Expired { .. } => Error::Expired {
                message: if continued {
                    "The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter.".to_owned()
                } else {
                    "The resourceVersion for the provided list is too old.".to_owned()
                },
                continue_token: None,
            },
            other => other,
        })?;
        let continue_token = view.next.as_ref().map(|key| {
            let after = key.strip_prefix(root.as_str()).unwrap_or(key).to_owned();
            encode(&Token { rv: view.revision, after })
        });
        let remaining = view.remaining.filter(|_| continue_token.is_some());
        Ok(Listed { view, continue_token, remaining })
    }
}

/// What a list or watch selects; a field that its kind has no selector for is refused.
pub(crate) fn filter(call: &Call, options: &ListOptions) -> Result<Filter, Error> {
    let known = fields::of(call.resource);
    for term in options.fields.terms() {
        let field = term.field.as_str();
        if !known.contains(&field) && !matches!(field, "metadata.name" | "metadata.namespace") {
            return Err(Error::BadRequest(format!("field label not supported: {field}")));
        }
    }
    let mut filter = Filter { labels: options.labels.clone(), fields: options.fields.clone() };
    if !call.name.is_empty() && filter.fields.exact("metadata.name").is_none() {
        // A watch of one object by its path.
        let text = format!("{},metadata.name={}", filter.fields, call.name);
        filter.fields =
            text.trim_start_matches(',').parse().map_err(|e| Error::BadRequest(format!("{e}")))?;
    }
    Ok(filter)
}

fn encode(token: &Token) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(token).expect("a number and a text are JSON"))
}

fn decode(token: &str) -> Result<Token, Error> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok();
    bytes
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .ok_or_else(|| Error::BadRequest("continue key is not valid".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_and_rubbish_is_refused() {
        let token = decode(&encode(&Token { rv: 7, after: "web/a".into() })).unwrap();
        assert_eq!((token.rv, token.after.as_str()), (7, "web/a"));
        for bad in ["", "x", "!!", &URL_SAFE_NO_PAD.encode("{}")] {
            assert!(matches!(decode(bad), Err(Error::BadRequest(_))), "{bad}");
        }
    }
}
