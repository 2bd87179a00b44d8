//! Label selectors, as text (`app=web,tier in (a,b),!canary`) and as the `LabelSelector` type.
//!
//! See the Kubernetes concept *Labels and Selectors*.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::names;

/// What one requirement demands of the value of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// The key is there with one of these values.
    In(Vec<String>),
    /// The key is not there, or has none of these values.
    NotIn(Vec<String>),
    /// The key is there.
    Exists,
    /// The key is not there.
    DoesNotExist,
    /// The value is a whole number greater than this (node selectors and label queries).
    GreaterThan(i64),
    /// The value is a whole number less than this.
    LessThan(i64),
}

/// One requirement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// What is demanded of it.
    pub operator: Operator,
}

/// Requirements that must all hold. Without any, it matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

/// Why a text or a `LabelSelector` is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unable to parse requirement: {0}")]
pub struct ParseError(String);

impl Requirement {
    /// Whether a label of this value (or its absence) meets the requirement.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => value.is_some_and(|v| values.iter().any(|w| w == v)),
            Operator::NotIn(values) => value.is_none_or(|v| values.iter().all(|w| w != v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan(n) => number().is_some_and(|v| v > *n),
            Operator::LessThan(n) => number().is_some_and(|v| v < *n),
        }
    }
}

impl Selector {
    /// A selector that matches everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// A selector that matches nothing.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// A selector that demands exactly these labels.
    pub fn from_map<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let requirement = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            operator: Operator::In(vec![value.clone()]),
        };
        Self { requirements: labels.into_iter().map(requirement).collect(), nothing: false }
    }

    /// Whether it matches everything, because it demands nothing.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Its requirements.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether labels, looked up by key, meet all requirements.
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(get(&r.key)))
    }

    /// Whether these labels meet all requirements.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// Whether these labels (or none at all) meet all requirements.
    pub fn matches_optional(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.matches_with(|key| labels?.get(key).map(String::as_str))
    }
}

/// An absent selector matches nothing, an empty one everything: as Kubernetes has it.
impl TryFrom<Option<&LabelSelector>> for Selector {
    type Error = ParseError;
    fn try_from(selector: Option<&LabelSelector>) -> Result<Self, ParseError> {
        selector.map_or(Ok(Self::nothing()), Self::try_from)
    }
}

impl TryFrom<&LabelSelector> for Selector {
    type Error = ParseError;
    fn try_from(selector: &LabelSelector) -> Result<Self, ParseError> {
        let mut all = Self::from_map(selector.match_labels.iter().flatten());
        for e in selector.match_expressions.iter().flatten() {
            let values = e.values.clone().unwrap_or_default();
            let operator = match (e.operator.as_str(), values.is_empty()) {
                ("In", false) => Operator::In(values),
                ("NotIn", false) => Operator::NotIn(values),
                ("In" | "NotIn", true) => {
                    return Err(ParseError(format!(
                        "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty (key {:?})",
                        e.key
                    )));
                }
                ("Exists", true) => Operator::Exists,
                ("DoesNotExist", true) => Operator::DoesNotExist,
                ("Exists" | "DoesNotExist", false) => {
                    return Err(ParseError(format!(
                        "values set must be empty for exists and does not exist (key {:?})",
                        e.key
                    )));
                }
                (other, _) => {
                    return Err(ParseError(format!("{other:?} is not a valid label selector operator")));
                }
            };
            all.requirements.push(Requirement { key: e.key.clone(), operator });
        }
        Ok(all)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            match &r.operator {
                Operator::In(v) if v.len() == 1 => write!(f, "{comma}{}={}", r.key, v[0])?,
                Operator::NotIn(v) if v.len() == 1 => write!(f, "{comma}{}!={}", r.key, v[0])?,
                Operator::In(v) => write!(f, "{comma}{} in ({})", r.key, v.join(","))?,
                Operator::NotIn(v) => write!(f, "{comma}{} notin ({})", r.key, v.join(","))?,
                Operator::Exists => write!(f, "{comma}{}", r.key)?,
                Operator::DoesNotExist => write!(f, "{comma}!{}", r.key)?,
                Operator::GreaterThan(n) => write!(f, "{comma}{}>{n}", r.key)?,
                Operator::LessThan(n) => write!(f, "{comma}{}<{n}", r.key)?,
            }
        }
        Ok(())
    }
}

impl FromStr for Selector {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut parser = Parser { rest: text };
        let mut requirements = Vec::new();
        if parser.peek().is_none() {
            return Ok(Self::default());
        }
        loop {
            requirements.push(parser.requirement()?);
            match parser.next_token() {
                None => return Ok(Self { requirements, nothing: false }),
                Some(",") => {}
                Some(other) => {
                    return Err(ParseError(format!("found '{other}', expected: ',' or 'end of string'")));
                }
            }
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn split(&self) -> Option<(&'a str, &'a str)> {
        let rest = self.rest.trim_start();
        let symbol =
            ["==", "!=", "=", "!", "(", ")", ",", ">", "<"].into_iter().find(|s| rest.starts_with(s));
        let end = match symbol {
            Some(symbol) => symbol.len(),
            None => rest.find(|c: char| c.is_whitespace() || "=!(),><".contains(c)).unwrap_or(rest.len()),
        };
        (end > 0).then(|| rest.split_at(end))
    }

    fn peek(&self) -> Option<&'a str> {
        Some(self.split()?.0)
    }

    fn next_token(&mut self) -> Option<&'a str> {
        let (token, rest) = self.split()?;
        self.rest = rest;
        Some(token)
    }

    fn requirement(&mut self) -> Result<Requirement, ParseError> {
        if self.peek() == Some("!") {
            self.next_token();
            return Ok(Requirement { key: self.key()?, operator: Operator::DoesNotExist });
        }
        let key = self.key()?;
        let operator = match self.peek() {
            None | Some(",") => Operator::Exists,
            Some(token) => {
                self.next_token();
                match token {
                    "=" | "==" => Operator::In(vec![self.value()?]),
                    "!=" => Operator::NotIn(vec![self.value()?]),
                    "in" => Operator::In(self.values()?),
                    "notin" => Operator::NotIn(self.values()?),
                    ">" => Operator::GreaterThan(self.number()?),
                    "<" => Operator::LessThan(self.number()?),
                    _ => {
                        return Err(ParseError(format!(
                            "found '{token}', expected: in, notin, =, ==, !=, gt, lt"
                        )));
                    }
                }
            }
        };
        Ok(Requirement { key, operator })
    }

    fn key(&mut self) -> Result<String, ParseError> {
        let key = self.next_token().unwrap_or_default();
        match names::qualified(key).first() {
            Some(why) => Err(ParseError(format!("key: Invalid value: {key:?}: {why}"))),
            None => Ok(key.to_owned()),
        }
    }

    fn value(&mut self) -> Result<String, ParseError> {
        let value = match self.peek() {
            None | Some("," | ")") => "",
            Some(_) => self.next_token().unwrap_or_default(),
        };
        match names::label_value(value).first() {
            Some(why) => Err(ParseError(format!("values[0]: Invalid value: {value:?}: {why}"))),
            None => Ok(value.to_owned()),
        }
    }

    fn number(&mut self) -> Result<i64, ParseError> {
        let value = self.value()?;
        value.parse().map_err(|_| {
            ParseError(format!("{value:?}: for 'Gt', 'Lt' operators, the value must be an integer"))
        })
    }

    fn values(&mut self) -> Result<Vec<String>, ParseError> {
        if self.next_token() != Some("(") {
            return Err(ParseError("found no '(', expected: '('".to_owned()));
        }
        let mut values = vec![self.value()?];
        loop {
            match self.next_token() {
                Some(",") => values.push(self.value()?),
                Some(")") => break,
                other => {
                    return Err(ParseError(format!(
                        "found '{}', expected: ',', or ')'",
                        other.unwrap_or_default()
                    )));
                }
            }
        }
        values.sort();
        values.dedup();
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn matching() {
        let l = labels(&[("app", "web"), ("tier", "a"), ("n", "5"), ("empty", "")]);
        for (text, want) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app!=web", false),
            ("app", true),
            ("!app", false),
            ("!other", true),
            ("other!=x", true),
            ("tier in (a, b)", true),
            ("tier notin (a,b)", false),
            ("other notin (a)", true),
            ("n>4", true),
            ("n<5", false),
            ("empty=", true),
            ("app=web,tier=b", false),
            (" app = web , tier in (a) ", true),
            ("app in (web),n>1", true),
        ] {
            assert_eq!(text.parse::<Selector>().unwrap().matches(&l), want, "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in
            ["=x", "a=b=c", "a in b", "a in (b", ",", "a,,b", "a b", "a>x", "-a=b", "a=b c", "!", "a=-x"]
        {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
    }

    #[test]
    fn absent_is_nothing_and_empty_is_everything() {
        let empty = LabelSelector::default();
        assert!(!Selector::try_from(None).unwrap().matches(&labels(&[])));
        assert!(Selector::try_from(Some(&empty)).unwrap().matches(&labels(&[])));
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,30}") {
            let _ = text.parse::<Selector>();
        }
        #[test]
        fn text_survives_a_round_trip(keys in prop::collection::vec("[a-z]{1,4}", 1..4), value in "[a-z0-9]{0,3}") {
            let text = keys.iter().map(|k| format!("{k}={value}")).collect::<Vec<_>>().join(",");
            let parsed: Selector = text.parse().unwrap();
            prop_assert_eq!(&parsed.to_string(), &text);
        }
    }
}
