//! What each pod asks of its node: `kube_pod_resource_request` and `kube_pod_resource_limit` at `/metrics/resources`.
//!
//! In Kubernetes the scheduler serves them, at this path of its own. They are several lines a pod, so nothing of them is
//! kept, and they are not among the other metrics: who wants them asks for them.

use decapod_api::kinds::{effective_limits, effective_requests};
use decapod_api::quantity::Quantity;
use decapod_api::status::Error;
use http::{Response, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::TEXT;
use crate::http::{Body, reply};
use crate::registry::reads::{At, Filter, Object};
use crate::registry::{self, core, object};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Amount {
    namespace: String,
    pod: String,
    node: String,
    scheduler: String,
    priority: String,
    resource: String,
    unit: &'static str,
}

type Amounts = Family<Amount, Gauge<f64, std::sync::atomic::AtomicU64>>;

/// The unit of a resource; others have none.
fn unit(resource: &str) -> &'static str {
    match resource {
        "cpu" => "cores",
        "memory" | "storage" | "ephemeral-storage" => "bytes",
        name if name.starts_with("hugepages-") => "bytes",
        name if name.starts_with("attachable-volumes-") => "integer",
        _ => "",
    }
}

/// Adds what one pod asks for. One that has ended asks for nothing.
fn add(pod: &Pod, requests: &Amounts, limits: &Amounts) {
    let Some(spec) = &pod.spec else { return };
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if spec.node_name.is_some() && matches!(phase, Some("Succeeded" | "Failed")) {
        return;
    }
    let whose = Amount {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        pod: pod.metadata.name.clone().unwrap_or_default(),
        node: spec.node_name.clone().unwrap_or_default(),
        scheduler: spec.scheduler_name.clone().unwrap_or_default(),
        priority: spec.priority.map(|priority| priority.to_string()).unwrap_or_default(),
        resource: String::new(),
        unit: "",
    };
    let put = |family: &Amounts, (resource, amount): (String, Quantity)| {
        if !amount.is_zero() {
            let unit = unit(&resource);
            family.get_or_create(&Amount { resource, unit, ..whose.clone() }).set(amount.as_f64());
        }
    };
    effective_requests(spec).into_iter().for_each(|one| put(requests, one));
    effective_limits(spec).into_iter().for_each(|one| put(limits, one));
}

fn text<'a>(pods: impl Iterator<Item = &'a Pod>) -> Result<String, std::fmt::Error> {
    let (requests, limits) = (Amounts::default(), Amounts::default());
    pods.for_each(|pod| add(pod, &requests, &limits));
    let mut registry = Registry::default();
    let help = "Resources requested by workloads on the cluster, broken down by pod. This shows the resource usage the scheduler and kubelet expect per pod for resources along with the unit for the resource if any";
    registry.register("kube_pod_resource_request", help, requests);
    let help = "Resources limit for workloads on the cluster, broken down by pod. This shows the resource usage the scheduler and kubelet expect per pod for resources along with the unit for the resource if any";
    registry.register("kube_pod_resource_limit", help, limits);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// Answers with the resources of all pods there are.
pub(crate) async fn answer(registry: &registry::Registry) -> Result<Response<Body>, Error> {
    let pods = core("pods");
    let prefix = object::prefix(pods, "").ok_or(Error::UnknownPath)?;
    let filter = Filter::default();
    let view = registry.reads.list(pods, &prefix, &filter, At::Newest, None, None).await?;
    let written = tokio::task::spawn_blocking(move || written(&view.items)).await;
    let written = written.map_err(|error| Error::Internal(format!("the pods could not be read: {error}")))?;
    Ok(reply::with_type(StatusCode::OK, TEXT, decapod_api::exposition::classic(&written?)))
}

fn written(pods: &[std::sync::Arc<Object>]) -> Result<String, Error> {
    let parse = |object: &std::sync::Arc<Object>| -> Result<Pod, Error> {
        let parsed = serde_json::from_slice(&object.bytes());
        parsed.map_err(|error| Error::Internal(format!("{}: {error}", object.key())))
    };
    let pods = pods.iter().map(parse).collect::<Result<Vec<Pod>, Error>>()?;
    text(pods.iter()).map_err(|_| Error::Internal("the metrics cannot be written".to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_that_have_not_ended_are_told_with_their_units() {
        let pod = |name: &str, phase: &str| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"name": name, "namespace": "a"}, "status": {"phase": phase},
                "spec": {"nodeName": "n", "schedulerName": "s", "priority": 7, "overhead": {"cpu": "10m"},
                    "containers": [{"name": "c", "resources": {"requests": {"cpu": "240m", "memory": "1Ki"},
                        "limits": {"example.com/x": "2"}}}]}}),
            )
            .unwrap()
        };
        let text = text([pod("runs", "Running"), pod("ended", "Succeeded")].iter()).unwrap();
        let whose = "namespace=\"a\",pod=\"runs\",node=\"n\",scheduler=\"s\",priority=\"7\"";
        for line in [
            format!("kube_pod_resource_request{{{whose},resource=\"cpu\",unit=\"cores\"}} 0.25"),
            format!("kube_pod_resource_request{{{whose},resource=\"memory\",unit=\"bytes\"}} 1024.0"),
            format!("kube_pod_resource_limit{{{whose},resource=\"example.com/x\",unit=\"\"}} 2.0"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("ended"), "{text}");
    }
}
