//! Fields taken out of an object.

use serde_json::{Map, Value};

use super::element;
use super::place::Place;
use super::set::{FieldSet, marks};
use crate::facts::Type;

/// Takes out the members of a set. What becomes empty stays, as an empty map or list.
pub(super) fn remove(object: &mut Value, set: &FieldSet, ty: &'static Type) {
    below(object, set.root(), Place::root(ty));
}

fn below(value: &mut Value, set: &Map<String, Value>, place: Place) {
    match (place, value) {
        (Place::Struct(_) | Place::Map(_), Value::Object(map)) => {
            for (element, member, rest) in marks(set) {
                let Some(name) = element.strip_prefix("f:") else { continue };
                if member {
                    map.remove(name);
                } else if let (Some(value), Some(place)) = (map.get_mut(name), place.entry(name)) {
                    below(value, rest, place);
                }
            }
        }
        (Place::Set(_) | Place::Keyed(..), Value::Array(items)) => items.retain_mut(|item| {
            let found = element::of_item(place, item).and_then(|e| set.get(&e)?.as_object());
            let Some(rest) = found else { return true };
            if rest.is_empty() || rest.contains_key(".") {
                return false;
            }
            below(item, rest, place.item());
            true
        }),
        _ => {}
    }
}
