//! The rows of pod templates, classes and drivers, flow control, and devices.

use decapod_api::meta;
use jiff::Timestamp;
use serde_json::Value;

use super::printers::{NONE, age, join, labels, list, name, or_text, plain, text};
use super::workload::containers;

pub(super) fn pod_template(object: &Value) -> Vec<Value> {
    let [names, images] = containers(&object["template"]);
    vec![name(object), names, images, labels(&object["template"]["metadata"]["labels"])]
}

pub(super) fn ingress_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let default = object["metadata"]["annotations"]["ingressclass.kubernetes.io/is-default-class"] == "true";
    let shown =
        if default { format!("{} (default)", meta::name(object)) } else { meta::name(object).to_owned() };
    let reference = &object["spec"]["parameters"];
    let parameters = match (reference.is_object(), plain(&reference["apiGroup"])) {
        (false, _) => NONE.to_owned(),
        (true, group) if group.is_empty() => {
            format!("{}/{}", plain(&reference["kind"]), plain(&reference["name"]))
        }
        (true, group) => format!("{}.{group}/{}", plain(&reference["kind"]), plain(&reference["name"])),
    };
    vec![shown.into(), text(&object["spec"]["controller"]), parameters.into(), age(object, now)]
}

pub(super) fn csi_driver(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let yes = |field: &str, default: bool| -> Value { spec[field].as_bool().unwrap_or(default).into() };
    let audiences: Vec<String> = list(&spec["tokenRequests"]).map(|t| plain(&t["audience"])).collect();
    let tokens = if spec["tokenRequests"].is_array() { audiences.join(",") } else { "<unset>".to_owned() };
    vec![
        name(object),
        yes("attachRequired", true),
        yes("podInfoOnMount", false),
        yes("storageCapacity", false),
        tokens.into(),
        yes("requiresRepublish", false),
        or_text(&join(&spec["volumeLifecycleModes"], ","), NONE),
        age(object, now),
    ]
}

pub(super) fn csi_capacity(object: &Value) -> Vec<Value> {
    vec![name(object), text(&object["storageClassName"]), or_text(&object["capacity"], "<unset>")]
}

pub(super) fn priority_level(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let queuing = &spec["limited"]["limitResponse"]["queuing"];
    let number = |value: &Value| if value.is_null() { NONE.into() } else { value.clone() };
    vec![
        name(object),
        text(&spec["type"]),
        number(&spec["limited"]["nominalConcurrencyShares"]),
        number(&queuing["queues"]),
        number(&queuing["handSize"]),
        number(&queuing["queueLengthLimit"]),
        age(object, now),
    ]
}

pub(super) fn flow_schema(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let dangling = list(&object["status"]["conditions"]).find(|c| c["type"] == "Dangling");
    vec![
        name(object),
        text(&spec["priorityLevelConfiguration"]["name"]),
        spec["matchingPrecedence"].as_i64().unwrap_or(0).into(),
        or_text(&spec["distinguisherMethod"]["type"], NONE),
        age(object, now),
        dangling.map_or_else(|| "?".to_owned(), |c| plain(&c["status"])).into(),
    ]
}

pub(super) fn resource_claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = &object["status"];
    let mut states = Vec::new();
    if meta::deleting(object) {
        states.push("deleted");
    }
    match (status["allocation"].is_object(), list(&status["reservedFor"]).next().is_some()) {
        (false, _) if meta::deleting(object) => {}
        (false, _) => states.push("pending"),
        (true, true) => states.extend(["allocated", "reserved"]),
        (true, false) => states.push("allocated"),
    }
    vec![name(object), states.join(",").into(), age(object, now)]
}

pub(super) fn resource_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    vec![
        name(object),
        text(&spec["nodeName"]),
        text(&spec["driver"]),
        text(&spec["pool"]["name"]),
        age(object, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::printers::line;
    use serde_json::json;

    #[test]
    fn classes_drivers_and_flows() {
        let default = json!({"metadata": {"name": "n", "creationTimestamp": "2027-01-15T07:59:00Z",
            "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
            "spec": {"controller": "x.io/y", "parameters": {"apiGroup": "g", "kind": "K", "name": "p"}}});
        assert_eq!(
            line("networking.k8s.io", "v1", "ingressclasses", "n", default),
            "n (default) | x.io/y | K.g/p | 60s"
        );
        assert_eq!(
            line(
                "storage.k8s.io",
                "v1",
                "csidrivers",
                "d",
                json!({"spec": {"volumeLifecycleModes": ["Persistent"]}})
            ),
            "d | true | false | false | <unset> | false | Persistent | 60s"
        );
        assert_eq!(
            line("storage.k8s.io", "v1", "csistoragecapacities", "c", json!({"storageClassName": "s"})),
            "c | s | <unset>"
        );
        assert_eq!(
            line("storage.k8s.io", "v1", "volumeattributesclasses", "c", json!({"driverName": "d"})),
            "c | d | 60s"
        );
        let level = json!({"spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 30}}});
        assert_eq!(
            line("flowcontrol.apiserver.k8s.io", "v1", "prioritylevelconfigurations", "p", level),
            "p | Limited | 30 | <none> | <none> | <none> | 60s"
        );
        let flow = json!({"spec": {"priorityLevelConfiguration": {"name": "p"}, "matchingPrecedence": 7},
            "status": {"conditions": [{"type": "Dangling", "status": "False"}]}});
        assert_eq!(
            line("flowcontrol.apiserver.k8s.io", "v1", "flowschemas", "f", flow),
            "f | p | 7 | <none> | 60s | False"
        );
        let claim = json!({"status": {"allocation": {}, "reservedFor": [{}]}});
        assert_eq!(
            line("resource.k8s.io", "v1", "resourceclaims", "r", claim),
            "r | allocated,reserved | 60s"
        );
        let gone =
            json!({"metadata": {"name": "r", "deletionTimestamp": "2027-01-15T08:00:00Z"}, "status": {}});
        assert_eq!(
            line("resource.k8s.io", "v1", "resourceclaims", "r", gone).split(" | ").nth(1),
            Some("deleted")
        );
        assert_eq!(line("resource.k8s.io", "v1", "resourceclaims", "r", json!({})), "r | pending | 60s");
        let slice = json!({"spec": {"nodeName": "n", "driver": "d", "pool": {"name": "p"}}});
        assert_eq!(line("resource.k8s.io", "v1", "resourceslices", "s", slice), "s | n | d | p | 60s");
        let template = json!({"template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}});
        assert_eq!(line("", "v1", "podtemplates", "t", template), "t | c | i | a=b");
    }
}
