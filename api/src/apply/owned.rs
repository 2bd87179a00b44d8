//! The fields of a configuration: what the manager that applies it is to own.

use serde_json::{Map, Value};

use super::element;
use super::place::Place;
use super::set::{FieldSet, Node, node, put};
use crate::facts::Type;

/// All fields that a configuration sets.
pub fn owned(config: &Value, ty: &'static Type) -> FieldSet {
    FieldSet::of(walk(config, Place::root(ty), false).unwrap_or_default())
}

fn walk(value: &Value, place: Place, member: bool) -> Node {
    match (place, value) {
        (Place::Struct(_) | Place::Map(_), Value::Object(map)) => {
            let mut children = Map::new();
            for (name, value) in map {
                let Some(below) = place.entry(name) else { continue };
                let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                put(&mut children, element::field(name), walk(value, below, empty || !place.declares(name)));
            }
            node(member, children)
        }
        (Place::Set(_) | Place::Keyed(..), Value::Array(items)) => {
            let mut children = Map::new();
            let mut twice = Vec::new();
            for item in items {
                let Some(element) = element::of_item(place, item) else { continue };
                if children.contains_key(&element) {
                    twice.push(element);
                } else {
                    put(&mut children, element, walk(item, place.item(), true));
                }
            }
            for element in twice {
                children.insert(element, Value::Object(Map::new()));
            }
            node(member, children)
        }
        (Place::Scalar(_) | Place::Atomic, _) => node(true, Map::new()),
        _ => node(member, Map::new()),
    }
}

/// The set with every struct's field a member below which there are members: what is removed as a
/// whole once all of it goes.
pub(super) fn named(set: &FieldSet, ty: &'static Type) -> FieldSet {
    FieldSet::of(with_names(set.root(), Some(Place::root(ty))))
}

fn with_names(children: &Map<String, Value>, place: Option<Place>) -> Map<String, Value> {
    let mut result = Map::new();
    for (element, member, below) in super::set::marks(children) {
        let name = element.strip_prefix("f:");
        let next = match (place, name) {
            (Some(place), Some(name)) => place.entry(name),
            (Some(place), None) => Some(place.item()),
            (None, _) => None,
        };
        let declared = name.is_some_and(|name| place.is_some_and(|p| p.declares(name)));
        put(&mut result, element, node(member || declared, with_names(below, next)));
    }
    result
}
