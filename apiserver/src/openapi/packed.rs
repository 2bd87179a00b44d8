//! A document as it is kept: packed, with its hash.

use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use flate2::write::GzEncoder;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, ETAG, HeaderMap, IF_NONE_MATCH, VARY};
use http::{HeaderValue, Response, StatusCode};
use ring::digest::{Context, SHA512};
use serde_json::{Map, Value};

use crate::http::{Body, reply};

/// A document, packed.
pub(super) struct Packed {
    gzip: Bytes,
    /// Of its JSON, in hexadecimal: what it is known by.
    pub(super) hash: Arc<str>,
}

impl Packed {
    pub(super) fn new(document: &[u8]) -> Self {
        let mut context = Context::new(&SHA512);
        context.update(document);
        Self::with_hash(document, hexadecimal(context))
    }

    pub(super) fn with_hash(document: &[u8], hash: Arc<str>) -> Self {
        let mut gzip = encoder();
        gzip.write_all(document).expect("memory takes what is written to it");
        Self { gzip: finish(gzip), hash }
    }

    /// The response: packed if the client takes that, nothing if it has the document already.
    pub(super) fn answer(&self, media: &str, request: &HeaderMap) -> Response<Body> {
        let tag = format!("\"{}\"", self.hash);
        let known = |name| request.get_all(name).iter().filter_map(|v: &HeaderValue| v.to_str().ok());
        let mut response = if known(IF_NONE_MATCH).any(|tags| tags.contains(&tag) || tags.trim() == "*") {
            reply::with_type(StatusCode::NOT_MODIFIED, media, Bytes::new())
        } else if known(ACCEPT_ENCODING).flat_map(|v| v.split(',')).any(|v| v.trim().starts_with("gzip")) {
            let mut packed = reply::with_type(StatusCode::OK, media, self.gzip.clone());
            packed.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            packed
        } else {
            reply::with_type(StatusCode::OK, media, self.unpack())
        };
        let headers = response.headers_mut();
        headers.insert(VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
        headers.insert(ETAG, HeaderValue::from_str(&tag).expect("hexadecimal digits are ASCII"));
        response
    }

    pub(super) fn unpack(&self) -> Vec<u8> {
        let mut document = Vec::new();
        let read = flate2::read::GzDecoder::new(&*self.gzip).read_to_end(&mut document);
        read.expect("what was packed here can be unpacked");
        document
    }
}

fn encoder() -> GzEncoder<Vec<u8>> {
    GzEncoder::new(Vec::new(), flate2::Compression::new(4))
}

fn finish(gzip: GzEncoder<Vec<u8>>) -> Bytes {
    let mut packed = gzip.finish().expect("memory takes what is written to it");
    packed.shrink_to_fit();
    packed.into()
}

fn hexadecimal(context: Context) -> Arc<str> {
    let digest = context.finish();
    digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect::<String>().into()
}

/// Writes a document in JSON from parts of it: objects, of which those of the same name follow one another.
pub(super) struct Writer {
    gzip: GzEncoder<Vec<u8>>,
    hash: Context,
    /// The member that is open, as the parts that follow may have more of it.
    open: Option<String>,
    begun: bool,
}

impl Default for Writer {
    fn default() -> Self {
        Self { gzip: encoder(), hash: Context::new(&SHA512), open: None, begun: false }
    }
}

impl Writer {
    pub(super) fn add(&mut self, part: &Map<String, Value>) {
        for (name, value) in part {
            let name = Value::from(name.as_str()).to_string();
            let Value::Object(members) = value else {
                self.member(&name);
                self.put(&value.to_string());
                continue;
            };
            if self.open.as_ref() == Some(&name) {
                self.put(",");
            } else {
                self.member(&name);
                self.put("{");
                self.open = Some(name);
            }
            let members = Value::from(members.clone()).to_string();
            // Without its braces.
            self.put(&members[1..members.len() - 1]);
        }
    }

    fn member(&mut self, name: &str) {
        let before = match (self.open.take(), self.begun) {
            (Some(_), _) => "},",
            (None, true) => ",",
            (None, false) => "{",
        };
        self.begun = true;
        self.put(before);
        self.put(name);
        self.put(":");
    }

    fn put(&mut self, text: &str) {
        self.hash.update(text.as_bytes());
        self.gzip.write_all(text.as_bytes()).expect("memory takes what is written to it");
    }

    pub(super) fn finish(mut self) -> Packed {
        self.put(if self.open.is_some() { "}}" } else { "}" });
        Packed { gzip: finish(self.gzip), hash: hexadecimal(self.hash) }
    }
}
