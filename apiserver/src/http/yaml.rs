//! YAML as Kubernetes reads it: into a JSON tree, with the keys named that are there twice.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{DuplicateKeyPolicy, Options, Spanned};

/// The most duplicate keys that are reported of one body: a hostile body has millions.
const MAX_REPORTED: usize = 100;

/// A parsed document.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// The value; of a duplicate key the last one.
    pub(crate) value: Value,
    /// The duplicate keys: `line 3: key "name" already set in map`.
    pub(crate) duplicates: Vec<String>,
}

/// As Kubernetes reads YAML: file modes are written 0400, and are octal.
fn options() -> Options {
    serde_saphyr::options! {
        legacy_octal_numbers: true,
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
    }
}

/// Parses one document.
///
/// # Errors
/// What is malformed.
pub(crate) fn parse(text: &str) -> Result<Parsed, String> {
    let mut duplicates = Vec::new();
    let value = serde_saphyr::with_deserializer_from_str_with_options(text, options(), |deserializer| {
        Seed(&mut duplicates).deserialize(deserializer)
    })
    .map_err(|e| e.to_string())?;
    Ok(Parsed { value, duplicates })
}

struct Seed<'a>(&'a mut Vec<String>);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Number::from_f64(v).map_or(Value::Null, Value::Number))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Seed(self.0))? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<Spanned<Key>>()? {
            let (line, Key(key)) = (key.referenced.line(), key.value);
            if map.contains_key(&key) && self.0.len() < MAX_REPORTED {
                self.0.push(format!("line {line}: key {key:?} already set in map"));
            }
            let value = access.next_value_seed(Seed(self.0))?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// A key: whatever scalar it is, its text is the field's name.
struct Key(String);

impl<'de> serde::Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Seed(&mut Vec::new()).deserialize(deserializer)? {
            Value::String(text) => Ok(Self(text)),
            scalar @ (Value::Number(_) | Value::Bool(_)) => Ok(Self(scalar.to_string())),
            other => Err(D::Error::custom(format!("unsupported map key: {other}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn duplicates_are_named_with_their_lines() {
        let parsed = parse("a: 1\nb:\n  c: 1\n  c: 2\nl:\n- x: 0400\n  x: yes\na: 3\n").unwrap();
        assert_eq!(
            parsed.duplicates,
            [
                "line 4: key \"c\" already set in map",
                "line 7: key \"x\" already set in map",
                "line 8: key \"a\" already set in map",
            ]
        );
        assert_eq!((&parsed.value["a"], &parsed.value["b"]["c"]), (&json!(3), &json!(2)));
    }

    #[test]
    fn json_is_yaml_and_anchors_are_bounded() {
        assert_eq!(parse("{\"a\": [1, null, \"x\"]}").unwrap().value, json!({"a": [1, null, "x"]}));
        assert_eq!(parse("a: &x {b: 1}\nc: *x\n").unwrap().value, json!({"a": {"b": 1}, "c": {"b": 1}}));
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..12 {
            let list = vec![format!("*a{}", i - 1); 10].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{list}]\n"));
        }
        assert!(parse(&bomb).is_err());
        assert!(parse("a: [").is_err() && parse("a: 1\n---\nb: 2\n").is_err());
    }
}
