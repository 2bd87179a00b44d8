//! Field paths and the errors of validation, in the words that Kubernetes' clients match on.

use std::fmt;

use serde_json::Value;

/// Where in an object a field is: `spec.containers[0].name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(String);

impl Path {
    /// The path of a field at the root.
    pub fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// The root itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// A field of this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Self::new(name) } else { self.with(&[".", name]) }
    }

    /// An item of this list.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.with(&["[", &index.to_string(), "]"])
    }

    /// An entry of this map.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.with(&["[", key, "]"])
    }

    /// Every field that validation looks at gets its path, whether anything is wrong there or not: it is put
    /// together without formatting, in one piece.
    fn with(&self, parts: &[&str]) -> Self {
        let mut path =
            String::with_capacity(self.0.len() + parts.iter().map(|part| part.len()).sum::<usize>());
        path.push_str(&self.0);
        parts.iter().for_each(|part| path.push_str(part));
        Self(path)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

/// The kind of an error, the `reason` of a `StatusCause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// It must be there.
    Required,
    /// It is there twice.
    Duplicate,
    /// Its value is wrong.
    Invalid,
    /// Its value is none of those allowed.
    NotSupported,
    /// It must not be there, or not be changed.
    Forbidden,
    /// It is too long.
    TooLong,
    /// There are too many.
    TooMany,
    /// What it refers to is not there.
    NotFound,
    /// Something is wrong that is not the client's fault.
    Internal,
    /// Its type is wrong.
    TypeInvalid,
}

impl ErrorKind {
    /// The `reason` of a `StatusCause`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::NotFound => "FieldValueNotFound",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
}

/// One error of validation: which field, which value, what was expected.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    /// The field.
    pub path: Path,
    /// What kind of error it is.
    pub kind: ErrorKind,
    /// The value, where Kubernetes shows it.
    pub value: Option<Value>,
    /// What was expected.
    pub detail: String,
}

impl Error {
    fn of(path: &Path, kind: ErrorKind, value: Option<Value>, detail: impl Into<String>) -> Self {
        Self { path: path.clone(), kind, value, detail: detail.into() }
    }

    /// The field must be there.
    pub fn required(path: &Path, detail: impl Into<String>) -> Self {
        Self::of(path, ErrorKind::Required, None, detail)
    }

    /// The value is there already.
    pub fn duplicate(path: &Path, value: impl Into<Value>) -> Self {
        Self::of(path, ErrorKind::Duplicate, Some(value.into()), "")
    }

    /// The value is wrong.
    pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::of(path, ErrorKind::Invalid, Some(value.into()), detail)
    }

    /// The value is none of those supported.
    pub fn not_supported(path: &Path, value: impl Into<Value>, supported: &[&str]) -> Self {
        let mut quoted: Vec<String> = supported.iter().map(|s| format!("\"{s}\"")).collect();
        quoted.sort();
        Self::of(
            path,
            ErrorKind::NotSupported,
            Some(value.into()),
            format!("supported values: {}", quoted.join(", ")),
        )
    }

    /// The field must not be set, or not be changed.
    pub fn forbidden(path: &Path, detail: impl Into<String>) -> Self {
        Self::of(path, ErrorKind::Forbidden, None, detail)
    }

    /// The value is longer than `max` bytes.
    pub fn too_long(path: &Path, max: usize) -> Self {
        Self::of(path, ErrorKind::TooLong, None, format!("may not be more than {max} bytes"))
    }

    /// There are more than `max` items.
    pub fn too_many(path: &Path, actual: usize, max: usize) -> Self {
        Self::of(path, ErrorKind::TooMany, Some(actual.into()), format!("must have at most {max} items"))
    }

    /// What the value refers to is not there.
    pub fn not_found(path: &Path, value: impl Into<Value>) -> Self {
        Self::of(path, ErrorKind::NotFound, Some(value.into()), "")
    }

    /// The error without its field, the `message` of a `StatusCause`.
    pub fn message(&self) -> String {
        let head = match self.kind {
            ErrorKind::Required => "Required value",
            ErrorKind::Duplicate => "Duplicate value",
            ErrorKind::Invalid | ErrorKind::TypeInvalid => "Invalid value",
            ErrorKind::NotSupported => "Unsupported value",
            ErrorKind::Forbidden => "Forbidden",
            ErrorKind::TooLong => "Too long",
            ErrorKind::TooMany => "Too many",
            ErrorKind::NotFound => "Not found",
            ErrorKind::Internal => "Internal error",
        };
        let value = match &self.value {
            None => String::new(),
            Some(Value::String(text)) => format!(": {text:?}"),
            Some(value) => format!(": {value}"),
        };
        if self.detail.is_empty() {
            format!("{head}{value}")
        } else {
            format!("{head}{value}: {}", self.detail)
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wording() {
        let path = Path::new("spec").child("containers").index(0).child("name");
        assert_eq!(Error::required(&path, "").to_string(), "spec.containers[0].name: Required value");
        assert_eq!(
            Error::invalid(&path, "A", "must be lower case").to_string(),
            "spec.containers[0].name: Invalid value: \"A\": must be lower case"
        );
        assert_eq!(
            Error::not_supported(&Path::new("spec").child("type"), "x", &["b", "a"]).to_string(),
            "spec.type: Unsupported value: \"x\": supported values: \"a\", \"b\""
        );
        assert_eq!(Path::new("data").key("a.b").to_string(), "data[a.b]");
    }
}
