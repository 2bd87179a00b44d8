//! Deployments, ReplicaSets, StatefulSets, DaemonSets, ReplicationControllers: defaulting and validation.

use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, DaemonSetUpdateStrategy, Deployment, DeploymentStrategy, ReplicaSet,
    RollingUpdateDaemonSet, RollingUpdateDeployment, RollingUpdateStatefulSetStrategy, StatefulSet,
    StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::ReplicationController;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Kind, or, or_text, pod};

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
}

impl Kind for ReplicaSet {
    fn default_fields(&mut self) {
        let Some(spec) = &mut self.spec else { return };
        or(&mut spec.replicas, 1);
        if let Some(template) = &mut spec.template {
            pod::default_template(template);
        }
    }
}

impl Kind for ReplicationController {
    fn default_fields(&mut self) {
        let Some(spec) = &mut self.spec else { return };
        or(&mut spec.replicas, 1);
        if let Some(template) = &mut spec.template {
            pod::default_template(template);
            let labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).filter(|l| !l.is_empty());
            if let Some(labels) = labels {
                for slot in [&mut spec.selector, &mut self.metadata.labels] {
                    if slot.as_ref().is_none_or(|l| l.is_empty()) {
                        *slot = Some(labels.clone());
                    }
                }
            }
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
        // Who names the strategy and says nothing of it gets nothing said.
        if strategy.type_.as_deref().unwrap_or_default().is_empty() {
            strategy.rolling_update.get_or_insert_with(RollingUpdateStatefulSetStrategy::default);
        }
        or_text(&mut strategy.type_, "RollingUpdate");
        if let Some(rolling) = &mut strategy.rolling_update {
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

    #[test]
    fn a_revision_holds_an_object() {
        let of = |data: Value| {
            let revision = json!({"apiVersion": "apps/v1", "kind": "ControllerRevision",
                "metadata": {"name": "a"}, "data": data, "revision": 1});
            errors("apps", "v1", "controllerrevisions", revision)
        };
        assert_eq!(of(json!({"spec": {}})), [""; 0]);
        assert_eq!(of(json!([1])), ["data: Required value: data must be a valid JSON object"]);
        assert_eq!(of(Value::Null), ["data: Required value: data is mandatory"]);
    }

    #[test]
    fn a_node_needs_no_spec() {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}});
        assert_eq!(errors("", "v1", "nodes", node), [""; 0]);
    }
}
