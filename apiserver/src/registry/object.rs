//! An object in flight: a JSON tree, its metadata, and how it is written for the store.

use bytes::Bytes;
use decapod_api::resource::Resource;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// `metadata` as a map, made if it is missing or something else.
pub(crate) fn meta_mut(object: &mut Value) -> &mut Map<String, Value> {
    map_mut(object, "metadata")
}

/// A field of the object as a map, made if it is missing or something else.
pub(crate) fn map_mut<'a>(object: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let slot = object.as_object_mut().expect("made a map above").entry(field).or_insert(Value::Null);
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut().expect("made a map above")
}

/// The items of a list deep in an object; none if it is not there. Nothing is made on the way,
/// as indexing would.
pub(crate) fn items_mut<'a>(object: &'a mut Value, path: &[&str]) -> impl Iterator<Item = &'a mut Value> {
    let list = path.iter().try_fold(object, |value, field| value.get_mut(*field));
    list.and_then(Value::as_array_mut).into_iter().flatten()
}

/// Sets a field of `metadata`, or removes it if the value is null.
pub(crate) fn set_meta(object: &mut Value, field: &str, value: Value) {
    let meta = meta_mut(object);
    if value.is_null() {
        meta.remove(field);
    } else {
        meta.insert(field.to_owned(), value);
    }
}

/// Copies a top-level field of `from`, or removes it where `from` has none.
pub(crate) fn copy_field(object: &mut Value, from: &Value, field: &str) {
    let Some(map) = object.as_object_mut() else { return };
    match from.get(field) {
        Some(value) => drop(map.insert(field.to_owned(), value.clone())),
        None => drop(map.remove(field)),
    }
}

/// The key of an object in the store.
pub(crate) fn key(resource: &Resource, namespace: &str, name: &str) -> Option<String> {
    let prefix = resource.key_prefix()?;
    Some(if resource.namespaced() {
        format!("{prefix}{namespace}/{name}")
    } else {
        format!("{prefix}{name}")
    })
}

/// The prefix of the keys of a namespace's objects, or of all if the namespace is empty.
pub(crate) fn prefix(resource: &Resource, namespace: &str) -> Option<String> {
    let prefix = resource.key_prefix()?;
    Some(if resource.namespaced() && !namespace.is_empty() {
        format!("{prefix}{namespace}/")
    } else {
        prefix
    })
}

/// The version of the object that a write rests on; empty where it rests on none, which `0` says, too.
pub(crate) fn version(object: &Value) -> &str {
    decapod_api::meta::text(object, "resourceVersion").filter(|version| *version != "0").unwrap_or_default()
}

/// The object as it is kept: without `resourceVersion` (the store's revision says it), and with
/// kind, apiVersion and metadata first, so that the revision can be put in place by a short scan.
pub(crate) fn encode(object: &Value) -> Bytes {
    let mut text = Vec::with_capacity(1024);
    text.push(b'{');
    let empty = Map::new();
    let map = object.as_object().unwrap_or(&empty);
    const FIRST: [&str; 2] = ["kind", "apiVersion"];
    for field in FIRST {
        if let Some(value) = map.get(field) {
            put(&mut text, field, value);
        }
    }
    let metadata = map.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    put(&mut text, "metadata", &Unversioned(metadata));
    for (field, value) in map {
        if field != "metadata" && !FIRST.contains(&field.as_str()) {
            put(&mut text, field, value);
        }
    }
    text.push(b'}');
    text.into()
}

/// Writes a field of the outermost object.
fn put(text: &mut Vec<u8>, key: &str, value: &impl Serialize) {
    if text.len() > 1 {
        text.push(b',');
    }
    serde_json::to_writer(&mut *text, key).expect("a string is written to memory");
    text.push(b':');
    serde_json::to_writer(text, value).expect("a JSON tree is written to memory");
}

/// `metadata` without its `resourceVersion`, written without a copy of it.
struct Unversioned<'a>(&'a Map<String, Value>);

impl Serialize for Unversioned<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().filter(|(field, _)| *field != "resourceVersion"))
    }
}

/// Reads what [`encode`] wrote, with the revision filled in.
pub(crate) fn decode(value: &[u8], revision: u64) -> Result<Value, serde_json::Error> {
    let mut object: Value = serde_json::from_slice(value)?;
    set_meta(&mut object, "resourceVersion", revision.to_string().into());
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn encoding_puts_metadata_first_and_drops_the_revision() {
        let object = json!({"data": {"x": "\"metadata\":{"}, "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"name": "a", "resourceVersion": "7"}});
        let bytes = encode(&object);
        let text = std::str::from_utf8(&bytes).unwrap();
        assert!(
            text.starts_with(r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"},"data""#),
            "{text}"
        );
        assert_eq!(decapod_api::meta::text(&decode(&bytes, 9).unwrap(), "resourceVersion"), Some("9"));
    }
}
