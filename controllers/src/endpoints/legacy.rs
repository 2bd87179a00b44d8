//! The Endpoints object of a Service, which older clients and `kubectl describe` still read.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::plan::{self, HEADLESS_LABEL};
use super::subsets;
use super::trigger::ANNOTATION;
use crate::common::pods;

const MANAGED_LABEL: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

/// The Endpoints that the Service should have, because of something that happened at `trigger`.
pub(super) fn endpoints(service: &Service, pods: &[Arc<Pod>], trigger: Option<Timestamp>) -> Endpoints {
    let spec = service.spec.as_ref();
    let publishes_all = spec.and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let serving = pods.iter().filter(|pod| !pods::is_terminal(pod));
    let serving = serving.filter(|pod| publishes_all || pod.metadata.deletion_timestamp.is_none());
    let each: Vec<_> = serving.filter_map(|pod| subset(service, pod, publishes_all)).collect();
    let mut subsets = subsets::repack(&each);
    let truncated =
        subsets::truncate(&mut subsets).then(|| (OVER_CAPACITY.to_owned(), "truncated".to_owned()));
    let trigger = trigger.map(|time| (ANNOTATION.to_owned(), time.to_string()));
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS_LABEL);
    if plan::is_headless(service) {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    labels.insert(MANAGED_LABEL.to_owned(), MANAGER.to_owned());
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.namespace(),
            labels: Some(labels),
            annotations: Some(trigger.into_iter().chain(truncated).collect()),
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

/// Whether Endpoints were made here.
pub(super) fn is_ours(endpoints: &Endpoints) -> bool {
    endpoints.labels().get(MANAGED_LABEL).is_some_and(|manager| manager == MANAGER)
}

/// What has to be written instead of the present Endpoints; `None` if they are as they should be.
pub(super) fn update(present: &Endpoints, wanted: &Endpoints) -> Option<Endpoints> {
    let over = |endpoints: &Endpoints| endpoints.annotations().contains_key(OVER_CAPACITY);
    let subsets = |endpoints: &Endpoints| endpoints.subsets.clone().unwrap_or_default();
    let packed = subsets::repack(&subsets(present));
    let equal = present.labels() == wanted.labels()
        && (subsets(present) == subsets(wanted) || packed == subsets(wanted))
        && over(present) == over(wanted);
    if equal {
        return None;
    }
    let mut update = present.clone();
    update.metadata.labels.clone_from(&wanted.metadata.labels);
    let annotations: &mut BTreeMap<_, _> = update.metadata.annotations.get_or_insert_default();
    annotations.remove(OVER_CAPACITY);
    annotations.remove(ANNOTATION);
    annotations.extend(wanted.annotations().clone());
    update.subsets.clone_from(&wanted.subsets);
    Some(update)
}

/// One pod as a subset of its own.
fn subset(service: &Service, pod: &Pod, publishes_all: bool) -> Option<EndpointSubset> {
    let address = address(service, pod)?;
    let ports = plan::ports(service, pod).into_iter().filter_map(|(name, port, protocol, app_protocol)| {
        Some(EndpointPort { name, port: port?, protocol, app_protocol })
    });
    let ports: Vec<_> = ports.collect();
    let has_none = service.spec.as_ref().is_none_or(|spec| spec.ports.as_ref().is_none_or(Vec::is_empty));
    if ports.is_empty() && !(has_none && plan::is_headless(service)) {
        return None;
    }
    let (mut ready, mut unready) = (None, None);
    *(if publishes_all || pods::is_ready(pod) { &mut ready } else { &mut unready }) = Some(vec![address]);
    Some(EndpointSubset { addresses: ready, not_ready_addresses: unready, ports: Some(ports) })
}

/// The pod's address in the Service's first family.
fn address(service: &Service, pod: &Pod) -> Option<EndpointAddress> {
    let family = plan::families(service).first().copied()?;
    let (_, ip) = plan::addresses(pod).into_iter().find(|(of, _)| *of == family)?;
    Some(EndpointAddress {
        ip,
        hostname: plan::hostname(service, pod),
        node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        target_ref: Some(plan::reference(pod)),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "labels": {"a": "b"}},
            "spec": {"clusterIP": "10.96.0.5", "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]},
        }))
        .unwrap()
    }

    fn pod(name: &str, ip: &str, ready: bool) -> Arc<Pod> {
        let mut pod = pods::testing::pod(name, ready.then_some(Timestamp::UNIX_EPOCH));
        pod.status.as_mut().unwrap().pod_ip = Some(ip.to_owned());
        Arc::new(pod)
    }

    #[test]
    fn ready_and_unready_addresses_share_a_subset() {
        let pods = [pod("b", "10.1.0.2", true), pod("a", "10.1.0.1", true), pod("c", "10.1.0.3", false)];
        let wanted = endpoints(&service(), &pods, Some(Timestamp::UNIX_EPOCH));
        let written = serde_json::to_value(&wanted).unwrap();
        assert_eq!(written["metadata"]["labels"], json!({"a": "b", MANAGED_LABEL: MANAGER}));
        assert_eq!(written["metadata"]["annotations"], json!({ANNOTATION: "1970-01-01T00:00:00Z"}));
        let subset = &written["subsets"][0];
        assert_eq!(subset["addresses"][0]["ip"], "10.1.0.1");
        assert_eq!(subset["addresses"][1]["targetRef"]["name"], "b");
        assert_eq!(subset["notReadyAddresses"][0]["ip"], "10.1.0.3");
        assert_eq!(subset["ports"], json!([{"port": 8080, "protocol": "TCP"}]));
        assert_eq!(update(&wanted, &endpoints(&service(), &pods, None)), None, "the time alone is no change");
    }

    #[test]
    fn other_annotations_survive_an_update() {
        let mut present = endpoints(&service(), &[], Some(Timestamp::UNIX_EPOCH));
        present.metadata.annotations.as_mut().unwrap().insert("team".into(), "x".into());
        let wanted = endpoints(&service(), &[pod("a", "10.1.0.1", true)], None);
        let written = update(&present, &wanted).unwrap();
        assert_eq!(written.annotations().keys().collect::<Vec<_>>(), ["team"]);
    }
}
