//! The objects of the API and their table. Pure.

use std::time::Duration;

use decapod_api::quantity::Quantity;
use decapod_api::status::Error;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::rate::Figure;
use super::{GROUP, Kind, VERSION};
use crate::clock::rfc3339;

/// A node or pod with its figures.
#[derive(Clone, Debug)]
pub(super) struct Found {
    metadata: Value,
    window: Duration,
    at: Timestamp,
    /// By container; a node has one without a name.
    figures: Vec<(String, Figure)>,
}

impl Found {
    /// Figures of `subject`, a Node or Pod.
    pub(super) fn new(
        subject: &Value,
        window: Duration,
        at: Timestamp,
        figures: Vec<(String, Figure)>,
    ) -> Self {
        let mut metadata = json!({"name": subject["metadata"]["name"]});
        for field in ["namespace", "labels"] {
            if !subject["metadata"][field].is_null() {
                metadata[field] = subject["metadata"][field].clone();
            }
        }
        Self { metadata, window, at, figures }
    }

    fn metadata(&self, now: Timestamp) -> Value {
        let mut metadata = self.metadata.clone();
        metadata["creationTimestamp"] = rfc3339(now).into();
        metadata
    }
}

fn api_version() -> String {
    format!("{GROUP}/{VERSION}")
}

/// One object.
pub(super) fn object(kind: &Kind, found: &Found, now: Timestamp) -> Value {
    let mut object = json!({"kind": kind.kind, "apiVersion": api_version(), "metadata": found.metadata(now),
        "timestamp": rfc3339(found.at), "window": duration(found.window)});
    if kind.namespaced {
        let container = |(name, figure): &(String, Figure)| json!({"name": name, "usage": usage(*figure)});
        object["containers"] = found.figures.iter().map(container).collect();
    } else if let Some((_, figure)) = found.figures.first() {
        object["usage"] = usage(*figure);
    }
    object
}

/// A list of them.
pub(super) fn list(kind: &Kind, found: &[Found], now: Timestamp) -> Value {
    let items: Vec<Value> = found.iter().map(|found| object(kind, found, now)).collect();
    json!({"kind": format!("{}List", kind.kind), "apiVersion": api_version(), "metadata": {}, "items": items})
}

/// An object's metadata alone.
pub(super) fn metadata(_: &Kind, found: &Found, now: Timestamp) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": found.metadata(now)})
}

/// A list of metadata.
pub(super) fn metadata_list(kind: &Kind, found: &[Found], now: Timestamp) -> Value {
    let items: Vec<Value> = found.iter().map(|found| metadata(kind, found, now)).collect();
    json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "items": items})
}

/// The table that `kubectl get` prints: one row each, the containers of a pod added up.
pub(super) fn table(
    kind: &Kind,
    found: &[Found],
    include: Option<&str>,
    now: Timestamp,
) -> Result<Value, Error> {
    let column = |name: &str, format: &str, description: &str| json!({"name": name, "type": "string", "format": format, "description": description, "priority": 0});
    let columns = [
        column("Name", "name", "Name of the resource"),
        column("cpu", "quantity", ""),
        column("memory", "quantity", ""),
        column("Window", "duration", ""),
    ];
    let mut rows = Vec::new();
    for found in found {
        let sum = |value: fn(&Figure) -> u64| found.figures.iter().map(|(_, figure)| value(figure)).sum();
        let (cpu, memory) = (cores(sum(|f| f.cpu)), bytes(sum(|f| f.memory)));
        let cells = json!([found.metadata["name"], cpu, memory, duration(found.window)]);
        let mut row = json!({"cells": cells});
        match include {
            None | Some("Metadata") => row["object"] = metadata(kind, found, now),
            Some("Object") => row["object"] = object(kind, found, now),
            Some("None") => {}
            Some(other) => {
                return Err(Error::BadRequest(format!("unrecognized includeObject value: \"{other}\"")));
            }
        }
        rows.push(row);
    }
    Ok(json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "columnDefinitions": columns,
        "rows": rows}))
}

fn usage(figure: Figure) -> Value {
    json!({"cpu": cores(figure.cpu), "memory": bytes(figure.memory)})
}

fn bytes(bytes: u64) -> String {
    Quantity::from_bytes(i64::try_from(bytes).unwrap_or(i64::MAX)).to_string()
}

/// Billionths of a processor as a quantity: in the largest unit that needs no fraction.
fn cores(nanos: u64) -> String {
    let units = [(1_000_000_000, ""), (1_000_000, "m"), (1_000, "u"), (1, "n")];
    let unit = units.iter().find(|(size, _)| nanos.is_multiple_of(*size));
    unit.map(|(size, suffix)| format!("{}{suffix}", nanos / size)).unwrap_or_default()
}

/// A duration as Go writes it, to the millisecond: `15.1s`, `1m0s`, `1h2m3s`.
fn duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let (hours, minutes, rest) = (millis / 3_600_000, millis / 60_000 % 60, millis % 60_000);
    let seconds = match rest % 1000 {
        0 => format!("{}s", rest / 1000),
        part => format!("{}.{}s", rest / 1000, format!("{part:03}").trim_end_matches('0')),
    };
    match (hours, minutes) {
        (0, 0) if rest < 1000 => format!("{rest}ms"),
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::KINDS;
    use super::*;

    fn found() -> Found {
        let pod = json!({"metadata": {"name": "p", "namespace": "d", "labels": {"a": "b"}, "uid": "u"}, "spec": {}});
        let figure = |cpu, memory| Figure {
            at: Timestamp::UNIX_EPOCH,
            window: Duration::from_millis(15_100),
            cpu,
            memory,
        };
        let figures = vec![("c".to_owned(), figure(1_500_000, 4096)), ("e".to_owned(), figure(1, 1024))];
        Found::new(&pod, Duration::from_millis(15_100), Timestamp::UNIX_EPOCH, figures)
    }

    #[test]
    fn a_pod_as_clients_read_it() {
        let now = Timestamp::from_second(9).unwrap();
        let pod = object(&KINDS[1], &found(), now);
        let metadata = json!({"name": "p", "namespace": "d", "labels": {"a": "b"},
            "creationTimestamp": "1970-01-01T00:00:09Z"});
        let wanted = json!({"kind": "PodMetrics", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": metadata,
            "timestamp": "1970-01-01T00:00:00Z", "window": "15.1s", "containers": [
                {"name": "c", "usage": {"cpu": "1500u", "memory": "4Ki"}},
                {"name": "e", "usage": {"cpu": "1n", "memory": "1Ki"}}]});
        assert_eq!(pod, wanted);
        let table = table(&KINDS[1], &[found()], Some("None"), now).unwrap();
        assert_eq!(table["rows"], json!([{"cells": ["p", "1500001n", "5Ki", "15.1s"]}]));
        assert!(super::table(&KINDS[1], &[found()], Some("x"), now).is_err());
    }

    #[test]
    fn units_are_those_of_kubernetes() {
        let cores: Vec<String> = [0, 2_000_000_000, 250_000_000, 1_001].map(cores).to_vec();
        assert_eq!(cores, ["0", "2", "250m", "1001n"]);
        let texts = [400, 1_000, 15_050, 60_000, 3_723_004].map(|ms| duration(Duration::from_millis(ms)));
        assert_eq!(texts, ["400ms", "1s", "15.05s", "1m0s", "1h2m3.004s"]);
    }
}
