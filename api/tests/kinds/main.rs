//! Each kind: an object that is good, and what makes it bad, with the words that clients read.
//!
//! The fixtures are JSON: a good object and changes to it (JSON pointer to value, null takes out), each
//! with all errors that must come of it, in any order. `create` changes the object before it is made,
//! `update` replaces the good one by the changed one. Text that ends in `…` stands for all that begin so.

use decapod_api::field::Error;
use decapod_api::resource::{RESOURCES, Resource};
use decapod_api::validate::Scope;
use decapod_api::{meta, resource};
use serde::Deserialize;
use serde_json::{Map, Value};

mod properties;

#[derive(Deserialize)]
struct Fixture {
    good: Value,
    #[serde(default)]
    create: Vec<Case>,
    #[serde(default)]
    update: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    set: Map<String, Value>,
    #[serde(default)]
    scope: String,
    errors: Vec<String>,
}

const FILES: [(&str, &str); 6] = [
    ("pods", include_str!("pods.json")),
    ("core", include_str!("core.json")),
    ("workloads", include_str!("workloads.json")),
    ("network", include_str!("network.json")),
    ("storage", include_str!("storage.json")),
    ("others", include_str!("others.json")),
];

fn row(object: &Value) -> &'static Resource {
    let version = object["apiVersion"].as_str().expect("a fixture has an apiVersion");
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let kind = object["kind"].as_str().expect("a fixture has a kind");
    resource::by_kind(group, version, kind).unwrap_or_else(|| panic!("no kind {kind}"))
}

fn normalized(object: &Value) -> Value {
    let normalized = (row(object).ops.normalize)(object.clone()).expect("a fixture can be decoded");
    assert_eq!(normalized.unknown, Vec::<String>::new(), "{object}");
    normalized.object
}

fn errors(object: &Value, old: Option<&Value>, scope: Scope) -> Vec<String> {
    let row = row(object);
    let mut errors: Vec<Error> = Vec::new();
    if scope != Scope::Status {
        errors = meta::validate(object, row);
    }
    errors.extend((row.ops.validate)(object, old, scope));
    errors.iter().map(ToString::to_string).collect()
}

fn changed(good: &Value, set: &Map<String, Value>) -> Value {
    let mut object = good.clone();
    for (pointer, value) in set {
        let (parent, last) = pointer.rsplit_once('/').expect("a pointer begins with a slash");
        let last = last.replace("~1", "/");
        let mut at = &mut object;
        for step in parent.split('/').skip(1).map(|step| step.replace("~1", "/")) {
            at = match at {
                Value::Array(items) => &mut items[step.parse::<usize>().expect("a list has numbered items")],
                other => &mut other[step],
            };
        }
        match at {
            Value::Array(items) if last == "-" => items.push(value.clone()),
            Value::Array(items) => {
                items[last.parse::<usize>().expect("a list has numbered items")] = value.clone()
            }
            other if value.is_null() => drop(other.as_object_mut().map(|map| map.remove(&last))),
            other => other[last] = value.clone(),
        }
    }
    object
}

fn same(want: &[String], got: &[String]) -> bool {
    let mut rest: Vec<&String> = got.iter().collect();
    let found = want.iter().all(|want| {
        let place = rest.iter().position(|got| match want.strip_suffix('…') {
            Some(start) => got.starts_with(start),
            None => *got == want,
        });
        place.map(|place| rest.swap_remove(place)).is_some()
    });
    found && rest.is_empty()
}

#[test]
fn good_is_accepted_and_bad_refused_in_the_words_of_kubernetes() {
    let mut wrong: Vec<String> = Vec::new();
    for (file, text) in FILES {
        let fixtures: Vec<Fixture> =
            serde_json::from_str(text).unwrap_or_else(|e| panic!("{file}.json: {e}"));
        for fixture in fixtures {
            let good = normalized(&fixture.good);
            let kind = row(&fixture.good).kind;
            let mut hold = |what: &str, set: &Map<String, Value>, want: &[String], got: Vec<String>| {
                if !same(want, &got) {
                    let got = serde_json::to_string(&got).expect("texts are JSON");
                    wrong.push(format!("{file}|{kind}|{what}|{}|{got}", Value::Object(set.clone())));
                }
            };
            hold("good", &Map::new(), &[], errors(&good, None, Scope::Main));
            hold("again", &Map::new(), &[], errors(&good, Some(&good), Scope::Main));
            for case in &fixture.create {
                let bad = normalized(&changed(&fixture.good, &case.set));
                hold("create", &case.set, &case.errors, errors(&bad, None, Scope::Main));
            }
            for case in &fixture.update {
                let scope = match case.scope.as_str() {
                    "" => Scope::Main,
                    "status" => Scope::Status,
                    "ephemeral" => Scope::Ephemeral,
                    "resize" => Scope::Resize,
                    other => panic!("no scope {other}"),
                };
                let bad = normalized(&changed(&good, &case.set));
                hold("update", &case.set, &case.errors, errors(&bad, Some(&good), scope));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_kind_that_is_kept_has_a_fixture() {
    let texts: Vec<Fixture> = FILES
        .iter()
        .flat_map(|(_, text)| serde_json::from_str::<Vec<Fixture>>(text).expect("JSON"))
        .collect();
    for r in RESOURCES.iter().filter(|r| r.key_prefix().is_some()) {
        let found = texts.iter().any(|f| f.good["kind"] == r.kind && f.good["apiVersion"] == r.api_version());
        assert!(found, "{} {}", r.api_version(), r.kind);
    }
}
