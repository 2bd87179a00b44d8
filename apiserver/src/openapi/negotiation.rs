//! In which encoding a client wants a document.

use http::header::{ACCEPT, HeaderMap};

use super::Format;

/// How a document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Json,
    Protobuf,
}

/// The media types in protobuf, and those by which older clients ask for them, which are none by their form.
const PROTOBUF_V2: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
];
const PROTOBUF_V3: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v3@v1.0+protobuf",
];

fn protobuf(format: Format) -> &'static [&'static str; 2] {
    match format {
        Format::V2 => &PROTOBUF_V2,
        Format::V3 => &PROTOBUF_V3,
    }
}

impl Encoding {
    /// The media type that it is answered as.
    pub(super) fn media(self, format: Format) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => protobuf(format)[0],
        }
    }
}

/// The encoding that a client prefers; nothing if it takes none of them.
pub(super) fn encoding(format: Format, headers: &HeaderMap) -> Option<Encoding> {
    let accepts = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok());
    let mut offers: Vec<(&str, f32)> = accepts.flat_map(|v| v.split(',')).map(offer).collect();
    if offers.is_empty() {
        return Some(Encoding::Json);
    }
    // Stable: of equals the first.
    offers.sort_by(|a, b| b.1.total_cmp(&a.1));
    offers.into_iter().filter(|(_, quality)| *quality > 0.0).find_map(|(media, _)| match media {
        "application/json" | "application/*" | "*/*" => Some(Encoding::Json),
        other => protobuf(format).contains(&other).then_some(Encoding::Protobuf),
    })
}

fn offer(accept: &str) -> (&str, f32) {
    let mut parts = accept.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default();
    let quality = parts.find_map(|part| part.strip_prefix("q=")).and_then(|q| q.parse().ok());
    (media, quality.unwrap_or(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn what_is_preferred_of_what_there_is() {
        for (accept, want) in [
            ("*/*", Some(Encoding::Json)),
            ("application/com.github.proto-openapi.spec.v2@v1.0+protobuf", Some(Encoding::Protobuf)),
            (
                "application/com.github.proto-openapi.spec.v2.v1.0+protobuf, application/json",
                Some(Encoding::Protobuf),
            ),
            (
                "application/com.github.proto-openapi.spec.v2.v1.0+protobuf;q=0.5,application/json",
                Some(Encoding::Json),
            ),
            ("application/com.github.proto-openapi.spec.v3.v1.0+protobuf", None),
            ("text/html", None),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(encoding(Format::V2, &headers), want, "{accept}");
        }
        assert_eq!(encoding(Format::V3, &HeaderMap::new()), Some(Encoding::Json));
    }
}
