//! The documents in protobuf: the messages of `openapi.v2` and `openapi.v3`, as far as the documents use
//! them, as tables, and the walk that writes JSON by them.
//!
//! What a table does not name is left out; extensions (`x-…`) and free values are carried as YAML, of which
//! JSON is a part.

use serde_json::{Map, Value};

/// How a value is written.
pub(super) enum Kind {
    Text,
    Flag,
    /// `Any`: the value as YAML.
    Free,
    /// `DefaultType`: a number, flag or text; nothing else can be said.
    Plain,
    One(&'static Message),
    Many(&'static Kind),
    /// A message whose only field, of this number, is the value.
    In(u32, &'static Kind),
    /// A message with a list, in a field of this number, of names with values.
    Named(u32, &'static Kind),
    /// One of several, by what the value is.
    Choice(fn(&Value) -> &'static Kind),
}

/// A message: its fields, and the number of the field with its extensions (0: it has none).
pub(super) struct Message {
    fields: &'static [(&'static str, u32, Kind)],
    extensions: u32,
}

const fn message(fields: &'static [(&'static str, u32, Kind)], extensions: u32) -> Message {
    Message { fields, extensions }
}

use Kind::{Choice, Flag, Free, In, Many, Named, One, Plain, Text};

static TEXTS: Kind = Many(&Text);

/// The messages of version 2.
mod v2 {
    use super::*;

    static SCHEMA: Message = message(
        &[
            ("$ref", 1, Text),
            ("format", 2, Text),
            ("description", 4, Text),
            ("default", 5, Free),
            ("required", 19, Many(&Text)),
            ("enum", 20, Many(&Free)),
            ("additionalProperties", 21, In(1, &One(&SCHEMA))),
            ("type", 22, In(1, &Text)),
            ("items", 23, In(1, &One(&SCHEMA))),
            ("properties", 25, Named(1, &One(&SCHEMA))),
        ],
        31,
    );
    static INFO: Message = message(&[("title", 1, Text), ("version", 2, Text)], 7);
    static BODY: Message = message(
        &[
            ("description", 1, Text),
            ("name", 2, Text),
            ("in", 3, Text),
            ("required", 4, Flag),
            ("schema", 5, One(&SCHEMA)),
        ],
        6,
    );
    static QUERY: Message = message(
        &[
            ("required", 1, Flag),
            ("in", 2, Text),
            ("description", 3, Text),
            ("name", 4, Text),
            ("type", 6, Text),
            ("uniqueItems", 20, Flag),
        ],
        23,
    );
    static PATH: Message = message(
        &[
            ("required", 1, Flag),
            ("in", 2, Text),
            ("description", 3, Text),
            ("name", 4, Text),
            ("type", 5, Text),
            ("uniqueItems", 19, Flag),
        ],
        22,
    );
    static IN_BODY: Kind = In(1, &In(1, &One(&BODY)));
    static IN_QUERY: Kind = In(1, &In(2, &In(3, &One(&QUERY))));
    static IN_PATH: Kind = In(1, &In(2, &In(4, &One(&PATH))));
    static PARAMETER: Kind = Choice(|parameter| match parameter["in"].as_str() {
        Some("body") => &IN_BODY,
        Some("path") => &IN_PATH,
        _ => &IN_QUERY,
    });
    static RESPONSE: Message = message(&[("description", 1, Text), ("schema", 2, In(1, &One(&SCHEMA)))], 5);
    static OPERATION: Message = message(
        &[
            ("tags", 1, Many(&Text)),
            ("description", 3, Text),
            ("operationId", 5, Text),
            ("produces", 6, Many(&Text)),
            ("consumes", 7, Many(&Text)),
            ("parameters", 8, Many(&PARAMETER)),
            ("responses", 9, Named(1, &In(1, &One(&RESPONSE)))),
            ("schemes", 10, Many(&Text)),
        ],
        13,
    );
    static ITEM: Message = message(
        &[
            ("get", 2, One(&OPERATION)),
            ("put", 3, One(&OPERATION)),
            ("post", 4, One(&OPERATION)),
            ("delete", 5, One(&OPERATION)),
            ("patch", 8, One(&OPERATION)),
            ("parameters", 9, Many(&PARAMETER)),
        ],
        10,
    );
    static KEY: Message =
        message(&[("type", 1, Text), ("name", 2, Text), ("in", 3, Text), ("description", 4, Text)], 5);
    /// The whole.
    pub(in super::super) static DOCUMENT: Message = message(
        &[
            ("swagger", 1, Text),
            ("info", 2, One(&INFO)),
            ("paths", 8, Named(2, &One(&ITEM))),
            ("definitions", 9, Named(1, &One(&SCHEMA))),
            ("security", 12, Many(&Named(1, &In(1, &TEXTS)))),
            ("securityDefinitions", 13, Named(1, &In(2, &One(&KEY)))),
        ],
        16,
    );
}

/// The messages of version 3.
mod v3 {
    use super::*;

    static REFERENCE: Message = message(&[("$ref", 1, Text)], 0);
    static A_REFERENCE: Kind = In(2, &One(&REFERENCE));
    static A_SCHEMA: Kind = In(1, &One(&SCHEMA));
    static SCHEMA_OR_REFERENCE: Kind =
        Choice(|schema| if schema.get("$ref").is_some() { &A_REFERENCE } else { &A_SCHEMA });
    static SCHEMA: Message = message(
        &[
            ("uniqueItems", 20, Flag),
            ("required", 23, Many(&Text)),
            ("enum", 24, Many(&Free)),
            ("type", 25, Text),
            ("allOf", 26, Many(&SCHEMA_OR_REFERENCE)),
            ("oneOf", 27, Many(&SCHEMA_OR_REFERENCE)),
            ("items", 30, In(1, &SCHEMA_OR_REFERENCE)),
            ("properties", 31, Named(1, &SCHEMA_OR_REFERENCE)),
            ("additionalProperties", 32, In(1, &SCHEMA_OR_REFERENCE)),
            ("default", 33, Plain),
            ("description", 34, Text),
            ("format", 35, Text),
        ],
        36,
    );
    static INFO: Message = message(&[("title", 1, Text), ("version", 6, Text)], 7);
    static PARAMETER: Message = message(
        &[
            ("name", 1, Text),
            ("in", 2, Text),
            ("description", 3, Text),
            ("required", 4, Flag),
            ("schema", 10, SCHEMA_CHOICE),
        ],
        14,
    );
    const SCHEMA_CHOICE: Kind = Choice(|_| &SCHEMA_OR_REFERENCE);
    static MEDIA: Message = message(&[("schema", 1, SCHEMA_CHOICE)], 5);
    static BODY: Message = message(&[("content", 2, Named(1, &One(&MEDIA))), ("required", 3, Flag)], 4);
    static RESPONSE: Message =
        message(&[("description", 1, Text), ("content", 3, Named(1, &One(&MEDIA)))], 5);
    static OPERATION: Message = message(
        &[
            ("tags", 1, Many(&Text)),
            ("description", 3, Text),
            ("operationId", 5, Text),
            ("parameters", 6, Many(&In(1, &One(&PARAMETER)))),
            ("requestBody", 7, In(1, &One(&BODY))),
            ("responses", 8, Named(2, &In(1, &One(&RESPONSE)))),
        ],
        13,
    );
    static ITEM: Message = message(
        &[
            ("get", 4, One(&OPERATION)),
            ("put", 5, One(&OPERATION)),
            ("post", 6, One(&OPERATION)),
            ("delete", 7, One(&OPERATION)),
            ("patch", 10, One(&OPERATION)),
            ("parameters", 13, Many(&In(1, &One(&PARAMETER)))),
        ],
        14,
    );
    static SCHEME: Message =
        message(&[("type", 1, Text), ("description", 2, Text), ("name", 3, Text), ("in", 4, Text)], 9);
    static COMPONENTS: Message = message(
        &[
            ("schemas", 1, Named(1, &SCHEMA_OR_REFERENCE)),
            ("securitySchemes", 7, Named(1, &In(1, &One(&SCHEME)))),
        ],
        10,
    );
    /// The whole.
    pub(in super::super) static DOCUMENT: Message = message(
        &[
            ("openapi", 1, Text),
            ("info", 2, One(&INFO)),
            ("paths", 4, Named(1, &One(&ITEM))),
            ("components", 5, One(&COMPONENTS)),
            ("security", 6, Many(&Named(1, &In(1, &TEXTS)))),
        ],
        9,
    );
}

pub(super) use v2::DOCUMENT as V2;
pub(super) use v3::DOCUMENT as V3;

/// Writes an object as a message. Parts of a document may be written one after another: a reader puts
/// together what comes in several parts.
pub(super) fn write(message: &Message, object: &Map<String, Value>, to: &mut Vec<u8>) {
    for (name, number, kind) in message.fields {
        if let Some(value) = object.get(*name) {
            field(*number, kind, value, to);
        }
    }
    if message.extensions == 0 {
        return;
    }
    for (name, value) in object.iter().filter(|(name, _)| name.starts_with("x-")) {
        named(message.extensions, name, &Free, value, to);
    }
}

fn field(number: u32, kind: &Kind, value: &Value, to: &mut Vec<u8>) {
    match kind {
        Text => delimited(number, value.as_str().unwrap_or_default().as_bytes(), to),
        Flag => {
            varint(u64::from(number) << 3, to);
            to.push(u8::from(value == &Value::Bool(true)));
        }
        Free => nested(number, to, |to| delimited(2, format!("{value}\n").as_bytes(), to)),
        Plain => plain(number, value, to),
        One(message) => nested(number, to, |to| {
            if let Value::Object(object) = value {
                write(message, object, to);
            }
        }),
        Many(kind) => {
            for item in value.as_array().into_iter().flatten() {
                field(number, kind, item, to);
            }
        }
        In(inner, kind) => nested(number, to, |to| field(*inner, kind, value, to)),
        Named(inner, kind) => nested(number, to, |to| {
            for (name, value) in value.as_object().into_iter().flatten() {
                named(*inner, name, kind, value, to);
            }
        }),
        Choice(choose) => field(number, choose(value), value, to),
    }
}

fn named(number: u32, name: &str, kind: &Kind, value: &Value, to: &mut Vec<u8>) {
    nested(number, to, |to| {
        delimited(1, name.as_bytes(), to);
        field(2, kind, value, to);
    });
}

/// `number` (1), `boolean` (2) or `string` (3).
fn plain(number: u32, value: &Value, to: &mut Vec<u8>) {
    const DOUBLE: u8 = 1 << 3 | 1;
    match value {
        Value::Bool(_) => nested(number, to, |to| field(2, &Flag, value, to)),
        Value::String(text) => nested(number, to, |to| delimited(3, text.as_bytes(), to)),
        Value::Number(value) => nested(number, to, |to| {
            to.push(DOUBLE);
            to.extend_from_slice(&value.as_f64().unwrap_or_default().to_le_bytes());
        }),
        _ => {}
    }
}

fn nested(number: u32, to: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    content(&mut inner);
    delimited(number, &inner, to);
}

fn delimited(number: u32, content: &[u8], to: &mut Vec<u8>) {
    varint(u64::from(number) << 3 | 2, to);
    varint(content.len() as u64, to);
    to.extend_from_slice(content);
}

fn varint(mut number: u64, to: &mut Vec<u8>) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}
