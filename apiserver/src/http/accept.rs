//! In which form a client wants objects: whole, as a table, or their metadata only.

use decapod_api::status::Error;
use http::HeaderMap;
use http::header::ACCEPT;

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The objects themselves.
    Object,
    /// `meta.k8s.io/v1` `Table`.
    Table,
    /// `meta.k8s.io/v1` `PartialObjectMetadata`, or its list.
    Metadata,
}

/// The first form in `Accept` that can be made.
pub(crate) fn form(headers: &HeaderMap) -> Result<Form, Error> {
    let accepts = headers.get_all(ACCEPT);
    let mut offered = accepts.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).peekable();
    if offered.peek().is_none() {
        return Ok(Form::Object);
    }
    for accept in offered {
        let mut parts = accept.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        if !matches!(media, "application/json" | "application/*" | "*/*") {
            continue;
        }
        let (mut kind, mut version, mut group) = (None, None, None);
        for part in parts {
            match part.split_once('=') {
                Some(("as", value)) => kind = Some(value),
                Some(("v", value)) => version = Some(value),
                Some(("g", value)) => group = Some(value),
                _ => {}
            }
        }
        let meta = version == Some("v1") && group == Some("meta.k8s.io");
        match kind {
            None => return Ok(Form::Object),
            Some("Table") if meta => return Ok(Form::Table),
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") if meta => return Ok(Form::Metadata),
            Some(_) => {}
        }
    }
    Err(Error::NotAcceptable("application/json".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn the_first_that_can_be_made() {
        for (accept, want) in [
            ("application/json", Some(Form::Object)),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Some(Form::Table),
            ),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
                Some(Form::Metadata),
            ),
            ("application/vnd.kubernetes.protobuf, */*", Some(Form::Object)),
            ("application/vnd.kubernetes.protobuf", None),
            ("application/json;as=Table;v=v2;g=meta.k8s.io", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(form(&headers).ok(), want, "{accept}");
        }
        assert_eq!(form(&HeaderMap::new()).ok(), Some(Form::Object));
    }
}
