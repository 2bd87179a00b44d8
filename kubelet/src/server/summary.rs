//! `/stats/summary` (`stats/v1alpha1`): what the node, its pods and their containers use.
//!
//! **Invariant**: what is not known is absent; nothing is told as zero that was not read as zero.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use decapod_proto::cri;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::Refusal;
use crate::pod::mark;
use crate::shared::Shared;

/// Ticks of `/proc/stat` in a second, on every architecture that Linux runs containers on.
const TICKS: u64 = 100;

pub(super) async fn handle(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, Refusal> {
    let ready = cri::PodSandboxState::SandboxReady as i32;
    let mut pods = Vec::new();
    for sandbox in shared.runtime.sandbox_list(None).await?.iter().filter(|s| s.state == ready) {
        match shared.runtime.sandbox_stats(&sandbox.id).await {
            Ok(stats) => pods.push(pod(sandbox.created_at, &stats)),
            // It went meanwhile.
            Err(decapod_runtime::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let node = node(
        &shared.options.node_name,
        shared.clock.now(),
        read("/proc/stat").as_deref().unwrap_or_default(),
        read("/proc/meminfo").as_deref().unwrap_or_default(),
    );
    Ok(Json(json!({"node": node, "pods": pods})))
}

/// An object of those fields that are known.
fn known<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let known = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(known.collect::<Map<_, _>>())
}

/// A moment as `metav1.Time`, to the second.
fn time(nanoseconds: i64) -> Option<Value> {
    let at = Timestamp::from_second(nanoseconds.div_euclid(1_000_000_000)).ok()?;
    (nanoseconds > 0).then(|| at.to_string().into())
}

fn number(value: Option<&cri::UInt64Value>) -> Option<Value> {
    value.map(|value| value.value.into())
}

fn cpu(usage: &cri::CpuUsage) -> Value {
    known([
        ("time", time(usage.timestamp)),
        ("usageNanoCores", number(usage.usage_nano_cores.as_ref())),
        ("usageCoreNanoSeconds", number(usage.usage_core_nano_seconds.as_ref())),
    ])
}

fn memory(usage: &cri::MemoryUsage) -> Value {
    known([
        ("time", time(usage.timestamp)),
        ("availableBytes", number(usage.available_bytes.as_ref())),
        ("usageBytes", number(usage.usage_bytes.as_ref())),
        ("workingSetBytes", number(usage.working_set_bytes.as_ref())),
        ("rssBytes", number(usage.rss_bytes.as_ref())),
        ("pageFaults", number(usage.page_faults.as_ref())),
        ("majorPageFaults", number(usage.major_page_faults.as_ref())),
    ])
}

fn container(stats: &cri::ContainerStats) -> Value {
    let name = stats.attributes.as_ref().and_then(|a| a.labels.get(mark::CONTAINER_NAME));
    known([
        ("name", name.map(|name| name.as_str().into())),
        ("cpu", stats.cpu.as_ref().map(cpu)),
        ("memory", stats.memory.as_ref().map(memory)),
    ])
}

fn pod(created_at: i64, stats: &cri::PodSandboxStats) -> Value {
    let labels = stats.attributes.as_ref().map(|a| &a.labels);
    let label = |name: &str| labels.and_then(|labels| labels.get(name)).map(|text| text.as_str().into());
    let usage = stats.linux.as_ref();
    let processes = usage.and_then(|usage| usage.process.as_ref()?.process_count.as_ref());
    known([
        (
            "podRef",
            Some(known([
                ("name", label(mark::POD_NAME)),
                ("namespace", label(mark::POD_NAMESPACE)),
                ("uid", label(mark::POD_UID)),
            ])),
        ),
        ("startTime", time(created_at)),
        (
            "containers",
            Some(
                usage.map_or_else(Vec::<Value>::new, |u| u.containers.iter().map(container).collect()).into(),
            ),
        ),
        ("cpu", usage.and_then(|usage| usage.cpu.as_ref()).map(cpu)),
        ("memory", usage.and_then(|usage| usage.memory.as_ref()).map(memory)),
        ("process_stats", processes.map(|count| json!({"process_count": count.value}))),
    ])
}

/// The machine, by its `/proc/stat` and `/proc/meminfo`.
fn node(name: &str, now: Timestamp, stat: &str, meminfo: &str) -> Value {
    let booted = field(stat, "btime ").and_then(|seconds| time(i64::try_from(seconds).ok()? * 1_000_000_000));
    let bytes = |name: &str| field(meminfo, name).map(|kib| kib * 1024);
    let (total, free, available) = (bytes("MemTotal:"), bytes("MemFree:"), bytes("MemAvailable:"));
    let beside = |part: Option<u64>| total.zip(part).map(|(all, part)| all.saturating_sub(part).into());
    let at = time(i64::try_from(now.as_nanosecond()).unwrap_or_default());
    let worked = worked(stat).map(|ticks| (ticks * (1_000_000_000 / TICKS)).into());
    known([
        ("nodeName", Some(name.into())),
        ("startTime", booted),
        ("cpu", Some(known([("time", at.clone()), ("usageCoreNanoSeconds", worked)]))),
        (
            "memory",
            Some(known([
                ("time", at),
                ("availableBytes", available.map(Into::into)),
                ("usageBytes", beside(free)),
                ("workingSetBytes", beside(available)),
            ])),
        ),
    ])
}

/// The first number in the line that begins so.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// The ticks in which all processors together did something: all but those of idling and waiting; those of guests are
/// in the first two already.
fn worked(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|ticks| ticks.parse().ok()).take(8).collect();
    (ticks.len() >= 4).then(|| {
        let busy = ticks.iter().enumerate().filter(|(at, _)| !matches!(at, 3 | 4));
        busy.map(|(_, ticks)| ticks).sum()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_in_numbers() {
        let stat = "cpu  10 1 5 1000 50 2 3 4 6 6\ncpu0 1 1 1 1\nbtime 1700000000\n";
        let meminfo = "MemTotal:       1000 kB\nMemFree:         300 kB\nMemAvailable:    600 kB\n";
        let now = Timestamp::from_second(1_700_000_100).unwrap();
        let told = node("n1", now, stat, meminfo);
        let at = "2023-11-14T22:15:00Z";
        let wanted = json!({"nodeName": "n1", "startTime": "2023-11-14T22:13:20Z",
            "cpu": {"time": at, "usageCoreNanoSeconds": 250_000_000},
            "memory": {"time": at, "availableBytes": 614_400, "usageBytes": 716_800, "workingSetBytes": 409_600}});
        assert_eq!(told, wanted);
        let nothing = node("n1", now, "", "");
        assert_eq!(nothing, json!({"nodeName": "n1", "cpu": {"time": at}, "memory": {"time": at}}));
    }

    #[test]
    fn a_pod_says_what_is_known() {
        let value = |value| Some(cri::UInt64Value { value });
        let labels =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let cpu = cri::CpuUsage {
            timestamp: 5_000_000_000,
            usage_core_nano_seconds: value(7),
            ..Default::default()
        };
        let container = cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes {
                labels: labels(&[(mark::CONTAINER_NAME, "c")]),
                ..Default::default()
            }),
            cpu: Some(cpu),
            ..Default::default()
        };
        let stats = cri::PodSandboxStats {
            attributes: Some(cri::PodSandboxAttributes {
                labels: labels(&[(mark::POD_NAME, "p"), (mark::POD_NAMESPACE, "d"), (mark::POD_UID, "u")]),
                ..Default::default()
            }),
            linux: Some(cri::LinuxPodSandboxStats {
                cpu: Some(cpu),
                process: Some(cri::ProcessUsage { timestamp: 0, process_count: value(2) }),
                containers: vec![container],
                ..Default::default()
            }),
        };
        let usage = json!({"time": "1970-01-01T00:00:05Z", "usageCoreNanoSeconds": 7});
        let wanted = json!({"podRef": {"name": "p", "namespace": "d", "uid": "u"}, "startTime": "1970-01-01T00:00:01Z",
            "containers": [{"name": "c", "cpu": usage}], "cpu": usage, "process_stats": {"process_count": 2}});
        assert_eq!(pod(1_000_000_000, &stats), wanted);
    }
}
