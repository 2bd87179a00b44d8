//! Properties of all kinds: normalizing twice is normalizing once, and nothing panics on whatever JSON
//! of a kind's form.

use decapod_api::facts::{self, Shape, Type};
use decapod_api::resource::RESOURCES;
use decapod_api::validate::Scope;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use serde_json::{Map, Value, json};

/// How deep generated objects are: a container's probe's header, and a bit more.
const DEPTH: u32 = 9;

/// A stream of choices, so that one seed gives one object whatever the type.
struct Choices(u64);

impl Choices {
    fn next(&mut self, of: u64) -> u64 {
        // xorshift: any well-spread sequence will do.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % of
    }

    fn text(&mut self) -> &'static str {
        const TEXTS: [&str; 14] = [
            "",
            "a",
            "A b",
            "web-1",
            "example.com/x",
            "10.0.0.1",
            "::1/64",
            "None",
            "Always",
            "25%",
            "-1",
            "Localhost",
            "metadata.labels['a']",
            "é",
        ];
        TEXTS[self.next(TEXTS.len() as u64) as usize]
    }
}

fn value(shape: &'static Shape, depth: u32, choices: &mut Choices) -> Value {
    if let Some(ty) = shape.resolve() {
        return object(ty, depth, choices);
    }
    match shape.wire() {
        Shape::String | Shape::Ref(_) => choices.text().into(),
        Shape::Bytes => ["", "YQ==", "e30="][choices.next(3) as usize].into(),
        Shape::Time => {
            ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.123456Z"][choices.next(2) as usize].into()
        }
        Shape::Int32 | Shape::Int64 => json!([0, 1, -1, 80, 65536, 2_147_483_647][choices.next(6) as usize]),
        Shape::Number => json!(0.5),
        Shape::Bool => json!(choices.next(2) == 0),
        Shape::Quantity => ["0", "1", "100m", "-1", "2Gi", "1e3"][choices.next(6) as usize].into(),
        Shape::IntOrString => {
            [json!(1), json!("25%"), json!("http"), json!(-1)][choices.next(4) as usize].clone()
        }
        Shape::Any => json!({"any": [1, "x"]}),
        Shape::List(item) => {
            let many = if depth == 0 { 0 } else { choices.next(3) };
            (0..many).map(|_| value(item, depth - 1, choices)).collect()
        }
        Shape::Map(item) => {
            let many = if depth == 0 { 0 } else { choices.next(3) };
            (0..many).map(|_| (choices.text().to_owned(), value(item, depth - 1, choices))).collect()
        }
    }
}

fn object(ty: &'static Type, depth: u32, choices: &mut Choices) -> Value {
    let mut fields: Vec<_> = ty.fields.iter().collect();
    fields.sort_by_key(|(name, _)| **name);
    let mut map = Map::new();
    for (name, field) in fields {
        // Deep objects get thin, so that they end.
        let keep = depth > 0 && (field.required || choices.next(if depth > DEPTH - 3 { 2 } else { 4 }) == 0);
        if keep {
            map.insert((*name).to_owned(), value(&field.shape, depth - 1, choices));
        }
    }
    Value::Object(map)
}

#[test]
fn all_kinds_hold_still_and_nothing_panics() {
    // Fixed seeds: a failure is one of the code, never of the day.
    let config =
        Config { cases: 48, failure_persistence: None, rng_seed: RngSeed::Fixed(36), ..Config::default() };
    let seeds = 1..u64::MAX;
    TestRunner::new(config)
        .run(&seeds, |seed| {
            let mut choices = Choices(seed);
            for r in RESOURCES {
                let ty = facts::lookup(r.type_name).expect("every row's type has facts");
                let mut made = || {
                    let mut tree = object(ty, DEPTH, &mut choices);
                    tree["apiVersion"] = r.api_version().into();
                    tree["kind"] = r.kind.into();
                    (r.ops.normalize)(tree)
                };
                let (Ok(once), Ok(other)) = (made(), made()) else { continue };
                let again = (r.ops.normalize)(once.object.clone());
                let again = again.map_err(|e| TestCaseError::fail(format!("{}: {e}", r.qualified())))?;
                prop_assert_eq!(&again.object, &once.object, "{}", r.qualified());
                for scope in [Scope::Main, Scope::Status, Scope::Ephemeral, Scope::Resize] {
                    (r.ops.validate)(&once.object, None, scope);
                    (r.ops.validate)(&once.object, Some(&again.object), scope);
                    (r.ops.validate)(&once.object, Some(&other.object), scope);
                }
            }
            Ok(())
        })
        .expect("no kind moves or panics");
}
