//! What each metric of an autoscaler calls for, and how its status tells it: in Kubernetes' words, which people look for
//! in `kubectl describe hpa`.

use std::sync::Arc;

use decapod_api::labels::Selector;
use decapod_api::quantity::Quantity;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscalerBehavior, MetricIdentifier,
    MetricSpec, MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricStatus, PodsMetricStatus,
    ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;

use super::calculate::{self, Figure, Proposal, Target, Tolerance};
use super::samples::Metrics;

/// How far off a figure may be where the autoscaler does not say, as in Kubernetes.
const TOLERANCE: f64 = 0.1;

/// What the figures are about.
pub(super) struct Scene<'a> {
    pub(super) metrics: Metrics<'a>,
    /// The pods of the target.
    pub(super) pods: Vec<Arc<Pod>>,
    pub(super) selector: Selector,
    /// The replicas that the target asks for, and those that it has.
    pub(super) wanted: i32,
    pub(super) present: i32,
    pub(super) tolerance: Tolerance,
    pub(super) now: Timestamp,
}

/// What a metric calls for.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) replicas: i32,
    /// The metric, as Events name it.
    pub(super) name: String,
    pub(super) status: MetricStatus,
}

/// Why a metric calls for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// The reason of the condition and of the Event.
    pub(super) reason: &'static str,
    /// What the condition and the Event say.
    pub(super) message: String,
    /// What the metric as such could not be got for.
    pub(super) context: String,
}

/// The tolerance that an autoscaler asks for.
pub(super) fn tolerance(behavior: Option<&HorizontalPodAutoscalerBehavior>) -> Tolerance {
    let of = |rules: Option<&k8s_openapi::api::autoscaling::v2::HPAScalingRules>| {
        let own = rules.and_then(|rules| rules.tolerance.as_ref());
        own.and_then(|own| own.0.parse::<Quantity>().ok()).map_or(TOLERANCE, |own| own.as_f64())
    };
    Tolerance {
        up: of(behavior.and_then(|both| both.scale_up.as_ref())),
        down: of(behavior.and_then(|both| both.scale_down.as_ref())),
    }
}

/// What a metric calls for.
///
/// # Errors
/// Why it cannot be said.
pub(super) async fn metric(scene: &Scene<'_>, spec: &MetricSpec) -> Result<Call, Failure> {
    let failed =
        |reason: &'static str, context: String| move |message: String| Failure { reason, message, context };
    if let Some(resource) = &spec.resource {
        let context = format!("failed to get {} resource metric value", resource.name);
        let found = of_resource(scene, &resource.name, None, &resource.target).await;
        let (replicas, name, current) = found.map_err(failed("FailedGetResourceMetric", context))?;
        let status = ResourceMetricStatus { name: resource.name.clone(), current };
        return Ok(call(replicas, name, "Resource", MetricStatus { resource: Some(status), ..none() }));
    }
    if let Some(part) = &spec.container_resource {
        let context = format!("failed to get {} container metric value", part.container);
        let found = of_resource(scene, &part.name, Some(&part.container), &part.target).await;
        let (replicas, name, current) = found.map_err(failed("FailedGetContainerResourceMetric", context))?;
        let (name_of, container) = (part.name.clone(), part.container.clone());
        let status = ContainerResourceMetricStatus { name: name_of, container, current };
        let status = MetricStatus { container_resource: Some(status), ..none() };
        return Ok(call(replicas, name, "ContainerResource", status));
    }
    if let Some(pods) = &spec.pods {
        let context = "failed to get pods metric value".to_owned();
        let found = of_pods(scene, &pods.metric, &pods.target).await;
        let (replicas, current) = found.map_err(failed("FailedGetPodsMetric", context))?;
        let (name, metric) = (format!("pods metric {}", pods.metric.name), pods.metric.clone());
        let status = MetricStatus { pods: Some(PodsMetricStatus { metric, current }), ..none() };
        return Ok(call(replicas, name, "Pods", status));
    }
    if let Some(object) = &spec.object {
        let (of, metric) = (&object.described_object, &object.metric);
        let context = "failed to get object metric value".to_owned();
        let path = format!("{}/{}", resource_of(&of.kind, of.api_version.as_deref()), of.name);
        let value = scene.metrics.object(&path, metric).await.map_err(|error| {
            let place = format!("{} {}/{}", of.kind, scene.metrics.namespace, of.name);
            format!("unable to get metric {}: {error} on {place}", metric.name)
        });
        let found = value.and_then(|value| of_value(scene, value, &object.target, "object"));
        let (replicas, current) = found.map_err(failed("FailedGetObjectMetric", context))?;
        let name = format!("{} metric {}", of.kind, metric.name);
        let status = ObjectMetricStatus { current, described_object: of.clone(), metric: metric.clone() };
        return Ok(call(replicas, name, "Object", MetricStatus { object: Some(status), ..none() }));
    }
    if let Some(external) = &spec.external {
        let metric = &external.metric;
        let context = format!("failed to get {} external metric value", metric.name);
        let value = scene.metrics.external(metric).await.map_err(|error| {
            let namespace = scene.metrics.namespace;
            format!("failed to get {0} external metric: unable to get external metric {namespace}/{0}/{1}: {error}", metric.name, selector(metric))
        });
        let found = value.and_then(|value| of_value(scene, value, &external.target, "external"));
        let (replicas, current) = found.map_err(failed("FailedGetExternalMetric", context))?;
        let name = format!("external metric {}({})", metric.name, selector(metric));
        let status = ExternalMetricStatus { current, metric: metric.clone() };
        return Ok(call(replicas, name, "External", MetricStatus { external: Some(status), ..none() }));
    }
    let message = format!("unknown metric source type {:?}", spec.type_);
    Err(Failure { reason: "InvalidMetricSourceType", context: message.clone(), message })
}

/// The status of a metric that could not be got: it holds the place.
pub(super) fn none() -> MetricStatus {
    MetricStatus::default()
}

fn call(replicas: i32, name: String, type_: &str, status: MetricStatus) -> Call {
    Call { replicas, name, status: MetricStatus { type_: type_.to_owned(), ..status } }
}

fn selector(metric: &MetricIdentifier) -> String {
    let selector = metric.selector.as_ref().and_then(|selector| Selector::try_from(selector).ok());
    selector.map_or_else(|| "nil".to_owned(), |selector| selector.to_string())
}

/// The place of a kind in the custom metrics API: `ingresses.networking.k8s.io`. Only the kinds whose names are plural
/// in the usual way have one here.
fn resource_of(kind: &str, api_version: Option<&str>) -> String {
    let lower = kind.to_ascii_lowercase();
    let plural = match lower.as_bytes() {
        [.., b's'] => format!("{lower}es"),
        [stem @ .., b'y'] => format!("{}ies", String::from_utf8_lossy(stem)),
        _ => format!("{lower}s"),
    };
    match api_version.and_then(|version| version.split_once('/')) {
        Some((group, _)) => format!("{plural}.{group}"),
        None => plural,
    }
}

async fn of_resource(
    scene: &Scene<'_>,
    resource: &str,
    container: Option<&str>,
    target: &MetricTarget,
) -> Result<(i32, String, MetricValueStatus), String> {
    let (what, kind, goal) = match (&target.average_value, target.average_utilization) {
        (Some(value), _) => ("usage", "resource", Target::Average(millis(value))),
        (None, Some(share)) if container.is_some() => (
            "utilization",
            "container resource utilization (percentage of request)",
            Target::Utilization(share),
        ),
        (None, Some(share)) => {
            ("utilization", "resource utilization (percentage of request)", Target::Utilization(share))
        }
        (None, None) => {
            let message = "invalid resource metric source: neither an average utilization target nor an average value (usage) target was set";
            return Err(message.to_owned());
        }
    };
    let failed = |error: String| format!("failed to get {resource} {what}: {error}");
    let samples = scene.metrics.resource(resource, &scene.selector, container).await;
    let samples =
        samples.map_err(|error| failed(format!("unable to get metrics for resource {resource}: {error}")))?;
    let figure = Figure { resource: Some(resource), container, target: goal, tolerance: scene.tolerance };
    let found = calculate::by_pods(scene.wanted, figure, samples, &scene.pods, scene.now).map_err(failed)?;
    let Proposal { replicas, average, utilization } = found;
    let amount = if resource == "memory" {
        Quantity::from_bytes(average / 1000)
    } else {
        Quantity::from_millis(average)
    };
    let current = MetricValueStatus {
        average_utilization: utilization,
        average_value: Some(amount.into()),
        value: None,
    };
    Ok((replicas, format!("{resource} {kind}"), current))
}

async fn of_pods(
    scene: &Scene<'_>,
    metric: &MetricIdentifier,
    target: &MetricTarget,
) -> Result<(i32, MetricValueStatus), String> {
    let samples = scene.metrics.pods(metric, &scene.selector).await;
    let samples = samples.map_err(|error| format!("unable to get metric {}: {error}", metric.name))?;
    let goal = Target::Average(target.average_value.as_ref().map_or(0, millis));
    let figure = Figure { resource: None, container: None, target: goal, tolerance: scene.tolerance };
    let found = calculate::by_pods(scene.wanted, figure, samples, &scene.pods, scene.now)?;
    let average = Some(Quantity::from_millis(found.average).into());
    Ok((found.replicas, MetricValueStatus { average_value: average, ..MetricValueStatus::default() }))
}

/// The replicas for a figure that is not measured of each pod.
fn of_value(
    scene: &Scene<'_>,
    value: i64,
    target: &MetricTarget,
    kind: &str,
) -> Result<(i32, MetricValueStatus), String> {
    let status = MetricValueStatus::default();
    match (&target.average_value, &target.value) {
        (Some(goal), _) => {
            let (replicas, share) =
                calculate::by_share(scene.present, (value, millis(goal)), scene.tolerance);
            let share = Some(Quantity::from_millis(share).into());
            Ok((replicas, MetricValueStatus { average_value: share, ..status }))
        }
        (None, Some(goal)) => {
            let both = (value, millis(goal));
            let replicas = calculate::by_value(scene.wanted, both, scene.tolerance, &scene.pods)?;
            let value = Some(Quantity::from_millis(value).into());
            Ok((replicas, MetricValueStatus { value, ..status }))
        }
        (None, None) => Err(format!(
            "invalid {kind} metric source: neither a value target nor an average value target was set"
        )),
    }
}

fn millis(quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> i64 {
    // The API server takes only what can be read.
    quantity.0.parse::<Quantity>().map_or(0, |quantity| quantity.millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_kinds() {
        assert_eq!(resource_of("Ingress", Some("networking.k8s.io/v1")), "ingresses.networking.k8s.io");
        assert_eq!(resource_of("Service", Some("v1")), "services");
        assert_eq!(
            resource_of("NetworkPolicy", Some("networking.k8s.io/v1")),
            "networkpolicies.networking.k8s.io"
        );
    }
}
