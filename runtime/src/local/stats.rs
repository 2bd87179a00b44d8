//! What containers and sandboxes use.

use decapod_proto::cri;

use super::sandbox::cgroup_parent;
use super::{Container, Inner};
use crate::error::{Error, Result};
use crate::protocol::now;
use crate::sys::cgroup::Usage;

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
            ..Default::default()
        })
    }

    pub(super) fn sandbox_stats(&self, id: &str) -> Result<cri::PodSandboxStats> {
        let record = self.sandbox(id)?.record().clone();
        let config = record.config.0;
        let usage = self
            .groups
            .usage(&cgroup_parent(&config))
            .map_err(|error| Error::internal("read the sandbox's usage", error))?;
        let at = now();
        let containers = self.containers_of(id);
        let containers = containers.iter().map(|container| self.container_stats(container));
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
                process: Some(cri::ProcessUsage { timestamp: at, process_count: value(usage.processes) }),
                containers: containers.collect::<Result<_>>()?,
                ..Default::default()
            }),
        })
    }
}

fn value(number: Option<u64>) -> Option<cri::UInt64Value> {
    number.map(|value| cri::UInt64Value { value })
}

fn cpu(usage: &Usage, at: i64) -> cri::CpuUsage {
    cri::CpuUsage { timestamp: at, usage_core_nano_seconds: value(usage.cpu), ..Default::default() }
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
        psi: None,
    }
}
