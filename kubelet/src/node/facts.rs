//! What the machine is: capacity, kernel, identity. Reads `/proc` and a few files of the operating system.

use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::NodeSystemInfo;
use nix::sys::statvfs::statvfs;
use nix::sys::utsname::uname;

/// The version of Kubernetes whose API this agent speaks; `kubeletVersion`.
pub(crate) const KUBELET_VERSION: &str = concat!("v1.36.0+decapod-", env!("CARGO_PKG_VERSION"));

/// The machine in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Processors that the agent may use, in thousandths.
    pub(crate) cpu_millis: i64,
    /// Bytes of memory.
    pub(crate) memory: i64,
    /// Bytes of the file system below the data directory.
    pub(crate) disk: i64,
    pub(crate) hugepages: HugePages,
}

/// Huge pages that the machine has set aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HugePages {
    /// Pages of 2 MiB.
    pub(crate) two_mebibytes: i64,
    /// Pages of 1 GiB.
    pub(crate) gibibytes: i64,
}

fn read(path: &str) -> String {
    // A missing file leaves its fields empty, as it does in Kubernetes.
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// A field of /proc/meminfo in bytes.
fn meminfo(text: &str, field: &str) -> i64 {
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<i64>().ok())
        .map_or(0, |kib| kib * 1024)
}

pub(crate) fn machine(data_dir: &Path) -> Machine {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let disk = statvfs(data_dir).map_or(0, |v| v.blocks() * v.fragment_size());
    Machine {
        cpu_millis: i64::try_from(cpus).unwrap_or(1) * 1000,
        memory: meminfo(&read("/proc/meminfo"), "MemTotal"),
        disk: i64::try_from(disk).unwrap_or(i64::MAX),
        hugepages: HugePages { two_mebibytes: hugepages(2048), gibibytes: hugepages(1 << 20) },
    }
}

/// How many huge pages of that many KiB there are.
fn hugepages(kib: u64) -> i64 {
    read(&format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages")).parse().unwrap_or(0)
}

/// `PRETTY_NAME` of an os-release file.
fn pretty_name(text: &str) -> Option<String> {
    let line = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="))?;
    Some(line.trim_matches('"').to_owned())
}

/// Kubernetes' (Go's) name of this architecture.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `status.nodeInfo`.
pub(crate) fn system_info(runtime_version: &str) -> NodeSystemInfo {
    let kernel = uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: runtime_version.to_owned(),
        kernel_version: kernel,
        kube_proxy_version: String::new(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        machine_id: read("/etc/machine-id"),
        operating_system: "linux".to_owned(),
        os_image: pretty_name(&read("/etc/os-release")).unwrap_or_else(|| "Linux".to_owned()),
        system_uuid: read("/sys/class/dmi/id/product_uuid"),
        ..NodeSystemInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_system_are_understood() {
        assert_eq!(meminfo("MemTotal:       7 kB\nMemFree:    1 kB\n", "MemTotal"), 7168);
        assert_eq!(meminfo("", "MemTotal"), 0);
        assert_eq!(pretty_name("NAME=x\nPRETTY_NAME=\"Some Linux 12\"\n").unwrap(), "Some Linux 12");
        let machine = machine(Path::new("/"));
        assert!(machine.cpu_millis > 0 && machine.memory > 0 && machine.disk > 0);
    }
}
