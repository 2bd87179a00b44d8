//! What the baseline level forbids: known ways out of a container.

use std::collections::BTreeSet;

use serde_json::Value;

use super::checks::{Subject, Violation, containers, name, named, plural, quoted, setters};

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

pub(super) fn app_armor(pod: Subject<'_>) -> Option<Violation> {
    let mut bad = BTreeSet::new();
    let mut forbidden = |holder: &Value| {
        let Some(kind) = holder["securityContext"]["appArmorProfile"]["type"].as_str() else { return false };
        let refused = !matches!(kind, "RuntimeDefault" | "Localhost");
        if refused {
            bad.insert(kind.to_owned());
        }
        refused
    };
    let of_pod = forbidden(pod.spec);
    let names = pod.which(forbidden);
    let is_ours = |key: &String| key.starts_with("container.apparmor.security.beta.kubernetes.io/");
    let is_allowed =
        |value: &str| value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
    let annotations = pod.annotations().filter(|(key, value)| is_ours(key) && !is_allowed(value));
    let annotations: BTreeSet<String> = annotations.map(|(key, value)| format!("{key}={value:?}")).collect();
    let mut who: Vec<String> = setters(of_pod, &names).into_iter().collect();
    if !annotations.is_empty() {
        who.push(plural("annotation", "annotations", annotations.len()).to_owned());
    }
    if who.is_empty() {
        return None;
    }
    let values: Vec<String> = bad.into_iter().chain(annotations).collect();
    Some(Violation::new(
        plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len()),
        format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(&values)),
    ))
}

/// What a container may do without being asked to justify it.
const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

pub(super) fn capabilities(pod: Subject<'_>) -> Option<Violation> {
    let mut bad = BTreeSet::new();
    let names = pod.which(|container| {
        let added = texts(&container["securityContext"]["capabilities"]["add"]);
        let before: Vec<&str> = added.filter(|one| !CAPABILITIES.contains(one)).collect();
        bad.extend(before.iter().map(|one| (*one).to_owned()));
        !before.is_empty()
    });
    (!names.is_empty()).then(|| {
        let (who, what) = (containers(&names), quoted(&bad));
        let detail = format!("{who} must not include {what} in securityContext.capabilities.add");
        Violation::new("non-default capabilities", detail)
    })
}

pub(super) fn host_namespaces(pod: Subject<'_>) -> Option<Violation> {
    let shared = ["hostNetwork", "hostPID", "hostIPC"];
    let shared: Vec<String> = shared
        .iter()
        .filter(|field| pod.spec[**field] == true)
        .map(|field| format!("{field}=true"))
        .collect();
    (!shared.is_empty()).then(|| Violation::new("host namespaces", shared.join(", ")))
}

pub(super) fn host_path_volumes(pod: Subject<'_>) -> Option<Violation> {
    let names: Vec<String> =
        pod.volumes().filter(|volume| volume["hostPath"].is_object()).map(name).collect();
    (!names.is_empty()).then(|| Violation::new("hostPath volumes", named("volume", "volumes", &names)))
}

pub(super) fn host_ports(pod: Subject<'_>) -> Option<Violation> {
    let mut bad = BTreeSet::new();
    let names = pod.which(|container| {
        let ports = container["ports"].as_array().into_iter().flatten();
        let ports: Vec<String> = ports
            .filter_map(|port| port["hostPort"].as_i64().filter(|port| *port != 0))
            .map(|port| port.to_string())
            .collect();
        bad.extend(ports.iter().cloned());
        !ports.is_empty()
    });
    (!names.is_empty()).then(|| {
        let ports: Vec<&str> = bad.iter().map(String::as_str).collect();
        let (uses, what) = (plural("uses", "use", names.len()), plural("hostPort", "hostPorts", ports.len()));
        Violation::new("hostPort", format!("{} {uses} {what} {}", containers(&names), ports.join(", ")))
    })
}

pub(super) fn probe_hosts(pod: Subject<'_>) -> Option<Violation> {
    let mut bad = BTreeSet::new();
    let names: BTreeSet<String> = pod
        .which(|container| {
            let lifecycle = &container["lifecycle"];
            let handlers = ["livenessProbe", "readinessProbe", "startupProbe"].map(|probe| &container[probe]);
            let handlers = handlers.into_iter().chain([&lifecycle["postStart"], &lifecycle["preStop"]]);
            let hosts = handlers
                .flat_map(|handler| [&handler["httpGet"]["host"], &handler["tcpSocket"]["host"]])
                .filter_map(|host| host.as_str().filter(|host| !host.is_empty()));
            let hosts: Vec<&str> = hosts.collect();
            bad.extend(hosts.iter().map(|host| (*host).to_owned()));
            !hosts.is_empty()
        })
        .into_iter()
        .collect();
    let names: Vec<String> = names.into_iter().collect();
    (!names.is_empty()).then(|| {
        let uses = plural("uses", "use", names.len());
        let what = plural("probe or lifecycle host", "probe or lifecycle hosts", bad.len());
        let detail = format!("{} {uses} {what} {}", containers(&names), quoted(&bad));
        Violation::new("probe or lifecycle host", detail)
    })
}

pub(super) fn privileged(pod: Subject<'_>) -> Option<Violation> {
    let names = pod.which(|container| container["securityContext"]["privileged"] == true);
    let detail = || format!("{} must not set securityContext.privileged=true", containers(&names));
    (!names.is_empty()).then(|| Violation::new("privileged", detail()))
}

pub(super) fn proc_mount(pod: Subject<'_>) -> Option<Violation> {
    const RELAXED_SINCE: u32 = 35;
    if pod.minor >= RELAXED_SINCE && pod.has_own_users() { None } else { masked_proc(pod) }
}

/// As [`proc_mount`], whoever the pod's root is.
pub(super) fn masked_proc(pod: Subject<'_>) -> Option<Violation> {
    let mut bad = BTreeSet::new();
    let names = pod.which(|container| {
        let mount = container["securityContext"]["procMount"].as_str().filter(|mount| *mount != "Default");
        bad.extend(mount.map(str::to_owned));
        mount.is_some()
    });
    (!names.is_empty()).then(|| {
        let (who, what) = (containers(&names), quoted(&bad));
        Violation::new("procMount", format!("{who} must not set securityContext.procMount to {what}"))
    })
}

pub(super) fn selinux(pod: Subject<'_>) -> Option<Violation> {
    const ENGINE_SINCE: u32 = 31;
    let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
    let mut forbidden = |holder: &Value| {
        let text =
            |field: &str| holder["securityContext"]["seLinuxOptions"][field].as_str().unwrap_or_default();
        let allowed = match text("type") {
            "" | "container_t" | "container_init_t" | "container_kvm_t" => true,
            "container_engine_t" => pod.minor >= ENGINE_SINCE,
            _ => false,
        };
        if !allowed {
            types.insert(text("type").to_owned());
        }
        user |= !text("user").is_empty();
        role |= !text("role").is_empty();
        !allowed || !text("user").is_empty() || !text("role").is_empty()
    };
    let of_pod = forbidden(pod.spec);
    let names = pod.which(forbidden);
    let who = setters(of_pod, &names)?;
    let mut what = Vec::new();
    if !types.is_empty() {
        what.push(format!("{} {}", plural("type", "types", types.len()), quoted(&types)));
    }
    if user {
        what.push("user may not be set".to_owned());
    }
    if role {
        what.push("role may not be set".to_owned());
    }
    let detail = format!("{who} set forbidden securityContext.seLinuxOptions: {}", what.join("; "));
    Some(Violation::new("seLinuxOptions", detail))
}

/// Whether a seccomp profile of this type confines.
pub(super) fn confines(kind: &str) -> bool {
    matches!(kind, "RuntimeDefault" | "Localhost")
}

pub(super) fn seccomp(pod: Subject<'_>) -> Option<Violation> {
    const FIELD_SINCE: u32 = 19;
    if pod.minor < FIELD_SINCE {
        return seccomp_annotations(pod);
    }
    let mut bad = BTreeSet::new();
    let mut forbidden = |holder: &Value| {
        let kind =
            holder["securityContext"]["seccompProfile"]["type"].as_str().filter(|kind| !confines(kind));
        bad.extend(kind.map(str::to_owned));
        kind.is_some()
    };
    let of_pod = forbidden(pod.spec);
    let names = pod.which(forbidden);
    let who = setters(of_pod, &names)?;
    let detail = format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(&bad));
    Some(Violation::new("seccompProfile", detail))
}

/// How profiles were named before there was a field.
fn seccomp_annotations(pod: Subject<'_>) -> Option<Violation> {
    const CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
    let names: Vec<String> = pod.containers().map(name).collect();
    let is_ours = |key: &String| {
        key == "seccomp.security.alpha.kubernetes.io/pod"
            || key.strip_prefix(CONTAINER).is_some_and(|one| names.iter().any(|name| name == one))
    };
    let is_allowed = |value: &str| {
        matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/")
    };
    let bad = pod.annotations().filter(|(key, value)| is_ours(key) && !is_allowed(value));
    let bad: BTreeSet<String> = bad.map(|(key, value)| format!("{key}={value:?}")).collect();
    let bad: Vec<String> = bad.into_iter().collect();
    let what = plural("annotation", "annotations", bad.len());
    (!bad.is_empty())
        .then(|| Violation::new("seccompProfile", format!("forbidden {what} {}", bad.join(", "))))
}

/// Kernel settings that concern a pod alone, and since when they are known to.
const SYSCTLS: [(&str, u32); 12] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];

pub(super) fn sysctls(pod: Subject<'_>) -> Option<Violation> {
    let is_safe = |name: &str| SYSCTLS.iter().any(|(safe, since)| *safe == name && pod.minor >= *since);
    let asked = pod.spec["securityContext"]["sysctls"].as_array().into_iter().flatten().map(name);
    let bad: Vec<String> = asked.filter(|name| !is_safe(name)).collect();
    (!bad.is_empty()).then(|| Violation::new("forbidden sysctls", bad.join(", ")))
}

pub(super) fn windows_host_process(pod: Subject<'_>) -> Option<Violation> {
    let is_host = |holder: &Value| holder["securityContext"]["windowsOptions"]["hostProcess"] == true;
    let who = setters(is_host(pod.spec), &pod.which(is_host))?;
    let detail = format!("{who} must not set securityContext.windowsOptions.hostProcess=true");
    Some(Violation::new("hostProcess", detail))
}
