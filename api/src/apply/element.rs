//! Path elements: one step into an object, as `FieldsV1` writes it.

use serde_json::{Map, Value};

use super::place::Place;

/// A field, or an entry of a map.
pub(super) fn field(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 2);
    text.push_str("f:");
    text.push_str(name);
    text
}

/// An item of a set.
fn value(item: &Value) -> Option<String> {
    (!item.is_object() && !item.is_array() && !item.is_null()).then(|| format!("v:{item}"))
}

/// What tells an item of a list apart from the others; `None` if nothing does.
pub(super) fn of_item(place: Place, item: &Value) -> Option<String> {
    match place {
        Place::Set(_) => value(item),
        Place::Keyed(keys, shape) => keyed(keys, place_defaults(shape), item.as_object()?),
        _ => None,
    }
}

type Defaults = Option<&'static crate::facts::Type>;

fn place_defaults(shape: &'static crate::facts::Shape) -> Defaults {
    shape.resolve()
}

fn keyed(keys: &[&'static str], ty: Defaults, item: &Map<String, Value>) -> Option<String> {
    let mut text = String::from("k:{");
    // The keys of a list are few; they are written in alphabetical order.
    let mut sorted: Vec<&str> = keys.to_vec();
    sorted.sort_unstable();
    for key in sorted {
        let default = || ty.and_then(|t| t.fields.get(key)).and_then(|f| f.default.as_ref());
        let Some(value) = item.get(key).or_else(default) else { continue };
        if text.len() > 3 {
            text.push(',');
        }
        text.push('"');
        text.push_str(key);
        text.push_str("\":");
        text.push_str(&value.to_string());
    }
    text.push('}');
    (text.len() > 4).then_some(text)
}

/// The element in the one form that this server writes.
///
/// # Errors
/// What is no element, in words.
pub(super) fn canonical(element: &str) -> Result<String, String> {
    let (kind, rest) = element.split_once(':').ok_or_else(|| format!("missing colon: {element}"))?;
    let parsed = || serde_json::from_str::<Value>(rest).map_err(|e| format!("{element}: {e}"));
    match kind {
        "f" => Ok(element.to_owned()),
        "v" => Ok(format!("v:{}", parsed()?)),
        "k" => match parsed()? {
            keys @ Value::Object(_) => Ok(format!("k:{keys}")),
            _ => Err(format!("{element}: expected a map of keys")),
        },
        "i" => rest.parse::<u64>().map(|i| format!("i:{i}")).map_err(|e| format!("{element}: {e}")),
        _ => Err(format!("unknown path element type: {element}")),
    }
}

/// The element as it is shown to people: `.name`, `[name="x"]`, `[="v"]`.
pub(super) fn display(element: &str) -> String {
    let (kind, rest) = element.split_once(':').unwrap_or(("f", element));
    match kind {
        "k" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let parts: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("[{}]", parts.join(","))
        }
        "v" => format!("[={rest}]"),
        "i" => format!("[{rest}]"),
        _ => format!(".{rest}"),
    }
}
