//! Capabilities by name, and the sets that a container gets.

use decapod_proto::cri;

use crate::error::{Error, Result};

/// All names, by number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What Kubernetes documents as the default of its runtimes.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Capabilities of a container, as sets of bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sets {
    pub(super) bounding: u64,
    pub(super) ambient: u64,
}

/// The sets that a security context asks for. `last` is the kernel's last capability.
pub(super) fn resolve(context: &cri::LinuxContainerSecurityContext, last: u32) -> Result<Sets> {
    let known = u64::MAX >> (63 - last.min(63));
    if context.privileged {
        return Ok(Sets { bounding: known, ambient: 0 });
    }
    let wanted = context.capabilities.clone().unwrap_or_default();
    let mut bounding = union(&DEFAULT, known)?;
    let (add, drop) = (union(&wanted.add_capabilities, known)?, union(&wanted.drop_capabilities, known)?);
    // Dropping ALL and adding some is the usual way to have just those.
    match wanted.drop_capabilities.iter().any(|name| is_all(name)) {
        true => bounding = add,
        false => bounding = (bounding | add) & !drop,
    }
    let ambient = union(&wanted.add_ambient_capabilities, known)?;
    Ok(Sets { bounding: (bounding | ambient) & known, ambient: ambient & known })
}

fn union<T: AsRef<str>>(names: &[T], known: u64) -> Result<u64> {
    names.iter().try_fold(0, |set, name| Ok(set | bits(name.as_ref(), known)?))
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL")
}

fn bits(name: &str, known: u64) -> Result<u64> {
    if is_all(name) {
        return Ok(known);
    }
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let number = NAMES.iter().position(|other| *other == short);
    number
        .map(|number| 1 << number)
        .ok_or_else(|| Error::invalid("capabilities", format!("{name:?} is not a capability")))
}

/// The kernel's last capability.
pub(super) fn last() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    // Without /proc nothing runs; the last one that is known here is as good then.
    text.trim().parse().unwrap_or(40)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(add: &[&str], drop: &[&str]) -> u64 {
        let text = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let capabilities = cri::Capability {
            add_capabilities: text(add),
            drop_capabilities: text(drop),
            ..Default::default()
        };
        let context =
            cri::LinuxContainerSecurityContext { capabilities: Some(capabilities), ..Default::default() };
        resolve(&context, 40).unwrap().bounding
    }

    #[test]
    fn defaults_are_those_of_kubernetes() {
        // As /proc/<pid>/status shows it in a container of other runtimes.
        assert_eq!(sets(&[], &[]), 0xa804_25fb);
    }

    #[test]
    fn all_but_some_and_none_but_some() {
        assert_eq!(sets(&["NET_BIND_SERVICE"], &["ALL"]), 1 << 10);
        assert_eq!(sets(&["all"], &["CAP_SYS_ADMIN"]), (1 << 41) - 1 - (1 << 21));
        assert_eq!(sets(&["cap_net_admin"], &[]), 0xa804_25fb | 1 << 12);
    }

    #[test]
    fn unknown_names_are_refused() {
        assert!(bits("SYS_MAGIC", u64::MAX).is_err());
    }
}
