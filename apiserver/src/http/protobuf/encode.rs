//! Kubernetes' protobuf, as clients take it: encoded from the same JSON tree as any other answer.
//!
//! Readers take fields that are not there as empty, so only what the object says is written.

use base64::Engine;
use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Map, Value};

use super::{Field, INLINED, Label, MAGIC, MESSAGES, Type, message_name};

/// Why an object cannot be written in protobuf.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("kind \"{0}\" has no form in protobuf")]
    Unknown(String),
    #[error("the field \"{0}\" is not of its type")]
    Mismatch(&'static str),
}

/// Whether objects of a kind have a form in protobuf.
pub(crate) fn encodes(version: &str, kind: &str) -> bool {
    MESSAGES.contains_key(message_name(version, kind).as_str())
}

/// An object or a list, in its envelope.
pub(crate) fn encode(object: &Value) -> Result<Vec<u8>, Error> {
    let (version, kind) = (text(object, "apiVersion"), text(object, "kind"));
    match (kind.strip_suffix("List"), object.get("items")) {
        (Some(item), Some(items)) => {
            let name = message_of(version, item)?;
            let items = items.as_array().into_iter().flatten().map(|item| {
                let mut encoded = Vec::new();
                message(name, item.as_object().ok_or(Error::Mismatch("items"))?, &mut encoded)?;
                Ok(Bytes::from(encoded))
            });
            list(version, kind, &object["metadata"], items)
        }
        _ => Ok(enveloped(version, kind, &bare(object)?)),
    }
}

/// An object without its envelope, as lists have it.
pub(crate) fn bare(object: &Value) -> Result<Vec<u8>, Error> {
    let (version, kind) = (text(object, "apiVersion"), text(object, "kind"));
    let fields = object.as_object().ok_or_else(|| Error::Unknown(kind.to_owned()))?;
    let mut raw = Vec::new();
    message(message_of(version, kind)?, fields, &mut raw)?;
    Ok(raw)
}

/// A list of objects that are encoded already, in its envelope.
pub(crate) fn list(
    version: &str,
    kind: &str,
    meta: &Value,
    items: impl Iterator<Item = Result<Bytes, Error>>,
) -> Result<Vec<u8>, Error> {
    let mut raw = Vec::new();
    if let Value::Object(meta) = meta {
        nested(1, &mut raw, |to| message("meta.v1.ListMeta", meta, to))?;
    }
    for item in items {
        delimited(2, &item?, &mut raw);
    }
    Ok(enveloped(version, kind, &raw))
}

fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object[name].as_str().unwrap_or_default()
}

fn message_of(version: &str, kind: &str) -> Result<&'static str, Error> {
    let name = message_name(version, kind);
    MESSAGES
        .get_key_value(name.as_str())
        .map(|(name, _)| *name)
        .ok_or_else(|| Error::Unknown(kind.to_owned()))
}

fn enveloped(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut meta = Vec::new();
    delimited(1, version.as_bytes(), &mut meta);
    delimited(2, kind.as_bytes(), &mut meta);
    let mut envelope = Vec::with_capacity(raw.len() + meta.len() + 20);
    envelope.extend_from_slice(MAGIC);
    delimited(1, &meta, &mut envelope);
    delimited(2, raw, &mut envelope);
    envelope
}

/// One frame of a watch: its length in four bytes, then a `WatchEvent` without an envelope, of which the
/// object has its own.
pub(crate) fn frame(kind: &str, object: &[u8]) -> Bytes {
    let mut inner = Vec::with_capacity(object.len() + 8);
    delimited(1, object, &mut inner);
    let mut event = Vec::with_capacity(inner.len() + 20);
    delimited(1, kind.as_bytes(), &mut event);
    delimited(2, &inner, &mut event);
    let mut frame = BytesMut::with_capacity(event.len() + 4);
    frame.put_u32(u32::try_from(event.len()).expect("an object is far below 4 GiB"));
    frame.put_slice(&event);
    frame.freeze()
}

fn message(name: &'static str, object: &Map<String, Value>, to: &mut Vec<u8>) -> Result<(), Error> {
    let Some(fields) = MESSAGES.get(name) else { return Ok(()) };
    for (number, field) in fields {
        if let (Type::Message(inner), Label::One, true) =
            (field.ty, field.label, INLINED.contains(&field.name))
            && !object.contains_key(field.name)
        {
            let mut content = Vec::new();
            message(inner, object, &mut content)?;
            if !content.is_empty() {
                delimited(*number, &content, to);
            }
            continue;
        }
        match object.get(field.name) {
            None | Some(Value::Null) => {}
            Some(value) => field_of(*number, field, value, to)?,
        }
    }
    Ok(())
}

fn field_of(number: u64, field: &Field, value: &Value, to: &mut Vec<u8>) -> Result<(), Error> {
    let mismatch = || Error::Mismatch(field.name);
    match field.label {
        Label::One => one(number, field, value, to),
        Label::Many => {
            for item in value.as_array().ok_or_else(mismatch)? {
                one(number, field, item, to)?;
            }
            Ok(())
        }
        Label::Map => {
            for (key, value) in value.as_object().ok_or_else(mismatch)? {
                nested(number, to, |to| {
                    delimited(1, key.as_bytes(), to);
                    if value.is_null() { Ok(()) } else { one(2, field, value, to) }
                })?;
            }
            Ok(())
        }
    }
}

fn one(number: u64, field: &Field, value: &Value, to: &mut Vec<u8>) -> Result<(), Error> {
    let mismatch = || Error::Mismatch(field.name);
    let text = || value.as_str().ok_or_else(mismatch);
    match field.ty {
        Type::String => delimited(number, text()?.as_bytes(), to),
        Type::Integer => integer(number, value.as_i64().ok_or_else(mismatch)?, to),
        Type::Bool => integer(number, i64::from(value.as_bool().ok_or_else(mismatch)?), to),
        Type::Double => {
            const FIXED64: u64 = 1;
            varint(number << 3 | FIXED64, to);
            to.extend_from_slice(&value.as_f64().ok_or_else(mismatch)?.to_le_bytes());
        }
        Type::Bytes => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text()?).map_err(|_| mismatch())?;
            delimited(number, &bytes, to);
        }
        Type::Time | Type::MicroTime => {
            let time: jiff::Timestamp = text()?.parse().map_err(|_| mismatch())?;
            let mut content = Vec::new();
            integer(1, time.as_second(), &mut content);
            integer(2, i64::from(time.subsec_nanosecond()), &mut content);
            delimited(number, &content, to);
        }
        Type::Quantity => {
            // A quantity may be written as a number.
            let quantity = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            nested(number, to, |to| {
                delimited(1, quantity.as_bytes(), to);
                Ok(())
            })?;
        }
        Type::IntOrString => nested(number, to, |to| {
            match value.as_str() {
                Some(text) => {
                    integer(1, 1, to);
                    delimited(3, text.as_bytes(), to);
                }
                None => {
                    integer(1, 0, to);
                    integer(2, value.as_i64().ok_or_else(mismatch)?, to);
                }
            }
            Ok(())
        })?,
        Type::Raw => nested(number, to, |to| {
            delimited(1, value.to_string().as_bytes(), to);
            Ok(())
        })?,
        Type::Strings => nested(number, to, |to| {
            for item in value.as_array().ok_or_else(mismatch)? {
                delimited(1, item.as_str().ok_or_else(mismatch)?.as_bytes(), to);
            }
            Ok(())
        })?,
        Type::Message(name) => {
            let object = value.as_object().ok_or_else(mismatch)?;
            nested(number, to, |to| message(name, object, to))?;
        }
    }
    Ok(())
}

fn nested(
    number: u64,
    to: &mut Vec<u8>,
    content: impl FnOnce(&mut Vec<u8>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut inner = Vec::new();
    content(&mut inner)?;
    delimited(number, &inner, to);
    Ok(())
}

fn delimited(number: u64, content: &[u8], to: &mut Vec<u8>) {
    const DELIMITED: u64 = 2;
    varint(number << 3 | DELIMITED, to);
    varint(content.len() as u64, to);
    to.extend_from_slice(content);
}

fn integer(number: u64, value: i64, to: &mut Vec<u8>) {
    varint(number << 3, to);
    varint(value.cast_unsigned(), to);
}

fn varint(mut number: u64, to: &mut Vec<u8>) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

#[cfg(test)]
mod tests;
