//! In which form a client wants objects (whole, as a table, their metadata only), and in which encoding.

use std::cmp::Reverse;

use decapod_api::status::Error;
use http::HeaderMap;
use http::header::{ACCEPT, USER_AGENT};

use super::protobuf;
use super::query::Query;

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// The objects themselves.
    Object,
    /// `meta.k8s.io/v1` `Table`.
    Table,
    /// `meta.k8s.io/v1` `PartialObjectMetadata`, or its list.
    Metadata,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

impl Encoding {
    /// The media type.
    pub(crate) fn media(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => protobuf::MEDIA_TYPE,
        }
    }
}

/// What can be answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    /// Whether the kind has a form in protobuf.
    pub(crate) protobuf: bool,
    /// Whether there are tables and metadata of it: of what is stored.
    pub(crate) transforms: bool,
    /// Whether the answer is a stream of events.
    pub(crate) stream: bool,
}

/// What is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) encoding: Encoding,
    pub(crate) form: Form,
    /// Indented for people.
    pub(crate) pretty: bool,
}

impl Default for Accepted {
    fn default() -> Self {
        Self { encoding: Encoding::Json, form: Form::Object, pretty: false }
    }
}

/// Programs with which people look at answers: they get them indented.
const PEOPLE: [&str; 3] = ["curl", "Wget", "Mozilla/5.0"];

/// What a client wants most of what can be answered; refused if it wants none of it.
pub(crate) fn negotiate(headers: &HeaderMap, query: &Query, offer: Offer) -> Result<Accepted, Error> {
    let pretty = match query.get("pretty") {
        Some(asked) => matches!(asked, "1" | "t" | "T" | "true" | "TRUE" | "True"),
        None => {
            let agent = headers.get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
            PEOPLE.iter().any(|program| agent.starts_with(program))
        }
    };
    let mut accepts = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).peekable();
    if accepts.peek().is_none_or(|first| first.trim().is_empty()) {
        return Ok(Accepted { encoding: Encoding::Json, form: Form::Object, pretty });
    }
    let mut clauses: Vec<Clause<'_>> = accepts.flat_map(|v| v.split(',')).map(Clause::parse).collect();
    // Stable: of equals the first.
    clauses.sort_by_key(|clause| (Reverse(clause.quality), clause.wildcards));
    let accepted = clauses.iter().find_map(|clause| clause.accepts(offer));
    let accepted =
        accepted.map(|(encoding, form, indented)| Accepted { encoding, form, pretty: pretty || indented });
    accepted.ok_or_else(|| Error::NotAcceptable(offer.media()))
}

impl Offer {
    fn encodings(self) -> impl Iterator<Item = Encoding> {
        let yaml = (!self.stream).then_some(Encoding::Yaml);
        let protobuf = self.protobuf.then_some(Encoding::Protobuf);
        std::iter::once(Encoding::Json).chain(yaml).chain(protobuf)
    }

    fn media(self) -> String {
        let suffix = if self.stream { ";stream=watch" } else { "" };
        self.encodings().map(|e| format!("{}{suffix}", e.media())).collect::<Vec<_>>().join(", ")
    }
}

/// One of the things that a client takes.
struct Clause<'a> {
    media: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    /// In thousandths.
    quality: u16,
    wildcards: usize,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
        let quality =
            parameters.iter().find(|(name, _)| *name == "q").and_then(|(_, q)| q.parse::<f32>().ok());
        let quality = (quality.unwrap_or(1.0).clamp(0.0, 1.0) * 1000.0) as u16;
        Self { media, parameters, quality, wildcards: media.matches('*').count() }
    }

    /// What is answered to it, and whether indented.
    fn accepts(&self, offer: Offer) -> Option<(Encoding, Form, bool)> {
        let wanted =
            |name: &str| self.parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        if wanted("stream").is_some_and(|stream| stream != "watch") || self.quality == 0 {
            return None;
        }
        let form = match (wanted("as"), wanted("v"), wanted("g")) {
            (None, None, None) => Form::Object,
            (Some(kind), Some("v1"), Some("meta.k8s.io")) if offer.transforms => match kind {
                "Table" => Form::Table,
                "PartialObjectMetadata" | "PartialObjectMetadataList" => Form::Metadata,
                _ => return None,
            },
            _ => return None,
        };
        let encoding = offer.encodings().find(|encoding| {
            let media = matches!(self.media, "*/*" | "application/*") || self.media == encoding.media();
            // Tables have no form in protobuf, metadata has one of every kind's objects.
            media && (form != Form::Table || *encoding != Encoding::Protobuf)
        });
        // Metadata has a form in protobuf, whatever it is of.
        let of_metadata =
            (form == Form::Metadata && self.media == protobuf::MEDIA_TYPE).then_some(Encoding::Protobuf);
        Some((encoding.or(of_metadata)?, form, wanted("pretty") == Some("1")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const ALL: Offer = Offer { protobuf: true, transforms: true, stream: false };

    fn accepted(accept: &'static str, offer: Offer) -> Result<(Encoding, Form), String> {
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
        let accepted = negotiate(&headers, &Query::default(), offer).map_err(|e| e.to_string())?;
        Ok((accepted.encoding, accepted.form))
    }

    #[test]
    fn the_best_that_can_be_made() {
        let (json, yaml, protobuf) = (Encoding::Json, Encoding::Yaml, Encoding::Protobuf);
        for (accept, want) in [
            ("application/json", (json, Form::Object)),
            ("", (json, Form::Object)),
            ("text/html, */*", (json, Form::Object)),
            ("*/*, application/yaml", (yaml, Form::Object)),
            ("application/yaml;q=0.5, application/json;q=0.6", (json, Form::Object)),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                (json, Form::Table),
            ),
            (
                "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1;g=meta.k8s.io",
                (json, Form::Table),
            ),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
                (protobuf, Form::Metadata),
            ),
            ("application/vnd.kubernetes.protobuf, */*", (protobuf, Form::Object)),
            ("application/json;as=Table;v=v2;g=meta.k8s.io, application/yaml", (yaml, Form::Object)),
        ] {
            assert_eq!(accepted(accept, ALL).unwrap(), want, "{accept}");
        }
    }

    #[test]
    fn what_cannot_be_made_is_refused_with_what_can() {
        let refused = |accept, offer| accepted(accept, offer).unwrap_err();
        let all = "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf";
        assert_eq!(refused("text/html", ALL), all);
        assert_eq!(
            refused("application/json;as=Table;v=v1;g=meta.k8s.io", Offer { transforms: false, ..ALL }),
            all
        );
        assert_eq!(
            refused("application/yaml", Offer { stream: true, ..ALL }),
            "only the following media types are accepted: application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"
        );
        let without = Offer { protobuf: false, ..ALL };
        assert_eq!(
            refused(protobuf::MEDIA_TYPE, without),
            "only the following media types are accepted: application/json, application/yaml"
        );
        assert_eq!(
            accepted("application/vnd.kubernetes.protobuf, application/json", without).unwrap().0,
            Encoding::Json
        );
    }

    #[test]
    fn people_get_it_indented() {
        let pretty = |agent: &'static str, query: &str| {
            let headers = HeaderMap::from_iter([(USER_AGENT, HeaderValue::from_static(agent))]);
            negotiate(&headers, &Query::parse(Some(query)), ALL).unwrap().pretty
        };
        assert!(pretty("curl/8.1", "") && pretty("kubectl", "pretty=true"));
        assert!(!pretty("kubectl", "") && !pretty("curl/8.1", "pretty=0"));
    }
}
