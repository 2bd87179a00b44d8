//! What the node tells of itself and its pods, in Prometheus' text format and under Kubernetes' names: `/metrics`,
//! `/metrics/resource` (what the metrics API is made of) and `/metrics/probes`.

use std::fmt::Write;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use decapod_proto::cri;

use crate::measures::{Counts, START_BUCKETS};
use crate::pod::mark;
use crate::shared::Shared;
use decapod_cri::stream::Refusal;

const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Metrics as text. Its names and helps are constants; labels are escaped.
#[derive(Debug, Default)]
pub(super) struct Text(pub(super) String);

impl Text {
    /// Begins the series of one name.
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// One series; its time is in milliseconds since 1970.
    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64, at: Option<i64>) {
        self.0.push_str(name);
        for (n, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            self.line(format_args!("{}{label}=\"{value}\"", if n == 0 { '{' } else { ',' }));
        }
        self.0.push_str(if labels.is_empty() { " " } else { "} " });
        match at {
            Some(at) => self.line(format_args!("{value} {at}\n")),
            None => self.line(format_args!("{value}\n")),
        }
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        self.0.write_fmt(text).expect("text is written to memory");
    }
}

impl IntoResponse for Text {
    fn into_response(self) -> Response {
        ([(CONTENT_TYPE, FORMAT)], self.0).into_response()
    }
}

/// The kubelet itself.
pub(super) async fn kubelet(State(shared): State<Arc<Shared>>) -> Result<Response, Refusal> {
    let sandboxes = shared.runtime.sandbox_list(None).await?;
    let containers = shared.runtime.container_list(None).await?;
    let mut text = Text::default();
    let name = "kubelet_node_name";
    text.family(name, "gauge", "The node's name. The count is always 1.");
    text.sample(name, &[("node", &shared.options.node_name)], 1.0, None);
    let ready = cri::PodSandboxState::SandboxReady as i32;
    let running = sandboxes.iter().filter(|sandbox| sandbox.state == ready).count();
    let name = "kubelet_running_pods";
    text.family(name, "gauge", "Number of pods that have a running pod sandbox");
    text.sample(name, &[], running as f64, None);
    let name = "kubelet_desired_pods";
    text.family(name, "gauge", "The number of pods the kubelet is being instructed to run");
    text.sample(name, &[("static", "")], shared.pods.len() as f64, None);
    let name = "kubelet_running_containers";
    text.family(name, "gauge", "Number of containers currently running");
    for (state, value) in [
        ("created", cri::ContainerState::ContainerCreated),
        ("exited", cri::ContainerState::ContainerExited),
        ("running", cri::ContainerState::ContainerRunning),
    ] {
        let count = containers.iter().filter(|container| container.state == value as i32).count();
        text.sample(name, &[("container_state", state)], count as f64, None);
    }
    own_work(&mut text, &shared.measures.counts());
    own_process(&mut text);
    let name = "kubelet_evictions";
    text.family(name, "counter", "Cumulative number of pod evictions by eviction signal");
    for (signal, count) in shared.evictions.counts() {
        text.sample(name, &[("eviction_signal", signal)], count as f64, None);
    }
    // What the agent's parts count: requests, work queues, the service proxy.
    match decapod_client::metrics::text() {
        Ok(counted) => text.0.push_str(&decapod_api::exposition::classic(&counted)),
        Err(error) => tracing::warn!(%error, "what the components count cannot be written"),
    }
    Ok(text.into_response())
}

/// What the kubelet did.
fn own_work(text: &mut Text, counts: &Counts) {
    let counters = [
        ("kubelet_started_pods_total", "Cumulative number of pods started", counts.pods),
        (
            "kubelet_started_pods_errors_total",
            "Cumulative number of errors when starting pods",
            counts.pod_errors,
        ),
        ("kubelet_started_containers_total", "Cumulative number of containers started", counts.containers),
        (
            "kubelet_started_containers_errors_total",
            "Cumulative number of errors when starting containers",
            counts.container_errors,
        ),
    ];
    for (name, help, count) in counters {
        text.family(name, "counter", help);
        text.sample(name, &[], count as f64, None);
    }
    let name = "kubelet_pod_start_duration_seconds";
    text.family(
        name,
        "histogram",
        "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
    );
    let bucket = format!("{name}_bucket");
    for (bound, count) in START_BUCKETS.iter().zip(counts.starts.buckets) {
        text.sample(&bucket, &[("le", &bound.to_string())], count as f64, None);
    }
    text.sample(&bucket, &[("le", "+Inf")], counts.starts.count as f64, None);
    text.sample(&format!("{name}_sum"), &[], counts.starts.sum, None);
    text.sample(&format!("{name}_count"), &[], counts.starts.count as f64, None);
}

/// The agent's process, by the names that every program of Kubernetes has.
fn own_process(text: &mut Text) {
    let status = std::fs::read_to_string("/proc/self/status");
    let stat = std::fs::read_to_string("/proc/self/stat");
    let (Ok(status), Ok(stat)) = (status, stat) else {
        tracing::warn!("what the agent itself uses cannot be read");
        return;
    };
    let kibibytes = |field: &str| {
        let rest = status.lines().find_map(|line| line.strip_prefix(field))?;
        rest.split_whitespace().next()?.parse::<f64>().ok()
    };
    // What follows the program's name, which may contain anything: user and system time are the 12th and 13th.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|n| n.parse::<f64>().ok());
    let seconds = ticks(11).zip(ticks(12)).map(|(user, system)| (user + system) / 100.0);
    let all = [
        ("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", seconds),
        (
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory size in bytes.",
            kibibytes("VmRSS:").map(|n| n * 1024.0),
        ),
        (
            "process_virtual_memory_bytes",
            "gauge",
            "Virtual memory size in bytes.",
            kibibytes("VmSize:").map(|n| n * 1024.0),
        ),
    ];
    for (name, kind, help, value) in all {
        if let Some(value) = value {
            text.family(name, kind, help);
            text.sample(name, &[], value, None);
        }
    }
}

/// The results of probes.
pub(super) async fn probes(State(shared): State<Arc<Shared>>) -> Response {
    let mut text = Text::default();
    let name = "prober_probe_total";
    text.family(
        name,
        "counter",
        "Cumulative number of a liveness, readiness or startup probe for a container by result.",
    );
    for tally in shared.probes.tallies() {
        for (result, count) in [("failed", tally.failed), ("successful", tally.successful)] {
            if count == 0 {
                continue;
            }
            let labels: [(&str, &str); 6] = [
                ("container", tally.container.as_str()),
                ("namespace", &tally.namespace),
                ("pod", &tally.pod),
                ("pod_uid", &tally.uid),
                ("probe_type", tally.kind),
                ("result", result),
            ];
            text.sample(name, &labels, count as f64, None);
        }
    }
    text.into_response()
}

/// What node, pods and containers use.
pub(super) async fn resource(State(shared): State<Arc<Shared>>) -> Result<Response, Refusal> {
    let filter = cri::PodSandboxFilter {
        state: Some(cri::PodSandboxStateValue { state: cri::PodSandboxState::SandboxReady as i32 }),
        ..Default::default()
    };
    let mut failed = false;
    let mut pods = Vec::new();
    for sandbox in shared.runtime.sandbox_list(Some(&filter)).await? {
        match shared.runtime.sandbox_stats(&sandbox.id).await {
            Ok(stats) => pods.push(stats),
            Err(decapod_runtime::Error::NotFound { .. }) => {}
            Err(error) => {
                tracing::warn!(sandbox = sandbox.id, %error, "what a pod uses cannot be read");
                failed = true;
            }
        }
    }
    let running = cri::ContainerState::ContainerRunning as i32;
    let mut started = Vec::new();
    for container in shared.runtime.container_list(None).await?.iter().filter(|c| c.state == running) {
        match shared.runtime.container_status(&container.id).await {
            Ok(status) => started.push(status),
            Err(decapod_runtime::Error::NotFound { .. }) => {}
            Err(error) => {
                tracing::warn!(container = container.id, %error, "the state of a container cannot be read");
                failed = true;
            }
        }
    }
    let node = node_usage();
    if let Err(error) = &node {
        tracing::warn!(%error, "what the node uses cannot be read");
        failed = true;
    }
    Ok(usage(&pods, &started, node.ok(), failed).into_response())
}

/// What the machine uses: seconds of processor time, and bytes that cannot be reclaimed at once.
fn node_usage() -> std::io::Result<(f64, f64)> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    parse_node(&stat, &memory)
        .ok_or_else(|| std::io::Error::other("/proc/stat or /proc/meminfo is not as expected"))
}

fn parse_node(stat: &str, memory: &str) -> Option<(f64, f64)> {
    // Ticks are a hundredth of a second on every Linux that we run on (sysconf(_SC_CLK_TCK)).
    const TICKS: f64 = 100.0;
    let fields: Option<Vec<f64>> =
        stat.lines().next()?.split_whitespace().skip(1).map(|n| n.parse().ok()).collect();
    let fields = fields?;
    // user nice system idle iowait irq softirq steal; guests are in the first two already.
    let busy: f64 =
        fields.iter().take(8).enumerate().filter(|(n, _)| !matches!(n, 3 | 4)).map(|(_, n)| n).sum();
    let field = |name: &str| {
        let rest = memory.lines().find_map(|line| line.strip_prefix(name))?.strip_prefix(':')?;
        Some(rest.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
    };
    let used = field("MemTotal")? - field("MemFree")? - field("Inactive(file)")?;
    Some((busy / TICKS, used.max(0.0)))
}

fn label<'a>(labels: &'a std::collections::HashMap<String, String>, key: &str) -> &'a str {
    labels.get(key).map_or("", String::as_str)
}

type Measure = fn(Option<&cri::CpuUsage>, Option<&cri::MemoryUsage>) -> Option<(f64, i64)>;

fn cpu_seconds(cpu: Option<&cri::CpuUsage>, _: Option<&cri::MemoryUsage>) -> Option<(f64, i64)> {
    let cpu = cpu?;
    Some((cpu.usage_core_nano_seconds.as_ref()?.value as f64 / 1e9, cpu.timestamp))
}

fn working_set(_: Option<&cri::CpuUsage>, memory: Option<&cri::MemoryUsage>) -> Option<(f64, i64)> {
    let memory = memory?;
    Some((memory.working_set_bytes.as_ref()?.value as f64, memory.timestamp))
}

fn millis(nanos: i64) -> Option<i64> {
    Some(nanos / 1_000_000)
}

fn usage(
    pods: &[cri::PodSandboxStats],
    started: &[cri::ContainerStatus],
    node: Option<(f64, f64)>,
    failed: bool,
) -> Text {
    let mut text = Text::default();
    let measures: [(&str, &str, &str, Measure); 2] = [
        ("cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the", cpu_seconds),
        ("memory_working_set_bytes", "gauge", "Current working set in bytes of the", working_set),
    ];
    for (suffix, kind, help, measure) in measures {
        let name = format!("container_{suffix}");
        text.family(&name, kind, &format!("{help} container"));
        for container in pods.iter().filter_map(|pod| pod.linux.as_ref()).flat_map(|pod| &pod.containers) {
            let Some(attributes) = &container.attributes else { continue };
            let measured = measure(container.cpu.as_ref(), container.memory.as_ref());
            let Some((value, at)) = measured else { continue };
            text.sample(&name, &of_container(&attributes.labels), value, millis(at));
        }
        let name = format!("pod_{suffix}");
        text.family(&name, kind, &format!("{help} pod"));
        for pod in pods {
            let (Some(attributes), Some(linux)) = (&pod.attributes, &pod.linux) else { continue };
            let Some((value, at)) = measure(linux.cpu.as_ref(), linux.memory.as_ref()) else { continue };
            text.sample(&name, &of_container(&attributes.labels)[1..], value, millis(at));
        }
    }
    let name = "container_start_time_seconds";
    text.family(name, "gauge", "Start time of the container since unix epoch in seconds");
    for container in started {
        text.sample(name, &of_container(&container.labels), container.started_at as f64 / 1e9, None);
    }
    if let Some((cpu, memory)) = node {
        text.family("node_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the node");
        text.sample("node_cpu_usage_seconds_total", &[], cpu, None);
        text.family("node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes");
        text.sample("node_memory_working_set_bytes", &[], memory, None);
    }
    text.family(
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
    );
    text.sample("resource_scrape_error", &[], f64::from(u8::from(failed)), None);
    text
}

/// The labels of a container; a pod has all but the first.
fn of_container(labels: &std::collections::HashMap<String, String>) -> [(&'static str, &str); 3] {
    [
        ("container", label(labels, mark::CONTAINER_NAME)),
        ("namespace", label(labels, mark::POD_NAMESPACE)),
        ("pod", label(labels, mark::POD_NAME)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_read() {
        let stat = "cpu  100 50 250 9000 70 10 20 5 33 0\ncpu0 1 2 3\n";
        let memory = "MemTotal: 1000 kB\nMemFree: 300 kB\nInactive(file): 200 kB\n";
        assert_eq!(parse_node(stat, memory), Some((4.35, 500.0 * 1024.0)));
        assert_eq!(parse_node("", memory), None);
        assert_eq!(parse_node(stat, "MemTotal: 1000 kB\n"), None);
    }

    #[test]
    fn usage_is_told_by_kubernetes_names() {
        let labels = |container: Option<&str>| {
            let all = [
                (mark::POD_NAMESPACE, Some("default")),
                (mark::POD_NAME, Some("p")),
                (mark::CONTAINER_NAME, container),
            ];
            all.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned()))).collect()
        };
        let at = 1_790_000_000_123_456_789;
        let cpu = |nanos| cri::CpuUsage {
            timestamp: at,
            usage_core_nano_seconds: Some(cri::UInt64Value { value: nanos }),
            ..Default::default()
        };
        let memory = |bytes| cri::MemoryUsage {
            timestamp: at,
            working_set_bytes: Some(cri::UInt64Value { value: bytes }),
            ..Default::default()
        };
        let container = cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes { labels: labels(Some("c")), ..Default::default() }),
            cpu: Some(cpu(1_500_000_000)),
            memory: Some(memory(4096)),
            ..Default::default()
        };
        let pod = cri::PodSandboxStats {
            attributes: Some(cri::PodSandboxAttributes { labels: labels(None), ..Default::default() }),
            linux: Some(cri::LinuxPodSandboxStats {
                cpu: Some(cpu(2_000_000_000)),
                memory: Some(memory(8192)),
                containers: vec![container],
                ..Default::default()
            }),
        };
        let started = cri::ContainerStatus {
            labels: labels(Some("c")),
            started_at: 1_790_000_000_000_000_000,
            ..Default::default()
        };
        let text = usage(&[pod], &[started], Some((7.25, 1024.0)), true).0;
        for line in [
            "# TYPE container_cpu_usage_seconds_total counter",
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"default\",pod=\"p\"} 1.5 1790000000123",
            "container_memory_working_set_bytes{container=\"c\",namespace=\"default\",pod=\"p\"} 4096 1790000000123",
            "container_start_time_seconds{container=\"c\",namespace=\"default\",pod=\"p\"} 1790000000",
            "pod_cpu_usage_seconds_total{namespace=\"default\",pod=\"p\"} 2 1790000000123",
            "pod_memory_working_set_bytes{namespace=\"default\",pod=\"p\"} 8192 1790000000123",
            "node_cpu_usage_seconds_total 7.25",
            "node_memory_working_set_bytes 1024",
            "resource_scrape_error 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn labels_are_escaped() {
        let mut text = Text::default();
        text.sample("x", &[("a", "q\"\\\n")], 1.0, None);
        assert_eq!(text.0, "x{a=\"q\\\"\\\\\\n\"} 1\n");
    }
}
