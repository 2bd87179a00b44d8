//! The parsers of the object model: whatever comes, they answer or refuse.

use std::str::FromStr;

use decapod_api::patch::{JsonPatch, apply_json, apply_merge, apply_strategic};
use decapod_api::quantity::Quantity;
use decapod_api::{facts, fields, json, labels};
use decapod_fuzz::{PARSER, run};
use serde_json::Value;

fn text(input: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(input)
}

fn pod() -> Value {
    let pod = include_str!("../corpus/json/pod.json");
    serde_json::from_str(pod).expect("the corpus begins with a pod")
}

#[test]
fn bodies_of_json() {
    run("json", PARSER, |input| {
        if let Ok(parsed) = json::parse(input) {
            // What was read can be written and read again.
            let again = json::parse(parsed.value.to_string().as_bytes()).expect("JSON that we wrote");
            assert_eq!(again.value, parsed.value);
        }
    });
}

#[test]
fn label_selectors() {
    run("labels", PARSER, |input| {
        if let Ok(selector) = labels::Selector::from_str(&text(input)) {
            let written = selector.to_string();
            let again = labels::Selector::from_str(&written).expect("a selector that we wrote");
            assert_eq!(again.to_string(), written);
            selector.matches_with(|name| (name.len() % 2 == 0).then_some("1"));
        }
    });
}

#[test]
fn field_selectors() {
    run("fields", PARSER, |input| {
        if let Ok(selector) = fields::Selector::from_str(&text(input)) {
            let written = selector.to_string();
            let again = fields::Selector::from_str(&written).expect("a selector that we wrote");
            assert_eq!(again.to_string(), written);
            selector.matches(|_| Some("1"));
        }
    });
}

#[test]
fn quantities() {
    run("quantity", PARSER, |input| {
        if let Ok(quantity) = Quantity::from_str(&text(input)) {
            let written = quantity.to_string();
            let again = Quantity::from_str(&written).unwrap_or_else(|e| panic!("{written}: {e}"));
            let whole = quantity.units().unsigned_abs();
            // What is larger than any number of 64 bits is cut off somewhere.
            if whole < i64::MAX.unsigned_abs() {
                assert_eq!(again, quantity, "{written}");
            }
            assert!(quantity.as_f64().is_finite() && quantity.millis().unsigned_abs() >= whole);
        }
    });
}

#[test]
fn json_patches() {
    run("json-patch", PARSER, |input| {
        if let Ok(patch) = JsonPatch::parse(input) {
            let mut pod = pod();
            if apply_json(&mut pod, &patch).is_ok() {
                // The corpus has patches that copy what they copied: that has a bound.
                assert!(pod.to_string().len() < 16 << 20);
            }
        }
    });
}

#[test]
fn merge_patches() {
    run("merge-patch", PARSER, |input| {
        if let Ok(parsed) = json::parse(input) {
            let mut once = pod();
            apply_merge(&mut once, &parsed.value);
            let mut twice = once.clone();
            apply_merge(&mut twice, &parsed.value);
            assert_eq!(once, twice);
        }
    });
}

#[test]
fn strategic_patches() {
    let ty = facts::lookup("io.k8s.api.core.v1.Pod").expect("there are pods");
    run("strategic-patch", PARSER, |input| {
        if let Ok(parsed) = json::parse(input) {
            let mut pod = pod();
            drop(apply_strategic(&mut pod, &parsed.value, ty));
        }
    });
}
