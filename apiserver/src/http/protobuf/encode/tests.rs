use decapod_api::facts::{self, Shape};
use decapod_api::resource::RESOURCES;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::json;

use super::super::decode;
use super::*;

/// Types nested deeper than this have no optional fields: they may contain themselves.
const DEPTH: usize = 6;

/// An object of a type with every field, or each with a chance: all that an encoder may meet, but for values
/// that protobuf cannot tell from absent ones.
fn object(name: &str, depth: usize, chance: &mut impl FnMut() -> bool) -> Value {
    let ty = facts::lookup(name).unwrap_or_else(|| panic!("{name}"));
    if let Some(alias) = &ty.alias {
        return value(name, alias, depth, chance);
    }
    let mut fields: Vec<_> = ty.fields.iter().collect();
    fields.sort_by_key(|(name, _)| **name);
    let mut object = Map::new();
    for (field, facts) in fields {
        if matches!(*field, "apiVersion" | "kind")
            && facts::lookup(name).is_some_and(|t| t.fields.contains_key("metadata"))
        {
            continue;
        }
        if chance() && (depth < DEPTH || !nests(&facts.shape)) {
            object.insert((*field).to_owned(), value(field, &facts.shape, depth, chance));
        }
    }
    Value::Object(object)
}

fn nests(shape: &Shape) -> bool {
    match shape {
        Shape::Ref(_) => shape.resolve().is_some(),
        Shape::List(item) | Shape::Map(item) => nests(item),
        _ => false,
    }
}

fn value(field: &str, shape: &Shape, depth: usize, chance: &mut impl FnMut() -> bool) -> Value {
    match shape.wire() {
        Shape::String => "text".into(),
        Shape::Bytes => "AAEC".into(),
        Shape::Time
            if field.ends_with("MicroTime")
                || matches!(field, "eventTime" | "lastObservedTime" | "acquireTime" | "renewTime") =>
        {
            "2024-02-03T04:05:06.000007Z".into()
        }
        Shape::Time => "2024-02-03T04:05:06Z".into(),
        Shape::Int32 | Shape::Int64 => 7.into(),
        Shape::Number => 2.5.into(),
        Shape::Bool => true.into(),
        Shape::Quantity => "100m".into(),
        Shape::IntOrString => {
            if chance() {
                json!("50%")
            } else {
                json!(8080)
            }
        }
        Shape::Any => json!({"f:a": {}}),
        Shape::Ref(name) => object(name, depth + 1, chance),
        Shape::List(item) => json!([value(field, item, depth + 1, chance)]),
        Shape::Map(item) => json!({"key": value(field, item, depth + 1, chance)}),
    }
}

fn rows() -> impl Iterator<Item = &'static decapod_api::resource::Resource> {
    RESOURCES.iter().filter(|row| encodes(&row.api_version(), row.kind))
}

fn whole(row: &decapod_api::resource::Resource, chance: &mut impl FnMut() -> bool) -> Value {
    let mut object = object(row.type_name, 0, chance);
    object["apiVersion"] = row.api_version().into();
    object["kind"] = row.kind.into();
    object
}

#[test]
fn nearly_every_kind_has_a_form() {
    let without: Vec<_> =
        RESOURCES.iter().filter(|row| !encodes(&row.api_version(), row.kind)).map(|r| r.kind).collect();
    assert_eq!(without, ["CustomResourceDefinition", "APIService"]);
}

#[test]
fn every_field_of_every_kind_survives() {
    for row in rows() {
        let object = whole(row, &mut || true);
        let bytes = encode(&object).unwrap_or_else(|e| panic!("{}: {e}", row.kind));
        let read = decode(&bytes).unwrap_or_else(|e| panic!("{}: {e}", row.kind));
        assert_eq!(without_empty(read), without_empty(object), "{}", row.kind);
    }
}

#[test]
fn objects_survive() {
    let rows: Vec<_> = rows().collect();
    let mut runner = TestRunner::default();
    let cases = (0..rows.len(), proptest::collection::vec(any::<bool>(), 1..64));
    let result = runner.run(&cases, |(row, choices)| {
        let mut turn = choices.iter().cycle();
        let object = whole(rows[row], &mut || turn.next().copied().unwrap_or(true));
        let read = decode(&encode(&object).unwrap()).unwrap();
        prop_assert_eq!(without_empty(read), without_empty(object));
        Ok(())
    });
    result.unwrap();
}

/// An empty structure is the same as none.
fn without_empty(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let members = object.into_iter().map(|(name, value)| (name, without_empty(value)));
            Value::Object(members.filter(|(_, value)| value != &json!({}) && value != &json!([{}])).collect())
        }
        Value::Array(items) => items.into_iter().map(without_empty).collect(),
        other => other,
    }
}

#[test]
fn lists_events_and_refusals() {
    let list = json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"},
        "items": [{"metadata": {"name": "a"}, "data": {"k": "v"}}]});
    let bytes = encode(&list).unwrap();
    assert!(bytes.starts_with(b"k8s\0"));
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(text.contains("ConfigMapList") && text.contains('7'), "{text}");
    let map = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}, "data": {"k": "v"}});
    let items = std::iter::once(bare(&map).map(Bytes::from));
    assert_eq!(super::list("v1", "ConfigMapList", &list["metadata"], items).unwrap(), bytes);
    let event = frame("ADDED", b"xyz");
    assert_eq!(&event[..], b"\0\0\0\x0e\x0a\x05ADDED\x12\x05\x0a\x03xyz");
    assert!(matches!(encode(&json!({"kind": "Nope", "apiVersion": "v1"})), Err(Error::Unknown(_))));
    let wrong = json!({"kind": "ConfigMap", "apiVersion": "v1", "data": ["x"]});
    assert!(matches!(encode(&wrong), Err(Error::Mismatch("data"))));
}
