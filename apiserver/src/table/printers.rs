//! The cells of a kind's row, in the order of its columns.

use decapod_api::labels::Selector;
use decapod_api::meta;
use decapod_api::resource::Resource;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;
use serde_json::Value;

use super::duration::{human, since};
use super::{autoscaler, classes, node, pod, storage, workload};
use crate::registry::convert;

/// What is shown for nothing.
pub(super) const NONE: &str = "<none>";

/// A kind's own cells; `None` if its columns say themselves what they show. The last cells may be
/// left out where the common ones are right.
pub(super) fn cells(resource: &Resource, object: &Value, now: Timestamp) -> Option<Vec<Value>> {
    let cells = match (resource.group, resource.plural) {
        ("", "pods") => pod::cells(object, now),
        ("", "nodes") => node::cells(object, now),
        ("", "services") => service(object, now),
        ("", "endpoints") => endpoints(object, now),
        ("", "resourcequotas") => quota(object, now),
        ("", "events") => event(object, &object["involvedObject"], &object["source"], "message", now),
        ("events.k8s.io", "events") => {
            event(object, &object["regarding"], &object["deprecatedSource"], "note", now)
        }
        ("", "configmaps") => {
            vec![name(object), count(&[&object["data"], &object["binaryData"]]), age(object, now)]
        }
        ("", "secrets") => {
            vec![name(object), object["type"].clone(), count(&[&object["data"]]), age(object, now)]
        }
        ("", "namespaces") => vec![name(object), object["status"]["phase"].clone(), age(object, now)],
        ("discovery.k8s.io", "endpointslices") => slice(object, now),
        ("coordination.k8s.io", "leases") => {
            vec![name(object), text(&object["spec"]["holderIdentity"]), age(object, now)]
        }
        ("apps", "deployments") => workload::deployment(object, now),
        ("apps", "replicasets") => workload::replica_set(object, now),
        ("", "replicationcontrollers") => workload::replication_controller(object, now),
        ("apps", "statefulsets") => workload::stateful_set(object, now),
        ("apps", "daemonsets") => workload::daemon_set(object, now),
        ("apps", "controllerrevisions") => workload::controller_revision(object, now),
        ("batch", "jobs") => workload::job(object, now),
        ("batch", "cronjobs") => workload::cron_job(object, now),
        ("", "persistentvolumes") => storage::volume(object, now),
        ("", "persistentvolumeclaims") => storage::claim(object, now),
        ("storage.k8s.io", "storageclasses") => storage::class(object, now),
        ("networking.k8s.io", "ipaddresses") => ip_address(object),
        ("networking.k8s.io", "servicecidrs") => {
            vec![name(object), join(&object["spec"]["cidrs"], ","), age(object, now)]
        }
        ("networking.k8s.io", "ingresses") => ingress(object, now),
        ("networking.k8s.io", "networkpolicies") => {
            vec![name(object), selector(&object["spec"]["podSelector"]), age(object, now)]
        }
        ("networking.k8s.io", "ingressclasses") => classes::ingress_class(object, now),
        ("autoscaling", "horizontalpodautoscalers") => {
            autoscaler::cells(&convert::stored(resource, object), now)
        }
        ("", "podtemplates") => classes::pod_template(object),
        ("storage.k8s.io", "csidrivers") => classes::csi_driver(object, now),
        ("storage.k8s.io", "csistoragecapacities") => classes::csi_capacity(object),
        ("storage.k8s.io", "volumeattributesclasses") => {
            vec![name(object), text(&object["driverName"]), age(object, now)]
        }
        ("flowcontrol.apiserver.k8s.io", "flowschemas") => classes::flow_schema(object, now),
        ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations") => {
            classes::priority_level(object, now)
        }
        ("resource.k8s.io", "resourceclaims") => classes::resource_claim(object, now),
        ("resource.k8s.io", "resourceslices") => classes::resource_slice(object, now),
        ("scheduling.k8s.io", "priorityclasses") => vec![
            name(object),
            object["value"].clone(),
            object["globalDefault"].as_bool().unwrap_or(false).into(),
            age(object, now),
            object["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority").into(),
        ],
        ("rbac.authorization.k8s.io", "clusterrolebindings" | "rolebindings") => role_binding(object, now),
        ("policy", "poddisruptionbudgets") => vec![
            name(object),
            or_text(&object["spec"]["minAvailable"], "N/A"),
            or_text(&object["spec"]["maxUnavailable"], "N/A"),
            object["status"]["disruptionsAllowed"].as_i64().unwrap_or(0).into(),
            age(object, now),
        ],
        (
            "admissionregistration.k8s.io",
            "mutatingwebhookconfigurations" | "validatingwebhookconfigurations",
        ) => {
            vec![name(object), object["webhooks"].as_array().map_or(0, Vec::len).into(), age(object, now)]
        }
        _ => return None,
    };
    Some(cells)
}

/// What is used of what a quota allows: limits in a column of their own.
fn quota(object: &Value, now: Timestamp) -> Vec<Value> {
    let hard = object["status"]["hard"].as_object().into_iter().flatten();
    let told = |(name, hard): (&String, &Value)| {
        let used = object["status"]["used"][name].as_str().unwrap_or("0").to_owned();
        (name.starts_with("limits."), format!("{name}: {used}/{}", hard.as_str().unwrap_or_default()))
    };
    let (limits, requests): (Vec<_>, Vec<_>) = hard.map(told).partition(|(is_limit, _)| *is_limit);
    let joined = |entries: Vec<(bool, String)>| -> Value {
        entries.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(", ").into()
    };
    vec![name(object), joined(requests), joined(limits), age(object, now)]
}

/// A cell by its column's name.
pub(super) fn common(column: &str, object: &Value, now: Timestamp) -> Value {
    let spec = &object["spec"];
    match column {
        "Name" => name(object),
        "Age" => age(object, now),
        "Created At" => text(&object["metadata"]["creationTimestamp"]),
        "Class" => or_text(&spec["ingressClassName"], NONE),
        "Handler" => text(&object["handler"]),
        "SignerName" => or_text(&spec["signerName"], NONE),
        "Requestor" => text(&spec["username"]),
        "RequestedDuration" => match spec["expirationSeconds"].as_i64() {
            Some(seconds) => human(seconds).into(),
            None => NONE.into(),
        },
        "Condition" => conditions(object).into(),
        "Provisioner" => text(&object["provisioner"]),
        "Attacher" => text(&spec["attacher"]),
        "PV" => text(&spec["source"]["persistentVolumeName"]),
        "Node" => text(&spec["nodeName"]),
        "Attached" => object["status"]["attached"].as_bool().unwrap_or(false).into(),
        "Drivers" => spec["drivers"].as_array().map_or(0, Vec::len).into(),
        _ => NONE.into(),
    }
}

pub(super) fn name(object: &Value) -> Value {
    meta::name(object).into()
}

pub(super) fn age(object: &Value, now: Timestamp) -> Value {
    since(&object["metadata"]["creationTimestamp"], now).into()
}

/// A value as text; nothing if it is not there.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(super) fn text(value: &Value) -> Value {
    plain(value).into()
}

pub(super) fn or_text(value: &Value, default: &str) -> Value {
    let text = plain(value);
    if text.is_empty() { default.into() } else { text.into() }
}

pub(super) fn join(list: &Value, separator: &str) -> Value {
    list.as_array().into_iter().flatten().map(plain).collect::<Vec<_>>().join(separator).into()
}

/// The items of a list; none if it is not there.
pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn count(maps: &[&Value]) -> Value {
    maps.iter().map(|map| map.as_object().map_or(0, serde_json::Map::len)).sum::<usize>().into()
}

/// A label selector as text.
pub(super) fn selector(value: &Value) -> Value {
    let parsed = LabelSelector::deserialize(value).ok().and_then(|s| Selector::try_from(&s).ok());
    match parsed.map(|s| s.to_string()) {
        Some(text) if !text.is_empty() => text.into(),
        _ => NONE.into(),
    }
}

/// A plain map of labels as text.
pub(super) fn labels(map: &Value) -> Value {
    let pairs: Vec<String> =
        map.as_object().into_iter().flatten().map(|(k, v)| format!("{k}={}", plain(v))).collect();
    if pairs.is_empty() { NONE.into() } else { pairs.join(",").into() }
}

fn service(service: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &service["spec"];
    let ports: Vec<String> = spec["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| {
            let protocol = port["protocol"].as_str().unwrap_or("TCP");
            match port["nodePort"].as_i64().filter(|&p| p > 0) {
                Some(node_port) => format!("{}:{node_port}/{protocol}", port["port"]),
                None => format!("{}/{protocol}", port["port"]),
            }
        })
        .collect();
    let ports = if ports.is_empty() { NONE.to_owned() } else { ports.join(",") };
    vec![
        name(service),
        spec["type"].clone(),
        or_text(&spec["clusterIP"], NONE),
        external_address(service).into(),
        ports.into(),
        age(service, now),
        labels(&spec["selector"]),
    ]
}

fn external_address(service: &Value) -> String {
    let spec = &service["spec"];
    let own: Vec<String> = spec["externalIPs"].as_array().into_iter().flatten().map(plain).collect();
    let own_or = |other: String| if own.is_empty() { other } else { own.join(",") };
    match spec["type"].as_str().unwrap_or_default() {
        "ExternalName" => plain(&spec["externalName"]),
        "LoadBalancer" => {
            let ingress = service["status"]["loadBalancer"]["ingress"].as_array();
            let mut addresses: Vec<String> = ingress
                .into_iter()
                .flatten()
                .map(|i| plain(if i["ip"].is_string() { &i["ip"] } else { &i["hostname"] }))
                .collect();
            addresses.extend(own.iter().cloned());
            if addresses.is_empty() { "<pending>".to_owned() } else { addresses.join(",") }
        }
        _ => own_or(NONE.to_owned()),
    }
}

/// The first few of a list, and how many more there are.
fn abbreviated(items: Vec<String>, unset: &str, shown: usize) -> Value {
    if items.is_empty() {
        return unset.into();
    }
    if items.len() <= shown {
        return items.join(",").into();
    }
    format!("{} + {} more...", items[..shown].join(","), items.len() - shown).into()
}

fn endpoints(endpoints: &Value, now: Timestamp) -> Vec<Value> {
    let mut items = Vec::new();
    for subset in endpoints["subsets"].as_array().into_iter().flatten() {
        for address in subset["addresses"].as_array().into_iter().flatten() {
            let ports = subset["ports"].as_array().filter(|p| !p.is_empty());
            match ports {
                None => items.push(plain(&address["ip"])),
                Some(ports) => {
                    items.extend(ports.iter().map(|p| format!("{}:{}", plain(&address["ip"]), p["port"])))
                }
            }
        }
    }
    vec![name(endpoints), abbreviated(items, NONE, 3), age(endpoints, now)]
}

fn slice(slice: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = slice["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| port["port"].as_i64().map_or_else(|| "*".to_owned(), |p| p.to_string()))
        .collect();
    let addresses = slice["endpoints"].as_array().into_iter().flatten();
    let addresses: Vec<String> =
        addresses.flat_map(|e| e["addresses"].as_array().into_iter().flatten().map(plain)).collect();
    vec![
        name(slice),
        text(&slice["addressType"]),
        abbreviated(ports, "<unset>", 3),
        abbreviated(addresses, "<unset>", 3),
        age(slice, now),
    ]
}

fn event(event: &Value, object: &Value, source: &Value, message: &str, now: Timestamp) -> Vec<Value> {
    let first = [&event["firstTimestamp"], &event["deprecatedFirstTimestamp"], &event["eventTime"]];
    let last =
        [&event["series"]["lastObservedTime"], &event["lastTimestamp"], &event["deprecatedLastTimestamp"]];
    let pick = |times: &[&Value]| times.iter().find(|t| t.is_string()).map(|t| since(t, now));
    let first = pick(&first).unwrap_or_else(|| "<unknown>".to_owned());
    let last = pick(&last).unwrap_or_else(|| first.clone());
    let mut target = plain(&object["kind"]).to_lowercase();
    if !plain(&object["name"]).is_empty() {
        target = format!("{target}/{}", plain(&object["name"]));
    }
    let component = [&source["component"], &event["reportingComponent"], &event["reportingController"]];
    let component = component.iter().map(|c| plain(c)).find(|c| !c.is_empty()).unwrap_or_default();
    let host = [plain(&source["host"]), plain(&event["reportingInstance"])];
    let host = host.iter().find(|h| !h.is_empty()).cloned().unwrap_or_default();
    let source = if host.is_empty() { component } else { format!("{component}, {host}") };
    let counts = [&event["series"]["count"], &event["count"], &event["deprecatedCount"]];
    let count = counts.iter().find_map(|c| c.as_i64()).unwrap_or(1).max(1);
    vec![
        last.into(),
        text(&event["type"]),
        text(&event["reason"]),
        target.into(),
        text(&object["fieldPath"]),
        source.into(),
        plain(&event[message]).trim().into(),
        first.into(),
        count.into(),
        name(event),
    ]
}

fn ip_address(address: &Value) -> Vec<Value> {
    let parent = &address["spec"]["parentRef"];
    let mut text = plain(&parent["resource"]);
    for field in ["namespace", "name"] {
        let part = plain(&parent[field]);
        if !part.is_empty() {
            text = format!("{text}/{part}");
        }
    }
    vec![name(address), text.into()]
}

fn ingress(ingress: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &ingress["spec"];
    let rules = spec["rules"].as_array().into_iter().flatten();
    let hosts: Vec<String> = rules.map(|r| plain(&r["host"])).filter(|h| !h.is_empty()).collect();
    let tls = spec["tls"].as_array().is_some_and(|t| !t.is_empty());
    let addresses = ingress["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    let addresses: Vec<String> =
        addresses.map(|i| plain(if i["ip"].is_string() { &i["ip"] } else { &i["hostname"] })).collect();
    vec![
        name(ingress),
        or_text(&spec["ingressClassName"], NONE),
        abbreviated(hosts, "*", 3),
        addresses.join(",").into(),
        if tls { "80, 443" } else { "80" }.into(),
        age(ingress, now),
    ]
}

fn role_binding(binding: &Value, now: Timestamp) -> Vec<Value> {
    let role = format!("{}/{}", plain(&binding["roleRef"]["kind"]), plain(&binding["roleRef"]["name"]));
    let subjects = |kind: &str| -> Value {
        let subjects = binding["subjects"].as_array().into_iter().flatten().filter(|s| s["kind"] == kind);
        let names = subjects.map(|s| match kind {
            "ServiceAccount" => format!("{}/{}", plain(&s["namespace"]), plain(&s["name"])),
            _ => plain(&s["name"]),
        });
        names.collect::<Vec<_>>().join(", ").into()
    };
    vec![
        name(binding),
        role.into(),
        age(binding, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

/// What became of a certificate signing request: decided, and then failed or issued.
fn conditions(request: &Value) -> String {
    let conditions = request["status"]["conditions"].as_array();
    let has = |kind: &str| conditions.into_iter().flatten().any(|c| c["type"] == kind);
    let decided = ["Denied", "Approved"].into_iter().find(|kind| has(kind));
    let mut text = decided.unwrap_or("Pending").to_owned();
    if has("Failed") {
        text.push_str(",Failed");
    }
    if request["status"]["certificate"].as_str().is_some_and(|certificate| !certificate.is_empty()) {
        text.push_str(",Issued");
    }
    text
}

/// The cells of an object as text, at a fixed time.
#[cfg(test)]
pub(super) fn shown(resource: &Resource, object: &Value) -> Vec<String> {
    let now: Timestamp = "2027-01-15T08:00:00Z".parse().unwrap();
    let table = super::table(resource, std::slice::from_ref(object), super::Include::None, true, now);
    table["rows"][0]["cells"].as_array().unwrap().iter().map(plain).collect()
}

/// The row of an object that is a minute old, its cells apart by ` | `.
#[cfg(test)]
pub(super) fn line(group: &str, version: &str, plural: &str, name: &str, rest: Value) -> String {
    let created = "2027-01-15T07:59:00Z";
    let mut object = serde_json::json!({"metadata": {"name": name, "creationTimestamp": created}});
    object.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    shown(crate::registry::row(group, version, plural), &object).join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{core, row};
    use serde_json::json;

    #[test]
    fn signing_requests() {
        let requests = row("certificates.k8s.io", "v1", "certificatesigningrequests");
        let cells = |status: Value| {
            let spec = json!({"signerName": "a/b", "username": "jane", "expirationSeconds": 86400});
            shown(requests, &json!({"metadata": {"name": "r"}, "spec": spec, "status": status}))
        };
        let issued = json!({"conditions": [{"type": "Approved"}], "certificate": "eA=="});
        assert_eq!(cells(issued)[4..], ["24h", "Approved,Issued"]);
        assert_eq!(cells(json!({}))[5], "Pending");
        assert_eq!(cells(json!({"conditions": [{"type": "Denied"}]}))[5], "Denied");
        assert_eq!(
            cells(json!({"conditions": [{"type": "Approved"}, {"type": "Failed"}]}))[5],
            "Approved,Failed"
        );
    }

    #[test]
    fn services_and_slices() {
        let created = "2027-01-15T07:59:00Z";
        let object = json!({"metadata": {"name": "web", "creationTimestamp": created}, "spec": {"type": "NodePort",
            "clusterIP": "10.96.1.1", "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}], "selector": {"app": "web"}}});
        assert_eq!(
            shown(core("services"), &object),
            ["web", "NodePort", "10.96.1.1", "<none>", "80:30080/TCP", "60s", "app=web"]
        );
        let object = json!({"metadata": {"name": "web-x", "creationTimestamp": created}, "addressType": "IPv4",
            "ports": [{"port": 80}], "endpoints": [{"addresses": ["1.1.1.1"]}, {"addresses": ["1.1.1.2"]}, {"addresses": ["1.1.1.3"]}, {"addresses": ["1.1.1.4"]}]});
        assert_eq!(
            shown(row("discovery.k8s.io", "v1", "endpointslices"), &object),
            ["web-x", "IPv4", "80", "1.1.1.1,1.1.1.2,1.1.1.3 + 1 more...", "60s"]
        );
    }

    #[test]
    fn quotas() {
        let object = json!({"metadata": {"name": "q", "creationTimestamp": "2027-01-15T07:59:00Z"}, "status": {
            "hard": {"limits.cpu": "2", "pods": "5", "requests.cpu": "1"}, "used": {"pods": "3", "limits.cpu": "1"}}});
        assert_eq!(
            shown(core("resourcequotas"), &object),
            ["q", "pods: 3/5, requests.cpu: 0/1", "limits.cpu: 1/2", "60s"]
        );
    }

    #[test]
    fn every_kind_has_a_cell_for_each_column() {
        for resource in decapod_api::resource::RESOURCES {
            let object = json!({"metadata": {"name": "a", "creationTimestamp": "2027-01-15T07:59:00Z"}});
            let table = super::super::table(
                resource,
                &[object],
                super::super::Include::Metadata,
                true,
                Timestamp::now(),
            );
            let columns = table["columnDefinitions"].as_array().unwrap().len();
            assert_eq!(table["rows"][0]["cells"].as_array().unwrap().len(), columns, "{}", resource.plural);
            if let Some(own) = cells(resource, &json!({"metadata": {"name": "a"}}), Timestamp::now()) {
                assert!(own.len() <= columns, "{}", resource.plural);
            }
        }
    }
}
