//! JSON patch, RFC 6902.

use serde::Deserialize;
use serde_json::Value;

use super::Error;

/// The most operations in one patch, as Kubernetes bounds it.
const MAX_OPERATIONS: usize = 10_000;

/// How much a patch may make by copying, in bytes: as much as a request may bring. A patch that copies what it
/// copied doubles it each time.
const MAX_COPIED: usize = 3 << 20;

/// A JSON patch: its operations, in order.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct JsonPatch(Vec<Operation>);

#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Operation {
    Add { path: String, value: Value },
    Remove { path: String },
    Replace { path: String, value: Value },
    Move { from: String, path: String },
    Copy { from: String, path: String },
    Test { path: String, value: Value },
}

impl JsonPatch {
    /// Reads a patch.
    ///
    /// # Errors
    /// [`Error::Malformed`] names the operation that is not one.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let malformed = |e: serde_json::Error| Error::Malformed(format!("error decoding patch: {e}"));
        // Of a field that is there twice the last one counts, as everywhere.
        let value = crate::json::parse(bytes).map_err(malformed)?.value;
        let patch: Self = serde_json::from_value(value).map_err(malformed)?;
        if patch.0.len() > MAX_OPERATIONS {
            return Err(Error::Malformed(format!(
                "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                patch.0.len()
            )));
        }
        Ok(patch)
    }
}

/// Applies all operations, or none: on an error the target is in no defined state and must be dropped.
///
/// # Errors
/// [`Error::Inapplicable`] names the operation and the path that does not fit.
pub fn apply_json(target: &mut Value, patch: &JsonPatch) -> Result<(), Error> {
    let mut copied = 0;
    patch.0.iter().try_for_each(|operation| apply(target, operation, &mut copied))
}

fn missing(op: &str, path: &str) -> Error {
    Error::Inapplicable(format!("{op} operation does not apply: doc is missing path: {path}: missing value"))
}

fn apply(target: &mut Value, operation: &Operation, copied: &mut usize) -> Result<(), Error> {
    match operation {
        Operation::Add { path, value } => add(target, path, value.clone(), "add"),
        Operation::Remove { path } => remove(target, path, "remove").map(drop),
        Operation::Replace { path, value } => {
            *find(target, path, "replace")? = value.clone();
            Ok(())
        }
        Operation::Move { from, path } => {
            if path.strip_prefix(from.as_str()).is_some_and(|rest| rest.starts_with('/')) {
                return Err(Error::Inapplicable(format!(
                    "move operation does not apply: {from} cannot move into itself at {path}"
                )));
            }
            let value = remove(target, from, "move")?;
            add(target, path, value, "move")
        }
        Operation::Copy { from, path } => {
            let source = find(target, from, "copy")?;
            *copied += source.to_string().len();
            if *copied > MAX_COPIED {
                return Err(Error::Inapplicable(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPIED}"
                )));
            }
            let value = source.clone();
            add(target, path, value, "copy")
        }
        Operation::Test { path, value } => match find(target, path, "test") {
            Ok(found) if found == value => Ok(()),
            Err(_) if value.is_null() => Ok(()),
            _ => Err(Error::Inapplicable(format!("testing value {path} failed: test failed"))),
        },
    }
}

fn unescape(token: &str) -> String {
    token.replace("~1", "/").replace("~0", "~")
}

/// Splits a pointer into its parent's tokens and the last one; `None` for the root.
fn split(path: &str, op: &str) -> Result<Option<(Vec<String>, String)>, Error> {
    if path.is_empty() {
        return Ok(None);
    }
    let rest = path.strip_prefix('/').ok_or_else(|| missing(op, path))?;
    let mut tokens: Vec<String> = rest.split('/').map(unescape).collect();
    let last = tokens.pop().expect("split yields at least one part");
    Ok(Some((tokens, last)))
}

/// The place of a token in a list of this length; counted from the end if it is negative.
fn index(token: &str, bound: usize) -> Option<usize> {
    if let Some(back) = token.strip_prefix('-').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit())) {
        return back.parse().ok().filter(|back| (1..=bound).contains(back)).map(|back: usize| bound - back);
    }
    let leading_zero = token.len() > 1 && token.starts_with('0');
    token.parse().ok().filter(|i| *i < bound && !leading_zero && !token.starts_with('+'))
}

fn step<'a>(value: &'a mut Value, token: &str) -> Option<&'a mut Value> {
    match value {
        Value::Object(map) => map.get_mut(token),
        Value::Array(items) => index(token, items.len()).map(|i| &mut items[i]),
        _ => None,
    }
}

fn find<'a>(target: &'a mut Value, path: &str, op: &str) -> Result<&'a mut Value, Error> {
    let Some((parents, last)) = split(path, op)? else { return Ok(target) };
    let mut at = target;
    for token in parents.iter().chain([&last]) {
        at = step(at, token).ok_or_else(|| missing(op, path))?;
    }
    Ok(at)
}

fn add(target: &mut Value, path: &str, value: Value, op: &str) -> Result<(), Error> {
    let Some((parents, last)) = split(path, op)? else {
        *target = value;
        return Ok(());
    };
    let mut at = target;
    for token in &parents {
        at = step(at, token).ok_or_else(|| missing(op, path))?;
    }
    match at {
        Value::Object(map) => drop(map.insert(last, value)),
        Value::Array(items) if last == "-" => items.push(value),
        Value::Array(items) => {
            let i = index(&last, items.len() + 1).ok_or_else(|| {
                Error::Inapplicable(format!(
                    "{op} operation does not apply: doc is missing path: {path}: invalid index referenced"
                ))
            })?;
            items.insert(i, value);
        }
        _ => return Err(missing(op, path)),
    }
    Ok(())
}

fn remove(target: &mut Value, path: &str, op: &str) -> Result<Value, Error> {
    let Some((parents, last)) = split(path, op)? else {
        return Ok(target.take());
    };
    let mut at = target;
    for token in &parents {
        at = step(at, token).ok_or_else(|| missing(op, path))?;
    }
    match at {
        Value::Object(map) => map.remove(&last),
        Value::Array(items) => index(&last, items.len()).map(|i| items.remove(i)),
        _ => None,
    }
    .ok_or_else(|| missing(op, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patched(mut target: Value, patch: Value) -> Result<Value, Error> {
        let patch = JsonPatch::parse(patch.to_string().as_bytes())?;
        apply_json(&mut target, &patch)?;
        Ok(target)
    }

    #[test]
    fn copies_of_copies_have_a_bound() {
        let doubling = vec![json!({"op": "copy", "from": "/a", "path": "/a/-"}); 40];
        let patch = JsonPatch::parse(json!(doubling).to_string().as_bytes()).unwrap();
        let mut target = json!({"a": ["text"]});
        let refused = apply_json(&mut target, &patch).unwrap_err();
        assert!(refused.to_string().starts_with("Unable to complete the copy"), "{refused}");
        assert!(target.to_string().len() <= 2 * MAX_COPIED);
    }

    #[test]
    fn operations() {
        let doc = json!({"a": [1, 2], "b": {"c/d": 1}});
        for (patch, want) in [
            (json!([{"op":"add","path":"/a/1","value":9}]), json!({"a":[1,9,2],"b":{"c/d":1}})),
            (json!([{"op":"add","path":"/a/-","value":9}]), json!({"a":[1,2,9],"b":{"c/d":1}})),
            (json!([{"op":"replace","path":"/a/-1","value":9}]), json!({"a":[1,9],"b":{"c/d":1}})),
            (json!([{"op":"remove","path":"/b/c~1d"}]), json!({"a":[1,2],"b":{}})),
            (json!([{"op":"replace","path":"/a/0","value":{}}]), json!({"a":[{},2],"b":{"c/d":1}})),
            (json!([{"op":"move","from":"/a/0","path":"/b/x"}]), json!({"a":[2],"b":{"c/d":1,"x":1}})),
            (json!([{"op":"copy","from":"/a","path":"/b/x"}]), json!({"a":[1,2],"b":{"c/d":1,"x":[1,2]}})),
            (json!([{"op":"test","path":"/a/0","value":1}]), doc.clone()),
        ] {
            assert_eq!(patched(doc.clone(), patch.clone()).unwrap(), want, "{patch}");
        }
        for patch in [
            json!([{"op":"remove","path":"/x"}]),
            json!([{"op":"replace","path":"/a/2","value":1}]),
            json!([{"op":"add","path":"/x/y","value":1}]),
            json!([{"op":"test","path":"/a/0","value":2}]),
            json!([{"op":"move","from":"/b","path":"/b/x"}]),
            json!([{"op":"add","path":"/a/01","value":1}]),
            json!([{"op":"add","path":"a","value":1}]),
        ] {
            assert!(matches!(patched(doc.clone(), patch.clone()), Err(Error::Inapplicable(_))), "{patch}");
        }
        for patch in [json!([{"op":"what","path":"/a"}]), json!({}), json!([{"op":"add","path":"/a"}])] {
            assert!(matches!(patched(doc.clone(), patch.clone()), Err(Error::Malformed(_))), "{patch}");
        }
    }
}
