//! A place in an object that is being validated, and where its errors go.

use serde_json::Value;

use crate::field::{Error, Path};

static NULL: Value = Value::Null;

/// A value, what was there before, and its path.
#[derive(Clone, Debug)]
pub(crate) struct At<'a> {
    /// What is there; null if nothing is.
    pub(crate) value: &'a Value,
    /// What was there before this update; absent on creation, and below lists, whose items move.
    pub(crate) old: Option<&'a Value>,
    /// Where it is.
    pub(crate) path: Path,
}

impl<'a> At<'a> {
    /// A whole object.
    pub(crate) fn root(value: &'a Value, old: Option<&'a Value>) -> Self {
        Self { value, old, path: Path::root() }
    }

    /// A field.
    pub(crate) fn get(&self, name: &str) -> Self {
        Self { value: &self.value[name], old: self.old.map(|o| &o[name]), path: self.path.child(name) }
    }

    /// A field of a field.
    pub(crate) fn at(&self, names: &[&str]) -> Self {
        names.iter().fold(self.clone(), |at, name| at.get(name))
    }

    /// An entry of a map, as Kubernetes writes it: `limits[cpu]`.
    pub(crate) fn key(&self, key: &str) -> Self {
        Self { value: &self.value[key], old: self.old.map(|o| &o[key]), path: self.path.key(key) }
    }

    /// The items of a list.
    pub(crate) fn items(&self) -> impl Iterator<Item = At<'a>> + use<'a> {
        let path = self.path.clone();
        let items = self.value.as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().enumerate().map(move |(i, value)| At { value, old: None, path: path.index(i) })
    }

    /// The entries of a map.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a str, At<'a>)> + use<'a> {
        let (path, old) = (self.path.clone(), self.old);
        let map = self.value.as_object().into_iter().flatten();
        map.map(move |(key, value)| {
            (key.as_str(), At { value, old: old.map(|o| &o[key]), path: path.key(key) })
        })
    }

    /// The value before, at the same path.
    pub(crate) fn before(&self) -> Self {
        Self { value: self.old.unwrap_or(&NULL), old: None, path: self.path.clone() }
    }

    /// Whether an update leaves it as it was.
    pub(crate) fn unchanged(&self) -> bool {
        self.old == Some(self.value)
    }

    /// Whether this is an update that changes it.
    pub(crate) fn changed(&self) -> bool {
        self.old.is_some_and(|old| old != self.value && !(is_empty(old) && is_empty(self.value)))
    }

    /// Its text; empty if it has none.
    pub(crate) fn text(&self) -> &'a str {
        self.value.as_str().unwrap_or_default()
    }

    /// Its whole number, if it has one.
    pub(crate) fn int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    /// Whether it is there and true.
    pub(crate) fn yes(&self) -> bool {
        self.value.as_bool().unwrap_or(false)
    }

    /// Whether there is anything, be it empty.
    pub(crate) fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    /// Whether there is nothing, or something empty.
    pub(crate) fn is_empty(&self) -> bool {
        is_empty(self.value)
    }

    /// The number of its items.
    pub(crate) fn len(&self) -> usize {
        self.value.as_array().map_or(0, Vec::len)
    }

    /// Those of these fields that are there.
    pub(crate) fn present<'n>(&self, names: &'n [&'n str]) -> Vec<&'n str> {
        names.iter().copied().filter(|name| !self.value[*name].is_null()).collect()
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Errors as they are found.
#[derive(Debug, Default)]
pub(crate) struct Errors(Vec<Error>);

impl Errors {
    /// It must be there.
    pub(crate) fn required(&mut self, at: &At<'_>, detail: &str) {
        self.0.push(Error::required(&at.path, detail));
    }

    /// It is required, unless it is there.
    pub(crate) fn require(&mut self, at: &At<'_>) {
        if at.is_empty() {
            self.required(at, "");
        }
    }

    /// Its value is wrong.
    pub(crate) fn invalid(&mut self, at: &At<'_>, detail: impl Into<String>) {
        self.0.push(Error::invalid(&at.path, at.value.clone(), detail));
    }

    /// Its value is wrong, for each of these reasons.
    pub(crate) fn invalid_all(&mut self, at: &At<'_>, details: Vec<String>) {
        details.into_iter().for_each(|detail| self.invalid(at, detail));
    }

    /// Another value than its own is wrong there, for each of these reasons.
    pub(crate) fn invalid_all_of(&mut self, at: &At<'_>, value: &str, details: Vec<String>) {
        details.into_iter().for_each(|detail| self.invalid_value(at, value, detail));
    }

    /// Another value than its own is wrong there.
    pub(crate) fn invalid_value(&mut self, at: &At<'_>, value: impl Into<Value>, detail: impl Into<String>) {
        self.0.push(Error::invalid(&at.path, value, detail));
    }

    /// It is wrong as a whole; its value says nothing.
    pub(crate) fn invalid_whole(&mut self, at: &At<'_>, detail: &str) {
        self.0.push(Error { value: None, ..Error::invalid(&at.path, "", detail) });
    }

    /// It must not be there, or not be changed.
    pub(crate) fn forbidden(&mut self, at: &At<'_>, detail: impl Into<String>) {
        self.0.push(Error::forbidden(&at.path, detail));
    }

    /// It must not be there, if it is.
    pub(crate) fn forbid(&mut self, at: &At<'_>, detail: &str) {
        if at.is_set() {
            self.forbidden(at, detail);
        }
    }

    /// It must be one of these.
    pub(crate) fn one_of(&mut self, at: &At<'_>, supported: &[&str]) {
        if at.value.as_str().is_none_or(|text| !supported.contains(&text)) {
            self.0.push(Error::not_supported(&at.path, at.value.clone(), supported));
        }
    }

    /// It stands for something that is none of these.
    pub(crate) fn not_supported_value(&mut self, at: &At<'_>, value: &str, supported: &[&str]) {
        self.0.push(Error::not_supported(&at.path, value, supported));
    }

    /// It is there twice.
    pub(crate) fn duplicate(&mut self, at: &At<'_>) {
        self.0.push(Error::duplicate(&at.path, at.value.clone()));
    }

    /// It stands for something that is there twice.
    pub(crate) fn duplicate_of(&mut self, at: &At<'_>, value: impl Into<Value>) {
        self.0.push(Error::duplicate(&at.path, value));
    }

    /// What it names is not there.
    pub(crate) fn not_found(&mut self, at: &At<'_>) {
        self.0.push(Error::not_found(&at.path, at.value.clone()));
    }

    /// It has more than `max` bytes.
    pub(crate) fn too_long(&mut self, at: &At<'_>, max: usize) {
        self.0.push(Error::too_long(&at.path, max));
    }

    /// It has more than `max` items.
    pub(crate) fn too_many(&mut self, at: &At<'_>, max: usize) {
        self.0.push(Error::too_many(&at.path, at.len(), max));
    }

    /// Errors found elsewhere.
    pub(crate) fn extend(&mut self, errors: Vec<Error>) {
        self.0.extend(errors);
    }

    /// It must stay as it was.
    pub(crate) fn immutable(&mut self, at: &At<'_>) {
        if at.changed() {
            self.invalid(at, "field is immutable");
        }
    }

    /// What was found, once each.
    pub(crate) fn list(self) -> Vec<Error> {
        let mut list: Vec<Error> = Vec::with_capacity(self.0.len());
        for error in self.0 {
            if !list.contains(&error) {
                list.push(error);
            }
        }
        list
    }
}
