//! Server-side tables: what `kubectl get` prints.
//!
//! The columns are facts of Kubernetes, embedded as text; a kind's cells are made by its printer,
//! or by the column's name where a field says it directly.

mod autoscaler;
mod classes;
mod columns;
mod duration;
mod node;
mod pod;
mod printers;
mod storage;
mod workload;

use decapod_api::resource::Resource;
use jiff::Timestamp;
use serde_json::{Value, json};

/// How much of the object comes with its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Include {
    /// Nothing.
    None,
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
}

/// The table of some objects of a kind.
pub(crate) fn table(
    resource: &Resource,
    objects: &[Value],
    include: Include,
    with_columns: bool,
    now: Timestamp,
) -> Value {
    let columns = columns::of(resource);
    let rows: Vec<Value> =
        objects.iter().map(|object| row(resource, &columns, object, include, now)).collect();
    let definitions =
        if with_columns { columns.iter().map(columns::Column::definition).collect() } else { Value::Null };
    let mut meta = json!({});
    if let [only] = objects {
        meta["resourceVersion"] = only["metadata"]["resourceVersion"].clone();
    }
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta,
        "columnDefinitions": definitions, "rows": rows})
}

fn row(
    resource: &Resource,
    columns: &[columns::Column],
    object: &Value,
    include: Include,
    now: Timestamp,
) -> Value {
    let printed = printers::cells(resource, object, now);
    let cells: Vec<Value> = columns
        .iter()
        .enumerate()
        .map(|(index, column)| {
            let cell = printed.as_ref().and_then(|cells| cells.get(index));
            cell.cloned().unwrap_or_else(|| printers::common(&column.name, object, now))
        })
        .collect();
    let conditions = pod::row_conditions(resource, object);
    let mut row = json!({"cells": cells});
    if !conditions.is_null() {
        row["conditions"] = conditions;
    }
    match include {
        Include::None => {}
        Include::Metadata => {
            row["object"] = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                "metadata": object["metadata"]});
        }
        Include::Object => row["object"] = object.clone(),
    }
    row
}
