//! Kubernetes' strategic merge patch: a merge patch that knows the types.
//!
//! Lists that are declared mergeable merge by their key; directives (`$patch`, `$retainKeys`,
//! `$setElementOrder/…`, `$deleteFromPrimitiveList/…`) say what plain values cannot.
//! See the Kubernetes concept *strategic merge patch*.

use serde_json::{Map, Value};

use super::Error;
use crate::facts::{Field, Shape, Type};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// Applies a strategic merge patch to an object of this type.
///
/// # Errors
/// [`Error::Malformed`] for a directive that is none, or an item without its merge key. The target is then
/// in no defined state and must be dropped.
pub fn apply_strategic(target: &mut Value, patch: &Value, ty: &Type) -> Result<(), Error> {
    let Value::Object(patch) = patch else {
        return Err(Error::Malformed("a strategic merge patch must be an object".to_owned()));
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let map = target.as_object_mut().expect("made an object above");
    merge_map(map, patch, Some(ty))
}

fn merge_map(
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    ty: Option<&Type>,
) -> Result<(), Error> {
    match patch.get(PATCH).map(|d| d.as_str().unwrap_or_default()) {
        Some("replace") => {
            target.clear();
            let plain = patch.iter().filter(|(key, _)| key.as_str() != PATCH);
            target.extend(plain.map(|(key, value)| (key.clone(), value.clone())));
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        None | Some("merge") => {}
        Some(other) => {
            let map = Value::Object(patch.clone());
            return Err(Error::Malformed(format!("unknown patch type: {other} in map: {map}")));
        }
    }
    if let Some(keys) = patch.get(RETAIN_KEYS) {
        let wrong = || Error::Malformed("invalid patch format of retainKeys".to_owned());
        let keys = keys.as_array().ok_or_else(wrong)?;
        let named = |key: &str| keys.iter().any(|k| k == key);
        // What the patch sets is kept, so it must be named.
        let set = patch.iter().filter(|(key, value)| !value.is_null() && !key.starts_with('$'));
        if set.into_iter().any(|(key, _)| !named(key)) {
            return Err(wrong());
        }
        target.retain(|key, _| named(key));
    }
    let mut ordered = Vec::new();
    for (key, order) in patch {
        if let Some(field) = key.strip_prefix(ELEMENT_ORDER) {
            let merge_key = ty.and_then(|t| t.fields.get(field)).and_then(|f| f.merge_key);
            let order = order
                .as_array()
                .ok_or_else(|| Error::Malformed("invalid patch format of setElementOrder list".to_owned()))?;
            check_order(patch.get(field), order, merge_key)?;
            let live = target.get(field).and_then(Value::as_array).map(|items| identities(items, merge_key));
            ordered.push((field, order, merge_key, live.unwrap_or_default()));
        }
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_FROM) {
            delete_from(target, field, value)?;
        } else if !key.starts_with('$') {
            merge_field(target, key, value, ty)?;
        }
    }
    for (field, order, merge_key, live) in ordered {
        if let Some(Value::Array(items)) = target.get_mut(field) {
            arrange(items, order, &live, merge_key);
        }
    }
    Ok(())
}

/// The items that the patch sets must be in the order that it gives.
fn check_order(items: Option<&Value>, order: &[Value], merge_key: Option<&str>) -> Result<(), Error> {
    let Some(Value::Array(items)) = items else { return Ok(()) };
    if order.is_empty() {
        return Ok(());
    }
    let mut rest = order.iter();
    for item in items.iter().filter(|item| item.get(PATCH).is_none()) {
        if !rest.any(|wanted| identity(item, merge_key) == identity(wanted, merge_key)) {
            return Err(Error::Malformed(format!(
                "The order in patch list:\n{}\n doesn't match {ELEMENT_ORDER} list:\n{}\n",
                Value::Array(items.clone()),
                Value::Array(order.to_vec())
            )));
        }
    }
    Ok(())
}

fn delete_from(target: &mut Map<String, Value>, field: &str, values: &Value) -> Result<(), Error> {
    let values = values
        .as_array()
        .ok_or_else(|| Error::Malformed("invalid patch format of primitive list".to_owned()))?;
    if let Some(Value::Array(items)) = target.get_mut(field) {
        items.retain(|item| !values.contains(item));
    }
    Ok(())
}

fn merge_field(
    target: &mut Map<String, Value>,
    key: &str,
    value: &Value,
    ty: Option<&Type>,
) -> Result<(), Error> {
    let field = ty.and_then(|t| t.fields.get(key));
    match value {
        Value::Null => drop(target.remove(key)),
        Value::Object(patch) => {
            let replaced = field.is_some_and(|f| matches!(f.shape.wire(), Shape::Any));
            if replaced && patch.get(PATCH).is_none() {
                target.insert(key.to_owned(), value.clone());
                return Ok(());
            }
            let slot = target.entry(key).or_insert(Value::Null);
            if !slot.is_object() {
                *slot = Value::Object(Map::new());
            }
            let map = slot.as_object_mut().expect("made an object above");
            merge_map(map, patch, field.and_then(|f| f.shape.resolve()))?;
            if patch.get(PATCH).is_some_and(|d| d == "delete") {
                target.remove(key);
            }
        }
        Value::Array(patch) => {
            let merged = field.filter(|f| f.patch_merge);
            let slot = target.entry(key).or_insert_with(|| Value::Array(Vec::new()));
            match (merged, slot.as_array_mut()) {
                (Some(field), Some(items)) => merge_list(items, patch, field)?,
                _ => *slot = value.clone(),
            }
        }
        _ => drop(target.insert(key.to_owned(), value.clone())),
    }
    Ok(())
}

fn merge_list(items: &mut Vec<Value>, patch: &[Value], field: &Field) -> Result<(), Error> {
    let live = identities(items, field.merge_key);
    match field.merge_key {
        Some(merge_key) => merge_items(items, patch, field, merge_key)?,
        None => {
            for value in patch {
                if !items.contains(value) {
                    items.push(value.clone());
                }
            }
        }
    }
    arrange(items, patch, &live, field.merge_key);
    Ok(())
}

fn merge_items(items: &mut Vec<Value>, patch: &[Value], field: &Field, merge_key: &str) -> Result<(), Error> {
    let item_type = match &field.shape {
        Shape::List(item) => item.resolve(),
        _ => None,
    };
    let replace = patch.iter().any(|p| p.get(PATCH).is_some_and(|d| d == "replace"));
    if replace {
        items.clear();
    }
    for value in patch {
        let map = value
            .as_object()
            .ok_or_else(|| Error::Malformed(format!("expected an object with the key {merge_key}")))?;
        match map.get(PATCH).map(|directive| directive.as_str().unwrap_or_default()) {
            Some("replace") if map.len() == 1 => continue,
            None | Some("replace" | "delete") => {}
            Some("merge") => {
                return Err(Error::Malformed(
                    "merging lists cannot yet be specified in the patch".to_owned(),
                ));
            }
            Some(other) => {
                return Err(Error::Malformed(format!("unknown patch type: {other} in map: {value}")));
            }
        }
        let key = map.get(merge_key).ok_or_else(|| {
            Error::Malformed(format!("map: {value} does not contain declared merge key: {merge_key}"))
        })?;
        let at = items.iter().position(|item| item.get(merge_key) == Some(key));
        if map.get(PATCH).is_some_and(|d| d == "delete") {
            items.retain(|item| item.get(merge_key) != Some(key));
            continue;
        }
        let slot = match at {
            Some(at) => &mut items[at],
            None => {
                items.push(Value::Object(Map::new()));
                items.last_mut().expect("pushed above")
            }
        };
        if let Some(target) = slot.as_object_mut() {
            merge_map(target, map, item_type)?;
            target.remove(PATCH);
        }
    }
    Ok(())
}

/// What makes an item the same in two lists: the value of its merge key, or all of it.
fn identity<'v>(item: &'v Value, merge_key: Option<&str>) -> Option<&'v Value> {
    match merge_key {
        Some(key) => item.get(key),
        None => Some(item),
    }
}

fn identities(items: &[Value], merge_key: Option<&str>) -> Vec<Value> {
    items.iter().filter_map(|item| identity(item, merge_key).cloned()).collect()
}

/// Puts the items that the client named into its order. The others keep theirs, each before the next named one that
/// came after it in the live list: so what is new comes first.
fn arrange(items: &mut Vec<Value>, order: &[Value], live: &[Value], merge_key: Option<&str>) {
    let place = |list: &[Value], item: &Value| {
        let wanted = identity(item, merge_key)?;
        list.iter().position(|other| other == wanted)
    };
    let order = identities(order, merge_key);
    let (mut named, others): (Vec<_>, Vec<_>) =
        std::mem::take(items).into_iter().partition(|item| place(&order, item).is_some());
    named.sort_by_key(|item| place(&order, item));
    let mut others = others.into_iter().peekable();
    for item in named {
        let before = |other: &Value| match (place(live, other), place(live, &item)) {
            (Some(other), Some(named)) => other < named,
            _ => false,
        };
        while let Some(other) = others.next_if(|other| before(other)) {
            items.push(other);
        }
        items.push(item);
    }
    items.extend(others);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts;
    use serde_json::json;

    fn deployment() -> Value {
        json!({"spec": {"replicas": 1, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
            "template": {"spec": {"containers": [
                {"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}], "args": ["x"]},
                {"name": "b", "image": "b:1"}],
              "volumes": [{"name": "v", "emptyDir": {}}]}}},
            "metadata": {"labels": {"k": "v"}, "finalizers": ["f1"]}})
    }

    fn patched(patch: Value) -> Value {
        let mut target = deployment();
        apply_strategic(&mut target, &patch, facts::lookup("io.k8s.api.apps.v1.Deployment").unwrap())
            .unwrap();
        target
    }

    #[test]
    fn containers_merge_by_name() {
        let got = patched(json!({"spec": {"template": {"spec": {"containers": [
            {"name": "a", "image": "a:2", "env": [{"name": "Y", "value": "2"}], "args": ["y"]}]}}}}));
        let containers = &got["spec"]["template"]["spec"]["containers"];
        assert_eq!(containers[0]["image"], "a:2");
        assert_eq!(containers[0]["env"].as_array().unwrap().len(), 2);
        assert_eq!(containers[0]["args"], json!(["y"]));
        assert_eq!(containers[1]["image"], "b:1");
    }

    #[test]
    fn directives() {
        let got = patched(
            json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}}}),
        );
        assert_eq!(got["spec"]["template"]["spec"]["containers"], json!([{"name": "b", "image": "b:1"}]));

        let got = patched(json!({"spec": {"template": {"spec": {
            "containers": [{"name": "c"}, {"$patch": "replace"}]}}}}));
        assert_eq!(got["spec"]["template"]["spec"]["containers"], json!([{"name": "c"}]));

        let got = patched(json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}));
        assert_eq!(got["spec"]["strategy"], json!({"type": "Recreate"}));

        let got = patched(json!({"spec": {"template": {"spec": {
            "volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]}}}}));
        assert_eq!(
            got["spec"]["template"]["spec"]["volumes"],
            json!([{"name": "v", "hostPath": {"path": "/"}}])
        );

        let got = patched(json!({"metadata": {"finalizers": ["f2"], "labels": {"k": null, "n": "1"}}}));
        assert_eq!(got["metadata"], json!({"labels": {"n": "1"}, "finalizers": ["f2", "f1"]}));

        let got = patched(json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["f1"]}}));
        assert_eq!(got["metadata"]["finalizers"], json!([]));

        let got = patched(json!({"spec": {"template": {"$patch": "replace", "x": 1}}}));
        assert_eq!(got["spec"]["template"], json!({"x": 1}));
    }

    #[test]
    fn order_is_the_clients() {
        let got = patched(json!({"spec": {"template": {"spec": {
            "$setElementOrder/containers": [{"name": "c"}, {"name": "a"}],
            "containers": [{"name": "c", "image": "c:1"}]}}}}));
        assert_eq!(container_names(&got), ["c", "a", "b"]);

        let got = patched(json!({"spec": {"template": {"spec": {
            "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}}}));
        assert_eq!(container_names(&got), ["b", "a"]);
    }

    #[test]
    fn what_a_patch_adds_comes_before_what_it_does_not_name() {
        let got = patched(json!({"spec": {"template": {"spec": {"containers": [{"name": "c"}]}}}}));
        assert_eq!(container_names(&got), ["c", "a", "b"]);

        let got =
            patched(json!({"spec": {"template": {"spec": {"containers": [{"name": "b"}, {"name": "c"}]}}}}));
        assert_eq!(container_names(&got), ["a", "b", "c"]);
    }

    fn container_names(deployment: &Value) -> Vec<&str> {
        let containers = deployment["spec"]["template"]["spec"]["containers"].as_array().unwrap();
        containers.iter().map(|container| container["name"].as_str().unwrap()).collect()
    }

    #[test]
    fn malformed() {
        let ty = facts::lookup("io.k8s.api.apps.v1.Deployment").unwrap();
        for patch in [
            json!([]),
            json!({"spec": {"$patch": "what"}}),
            json!({"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}}),
            json!({"spec": {"strategy": {"$retainKeys": "type"}}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": "x"}}),
            json!({"metadata": {"$setElementOrder/finalizers": "x"}}),
            json!({"metadata": {"$setElementOrder/finalizers": ["a", "b"], "finalizers": ["b", "a"]}}),
            json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "$patch": "merge"}]}}}}),
            json!({"spec": {"template": {"spec": {"containers": [{"image": "x"}]}}}}),
        ] {
            assert!(apply_strategic(&mut deployment(), &patch, ty).is_err(), "{patch}");
        }
    }
}
