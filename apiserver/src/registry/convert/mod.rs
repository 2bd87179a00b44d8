//! Two versions of one kind that share their storage: what is kept is the row named by
//! `Storage::SharedWith`; the other row's objects are converted at the edge of the store.

mod autoscaler;

use std::borrow::Cow;

use decapod_api::field;
use decapod_api::resource::{self, Resource, Storage};
use decapod_api::validate::Scope;
use serde_json::{Map, Value};

/// Field names of an event: in `v1`, and in `events.k8s.io/v1`.
const EVENT_FIELDS: [(&str, &str); 6] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];
const EVENT_REPORTER: [(&str, &str); 2] =
    [("reportingComponent", "reportingController"), ("reportingInstance", "reportingInstance")];

/// Whether objects of a row are converted at all.
pub(crate) fn shared(resource: &Resource) -> bool {
    matches!(resource.storage, Storage::SharedWith(..))
}

/// From the version that is kept to the row's own.
pub(crate) fn served(resource: &Resource, mut object: Value) -> Value {
    if !shared(resource) {
        return object;
    }
    object["apiVersion"] = resource.api_version().into();
    match resource.plural {
        "events" => rename(object, EVENT_FIELDS.iter().chain(&EVENT_REPORTER).copied()),
        _ => autoscaler::to_v1(object),
    }
}

/// From the row's own version to the one that is kept: nearly always the same, which is not copied.
pub(crate) fn stored<'a>(resource: &Resource, object: &'a Value) -> Cow<'a, Value> {
    let Storage::SharedWith(group, version) = resource.storage else { return Cow::Borrowed(object) };
    let mut object = object.clone();
    object["apiVersion"] = resource::api_version(group, version).into();
    Cow::Owned(match resource.plural {
        "events" => rename(object, EVENT_FIELDS.iter().chain(&EVENT_REPORTER).map(|&(a, b)| (b, a))),
        _ => autoscaler::to_v2(object),
    })
}

/// An object as it comes back once it is stored: what its own version does not show is filled in where
/// the kept one has a default for it.
pub(crate) fn canonical(resource: &Resource, object: Value) -> Value {
    if keeps_more(resource) { served(resource, stored(resource, &object).into_owned()) } else { object }
}

/// All that is wrong with an object, in the terms of the version that is kept: its own may not show all.
pub(crate) fn validate(
    resource: &Resource,
    new: &Value,
    old: Option<&Value>,
    scope: Scope,
) -> Vec<field::Error> {
    let kept = match resource.storage {
        Storage::SharedWith(group, version) if keeps_more(resource) => {
            resource::by_kind(group, version, resource.kind)
        }
        _ => None,
    };
    let Some(kept) = kept else { return (resource.ops.validate)(new, old, scope) };
    let old = old.map(|old| stored(resource, old));
    (kept.ops.validate)(&stored(resource, new), old.as_deref(), scope)
}

/// Whether the version that is kept has more than a row's own, so that the rest travels in annotations.
fn keeps_more(resource: &Resource) -> bool {
    shared(resource) && resource.group == "autoscaling"
}

fn rename<'a>(object: Value, names: impl Iterator<Item = (&'a str, &'a str)>) -> Value {
    let Value::Object(mut map) = object else { return object };
    let mut renamed = Map::new();
    for (from, to) in names {
        if let Some(value) = map.remove(from) {
            renamed.insert(to.to_owned(), value);
        }
    }
    map.extend(renamed);
    Value::Object(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::row;
    use serde_json::json;

    #[test]
    fn both_ways_is_the_same() {
        for (resource, object) in [
            (
                row("events.k8s.io", "v1", "events"),
                json!({"apiVersion": "events.k8s.io/v1", "kind": "Event",
                "metadata": {"name": "e"}, "regarding": {"name": "p"}, "note": "n", "reason": "r",
                "reportingController": "c", "reportingInstance": "i"}),
            ),
            (
                row("autoscaling", "v1", "horizontalpodautoscalers"),
                json!({"apiVersion": "autoscaling/v1",
                "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
                "spec": {"maxReplicas": 3, "minReplicas": 1, "scaleTargetRef": {"kind": "A", "name": "b"},
                    "targetCPUUtilizationPercentage": 50}}),
            ),
        ] {
            let kept = stored(resource, &object).into_owned();
            assert_ne!(kept["apiVersion"], object["apiVersion"]);
            assert_eq!(served(resource, kept), object);
        }
    }
}
