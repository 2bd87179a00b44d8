//! `/stats/summary` (`stats/v1alpha1`): what the node, its pods and their containers use.
//!
//! **Invariant**: what is not known is absent; nothing is told as zero that was not read as zero.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use decapod_proto::cri;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::pod::{mark, spec};
use crate::shared::Shared;
use crate::usage::{self, Disk, PodUsage};
use decapod_cri::stream::Refusal;

/// Ticks of `/proc/stat` in a second, on every architecture that Linux runs containers on.
const TICKS: u64 = 100;

pub(super) async fn handle(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, Refusal> {
    let ready = cri::PodSandboxState::SandboxReady as i32;
    let mut pods = Vec::new();
    let objects = shared.pods.list();
    for sandbox in shared.runtime.sandbox_list(None).await?.iter().filter(|s| s.state == ready) {
        let stats = match shared.runtime.sandbox_stats(&sandbox.id).await {
            Ok(stats) => stats,
            // It went meanwhile.
            Err(decapod_runtime::Error::NotFound { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let uid = sandbox.labels.get(mark::POD_UID);
        let object = objects.iter().find(|pod| Some(spec::uid(pod)) == uid.map(String::as_str));
        let usage = match object {
            Some(object) => usage::of_pod(&shared, object).await,
            None => PodUsage::default(),
        };
        pods.push(pod(sandbox.created_at, &stats, &usage, &Room::of(&shared.options.data_dir)));
    }
    let read = |path: &str| {
        fs::read_to_string(path).unwrap_or_else(|error| {
            tracing::warn!(path, %error, "the node's use cannot be read");
            String::new()
        })
    };
    let machine = Machine {
        stat: read("/proc/stat"),
        meminfo: read("/proc/meminfo"),
        loadavg: read("/proc/loadavg"),
        pid_max: read("/proc/sys/kernel/pid_max"),
        interfaces: read("/proc/net/dev"),
    };
    let now = shared.clock.now();
    let mut node = node(&shared.options.node_name, now, &machine);
    node["systemContainers"] = json!([pods_as_one(&shared, now)]);
    let room = Room::of(&shared.options.data_dir);
    node["fs"] = room.of_all(now);
    let images = shared.runtime.image_fs().await?;
    let place = |fs: Vec<cri::FilesystemUsage>| fs.into_iter().next();
    let image = place(images.image_filesystems).map(|used| filesystem(now, &used));
    let container = place(images.container_filesystems).map(|used| filesystem(now, &used));
    node["runtime"] = known([("imageFs", image), ("containerFs", container)]);
    Ok(Json(json!({"node": node, "pods": pods})))
}

/// What the kernel says of the machine.
#[derive(Debug, Default)]
struct Machine {
    stat: String,
    meminfo: String,
    loadavg: String,
    pid_max: String,
    interfaces: String,
}

/// What a file system has.
#[derive(Clone, Copy, Debug, Default)]
struct Room {
    /// Bytes and inodes: available, in all, used.
    bytes: [u64; 3],
    inodes: [u64; 3],
}

impl Room {
    /// Of the file system below a folder; one that does not say has none.
    fn of(path: &Path) -> Self {
        match nix::sys::statvfs::statvfs(path) {
            Ok(stat) => {
                let unit = stat.fragment_size();
                let used = (stat.blocks() - stat.blocks_free()) * unit;
                Self {
                    bytes: [stat.blocks_available() * unit, stat.blocks() * unit, used],
                    inodes: [stat.files_free(), stat.files(), stat.files().saturating_sub(stat.files_free())],
                }
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a file system does not say what it has");
                Self::default()
            }
        }
    }

    fn of_all(self, now: Timestamp) -> Value {
        self.with(now, self.bytes[2], Some(self.inodes[2]))
    }

    /// With what is used of it by somebody.
    fn with(self, now: Timestamp, bytes: u64, inodes: Option<u64>) -> Value {
        known([
            ("time", time(nanoseconds(now))),
            ("availableBytes", Some(self.bytes[0].into())),
            ("capacityBytes", Some(self.bytes[1].into())),
            ("usedBytes", Some(bytes.into())),
            ("inodesFree", Some(self.inodes[0].into())),
            ("inodes", Some(self.inodes[1].into())),
            ("inodesUsed", inodes.map(Into::into)),
        ])
    }
}

fn nanoseconds(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or_default()
}

/// A file system of the runtime, with what it uses there.
fn filesystem(now: Timestamp, used: &cri::FilesystemUsage) -> Value {
    let place = used.fs_id.as_ref().map(|id| id.mountpoint.clone()).unwrap_or_default();
    let value = |number: &Option<cri::UInt64Value>| number.as_ref().map(|number| number.value);
    Room::of(Path::new(&place)).with(now, value(&used.used_bytes).unwrap_or(0), value(&used.inodes_used))
}

/// All pods together, as Kubernetes has them among the system's containers.
fn pods_as_one(shared: &Shared, now: Timestamp) -> Value {
    let reading = shared.cgroups.read(&shared.cgroups.kubepods());
    let whole = |value: Option<f64>| value.map(|value| (value as u64).into());
    let at = time(nanoseconds(now));
    let used = reading.working_set.map(|used| used as i64);
    let bound = reading.memory_limit.filter(|limit| *limit > 0.0).map_or(shared.memory, |limit| limit as i64);
    let available = used.map(|used| (bound - used).max(0).into());
    known([
        ("name", Some("pods".into())),
        (
            "cpu",
            Some(known([
                ("time", at.clone()),
                ("usageCoreNanoSeconds", whole(reading.cpu.map(|seconds| seconds * 1e9))),
            ])),
        ),
        (
            "memory",
            Some(known([
                ("time", at),
                ("availableBytes", available),
                ("usageBytes", whole(reading.memory)),
                ("workingSetBytes", whole(reading.working_set)),
                ("rssBytes", whole(reading.rss)),
                ("pageFaults", whole(reading.faults)),
                ("majorPageFaults", whole(reading.major_faults)),
            ])),
        ),
    ])
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
        ("psi", usage.psi.as_ref().map(psi)),
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
        ("psi", usage.psi.as_ref().map(psi)),
    ])
}

fn psi(stats: &cri::PsiStats) -> Value {
    let data = |data: &cri::PsiData| json!({"total": data.total, "avg10": data.avg10, "avg60": data.avg60, "avg300": data.avg300});
    known([("full", stats.full.as_ref().map(data)), ("some", stats.some.as_ref().map(data))])
}

fn io(usage: &cri::IoUsage) -> Value {
    known([("time", time(usage.timestamp)), ("psi", usage.psi.as_ref().map(psi))])
}

fn swap(usage: &cri::SwapUsage) -> Value {
    known([
        ("time", time(usage.timestamp)),
        ("swapAvailableBytes", number(usage.swap_available_bytes.as_ref())),
        ("swapUsageBytes", number(usage.swap_usage_bytes.as_ref())),
    ])
}

fn network(usage: &cri::NetworkUsage) -> Value {
    let counts = |interface: &cri::NetworkInterfaceUsage| {
        known([
            ("name", Some(interface.name.as_str().into())),
            ("rxBytes", number(interface.rx_bytes.as_ref())),
            ("rxErrors", number(interface.rx_errors.as_ref())),
            ("txBytes", number(interface.tx_bytes.as_ref())),
            ("txErrors", number(interface.tx_errors.as_ref())),
        ])
    };
    // The one that the pod's address is on comes first, beside the list of all.
    let mut told = usage.default_interface.as_ref().map_or_else(|| json!({}), counts);
    if let Some(time) = time(usage.timestamp) {
        told["time"] = time;
    }
    told["interfaces"] = usage.interfaces.iter().map(counts).collect();
    told
}

fn container(stats: &cri::ContainerStats, usage: &PodUsage, room: &Room) -> Value {
    let name = stats.attributes.as_ref().and_then(|a| a.labels.get(mark::CONTAINER_NAME));
    let own = name.and_then(|name| usage.containers.get(name));
    let at = stats.cpu.as_ref().map_or(0, |cpu| cpu.timestamp);
    let now = Timestamp::from_nanosecond(at.into()).unwrap_or_default();
    let disk = |disk: Disk| room.with(now, disk.bytes, Some(disk.inodes));
    known([
        ("name", name.map(|name| name.as_str().into())),
        ("cpu", stats.cpu.as_ref().map(cpu)),
        ("memory", stats.memory.as_ref().map(memory)),
        ("swap", stats.swap.as_ref().filter(|swap| swap.swap_usage_bytes.is_some()).map(swap)),
        ("io", stats.io.as_ref().map(io)),
        ("rootfs", own.map(|own| disk(own.rootfs))),
        ("logs", own.map(|own| disk(own.logs))),
    ])
}

fn pod(created_at: i64, stats: &cri::PodSandboxStats, used: &PodUsage, room: &Room) -> Value {
    let labels = stats.attributes.as_ref().map(|a| &a.labels);
    let label = |name: &str| labels.and_then(|labels| labels.get(name)).map(|text| text.as_str().into());
    let usage = stats.linux.as_ref();
    let processes = usage.and_then(|usage| usage.process.as_ref()?.process_count.as_ref());
    let at = usage.and_then(|usage| usage.cpu.as_ref()).map_or(0, |cpu| cpu.timestamp);
    let now = Timestamp::from_nanosecond(at.into()).unwrap_or_default();
    let volume = |(name, disk): (&String, &Disk)| {
        let mut volume = room.with(now, disk.bytes, Some(disk.inodes));
        volume["name"] = name.as_str().into();
        volume
    };
    let volumes: Vec<Value> = used.volumes.iter().map(volume).collect();
    let measured = !used.containers.is_empty();
    let disk = used.disk();
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
                usage
                    .map_or_else(Vec::<Value>::new, |u| {
                        u.containers.iter().map(|c| container(c, used, room)).collect()
                    })
                    .into(),
            ),
        ),
        ("cpu", usage.and_then(|usage| usage.cpu.as_ref()).map(cpu)),
        ("memory", usage.and_then(|usage| usage.memory.as_ref()).map(memory)),
        ("io", usage.and_then(|usage| usage.io.as_ref()).map(io)),
        ("network", usage.and_then(|usage| usage.network.as_ref()).map(network)),
        ("volume", (!volumes.is_empty()).then(|| volumes.into())),
        ("ephemeral-storage", measured.then(|| room.with(now, disk.bytes, Some(disk.inodes)))),
        ("process_stats", processes.map(|count| json!({"process_count": count.value}))),
    ])
}

/// The machine, as the kernel says.
fn node(name: &str, now: Timestamp, machine: &Machine) -> Value {
    let Machine { stat, meminfo, loadavg, pid_max, interfaces } = machine;
    let booted = field(stat, "btime ").and_then(|seconds| time(i64::try_from(seconds).ok()? * 1_000_000_000));
    let bytes = |name: &str| field(meminfo, name).map(|kib| kib * 1024);
    let (total, free, available) = (bytes("MemTotal:"), bytes("MemFree:"), bytes("MemAvailable:"));
    let beside = |part: Option<u64>| total.zip(part).map(|(all, part)| all.saturating_sub(part).into());
    let at = time(i64::try_from(now.as_nanosecond()).unwrap_or_default());
    let worked = worked(stat).map(|ticks| (ticks * (1_000_000_000 / TICKS)).into());
    let tasks =
        loadavg.split_whitespace().nth(3).and_then(|tasks| tasks.split('/').nth(1)?.parse::<u64>().ok());
    let rlimit = tasks.zip(pid_max.trim().parse::<u64>().ok());
    let rlimit = rlimit.map(|(tasks, max)| {
        known([("time", at.clone()), ("maxpid", Some(max.into())), ("curproc", Some(tasks.into()))])
    });
    let swap = bytes("SwapTotal:").zip(bytes("SwapFree:")).map(|(all, free)| {
        known([
            ("time", at.clone()),
            ("swapAvailableBytes", Some(free.into())),
            ("swapUsageBytes", Some(all.saturating_sub(free).into())),
        ])
    });
    known([
        ("nodeName", Some(name.into())),
        ("startTime", booted),
        ("rlimit", rlimit),
        ("swap", swap),
        ("network", (!interfaces.is_empty()).then(|| node_network(at.clone(), interfaces))),
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

/// The node's interfaces, from a table as `/proc/net/dev`.
fn node_network(at: Option<Value>, table: &str) -> Value {
    let interfaces: Vec<Value> = super::cadvisor::interfaces(table)
        .into_iter()
        .map(|interface| {
            let [rx, _, rx_errors, _, tx, _, tx_errors, _] = interface.counts.map(|count| count as u64);
            json!({"name": interface.name, "rxBytes": rx, "rxErrors": rx_errors, "txBytes": tx,
                "txErrors": tx_errors})
        })
        .collect();
    known([("time", at), ("interfaces", Some(interfaces.into()))])
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
    use crate::usage::ContainerUsage;

    #[test]
    fn the_node_in_numbers() {
        let stat = "cpu  10 1 5 1000 50 2 3 4 6 6\ncpu0 1 1 1 1\nbtime 1700000000\n";
        let meminfo = "MemTotal:       1000 kB\nMemFree:         300 kB\nMemAvailable:    600 kB\n";
        let now = Timestamp::from_second(1_700_000_100).unwrap();
        let machine = Machine {
            stat: stat.into(),
            meminfo: meminfo.into(),
            loadavg: "0.1 0.2 0.3 2/300 4000\n".into(),
            pid_max: "32768\n".into(),
            interfaces: String::new(),
        };
        let told = node("n1", now, &machine);
        let at = "2023-11-14T22:15:00Z";
        let wanted = json!({"nodeName": "n1", "startTime": "2023-11-14T22:13:20Z",
            "rlimit": {"time": at, "maxpid": 32768, "curproc": 300},
            "cpu": {"time": at, "usageCoreNanoSeconds": 250_000_000},
            "memory": {"time": at, "availableBytes": 614_400, "usageBytes": 716_800, "workingSetBytes": 409_600}});
        assert_eq!(told, wanted);
        let nothing = node("n1", now, &Machine::default());
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
        assert_eq!(pod(1_000_000_000, &stats, &PodUsage::default(), &Room::default()), wanted);
        let disk = |bytes| Disk { bytes, inodes: 1 };
        let used = PodUsage {
            containers: [("c".to_owned(), ContainerUsage { rootfs: disk(5), logs: disk(2), memory: None })]
                .into(),
            volumes: [("v".to_owned(), disk(3))].into(),
            ..PodUsage::default()
        };
        let told = pod(1_000_000_000, &stats, &used, &Room { bytes: [70, 100, 30], inodes: [8, 9, 1] });
        assert_eq!(told["ephemeral-storage"]["usedBytes"], 10);
        assert_eq!((&told["volume"][0]["name"], &told["volume"][0]["usedBytes"]), (&json!("v"), &json!(3)));
        let rootfs = json!({"time": "1970-01-01T00:00:05Z", "availableBytes": 70, "capacityBytes": 100,
            "usedBytes": 5, "inodesFree": 8, "inodes": 9, "inodesUsed": 1});
        assert_eq!(told["containers"][0]["rootfs"], rootfs);
    }
}
