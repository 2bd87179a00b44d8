//! The roles and bindings that every cluster has, made at each start where they are missing and
//! completed where rules were taken away (`rbac.authorization.kubernetes.io/autoupdate`).

use serde_json::{Map, Value, json};

use super::rbac::GROUP;

const TEXT: &str = include_str!("bootstrap-rbac.txt");
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
/// Our controllers share one identity, where Kubernetes gives each a service account: so this user
/// is a subject of each controller's binding.
const CONTROLLERS: (&str, &str) = ("system:controller:", "system:kube-controller-manager");

/// One object to be there: its resource and itself.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) resource: &'static str,
    pub(crate) object: Value,
}

/// The bootstrap objects, in the order in which they are to be made.
pub(crate) fn objects() -> Vec<Wanted> {
    let mut objects: Vec<Wanted> = Vec::new();
    for line in TEXT.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with(' ') {
            let object = &mut objects.last_mut().expect("the text starts with an object").object;
            add(object, &words);
        } else {
            objects.push(head(&words));
        }
    }
    for wanted in &mut objects {
        let name = wanted.object["metadata"]["name"].as_str().unwrap_or_default();
        if wanted.resource.ends_with("bindings") && name.starts_with(CONTROLLERS.0) {
            push(&mut wanted.object, "subjects", subject("User", CONTROLLERS.1));
        }
    }
    objects
}

fn head(words: &[&str]) -> Wanted {
    let kind = words[0];
    let (namespace, rest) = match kind {
        "Role" | "RoleBinding" => (Some(words[1]), &words[2..]),
        _ => (None, &words[1..]),
    };
    let mut labels = Map::new();
    labels.insert("kubernetes.io/bootstrapping".to_owned(), "rbac-defaults".into());
    for label in rest.iter().filter_map(|w| w.strip_prefix('+')) {
        labels.insert(format!("{GROUP}/{label}"), "true".into());
    }
    let mut metadata = json!({"name": rest[0], "labels": labels, "annotations": {AUTOUPDATE: "true"}});
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    let mut object = json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": metadata});
    let resource = match kind {
        "ClusterRole" => "clusterroles",
        "Role" => "roles",
        "ClusterRoleBinding" => "clusterrolebindings",
        _ => "rolebindings",
    };
    if let Some(role) = rest.iter().position(|&w| w == "=").and_then(|i| rest.get(i + 1)) {
        let role_kind = if kind == "ClusterRoleBinding" { "ClusterRole" } else { "Role" };
        object["roleRef"] = json!({"apiGroup": GROUP, "kind": role_kind, "name": role});
    } else {
        object["rules"] = json!([]);
    }
    Wanted { resource, object }
}

fn add(object: &mut Value, words: &[&str]) {
    match words {
        ["aggregates", label] => {
            let selector = json!({"matchLabels": {format!("{GROUP}/{label}"): "true"}});
            object["aggregationRule"] = json!({"clusterRoleSelectors": [selector]});
        }
        [kind @ ("User" | "Group" | "ServiceAccount"), name] => push(object, "subjects", subject(kind, name)),
        [verbs, "urls", urls] => {
            push(object, "rules", json!({"nonResourceURLs": list(urls), "verbs": list(verbs)}));
        }
        [verbs, groups, resources, names @ ..] => {
            let groups: Vec<&str> = groups.split(',').map(|g| if g == "core" { "" } else { g }).collect();
            let mut rule = json!({"apiGroups": groups, "resources": list(resources), "verbs": list(verbs)});
            if let Some(names) = names.first() {
                rule["resourceNames"] = json!(list(names));
            }
            push(object, "rules", rule);
        }
        _ => unreachable!("the embedded text is checked by a test"),
    }
}

fn subject(kind: &str, name: &str) -> Value {
    match name.split_once('/') {
        Some((namespace, name)) if kind == "ServiceAccount" => {
            json!({"kind": kind, "name": name, "namespace": namespace})
        }
        _ => json!({"apiGroup": GROUP, "kind": kind, "name": name}),
    }
}

fn list(words: &str) -> Vec<&str> {
    words.split(',').collect()
}

fn push(object: &mut Value, field: &str, item: Value) {
    match object[field].as_array_mut() {
        Some(items) => items.push(item),
        None => object[field] = json!([item]),
    }
}

/// What an existing object must become so that it grants at least what `wanted` grants; `None`
/// if it does already, or if its owner switched reconciliation off. Nothing is taken away.
pub(crate) fn reconciled(existing: &Value, wanted: &Value) -> Option<Value> {
    let autoupdate = existing["metadata"]["annotations"][AUTOUPDATE].as_str();
    if autoupdate == Some("false") || existing["roleRef"] != wanted["roleRef"] {
        return None;
    }
    let mut result = existing.clone();
    let mut changed = false;
    for field in ["rules", "subjects"] {
        for item in wanted[field].as_array().into_iter().flatten() {
            let present = existing[field].as_array().is_some_and(|items| items.contains(item));
            if !present {
                push(&mut result, field, item.clone());
                changed = true;
            }
        }
    }
    changed.then_some(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_text_is_whole() {
        let objects = objects();
        let count = |r: &str| objects.iter().filter(|o| o.resource == r).count();
        assert_eq!((count("roles"), count("rolebindings")), (7, 7));
        assert!(count("clusterroles") >= 70 && count("clusterrolebindings") >= 50);
        let find = |r: &str, n: &str| {
            objects
                .iter()
                .find(|o| o.resource == r && o.object["metadata"]["name"] == n)
                .unwrap()
                .object
                .clone()
        };
        assert_eq!(
            find("clusterroles", "cluster-admin")["rules"][1],
            json!({"nonResourceURLs": ["*"], "verbs": ["*"]})
        );
        assert!(find("clusterroles", "admin")["aggregationRule"].is_object());
        assert_eq!(
            find("clusterrolebindings", "system:kube-dns")["subjects"][0],
            json!({"kind": "ServiceAccount", "name": "kube-dns", "namespace": "kube-system"})
        );
        for binding in objects.iter().filter(|o| o.resource.ends_with("bindings")) {
            let role = &binding.object["roleRef"]["name"];
            assert!(objects.iter().any(|o| &o.object["metadata"]["name"] == role), "{role} is missing");
        }
    }

    #[test]
    fn reconciling_adds_and_never_removes() {
        let wanted = json!({"metadata": {"name": "r"}, "rules": [{"verbs": ["get"]}, {"verbs": ["list"]}]});
        let existing = json!({"metadata": {"name": "r"}, "rules": [{"verbs": ["get"]}, {"verbs": ["own"]}]});
        let result = reconciled(&existing, &wanted).unwrap();
        assert_eq!(result["rules"], json!([{"verbs": ["get"]}, {"verbs": ["own"]}, {"verbs": ["list"]}]));
        assert_eq!(reconciled(&result, &wanted), None);
    }
}
