//! What containers and sandboxes use.

use std::fs;
use std::sync::PoisonError;

use decapod_proto::cri;

use super::image::measure;
use super::sandbox::cgroup_parent;
use super::state::Phase;
use super::{Container, Inner};
use crate::error::{Error, Result};
use crate::protocol::now;
use crate::sys::cgroup::{Pressure, Usage};

/// What a container has written is measured anew after this many nanoseconds: it is a walk through all its files.
const LAYER_FRESH: i64 = 10_000_000_000;
/// The interface that a pod's address is on.
const DEFAULT_INTERFACE: &str = "eth0";

impl Inner {
    pub(super) fn container_stats(&self, container: &Container) -> Result<cri::ContainerStats> {
        let record = &container.record;
        let config = &record.config.0;
        let usage = self
            .groups
            .usage(&record.launch.cgroup)
            .map_err(|error| Error::internal("read the container's usage", error))?;
        let at = now();
        Ok(cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes {
                id: record.id.clone(),
                metadata: config.metadata.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            }),
            cpu: Some(cpu(&usage, at)),
            memory: Some(memory(&usage, at)),
            writable_layer: Some(self.writable_layer(container, at)?),
            swap: Some(cri::SwapUsage {
                timestamp: at,
                swap_usage_bytes: value(usage.swap),
                ..Default::default()
            }),
            io: usage.io_pressure.map(|pressure| cri::IoUsage { timestamp: at, psi: psi(Some(pressure)) }),
        })
    }

    /// What the container has written into its root file system.
    fn writable_layer(&self, container: &Container, at: i64) -> Result<cri::FilesystemUsage> {
        let mut layer = container.layer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = layer.as_ref().filter(|known| at - known.timestamp < LAYER_FRESH) {
            return Ok(known.clone());
        }
        let record = &container.record;
        let path = self.paths.container(&record.sandbox, &record.id).join("upper");
        let (bytes, inodes) =
            measure(&path).map_err(|error| Error::internal("measure a container's files", error))?;
        let usage = cri::FilesystemUsage {
            timestamp: now(),
            fs_id: Some(cri::FilesystemIdentifier { mountpoint: self.paths.pods().display().to_string() }),
            used_bytes: value(Some(bytes)),
            inodes_used: value(Some(inodes)),
        };
        *layer = Some(usage.clone());
        Ok(usage)
    }

    /// The pod's own network, as one of its processes sees it; none where it has the machine's, or no process.
    fn network(&self, id: &str, config: &cri::PodSandboxConfig, at: i64) -> Option<cri::NetworkUsage> {
        let options = super::sandbox::options(config);
        if options.network() == cri::NamespaceMode::Node {
            return None;
        }
        let containers = self.containers_of(id);
        let mut running = containers.iter().filter_map(|container| match container.phase() {
            Phase::Running(started) => Some(started.process.pid),
            _ => None,
        });
        // A process that ends just now has no network to show.
        let table = fs::read_to_string(format!("/proc/{}/net/dev", running.next()?)).ok()?;
        let interfaces = interfaces(&table);
        let default = interfaces.iter().find(|interface| interface.name == DEFAULT_INTERFACE).cloned();
        Some(cri::NetworkUsage { timestamp: at, default_interface: default, interfaces })
    }

    pub(super) fn sandbox_stats(&self, id: &str) -> Result<cri::PodSandboxStats> {
        let record = self.sandbox(id)?.record().clone();
        let config = record.config.0;
        let usage = self
            .groups
            .usage(&cgroup_parent(&config))
            .map_err(|error| Error::internal("read the sandbox's usage", error))?;
        let at = now();
        let network = self.network(id, &config, at);
        let containers = self.containers_of(id);
        let running = containers.iter().filter(|container| matches!(container.phase(), Phase::Running(_)));
        let containers = running.map(|container| self.container_stats(container));
        Ok(cri::PodSandboxStats {
            attributes: Some(cri::PodSandboxAttributes {
                id: record.id,
                metadata: config.metadata,
                labels: config.labels,
                annotations: config.annotations,
            }),
            linux: Some(cri::LinuxPodSandboxStats {
                cpu: Some(cpu(&usage, at)),
                memory: Some(memory(&usage, at)),
                network,
                process: Some(cri::ProcessUsage { timestamp: at, process_count: value(usage.processes) }),
                containers: containers.collect::<Result<_>>()?,
                io: usage
                    .io_pressure
                    .map(|pressure| cri::IoUsage { timestamp: at, psi: psi(Some(pressure)) }),
            }),
        })
    }
}

fn value(number: Option<u64>) -> Option<cri::UInt64Value> {
    number.map(|value| cri::UInt64Value { value })
}

fn cpu(usage: &Usage, at: i64) -> cri::CpuUsage {
    cri::CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: value(usage.cpu),
        psi: psi(usage.cpu_pressure),
        ..Default::default()
    }
}

fn psi(pressure: Option<Pressure>) -> Option<cri::PsiStats> {
    let data =
        |[avg10, avg60, avg300, total]: [f64; 4]| cri::PsiData { total: total as u64, avg10, avg60, avg300 };
    pressure.map(|pressure| cri::PsiStats { full: pressure.full.map(data), some: pressure.some.map(data) })
}

/// The interfaces in a table as `/proc/net/dev`, but for the loopback.
fn interfaces(table: &str) -> Vec<cri::NetworkInterfaceUsage> {
    let lines = table.lines().filter_map(|line| line.split_once(':'));
    let interface = |(name, counts): (&str, &str)| {
        let counts: Vec<u64> = counts.split_ascii_whitespace().map_while(|n| n.parse().ok()).collect();
        let count = |at: usize| value(counts.get(at).copied());
        cri::NetworkInterfaceUsage {
            name: name.trim().to_owned(),
            rx_bytes: count(0),
            rx_errors: count(2),
            tx_bytes: count(8),
            tx_errors: count(10),
        }
    };
    lines.map(interface).filter(|interface| interface.name != "lo").collect()
}

fn memory(usage: &Usage, at: i64) -> cri::MemoryUsage {
    let available = usage.memory_limit.zip(usage.working_set).map(|(limit, used)| limit.saturating_sub(used));
    cri::MemoryUsage {
        timestamp: at,
        working_set_bytes: value(usage.working_set),
        available_bytes: value(available),
        usage_bytes: value(usage.memory),
        rss_bytes: value(usage.rss),
        page_faults: value(usage.faults.map(|(all, _)| all)),
        major_page_faults: value(usage.faults.map(|(_, major)| major)),
        psi: psi(usage.memory_pressure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read_and_the_loopback_is_left_out() {
        let table = "Inter-|   Receive                    |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop\n    \
            lo:     10       1    0    0    0     0          0         0       10       1    0    0\n  \
            eth0:    1000      10    2    0    0     0          0         0      500       5    3    0\n";
        let found = interfaces(table);
        assert_eq!(found.len(), 1);
        let numbers = [&found[0].rx_bytes, &found[0].rx_errors, &found[0].tx_bytes, &found[0].tx_errors];
        assert_eq!(found[0].name, DEFAULT_INTERFACE);
        assert_eq!(numbers.map(|n| n.as_ref().unwrap().value), [1000, 2, 500, 3]);
    }
}
