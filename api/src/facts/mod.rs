//! What Kubernetes declares of each field of each type: its type, whether it is required, how lists
//! and maps of it merge, and its constant default.
//!
//! `types.txt` holds one block a type (`= <type>`) with one line a field: name, type, then facts.
//! Types: `s` string, `y` bytes, `t` time, `i` and `l` integer of 32 and 64 bits, `n` number, `b` boolean,
//! `q` quantity, `?` integer or string, `*` anything, `@T` a type, `[]X` list, `{}X` map.
//! `zero` says of a field of a spec that its zero value is the same as none; what reports a state may say zero.
//! Strategic merge, unknown-field reports, defaulting, OpenAPI and server-side apply all read this table.

use std::collections::HashMap;
use std::sync::LazyLock;

/// The type of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Text.
    String,
    /// Bytes, in base64.
    Bytes,
    /// A point in time, RFC 3339.
    Time,
    /// A whole number of 32 bits.
    Int32,
    /// A whole number of 64 bits.
    Int64,
    /// A number.
    Number,
    /// True or false.
    Bool,
    /// A resource quantity.
    Quantity,
    /// A whole number or text.
    IntOrString,
    /// Anything at all, kept as it is.
    Any,
    /// A named type.
    Ref(&'static str),
    /// A list.
    List(Box<Shape>),
    /// A map from text.
    Map(Box<Shape>),
}

/// How server-side apply owns the items of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListType {
    /// The whole list has one owner.
    Atomic,
    /// Each value is owned by itself.
    Set,
    /// Items are maps told apart by these keys.
    Map(Vec<&'static str>),
}

/// What is declared of one field.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its type.
    pub shape: Shape,
    /// Whether it must be there.
    pub required: bool,
    /// How the list merges under server-side apply.
    pub list: Option<ListType>,
    /// Whether the map or struct has one owner under server-side apply.
    pub atomic: bool,
    /// Whether a strategic merge patch merges this list rather than replaces it.
    pub patch_merge: bool,
    /// Whether a strategic merge patch drops the keys that it does not name (`retainKeys`).
    pub patch_retain_keys: bool,
    /// The key by which a strategic merge patch tells items apart.
    pub merge_key: Option<&'static str>,
    /// Whether its zero value (`false`, `0`, the empty text) is the same as none, and never written.
    pub zero_is_none: bool,
    /// The constant default.
    pub default: Option<serde_json::Value>,
}

/// What is declared of one type.
#[derive(Clone, Debug)]
pub struct Type {
    /// The OpenAPI name, `io.k8s.api.core.v1.Pod`.
    pub name: &'static str,
    /// For a type without fields of its own: what it is on the wire.
    pub alias: Option<Shape>,
    /// Whether the whole has one owner under server-side apply.
    pub atomic: bool,
    /// Its fields, by name.
    pub fields: HashMap<&'static str, Field>,
}

static TYPES: LazyLock<HashMap<&'static str, Type>> = LazyLock::new(|| parse(include_str!("types.txt")));

/// The facts of a type by its OpenAPI name.
pub fn lookup(name: &str) -> Option<&'static Type> {
    TYPES.get(name)
}

/// All types, in no order.
pub fn all() -> impl Iterator<Item = &'static Type> {
    TYPES.values()
}

impl Shape {
    /// The type that this names, if it names one with fields.
    pub fn resolve(&self) -> Option<&'static Type> {
        match self {
            Self::Ref(name) => lookup(name).filter(|t| t.alias.is_none()),
            _ => None,
        }
    }

    /// The wire form: follows a name that stands for a simple type.
    pub fn wire(&self) -> &Shape {
        match self {
            Self::Ref(name) => lookup(name).and_then(|t| t.alias.as_ref()).unwrap_or(self),
            _ => self,
        }
    }
}

fn parse(text: &'static str) -> HashMap<&'static str, Type> {
    let mut types = HashMap::new();
    let mut current: Option<Type> = None;
    for line in text.lines() {
        let mut words = line.split(' ');
        let first = words.next().expect("split yields at least one part");
        if first == "=" {
            types.extend(current.take().map(|t| (t.name, t)));
            let name = words.next().expect("a type line names its type");
            let rest = words.next();
            let atomic = rest == Some("atomic");
            let alias = rest.filter(|_| !atomic).map(shape);
            current = Some(Type { name, alias, atomic, fields: HashMap::new() });
        } else {
            let fields = &mut current.as_mut().expect("a field line follows a type line").fields;
            fields.insert(first, field(words));
        }
    }
    types.extend(current.map(|t| (t.name, t)));
    types
}

fn shape(text: &'static str) -> Shape {
    match text {
        "s" => Shape::String,
        "y" => Shape::Bytes,
        "t" => Shape::Time,
        "i" => Shape::Int32,
        "l" => Shape::Int64,
        "n" => Shape::Number,
        "b" => Shape::Bool,
        "q" => Shape::Quantity,
        "?" => Shape::IntOrString,
        _ => {
            if let Some(item) = text.strip_prefix("[]") {
                Shape::List(Box::new(shape(item)))
            } else if let Some(item) = text.strip_prefix("{}") {
                Shape::Map(Box::new(shape(item)))
            } else if let Some(name) = text.strip_prefix('@') {
                Shape::Ref(name)
            } else {
                Shape::Any
            }
        }
    }
}

fn field(mut words: std::str::Split<'static, char>) -> Field {
    let mut field = Field {
        shape: shape(words.next().expect("a field line has a type")),
        required: false,
        list: None,
        atomic: false,
        patch_merge: false,
        patch_retain_keys: false,
        merge_key: None,
        zero_is_none: false,
        default: None,
    };
    for word in words {
        match word.split_once('=') {
            None if word == "required" => field.required = true,
            None if word == "zero" => field.zero_is_none = true,
            None => field.atomic = true,
            Some(("list", "atomic")) => field.list = Some(ListType::Atomic),
            Some(("list", "set")) => field.list = Some(ListType::Set),
            Some(("list", keys)) => {
                let keys = keys.strip_prefix("map:").expect("a list is atomic, set or map");
                field.list = Some(ListType::Map(keys.split(',').collect()));
            }
            Some(("patch", how)) => {
                let (strategies, key) = how.split_once(':').map_or((how, None), |(s, k)| (s, Some(k)));
                field.patch_merge = strategies.split(',').any(|s| s == "merge");
                field.patch_retain_keys = strategies.split(',').any(|s| s == "retainKeys");
                field.merge_key = key;
            }
            Some((_, json)) => {
                field.default = Some(serde_json::from_str(json).expect("a default is JSON"));
            }
        }
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_type_is_there() {
        fn check(shape: &Shape, at: &str) {
            match shape {
                Shape::Ref(name) => assert!(lookup(name).is_some(), "{at}: {name}"),
                Shape::List(item) | Shape::Map(item) => check(item, at),
                _ => {}
            }
        }
        assert!(all().count() > 500);
        for t in all() {
            for (name, field) in &t.fields {
                check(&field.shape, &format!("{}.{name}", t.name));
            }
        }
    }

    #[test]
    fn facts_of_a_container() {
        let container = lookup("io.k8s.api.core.v1.Container").unwrap();
        assert!(container.fields["name"].required);
        let ports = &container.fields["ports"];
        assert_eq!(ports.merge_key, Some("containerPort"));
        assert_eq!(ports.list, Some(ListType::Map(vec!["containerPort", "protocol"])));
        let volumes = &lookup("io.k8s.api.core.v1.PodSpec").unwrap().fields["volumes"];
        assert!(volumes.patch_merge && volumes.patch_retain_keys);
    }
}
