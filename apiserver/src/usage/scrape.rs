//! Asks the kubelets what is used: one task for all of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use decapod_api::status::Error;
use futures::StreamExt;
use serde_json::Value;
use tokio_util::task::TaskTracker;

use super::sample::{self, Sample};
use crate::http::query::Query;
use crate::nodeproxy;
use crate::registry::options::ListOptions;
use crate::registry::{Call, core};
use crate::server::Core;

/// Between two rounds while somebody asks: the resolution of Kubernetes' metrics-server.
const PERIOD: Duration = Duration::from_secs(15);
/// Between two rounds while nobody does: enough to have something to compare with.
const IDLE_PERIOD: Duration = Duration::from_secs(60);
/// Rounds after the last question in which somebody is still taken to ask: an autoscaler or a person that looks on.
const ASKED_ROUNDS: u32 = 20;
/// Between two rounds while a node that answers has been read once only: its first figures come from both.
const FIRST_PERIOD: Duration = Duration::from_secs(1);
/// Kubelets that are asked at once.
const AT_ONCE: usize = 16;
/// A kubelet that has not answered by then is left out, as metrics-server does.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The longest answer: 110 pods take about 60 KiB, and a node may have many more.
const ANSWER_MAX: usize = 16 * 1024 * 1024;

/// Goes round until the server stops.
pub(crate) fn keep(server: &Arc<Core>, tasks: &TaskTracker) {
    let server = server.clone();
    tasks.spawn(async move {
        let stop = server.stopping.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = follow(&server) => {}
        }
    });
}

async fn follow(server: &Core) {
    let usage = &server.usage;
    let mut asked = 0;
    loop {
        if usage.asked.swap(false, Ordering::Relaxed) {
            asked = ASKED_ROUNDS;
        }
        if let Err(error) = round(server).await {
            tracing::debug!(%error, "the nodes cannot be listed to ask what is used");
        }
        usage.rounds.send_modify(|rounds| *rounds += 1);
        let young = usage.nodes().values().any(super::Kept::young);
        let period = match (young, asked) {
            (true, _) => FIRST_PERIOD,
            (false, 0) => IDLE_PERIOD,
            (false, _) => PERIOD,
        };
        asked = asked.saturating_sub(1);
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            // Somebody waits for the first figures that there are; not at once, since two readings at one time say
            // nothing.
            () = usage.wake.notified() => tokio::time::sleep(FIRST_PERIOD).await,
        }
    }
}

/// Asks every node that lives, and forgets those that are gone.
async fn round(server: &Core) -> Result<(), Error> {
    let call = Call::own(core("nodes"), "", "");
    let list = server.registry.list(&call, &ListOptions::parse(&Query::default())?).await?;
    let nodes = list.view.items.iter().map(|node| super::parse(node)).collect::<Result<Vec<_>, _>>()?;
    let names: Vec<&str> = nodes.iter().map(name).collect();
    server.usage.nodes().retain(|name, _| names.contains(&name.as_str()));
    let due = nodes.iter().filter(|node| lives(node)).filter(|node| {
        let mut kept = server.usage.nodes();
        kept.entry(name(node).to_owned()).or_default().due()
    });
    let mut answers = Vec::new();
    for node in due {
        answers.push(take(server, node));
    }
    futures::stream::iter(answers).buffer_unordered(AT_ONCE).for_each(|()| std::future::ready(())).await;
    for node in nodes.iter().filter(|node| !lives(node)) {
        // Its figures are of the time when it lived.
        server.usage.nodes().remove(name(node));
    }
    Ok(())
}

/// Asks one node and keeps what it says.
async fn take(server: &Core, node: &Value) {
    let answer = ask(server, node).await;
    let mut kept = server.usage.nodes();
    let kept = kept.entry(name(node).to_owned()).or_default();
    match answer {
        Ok(sample) => kept.push(sample),
        Err(error) => {
            tracing::debug!(node = name(node), %error, "a node does not say what is used");
            kept.fail();
        }
    }
}

fn name(node: &Value) -> &str {
    node["metadata"]["name"].as_str().unwrap_or_default()
}

/// Whether the node's kubelet was heard of lately: else its condition is unknown.
fn lives(node: &Value) -> bool {
    let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|condition| condition["type"] == "Ready" && condition["status"] != "Unknown")
}

async fn ask(server: &Core, node: &Value) -> Result<Sample, Error> {
    let answer = nodeproxy::fetch(&server.kubelets, node, "/metrics/resource", ANSWER_MAX);
    let answer = tokio::time::timeout(ANSWER_WITHIN, answer).await;
    let text = answer.map_err(|_| Error::Timeout("the kubelet did not answer in time".to_owned()))??;
    Ok(sample::parse(&text, server.clock.now()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_nodes_that_are_heard_of_are_asked() {
        let node = |status: &str| json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
        assert!(lives(&node("True")) && lives(&node("False")));
        assert!(!lives(&node("Unknown")) && !lives(&json!({})));
    }
}
