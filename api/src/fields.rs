//! Field selectors (`spec.nodeName=a,status.phase!=Running`).
//!
//! See the Kubernetes concept *Field Selectors*. Which fields a kind can be selected by is decided by
//! whoever serves it.

use std::fmt;
use std::str::FromStr;

/// One term of a field selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// The field's path, `metadata.name`.
    pub field: String,
    /// The value that it is held against.
    pub value: String,
    /// Whether it must be equal, or must not be.
    pub equal: bool,
}

/// Terms that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    terms: Vec<Term>,
}

/// Why a text is no field selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid selector: '{0}'; can't understand '{1}'")]
pub struct ParseError(String, String);

impl Selector {
    /// Demands one value of one field, whatever characters the value has.
    pub fn equal(field: &str, value: &str) -> Self {
        Self { terms: vec![Term { field: field.to_owned(), value: value.to_owned(), equal: true }] }
    }

    /// Its terms.
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// Whether it matches everything, because it demands nothing.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether the fields, looked up by path, meet all terms. An absent field is empty.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms.iter().all(|t| (get(&t.field).unwrap_or_default() == t.value) == t.equal)
    }

    /// The same demands, of fields that some of those named here are other names for.
    #[must_use]
    pub fn renamed(mut self, name: impl Fn(&str) -> Option<&'static str>) -> Self {
        for term in &mut self.terms {
            if let Some(name) = name(&term.field) {
                name.clone_into(&mut term.field);
            }
        }
        self
    }

    /// The value that a field must have, if the selector demands exactly one.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }
}

impl FromStr for Selector {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut terms = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let bad = || ParseError(text.to_owned(), part.to_owned());
            let (field, rest, equal) = match part.find("!=") {
                Some(at) if part.find('=').is_none_or(|e| at < e) => (&part[..at], &part[at + 2..], false),
                _ => {
                    let at = part.find('=').ok_or_else(bad)?;
                    let skip = if part[at..].starts_with("==") { 2 } else { 1 };
                    (&part[..at], &part[at + skip..], true)
                }
            };
            let value = unescape(rest).ok_or_else(bad)?;
            terms.push(Term { field: field.trim().to_owned(), value, equal });
        }
        Ok(Self { terms })
    }
}

/// Splits at commas that no backslash escapes.
fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// `\\`, `\,` and `\=` stand for themselves; another escape, or a bare `=`, is an error.
fn unescape(text: &str) -> Option<String> {
    let mut value = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => value.push(chars.next().filter(|c| matches!(c, '\\' | ',' | '='))?),
            '=' => return None,
            _ => value.push(c),
        }
    }
    Some(value)
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, t) in self.terms.iter().enumerate() {
            let value = t.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(
                f,
                "{}{}{}{value}",
                if i > 0 { "," } else { "" },
                t.field,
                if t.equal { "=" } else { "!=" }
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn matching() {
        let get = |f: &str| (f == "metadata.name").then_some("a");
        for (text, want) in [
            ("metadata.name=a", true),
            ("metadata.name==a", true),
            ("metadata.name!=a", false),
            ("spec.nodeName=", true),
            ("spec.nodeName!=", false),
            ("", true),
            ("metadata.name=a,spec.x=y", false),
        ] {
            assert_eq!(text.parse::<Selector>().unwrap().matches(get), want, "{text}");
        }
        assert!(Selector::equal("metadata.name", "a").matches(get));
        assert!(!Selector::equal("metadata.name", "a=b").matches(get));
        let renamed = "x=a,y=b".parse::<Selector>().unwrap().renamed(|field| (field == "x").then_some("z"));
        assert_eq!(renamed.to_string(), "z=a,y=b");
        assert!("metadata.name".parse::<Selector>().is_err());
        assert!("a=b=c".parse::<Selector>().is_err());
    }

    proptest! {
        #[test]
        fn text_survives_a_round_trip(field in "[a-z.]{1,9}", value in "[a-z,=\\\\]{0,9}", equal: bool) {
            let selector = Selector { terms: vec![Term { field, value, equal }] };
            prop_assert_eq!(selector.to_string().parse::<Selector>().unwrap(), selector);
        }
        #[test]
        fn never_panics(text in "\\PC{0,30}") {
            let _ = text.parse::<Selector>();
        }
    }
}
