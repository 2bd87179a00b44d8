//! The checks of each level, by the version of Kubernetes since which they hold.

use serde_json::Value;

use super::policy::{Level, Policy};
use super::{baseline, restricted};

/// The last version in which a check changed: what is newer is the same.
const NEWEST: u32 = 35;

/// What a pod does that a policy forbids.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) reason: String,
    pub(super) detail: String,
}

impl Violation {
    pub(super) fn new(reason: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { reason: reason.into(), detail: detail.into() }
    }
}

/// A pod, or a template of one, as checks see it: at a minor version of the policy.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) metadata: &'a Value,
    pub(super) spec: &'a Value,
    pub(super) minor: u32,
}

impl<'a> Subject<'a> {
    /// All containers: those that initialize come first, as Kubernetes names them.
    pub(super) fn containers(self) -> impl Iterator<Item = &'a Value> {
        let of = move |field: &str| self.spec[field].as_array().into_iter().flatten();
        of("initContainers").chain(of("containers")).chain(of("ephemeralContainers"))
    }

    /// The names of the containers that a condition holds for.
    pub(super) fn which(self, mut bad: impl FnMut(&Value) -> bool) -> Vec<String> {
        self.containers().filter(|container| bad(container)).map(name).collect()
    }

    pub(super) fn volumes(self) -> impl Iterator<Item = &'a Value> {
        self.spec["volumes"].as_array().into_iter().flatten()
    }

    /// The annotations of the pod.
    pub(super) fn annotations(self) -> impl Iterator<Item = (&'a String, &'a str)> {
        let map = self.metadata["annotations"].as_object().into_iter().flatten();
        map.filter_map(|(key, value)| Some((key, value.as_str()?)))
    }

    pub(super) fn is_windows(self) -> bool {
        self.spec["os"]["name"] == "windows"
    }

    /// Whether the pod's root is nobody on its node (KEP-127), which relaxes some checks.
    pub(super) fn has_own_users(self) -> bool {
        self.spec["hostUsers"] == false
    }
}

pub(super) fn name(object: &Value) -> String {
    object["name"].as_str().unwrap_or_default().to_owned()
}

/// `container "a"` or `containers "a", "b"`.
pub(super) fn named(one: &str, many: &str, names: &[String]) -> String {
    format!("{} {}", plural(one, many, names.len()), quoted(names))
}

pub(super) fn containers(names: &[String]) -> String {
    named("container", "containers", names)
}

pub(super) fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

pub(super) fn quoted<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| format!("\"{}\"", item.as_ref())).collect();
    items.join(", ")
}

/// `pod and containers "a", "b"`: who set a field badly; `None` if nobody did.
pub(super) fn setters(pod: bool, names: &[String]) -> Option<String> {
    let mut parts = Vec::new();
    if pod {
        parts.push("pod".to_owned());
    }
    if !names.is_empty() {
        parts.push(containers(names));
    }
    (!parts.is_empty()).then(|| parts.join(" and "))
}

type Run = fn(Subject<'_>) -> Option<Violation>;

struct Check {
    run: Run,
    level: Level,
    /// The first version that has it.
    since: u32,
    /// From this version on, the restricted level has a check of its own in its place.
    replaced: Option<u32>,
}

const fn basic(run: Run, replaced: Option<u32>) -> Check {
    Check { run, level: Level::Baseline, since: 0, replaced }
}

const fn strict(run: Run, since: u32) -> Check {
    Check { run, level: Level::Restricted, since, replaced: None }
}

/// In the order in which Kubernetes tells of violations.
static CHECKS: &[Check] = &[
    basic(baseline::app_armor, None),
    basic(baseline::capabilities, Some(22)),
    basic(baseline::host_namespaces, None),
    basic(baseline::host_path_volumes, Some(0)),
    basic(baseline::host_ports, None),
    Check { run: baseline::probe_hosts, level: Level::Baseline, since: 34, replaced: None },
    basic(baseline::privileged, None),
    basic(baseline::proc_mount, Some(35)),
    basic(baseline::selinux, None),
    basic(baseline::seccomp, Some(19)),
    basic(baseline::sysctls, None),
    basic(baseline::windows_host_process, None),
    strict(restricted::privilege_escalation, 8),
    strict(restricted::capabilities, 22),
    strict(baseline::masked_proc, 35),
    strict(restricted::volumes, 0),
    strict(restricted::run_as_non_root, 0),
    strict(restricted::run_as_user, 23),
    strict(restricted::seccomp, 19),
];

/// All violations of a policy.
pub(super) fn violations(policy: Policy, metadata: &Value, spec: &Value) -> Vec<Violation> {
    let minor = policy.minor.unwrap_or(NEWEST).min(NEWEST);
    let subject = Subject { metadata, spec, minor };
    let applies = |check: &&Check| {
        let replaced = policy.level == Level::Restricted && check.replaced.is_some_and(|from| minor >= from);
        check.level <= policy.level && minor >= check.since && !replaced
    };
    CHECKS.iter().filter(applies).filter_map(|check| (check.run)(subject)).collect()
}

/// What is wrong, in Kubernetes' words; `None` if nothing is.
pub(super) fn detail(violations: &[Violation]) -> Option<String> {
    let told = |violation: &Violation| match violation.detail.as_str() {
        "" => violation.reason.clone(),
        detail => format!("{} ({detail})", violation.reason),
    };
    let parts: Vec<String> = violations.iter().map(told).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(level: Level, minor: Option<u32>, spec: Value) -> String {
        let metadata = json!({"annotations": spec["annotations"]});
        detail(&violations(Policy { level, minor }, &metadata, &spec)).unwrap_or_default()
    }

    fn baseline(spec: Value) -> String {
        told(Level::Baseline, None, spec)
    }

    /// A pod that the restricted level admits.
    fn modest() -> Value {
        json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]}}}],
            "volumes": [{"name": "v", "emptyDir": {}}]})
    }

    #[test]
    fn a_plain_pod_is_baseline_but_not_restricted() {
        let plain = json!({"containers": [{"name": "c"}]});
        assert_eq!(baseline(plain.clone()), "");
        assert_eq!(
            told(Level::Restricted, None, plain),
            "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        assert_eq!(told(Level::Restricted, None, modest()), "");
    }

    #[test]
    fn baseline_refusals() {
        for (spec, want) in [
            (
                json!({"hostNetwork": true, "hostPID": true}),
                "host namespaces (hostNetwork=true, hostPID=true)",
            ),
            (
                json!({"volumes": [{"name": "a", "hostPath": {}}, {"name": "b", "hostPath": {}}]}),
                "hostPath volumes (volumes \"a\", \"b\")",
            ),
            (
                json!({"containers": [{"name": "c", "securityContext": {"privileged": true}}]}),
                "privileged (container \"c\" must not set securityContext.privileged=true)",
            ),
            (
                json!({"containers": [{"name": "c", "ports": [{"hostPort": 80}, {"hostPort": 443}]}]}),
                "hostPort (container \"c\" uses hostPorts 443, 80)",
            ),
            (
                json!({"initContainers": [{"name": "i", "securityContext": {"capabilities": {"add": ["NET_RAW", "CHOWN"]}}}]}),
                "non-default capabilities (container \"i\" must not include \"NET_RAW\" in securityContext.capabilities.add)",
            ),
            (
                json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}),
                "forbidden sysctls (kernel.msgmax)",
            ),
            (
                json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
                "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
            (
                json!({"securityContext": {"seLinuxOptions": {"type": "x_t", "user": "u"}}}),
                "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"x_t\"; user may not be set)",
            ),
            (
                json!({"containers": [{"name": "c", "securityContext": {"procMount": "Unmasked"}}]}),
                "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")",
            ),
            (
                json!({"containers": [{"name": "c", "securityContext": {"appArmorProfile": {"type": "Unconfined"}}}]}),
                "forbidden AppArmor profile (container \"c\" must not set AppArmor profile type to \"Unconfined\")",
            ),
            (
                json!({"containers": [{"name": "c", "livenessProbe": {"httpGet": {"host": "x"}}}]}),
                "probe or lifecycle host (container \"c\" uses probe or lifecycle host \"x\")",
            ),
            (
                json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}),
                "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
            ),
        ] {
            assert_eq!(baseline(spec), want);
        }
    }

    #[test]
    fn restricted_refusals() {
        let with = |pointer: &str, value: Value| {
            let mut spec = modest();
            *spec.pointer_mut(pointer).unwrap() = value;
            told(Level::Restricted, None, spec)
        };
        assert_eq!(
            with("/volumes/0", json!({"name": "v", "hostPath": {}})),
            "restricted volume types (volume \"v\" uses restricted volume type \"hostPath\")"
        );
        assert_eq!(
            with(
                "/securityContext",
                json!({"runAsNonRoot": false, "runAsUser": 0, "seccompProfile": {"type": "RuntimeDefault"}})
            ),
            "runAsNonRoot != true (pod must not set securityContext.runAsNonRoot=false), runAsUser=0 (pod must not set runAsUser=0)"
        );
        assert_eq!(
            with(
                "/containers/0/securityContext/capabilities",
                json!({"drop": ["ALL"], "add": ["CHOWN", "NET_BIND_SERVICE"]})
            ),
            "unrestricted capabilities (container \"c\" must not include \"CHOWN\" in securityContext.capabilities.add)"
        );
    }

    #[test]
    fn versions_have_their_own_checks() {
        let plain = json!({"containers": [{"name": "c"}]});
        let old = told(Level::Restricted, Some(18), plain);
        assert!(old.contains("allowPrivilegeEscalation") && !old.contains("seccompProfile"), "{old}");
        let host = json!({"containers": [{"name": "c", "livenessProbe": {"tcpSocket": {"host": "x"}}}]});
        assert_eq!(told(Level::Baseline, Some(33), host), "");
        let sysctl = json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}});
        assert_eq!(told(Level::Baseline, Some(31), sysctl.clone()), "forbidden sysctls (net.ipv4.tcp_rmem)");
        assert_eq!(baseline(sysctl), "");
        let unmasked = json!({"hostUsers": false, "containers": [{"name": "c", "securityContext": {"procMount": "Unmasked"}}]});
        assert_eq!(baseline(unmasked.clone()), "");
        assert!(told(Level::Baseline, Some(34), unmasked.clone()).starts_with("procMount"));
        assert!(told(Level::Restricted, None, unmasked).contains("procMount"));
    }
}
