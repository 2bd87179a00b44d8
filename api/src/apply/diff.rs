//! What a write added, modified and removed.

use serde_json::{Map, Value};

use super::element;
use super::place::Place;
use super::set::{FieldSet, Node, node, put};
use crate::facts::Type;

/// The difference between two states of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// The fields that were not there before.
    pub added: FieldSet,
    /// The fields whose value changed.
    pub modified: FieldSet,
    /// The fields that are no longer there.
    pub removed: FieldSet,
}

impl Diff {
    /// What the writer set, added or modified, and what it removed.
    pub(super) fn split(self) -> (FieldSet, FieldSet) {
        let Self { added, modified, removed } = self;
        let written = match (added.is_empty(), modified.is_empty()) {
            (_, true) => added,
            (true, _) => modified,
            _ => added.union(&modified),
        };
        (written, removed)
    }

    /// Takes out paths and all below them.
    pub(super) fn exclude(&mut self, fields: &[&str]) {
        for set in [&mut self.added, &mut self.modified, &mut self.removed] {
            set.exclude(fields);
        }
    }
}

/// Compares two states of an object of this type.
pub fn diff(old: &Value, new: &Value, ty: &'static Type) -> Diff {
    let Parts { added, modified, removed } = compare(Some(old), Some(new), Place::root(ty));
    let set = |node: Node| FieldSet::of(node.unwrap_or_default());
    Diff { added: set(added), modified: set(modified), removed: set(removed) }
}

/// The difference at one place.
#[derive(Default)]
struct Parts {
    added: Node,
    modified: Node,
    removed: Node,
}

/// The differences below one place.
#[derive(Default)]
struct Below {
    added: Map<String, Value>,
    modified: Map<String, Value>,
    removed: Map<String, Value>,
}

impl Below {
    fn put(&mut self, element: &str, parts: Parts) {
        put(&mut self.added, element, parts.added);
        put(&mut self.modified, element, parts.modified);
        put(&mut self.removed, element, parts.removed);
    }
}

fn leaf(old: Option<&Value>, new: Option<&Value>) -> Parts {
    let here = || Some(Map::new());
    match (old, new) {
        (None, Some(_)) => Parts { added: here(), ..Parts::default() },
        (Some(_), None) => Parts { removed: here(), ..Parts::default() },
        (Some(old), Some(new)) if !same(old, new) => Parts { modified: here(), ..Parts::default() },
        _ => Parts::default(),
    }
}

/// Equality, with numbers compared as numbers.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

fn compare(old: Option<&Value>, new: Option<&Value>, place: Place) -> Parts {
    let below = match place {
        Place::Scalar(_) | Place::Atomic => None,
        _ if old == new => return Parts::default(),
        Place::Struct(_) | Place::Map(_) => maps(old, new, place),
        Place::Set(_) | Place::Keyed(..) => lists(old, new, place),
    };
    let Some(below) = below else { return leaf(old, new) };
    Parts {
        added: node(old.is_none(), below.added),
        modified: node(false, below.modified),
        removed: node(new.is_none(), below.removed),
    }
}

/// `None`: to be compared as a whole, as both are empty or one is of another type.
fn maps(old: Option<&Value>, new: Option<&Value>, place: Place) -> Option<Below> {
    static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    let map = |side: Option<&Value>| match side {
        Some(Value::Object(_)) | Some(Value::Null) | None => true,
        Some(_) => false,
    };
    if !map(old) || !map(new) {
        return None;
    }
    let before = old.and_then(Value::as_object).unwrap_or(&EMPTY);
    let after = new.and_then(Value::as_object).unwrap_or(&EMPTY);
    if before.is_empty() && after.is_empty() {
        return None;
    }
    let mut below = Below::default();
    let mut field = |name: &str, from: Option<&Value>, to: Option<&Value>| {
        // What its type does not declare is nobody's.
        let Some(place_below) = place.entry(name) else { return };
        let from = from.or_else(|| old.and_then(|_| place.implied(name)));
        let to = to.or_else(|| new.and_then(|_| place.implied(name)));
        let parts = compare(from, to, place_below);
        if parts.added.is_some() || parts.modified.is_some() || parts.removed.is_some() {
            below.put(&element::field(name), parts);
        }
    };
    for (name, from) in before {
        field(name, Some(from), after.get(name));
    }
    for (name, to) in after {
        if !before.contains_key(name) {
            field(name, None, Some(to));
        }
    }
    Some(below)
}

/// The items of a list by what tells them apart; more than one where the client said the same twice.
fn index(list: Option<&Value>, place: Place) -> Vec<(String, Vec<&Value>)> {
    let mut items: Vec<(String, Vec<&Value>)> = Vec::new();
    for item in list.and_then(Value::as_array).into_iter().flatten() {
        let Some(element) = element::of_item(place, item) else { continue };
        match items.iter_mut().find(|(known, _)| *known == element) {
            Some((_, same)) => same.push(item),
            None => items.push((element, vec![item])),
        }
    }
    items
}

fn lists(old: Option<&Value>, new: Option<&Value>, place: Place) -> Option<Below> {
    let list = |side: Option<&Value>| matches!(side, Some(Value::Array(_) | Value::Null) | None);
    if !list(old) || !list(new) {
        return None;
    }
    let (before, after) = (index(old, place), index(new, place));
    if before.is_empty() && after.is_empty() {
        return None;
    }
    let mut below = Below::default();
    for (element, from) in &before {
        let to = after.iter().find(|(known, _)| known == element).map_or(&[][..], |(_, same)| same);
        below.put(element, items(from, to, place.item()));
    }
    for (element, to) in &after {
        if !before.iter().any(|(known, _)| known == element) {
            below.put(element, items(&[], to, place.item()));
        }
    }
    Some(below)
}

/// Items that are told apart by the same element. Two or more on one side are compared as a whole.
fn items(from: &[&Value], to: &[&Value], place: Place) -> Parts {
    let first = |side: &[&Value]| -> Option<Value> { side.first().map(|v| (*v).clone()) };
    match (from.len(), to.len()) {
        (0 | 1, 0 | 1) => compare(from.first().copied(), to.first().copied(), place),
        (2.., 2..) if from == to => Parts::default(),
        (2.., 2..) => Parts { modified: Some(Map::new()), ..Parts::default() },
        (2.., _) => {
            let new = first(to);
            let mut parts = new.as_ref().map_or_else(Parts::default, |v| compare(None, Some(v), place));
            parts.removed = Some(Map::new());
            parts
        }
        _ => {
            let old = first(from);
            let mut parts = old.as_ref().map_or_else(Parts::default, |v| compare(Some(v), None, place));
            parts.added = Some(Map::new());
            parts
        }
    }
}
