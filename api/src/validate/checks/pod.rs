//! Pod specs, of pods and of templates: what their parts must be together.

use serde_json::Value;

use super::super::{At, Errors, form, rules};
use super::container::{self, Role};
use super::pod_resources;
use crate::names;

/// What may serve a pod's name resolution, as resolvers have it.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;
/// The longest node name of the kernel.
const MAX_HOSTNAME: usize = 64;

/// A template: its metadata is validated as that of an object without a name.
pub(super) fn template(at: &At<'_>, errors: &mut Errors) {
    let metadata = at.get("metadata");
    rules::labels(&metadata.get("labels"), errors);
    for (key, _) in metadata.get("annotations").entries() {
        for why in names::qualified(&key.to_lowercase()) {
            errors.invalid_value(&metadata.get("annotations"), key, why);
        }
    }
    if !at.get("spec").is_set() {
        errors.required(&at.at(&["spec", "containers"]), "");
    }
}

/// What is in all pod specs.
pub(super) fn spec(at: &At<'_>, errors: &mut Errors) {
    containers(at, errors);
    host_network(at, errors);
    host_users(at, errors);
    dns(at, errors);
    operating_system(at, errors);
    sysctls(&at.at(&["securityContext", "sysctls"]), errors);
    spread_repeats(&at.get("topologySpreadConstraints"), errors);
    claims(&at.get("resourceClaims"), errors);
    hostname_override(at, errors);
    pod_resources::pod_level(at, errors);
    if at.get("shareProcessNamespace").yes() && at.get("hostPID").yes() {
        let share = at.at(&["securityContext", "shareProcessNamespace"]);
        errors.invalid_value(&share, true, "ShareProcessNamespace and HostPID cannot both be enabled");
    }
}

/// A name and its volume.
pub(super) fn volume_of<'a>(spec: &At<'a>, name: &str) -> Option<&'a Value> {
    spec.value["volumes"].as_array()?.iter().find(|v| v["name"] == name)
}

fn containers(at: &At<'_>, errors: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    for role in [Role::Main, Role::Init, Role::Ephemeral] {
        for c in at.get(role.field()).items() {
            let name = c.get("name");
            if seen.contains(&name.text()) {
                errors.duplicate(&name);
            } else if !name.is_empty() {
                seen.push(name.text());
            }
            container::container(&c, at, role, errors);
            if role == Role::Init {
                host_ports(std::iter::once(c), errors);
            }
        }
    }
    host_ports(at.get("containers").items(), errors);
}

fn host_ports<'a>(containers: impl Iterator<Item = At<'a>>, errors: &mut Errors) {
    let mut seen: Vec<String> = Vec::new();
    for c in containers {
        for port in c.get("ports").items() {
            let host = port.get("hostPort");
            let Some(number) = host.int().filter(|n| *n != 0) else { continue };
            let key = format!("{}/{}/{number}", port.get("protocol").text(), port.get("hostIP").text());
            if seen.contains(&key) {
                errors.duplicate_of(&host, key);
            } else {
                seen.push(key);
            }
        }
    }
}

fn host_network(at: &At<'_>, errors: &mut Errors) {
    if !at.get("hostNetwork").yes() {
        return;
    }
    for role in [Role::Main, Role::Init] {
        for port in at.get(role.field()).items().flat_map(|c| c.get("ports").items()) {
            let host = port.get("hostPort");
            // In a template it may be left to the pod's own defaulting.
            if host.int().unwrap_or(0) != 0 && host.value != &port.value["containerPort"] {
                errors.invalid(&host, "must match `containerPort` when `hostNetwork` is true");
            }
        }
    }
}

fn host_users(at: &At<'_>, errors: &mut Errors) {
    const WHY: &str = "when `hostUsers` is false";
    if at.get("hostUsers").value != false {
        return;
    }
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        if at.get(field).yes() {
            errors.forbidden(&at.get(field), WHY);
        }
    }
    for role in [Role::Main, Role::Init, Role::Ephemeral] {
        for c in at.get(role.field()).items().filter(|c| !c.get("volumeDevices").is_empty()) {
            errors.forbidden(&c.get("volumeDevices"), WHY);
        }
    }
}

fn dns(at: &At<'_>, errors: &mut Errors) {
    let config = at.get("dnsConfig");
    let (servers, searches) = (config.get("nameservers"), config.get("searches"));
    if at.get("dnsPolicy").text() == "None" {
        if !config.is_set() {
            return errors.required(&config, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        if servers.is_empty() {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return errors.required(&servers, why);
        }
    }
    if servers.len() > MAX_NAMESERVERS {
        errors.invalid(&servers, format!("must not have more than {MAX_NAMESERVERS} nameservers"));
    }
    servers.items().for_each(|server| errors.invalid_all(&server, form::ip(server.text())));
    if searches.len() > MAX_SEARCHES {
        errors.invalid(&searches, format!("must not have more than {MAX_SEARCHES} search paths"));
    }
    let chars: usize = searches.items().map(|s| s.text().len() + 1).sum();
    if chars > MAX_SEARCH_CHARS + 1 {
        let why = format!(
            "must not have more than {MAX_SEARCH_CHARS} characters (including spaces) in the search list"
        );
        errors.invalid(&searches, why);
    }
    for search in searches.items().filter(|s| s.text() != ".") {
        let text = search.text().strip_suffix('.').unwrap_or(search.text());
        errors.invalid_all(&search, names::dns_subdomain_with_underscore(text));
    }
}

/// Fields of the pod that another operating system does not know.
const NOT_WINDOWS: [&str; 4] = ["hostUsers", "hostPID", "hostIPC", "shareProcessNamespace"];
const NOT_WINDOWS_POD: [&str; 10] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "fsGroup",
    "fsGroupChangePolicy",
    "sysctls",
    "runAsUser",
    "runAsGroup",
    "supplementalGroups",
    "supplementalGroupsPolicy",
];
const NOT_WINDOWS_CONTAINER: [&str; 10] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];

fn operating_system(at: &At<'_>, errors: &mut Errors) {
    let pod_context = at.get("securityContext");
    let contexts: Vec<At<'_>> = [Role::Main, Role::Init, Role::Ephemeral]
        .into_iter()
        .flat_map(|role| at.get(role.field()).items().collect::<Vec<_>>())
        .map(|c| c.get("securityContext"))
        .collect();
    match at.at(&["os", "name"]).text() {
        "linux" => {
            for context in std::iter::once(&pod_context).chain(&contexts) {
                errors
                    .forbid(&context.get("windowsOptions"), "windows options cannot be set for a linux pod");
            }
        }
        "windows" => {
            const WHY: &str = "cannot be set for a windows pod";
            NOT_WINDOWS.iter().for_each(|f| errors.forbid(&at.get(f), WHY));
            NOT_WINDOWS_POD.iter().for_each(|f| errors.forbid(&pod_context.get(f), WHY));
            for context in &contexts {
                NOT_WINDOWS_CONTAINER.iter().for_each(|f| errors.forbid(&context.get(f), WHY));
            }
        }
        _ => {}
    }
}

fn sysctls(at: &At<'_>, errors: &mut Errors) {
    const MAX: usize = 253;
    let part = |text: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        text.starts_with(inner) && text.ends_with(inner) && text.chars().all(|c| inner(c) || "-_".contains(c))
    };
    let mut seen: Vec<String> = Vec::new();
    for name in at.items().map(|s| s.get("name")).filter(|n| !n.is_empty()) {
        if name.text().len() > MAX || !name.text().split(['.', '/']).all(part) {
            errors.invalid(&name, format!("must have at most {MAX} characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$"));
        }
        let key = name.text().replace('/', ".");
        if seen.contains(&key) {
            errors.duplicate(&name);
        }
        seen.push(key);
    }
}

fn spread_repeats(at: &At<'_>, errors: &mut Errors) {
    let pair = |c: &At<'_>| (c.value["topologyKey"].clone(), c.value["whenUnsatisfiable"].clone());
    let all: Vec<At<'_>> = at.items().collect();
    for (i, constraint) in all.iter().enumerate() {
        if all[i + 1..].iter().any(|later| pair(later) == pair(constraint)) {
            let (key, action) = (constraint.get("topologyKey"), constraint.get("whenUnsatisfiable"));
            let value = format!("{{{}, {}}}", key.text(), action.text());
            errors.duplicate_of(&constraint.get("{topologyKey, whenUnsatisfiable}"), value);
        }
    }
}

fn claims(at: &At<'_>, errors: &mut Errors) {
    for claim in at.items() {
        match claim.present(&["resourceClaimName", "resourceClaimTemplateName"]).len() {
            0 => errors
                .invalid(&claim, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"),
            1 => {}
            _ => errors.invalid(
                &claim,
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            ),
        }
    }
}

fn hostname_override(at: &At<'_>, errors: &mut Errors) {
    let name = at.get("hostnameOverride");
    if !name.is_set() {
        return;
    }
    for (field, why) in [
        ("setHostnameAsFQDN", "may not be specified when setHostnameAsFQDN is true"),
        ("hostNetwork", "may not be specified when hostNetwork is true"),
    ] {
        if at.get(field).yes() {
            errors.forbidden(&name, why);
        }
    }
    if name.text().len() > MAX_HOSTNAME {
        errors.too_long(&name, MAX_HOSTNAME);
    }
    errors.invalid_all(&name, names::dns_subdomain(name.text()));
}
