//! The rules of ownership, on real kinds; and what must hold of any two appliers.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::facts::{self, Type};

struct One;

impl Versions for One {
    fn convert(&self, object: &Value, version: &str) -> Option<(Value, &'static Type)> {
        (version == "apps/v1").then(|| (object.clone(), deployment()))
    }
}

fn deployment() -> &'static Type {
    facts::lookup("io.k8s.api.apps.v1.Deployment").unwrap()
}

fn service() -> &'static Type {
    facts::lookup("io.k8s.api.core.v1.Service").unwrap()
}

fn writer<'a>(manager: &'a str, now: &'a str) -> Writer<'a> {
    Writer { manager, api_version: "apps/v1", subresource: "", now, reset: &[&["status"]] }
}

/// An object with its managers, as a registry keeps it.
#[derive(Clone, Debug, Default)]
struct Live {
    object: Value,
    managers: Managers,
}

impl Live {
    fn made(object: Value, manager: &str) -> Self {
        let managers = created(&object, deployment(), &writer(manager, "2027-01-01T00:00:00Z"));
        let mut object = object;
        object["metadata"]["uid"] = "u".into();
        Self { object, managers }
    }

    fn empty() -> Self {
        Self { object: json!({}), managers: Managers::default() }
    }

    fn apply(&mut self, manager: &str, config: &Value, force: bool) -> Result<bool, Error> {
        let apply = Apply { config, force };
        let who = writer(manager, "2027-01-02T00:00:00Z");
        let done = applied(&self.object, self.managers.clone(), apply, deployment(), &who, &One)?;
        let changed = done.object.is_some();
        self.object = done.object.unwrap_or_else(|| self.object.clone());
        self.object["metadata"]["uid"] = "u".into();
        self.managers = done.managers;
        Ok(changed)
    }

    fn update(&mut self, manager: &str, change: impl FnOnce(&mut Value)) {
        let mut new = self.object.clone();
        change(&mut new);
        let who = writer(manager, "2027-01-03T00:00:00Z");
        self.managers = updated(self.managers.clone(), &self.object, &new, deployment(), &who, &One);
        self.object = new;
    }

    fn owns(&self, manager: &str) -> Vec<String> {
        let mine = self.managers.entries().iter().filter(|e| e.manager == manager);
        mine.flat_map(|e| e.fields.paths()).collect()
    }
}

fn config(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec})
}

#[test]
fn the_creator_owns_what_it_sent() {
    let live = Live::made(
        json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "d", "labels": {"a": "b"}, "generation": 1},
            "spec": {"replicas": 1, "strategy": {"type": "Recreate"}, "template": {"spec": {"containers": [
                {"name": "c", "image": "x", "resources": {}, "ports": [{"containerPort": 80, "protocol": "TCP"}]}]}}},
            "status": {"replicas": 3}}),
        "kubectl-create",
    );
    let stored = live.managers.into_value().unwrap();
    assert_eq!(
        stored,
        json!([{"manager": "kubectl-create", "operation": "Update", "apiVersion": "apps/v1",
            "time": "2027-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {
            "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
            "f:spec": {"f:replicas": {}, "f:strategy": {"f:type": {}}, "f:template": {"f:spec": {"f:containers": {
                "k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:image": {}, "f:resources": {}, "f:ports": {
                    ".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}":
                        {".": {}, "f:containerPort": {}, "f:protocol": {}}}}}}}}}}])
    );
    assert_eq!(Managers::stored(Some(&stored)).into_value(), Some(stored));
}

#[test]
fn updates_take_what_they_change() {
    let mut live = Live::made(config(json!({"replicas": 1, "paused": false, "minReadySeconds": 3})), "a");
    live.update("b", |o| {
        o["spec"]["replicas"] = 2.into();
        o["metadata"]["resourceVersion"] = "7".into();
    });
    assert_eq!(live.owns("b"), [".spec.replicas"]);
    assert_eq!(live.owns("a"), [".spec.minReadySeconds", ".spec.paused"]);
    live.update("b", |o| drop(o["spec"].as_object_mut().unwrap().remove("paused")));
    assert_eq!(live.owns("a"), [".spec.minReadySeconds"]);
    // A write by which nothing changes leaves the times as they are.
    let before = live.managers.clone();
    live.update("c", |_| {});
    assert_eq!(live.managers, before);
}

#[test]
fn conflicts_are_told_and_forced() {
    let mut live =
        Live::made(config(json!({"replicas": 1, "minReadySeconds": 3})), "kubectl-client-side-apply");
    let wanted = config(json!({"replicas": 2}));
    let error = live.apply("helm", &wanted, false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
    );
    let two = config(json!({"replicas": 2, "minReadySeconds": 4}));
    assert_eq!(
        live.apply("helm", &two, false).unwrap_err().to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-client-side-apply\" using apps/v1:\n- .spec.minReadySeconds\n- .spec.replicas"
    );
    assert!(live.apply("helm", &wanted, true).unwrap());
    assert_eq!(live.object["spec"]["replicas"], 2);
    assert_eq!(live.owns("helm"), [".spec.replicas"]);
    assert_eq!(live.owns("kubectl-client-side-apply"), [".spec.minReadySeconds"]);
    // The same value is no conflict: both own it.
    live.apply("other", &wanted, false).unwrap();
    assert_eq!(live.owns("other"), live.owns("helm"));
    // Another applier conflicts without naming a version.
    let error = live.apply("third", &config(json!({"replicas": 3})), false).unwrap_err();
    assert!(error.to_string().contains("conflicts with \"helm\":\n- .spec.replicas"), "{error}");
}

#[test]
fn what_is_no_longer_applied_goes_unless_others_own_it() {
    let mut live = Live::empty();
    let container = |name: &str, image: &str| json!({"name": name, "image": image});
    let both = config(json!({"replicas": 1, "paused": true,
        "template": {"spec": {"containers": [container("a", "1"), container("b", "1")]}}}));
    live.apply("x", &both, false).unwrap();
    live.apply("y", &config(json!({"paused": true})), false).unwrap();
    live.update("z", |o| {
        o["spec"]["template"]["spec"]["containers"][0]["workingDir"] = "/".into();
        o["spec"]["minReadySeconds"] = 9.into();
    });
    let less = config(json!({"template": {"spec": {"containers": [container("b", "1")]}}}));
    assert!(live.apply("x", &less, false).unwrap());
    let spec = &live.object["spec"];
    // Owned by another applier, by an updater, and by nobody but `x`.
    assert_eq!(
        (&spec["paused"], &spec["minReadySeconds"], &spec["replicas"]),
        (&json!(true), &json!(9), &Value::Null)
    );
    // An item goes as a whole once nobody who owns it is left.
    assert_eq!(spec["template"]["spec"]["containers"], json!([container("b", "1")]));
    assert!(live.owns("y").contains(&".spec.paused".to_owned()));
}

#[test]
fn list_items_keep_the_order_that_each_side_gave() {
    let ports = |names: &[&str]| -> Value {
        let items: Vec<Value> = names.iter().map(|n| json!({"name": n})).collect();
        json!({"spec": {"template": {"spec": {"containers": items}}}})
    };
    for (live, config, want) in [
        (vec!["a", "b"], vec!["c"], "a b c"),
        (vec!["a", "s", "b"], vec!["c", "s", "d"], "a c s b d"),
        (vec!["s1", "s2"], vec!["s2", "s1"], "s2 s1"),
        (vec!["s1", "x", "s2"], vec!["s2", "s1"], "x s2 s1"),
        (vec![], vec!["a"], "a"),
    ] {
        let merged = merge::merge(&ports(&live), &ports(&config), deployment());
        let items = merged["spec"]["template"]["spec"]["containers"].as_array().unwrap().iter();
        let names: Vec<&str> = items.map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names.join(" "), want);
    }
}

#[test]
fn keys_have_defaults_and_atomics_one_owner() {
    let set = owned(
        &json!({"spec": {"ports": [{"port": 80}, {"port": 80, "protocol": "UDP", "name": "u"}],
            "selector": {"a": "b"}, "externalIPs": ["1.2.3.4"]}}),
        service(),
    );
    assert_eq!(
        set.paths(),
        [
            ".spec.externalIPs",
            ".spec.ports[port=80,protocol=\"TCP\"]",
            ".spec.ports[port=80,protocol=\"TCP\"].port",
            ".spec.ports[port=80,protocol=\"UDP\"]",
            ".spec.ports[port=80,protocol=\"UDP\"].name",
            ".spec.ports[port=80,protocol=\"UDP\"].port",
            ".spec.ports[port=80,protocol=\"UDP\"].protocol",
            ".spec.selector",
        ]
    );
}

#[test]
fn a_configuration_must_fit_the_schema() {
    for (spec, want) in [
        (json!({"replica": 1}), ".spec.replica: field not declared in schema"),
        (json!({"replicas": "x"}), ".spec.replicas: expected numeric (int or float), got string"),
        (
            json!({"template": {"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}}),
            ".spec.template.spec.containers: duplicate entries for key [name=\"a\"]",
        ),
        (
            json!({"template": {"spec": {"containers": [{"image": "a"}]}}}),
            ".spec.template.spec.containers: element 0: associative list with keys has an element that omits all key fields [\"name\"] (and doesn't have default values for any key fields)",
        ),
    ] {
        let error = Live::empty().apply("x", &config(spec), false).unwrap_err();
        assert_eq!(error, Error::Schema(want.to_owned()));
    }
}

#[test]
fn kubectl_takes_over_what_it_applied_from_the_client() {
    let mut object = config(json!({"replicas": 3, "minReadySeconds": 1}));
    let last = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 3}});
    object["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": last.to_string()});
    let live = Live::made(object, "kubectl-client-side-apply");
    let changed = config(json!({"replicas": 4}));
    assert!(live.clone().apply("other", &changed, false).is_err());
    let mut ours = live.clone();
    ours.apply("kubectl", &changed, false).unwrap();
    assert_eq!(ours.object["spec"]["replicas"], 4);
    let kept =
        ours.object["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"].as_str();
    assert_eq!(serde_json::from_str::<Value>(kept.unwrap()).unwrap(), changed);
    // What it had not applied is a conflict for kubectl too.
    assert!(live.clone().apply("kubectl", &config(json!({"minReadySeconds": 2})), false).is_err());
}

#[test]
fn before_the_first_apply_somebody_owned_it_all() {
    let mut live = Live { object: config(json!({"replicas": 1})), managers: Managers::default() };
    live.object["metadata"]["uid"] = "u".into();
    live.update("quiet", |o| o["spec"]["replicas"] = 2.into());
    assert!(live.managers.is_empty(), "nobody comes to own anything by an update");
    let error = live.apply("x", &config(json!({"replicas": 5})), false).unwrap_err();
    assert!(
        error.to_string().contains("conflict with \"before-first-apply\" using apps/v1: .spec.replicas"),
        "{error}"
    );
}

#[test]
fn the_oldest_updates_are_put_together() {
    let mut live = Live::made(config(json!({"replicas": 0})), "m00");
    for i in 1..15 {
        live.update(&format!("m{i:02}"), |o| o["metadata"]["labels"][format!("l{i:02}")] = "x".into());
    }
    assert_eq!(live.managers.entries().len(), 10);
    let ancient = live.owns("ancient-changes");
    assert!(ancient.contains(&".spec.replicas".to_owned()) && ancient.len() > 4, "{ancient:?}");
}

#[test]
fn what_a_client_says_of_the_managers() {
    let live = json!([{"manager": "a", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:data": {}}}]);
    let other = json!([{"manager": "b", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:data": {}}}]);
    let names = |asked: Option<Value>| -> Vec<String> {
        let managers = Managers::proposed(asked.as_ref(), Some(&live));
        managers.entries().iter().map(|e| e.manager.clone()).collect()
    };
    assert_eq!(names(None), ["a"]);
    assert_eq!(names(Some(other)), ["b"]);
    assert_eq!(names(Some(json!([{"manager": "x", "operation": "What"}]))), ["a"]);
    assert!(names(Some(json!([]))).is_empty() && names(Some(json!([{}]))).is_empty());
}

#[test]
fn a_scale_and_its_object_have_the_same_owner() {
    let live = Live::made(config(json!({"replicas": 1, "paused": true})), "kubectl-create");
    let scale_type = facts::lookup("io.k8s.api.autoscaling.v1.Scale").unwrap();
    let of =
        |replicas: i64| json!({"kind": "Scale", "spec": {"replicas": replicas}, "status": {"replicas": 1}});
    let seen = scale::of_object(&live.managers);
    assert_eq!(seen.entries()[0].api_version, "autoscaling/v1");
    let who = Writer {
        manager: "kubectl-scale",
        api_version: scale::API_VERSION,
        subresource: "scale",
        now: "2027-01-05T00:00:00Z",
        reset: &[],
    };
    struct Same(&'static Type);
    impl Versions for Same {
        fn convert(&self, object: &Value, _: &str) -> Option<(Value, &'static Type)> {
            Some((object.clone(), self.0))
        }
    }
    let same = updated(seen.clone(), &of(1), &of(1), scale_type, &who, &Same(scale_type));
    assert_eq!(scale::to_object(live.managers.clone(), same, "apps/v1"), live.managers);
    let taken = updated(seen, &of(1), &of(2), scale_type, &who, &Same(scale_type));
    let managers = scale::to_object(live.managers, taken, "apps/v1");
    let fields: Vec<_> = managers
        .entries()
        .iter()
        .map(|e| (e.manager.as_str(), e.subresource.as_str(), e.fields.paths()))
        .collect();
    assert_eq!(
        fields,
        [
            ("kubectl-create", "", vec![".spec.paused".to_owned()]),
            ("kubectl-scale", "scale", vec![".spec.replicas".to_owned()]),
        ]
    );
}

fn spec() -> impl Strategy<Value = Value> {
    let container =
        ("[ab]", prop::option::of("[xy]"), prop::option::of(1..3u16)).prop_map(|(name, image, port)| {
            let mut item = json!({"name": name});
            if let Some(image) = image {
                item["image"] = image.into();
            }
            if let Some(port) = port {
                item["ports"] = json!([{"containerPort": port, "protocol": "TCP"}]);
            }
            (name, item)
        });
    let containers = prop::collection::vec(container, 0..3).prop_map(|items| {
        let unique: std::collections::BTreeMap<String, Value> = items.into_iter().collect();
        unique.into_values().collect::<Vec<_>>()
    });
    let labels = prop::collection::btree_map("[a-c]", "[x-z]", 0..3);
    let selector = prop::option::of("[pq]");
    (prop::option::of(0..3i64), containers, labels, selector).prop_map(
        |(replicas, containers, labels, selector)| {
            let mut object = config(json!({}));
            if !labels.is_empty() {
                object["metadata"]["labels"] = json!(labels);
            }
            if let Some(replicas) = replicas {
                object["spec"]["replicas"] = replicas.into();
            }
            if !containers.is_empty() {
                object["spec"]["template"]["spec"]["containers"] = containers.into();
            }
            if let Some(value) = selector {
                object["spec"]["selector"] = json!({"matchLabels": {"k": value}});
            }
            object
        },
    )
}

/// Empty maps and lists, which a write in Kubernetes' form leaves out, left out.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(tidy);
            map.retain(|_, v| {
                !v.is_null()
                    && v.as_object().is_none_or(|m| !m.is_empty())
                    && v.as_array().is_none_or(|a| !a.is_empty())
            });
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

proptest! {
    #[test]
    fn applying_again_changes_nothing(a in spec(), b in spec()) {
        let mut live = Live::empty();
        live.apply("a", &a, false).unwrap();
        live.apply("b", &b, true).unwrap();
        let before = live.clone();
        prop_assert!(!live.apply("b", &b, false).unwrap());
        prop_assert_eq!(live.object, before.object);
        prop_assert_eq!(live.managers, before.managers);
    }

    #[test]
    fn what_is_applied_and_withdrawn_leaves_no_trace(a in spec(), b in spec()) {
        let mut live = Live::empty();
        live.apply("a", &a, false).unwrap();
        let before = live.clone();
        // Only what nobody else has another value for can be put back by withdrawing.
        prop_assume!(live.apply("b", &b, false).is_ok());
        live.apply("b", &config(json!({})), false).unwrap();
        let (mut got, mut want) = (live.object, before.object);
        tidy(&mut got);
        tidy(&mut want);
        prop_assert_eq!(got, want);
    }

    #[test]
    fn after_a_forced_apply_all_who_own_a_field_agree(a in spec(), b in spec()) {
        let mut live = Live::empty();
        live.apply("a", &a, false).unwrap();
        live.apply("b", &b, true).unwrap();
        // Whoever still owns a field can apply its value without a conflict.
        let ours = live.owns("b");
        for path in live.owns("a").iter().filter(|p| ours.contains(p)) {
            prop_assert!(owned(&a, deployment()).paths().contains(path));
        }
        prop_assert!(live.clone().apply("b", &b, false).is_ok());
    }

    #[test]
    fn a_created_object_is_owned_whole(a in spec()) {
        let live = Live::made(a.clone(), "m");
        let all = owned(&a, deployment());
        let own = live.managers.entries().iter().fold(FieldSet::default(), |s, e| s.union(&e.fields));
        let mut rest = all.difference(&own);
        for path in [&["apiVersion"][..], &["kind"], &["metadata", "name"], &["spec"]] {
            rest = rest.difference(&FieldSet::path(path));
        }
        prop_assert!(rest.is_empty(), "{:?}", rest.paths());
    }
}
