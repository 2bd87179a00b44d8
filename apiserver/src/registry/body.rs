//! From a request's body to an object of its kind.

use decapod_api::field;
use decapod_api::json;
use decapod_api::kinds::DecodeError;
use decapod_api::resource::Resource;
use decapod_api::status::Error;
use serde_json::Value;

use super::Call;
use super::options::FieldValidation;
use crate::http::{protobuf, yaml};

/// A parsed body.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// The object.
    pub(crate) value: Value,
    /// What is there twice, in words: a JSON field, or a YAML key with its line.
    pub(crate) duplicates: Vec<String>,
}

/// Parses a body by its content type: JSON, YAML or protobuf.
pub(crate) fn parse(content_type: &str, bytes: &[u8]) -> Result<Parsed, Error> {
    let media = content_type.split(';').next().unwrap_or_default().trim();
    let refused = |e: &dyn std::fmt::Display| Error::BadRequest(format!("couldn't parse the body: {e}"));
    match media {
        "" | "application/json" => json(bytes).map_err(|e| refused(&e)),
        "application/yaml" | "application/x-yaml" => {
            let text = std::str::from_utf8(bytes).map_err(|e| refused(&e))?;
            let yaml::Parsed { value, duplicates } = yaml::parse(text).map_err(|e| refused(&e))?;
            Ok(Parsed { value, duplicates })
        }
        protobuf::MEDIA_TYPE => {
            let value = protobuf::decode(bytes).map_err(|e| refused(&e))?;
            Ok(Parsed { value, duplicates: Vec::new() })
        }
        _ => Err(Error::UnsupportedMediaType(format!(
            "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, {}",
            protobuf::MEDIA_TYPE
        ))),
    }
}

/// Parses JSON.
pub(crate) fn json(bytes: &[u8]) -> Result<Parsed, serde_json::Error> {
    let json::Parsed { value, duplicates } = json::parse(bytes)?;
    Ok(Parsed { value, duplicates: duplicates.iter().map(|path| duplicate(path)).collect() })
}

fn duplicate(path: &str) -> String {
    format!("duplicate field \"{path}\"")
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
pub(crate) fn normalize(call: &Call, object: Value, duplicates: &[String]) -> Result<Value, Error> {
    let resource = call.resource;
    let cannot = |why: &dyn std::fmt::Display| {
        Error::BadRequest(format!(
            "{kind} in version \"{}\" cannot be handled as a {kind}: {why}",
            resource.version,
            kind = resource.kind
        ))
    };
    let (object, unknown) = decode(call, object).map_err(|e| cannot(&e))?;
    if call.options.validation == FieldValidation::Ignore {
        return Ok(object);
    }
    // A field that its kind does not have is told once, however often it is there.
    let known = |found: &&String| {
        let path = found.strip_prefix("duplicate field \"").and_then(|rest| rest.strip_suffix('"'));
        path.is_none_or(|path| !unknown.iter().any(|unknown| path.starts_with(unknown.as_str())))
    };
    let duplicates: Vec<String> = duplicates.iter().filter(known).cloned().collect();
    let found = in_order(&call.body, &unknown, duplicates);
    report(call, found, |found| cannot(&format!("strict decoding error: {found}")))?;
    Ok(object)
}

/// Decodes and defaults what a patch made: as [`normalize`], with the words for patches.
pub(crate) fn normalize_patched(
    call: &Call,
    object: Value,
    duplicates: &[String],
    applied: bool,
) -> Result<Value, Error> {
    let text = std::cell::OnceCell::new();
    let invalid = |why: String| {
        let path = field::Path::new("patch");
        let value: &String = text.get_or_init(String::new);
        Error::Invalid {
            group: String::new(),
            kind: String::new(),
            name: String::new(),
            errors: vec![field::Error::invalid(&path, value.as_str(), why)],
        }
    };
    let shown = (call.options.validation == FieldValidation::Strict).then(|| object.to_string());
    let (object, unknown) = decode(call, object).map_err(|e| invalid(e.to_string()))?;
    if let Some(shown) = shown {
        text.set(shown).unwrap_or(());
    }
    if call.options.validation == FieldValidation::Ignore {
        return Ok(object);
    }
    let unknown = unknown.iter().map(|path| format!("unknown field \"{path}\""));
    let found: Vec<String> = duplicates.iter().cloned().chain(unknown).collect();
    report(call, found, |found| {
        if applied {
            let why = format!("error strict decoding YAML: error converting YAML to JSON: {found}");
            return Error::BadRequest(why);
        }
        invalid(format!("strict decoding error: {found}"))
    })?;
    Ok(object)
}

/// The object with its managers, and its unknown fields.
fn decode(call: &Call, mut object: Value) -> Result<(Value, Vec<String>), DecodeError> {
    let managed = super::managed::take(&mut object);
    let normalized = (call.resource.ops.normalize)(object)?;
    let mut object = super::convert::canonical(call.resource, normalized.object);
    super::managed::set(&mut object, managed);
    Ok((object, normalized.unknown))
}

/// Unknown and duplicate fields of a JSON body as they are in the document; of other bodies the
/// duplicates first, as these were found when it was read.
fn in_order(body: &[u8], unknown: &[String], duplicates: Vec<String>) -> Vec<String> {
    let words = |path: &String| format!("unknown field \"{path}\"");
    let yaml = duplicates.iter().any(|found| found.starts_with("line "));
    if yaml || unknown.len() + duplicates.len() < 2 || body.is_empty() {
        return duplicates.into_iter().chain(unknown.iter().map(words)).collect();
    }
    let paths: Vec<&str> = unknown
        .iter()
        .map(String::as_str)
        .chain(duplicates.iter().filter_map(|found| found.split('"').nth(1)))
        .collect();
    let positions = json::positions(body, &paths);
    let at = |path: &str, nth: usize| {
        let all = positions.get(path);
        all.and_then(|all| all.get(nth).or(all.last())).copied().unwrap_or(usize::MAX)
    };
    let mut found: Vec<(usize, String)> = unknown.iter().map(|path| (at(path, 0), words(path))).collect();
    found.extend(duplicates.iter().map(|found| {
        let path = found.split('"').nth(1).unwrap_or_default();
        (at(path, 1), found.clone())
    }));
    found.sort();
    found.into_iter().map(|(_, words)| words).collect()
}

/// Refuses what was found, or warns of it, as the call asks.
fn report(call: &Call, found: Vec<String>, refuse: impl Fn(String) -> Error) -> Result<(), Error> {
    if call.options.validation != FieldValidation::Strict {
        found.into_iter().for_each(|warning| call.warn(warning));
        return Ok(());
    }
    if found.is_empty() {
        return Ok(());
    }
    let (lines, others): (Vec<String>, Vec<String>) =
        found.into_iter().partition(|found| found.starts_with("line "));
    let mut parts = Vec::new();
    if !lines.is_empty() {
        parts.push(format!("yaml: unmarshal errors:\n  {}", lines.join("\n  ")));
    }
    parts.extend(others);
    Err(refuse(parts.join(", ")))
}
