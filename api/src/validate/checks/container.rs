//! Containers of all roles: what their parts must be together, and with the rest of their pod.

use super::super::{At, Errors, form};
use super::pod::volume_of;

/// Which containers of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Those that it is for.
    Main,
    /// Those that run before.
    Init,
    /// Those that were added while it runs.
    Ephemeral,
}

impl Role {
    /// The field that holds them.
    pub(super) fn field(self) -> &'static str {
        match self {
            Self::Main => "containers",
            Self::Init => "initContainers",
            Self::Ephemeral => "ephemeralContainers",
        }
    }
}

const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

/// A container of a pod spec.
pub(super) fn container(at: &At<'_>, spec: &At<'_>, role: Role, errors: &mut Errors) {
    let image = at.get("image");
    if image.text().trim() != image.text() {
        errors.invalid(&image, "must not have leading or trailing whitespace");
    }
    mounts(at, spec, errors);
    devices(at, spec, errors);
    ports(at, errors);
    resize_policy(at, spec, errors);
    file_keys(at, spec, errors);
    restart_policy(at, role, errors);
    for var in at.get("env").items() {
        if var.get("valueFrom").is_set() && !var.get("value").is_empty() {
            let source = var.get("valueFrom");
            errors.invalid_value(&source, "", "may not be specified when `value` is not empty");
        }
    }
    match role {
        Role::Ephemeral => ephemeral(at, spec, errors),
        Role::Init if at.get("restartPolicy").text() != "Always" => {
            const WHY: &str = "may not be set for init containers without restartPolicy=Always";
            errors.forbid(&at.get("lifecycle"), WHY);
            PROBES.iter().for_each(|probe| errors.forbid(&at.get(probe), WHY));
            for policy in at.get("resizePolicy").items().map(|p| p.get("restartPolicy")) {
                if policy.text() == "RestartContainer" {
                    errors.invalid(
                        &policy,
                        "must not be set to 'RestartContainer' for non-sidecar initContainers",
                    );
                }
            }
        }
        Role::Init | Role::Main => running(at, spec, errors),
    }
}

/// What a container has that is kept running.
fn running(at: &At<'_>, spec: &At<'_>, errors: &mut Errors) {
    let grace = spec.get("terminationGracePeriodSeconds").int().unwrap_or(0);
    for name in PROBES {
        let probe = at.get(name);
        if !probe.is_set() {
            continue;
        }
        handler(&probe, grace, errors);
        let threshold = probe.get("successThreshold");
        if name != "readinessProbe" && threshold.int().is_some_and(|n| n != 1) {
            errors.invalid(&threshold, "must be 1");
        }
        let own_grace = probe.get("terminationGracePeriodSeconds");
        if name == "readinessProbe" && own_grace.is_set() {
            errors.invalid(&own_grace, "must not be set for readinessProbes");
        }
    }
    for hook in ["postStart", "preStop"] {
        let hook = at.at(&["lifecycle", hook]);
        if hook.is_set() {
            handler(&hook, grace, errors);
        }
    }
    let signal = at.at(&["lifecycle", "stopSignal"]);
    if signal.is_set() && spec.at(&["os", "name"]).is_empty() {
        errors.forbidden(&signal, "may not be set for containers with empty `spec.os.name`");
    }
}

fn handler(at: &At<'_>, grace: i64, errors: &mut Errors) {
    let kinds = at.present(&["exec", "httpGet", "tcpSocket", "grpc", "sleep"]);
    if kinds.is_empty() {
        errors.required(at, "must specify a handler type");
    }
    for kind in kinds.iter().skip(1) {
        errors.forbidden(&at.get(kind), "may not specify more than 1 handler type");
    }
    let sleep = at.get("sleep");
    let seconds = sleep.get("seconds").int().unwrap_or(0);
    if sleep.is_set() && !(0..=grace).contains(&seconds) {
        let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        errors.invalid_value(&sleep, seconds, why);
    }
}

fn mounts(at: &At<'_>, spec: &At<'_>, errors: &mut Errors) {
    let mut paths: Vec<&str> = Vec::new();
    for mount in at.get("volumeMounts").items() {
        let (name, path) = (mount.get("name"), mount.get("mountPath"));
        if !name.is_empty() && volume_of(spec, name.text()).is_none() {
            errors.not_found(&name);
        }
        if paths.contains(&path.text()) {
            errors.invalid(&path, "must be unique");
        }
        paths.push(path.text());
        for device in at.get("volumeDevices").items() {
            if device.get("name").text() == name.text() {
                errors.invalid(&name, "must not already exist in volumeDevices");
            }
            if device.get("devicePath").text() == path.text() {
                errors.invalid(&path, "must not already exist as a path in volumeDevices");
            }
        }
        let expr = mount.get("subPathExpr");
        if !expr.is_empty() && !mount.get("subPath").is_empty() {
            errors.invalid(&expr, "subPathExpr and subPath are mutually exclusive");
        }
        propagation(&mount, at, errors);
    }
}

fn propagation(mount: &At<'_>, container: &At<'_>, errors: &mut Errors) {
    let propagation = mount.get("mountPropagation");
    let privileged = container.at(&["securityContext", "privileged"]).yes();
    if propagation.text() == "Bidirectional" && !privileged {
        let why = "Bidirectional mount propagation is available only to privileged containers";
        errors.forbidden(&propagation, why);
    }
    let recursive = mount.get("recursiveReadOnly");
    if matches!(recursive.text(), "IfPossible" | "Enabled") {
        if !mount.get("readOnly").yes() {
            errors.forbidden(&recursive, "may only be specified when readOnly is true");
        }
        if !matches!(propagation.text(), "" | "None") {
            errors.forbidden(
                &recursive,
                "may only be specified when mountPropagation is None or not specified",
            );
        }
    }
}

fn devices(at: &At<'_>, spec: &At<'_>, errors: &mut Errors) {
    let (mut names, mut paths) = (Vec::new(), Vec::new());
    for device in at.get("volumeDevices").items() {
        let (name, path) = (device.get("name"), device.get("devicePath"));
        if names.contains(&name.text()) {
            errors.invalid(&name, "must be unique");
        }
        match volume_of(spec, name.text()) {
            None => errors.not_found(&name),
            Some(v) if v.get("persistentVolumeClaim").or(v.get("ephemeral")).is_none() => errors.invalid(
                &name,
                "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
            ),
            Some(_) => {}
        }
        if paths.contains(&path.text()) {
            errors.invalid(&path, "must be unique");
        }
        names.push(name.text());
        paths.push(path.text());
    }
}

fn ports(at: &At<'_>, errors: &mut Errors) {
    let mut seen = Vec::new();
    for name in at.get("ports").items().map(|p| p.get("name")).filter(|n| !n.is_empty()) {
        if seen.contains(&name.text()) {
            errors.duplicate(&name);
        }
        seen.push(name.text());
    }
}

fn resize_policy(at: &At<'_>, spec: &At<'_>, errors: &mut Errors) {
    let mut seen = Vec::new();
    let never = spec.get("restartPolicy").text() == "Never" && at.get("restartPolicy").text() != "Always";
    for policy in at.get("resizePolicy").items() {
        let (name, restart) = (policy.get("resourceName"), policy.get("restartPolicy"));
        if seen.contains(&name.text()) {
            errors.duplicate_of(&policy, name.text());
        }
        seen.push(name.text());
        if never && restart.text() == "RestartContainer" {
            errors.invalid(&restart, "must be 'NotRequired' when pod `restartPolicy` is 'Never'");
        }
    }
}

fn file_keys(at: &At<'_>, spec: &At<'_>, errors: &mut Errors) {
    for var in at.get("env").items() {
        let volume = var.at(&["valueFrom", "fileKeyRef", "volumeName"]);
        if volume.is_empty() {
            continue;
        }
        match volume_of(spec, volume.text()) {
            None => errors.not_found(&volume),
            Some(v) if v["emptyDir"].is_null() => {
                errors.invalid(&volume, "referenced volume must be of type emptyDir");
            }
            Some(_) => {}
        }
    }
}

fn restart_policy(at: &At<'_>, role: Role, errors: &mut Errors) {
    let (policy, rules) = (at.get("restartPolicy"), at.get("restartPolicyRules"));
    if role == Role::Ephemeral {
        return;
    }
    if policy.is_set() {
        errors.one_of(&policy, &["Always", "Never", "OnFailure"]);
    } else if !rules.is_empty() {
        errors.required(&policy, "must specify restartPolicy when restart rules are used");
    }
}

/// Those that run on their own terms beside the others.
fn ephemeral(at: &At<'_>, spec: &At<'_>, errors: &mut Errors) {
    const WHY: &str = "cannot be set for an Ephemeral Container";
    for field in ["ports", "lifecycle", "resizePolicy", "restartPolicy", "restartPolicyRules"] {
        if !at.get(field).is_empty() {
            errors.forbidden(&at.get(field), WHY);
        }
    }
    PROBES.iter().for_each(|probe| errors.forbid(&at.get(probe), WHY));
    if !at.get("resources").is_empty() {
        errors.forbidden(&at.get("resources"), WHY);
    }
    for mount in at.get("volumeMounts").items() {
        for field in ["subPath", "subPathExpr"] {
            if !mount.get(field).is_empty() {
                errors.forbidden(&mount.get(field), WHY);
            }
        }
    }
    let target = at.get("targetContainerName");
    let known = [Role::Main, Role::Init]
        .into_iter()
        .any(|role| spec.get(role.field()).items().any(|c| c.get("name").text() == target.text()));
    if !target.is_empty() && !known {
        errors.not_found(&target);
    }
}

/// Where the value of a variable comes from.
pub(super) fn env_source(at: &At<'_>, errors: &mut Errors) {
    let kinds = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    match at.present(&kinds).len() {
        0 => errors.invalid_value(
            at,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        ),
        1 => {}
        _ => errors.invalid_value(at, "", "may not have more than one field specified at a time"),
    }
    const FIELDS: [&str; 9] = [
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    field_ref(&at.get("fieldRef"), &FIELDS, errors);
}

/// A field of the pod, for a variable or a file.
pub(super) fn field_ref(at: &At<'_>, supported: &[&str], errors: &mut Errors) {
    if !at.is_set() {
        return;
    }
    let path = at.get("fieldPath");
    if at.get("apiVersion").is_empty() {
        return errors.required(&at.get("apiVersion"), "");
    }
    if path.is_empty() {
        return errors.required(&path, "");
    }
    let convertible = |text: &str| {
        let all = ["metadata.annotations", "metadata.labels", "spec.restartPolicy"];
        supported.contains(&text)
            || all.contains(&text)
            || text.starts_with("status.")
            || text.starts_with("spec.")
            || matches!(text, "metadata.name" | "metadata.namespace" | "metadata.uid")
    };
    match path.text().split_once("['").and_then(|(base, rest)| Some((base, rest.strip_suffix("']")?))) {
        Some(("metadata.annotations", key)) => {
            errors.invalid_all_of(at, key, crate::names::qualified(&key.to_lowercase()));
        }
        Some(("metadata.labels", key)) => errors.invalid_all_of(at, key, crate::names::qualified(key)),
        Some((base, _)) => errors.invalid_value(at, base, "does not support subscript"),
        None if !convertible(path.text()) => {
            let why = format!("error converting fieldPath: field label not supported: {}", path.text());
            errors.invalid(&path, why);
        }
        None if !supported.contains(&path.text()) => errors.one_of(&path, supported),
        None => {}
    }
}

/// A resource of a container, for a variable or a file.
pub(super) fn resource_field(at: &At<'_>, errors: &mut Errors) {
    const SIZES: &str = "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the";
    const RESOURCES: [&str; 6] = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let resource = at.get("resource");
    if resource.is_empty() {
        return;
    }
    let huge = ["limits.hugepages-", "requests.hugepages-"].iter().any(|p| resource.text().starts_with(p));
    if !huge && !RESOURCES.contains(&resource.text()) {
        return errors.one_of(&resource, &RESOURCES);
    }
    let divisor = at.get("divisor");
    if !divisor.is_set() || form::quantity(divisor.value).is_zero() {
        return;
    }
    let sizes = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let name = resource.text().split_once('.').map_or("", |(_, name)| name);
    let (good, why) = match name {
        "cpu" => (
            ["1m", "1"].contains(&divisor.text()),
            "only divisor's values 1m and 1 are supported with the cpu resource".to_owned(),
        ),
        "memory" => (sizes.contains(&divisor.text()), format!("{SIZES} memory resource")),
        "ephemeral-storage" => {
            (sizes.contains(&divisor.text()), format!("{SIZES} local ephemeral storage resource"))
        }
        _ => (sizes.contains(&divisor.text()), format!("{SIZES} hugepages resource")),
    };
    if !good {
        errors.invalid_value(&divisor, name, why);
    }
}

/// Where many variables come from.
pub(super) fn env_from(at: &At<'_>, errors: &mut Errors) {
    match at.present(&["configMapRef", "secretRef"]).len() {
        0 => errors.invalid_value(at, "", "must specify one of: `configMapRef` or `secretRef`"),
        1 => {}
        _ => errors.invalid_value(at, "", "may not have more than one field specified at a time"),
    }
}

/// A container's security context.
pub(super) fn security_context(at: &At<'_>, errors: &mut Errors) {
    if at.get("allowPrivilegeEscalation").value != false {
        return;
    }
    if at.get("privileged").yes() {
        errors.invalid(at, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
    }
    let added = at.at(&["capabilities", "add"]);
    if added.items().any(|c| c.text() == "CAP_SYS_ADMIN") {
        let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
        errors.invalid(at, why);
    }
}

/// A seccomp or AppArmor profile.
pub(super) fn profile(at: &At<'_>, what: &str, errors: &mut Errors) {
    let (ty, name) = (at.get("type").text(), at.get("localhostProfile"));
    if ty == "Localhost" {
        if name.text().trim().is_empty() {
            errors.required(&name, &format!("must be set when {what} type is Localhost"));
        } else if what == "seccomp" {
            errors.invalid_all(&name, form::descending(name.text()));
        } else if name.text().trim() != name.text() {
            errors.invalid(&name, "must not be padded with whitespace");
        }
    } else if name.is_set() {
        errors.invalid(&name, format!("can only be set when {what} type is Localhost"));
    }
}
