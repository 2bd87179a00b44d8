//! Reading an object field by field: what nobody asked for is unknown, and all that is wrong is said at once.

use std::ops::RangeInclusive;

use decapod_api::field::{Error as FieldError, Path};
use k8s_openapi::serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// What is left to read of an object, and what was wrong with it so far.
#[derive(Debug)]
pub(super) struct Reader {
    path: Path,
    fields: Map<String, Value>,
    errors: Vec<String>,
}

impl Reader {
    pub(super) fn new(path: Path, value: Value) -> Self {
        let (fields, errors) = match value {
            Value::Object(fields) => (fields, Vec::new()),
            Value::Null => (Map::new(), Vec::new()),
            other => (Map::new(), vec![wrong_type(&path, "an object", &other)]),
        };
        Self { path, fields, errors }
    }

    /// Where the object is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the field is there.
    pub(super) fn has(&self, field: &str) -> bool {
        self.fields.get(field).is_some_and(|value| !value.is_null())
    }

    /// Whether the field says this.
    pub(super) fn is_text(&self, field: &str, text: &str) -> bool {
        self.fields.get(field).and_then(Value::as_str) == Some(text)
    }

    /// The field is known, whatever it says.
    pub(super) fn skip(&mut self, field: &str) {
        self.fields.remove(field);
    }

    fn take(&mut self, field: &str) -> Option<Value> {
        self.fields.remove(field).filter(|value| !value.is_null())
    }

    fn read<T>(&mut self, field: &str, what: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let value = self.take(field)?;
        let found = read(&value);
        if found.is_none() {
            self.errors.push(wrong_type(&self.path.child(field), what, &value));
        }
        found
    }

    pub(super) fn text(&mut self, field: &str) -> Option<String> {
        self.read(field, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub(super) fn flag(&mut self, field: &str) -> Option<bool> {
        self.read(field, "a boolean", Value::as_bool)
    }

    pub(super) fn number(&mut self, field: &str) -> Option<i64> {
        self.read(field, "an integer", Value::as_i64)
    }

    /// A number that must be in a range; `why` says which.
    pub(super) fn number_in(&mut self, field: &str, range: RangeInclusive<i64>, why: &str) -> Option<i64> {
        let number = self.number(field)?;
        if range.contains(&number) {
            return Some(number);
        }
        self.wrong(|path| FieldError::invalid(&path.child(field), number, why));
        None
    }

    pub(super) fn list(&mut self, field: &str) -> Option<Vec<Value>> {
        self.read(field, "a list", |value| value.as_array().cloned())
    }

    pub(super) fn texts(&mut self, field: &str) -> Vec<String> {
        let what = "a list of strings";
        let each =
            |value: &Value| value.as_array()?.iter().map(|one| Some(one.as_str()?.to_owned())).collect();
        self.read(field, what, each).unwrap_or_default()
    }

    /// A part of the object; its errors come back by [`Self::take_errors`].
    pub(super) fn object(&mut self, field: &str) -> Option<Self> {
        let value = self.take(field)?;
        Some(Self::new(self.path.child(field), value))
    }

    /// The objects of a list.
    pub(super) fn objects(&mut self, field: &str) -> Vec<Self> {
        let path = self.path.child(field);
        let list = self.list(field).unwrap_or_default().into_iter().enumerate();
        list.map(|(index, value)| Self::new(path.index(index), value)).collect()
    }

    /// A part of the object that is one of Kubernetes' own types.
    pub(super) fn typed<T: DeserializeOwned>(&mut self, field: &str) -> Option<T> {
        let value = self.take(field)?;
        match serde_json::from_value(value) {
            Ok(value) => Some(value),
            Err(error) => {
                self.errors.push(format!("{}: {error}", self.path.child(field)));
                None
            }
        }
    }

    /// Notes what is wrong.
    pub(super) fn wrong(&mut self, error: impl FnOnce(&Path) -> FieldError) {
        let error = error(&self.path);
        self.errors.push(error.to_string());
    }

    /// Takes over what was wrong with a part, and what of it is unknown.
    pub(super) fn take_errors(&mut self, part: Self) {
        if let Err(errors) = part.finish() {
            self.errors.extend(errors);
        }
    }

    /// # Errors
    /// All that was wrong, and what is left: nobody knows it.
    pub(super) fn finish(mut self) -> Result<(), Vec<String>> {
        let unknown = self.fields.keys().map(|field| format!("unknown field \"{}\"", self.path.child(field)));
        let unknown: Vec<_> = unknown.collect();
        self.errors.extend(unknown);
        if self.errors.is_empty() { Ok(()) } else { Err(self.errors) }
    }
}

fn wrong_type(path: &Path, what: &str, value: &Value) -> String {
    format!("{path}: Invalid value: {value}: must be {what}")
}
