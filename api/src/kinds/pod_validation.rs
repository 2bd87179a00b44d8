//! Validation of pods and pod templates.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Container, Pod, PodSpec, PodTemplateSpec, Probe, ResourceRequirements, Volume,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::field::{Error, Path};
use crate::names;
use crate::quantity::Quantity;

/// What an update of a pod may change, in the words of Kubernetes.
const MUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn pod(pod: &Pod, old: Option<&Pod>, errors: &mut Vec<Error>) {
    let path = Path::new("spec");
    let Some(new) = &pod.spec else {
        errors.push(Error::required(&path, ""));
        return;
    };
    spec(new, &path, errors);
    if let Some(old) = old.and_then(|o| o.spec.as_ref()) {
        immutable(new, old, &path, errors);
    }
}

/// Copies what may change, then compares.
fn immutable(new: &PodSpec, old: &PodSpec, path: &Path, errors: &mut Vec<Error>) {
    let mut allowed = old.clone();
    let images = |to: &mut [Container], from: &[Container]| {
        for (to, from) in to.iter_mut().zip(from) {
            to.image.clone_from(&from.image);
            to.resources.clone_from(&from.resources);
            to.resize_policy.clone_from(&from.resize_policy);
        }
    };
    images(&mut allowed.containers, &new.containers);
    if let (Some(to), Some(from)) = (&mut allowed.init_containers, &new.init_containers) {
        images(to, from);
    }
    allowed.active_deadline_seconds = new.active_deadline_seconds;
    allowed.ephemeral_containers.clone_from(&new.ephemeral_containers);
    allowed.scheduling_gates.clone_from(&new.scheduling_gates);
    allowed.node_name.clone_from(&new.node_name);
    allowed.resources.clone_from(&new.resources);
    let kept = old.tolerations.iter().flatten().all(|t| new.tolerations.iter().flatten().any(|n| n == t));
    if kept {
        allowed.tolerations.clone_from(&new.tolerations);
    }
    if old.termination_grace_period_seconds.is_some_and(|s| s < 0) {
        allowed.termination_grace_period_seconds = new.termination_grace_period_seconds;
    }
    let gated = old.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty());
    if gated {
        allowed.node_selector.clone_from(&new.node_selector);
        allowed.affinity.clone_from(&new.affinity);
    }
    let rebound = old.node_name.is_some() && old.node_name != new.node_name;
    if allowed != *new || rebound {
        errors.push(Error::forbidden(path, MUTABLE));
    }
}

/// The template of a workload: its labels and its spec.
pub(super) fn template(template: &PodTemplateSpec, path: &Path, errors: &mut Vec<Error>) {
    let labels = template.metadata.as_ref().and_then(|m| m.labels.as_ref());
    let labels_path = path.child("metadata").child("labels");
    for (key, value) in labels.into_iter().flatten() {
        errors.extend(
            names::qualified(key).into_iter().map(|why| Error::invalid(&labels_path, key.as_str(), why)),
        );
        errors.extend(
            names::label_value(value)
                .into_iter()
                .map(|why| Error::invalid(&labels_path, value.as_str(), why)),
        );
    }
    match &template.spec {
        Some(s) => spec(s, &path.child("spec"), errors),
        None => errors.push(Error::required(&path.child("spec"), "")),
    }
}

fn one_of(value: Option<&str>, allowed: &[&str], path: &Path, errors: &mut Vec<Error>) {
    if let Some(value) = value.filter(|v| !allowed.contains(v)) {
        errors.push(Error::not_supported(path, value, allowed));
    }
}

pub(super) fn spec(spec: &PodSpec, path: &Path, errors: &mut Vec<Error>) {
    let volumes = volumes(spec.volumes.as_deref().unwrap_or_default(), &path.child("volumes"), errors);
    if spec.containers.is_empty() {
        errors.push(Error::required(&path.child("containers"), ""));
    }
    let mut seen = BTreeSet::new();
    let mut host_ports = BTreeSet::new();
    for (list, field, init) in [
        (spec.init_containers.as_deref().unwrap_or_default(), "initContainers", true),
        (&spec.containers, "containers", false),
    ] {
        for (i, c) in list.iter().enumerate() {
            let at = path.child(field).index(i);
            if !seen.insert(c.name.as_str()) {
                errors.push(Error::duplicate(&at.child("name"), c.name.as_str()));
            }
            container(c, &at, &volumes, errors);
            let sidecar = c.restart_policy.as_deref() == Some("Always");
            if init && !sidecar {
                for (field, probe) in [
                    ("livenessProbe", &c.liveness_probe),
                    ("readinessProbe", &c.readiness_probe),
                    ("startupProbe", &c.startup_probe),
                ] {
                    if probe.is_some() {
                        errors.push(Error::forbidden(
                            &at.child(field),
                            "may not be set for init containers without restartPolicy=Always",
                        ));
                    }
                }
            }
            check_host_ports(c, &at, &mut host_ports, errors);
        }
    }
    one_of(
        spec.restart_policy.as_deref(),
        &["Always", "OnFailure", "Never"],
        &path.child("restartPolicy"),
        errors,
    );
    one_of(
        spec.dns_policy.as_deref(),
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
        &path.child("dnsPolicy"),
        errors,
    );
    pod_fields(spec, path, errors);
    tolerations(spec, &path.child("tolerations"), errors);
}

fn pod_fields(spec: &PodSpec, path: &Path, errors: &mut Vec<Error>) {
    let negative = [
        ("terminationGracePeriodSeconds", spec.termination_grace_period_seconds.filter(|s| *s < 0)),
        ("activeDeadlineSeconds", spec.active_deadline_seconds.filter(|s| *s < 1)),
    ];
    for (field, value) in negative {
        if let Some(value) = value {
            let why = if field.starts_with('a') {
                "must be between 1 and 2147483647, inclusive"
            } else {
                "must be greater than or equal to 0"
            };
            errors.push(Error::invalid(&path.child(field), value, why));
        }
    }
    for (field, value, check) in [
        ("nodeName", &spec.node_name, names::dns_subdomain as fn(&str) -> Vec<String>),
        ("serviceAccountName", &spec.service_account_name, names::dns_subdomain),
        ("hostname", &spec.hostname, names::dns_label),
        ("subdomain", &spec.subdomain, names::dns_label),
    ] {
        if let Some(value) = value.as_deref().filter(|v| !v.is_empty()) {
            errors.extend(check(value).into_iter().map(|why| Error::invalid(&path.child(field), value, why)));
        }
    }
    for (key, value) in spec.node_selector.iter().flatten() {
        let at = path.child("nodeSelector");
        errors.extend(names::qualified(key).into_iter().map(|why| Error::invalid(&at, key.as_str(), why)));
        errors.extend(
            names::label_value(value).into_iter().map(|why| Error::invalid(&at, value.as_str(), why)),
        );
    }
}

fn tolerations(spec: &PodSpec, path: &Path, errors: &mut Vec<Error>) {
    for (i, t) in spec.tolerations.iter().flatten().enumerate() {
        let at = path.index(i);
        let operator = t.operator.as_deref().unwrap_or("Equal");
        one_of(Some(operator), &["Equal", "Exists", "Gt", "Lt"], &at.child("operator"), errors);
        if t.key.as_deref().unwrap_or_default().is_empty() && operator != "Exists" {
            errors.push(Error::invalid(
                &at.child("operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if operator == "Exists" && !t.value.as_deref().unwrap_or_default().is_empty() {
            errors.push(Error::invalid(
                &at.child("operator"),
                t.value.clone().unwrap_or_default(),
                "value must be empty when `operator` is 'Exists'",
            ));
        }
        if t.toleration_seconds.is_some() && t.effect.as_deref() != Some("NoExecute") {
            errors.push(Error::invalid(
                &at.child("effect"),
                t.effect.clone().unwrap_or_default(),
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
        one_of(
            t.effect.as_deref().filter(|e| !e.is_empty()),
            &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            &at.child("effect"),
            errors,
        );
    }
}

fn volumes<'a>(volumes: &'a [Volume], path: &Path, errors: &mut Vec<Error>) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    for (i, volume) in volumes.iter().enumerate() {
        let at = path.index(i);
        if volume.name.is_empty() {
            errors.push(Error::required(&at.child("name"), ""));
        } else {
            errors.extend(
                names::dns_label(&volume.name)
                    .into_iter()
                    .map(|why| Error::invalid(&at.child("name"), volume.name.as_str(), why)),
            );
        }
        if !seen.insert(volume.name.as_str()) {
            errors.push(Error::duplicate(&at.child("name"), volume.name.as_str()));
        }
        let sources = serde_json::to_value(volume)
            .ok()
            .and_then(|v| v.as_object().map(|m| m.len() - 1))
            .unwrap_or_default();
        if sources > 1 {
            errors.push(Error::forbidden(&at, "may not specify more than 1 volume type"));
        }
        if volume.config_map.as_ref().is_some_and(|c| c.name.is_empty()) {
            errors.push(Error::required(&at.child("configMap").child("name"), ""));
        }
        if volume.secret.as_ref().is_some_and(|s| s.secret_name.as_deref().unwrap_or_default().is_empty()) {
            errors.push(Error::required(&at.child("secret").child("secretName"), ""));
        }
        if let Some(host) = &volume.host_path {
            if host.path.is_empty() {
                errors.push(Error::required(&at.child("hostPath").child("path"), ""));
            }
            if host.path.split('/').any(|part| part == "..") {
                errors.push(Error::invalid(
                    &at.child("hostPath").child("path"),
                    host.path.as_str(),
                    "must not contain '..'",
                ));
            }
        }
    }
    seen
}

fn container(c: &Container, path: &Path, volumes: &BTreeSet<&str>, errors: &mut Vec<Error>) {
    if c.name.is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    } else {
        errors.extend(
            names::dns_label(&c.name)
                .into_iter()
                .map(|why| Error::invalid(&path.child("name"), c.name.as_str(), why)),
        );
    }
    match c.image.as_deref().unwrap_or_default() {
        "" => errors.push(Error::required(&path.child("image"), "")),
        image if image.trim() != image => errors.push(Error::invalid(
            &path.child("image"),
            image,
            "must not have leading or trailing whitespace",
        )),
        _ => {}
    }
    one_of(
        c.image_pull_policy.as_deref(),
        &["Always", "IfNotPresent", "Never"],
        &path.child("imagePullPolicy"),
        errors,
    );
    one_of(
        c.termination_message_policy.as_deref(),
        &["File", "FallbackToLogsOnError"],
        &path.child("terminationMessagePolicy"),
        errors,
    );
    ports(c, &path.child("ports"), errors);
    environment(c, &path.child("env"), errors);
    for (i, mount) in c.volume_mounts.iter().flatten().enumerate() {
        let at = path.child("volumeMounts").index(i);
        if !volumes.contains(mount.name.as_str()) {
            errors.push(Error::not_found(&at.child("name"), mount.name.as_str()));
        }
        if mount.mount_path.is_empty() {
            errors.push(Error::required(&at.child("mountPath"), ""));
        }
        let twice = c.volume_mounts.iter().flatten().take(i).any(|m| m.mount_path == mount.mount_path);
        if twice {
            errors.push(Error::invalid(&at.child("mountPath"), mount.mount_path.as_str(), "must be unique"));
        }
        if let Some(sub) =
            mount.sub_path.as_deref().filter(|s| s.starts_with('/') || s.split('/').any(|p| p == ".."))
        {
            let why = if sub.starts_with('/') { "must be a relative path" } else { "must not contain '..'" };
            errors.push(Error::invalid(&at.child("subPath"), sub, why));
        }
    }
    for (field, p) in [
        ("livenessProbe", &c.liveness_probe),
        ("readinessProbe", &c.readiness_probe),
        ("startupProbe", &c.startup_probe),
    ] {
        if let Some(p) = p {
            probe(p, field, &path.child(field), errors);
        }
    }
    if let Some(r) = &c.resources {
        resources(r, &path.child("resources"), errors);
    }
}

fn ports(c: &Container, path: &Path, errors: &mut Vec<Error>) {
    let mut names_seen = BTreeSet::new();
    for (i, port) in c.ports.iter().flatten().enumerate() {
        let at = path.index(i);
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            errors.extend(
                names::port_name(name).into_iter().map(|why| Error::invalid(&at.child("name"), name, why)),
            );
            if !names_seen.insert(name) {
                errors.push(Error::duplicate(&at.child("name"), name));
            }
        }
        let wrong = names::port_number(port.container_port);
        errors.extend(
            wrong.into_iter().map(|why| Error::invalid(&at.child("containerPort"), port.container_port, why)),
        );
        if let Some(host) = port.host_port.filter(|p| *p != 0) {
            errors.extend(
                names::port_number(host)
                    .into_iter()
                    .map(|why| Error::invalid(&at.child("hostPort"), host, why)),
            );
        }
        one_of(port.protocol.as_deref(), &["SCTP", "TCP", "UDP"], &at.child("protocol"), errors);
    }
}

fn check_host_ports(c: &Container, path: &Path, seen: &mut BTreeSet<String>, errors: &mut Vec<Error>) {
    for (i, port) in c.ports.iter().flatten().enumerate() {
        let Some(host) = port.host_port.filter(|p| *p != 0) else { continue };
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let key = format!("{}/{}/{host}", protocol, port.host_ip.as_deref().unwrap_or_default());
        if !seen.insert(key.clone()) {
            errors.push(Error::duplicate(&path.child("ports").index(i).child("hostPort"), key));
        }
    }
}

fn environment(c: &Container, path: &Path, errors: &mut Vec<Error>) {
    for (i, var) in c.env.iter().flatten().enumerate() {
        let at = path.index(i);
        if var.name.is_empty() {
            errors.push(Error::required(&at.child("name"), ""));
        } else {
            errors.extend(
                names::env_var(&var.name)
                    .into_iter()
                    .map(|why| Error::invalid(&at.child("name"), var.name.as_str(), why)),
            );
        }
        if var.value_from.is_some() && !var.value.as_deref().unwrap_or_default().is_empty() {
            errors.push(Error::invalid(
                &at.child("valueFrom"),
                "",
                "may not be specified when `value` is not empty",
            ));
        }
    }
}

fn probe(p: &Probe, field: &str, path: &Path, errors: &mut Vec<Error>) {
    let handlers = [p.exec.is_some(), p.http_get.is_some(), p.tcp_socket.is_some(), p.grpc.is_some()];
    match handlers.iter().filter(|h| **h).count() {
        0 => errors.push(Error::required(path, "must specify a handler type")),
        1 => {}
        _ => errors.push(Error::forbidden(path, "may not specify more than 1 handler type")),
    }
    if p.exec.as_ref().is_some_and(|e| e.command.as_ref().is_none_or(Vec::is_empty)) {
        errors.push(Error::required(&path.child("exec").child("command"), ""));
    }
    let targets = [
        ("httpGet", p.http_get.as_ref().map(|h| &h.port)),
        ("tcpSocket", p.tcp_socket.as_ref().map(|t| &t.port)),
    ];
    for (handler, port) in targets {
        let at = path.child(handler).child("port");
        match port {
            Some(IntOrString::Int(n)) => {
                errors.extend(names::port_number(*n).into_iter().map(|why| Error::invalid(&at, *n, why)))
            }
            Some(IntOrString::String(s)) => {
                errors.extend(names::port_name(s).into_iter().map(|why| Error::invalid(&at, s.as_str(), why)))
            }
            None => {}
        }
    }
    for (name, value) in [
        ("initialDelaySeconds", p.initial_delay_seconds),
        ("timeoutSeconds", p.timeout_seconds),
        ("periodSeconds", p.period_seconds),
        ("successThreshold", p.success_threshold),
        ("failureThreshold", p.failure_threshold),
    ] {
        if let Some(value) = value.filter(|v| *v < 0) {
            errors.push(Error::invalid(&path.child(name), value, "must be greater than or equal to 0"));
        }
    }
    if field != "readinessProbe" && p.success_threshold.is_some_and(|n| n != 1) {
        errors.push(Error::invalid(&path.child("successThreshold"), p.success_threshold, "must be 1"));
    }
}

/// Resources: nothing negative, no request above its limit.
pub(super) fn resources(r: &ResourceRequirements, path: &Path, errors: &mut Vec<Error>) {
    let amounts = |map: &Option<BTreeMap<String, _>>| -> BTreeMap<String, Quantity> {
        map.iter().flatten().filter_map(|(n, q)| Some((n.clone(), Quantity::try_from(q).ok()?))).collect()
    };
    let (limits, requests) = (amounts(&r.limits), amounts(&r.requests));
    for (field, map) in [("limits", &limits), ("requests", &requests)] {
        for (name, amount) in map {
            let at = path.child(field).key(name);
            errors.extend(
                names::qualified(name).into_iter().map(|why| Error::invalid(&at, name.as_str(), why)),
            );
            if !name.contains('/')
                && !["cpu", "memory", "ephemeral-storage"].contains(&name.as_str())
                && !name.starts_with("hugepages-")
            {
                errors.push(Error::invalid(&at, name.as_str(), "must be a standard resource for containers"));
            }
            if amount.is_negative() {
                errors.push(Error::invalid(&at, amount.to_string(), "must be greater than or equal to 0"));
            }
        }
    }
    for (name, request) in &requests {
        if let Some(limit) = limits.get(name).filter(|limit| request > limit) {
            errors.push(Error::invalid(
                &path.child("requests"),
                request.to_string(),
                format!("must be less than or equal to {name} limit of {limit}"),
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::errors;
    use serde_json::{Value, json};

    fn wrong(spec: Value) -> Vec<String> {
        errors(
            "",
            "v1",
            "pods",
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec}),
        )
    }

    #[test]
    fn good() {
        assert_eq!(
            wrong(json!({"containers": [{"name": "c", "image": "x", "ports": [{"containerPort": 80}]}]})),
            Vec::<String>::new()
        );
    }

    #[test]
    fn every_error_names_its_field() {
        assert_eq!(wrong(json!({"containers": []})), ["spec.containers: Required value"]);
        let got = wrong(
            json!({"restartPolicy": "Sometimes", "volumes": [{"name": "v"}, {"name": "v"}], "containers": [
            {"name": "C", "volumeMounts": [{"name": "w", "mountPath": "/x"}], "livenessProbe": {},
             "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}, "env": [{"name": "A=B"}]},
            {"name": "d", "image": "x", "ports": [{"containerPort": 0}]}]}),
        );
        for want in [
            "spec.volumes[1].name: Duplicate value: \"v\"",
            "spec.containers[0].image: Required value",
            "spec.containers[0].volumeMounts[0].name: Not found: \"w\"",
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            "spec.containers[1].ports[0].containerPort: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\"",
        ] {
            assert!(got.iter().any(|g| g == want), "{want}\n{got:#?}");
        }
        assert!(
            got.iter().any(|g| g.starts_with("spec.containers[0].name: Invalid value: \"C\"")),
            "{got:#?}"
        );
    }
}
