//! What a field must be on its own, by the type that has it: lines of text.
//!
//! `= <type>...` begins types (their OpenAPI names without `io.k8s.api.`); each line after it is a field
//! and its rules. A rule of single values holds for each item of a list. Rules other than `required`
//! say nothing of an absent or empty value.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

use super::{At, Errors, form};
use crate::facts::Type;
use crate::{meta, names};

const TEXTS: [&str; 5] = [
    include_str!("rules/pod.txt"),
    include_str!("rules/core.txt"),
    include_str!("rules/workload.txt"),
    include_str!("rules/network.txt"),
    include_str!("rules/others.txt"),
];

type Fields = Vec<(&'static str, Vec<Rule>)>;

static RULES: LazyLock<HashMap<&'static str, Fields>> = LazyLock::new(|| {
    let mut all = HashMap::new();
    TEXTS.into_iter().for_each(|text| parse(text, &mut all));
    all
});

#[derive(Clone, Debug)]
enum Rule {
    /// It must be there and not be empty.
    Required(&'static str),
    /// It must be one of these.
    In(Vec<&'static str>),
    /// It must be at least this.
    AtLeast(i64),
    /// It must be within these.
    Range(i64, i64),
    /// No two items have the same value of this field (or, if empty, the same value).
    Unique(&'static str),
    /// It has at most so many items.
    Max(usize),
    /// It has at most so many bytes.
    Length(usize),
    /// It stays as it was.
    Immutable,
    /// It is a map of labels.
    Labels,
    /// It is a quantity, or a map of them, none of which is negative.
    Amount,
    /// It is a quantity above nothing.
    Positive,
    /// It is the number of a port; zero is none at all.
    RequiredPort,
    /// Its text has a form.
    Text(fn(&str) -> Vec<String>),
    /// Its text has a form, which the empty text has not.
    Always(fn(&str) -> Vec<String>),
    /// Its value has a form.
    Value(fn(&Value) -> Vec<String>),
}

fn mode(value: &Value) -> Vec<String> {
    let good = value.as_i64().is_some_and(|n| (0..=0o777).contains(&n));
    if good { Vec::new() } else { vec![form::MODE.to_owned()] }
}

fn port_number(value: &Value) -> Vec<String> {
    names::port_number(value.as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0))
}

/// Zero stands for none.
fn optional_port(value: &Value) -> Vec<String> {
    if value.as_i64() == Some(0) { Vec::new() } else { port_number(value) }
}

fn absolute(text: &str) -> Vec<String> {
    if text.starts_with('/') { Vec::new() } else { vec!["must be an absolute path".to_owned()] }
}

/// The name of a storage driver, in which case does not matter.
fn driver(text: &str) -> Vec<String> {
    names::dns_subdomain(&text.to_lowercase())
}

fn header(text: &str) -> Vec<String> {
    let good = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let why = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";
    if good { Vec::new() } else { vec![why.to_owned()] }
}

fn parse_rule(word: &'static str) -> Rule {
    let (name, argument) = match word.split_once('(') {
        Some((name, rest)) => {
            (name, rest.strip_suffix(')').expect("a rule's argument ends in a parenthesis"))
        }
        None => (word, ""),
    };
    let number = |text: &str| -> i64 { text.trim().parse().expect("a rule's argument is a number") };
    match name {
        "required" => Rule::Required(argument),
        "in" => Rule::In(argument.split(',').collect()),
        "min" => Rule::AtLeast(number(argument)),
        "range" => {
            let (low, high) = argument.split_once(',').expect("a range has two ends");
            Rule::Range(number(low), number(high))
        }
        "id" => Rule::Range(0, i64::from(i32::MAX)),
        "unique" => Rule::Unique(argument),
        "max" => Rule::Max(number(argument) as usize),
        "length" => Rule::Length(number(argument) as usize),
        "immutable" => Rule::Immutable,
        "labels" => Rule::Labels,
        "amount" => Rule::Amount,
        "positive" => Rule::Positive,
        "label" => Rule::Text(names::dns_label),
        "subdomain" => Rule::Text(names::dns_subdomain),
        "qualified" => Rule::Text(names::qualified),
        "labelvalue" => Rule::Text(names::label_value),
        "configkey" => Rule::Text(names::config_key),
        "envvar" => Rule::Text(names::env_var),
        "portname" => Rule::Text(names::port_name),
        "segment" => Rule::Text(names::path_segment),
        "driver" => Rule::Text(driver),
        "absolute" => Rule::Text(absolute),
        "descending" => Rule::Text(form::descending),
        "local" => Rule::Text(form::local),
        "nobacksteps" => Rule::Text(form::no_backsteps),
        "header" => Rule::Text(header),
        "ip" => Rule::Text(form::ip),
        "ip!" => Rule::Always(form::ip),
        "label!" => Rule::Always(names::dns_label),
        "qualified!" => Rule::Always(names::qualified),
        "subdomain!" => Rule::Always(names::dns_subdomain),
        "cidr" => Rule::Text(form::cidr),
        "count" => Rule::Value(form::count),
        "requiredport" => Rule::RequiredPort,
        "portref" => Rule::Value(form::port),
        "port" => Rule::Value(port_number),
        "port?" => Rule::Value(optional_port),
        "mode" => Rule::Value(mode),
        other => panic!("no rule is called {other}"),
    }
}

/// Splits at spaces outside of parentheses.
fn words(line: &'static str) -> Vec<&'static str> {
    let mut depth = 0;
    let split = |c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ' ' && depth == 0
    };
    line.split(split).filter(|word| !word.is_empty()).collect()
}

fn parse(text: &'static str, all: &mut HashMap<&'static str, Fields>) {
    let mut current: Vec<&'static str> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix("= ") {
            current = name.split(' ').collect();
            continue;
        }
        let mut words = words(line).into_iter();
        let field = words.next().expect("a line names its field");
        let rules: Vec<Rule> = words.map(parse_rule).collect();
        assert!(!current.is_empty(), "a field line follows a type line");
        for ty in &current {
            all.entry(*ty).or_default().push((field, rules.clone()));
        }
    }
}

/// A type's name as the tables and the checks have it.
pub(super) fn short(ty: &Type) -> &'static str {
    ty.name.strip_prefix("io.k8s.api.").unwrap_or(ty.name)
}

/// Holds a struct against the rules of its type.
pub(super) fn apply(at: &At<'_>, ty: &Type, errors: &mut Errors) {
    for (field, rules) in RULES.get(short(ty)).into_iter().flatten() {
        let field = at.get(field);
        for rule in rules {
            check(&field, rule, errors);
        }
        // An empty text that is still there after normalizing is one that was asked for.
        if field.value == "" && !rules.iter().any(|rule| matches!(rule, Rule::Required(_))) {
            rules
                .iter()
                .filter(|rule| matches!(rule, Rule::In(_)))
                .for_each(|rule| single(&field, rule, errors));
        }
    }
}

fn check(at: &At<'_>, rule: &Rule, errors: &mut Errors) {
    match rule {
        Rule::Required(detail) if at.is_empty() => errors.required(at, detail),
        Rule::Immutable => errors.immutable(at),
        Rule::RequiredPort if at.int().unwrap_or(0) == 0 => errors.required(at, ""),
        Rule::RequiredPort => errors.invalid_all(at, port_number(at.value)),
        Rule::Always(check) if at.value == "" => errors.invalid_all(at, check("")),
        _ if at.is_empty() => {}
        Rule::Unique(key) => unique(at, key, errors),
        Rule::Max(max) if at.len() > *max => errors.too_many(at, *max),
        Rule::Length(max) if at.text().len() > *max => errors.too_long(at, *max),
        Rule::Labels => labels(at, errors),
        Rule::Amount => amounts(at, errors),
        Rule::Required(_) | Rule::Max(_) | Rule::Length(_) => {}
        _ if at.value.is_array() => at.items().for_each(|item| single(&item, rule, errors)),
        _ => single(at, rule, errors),
    }
}

fn single(at: &At<'_>, rule: &Rule, errors: &mut Errors) {
    match rule {
        Rule::In(values) => errors.one_of(at, values),
        Rule::AtLeast(0) if at.int().is_some_and(|n| n < 0) => errors.invalid(at, form::NEGATIVE),
        Rule::AtLeast(1) if at.int().is_some_and(|n| n < 1) => errors.invalid(at, "must be greater than 0"),
        Rule::AtLeast(low) if at.int().is_some_and(|n| n < *low) => {
            errors.invalid(at, format!("must be greater than or equal to {low}"));
        }
        Rule::Range(low, high) if at.int().is_some_and(|n| !(*low..=*high).contains(&n)) => {
            errors.invalid(at, form::range(*low, *high));
        }
        Rule::Positive => {
            let amount = form::quantity(at.value);
            if amount.is_negative() || amount.is_zero() {
                errors.invalid(at, form::NOT_POSITIVE);
            }
        }
        Rule::Text(check) | Rule::Always(check) => errors.invalid_all(at, check(at.text())),
        Rule::Value(check) => errors.invalid_all(at, check(at.value)),
        _ => {}
    }
}

fn unique(at: &At<'_>, key: &str, errors: &mut Errors) {
    let mut seen: Vec<&Value> = Vec::new();
    for item in at.items() {
        let item = if key.is_empty() { item } else { item.get(key) };
        if item.is_empty() {
            continue;
        }
        if seen.contains(&item.value) {
            errors.duplicate(&item);
        } else {
            seen.push(item.value);
        }
    }
}

/// Keys and values of labels; errors name the map, as those of Kubernetes do.
pub(super) fn labels(at: &At<'_>, errors: &mut Errors) {
    let mut found = Vec::new();
    meta::validate_labels(Some(at.value), &at.path, &mut found);
    errors.extend(found);
}

fn amounts(at: &At<'_>, errors: &mut Errors) {
    if !at.value.is_object() {
        if form::quantity(at.value).is_negative() {
            errors.invalid(at, form::NEGATIVE);
        }
        return;
    }
    for (_, entry) in at.entries().filter(|(_, e)| form::quantity(e.value).is_negative()) {
        errors.invalid(&entry, form::NEGATIVE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts;

    #[test]
    fn every_rule_is_of_a_field_that_its_type_has() {
        assert!(RULES.len() > 100);
        for (name, fields) in RULES.iter() {
            let full = format!("io.k8s.api.{name}");
            let ty = facts::lookup(&full).or_else(|| facts::lookup(name));
            let ty = ty.unwrap_or_else(|| panic!("no type {name}"));
            for (field, rules) in fields {
                assert!(ty.fields.contains_key(field), "{name} has no field {field}");
                assert!(!rules.is_empty(), "{name}.{field}");
            }
        }
    }
}
