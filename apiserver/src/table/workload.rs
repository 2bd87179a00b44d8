//! The rows of what runs pods.

use jiff::Timestamp;
use serde_json::Value;

use super::duration::{between, since};
use super::printers::{NONE, age, labels, name, plain, selector, text};

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// The names and images of a template's containers.
pub(super) fn containers(template: &Value) -> [Value; 2] {
    let column = |field: &str| -> Value {
        let containers = template["spec"]["containers"].as_array().into_iter().flatten();
        containers.map(|c| plain(&c[field])).collect::<Vec<_>>().join(",").into()
    };
    [column("name"), column("image")]
}

pub(super) fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [names, images] = containers(&spec["template"]);
    vec![
        name(object),
        format!("{}/{}", number(&status["readyReplicas"]), number(&spec["replicas"])).into(),
        number(&status["updatedReplicas"]).into(),
        number(&status["availableReplicas"]).into(),
        age(object, now),
        names,
        images,
        selector(&spec["selector"]),
    ]
}

fn replicas(object: &Value, selector: Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [names, images] = containers(&spec["template"]);
    vec![
        name(object),
        number(&spec["replicas"]).into(),
        number(&status["replicas"]).into(),
        number(&status["readyReplicas"]).into(),
        age(object, now),
        names,
        images,
        selector,
    ]
}

pub(super) fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    replicas(object, selector(&object["spec"]["selector"]), now)
}

pub(super) fn replication_controller(object: &Value, now: Timestamp) -> Vec<Value> {
    replicas(object, labels(&object["spec"]["selector"]), now)
}

pub(super) fn stateful_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [names, images] = containers(&spec["template"]);
    let ready = format!("{}/{}", number(&status["readyReplicas"]), number(&spec["replicas"]));
    vec![name(object), ready.into(), age(object, now), names, images]
}

pub(super) fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [names, images] = containers(&spec["template"]);
    vec![
        name(object),
        number(&status["desiredNumberScheduled"]).into(),
        number(&status["currentNumberScheduled"]).into(),
        number(&status["numberReady"]).into(),
        number(&status["updatedNumberScheduled"]).into(),
        number(&status["numberAvailable"]).into(),
        labels(&spec["template"]["spec"]["nodeSelector"]),
        age(object, now),
        names,
        images,
        selector(&spec["selector"]),
    ]
}

pub(super) fn controller_revision(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    let owner = owners.find(|o| o["controller"] == Value::Bool(true)).map(|owner| {
        let kind = plain(&owner["kind"]).to_lowercase();
        let group = plain(&owner["apiVersion"]);
        match group.split_once('/') {
            Some((group, _)) => format!("{kind}.{group}/{}", plain(&owner["name"])),
            None => format!("{kind}/{}", plain(&owner["name"])),
        }
    });
    vec![
        name(object),
        owner.unwrap_or_else(|| NONE.to_owned()).into(),
        object["revision"].clone(),
        age(object, now),
    ]
}

pub(super) fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let succeeded = number(&status["succeeded"]);
    let parallelism = number(&spec["parallelism"]);
    let completions = match spec["completions"].as_i64() {
        Some(completions) => format!("{succeeded}/{completions}"),
        None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        None => format!("{succeeded}/1"),
    };
    let duration =
        match (status["startTime"].is_string(), between(&status["startTime"], &status["completionTime"])) {
            (_, Some(took)) => took,
            (true, None) => since(&status["startTime"], now),
            (false, None) => String::new(),
        };
    let condition = |kind: &str| {
        let mut conditions = status["conditions"].as_array().into_iter().flatten();
        conditions.any(|c| c["type"] == kind && c["status"] == "True")
    };
    let word = if condition("Complete") {
        "Complete"
    } else if condition("Failed") {
        "Failed"
    } else if object["metadata"]["deletionTimestamp"].is_string() {
        "Terminating"
    } else if condition("Suspended") {
        "Suspended"
    } else if condition("FailureTarget") {
        "FailureTarget"
    } else if condition("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    let [names, images] = containers(&spec["template"]);
    vec![
        name(object),
        word.into(),
        completions.into(),
        duration.into(),
        age(object, now),
        names,
        images,
        selector(&spec["selector"]),
    ]
}

pub(super) fn cron_job(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let last = if status["lastScheduleTime"].is_string() {
        since(&status["lastScheduleTime"], now)
    } else {
        NONE.to_owned()
    };
    let [names, images] = containers(&spec["jobTemplate"]["spec"]["template"]);
    let zone = plain(&spec["timeZone"]);
    vec![
        name(object),
        text(&spec["schedule"]),
        if zone.is_empty() { NONE.into() } else { zone.into() },
        (if spec["suspend"] == Value::Bool(true) { "True" } else { "False" }).into(),
        status["active"].as_array().map_or(0, Vec::len).into(),
        last.into(),
        age(object, now),
        names,
        images,
        selector(&spec["jobTemplate"]["spec"]["selector"]),
    ]
}

#[cfg(test)]
mod tests {
    use crate::registry::row;
    use crate::table::printers::shown;
    use serde_json::json;

    #[test]
    fn deployments_and_jobs() {
        let meta = json!({"name": "web", "creationTimestamp": "2027-01-15T07:59:00Z"});
        let template =
            json!({"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}});
        let object = json!({"metadata": meta, "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template},
            "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}});
        assert_eq!(
            shown(row("apps", "v1", "deployments"), &object),
            ["web", "2/3", "3", "2", "60s", "a,b", "x,y", "app=web"]
        );
        let object = json!({"metadata": meta, "spec": {"completions": 1, "template": template}, "status": {"succeeded": 1,
            "startTime": "2027-01-15T07:59:00Z", "completionTime": "2027-01-15T07:59:07Z", "conditions": [{"type": "Complete", "status": "True"}]}});
        assert_eq!(shown(row("batch", "v1", "jobs"), &object)[..5], ["web", "Complete", "1/1", "7s", "60s"]);
    }
}
