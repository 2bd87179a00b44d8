//! From a request's body to an object of its kind.

use decapod_api::json::{self, Parsed};
use decapod_api::kinds::DecodeError;
use decapod_api::resource::Resource;
use decapod_api::status::Error;
use serde_json::Value;

use super::Call;
use super::options::FieldValidation;
use crate::http::protobuf;

/// Parses a body by its content type: JSON, or YAML.
pub(crate) fn parse(content_type: &str, bytes: &[u8]) -> Result<Parsed, Error> {
    let media = content_type.split(';').next().unwrap_or_default().trim();
    match media {
        "" | "application/json" => {
            json::parse(bytes).map_err(|e| Error::BadRequest(format!("couldn't parse the body: {e}")))
        }
        "application/yaml" | "application/x-yaml" => {
            let text = std::str::from_utf8(bytes).map_err(|e| Error::BadRequest(e.to_string()))?;
            let value = serde_saphyr::from_str_with_options(text, yaml_options())
                .map_err(|e| Error::BadRequest(format!("couldn't parse the body: {e}")))?;
            Ok(Parsed { value, duplicates: Vec::new() })
        }
        protobuf::MEDIA_TYPE => {
            let value = protobuf::decode(bytes)
                .map_err(|e| Error::BadRequest(format!("couldn't parse the body: {e}")))?;
            Ok(Parsed { value, duplicates: Vec::new() })
        }
        other => Err(Error::UnsupportedMediaType(format!(
            "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, {} (got {other})",
            protobuf::MEDIA_TYPE
        ))),
    }
}

/// Checks that a body is of a kind; what it leaves out is taken from the path.
pub(crate) fn check_kind(resource: &Resource, object: &mut Value) -> Result<(), Error> {
    check_gvk(&resource.api_version(), resource.kind, object)
}

/// Checks that a body has this apiVersion and kind, and fills them in.
pub(crate) fn check_gvk(version: &str, kind: &str, object: &mut Value) -> Result<(), Error> {
    let Some(map) = object.as_object_mut() else {
        return Err(Error::BadRequest(format!(
            "the object provided is unrecognized (must be of type {kind})"
        )));
    };
    for (field, wanted, what) in [("apiVersion", version, "API version"), ("kind", kind, "kind")] {
        let found = map.get(field).and_then(Value::as_str).unwrap_or_default();
        if !found.is_empty() && found != wanted {
            return Err(Error::BadRequest(format!(
                "the {what} in the data ({found}) does not match the expected {what} ({wanted})"
            )));
        }
        map.insert(field.to_owned(), wanted.into());
    }
    Ok(())
}

/// Decodes and defaults an object by its kind's type; unknown fields and `duplicates` are refused
/// or warned of as the call asks.
///
/// The managers are passed by: see [`super::managed`].
pub(crate) fn normalize(call: &Call, mut object: Value, duplicates: &[String]) -> Result<Value, Error> {
    let resource = call.resource;
    let managed = super::managed::take(&mut object);
    let cannot = |why: &dyn std::fmt::Display| {
        Error::BadRequest(format!(
            "{kind} in version \"{}\" cannot be handled as a {kind}: {why}",
            resource.version,
            kind = resource.kind
        ))
    };
    let normalized = (resource.ops.normalize)(object).map_err(|e: DecodeError| cannot(&e))?;
    let unknown = normalized.unknown.iter().map(|path| format!("unknown field \"{path}\""));
    let found: Vec<String> =
        unknown.chain(duplicates.iter().map(|path| format!("duplicate field \"{path}\""))).collect();
    match call.options.validation {
        FieldValidation::Strict if !found.is_empty() => {
            return Err(cannot(&format!("strict decoding error: {}", found.join(", "))));
        }
        FieldValidation::Warn => found.into_iter().for_each(|warning| call.warn(warning)),
        _ => {}
    }
    let mut object = normalized.object;
    super::managed::set(&mut object, managed);
    Ok(object)
}

/// As Kubernetes reads YAML: file modes are written 0400, and are octal.
fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! { legacy_octal_numbers: true }
}
