//! Deployments, ReplicaSets, StatefulSets, DaemonSets, ReplicationControllers: defaulting and validation.

use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, DaemonSetUpdateStrategy, Deployment, DeploymentStrategy, ReplicaSet,
    RollingUpdateDaemonSet, RollingUpdateDeployment, RollingUpdateStatefulSetStrategy, StatefulSet,
    StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{PodTemplateSpec, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Kind, or, or_text, pod, pod_validation};
use crate::field::{Error, Path};
use crate::labels::Selector;

super::plain!(ControllerRevision);

impl Kind for Deployment {
    fn default_fields(&mut self) {
        let Some(spec) = &mut self.spec else { return };
        or(&mut spec.replicas, 1);
        or(&mut spec.revision_history_limit, 10);
        or(&mut spec.progress_deadline_seconds, 600);
        let strategy = spec.strategy.get_or_insert_with(DeploymentStrategy::default);
        or_text(&mut strategy.type_, "RollingUpdate");
        if strategy.type_.as_deref() == Some("RollingUpdate") {
            let rolling = strategy.rolling_update.get_or_insert_with(RollingUpdateDeployment::default);
            or(&mut rolling.max_unavailable, IntOrString::String("25%".to_owned()));
            or(&mut rolling.max_surge, IntOrString::String("25%".to_owned()));
        }
        pod::default_template(&mut spec.template);
    }

    fn validate(&self, old: Option<&Self>, errors: &mut Vec<Error>) {
        let path = Path::new("spec");
        let Some(spec) = &self.spec else { return errors.push(Error::required(&path, "")) };
        not_negative(spec.replicas, &path.child("replicas"), errors);
        not_negative(spec.min_ready_seconds, &path.child("minReadySeconds"), errors);
        not_negative(spec.revision_history_limit, &path.child("revisionHistoryLimit"), errors);
        selector(&spec.selector, &spec.template, &path, errors);
        workload_template(&spec.template, &path.child("template"), errors);
        if let Some(old) = old.and_then(|o| o.spec.as_ref()) {
            same(&spec.selector, &old.selector, &path.child("selector"), errors);
        }
        if let Some(deadline) = spec.progress_deadline_seconds {
            not_negative(Some(deadline), &path.child("progressDeadlineSeconds"), errors);
            if deadline <= spec.min_ready_seconds.unwrap_or_default() {
                errors.push(Error::invalid(
                    &path.child("progressDeadlineSeconds"),
                    deadline,
                    "must be greater than minReadySeconds",
                ));
            }
        }
        if let Some(strategy) = &spec.strategy {
            deployment_strategy(strategy, &path.child("strategy"), errors);
        }
    }
}

fn deployment_strategy(strategy: &DeploymentStrategy, path: &Path, errors: &mut Vec<Error>) {
    match (strategy.type_.as_deref(), &strategy.rolling_update) {
        (Some("Recreate"), Some(_)) => {
            errors.push(Error::forbidden(
                &path.child("rollingUpdate"),
                "may not be specified when strategy `type` is 'Recreate'",
            ));
        }
        (Some("RollingUpdate"), Some(rolling)) => {
            let at = path.child("rollingUpdate");
            let unavailable = amount(rolling.max_unavailable.as_ref(), &at.child("maxUnavailable"), errors);
            let surge = amount(rolling.max_surge.as_ref(), &at.child("maxSurge"), errors);
            if unavailable == Some(0) && surge == Some(0) {
                errors.push(Error::invalid(
                    &at.child("maxUnavailable"),
                    0,
                    "may not be 0 when `maxSurge` is 0",
                ));
            }
            if matches!(&rolling.max_unavailable, Some(IntOrString::String(_)))
                && unavailable.is_some_and(|n| n > 100)
            {
                errors.push(Error::invalid(
                    &at.child("maxUnavailable"),
                    format!("{}%", unavailable.unwrap_or_default()),
                    "must not be greater than 100%",
                ));
            }
        }
        (Some("Recreate" | "RollingUpdate"), None) => {}
        (other, _) => errors.push(Error::not_supported(
            &path.child("type"),
            other.unwrap_or_default(),
            &["Recreate", "RollingUpdate"],
        )),
    }
}

/// A number or a percentage; its number.
fn amount(value: Option<&IntOrString>, path: &Path, errors: &mut Vec<Error>) -> Option<i32> {
    match value? {
        IntOrString::Int(n) => {
            not_negative(Some(*n), path, errors);
            Some(*n)
        }
        IntOrString::String(text) => {
            match text.strip_suffix('%').and_then(|n| n.parse().ok()).filter(|n| *n >= 0) {
                Some(n) => Some(n),
                None => {
                    errors.push(Error::invalid(path, text.as_str(), "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%', or '93%', regex used for validation is '[0-9]+%')"));
                    None
                }
            }
        }
    }
}

fn not_negative(value: Option<i32>, path: &Path, errors: &mut Vec<Error>) {
    if let Some(value) = value.filter(|v| *v < 0) {
        errors.push(Error::invalid(path, value, "must be greater than or equal to 0"));
    }
}

fn same<T: PartialEq + serde::Serialize>(new: &T, old: &T, path: &Path, errors: &mut Vec<Error>) {
    if new != old {
        errors.push(Error::invalid(
            path,
            serde_json::to_value(new).unwrap_or_default(),
            "field is immutable",
        ));
    }
}

fn selector(selector: &LabelSelector, template: &PodTemplateSpec, path: &Path, errors: &mut Vec<Error>) {
    let at = path.child("selector");
    let value = serde_json::to_value(selector).unwrap_or_default();
    match Selector::try_from(selector) {
        Err(e) => errors.push(Error::invalid(&at, value, e.to_string())),
        Ok(s) if s.is_everything() => {
            errors.push(Error::invalid(&at, value, "empty selector is invalid for deployment"));
        }
        Ok(s) => template_labels_match(&s, template, path, errors),
    }
}

fn template_labels_match(
    selector: &Selector,
    template: &PodTemplateSpec,
    path: &Path,
    errors: &mut Vec<Error>,
) {
    let labels = template.metadata.as_ref().and_then(|m| m.labels.as_ref());
    if !selector.matches_optional(labels) {
        let at = path.child("template").child("metadata").child("labels");
        let value = serde_json::to_value(labels).unwrap_or_default();
        errors.push(Error::invalid(&at, value, "`selector` does not match template `labels`"));
    }
}

/// The template of a workload whose pods run for ever.
fn workload_template(template: &PodTemplateSpec, path: &Path, errors: &mut Vec<Error>) {
    pod_validation::template(template, path, errors);
    let spec = template.spec.as_ref();
    if let Some(policy) = spec.and_then(|s| s.restart_policy.as_deref()).filter(|p| *p != "Always") {
        errors.push(Error::not_supported(&path.child("spec").child("restartPolicy"), policy, &["Always"]));
    }
    if spec.is_some_and(|s| s.active_deadline_seconds.is_some()) {
        errors.push(Error::forbidden(
            &path.child("spec").child("activeDeadlineSeconds"),
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        ));
    }
}

impl Kind for ReplicaSet {
    fn default_fields(&mut self) {
        let Some(spec) = &mut self.spec else { return };
        or(&mut spec.replicas, 1);
        if let Some(template) = &mut spec.template {
            pod::default_template(template);
        }
    }

    fn validate(&self, old: Option<&Self>, errors: &mut Vec<Error>) {
        let path = Path::new("spec");
        let Some(spec) = &self.spec else { return errors.push(Error::required(&path, "")) };
        not_negative(spec.replicas, &path.child("replicas"), errors);
        not_negative(spec.min_ready_seconds, &path.child("minReadySeconds"), errors);
        match &spec.template {
            Some(template) => {
                selector(&spec.selector, template, &path, errors);
                workload_template(template, &path.child("template"), errors);
            }
            None => errors.push(Error::required(&path.child("template"), "")),
        }
        if let Some(old) = old.and_then(|o| o.spec.as_ref()) {
            same(&spec.selector, &old.selector, &path.child("selector"), errors);
        }
    }
}

impl Kind for ReplicationController {
    fn default_fields(&mut self) {
        let Some(spec) = &mut self.spec else { return };
        or(&mut spec.replicas, 1);
        or(&mut spec.min_ready_seconds, 0);
        if let Some(template) = &mut spec.template {
            pod::default_template(template);
            let labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).filter(|l| !l.is_empty());
            if let Some(labels) = labels {
                or(&mut spec.selector, labels.clone());
                or(&mut self.metadata.labels, labels);
            }
        }
    }

    fn validate(&self, _old: Option<&Self>, errors: &mut Vec<Error>) {
        let path = Path::new("spec");
        let Some(spec) = &self.spec else { return errors.push(Error::required(&path, "")) };
        not_negative(spec.replicas, &path.child("replicas"), errors);
        let selector = Selector::from_map(spec.selector.iter().flatten());
        if selector.is_everything() {
            errors.push(Error::required(&path.child("selector"), ""));
        }
        match &spec.template {
            Some(template) => {
                template_labels_match(&selector, template, &path, errors);
                workload_template(template, &path.child("template"), errors);
            }
            None => errors.push(Error::required(&path.child("template"), "")),
        }
    }
}

impl Kind for StatefulSet {
    fn default_fields(&mut self) {
        let Some(spec) = &mut self.spec else { return };
        or(&mut spec.replicas, 1);
        or(&mut spec.revision_history_limit, 10);
        or_text(&mut spec.pod_management_policy, "OrderedReady");
        let strategy = spec.update_strategy.get_or_insert_with(StatefulSetUpdateStrategy::default);
        or_text(&mut strategy.type_, "RollingUpdate");
        if strategy.type_.as_deref() == Some("RollingUpdate") {
            let rolling =
                strategy.rolling_update.get_or_insert_with(RollingUpdateStatefulSetStrategy::default);
            or(&mut rolling.partition, 0);
        }
        let retention = spec
            .persistent_volume_claim_retention_policy
            .get_or_insert_with(StatefulSetPersistentVolumeClaimRetentionPolicy::default);
        or_text(&mut retention.when_deleted, "Retain");
        or_text(&mut retention.when_scaled, "Retain");
        pod::default_template(&mut spec.template);
        for claim in spec.volume_claim_templates.iter_mut().flatten() {
            claim.default_fields();
        }
    }

    fn validate(&self, old: Option<&Self>, errors: &mut Vec<Error>) {
        let path = Path::new("spec");
        let Some(spec) = &self.spec else { return errors.push(Error::required(&path, "")) };
        not_negative(spec.replicas, &path.child("replicas"), errors);
        not_negative(spec.min_ready_seconds, &path.child("minReadySeconds"), errors);
        selector(&spec.selector, &spec.template, &path, errors);
        workload_template(&spec.template, &path.child("template"), errors);
        if let Some(old) = old.and_then(|o| o.spec.as_ref()) {
            let mut allowed = old.clone();
            allowed.replicas = spec.replicas;
            allowed.template = spec.template.clone();
            allowed.update_strategy.clone_from(&spec.update_strategy);
            allowed.ordinals.clone_from(&spec.ordinals);
            allowed.revision_history_limit = spec.revision_history_limit;
            allowed
                .persistent_volume_claim_retention_policy
                .clone_from(&spec.persistent_volume_claim_retention_policy);
            allowed.min_ready_seconds = spec.min_ready_seconds;
            if allowed != *spec {
                errors.push(Error::forbidden(&path, "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"));
            }
        }
    }
}

impl Kind for DaemonSet {
    fn default_fields(&mut self) {
        let Some(spec) = &mut self.spec else { return };
        or(&mut spec.revision_history_limit, 10);
        let strategy = spec.update_strategy.get_or_insert_with(DaemonSetUpdateStrategy::default);
        or_text(&mut strategy.type_, "RollingUpdate");
        if strategy.type_.as_deref() == Some("RollingUpdate") {
            let rolling = strategy.rolling_update.get_or_insert_with(RollingUpdateDaemonSet::default);
            or(&mut rolling.max_unavailable, IntOrString::Int(1));
            or(&mut rolling.max_surge, IntOrString::Int(0));
        }
        pod::default_template(&mut spec.template);
    }

    fn validate(&self, old: Option<&Self>, errors: &mut Vec<Error>) {
        let path = Path::new("spec");
        let Some(spec) = &self.spec else { return errors.push(Error::required(&path, "")) };
        not_negative(spec.min_ready_seconds, &path.child("minReadySeconds"), errors);
        selector(&spec.selector, &spec.template, &path, errors);
        workload_template(&spec.template, &path.child("template"), errors);
        if let Some(old) = old.and_then(|o| o.spec.as_ref()) {
            same(&spec.selector, &old.selector, &path.child("selector"), errors);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{errors, normalized};
    use serde_json::{Value, json};

    fn deployment(spec: Value) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": spec})
    }

    #[test]
    fn a_deployment_is_defaulted() {
        let got = normalized(
            "apps",
            "v1",
            "deployments",
            deployment(json!({"selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}}})),
        );
        assert_eq!(got["spec"]["replicas"], 1);
        assert_eq!(
            got["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
        );
        assert_eq!(got["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
    }

    #[test]
    fn a_deployment_is_validated() {
        let got = errors(
            "apps",
            "v1",
            "deployments",
            deployment(json!({"replicas": -1, "selector": {"matchLabels": {"a": "b"}},
            "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": {"a": "c"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}}})),
        );
        assert_eq!(
            got,
            [
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`",
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ]
        );
    }
}
