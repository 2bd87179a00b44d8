//! An applied configuration merged into the live object.

use serde_json::{Map, Value};

use super::element;
use super::place::Place;
use crate::facts::Type;

/// The live object with the configuration in it.
pub(super) fn merge(live: &Value, config: &Value, ty: &'static Type) -> Value {
    merged(live, config, Place::root(ty))
}

fn merged(live: &Value, config: &Value, place: Place) -> Value {
    match (place, live, config) {
        (Place::Struct(_) | Place::Map(_), Value::Object(live), Value::Object(config)) => {
            Value::Object(maps(live, config, place))
        }
        (Place::Set(_) | Place::Keyed(..), Value::Array(live), Value::Array(config)) => {
            Value::Array(lists(live, config, place))
        }
        // Null says nothing of what is below it.
        (Place::Struct(_) | Place::Map(_), Value::Object(map), Value::Null) if !map.is_empty() => {
            live.clone()
        }
        (Place::Set(_) | Place::Keyed(..), Value::Array(items), Value::Null) if !items.is_empty() => {
            live.clone()
        }
        _ => config.clone(),
    }
}

fn maps(live: &Map<String, Value>, config: &Map<String, Value>, place: Place) -> Map<String, Value> {
    let mut result = live.clone();
    for (name, value) in config {
        let value = match (live.get(name), place.entry(name)) {
            (Some(live), Some(place)) => merged(live, value, place),
            _ => value.clone(),
        };
        result.insert(name.clone(), value);
    }
    result
}

/// The configuration's order, with the live items that it does not name where they were relative to
/// those that it does.
fn lists(live: &[Value], config: &[Value], place: Place) -> Vec<Value> {
    let elements = |items: &[Value]| -> Vec<Option<String>> {
        items.iter().map(|item| element::of_item(place, item)).collect()
    };
    let (ours, theirs) = (elements(live), elements(config));
    let shared: Vec<bool> = ours.iter().map(|e| e.is_some() && theirs.contains(e)).collect();
    let mut result = Vec::with_capacity(live.len().max(config.len()));
    let mut at = 0;
    for (i, item) in config.iter().enumerate() {
        // The next of the configuration's items that is live already.
        let next = theirs[i..].iter().find(|e| e.is_some() && ours.contains(e));
        while at < live.len() {
            if !shared[at] {
                result.push(live[at].clone());
            } else if next == Some(&ours[at]) {
                break;
            }
            at += 1;
        }
        let mut known = ours.iter().enumerate().filter(|(_, e)| e.is_some() && **e == theirs[i]);
        let (first, again) = (known.next(), known.next());
        result.push(match (first, again) {
            (Some((l, _)), None) => merged(&live[l], item, place.item()),
            _ => item.clone(),
        });
        if at < live.len() && ours[at] == theirs[i] {
            at += 1;
        }
    }
    let rest = live[at..].iter().zip(&shared[at..]).filter(|(_, shared)| !**shared);
    result.extend(rest.map(|(item, _)| item.clone()));
    result
}
