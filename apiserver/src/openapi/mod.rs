//! The OpenAPI documents, made from the table of kinds, the field facts and Kubernetes' own descriptions.
//!
//! Clients read them to explain kinds, to see which options the server knows (`fieldValidation`), how lists
//! merge, and what objects are made of. A document is made when it is first asked for and kept packed: a
//! cluster whose clients ask for none pays for none.
//!
//! **Invariant**: a document's hash is that of its JSON, so what a client has cached by it is what is served.

mod negotiation;
mod packed;
mod parameters;
mod paths;
mod protobuf;
mod schema;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use decapod_api::resource::{RESOURCES, Resource, api_version};
use http::header::{CACHE_CONTROL, EXPIRES, HeaderMap, LOCATION};
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::http::query::Query;
use crate::http::{Body, reply};
use negotiation::Encoding;
use packed::Packed;
use schema::Schemas;
use words::Words;

/// Which of the two kinds of document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Swagger 2.0: everything in one.
    V2,
    /// OpenAPI 3.0: one a group and version.
    V3,
}

impl Format {
    /// Where schemas are in a document.
    fn schemas(self) -> &'static str {
        match self {
            Self::V2 => "#/definitions/",
            Self::V3 => "#/components/schemas/",
        }
    }

    fn message(self) -> &'static protobuf::Message {
        match self {
            Self::V2 => &protobuf::V2,
            Self::V3 => &protobuf::V3,
        }
    }
}

/// A document that was made, in JSON, and in protobuf once that was asked for.
struct Made {
    json: Packed,
    protobuf: OnceLock<Packed>,
}

static V2: OnceLock<Made> = OnceLock::new();
static V3: OnceLock<BTreeMap<String, Made>> = OnceLock::new();

/// Answers a request for a document; `None` if the path is none.
pub(crate) async fn answer(path: &str, query: &Query, headers: &HeaderMap) -> Option<Response<Body>> {
    let path = path.trim_end_matches('/').strip_prefix("/openapi/")?.to_owned();
    let hash = query.get("hash").map(str::to_owned);
    let headers = headers.clone();
    // Making a document takes a while: not where other requests are answered.
    let made = tokio::task::spawn_blocking(move || respond(&path, hash.as_deref(), &headers)).await;
    made.unwrap_or_else(|error| {
        tracing::error!(%error, "a document could not be made");
        let error = decapod_api::status::Error::Internal("the document could not be made".to_owned());
        Some(reply::error(&error))
    })
}

fn respond(path: &str, hash: Option<&str>, headers: &HeaderMap) -> Option<Response<Body>> {
    if path == "v2" {
        let document = V2.get_or_init(|| make("", Format::V2, &Words::unpack()));
        return Some(document.answer("", Format::V2, headers));
    }
    let root = path.strip_prefix("v3")?;
    let documents = V3.get_or_init(all);
    if root.is_empty() {
        let index = Packed::new(&index(documents));
        return Some(index.answer(Encoding::Json.media(Format::V3), headers));
    }
    let root = root.strip_prefix('/')?;
    let document = documents.get(root)?;
    let mut response = document.answer(root, Format::V3, headers);
    if let Some(hash) = hash {
        cached(&mut response, root, hash, &document.json.hash);
    }
    Some(response)
}

/// What is asked for by its hash never changes; what was asked for by another is elsewhere.
fn cached(response: &mut Response<Body>, root: &str, asked: &str, hash: &str) {
    if response.status() == StatusCode::NOT_ACCEPTABLE {
        return;
    }
    if asked != hash {
        let mut moved = reply::text(StatusCode::MOVED_PERMANENTLY, "");
        if let Ok(location) = HeaderValue::from_str(&url(root, hash)) {
            moved.headers_mut().insert(LOCATION, location);
        }
        *response = moved;
        return;
    }
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
    let next_year = jiff::Timestamp::now() + std::time::Duration::from_secs(365 * 24 * 60 * 60);
    let next_year = next_year.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    if let Ok(next_year) = HeaderValue::from_str(&next_year) {
        headers.insert(EXPIRES, next_year);
    }
}

impl Made {
    fn answer(&self, root: &str, format: Format, headers: &HeaderMap) -> Response<Body> {
        match negotiation::encoding(format, headers) {
            None => reply::text(StatusCode::NOT_ACCEPTABLE, ""),
            Some(encoding @ Encoding::Json) => self.json.answer(encoding.media(format), headers),
            Some(encoding @ Encoding::Protobuf) => {
                let packed = self.protobuf.get_or_init(|| {
                    let mut message = Vec::new();
                    parts(root, format, &Words::unpack(), |part| {
                        protobuf::write(format.message(), part, &mut message);
                    });
                    Packed::with_hash(&message, Arc::clone(&self.json.hash))
                });
                packed.answer(encoding.media(format), headers)
            }
        }
    }
}

/// Every document of version 3.
fn all() -> BTreeMap<String, Made> {
    let words = Words::unpack();
    roots().into_iter().map(|root| (root.clone(), make(&root, Format::V3, &words))).collect()
}

/// The paths that documents of version 3 are about.
fn roots() -> BTreeSet<String> {
    let mut roots: BTreeSet<String> = ["api", "apis", "version"].into_iter().map(str::to_owned).collect();
    for row in rows() {
        roots.insert(root(row.group, row.version));
        if !row.group.is_empty() {
            roots.insert(format!("apis/{}", row.group));
        }
    }
    roots
}

/// The rows of all kinds that are served: built-in ones, and those of figures.
fn rows() -> impl Iterator<Item = &'static Resource> {
    RESOURCES.iter().chain(crate::usage::rows())
}

fn root(group: &str, version: &str) -> String {
    let prefix = if group.is_empty() { "api" } else { "apis" };
    format!("{prefix}/{}", api_version(group, version))
}

fn url(root: &str, hash: &str) -> String {
    format!("/openapi/v3/{root}?hash={hash}")
}

fn index(documents: &BTreeMap<String, Made>) -> Vec<u8> {
    let paths: Map<String, Value> = documents
        .iter()
        .map(|(root, made)| (root.clone(), json!({"serverRelativeURL": url(root, &made.json.hash)})))
        .collect();
    json!({"paths": paths}).to_string().into_bytes()
}

fn make(root: &str, format: Format, words: &Words) -> Made {
    let mut json = packed::Writer::default();
    parts(root, format, words, |part| json.add(part));
    Made { json: json.finish(), protobuf: OnceLock::new() }
}

/// Makes a document (version 2: of all roots) part by part, so that never all of it is in memory as a tree.
/// Parts follow in the order of what they are parts of.
fn parts(root: &str, format: Format, words: &Words, mut take: impl FnMut(&Map<String, Value>)) {
    let mut part = |value: Value| {
        if let Value::Object(part) = value {
            take(&part);
        }
    };
    let info = json!({"title": "Kubernetes", "version": crate::version::git_version()});
    let requirement = json!([{"BearerToken": []}]);
    let scheme = json!({"BearerToken": {"type": "apiKey", "description": "Bearer Token authentication",
        "name": "authorization", "in": "header"}});
    part(match format {
        Format::V2 => json!({"swagger": "2.0", "info": info, "security": requirement,
            "securityDefinitions": scheme}),
        Format::V3 => json!({"openapi": "3.0.0", "info": info}),
    });
    let of_document = match format {
        Format::V2 => roots(),
        Format::V3 => BTreeSet::from([root.to_owned()]),
    };
    let mut schemas = Schemas::new(format, words);
    let mut written = BTreeMap::new();
    for root in &of_document {
        written.extend(paths::of_discovery(root, format));
        for row in paths::rows(root) {
            schemas.add_kind(row);
            schemas.add_common();
            written.extend(paths::Writer::new(format, row).write());
        }
    }
    for (path, item) in written {
        part(json!({"paths": {path: item}}));
    }
    schemas.add_discovery();
    let group_versions: BTreeSet<(&str, &str)> =
        of_document.iter().flat_map(|root| paths::rows(root)).map(|row| (row.group, row.version)).collect();
    let group_versions: Vec<_> = group_versions.into_iter().collect();
    let schemas = schemas.finish(&group_versions);
    match format {
        Format::V2 => {
            for (name, schema) in schemas {
                part(json!({"definitions": {name: schema}}));
            }
        }
        Format::V3 => part(json!({"components": {"schemas": schemas, "securitySchemes": scheme}})),
    }
}

#[cfg(test)]
mod tests;
