//! JSON as clients send it: parsed with a bound on depth, and with the fields named that are there twice.

use std::collections::HashMap;
use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The most duplicate fields that are reported of one body: a hostile body has millions.
const MAX_REPORTED: usize = 100;

/// A parsed body.
#[derive(Debug)]
pub struct Parsed {
    /// The value; of a duplicate field the last one.
    pub value: Value,
    /// The paths of fields that are there more than once, `spec.replicas`.
    pub duplicates: Vec<String>,
}

/// Parses JSON.
///
/// # Errors
/// What is malformed, with line and column; also when it is nested deeper than 128 levels.
pub fn parse(bytes: &[u8]) -> Result<Parsed, serde_json::Error> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value =
        Seed { path: &mut String::new(), duplicates: &mut duplicates }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(Parsed { value, duplicates })
}

/// Where in a document paths are: for each of `wanted`, the numbers of the fields that have it, counted
/// from the start.
pub fn positions<'w>(bytes: &[u8], wanted: &[&'w str]) -> HashMap<&'w str, Vec<usize>> {
    let mut found = Found { wanted, at: 0, positions: HashMap::new() };
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    // What does not parse has no positions; that it does not is told elsewhere.
    match (Locate { path: &mut String::new(), found: &mut found }).deserialize(&mut deserializer) {
        Ok(()) | Err(_) => found.positions,
    }
}

struct Found<'a, 'w> {
    wanted: &'a [&'w str],
    at: usize,
    positions: HashMap<&'w str, Vec<usize>>,
}

struct Locate<'a, 'b, 'w> {
    path: &'a mut String,
    found: &'a mut Found<'b, 'w>,
}

impl<'de> DeserializeSeed<'de> for Locate<'_, '_, '_> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Locate<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let length = self.path.len();
        for index in 0.. {
            self.path.push_str(&format!("[{index}]"));
            let item = seq.next_element_seed(Locate { path: self.path, found: self.found })?;
            self.path.truncate(length);
            if item.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let length = self.path.len();
        while let Some(key) = access.next_key::<String>()? {
            if length > 0 {
                self.path.push('.');
            }
            self.path.push_str(&key);
            self.found.at += 1;
            if let Some(path) = self.found.wanted.iter().find(|path| **path == self.path.as_str()) {
                self.found.positions.entry(path).or_default().push(self.found.at);
            }
            access.next_value_seed(Locate { path: self.path, found: self.found })?;
            self.path.truncate(length);
        }
        Ok(())
    }
}

struct Seed<'a> {
    path: &'a mut String,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
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

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        let length = self.path.len();
        loop {
            self.path.push_str(&format!("[{}]", items.len()));
            let item = seq.next_element_seed(Seed { path: self.path, duplicates: self.duplicates })?;
            self.path.truncate(length);
            match item {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        let length = self.path.len();
        while let Some(key) = access.next_key::<String>()? {
            if length > 0 {
                self.path.push('.');
            }
            self.path.push_str(&key);
            if map.contains_key(&key) && self.duplicates.len() < MAX_REPORTED {
                self.duplicates.push(self.path.clone());
            }
            let value = access.next_value_seed(Seed { path: self.path, duplicates: self.duplicates })?;
            self.path.truncate(length);
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_named_and_the_last_wins() {
        let parsed = parse(br#"{"a":1,"b":{"c":1,"c":2},"l":[{"x":1,"x":2}],"a":3}"#).unwrap();
        assert_eq!(parsed.duplicates, ["b.c", "l[0].x", "a"]);
        assert_eq!(parsed.value, serde_json::json!({"a": 3, "b": {"c": 2}, "l": [{"x": 2}]}));
    }

    #[test]
    fn positions_are_in_the_documents_order() {
        let found = positions(br#"{"a":1,"b":{"c":[{"d":1}]},"a":2}"#, &["a", "b.c[0].d", "x"]);
        assert_eq!((&found["a"], &found["b.c[0].d"], found.get("x")), (&vec![1, 5], &vec![4], None));
    }

    #[test]
    fn malformed_and_deep_are_errors() {
        assert!(parse(b"{\"a\":1} x").is_err());
        assert!(parse(b"{").is_err());
        assert!(parse("[".repeat(100_000).as_bytes()).is_err());
    }
}
