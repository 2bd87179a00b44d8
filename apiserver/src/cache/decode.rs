//! From a stored value to what is served of it and what selectors need of it.
//!
//! The value is gone through once, without building a tree: only labels, the selectable fields and
//! the place where the revision belongs are taken out of it.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use decapod_storage::Entry;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::pairs::{Builder, Pairs};

/// Any error.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How the values of one row are read: as they are, or converted, or deciphered first.
pub(crate) trait Decode: Send + Sync + 'static {
    /// The object as it is served, but for its `resourceVersion`, and the facts about it.
    fn decode(&self, entry: &Entry) -> Result<Decoded, BoxError>;
}

/// What is served of a value.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// The object's JSON, without `metadata.resourceVersion`. Where it is the stored value itself,
    /// the same bytes: the store keeps them in memory already.
    pub(crate) body: Bytes,
    /// What [`Scanner::scan`] found in the body.
    pub(crate) facts: Facts,
}

/// What selectors need of an object.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(super) labels: Pairs,
    pub(super) fields: Pairs,
    /// Where `"resourceVersion":"…"` goes, and whether a comma has to follow it.
    pub(super) splice: usize,
    pub(super) comma: bool,
}

/// A field that objects of a row can be selected by, besides `metadata.name` and
/// `metadata.namespace`.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    /// As field selectors name it.
    pub(crate) name: String,
    /// Where it is: keys joined by dots.
    pub(crate) path: String,
    /// Where it is if there it is absent, null or empty.
    pub(crate) otherwise: Option<String>,
    /// As what it counts if it is absent or null.
    pub(crate) default: String,
}

impl Field {
    /// A field that is where its name says.
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), path: name.to_owned(), otherwise: None, default: String::new() }
    }
}

/// Takes the facts out of the objects of one row.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    fields: Vec<Field>,
    root: Node,
}

/// The paths of the fields as a tree.
#[derive(Debug, Default)]
struct Node {
    children: Vec<(String, Node)>,
    /// The fields that are here, by their number; those that are here otherwise, by theirs after all.
    fields: Vec<usize>,
}

impl Node {
    fn child(&self, key: &str) -> Option<&Self> {
        self.children.iter().find(|(name, _)| name == key).map(|(_, node)| node)
    }

    fn at(&mut self, path: &str) -> &mut Self {
        path.split('.').fold(self, |node, key| {
            let known = node.children.iter().position(|(name, _)| name == key);
            let index = known.unwrap_or_else(|| {
                node.children.push((key.to_owned(), Self::default()));
                node.children.len() - 1
            });
            &mut node.children[index].1
        })
    }
}

impl Scanner {
    /// For a row with these fields.
    pub(crate) fn new(fields: Vec<Field>) -> Self {
        let mut root = Node::default();
        for (number, field) in fields.iter().enumerate() {
            root.at(&field.path).fields.push(number);
            if let Some(otherwise) = &field.otherwise {
                root.at(otherwise).fields.push(fields.len() + number);
            }
        }
        Self { fields, root }
    }

    /// The facts of an object; fails if it is no JSON object with `metadata`.
    pub(crate) fn scan(&self, body: &[u8]) -> Result<Facts, BoxError> {
        let text = std::str::from_utf8(body)?;
        let mut found: Vec<Option<String>> = vec![None; 2 * self.fields.len()];
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let top = Top { root: &self.root, found: &mut found };
        let metadata = deserializer.deserialize_map(top)?.ok_or("the object has no metadata")?;
        deserializer.end()?;

        let mut labels = Builder::default();
        let meta = Meta { labels: &mut labels, node: self.root.child("metadata"), found: &mut found };
        serde_json::Deserializer::from_str(metadata).deserialize_map(meta)?;
        let inside = metadata.strip_prefix('{').ok_or("metadata is no object")?;
        let splice = inside.as_ptr().addr() - text.as_ptr().addr();
        let comma = !inside.trim_start().starts_with('}');

        let (first, second) = found.split_at(self.fields.len());
        let values = self.fields.iter().zip(first.iter().zip(second));
        let fields = values.map(|(field, (first, second))| {
            let value =
                first.as_ref().filter(|value| !value.is_empty()).or(second.as_ref()).or(first.as_ref());
            (&field.name, value.unwrap_or(&field.default))
        });
        Ok(Facts { labels: labels.build(), fields: fields.collect(), splice, comma })
    }
}

/// A row whose values are served as they are stored.
#[derive(Debug, Default)]
pub(crate) struct AsStored(pub(crate) Scanner);

impl Decode for AsStored {
    fn decode(&self, entry: &Entry) -> Result<Decoded, BoxError> {
        Ok(Decoded { body: entry.value.clone(), facts: self.0.scan(&entry.value)? })
    }
}

/// A text that is borrowed from the input unless it holds escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The object: finds `metadata`, and the fields elsewhere.
struct Top<'a> {
    root: &'a Node,
    found: &'a mut Vec<Option<String>>,
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = Option<&'de str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut metadata = None;
        while let Some(Text(key)) = map.next_key()? {
            if key == "metadata" {
                metadata = Some(map.next_value::<&RawValue>()?.get());
            } else if let Some(node) = self.root.child(&key) {
                map.next_value_seed(Walk { node, found: self.found })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(metadata)
    }
}

/// `metadata`: finds the labels, and the fields here.
struct Meta<'a> {
    labels: &'a mut Builder,
    node: Option<&'a Node>,
    found: &'a mut Vec<Option<String>>,
}

impl<'de> Visitor<'de> for Meta<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Text(key)) = map.next_key()? {
            if key == "labels" {
                map.next_value_seed(Labels(self.labels))?;
            } else if let Some(node) = self.node.and_then(|node| node.child(&key)) {
                map.next_value_seed(Walk { node, found: self.found })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct Labels<'a>(&'a mut Builder);

impl<'de> DeserializeSeed<'de> for Labels<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Labels<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("labels")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((Text(name), Text(value))) = map.next_entry()? {
            self.0.push(&name, &value);
        }
        Ok(())
    }
}

/// Goes down to the fields under a node.
struct Walk<'a> {
    node: &'a Node,
    found: &'a mut Vec<Option<String>>,
}

impl Walk<'_> {
    fn set(self, value: impl Into<String>) {
        let value = value.into();
        for field in &self.node.fields {
            self.found[*field] = Some(value.clone());
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Text(key)) = map.next_key()? {
            match self.node.child(&key) {
                Some(node) => map.next_value_seed(Walk { node, found: self.found })?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    /// Nothing is selected by a list.
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.set(value);
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.set(value.to_string());
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.set(value.to_string());
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.set(value.to_string());
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.set(value.to_string());
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod_scanner() -> Scanner {
        let phase = Field { default: "Unknown".to_owned(), ..Field::new("status.phase") };
        let moved = Field { path: "status.succeeded".to_owned(), ..Field::new("status.successful") };
        Scanner::new(vec![Field::new("spec.nodeName"), phase, moved, Field::new("metadata.extra.a")])
    }

    fn scan(body: &str) -> Facts {
        pod_scanner().scan(body.as_bytes()).unwrap()
    }

    #[test]
    fn facts_are_found_wherever_they_are() {
        let body = r#" {"spec":{"metadata":{"labels":{"no":"no"}},"nodeName":"n\"1","containers":[{}]},
            "status":{"phase":null,"succeeded":3},
            "metadata" : {"name":"a","labels":{"app":"w\u00e9b","x":""},"extra":{"a":true}},"kind":"Pod"}"#;
        let facts = scan(body);
        assert_eq!(facts.labels.iter().collect::<Vec<_>>(), [("app", "wéb"), ("x", "")]);
        let fields: Vec<_> = facts.fields.iter().collect();
        assert_eq!(
            fields,
            [
                ("spec.nodeName", "n\"1"),
                ("status.phase", "Unknown"),
                ("status.successful", "3"),
                ("metadata.extra.a", "true")
            ]
        );
        assert!(body[facts.splice..].starts_with(r#""name":"a""#));
        assert!(facts.comma);
    }

    #[test]
    fn what_is_absent_has_its_default() {
        let facts = scan(r#"{"metadata":{ },"spec":null,"status":[1,"x"]}"#);
        assert_eq!(facts.fields.get("status.phase"), Some("Unknown"));
        assert_eq!(facts.fields.get("spec.nodeName"), Some(""));
        assert_eq!(facts.labels, Pairs::default());
        assert_eq!((facts.splice, facts.comma), (13, false));
        assert_eq!(scan(r#"{"metadata":{"labels":null}}"#).labels, Pairs::default());
    }

    #[test]
    fn a_field_may_be_in_one_of_two_places() {
        let source = Field {
            path: "source.component".to_owned(),
            otherwise: Some("reportingComponent".to_owned()),
            ..Field::new("source")
        };
        let scanner = Scanner::new(vec![Field::new("reportingComponent"), source]);
        let source = |object: &str| {
            let facts = scanner.scan(object.as_bytes()).unwrap();
            facts.fields.get("source").unwrap().to_owned()
        };
        assert_eq!(source(r#"{"metadata":{},"reportingComponent":"b","source":{"component":"a"}}"#), "a");
        assert_eq!(source(r#"{"metadata":{},"reportingComponent":"b","source":{"component":""}}"#), "b");
        assert_eq!(source(r#"{"metadata":{},"reportingComponent":"b","source":{}}"#), "b");
        assert_eq!(source(r#"{"metadata":{},"source":{"component":""}}"#), "");
        assert_eq!(source(r#"{"metadata":{}}"#), "");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for bad in
            ["", "[]", "{}", r#"{"metadata":3}"#, r#"{"metadata":{"labels":3}}"#, r#"{"metadata":{}} x"#]
        {
            assert!(pod_scanner().scan(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(pod_scanner().scan(b"{\"metadata\":{\"a\":\"\xff\"}}").is_err());
    }
}
