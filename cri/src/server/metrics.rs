//! Usage: lists that the trait has one by one, and the same as metrics by cAdvisor's names.

use std::collections::HashMap;

use decapod_proto::cri;
use decapod_runtime::{Error, Runtime};

/// The labels of each metric.
const LABELS: [&str; 2] = ["id", "name"];

/// Of a second: CRI's metrics are whole numbers.
const NANOS: u64 = 1_000_000_000;

/// Reads a time and a value, if they are known.
type Read = fn(Option<&cri::CpuUsage>, Option<&cri::MemoryUsage>) -> Option<(i64, u64)>;

/// A metric, and how it is read.
struct Row {
    name: &'static str,
    help: &'static str,
    kind: cri::MetricType,
    value: Read,
}

const ROWS: [Row; 5] = [
    Row {
        name: "container_cpu_usage_seconds_total",
        help: "Cumulative cpu time consumed in seconds.",
        kind: cri::MetricType::Counter,
        value: |cpu, _| Some((cpu?.timestamp, cpu?.usage_core_nano_seconds?.value / NANOS)),
    },
    Row {
        name: "container_memory_usage_bytes",
        help: "Current memory usage in bytes, including all memory regardless of when it was accessed.",
        kind: cri::MetricType::Gauge,
        value: |_, memory| Some((memory?.timestamp, memory?.usage_bytes?.value)),
    },
    Row {
        name: "container_memory_working_set_bytes",
        help: "Current working set in bytes.",
        kind: cri::MetricType::Gauge,
        value: |_, memory| Some((memory?.timestamp, memory?.working_set_bytes?.value)),
    },
    Row {
        name: "container_memory_rss",
        help: "Size of RSS in bytes.",
        kind: cri::MetricType::Gauge,
        value: |_, memory| Some((memory?.timestamp, memory?.rss_bytes?.value)),
    },
    Row {
        name: "container_memory_failures_total",
        help: "Cumulative count of page faults.",
        kind: cri::MetricType::Counter,
        value: |_, memory| Some((memory?.timestamp, memory?.page_faults?.value)),
    },
];

/// What [`pods`] tells.
pub(super) fn descriptors() -> Vec<cri::MetricDescriptor> {
    let label_keys: Vec<String> = LABELS.iter().map(ToString::to_string).collect();
    let descriptor = |row: &Row| cri::MetricDescriptor {
        name: row.name.to_owned(),
        help: row.help.to_owned(),
        label_keys: label_keys.clone(),
    };
    ROWS.iter().map(descriptor).collect()
}

fn metrics(
    id: &str,
    name: &str,
    cpu: Option<&cri::CpuUsage>,
    memory: Option<&cri::MemoryUsage>,
) -> Vec<cri::Metric> {
    let metric = |row: &Row| {
        let (timestamp, value) = (row.value)(cpu, memory)?;
        Some(cri::Metric {
            name: row.name.to_owned(),
            timestamp,
            metric_type: row.kind.into(),
            label_values: vec![id.to_owned(), name.to_owned()],
            value: Some(cri::UInt64Value { value }),
        })
    };
    ROWS.iter().filter_map(metric).collect()
}

/// The metrics of a pod and of its containers.
pub(super) fn pod(stats: &cri::PodSandboxStats) -> cri::PodSandboxMetrics {
    let attributes = stats.attributes.clone().unwrap_or_default();
    let name = attributes.metadata.map(|metadata| metadata.name).unwrap_or_default();
    let linux = stats.linux.clone().unwrap_or_default();
    let container = |stats: &cri::ContainerStats| {
        let attributes = stats.attributes.clone().unwrap_or_default();
        let name = attributes.metadata.map(|metadata| metadata.name).unwrap_or_default();
        cri::ContainerMetrics {
            metrics: metrics(&attributes.id, &name, stats.cpu.as_ref(), stats.memory.as_ref()),
            container_id: attributes.id,
        }
    };
    cri::PodSandboxMetrics {
        metrics: metrics(&attributes.id, &name, linux.cpu.as_ref(), linux.memory.as_ref()),
        pod_sandbox_id: attributes.id,
        container_metrics: linux.containers.iter().map(container).collect(),
    }
}

/// Usage of all pods that the filter lets pass. One that goes meanwhile is left out.
pub(super) async fn pods(
    runtime: &dyn Runtime,
    filter: Option<cri::PodSandboxStatsFilter>,
) -> Result<Vec<cri::PodSandboxStats>, Error> {
    let filter = filter.map(|filter| cri::PodSandboxFilter {
        id: filter.id,
        label_selector: filter.label_selector,
        state: None,
    });
    let mut all = Vec::new();
    for sandbox in runtime.sandbox_list(filter.as_ref()).await? {
        let stopped = sandbox.state() != cri::PodSandboxState::SandboxReady;
        match runtime.sandbox_stats(&sandbox.id).await {
            Ok(stats) => all.push(stats),
            Err(error) if error.is_not_found() || stopped => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// Usage of all containers that the filter lets pass. One that has exited uses nothing any more, and is named only.
pub(super) async fn containers(
    runtime: &dyn Runtime,
    filter: Option<cri::ContainerStatsFilter>,
) -> Result<Vec<cri::ContainerStats>, Error> {
    let filter = filter.map(|filter| cri::ContainerFilter {
        id: filter.id,
        pod_sandbox_id: filter.pod_sandbox_id,
        label_selector: filter.label_selector,
        state: None,
    });
    let mut all = Vec::new();
    for container in runtime.container_list(filter.as_ref()).await? {
        let running = container.state() == cri::ContainerState::ContainerRunning;
        match runtime.container_stats(&container.id).await {
            Ok(stats) => all.push(stats),
            Err(error) if error.is_not_found() => {}
            Err(_) if !running => all.push(named(container)),
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

fn named(container: cri::Container) -> cri::ContainerStats {
    let cri::Container { id, metadata, labels, annotations, .. } = container;
    let (labels, annotations): (HashMap<_, _>, HashMap<_, _>) = (labels, annotations);
    let attributes = cri::ContainerAttributes { id, metadata, labels, annotations };
    cri::ContainerStats { attributes: Some(attributes), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_described() {
        let value = |value| Some(cri::UInt64Value { value });
        let stats = cri::PodSandboxStats {
            attributes: Some(cri::PodSandboxAttributes { id: "s".into(), ..Default::default() }),
            linux: Some(cri::LinuxPodSandboxStats {
                cpu: Some(cri::CpuUsage {
                    timestamp: 1,
                    usage_core_nano_seconds: value(7 * NANOS),
                    ..Default::default()
                }),
                memory: Some(cri::MemoryUsage { timestamp: 2, rss_bytes: value(9), ..Default::default() }),
                ..Default::default()
            }),
        };
        let pod = pod(&stats);
        let found: Vec<_> =
            pod.metrics.iter().map(|m| (m.name.as_str(), m.timestamp, m.value.unwrap().value)).collect();
        assert_eq!(found, [("container_cpu_usage_seconds_total", 1, 7), ("container_memory_rss", 2, 9)]);
        let described = descriptors();
        assert!(pod.metrics.iter().all(|m| {
            described.iter().any(|d| d.name == m.name && d.label_keys.len() == m.label_values.len())
        }));
    }
}
