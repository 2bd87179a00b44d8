//! Pods and what contains their templates: defaulting, quality of service, effective requests.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, EphemeralContainer, Pod, PodSecurityContext, PodSpec, PodTemplate, PodTemplateSpec, Probe,
    ResourceRequirements, Volume,
};

use serde::Deserialize;
use serde_json::Value;

use super::pod_resources::is_pod_level;
use super::{Kind, effective_requests, or, or_text};
use crate::quantity::Quantity;

impl Kind for Pod {
    fn default_fields(&mut self) {
        if let Some(spec) = &mut self.spec {
            default_spec(spec);
            or(&mut spec.enable_service_links, true);
            let host_network = spec.host_network == Some(true);
            for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
                for port in container
                    .ports
                    .iter_mut()
                    .flatten()
                    .filter(|p| host_network && p.host_port.unwrap_or(0) == 0)
                {
                    port.host_port = Some(port.container_port);
                }
                default_requests(&mut container.resources);
            }
            default_pod_requests(spec);
        }
    }
}

impl Kind for PodTemplate {
    fn default_fields(&mut self) {
        if let Some(template) = &mut self.template {
            default_template(template);
        }
    }
}

/// Defaults the pod template of a workload.
pub(super) fn default_template(template: &mut PodTemplateSpec) {
    if let Some(spec) = &mut template.spec {
        default_spec(spec);
    }
}

fn default_spec(spec: &mut PodSpec) {
    or_text(&mut spec.dns_policy, "ClusterFirst");
    or_text(&mut spec.restart_policy, "Always");
    or_text(&mut spec.scheduler_name, "default-scheduler");
    or(&mut spec.termination_grace_period_seconds, 30);
    or(&mut spec.security_context, PodSecurityContext::default());
    // The deprecated alias and the name are kept equal.
    let account = spec.service_account_name.clone().or_else(|| spec.service_account.clone());
    spec.service_account_name.clone_from(&account);
    spec.service_account = account;
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        default_container(container);
    }
    for container in spec.ephemeral_containers.iter_mut().flatten() {
        default_ephemeral(container);
    }
    for volume in spec.volumes.iter_mut().flatten() {
        default_volume(volume);
    }
}

/// `Always` for `latest` or no tag, `IfNotPresent` otherwise.
fn pull_policy(image: Option<&str>) -> &'static str {
    let image = image.unwrap_or_default();
    let name = image.rsplit('/').next().unwrap_or(image);
    let tag = name.split_once('@').map_or_else(|| name.split_once(':').map(|(_, tag)| tag), |_| Some("@"));
    if matches!(tag, None | Some("latest")) { "Always" } else { "IfNotPresent" }
}

fn default_container(container: &mut Container) {
    let policy = pull_policy(container.image.as_deref());
    or_text(&mut container.image_pull_policy, policy);
    or_text(&mut container.termination_message_path, "/dev/termination-log");
    or_text(&mut container.termination_message_policy, "File");
    or(&mut container.resources, ResourceRequirements::default());
    let probes =
        [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe];
    probes.into_iter().flatten().for_each(default_probe);
    if let Some(lifecycle) = &mut container.lifecycle {
        let handlers = [&mut lifecycle.post_start, &mut lifecycle.pre_stop];
        for http in handlers.into_iter().flatten().filter_map(|h| h.http_get.as_mut()) {
            or_text(&mut http.path, "/");
            or_text(&mut http.scheme, "HTTP");
        }
    }
    default_env(container.env.as_mut());
}

fn default_ephemeral(container: &mut EphemeralContainer) {
    let policy = pull_policy(container.image.as_deref());
    or_text(&mut container.image_pull_policy, policy);
    or_text(&mut container.termination_message_path, "/dev/termination-log");
    or_text(&mut container.termination_message_policy, "File");
    or(&mut container.resources, ResourceRequirements::default());
    default_env(container.env.as_mut());
}

fn default_env(env: Option<&mut Vec<k8s_openapi::api::core::v1::EnvVar>>) {
    for var in env.into_iter().flatten() {
        if let Some(field) = var.value_from.as_mut().and_then(|v| v.field_ref.as_mut()) {
            or_text(&mut field.api_version, "v1");
        }
        if let Some(field) = var.value_from.as_mut().and_then(|v| v.resource_field_ref.as_mut()) {
            or(&mut field.divisor, Quantity::ZERO.into());
        }
    }
}

fn default_probe(probe: &mut Probe) {
    for (slot, default) in [
        (&mut probe.timeout_seconds, 1),
        (&mut probe.period_seconds, 10),
        (&mut probe.success_threshold, 1),
        (&mut probe.failure_threshold, 3),
    ] {
        if slot.unwrap_or(0) == 0 {
            *slot = Some(default);
        }
    }
    if let Some(http) = &mut probe.http_get {
        or_text(&mut http.path, "/");
        or_text(&mut http.scheme, "HTTP");
    }
    if let Some(grpc) = &mut probe.grpc {
        or(&mut grpc.service, String::new());
    }
}

/// What has a limit and no request requests its limit.
fn default_requests(resources: &mut Option<ResourceRequirements>) {
    let Some(resources) = resources else { return };
    let Some(limits) = &resources.limits else { return };
    let requests = resources.requests.get_or_insert_default();
    for (name, limit) in limits {
        requests.entry(name.clone()).or_insert_with(|| limit.clone());
    }
}

/// A pod that limits all its containers together requests for them what they request, or else its limit (KEP-2837).
fn default_pod_requests(spec: &mut PodSpec) {
    let Some(limits) = spec.resources.as_ref().and_then(|r| r.limits.clone()).filter(|l| !l.is_empty())
    else {
        return;
    };
    let of_containers = PodSpec { resources: None, overhead: None, ..spec.clone() };
    let asked = effective_requests(&of_containers).into_iter();
    let asked = asked.filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory"));
    let whole = limits.into_iter().filter(|(name, _)| is_pod_level(name));
    let requests = spec.resources.get_or_insert_default().requests.get_or_insert_default();
    for (name, amount) in asked.map(|(name, amount)| (name, amount.into())).chain(whole) {
        requests.entry(name).or_insert(amount);
    }
}

fn default_volume(volume: &mut Volume) {
    const FILE_MODE: i32 = 0o644;
    if let Some(source) = &mut volume.secret {
        or(&mut source.default_mode, FILE_MODE);
    }
    if let Some(source) = &mut volume.config_map {
        or(&mut source.default_mode, FILE_MODE);
    }
    if let Some(source) = &mut volume.downward_api {
        or(&mut source.default_mode, FILE_MODE);
        source
            .items
            .iter_mut()
            .flatten()
            .filter_map(|i| i.field_ref.as_mut())
            .for_each(|f| or_text(&mut f.api_version, "v1"));
    }
    if let Some(source) = &mut volume.host_path {
        or(&mut source.type_, String::new());
    }
    if let Some(source) = &mut volume.projected {
        or(&mut source.default_mode, FILE_MODE);
        for source in source.sources.iter_mut().flatten() {
            if let Some(token) = &mut source.service_account_token {
                or(&mut token.expiration_seconds, 3600);
            }
            let items = source.downward_api.as_mut().and_then(|d| d.items.as_mut()).into_iter().flatten();
            items.filter_map(|i| i.field_ref.as_mut()).for_each(|f| or_text(&mut f.api_version, "v1"));
        }
    }
    if let Some(template) = volume.ephemeral.as_mut().and_then(|e| e.volume_claim_template.as_mut()) {
        or_text(&mut template.spec.volume_mode, "Filesystem");
    }
    if let Some(image) = &mut volume.image {
        let policy = pull_policy(image.reference.as_deref());
        or_text(&mut image.pull_policy, policy);
    }
    let has_source = serde_json::to_value(&*volume).is_ok_and(|v| v.as_object().is_some_and(|m| m.len() > 1));
    if !has_source {
        volume.empty_dir = Some(Default::default());
    }
}

/// The quality-of-service class of a pod (concept: *Pod Quality of Service Classes*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosClass {
    /// Every container has CPU and memory limits equal to its requests.
    Guaranteed,
    /// Some container has a request or a limit.
    Burstable,
    /// No container has any.
    BestEffort,
}

impl QosClass {
    /// As in `status.qosClass`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// The class of a pod by its spec as JSON.
pub(crate) fn qos_class_of(spec: &Value) -> QosClass {
    PodSpec::deserialize(spec).map_or(QosClass::BestEffort, |spec| qos_class(&spec))
}

/// The class of a pod by the resources of all its containers.
pub fn qos_class(spec: &PodSpec) -> QosClass {
    let amount = |map: Option<&BTreeMap<String, _>>, name: &str| -> Option<Quantity> {
        Quantity::try_from(map?.get(name)?).ok().filter(|q| !q.is_zero())
    };
    let (mut any, mut guaranteed) = (false, true);
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let resources = container.resources.as_ref();
        let requests = resources.and_then(|r| r.requests.as_ref());
        let limits = resources.and_then(|r| r.limits.as_ref());
        for name in ["cpu", "memory"] {
            let (request, limit) = (amount(requests, name), amount(limits, name));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::normalized;
    use super::*;
    use serde_json::json;

    fn pod(spec: Value) -> Value {
        normalized(
            "",
            "v1",
            "pods",
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec}),
        )
    }

    fn spec(containers: Value) -> PodSpec {
        serde_json::from_value(json!({ "containers": containers })).unwrap()
    }

    #[test]
    fn defaults() {
        let got = pod(
            json!({"containers": [{"name": "c", "image": "nginx", "livenessProbe": {"httpGet": {"port": 80}},
            "resources": {"limits": {"cpu": "1"}}}], "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}]}),
        );
        let c = &got["spec"]["containers"][0];
        assert_eq!(c["imagePullPolicy"], "Always");
        assert_eq!(c["resources"]["requests"]["cpu"], "1");
        assert_eq!(c["livenessProbe"]["httpGet"], json!({"path": "/", "port": 80, "scheme": "HTTP"}));
        assert_eq!(c["livenessProbe"]["failureThreshold"], 3);
        assert_eq!(got["spec"]["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(got["spec"]["volumes"][1]["secret"]["defaultMode"], 420);
        assert_eq!(got["spec"]["restartPolicy"], "Always");
        assert_eq!(got["spec"]["enableServiceLinks"], true);
    }

    #[test]
    fn a_limit_of_the_whole_pod_asks_for_what_its_containers_ask() {
        let got = pod(
            json!({"containers": [{"name": "c", "image": "x:1", "resources": {"requests": {"cpu": "100m"}}}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}),
        );
        assert_eq!(got["spec"]["resources"]["requests"], json!({"cpu": "100m", "memory": "1Gi"}));
        let got = pod(
            json!({"containers": [{"name": "c", "image": "x:1", "resources": {"requests": {"cpu": "1"}}}]}),
        );
        assert_eq!(
            (&got["spec"]["resources"], &got["spec"]["containers"][0]["resizePolicy"]),
            (&Value::Null, &Value::Null)
        );
    }

    #[test]
    fn pull_policies() {
        for (image, want) in [
            ("a", "Always"),
            ("a:latest", "Always"),
            ("a:1", "IfNotPresent"),
            ("h:5000/a", "Always"),
            ("h:5000/a:1", "IfNotPresent"),
            ("a@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(Some(image)), want, "{image}");
        }
    }

    #[test]
    fn classes() {
        let class = |c: Value| qos_class(&spec(json!([c])));
        assert_eq!(class(json!({"name": "a"})), QosClass::BestEffort);
        assert_eq!(class(json!({"name": "a", "resources": {"requests": {"cpu": "1"}}})), QosClass::Burstable);
        assert_eq!(
            class(json!({"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}})),
            QosClass::Guaranteed
        );
        assert_eq!(
            class(
                json!({"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}})
            ),
            QosClass::Burstable
        );
    }
}
