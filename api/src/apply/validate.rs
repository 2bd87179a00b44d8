//! A configuration held against the schema before it is applied.

use serde_json::Value;

use super::element;
use super::place::Place;
use crate::facts::{Shape, Type};

/// The most errors that are told of one configuration.
const MAX_ERRORS: usize = 20;

/// What is wrong with a configuration: undeclared fields, values of another type, items that are
/// there twice. One per line, with their paths, as Kubernetes words it.
pub(super) fn check(config: &Value, ty: &'static Type) -> Result<(), String> {
    let mut errors = Vec::new();
    walk(config, Place::root(ty), "", &mut errors);
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(format!("errors:\n  {}", errors.join("\n  "))),
    }
}

fn add(errors: &mut Vec<String>, path: &str, why: &str) {
    if errors.len() < MAX_ERRORS {
        errors.push(if path.is_empty() { why.to_owned() } else { format!("{path}: {why}") });
    }
}

fn found(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

fn walk(value: &Value, place: Place, path: &str, errors: &mut Vec<String>) {
    match (place, value) {
        (_, Value::Null) | (Place::Atomic, _) => {}
        (Place::Scalar(shape), _) => scalar(value, shape, path, errors),
        (Place::Struct(_) | Place::Map(_), Value::Object(map)) => {
            for (name, value) in map {
                let below = format!("{path}.{name}");
                match place.entry(name) {
                    Some(place) => walk(value, place, &below, errors),
                    None => add(errors, &below, "field not declared in schema"),
                }
            }
        }
        (Place::Set(_) | Place::Keyed(..), Value::Array(items)) => list(items, place, path, errors),
        (Place::Struct(_) | Place::Map(_), _) => add(errors, path, &format!("expected map, got {value}")),
        (Place::Set(_) | Place::Keyed(..), _) => add(errors, path, &format!("expected list, got {value}")),
    }
}

fn scalar(value: &Value, shape: &Shape, path: &str, errors: &mut Vec<String>) {
    let wrong = match shape.wire() {
        Shape::Int32 | Shape::Int64 | Shape::Number if !value.is_number() => {
            format!("expected numeric (int or float), got {}", found(value))
        }
        Shape::Bool if !value.is_boolean() => format!("expected boolean, got &{{{value}}}"),
        Shape::String | Shape::Bytes | Shape::Time if !value.is_string() => {
            format!("expected string, got &value.valueUnstructured{{Value:{value}}}")
        }
        _ if value.is_object() || value.is_array() => format!("expected any scalar, got {value}"),
        _ => return,
    };
    add(errors, path, &wrong);
}

fn list(items: &[Value], place: Place, path: &str, errors: &mut Vec<String>) {
    let mut seen: Vec<String> = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let Some(element) = element::of_item(place, item) else {
            add(errors, path, &format!("element {i}: {}", unidentified(place, item)));
            return;
        };
        let shown = element::display(&element);
        if seen.contains(&element) {
            add(errors, path, &format!("duplicate entries for key {shown}"));
        }
        walk(item, place.item(), &format!("{path}{shown}"), errors);
        seen.push(element);
    }
}

fn unidentified(place: Place, item: &Value) -> String {
    match (place, item) {
        (Place::Keyed(..), Value::Null) => {
            "associative list with keys may not have a null element".to_owned()
        }
        (Place::Keyed(keys, _), Value::Object(_)) => {
            let quoted: Vec<String> = keys.iter().map(|k| format!("\"{k}\"")).collect();
            format!(
                "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
                quoted.join(" ")
            )
        }
        (Place::Keyed(..), _) => "associative list with keys may not have non-map elements".to_owned(),
        (_, Value::Object(_)) => "associative list without keys has an element that's a map type".to_owned(),
        (_, Value::Array(_)) => "not supported: associative list with lists as elements".to_owned(),
        _ => "associative list without keys has an element that's an explicit null".to_owned(),
    }
}
