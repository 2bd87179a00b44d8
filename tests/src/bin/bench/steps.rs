//! Where the start of a pod goes: what the node's agent itself measured, by the names that Kubernetes has for it.

use anyhow::{Context, Result};

use super::figures::say;

/// What is told of, and the histogram that has it; each in the order in which it happens.
const STEPS: [(&str, &str, &str); 6] = [
    ("seen by the agent -> its turn", "kubelet_pod_worker_start_duration_seconds", ""),
    ("sandbox: shim, namespaces, network", OPERATIONS, "operation_type=\"run_podsandbox\""),
    ("container created", OPERATIONS, "operation_type=\"create_container\""),
    ("container started", OPERATIONS, "operation_type=\"start_container\""),
    ("status written", "kubelet_pod_status_sync_duration_seconds", ""),
    ("all of the agent's first sync", "kubelet_pod_worker_duration_seconds", "operation_type=\"create\""),
];
const OPERATIONS: &str = "kubelet_runtime_operations_duration_seconds";

/// What the agent has measured until some moment.
#[derive(Debug)]
pub(crate) struct Steps(Vec<(f64, f64)>);

impl Steps {
    /// Asks the node, by way of the API server.
    ///
    /// # Errors
    /// The node serves no metrics (yet).
    pub(crate) async fn look(client: &kube::Client) -> Result<Self> {
        let request =
            http::Request::get(format!("/api/v1/nodes/{}/proxy/metrics", decapod_tests::node::NAME))
                .body(Vec::new())?;
        let text = client.request_text(request).await?;
        let all = STEPS.iter().map(|(_, name, label)| {
            Some((value(&text, name, "_sum", label)?, value(&text, name, "_count", label)?))
        });
        // What has not happened yet has no series.
        Ok(Self(all.map(Option::unwrap_or_default).collect()))
    }

    /// Tells what each step took on average since then.
    pub(crate) fn say_since(&self, before: &Self) -> Result<()> {
        for ((what, ..), (now, then)) in STEPS.iter().zip(self.0.iter().zip(&before.0)) {
            let count = now.1 - then.1;
            let mean = (count > 0.0).then(|| (now.0 - then.0) / count * 1000.0);
            let mean = mean.with_context(|| format!("the agent has measured nothing of {what:?}"))?;
            say(&format!("  of these, on average: {what}"), mean, "ms", None);
        }
        Ok(())
    }
}

/// The value of one series in Prometheus' text format.
fn value(text: &str, name: &str, suffix: &str, label: &str) -> Option<f64> {
    let of_name = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(suffix));
    let line = of_name.into_iter().find(|rest| rest.starts_with([' ', '{']) && rest.contains(label))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_found_by_name_and_label() {
        let text = "a_sum 1.5\na_sum{o=\"x\"} 2\na_sum{o=\"y\"} 3\na_summary 4\n";
        assert_eq!(value(text, "a", "_sum", ""), Some(1.5));
        assert_eq!(value(text, "a", "_sum", "o=\"y\""), Some(3.0));
        assert_eq!(value(text, "a", "_count", ""), None);
    }
}
