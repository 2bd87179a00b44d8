//! `/metrics/cadvisor`: what control groups, disks and interfaces of this node use, by the names of cAdvisor, which
//! dashboards and alerts of Kubernetes are written for.

use std::path::Path;
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use decapod_proto::cri;

use super::Refusal;
use super::metrics::Text;
use crate::cgroup::{self, Reading};
use crate::node::facts;
use crate::pod::{mark, qos, spec, status};
use crate::shared::Shared;
use crate::usage::Disk;

/// A group with its labels.
#[derive(Debug, Default)]
struct Group {
    container: String,
    id: String,
    image: String,
    name: String,
    namespace: String,
    pod: String,
    reading: Reading,
    /// Seconds since 1970.
    started: Option<f64>,
    /// What a container has written into its root file system.
    disk: Option<Disk>,
    interfaces: Vec<Interface>,
}

/// Counts of one network interface.
#[derive(Debug, PartialEq)]
pub(super) struct Interface {
    pub(super) name: String,
    /// Bytes, packets, errors and drops, received and then sent.
    pub(super) counts: [f64; 8],
}

impl Group {
    fn labels(&self) -> Vec<(&'static str, &str)> {
        vec![
            ("container", &self.container),
            ("id", &self.id),
            ("image", &self.image),
            ("name", &self.name),
            ("namespace", &self.namespace),
            ("pod", &self.pod),
        ]
    }
}

/// One of the two amounts of a disk.
type Amount = fn(&Disk) -> u64;
type Field = fn(&Reading) -> Option<f64>;

/// Name, type, help, and where it is from.
const FAMILIES: [(&str, &str, &str, Field); 22] = [
    ("container_cpu_user_seconds_total", "counter", "Cumulative user cpu time consumed in seconds.", |r| {
        r.cpu_user
    }),
    (
        "container_cpu_system_seconds_total",
        "counter",
        "Cumulative system cpu time consumed in seconds.",
        |r| r.cpu_system,
    ),
    ("container_cpu_cfs_periods_total", "counter", "Number of elapsed enforcement period intervals.", |r| {
        r.quota.and(r.periods)
    }),
    ("container_cpu_cfs_throttled_periods_total", "counter", "Number of throttled period intervals.", |r| {
        r.quota.and(r.throttled_periods)
    }),
    (
        "container_cpu_cfs_throttled_seconds_total",
        "counter",
        "Total time duration the container has been throttled.",
        |r| r.quota.and(r.throttled),
    ),
    ("container_memory_usage_bytes", "gauge", "Current memory usage in bytes, including all memory.", |r| {
        r.memory
    }),
    ("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", |r| r.working_set),
    ("container_memory_rss", "gauge", "Size of RSS in bytes.", |r| r.rss),
    ("container_memory_cache", "gauge", "Number of bytes of page cache memory.", |r| r.cache),
    ("container_memory_mapped_file", "gauge", "Size of memory mapped files in bytes.", |r| r.mapped),
    ("container_memory_swap", "gauge", "Container swap usage in bytes.", |r| r.swap),
    ("container_memory_max_usage_bytes", "gauge", "Maximum memory usage recorded in bytes", |r| r.peak),
    ("container_memory_failcnt", "counter", "Number of memory usage hits limits", |r| r.failures),
    (
        "container_oom_events_total",
        "counter",
        "Count of out of memory events observed for the container",
        |r| r.oom_kills,
    ),
    ("container_processes", "gauge", "Number of processes running inside the container.", |r| r.tasks),
    ("container_threads", "gauge", "Number of threads running inside the container", |r| r.tasks),
    ("container_spec_memory_limit_bytes", "gauge", "Memory limit for the container.", |r| r.memory_limit),
    ("container_spec_memory_swap_limit_bytes", "gauge", "Memory swap limit for the container.", |r| {
        r.swap.and(Some(0.0))
    }),
    (
        "container_spec_memory_reservation_limit_bytes",
        "gauge",
        "Memory reservation limit for the container.",
        |r| r.memory.and(Some(0.0)),
    ),
    ("container_spec_cpu_quota", "gauge", "CPU quota of the container.", |r| r.quota),
    ("container_spec_cpu_period", "gauge", "CPU period of the container.", |r| r.period),
    ("container_spec_cpu_shares", "gauge", "CPU share of the container.", |r| r.shares),
];

/// What is counted of interfaces, in the order of their counts.
const NETWORK: [(&str, &str); 8] = [
    ("container_network_receive_bytes_total", "Cumulative count of bytes received"),
    ("container_network_receive_packets_total", "Cumulative count of packets received"),
    ("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving"),
    (
        "container_network_receive_packets_dropped_total",
        "Cumulative count of packets dropped while receiving",
    ),
    ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted"),
    ("container_network_transmit_packets_total", "Cumulative count of packets transmitted"),
    ("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting"),
    (
        "container_network_transmit_packets_dropped_total",
        "Cumulative count of packets dropped while transmitting",
    ),
];

pub(super) async fn handle(State(shared): State<Arc<Shared>>) -> Result<Response, Refusal> {
    let groups = groups(&shared).await?;
    let mut text = Text::default();
    write(&mut text, &groups, &device(&shared.options.data_dir));
    machine(&mut text, &shared);
    Ok(text.into_response())
}

/// The node's group, and those of its pods and their containers.
async fn groups(shared: &Shared) -> Result<Vec<Group>, Refusal> {
    let kubepods = shared.cgroups.kubepods();
    let reading = shared.cgroups.read(&kubepods);
    let mut groups = vec![Group { id: kubepods, reading, ..Group::default() }];
    let running = cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning as i32 };
    let filter = cri::ContainerFilter { state: Some(running), ..Default::default() };
    let containers = shared.runtime.container_list(Some(&filter)).await?;
    let pods = shared.pods.list();
    for pod in pods.iter().filter(|pod| !pod.status.as_ref().is_some_and(status::is_terminal)) {
        let Some(pod_spec) = &pod.spec else { continue };
        let (namespace, name) = (spec::namespace(pod).to_owned(), spec::name(pod).to_owned());
        let group = shared.cgroups.pod(qos::class(pod_spec), spec::uid(pod));
        let own = containers
            .iter()
            .filter(|c| c.labels.get(mark::POD_UID).is_some_and(|uid| uid == spec::uid(pod)));
        let mut interfaces = Vec::new();
        for container in own {
            let id = format!("{group}/{}", container.id);
            if interfaces.is_empty() && !spec::host_network(pod) {
                interfaces = shared.cgroups.process(&id).map(network).unwrap_or_default();
            }
            let status = shared.runtime.container_status(&container.id).await;
            let stats = shared.runtime.container_stats(&container.id).await;
            // One that ends just now has nothing more to say.
            let (Ok(status), Ok(stats)) = (status, stats) else { continue };
            let number = |value: &Option<cri::UInt64Value>| value.as_ref().map_or(0, |value| value.value);
            let disk = stats
                .writable_layer
                .map(|layer| Disk { bytes: number(&layer.used_bytes), inodes: number(&layer.inodes_used) });
            groups.push(Group {
                container: container.labels.get(mark::CONTAINER_NAME).cloned().unwrap_or_default(),
                reading: shared.cgroups.read(&id),
                id,
                image: status.image.map(|image| image.image).unwrap_or_default(),
                name: container.id.clone(),
                namespace: namespace.clone(),
                pod: name.clone(),
                started: Some(status.started_at as f64 / 1e9),
                disk,
                interfaces: Vec::new(),
            });
        }
        let reading = shared.cgroups.read(&group);
        groups.push(Group { id: group, namespace, pod: name, reading, interfaces, ..Group::default() });
    }
    Ok(groups)
}

fn write(text: &mut Text, groups: &[Group], device: &str) {
    let name = "container_cpu_usage_seconds_total";
    text.family(name, "counter", "Cumulative cpu time consumed in seconds.");
    for group in groups {
        let mut labels = group.labels();
        labels.push(("cpu", "total"));
        if let Some(value) = group.reading.cpu {
            text.sample(name, &labels, value, None);
        }
    }
    for (name, kind, help, field) in FAMILIES {
        let mut values = groups.iter().filter_map(|g| Some((g, field(&g.reading)?))).peekable();
        if values.peek().is_some() {
            text.family(name, kind, help);
        }
        values.for_each(|(group, value)| text.sample(name, &group.labels(), value, None));
    }
    let name = "container_memory_failures_total";
    text.family(name, "counter", "Cumulative count of memory allocation failures.");
    let faults: [(&str, Field); 2] = [("pgfault", |r| r.faults), ("pgmajfault", |r| r.major_faults)];
    for (kind, field) in faults {
        for (group, value) in groups.iter().filter_map(|g| Some((g, field(&g.reading)?))) {
            let mut labels = group.labels();
            labels.insert(1, ("failure_type", kind));
            labels.push(("scope", "hierarchy"));
            text.sample(name, &labels, value, None);
        }
    }
    let name = "container_start_time_seconds";
    text.family(name, "gauge", "Start time of the container since unix epoch in seconds.");
    for (group, started) in groups.iter().filter_map(|group| Some((group, group.started?))) {
        text.sample(name, &group.labels(), started, None);
    }
    let disks: [(&str, &str, Amount); 2] = [
        (
            "container_fs_usage_bytes",
            "Number of bytes that are consumed by the container on this filesystem.",
            |d| d.bytes,
        ),
        (
            "container_fs_inodes_used",
            "Number of inodes that are used by the container on this filesystem.",
            |d| d.inodes,
        ),
    ];
    for (name, help, value) in disks {
        text.family(name, "gauge", help);
        for (group, disk) in groups.iter().filter_map(|group| Some((group, group.disk.as_ref()?))) {
            let mut labels = group.labels();
            labels.insert(1, ("device", device));
            text.sample(name, &labels, value(disk) as f64, None);
        }
    }
    for (at, (name, help)) in NETWORK.iter().enumerate() {
        text.family(name, "counter", help);
        for group in groups {
            for interface in &group.interfaces {
                let mut labels = group.labels();
                labels.push(("interface", &interface.name));
                text.sample(name, &labels, interface.counts[at], None);
            }
        }
    }
}

fn kernel(file: &str) -> Option<String> {
    cgroup::text(Path::new(file))
}

/// The interfaces of a process' network, but for its loopback; none of one that has just ended.
fn network(process: u32) -> Vec<Interface> {
    kernel(&format!("/proc/{process}/net/dev")).map(|table| interfaces(&table)).unwrap_or_default()
}

pub(super) fn interfaces(table: &str) -> Vec<Interface> {
    /// Where a line has bytes, packets, errors and drops: received, and sent.
    const COLUMNS: [usize; 8] = [0, 1, 2, 3, 8, 9, 10, 11];
    let lines = table.lines().filter_map(|line| line.split_once(':'));
    lines
        .filter_map(|(name, counts)| {
            let counts: Vec<f64> = counts.split_ascii_whitespace().map_while(|n| n.parse().ok()).collect();
            let counts = (counts.len() >= 12).then(|| COLUMNS.map(|at| counts[at]))?;
            Some(Interface { name: name.trim().to_owned(), counts })
        })
        .filter(|interface| interface.name != "lo")
        .collect()
}

/// The device that a folder lies on, by the longest mount point above it.
fn device(folder: &Path) -> String {
    let mounts = kernel("/proc/self/mounts").unwrap_or_default();
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?, words.next()?))
    });
    let above = mounts.filter(|(_, point)| folder.starts_with(point));
    above.max_by_key(|(_, point)| point.len()).map(|(device, _)| device.to_owned()).unwrap_or_default()
}

fn machine(text: &mut Text, shared: &Shared) {
    let machine = facts::machine(&shared.options.data_dir);
    let one = |text: &mut Text, name: &str, help: &str, value: f64| {
        text.family(name, "gauge", help);
        text.sample(name, &[], value, None);
    };
    let swap = kernel("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("SwapTotal:"))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    });
    one(text, "machine_cpu_cores", "Number of logical CPU cores.", (machine.cpu_millis / 1000) as f64);
    one(text, "machine_memory_bytes", "Amount of memory installed on the machine.", machine.memory as f64);
    if let Some(kibibytes) = swap {
        one(
            text,
            "machine_swap_bytes",
            "Amount of swap memory available on the machine.",
            kibibytes * 1024.0,
        );
    }
    one(
        text,
        "machine_scrape_error",
        "1 if there was an error while getting machine metrics, 0 otherwise.",
        0.0,
    );
    let info = facts::system_info(&shared.runtime_name);
    let name = "cadvisor_version_info";
    text.family(
        name,
        "gauge",
        "A metric with a constant '1' value labeled by kernel version, OS version and others.",
    );
    let labels: [(&str, &str); 5] = [
        ("cadvisorRevision", ""),
        ("cadvisorVersion", ""),
        ("dockerVersion", ""),
        ("kernelVersion", &info.kernel_version),
        ("osVersion", &info.os_image),
    ];
    text.sample(name, &labels, 1.0, None);
    one(
        text,
        "container_scrape_error",
        "1 if there was an error while getting container metrics, 0 otherwise",
        0.0,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_cadvisor() {
        let reading = Reading {
            cpu: Some(1.5),
            memory: Some(4096.0),
            memory_limit: Some(0.0),
            periods: Some(3.0),
            ..Reading::default()
        };
        let counts = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let group = Group {
            container: "c".into(),
            id: "/k/podu/i".into(),
            image: "img".into(),
            name: "i".into(),
            namespace: "d".into(),
            pod: "p".into(),
            reading,
            started: Some(9.5),
            disk: Some(Disk { bytes: 10, inodes: 2 }),
            interfaces: vec![Interface { name: "eth0".into(), counts }],
        };
        let mut text = Text::default();
        write(&mut text, &[group], "/dev/sda1");
        let text = text.0;
        let labels = r#"id="/k/podu/i",image="img",name="i",namespace="d",pod="p""#;
        for line in [
            format!(r#"container_cpu_usage_seconds_total{{container="c",{labels},cpu="total"}} 1.5"#),
            format!(r#"container_memory_usage_bytes{{container="c",{labels}}} 4096"#),
            format!(r#"container_spec_memory_limit_bytes{{container="c",{labels}}} 0"#),
            format!(r#"container_start_time_seconds{{container="c",{labels}}} 9.5"#),
            format!(r#"container_fs_usage_bytes{{container="c",device="/dev/sda1",{labels}}} 10"#),
            format!(r#"container_network_transmit_bytes_total{{container="c",{labels},interface="eth0"}} 5"#),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("cfs_periods"), "it has no quota");
        assert!(!text.contains("container_memory_rss"), "what is not known is not told");
    }

    #[test]
    fn interfaces_are_read() {
        let table = "Inter-| Receive | Transmit\n face |bytes packets errs drop fifo frame\n\
            lo: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1\n  eth0: 10 20 30 40 5 6 7 8 90 100 110 120 13 14 15 16\n";
        let counts = [10.0, 20.0, 30.0, 40.0, 90.0, 100.0, 110.0, 120.0];
        assert_eq!(interfaces(table), [Interface { name: "eth0".into(), counts }]);
        assert!(!device(Path::new("/proc/self")).is_empty());
    }
}
