//! Keeps the objects of priority and fairness as they should be: those that every cluster has, and of each flow schema
//! whether its priority level is there.

use std::sync::Arc;
use std::time::Duration;

use decapod_api::status::Error;
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use super::{Core, flow};
use crate::clock::rfc3339;
use crate::registry::update::Part;
use crate::registry::{Call, row};

/// After a failure, and between two looks: changes come together.
const REST: Duration = Duration::from_secs(1);

/// Looks after every change, until the server stops.
pub(super) fn keep(core: &Arc<Core>, tasks: &TaskTracker) {
    let core = core.clone();
    tasks.spawn(async move {
        let stop = core.stopping.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = follow(&core) => {}
        }
    });
}

async fn follow(core: &Core) {
    loop {
        core.flow.changed.notified().await;
        if let Err(error) = settle(core).await {
            tracing::warn!(%error, "cannot keep the flow schemas and priority levels");
            core.flow.changed.notify_one();
        }
        tokio::time::sleep(REST).await;
    }
}

async fn settle(core: &Core) -> Result<(), Error> {
    for (name, level, there) in core.flow.references() {
        mark(core, &name, &level, there).await?;
    }
    flow::objects(&core.registry).await
}

/// Writes the condition of one schema, unless it is there already or the schema is gone.
async fn mark(core: &Core, name: &str, level: &str, there: bool) -> Result<(), Error> {
    let call = Call::own(row(flow::GROUP, "v1", "flowschemas"), "", name);
    let wanted = condition(level, there);
    match core.registry.current(&call).await? {
        Some((schema, _)) if !says(&schema, &wanted) => {}
        _ => return Ok(()),
    }
    let now = rfc3339(core.registry.clock.now());
    let change = |old: &Value| {
        let mut new = old.clone();
        let mut conditions = old["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.retain(|condition| condition["type"] != "Dangling");
        let mut dangling = wanted.clone();
        dangling["lastTransitionTime"] = now.clone().into();
        conditions.push(dangling);
        new["status"]["conditions"] = conditions.into();
        Ok(new)
    };
    match core.registry.modify(&call, Part::Status, change).await {
        // It was deleted meanwhile.
        Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The condition, in Kubernetes' words.
fn condition(level: &str, there: bool) -> Value {
    let (status, reason, rest) = match there {
        true => ("False", "Found", "it exists"),
        false => ("True", "NotFound", "there is no such object"),
    };
    let but = if there { "and" } else { "but" };
    let message = format!(
        "This FlowSchema references the PriorityLevelConfiguration object named \"{level}\" {but} {rest}"
    );
    json!({"type": "Dangling", "status": status, "reason": reason, "message": message})
}

fn says(schema: &Value, wanted: &Value) -> bool {
    let conditions = schema["status"]["conditions"].as_array();
    let same = |condition: &Value| {
        ["type", "status", "reason", "message"].iter().all(|field| condition[field] == wanted[field])
    };
    conditions.is_some_and(|conditions| conditions.iter().any(same))
}
