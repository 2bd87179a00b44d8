//! Autoscaling and disruption.

use k8s_openapi::api::autoscaling::{v1, v2};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use super::{Kind, or, or_text};

super::plain!(PodDisruptionBudget);

impl Kind for v1::HorizontalPodAutoscaler {
    fn default_fields(&mut self) {
        or(&mut self.spec.min_replicas, 1);
    }
}

impl Kind for v2::HorizontalPodAutoscaler {
    fn default_fields(&mut self) {
        const CPU_TARGET: i32 = 80;
        let spec = &mut self.spec;
        or(&mut spec.min_replicas, 1);
        if spec.metrics.as_ref().is_none_or(Vec::is_empty) {
            let target = v2::MetricTarget {
                type_: "Utilization".to_owned(),
                average_utilization: Some(CPU_TARGET),
                ..Default::default()
            };
            let resource = v2::ResourceMetricSource { name: "cpu".to_owned(), target };
            let metric = v2::MetricSpec {
                type_: "Resource".to_owned(),
                resource: Some(resource),
                ..Default::default()
            };
            spec.metrics = Some(vec![metric]);
        }
        if let Some(behavior) = &mut spec.behavior {
            default_rules(
                behavior.scale_up.get_or_insert_default(),
                Some(0),
                &[("Pods", 4), ("Percent", 100)],
            );
            default_rules(behavior.scale_down.get_or_insert_default(), None, &[("Percent", 100)]);
        }
    }
}

/// Fills in how fast to scale: the larger of these amounts every 15 seconds.
fn default_rules(rules: &mut v2::HPAScalingRules, window: Option<i32>, policies: &[(&str, i32)]) {
    const PERIOD: i32 = 15;
    or_text(&mut rules.select_policy, "Max");
    rules.stabilization_window_seconds = rules.stabilization_window_seconds.or(window);
    if rules.policies.is_none() {
        let policy = |(type_, value): &(&str, i32)| v2::HPAScalingPolicy {
            type_: (*type_).to_owned(),
            value: *value,
            period_seconds: PERIOD,
        };
        rules.policies = Some(policies.iter().map(policy).collect());
    }
}
