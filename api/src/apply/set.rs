//! Sets of field paths, in the form in which they are stored.
//!
//! A set is a tree of path elements: `f:<field>`, `k:<keys of a list's item>`, `v:<value>`. A node
//! with an empty map is a member; one with children is a member only if it also holds `.`.

use serde_json::{Map, Value};

use super::element;

/// What marks a node with children as a member.
const MEMBER: &str = ".";

/// A set of field paths (`FieldsV1`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet(Map<String, Value>);

/// How two sets are combined.
#[derive(Clone, Copy)]
enum Combine {
    Union,
    Intersection,
}

impl Combine {
    fn member(self, a: bool, b: bool) -> bool {
        match self {
            Self::Union => a || b,
            Self::Intersection => a && b,
        }
    }
}

/// A node of a set: what is owned at one place and below; `None`: nothing.
pub(super) type Node = Option<Map<String, Value>>;

/// A node that is a member, or not, with these children.
pub(super) fn node(member: bool, mut children: Map<String, Value>) -> Node {
    if children.is_empty() {
        return member.then(Map::new);
    }
    if member {
        children.insert(MEMBER.to_owned(), Value::Object(Map::new()));
    }
    Some(children)
}

/// Adds a node to its parent's children, if it holds anything.
pub(super) fn put(children: &mut Map<String, Value>, element: impl Into<String>, node: Node) {
    if let Some(node) = node {
        children.insert(element.into(), Value::Object(node));
    }
}

fn is_member(node: &Map<String, Value>) -> bool {
    node.is_empty() || node.contains_key(MEMBER)
}

fn child<'a>(node: Option<&'a Map<String, Value>>, element: &str) -> Option<&'a Map<String, Value>> {
    node?.get(element)?.as_object()
}

fn elements(node: &Map<String, Value>) -> impl Iterator<Item = (&String, &Map<String, Value>)> {
    node.iter().filter(|(key, _)| *key != MEMBER).filter_map(|(key, value)| Some((key, value.as_object()?)))
}

fn children_of(
    a: Option<&Map<String, Value>>,
    b: Option<&Map<String, Value>>,
    how: Combine,
) -> Map<String, Value> {
    let mut children = Map::new();
    for (element, node) in a.into_iter().flat_map(elements) {
        put(&mut children, element, combine(Some(node), child(b, element), how));
    }
    if matches!(how, Combine::Union) {
        for (element, node) in b.into_iter().flat_map(elements) {
            if child(a, element).is_none() {
                children.insert(element.clone(), Value::Object(node.clone()));
            }
        }
    }
    children
}

fn combine(a: Option<&Map<String, Value>>, b: Option<&Map<String, Value>>, how: Combine) -> Node {
    match (a, b, how) {
        (None, _, Combine::Intersection) | (_, None, Combine::Intersection) => None,
        (Some(a), None, Combine::Union) => Some(a.clone()),
        (None, b, Combine::Union) => b.cloned(),
        (Some(a), Some(b), _) => {
            node(how.member(is_member(a), is_member(b)), children_of(Some(a), Some(b), how))
        }
    }
}

impl FieldSet {
    /// Whether it holds no path.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// What is no set of field paths, in words.
    pub fn parse(value: &Value) -> Result<Self, String> {
        let map = value.as_object().ok_or("expected a map of fields")?;
        Ok(Self(checked(map)?))
    }

    /// Takes the stored form of which it is known that it is one.
    pub(super) fn trusted(value: Value) -> Self {
        match value {
            Value::Object(map) => Self(map),
            _ => Self::default(),
        }
    }

    /// The stored form.
    pub fn into_value(self) -> Value {
        Value::Object(self.0)
    }

    /// The set of these children.
    pub(super) fn of(children: Map<String, Value>) -> Self {
        Self(children)
    }

    /// The nodes at the root.
    pub(super) fn root(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The set of one path of fields.
    pub fn path(fields: &[&str]) -> Self {
        let leaf = fields.iter().rev().fold(Map::new(), |below, field| {
            let mut map = Map::new();
            map.insert(element::field(field), Value::Object(below));
            map
        });
        Self(leaf)
    }

    /// What is in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self(children_of(Some(&self.0), Some(&other.0), Combine::Union))
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(children_of(Some(&self.0), Some(&other.0), Combine::Intersection))
    }

    /// What is in this one only.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        rest.subtract(other);
        rest
    }

    /// Takes out what is in another one. Costs as much as the other one is large.
    pub fn subtract(&mut self, other: &Self) {
        subtract(&mut self.0, &other.0);
    }

    /// Takes out a path of fields and all below it.
    pub fn exclude(&mut self, fields: &[&str]) {
        exclude(&mut self.0, fields);
    }

    /// Whether a path of fields is a member.
    pub fn has(&self, fields: &[&str]) -> bool {
        let found = fields.iter().try_fold(&self.0, |node, field| child(Some(node), &element::field(field)));
        found.is_some_and(is_member) && !fields.is_empty()
    }

    /// All members, as Kubernetes writes paths: `.spec.ports[port=80,protocol="TCP"]`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        list(&self.0, "", &mut paths);
        paths
    }
}

fn subtract(node: &mut Map<String, Value>, other: &Map<String, Value>) {
    for (element, theirs) in elements(other) {
        let Some(Value::Object(ours)) = node.get_mut(element) else { continue };
        let member = is_member(ours) && !is_member(theirs);
        ours.remove(MEMBER);
        subtract(ours, theirs);
        match (ours.is_empty(), member) {
            (true, false) => drop(node.remove(element)),
            (false, true) => drop(ours.insert(MEMBER.to_owned(), Value::Object(Map::new()))),
            _ => {}
        }
    }
}

fn list(node: &Map<String, Value>, path: &str, paths: &mut Vec<String>) {
    for (element, node) in elements(node) {
        let here = format!("{path}{}", element::display(element));
        if is_member(node) {
            paths.push(here.clone());
        }
        list(node, &here, paths);
    }
}

fn exclude(node: &mut Map<String, Value>, fields: &[&str]) {
    let Some((first, rest)) = fields.split_first() else { return };
    let element = element::field(first);
    if rest.is_empty() {
        node.remove(&element);
        return;
    }
    if let Some(Value::Object(below)) = node.get_mut(&element)
        && !below.is_empty()
    {
        exclude(below, rest);
        if below.is_empty() {
            node.remove(&element);
        }
    }
}

fn checked(map: &Map<String, Value>) -> Result<Map<String, Value>, String> {
    let mut result = Map::new();
    for (key, value) in map {
        let value = value.as_object().ok_or_else(|| format!("{key}: expected a map"))?;
        let key = if key == MEMBER { key.clone() } else { element::canonical(key)? };
        result.insert(key, Value::Object(checked(value)?));
    }
    Ok(result)
}

/// The children of a node that are to be taken as members, and those below which there are members.
pub(super) fn marks(node: &Map<String, Value>) -> impl Iterator<Item = (&String, bool, &Map<String, Value>)> {
    elements(node).map(|(element, node)| (element, is_member(node), node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(value: Value) -> FieldSet {
        FieldSet::parse(&value).unwrap()
    }

    #[test]
    fn members_with_and_without_children() {
        let a = set(json!({"f:m": {"f:l": {".": {}, "f:x": {}}}, "f:s": {"f:r": {}}}));
        assert_eq!(a.paths(), [".m.l", ".m.l.x", ".s.r"]);
        assert!(a.has(&["m", "l"]) && !a.has(&["m"]) && !a.has(&["s", "q"]));
        let b = set(json!({"f:m": {"f:l": {}}, "f:s": {"f:q": {}}}));
        assert_eq!(a.difference(&b).into_value(), json!({"f:m": {"f:l": {"f:x": {}}}, "f:s": {"f:r": {}}}));
        assert_eq!(a.intersection(&b).into_value(), json!({"f:m": {"f:l": {}}}));
        assert_eq!(
            a.union(&b).into_value(),
            json!({"f:m": {"f:l": {".": {}, "f:x": {}}}, "f:s": {"f:q": {}, "f:r": {}}})
        );
        assert!(a.difference(&a).is_empty());
        // A member that loses all its children is still one, and a parent that is none goes with them.
        let below = set(json!({"f:m": {"f:l": {"f:x": {}}}, "f:s": {"f:r": {}}}));
        assert_eq!(a.difference(&below).into_value(), json!({"f:m": {"f:l": {}}}));
        let mut c = a.clone();
        c.exclude(&["m"]);
        assert_eq!(c.into_value(), json!({"f:s": {"f:r": {}}}));
        assert_eq!(FieldSet::path(&["s", "r"]).into_value(), json!({"f:s": {"f:r": {}}}));
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for value in [json!([]), json!({"f:a": 1}), json!({"x:a": {}}), json!({"k:{": {}}), json!({"f": {}})]
        {
            assert!(FieldSet::parse(&value).is_err(), "{value}");
        }
    }
}
