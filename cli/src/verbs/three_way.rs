//! The patch that turns a live object into what a manifest says: what the manifest says now, and the
//! removal of what it said when it was applied last and says no more.
//!
//! Fields that others set (defaults, controllers, other appliers) stay. Lists that Kubernetes declares
//! mergeable are merged by their keys, as `kubectl apply` does on the client's side.

use decapod_api::facts::{Field, Shape, Type};
use serde_json::{Map, Value, json};

/// A strategic merge patch (for a known type), else a merge patch.
pub(crate) fn patch(last: &Value, wanted: &Value, live: &Value, ty: Option<&Type>) -> Value {
    Value::Object(maps(last, wanted, live, ty))
}

fn maps(last: &Value, wanted: &Value, live: &Value, ty: Option<&Type>) -> Map<String, Value> {
    let mut patch = Map::new();
    let empty = Map::new();
    let last_map = last.as_object().unwrap_or(&empty);
    for (key, value) in wanted.as_object().unwrap_or(&empty) {
        let live_value = &live[key.as_str()];
        let field = ty.and_then(|t| t.fields.get(key.as_str()));
        let last_value = last_map.get(key).unwrap_or(&Value::Null);
        match value {
            Value::Object(_) if live_value.is_object() => {
                let inner = maps(last_value, value, live_value, field.and_then(|f| f.shape.resolve()));
                if !inner.is_empty() {
                    patch.insert(key.clone(), Value::Object(inner));
                }
            }
            Value::Array(items) if live_value.is_array() => {
                match field.filter(|f| f.patch_merge).and_then(|f| Some((f, f.merge_key?))) {
                    Some((field, merge_key)) => {
                        lists(&mut patch, key, last_value, items, live_value, field, merge_key)
                    }
                    None if value != live_value => drop(patch.insert(key.clone(), value.clone())),
                    None => {}
                }
            }
            _ if value != live_value => drop(patch.insert(key.clone(), value.clone())),
            _ => {}
        }
    }
    for key in last_map.keys() {
        if wanted.get(key).is_none() && live.get(key).is_some() {
            patch.insert(key.clone(), Value::Null);
        }
    }
    patch
}

fn lists(
    patch: &mut Map<String, Value>,
    key: &str,
    last: &Value,
    wanted: &[Value],
    live: &Value,
    field: &Field,
    merge_key: &str,
) {
    let item_type = match &field.shape {
        Shape::List(item) => item.resolve(),
        _ => None,
    };
    let by_key = |list: &Value, id: &Value| -> Value {
        let found = list.as_array().into_iter().flatten().find(|i| i.get(merge_key) == Some(id));
        found.cloned().unwrap_or_default()
    };
    let mut items = Vec::new();
    for item in wanted {
        let id = item.get(merge_key).cloned().unwrap_or_default();
        let (live, last) = (by_key(live, &id), by_key(last, &id));
        if live.is_null() {
            items.push(item.clone());
            continue;
        }
        let mut inner = maps(&last, item, &live, item_type);
        if !inner.is_empty() {
            inner.insert(merge_key.to_owned(), id);
            items.push(Value::Object(inner));
        }
    }
    for item in last.as_array().into_iter().flatten() {
        let id = item.get(merge_key).cloned().unwrap_or_default();
        let gone = !wanted.iter().any(|w| w.get(merge_key) == Some(&id));
        if gone && !by_key(live, &id).is_null() {
            items.push(json!({ "$patch": "delete", merge_key: id }));
        }
    }
    if !items.is_empty() {
        let order: Vec<Value> = wanted.iter().map(|w| json!({ merge_key: w.get(merge_key) })).collect();
        patch.insert(format!("$setElementOrder/{key}"), order.into());
        patch.insert(key.to_owned(), items.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use decapod_api::{facts, patch::apply_strategic};

    fn applied(last: Value, wanted: Value, live: Value) -> (Value, Value) {
        let ty = facts::lookup("io.k8s.api.apps.v1.Deployment").unwrap();
        let made = patch(&last, &wanted, &live, Some(ty));
        let mut result = live;
        apply_strategic(&mut result, &made, ty).unwrap();
        (made, result)
    }

    #[test]
    fn what_others_set_stays_and_what_is_said_no_more_goes() {
        let last = json!({"metadata": {"labels": {"a": "1", "b": "1"}}, "spec": {"template": {"spec": {"containers": [
            {"name": "x", "image": "x:1"}, {"name": "y", "image": "y:1"}]}}}});
        let wanted = json!({"metadata": {"labels": {"a": "2"}}, "spec": {"template": {"spec": {"containers": [{"name": "x", "image": "x:2"}]}}}});
        let live = json!({"metadata": {"labels": {"a": "1", "b": "1", "c": "1"}}, "spec": {"replicas": 3, "template": {"spec": {"containers": [
            {"name": "x", "image": "x:1", "imagePullPolicy": "Always"}, {"name": "y", "image": "y:1"}, {"name": "injected"}]}}}});
        let (_, result) = applied(last, wanted, live);
        assert_eq!(
            result,
            json!({"metadata": {"labels": {"a": "2", "c": "1"}}, "spec": {"replicas": 3, "template": {"spec": {"containers": [
                {"name": "x", "image": "x:2", "imagePullPolicy": "Always"}, {"name": "injected"}]}}}})
        );
    }

    #[test]
    fn nothing_to_change_is_an_empty_patch() {
        let object = json!({"spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "x", "args": ["a"]}]}}}});
        let live = json!({"spec": {"replicas": 1, "paused": false, "template": {"spec": {"containers": [{"name": "x", "args": ["a"], "tty": false}]}}}});
        assert_eq!(applied(object.clone(), object, live).0, json!({}));
    }
}
