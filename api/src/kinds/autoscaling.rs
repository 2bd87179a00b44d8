//! Autoscaling and disruption.

use k8s_openapi::api::autoscaling::{v1, v2};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use super::{Kind, or};
use crate::field::{Error, Path};

super::plain!(v1::HorizontalPodAutoscaler);

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
    }

    fn validate(&self, _old: Option<&Self>, errors: &mut Vec<Error>) {
        let path = Path::new("spec");
        let spec = &self.spec;
        if spec.max_replicas < 1 {
            errors.push(Error::invalid(
                &path.child("maxReplicas"),
                spec.max_replicas,
                "must be greater than 0",
            ));
        }
        if spec.min_replicas.is_some_and(|min| min > spec.max_replicas) {
            errors.push(Error::invalid(
                &path.child("maxReplicas"),
                spec.max_replicas,
                "must be greater than or equal to `minReplicas`",
            ));
        }
        for (field, value) in [("kind", &spec.scale_target_ref.kind), ("name", &spec.scale_target_ref.name)] {
            if value.is_empty() {
                errors.push(Error::required(&path.child("scaleTargetRef").child(field), ""));
            }
        }
    }
}

impl Kind for PodDisruptionBudget {
    fn validate(&self, _old: Option<&Self>, errors: &mut Vec<Error>) {
        let path = Path::new("spec");
        if self.spec.as_ref().is_some_and(|s| s.min_available.is_some() && s.max_unavailable.is_some()) {
            errors.push(Error::invalid(&path, "", "minAvailable and maxUnavailable cannot be both set"));
        }
    }
}
