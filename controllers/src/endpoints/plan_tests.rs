//! Slices of Services, planned and applied without a cluster.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerPort, PodIP};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::*;
use crate::common::pods::testing;

fn service(more: serde_json::Value) -> Service {
    let mut spec = json!({"clusterIP": "10.96.0.5", "selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80, "targetPort": 8080}]});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns", "uid": "s"}, "spec": spec}))
        .unwrap()
}

fn pod(index: usize, ready: bool) -> Pod {
    let mut pod = testing::pod(&format!("p{index:03}"), ready.then_some(Timestamp::UNIX_EPOCH));
    let status = pod.status.as_mut().unwrap();
    status.pod_ip = Some(format!("10.244.{}.{}", index / 200, index % 200 + 2));
    status.pod_ips = Some(vec![PodIP { ip: status.pod_ip.clone().unwrap() }]);
    pod
}

fn zoned() -> Node {
    serde_json::from_value(json!({"metadata": {"name": "n1", "labels": {ZONE_LABEL: "z1"}}})).unwrap()
}

fn plan_for(service: &Service, pods: &[Pod], present: &[Arc<EndpointSlice>]) -> Plan {
    let pods: Vec<_> = pods.iter().cloned().map(Arc::new).collect();
    plan(service, &pods, |name| (name == "n1").then(|| Arc::new(zoned())), present)
}

/// Applies a plan to the slices, as the API server would.
fn applied(present: &[Arc<EndpointSlice>], plan: Plan, names: &mut usize) -> Vec<Arc<EndpointSlice>> {
    let gone: BTreeSet<_> = plan.delete.iter().map(|slice| slice.name_any()).collect();
    let mut slices: Vec<_> =
        present.iter().filter(|slice| !gone.contains(&slice.name_any())).cloned().collect();
    for update in plan.update {
        let known = slices.iter_mut().find(|slice| slice.metadata.name == update.metadata.name);
        *known.unwrap() = Arc::new(update);
    }
    for mut slice in plan.create {
        *names += 1;
        slice.metadata.name = Some(format!("web-{names}"));
        slices.push(Arc::new(slice));
    }
    slices
}

fn addresses_of(slices: &[Arc<EndpointSlice>]) -> Vec<String> {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let mut addresses: Vec<_> = endpoints.map(|endpoint| endpoint.addresses[0].clone()).collect();
    addresses.sort();
    addresses
}

#[test]
fn ready_unready_and_terminating_pods_are_told_apart() {
    let mut leaving = pod(2, true);
    leaving.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    let mut ended = pod(3, false);
    ended.status.as_mut().unwrap().phase = Some("Succeeded".into());
    let plan = plan_for(&service(json!({})), &[pod(0, true), pod(1, false), leaving, ended], &[]);
    let conditions: Vec<_> = plan.create[0]
        .endpoints
        .iter()
        .flatten()
        .map(|endpoint| endpoint.conditions.clone().unwrap())
        .map(|conditions| {
            (conditions.ready.unwrap(), conditions.serving.unwrap(), conditions.terminating.unwrap())
        })
        .collect();
    assert_eq!(conditions, [(true, true, false), (false, false, false), (false, true, true)]);
    let slice = &plan.create[0];
    assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
    assert_eq!(slice.labels()[SERVICE_LABEL], "web");
    let all = plan_for(&service(json!({"publishNotReadyAddresses": true})), &[pod(1, false)], &[]);
    assert_eq!(all.create[0].endpoints.as_ref().unwrap()[0].conditions.as_ref().unwrap().ready, Some(true));
}

#[test]
fn a_settled_service_needs_nothing_and_one_change_is_one_write() {
    let (service, mut names) = (service(json!({})), 0);
    let mut pods: Vec<_> = (0..250).map(|index| pod(index, true)).collect();
    let slices = applied(&[], plan_for(&service, &pods, &[]), &mut names);
    assert_eq!(slices.len(), 3);
    let plan = plan_for(&service, &pods, &slices);
    assert!(plan.create.is_empty() && plan.update.is_empty() && plan.delete.is_empty());
    pods[7] = pod(7, false);
    let plan = plan_for(&service, &pods, &slices);
    assert_eq!((plan.create.len(), plan.update.len(), plan.delete.len()), (0, 1, 0));
    pods.remove(120);
    pods.push(pod(300, true));
    let slices = applied(&slices, plan_for(&service, &pods, &slices), &mut names);
    assert_eq!(addresses_of(&slices).len(), 250);
    assert!(slices.iter().all(|slice| slice.endpoints.as_ref().unwrap().len() <= SLICE_LIMIT));
}

#[test]
fn without_pods_an_empty_slice_says_so() {
    let (service, mut names) = (service(json!({})), 0);
    let slices = applied(&[], plan_for(&service, &[], &[]), &mut names);
    assert_eq!((slices.len(), addresses_of(&slices).len()), (1, 0));
    let plan = plan_for(&service, &[], &slices);
    assert!(plan.create.is_empty() && plan.update.is_empty() && plan.delete.is_empty());
    let slices = applied(&slices, plan_for(&service, &[pod(0, true)], &slices), &mut names);
    assert_eq!((slices.len(), addresses_of(&slices).len()), (1, 1));
    let slices = applied(&slices, plan_for(&service, &[], &slices), &mut names);
    assert_eq!((slices.len(), addresses_of(&slices).len()), (1, 0), "the last slice is emptied, not deleted");
    assert!(plan_for(&service, &[], &slices).update.is_empty());
}

#[test]
fn named_ports_are_looked_up_in_each_pod() {
    let service = service(json!({"ports": [{"port": 80, "targetPort": "web"}]}));
    let with_port = |index: usize, number: i32| {
        let mut pod = pod(index, true);
        let port =
            ContainerPort { name: Some("web".into()), container_port: number, ..ContainerPort::default() };
        let container = Container { ports: Some(vec![port]), ..Container::default() };
        pod.spec.as_mut().unwrap().containers = vec![container];
        pod
    };
    let plan = plan_for(&service, &[with_port(0, 8080), with_port(1, 9090), with_port(2, 8080)], &[]);
    let mut sizes: Vec<_> = plan
        .create
        .iter()
        .map(|slice| {
            (slice.ports.as_ref().unwrap()[0].port.unwrap(), slice.endpoints.as_ref().unwrap().len())
        })
        .collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [(8080, 2), (9090, 1)]);
}

#[test]
fn headless_members_have_host_names() {
    let service = service(json!({"clusterIP": "None", "ports": []}));
    let mut member = pod(0, true);
    let spec = member.spec.as_mut().unwrap();
    (spec.hostname, spec.subdomain) = (Some("db-0".into()), Some("web".into()));
    let plan = plan_for(&service, &[member], &[]);
    assert_eq!(plan.create[0].endpoints.as_ref().unwrap()[0].hostname.as_deref(), Some("db-0"));
    assert_eq!(plan.create[0].labels()[HEADLESS_LABEL], "");
}

#[test]
fn slices_of_an_earlier_service_go_and_changed_ports_reuse_the_slice() {
    let (old, mut names) = (service(json!({})), 0);
    let pods = [pod(0, true)];
    let slices = applied(&[], plan_for(&old, &pods, &[]), &mut names);
    let changed = service(json!({"ports": [{"name": "http", "port": 80, "targetPort": 9090}]}));
    let plan = plan_for(&changed, &pods, &slices);
    assert_eq!((plan.create.len(), plan.update.len(), plan.delete.len()), (0, 1, 0));
    assert_eq!(plan.update[0].ports.as_ref().unwrap()[0].port, Some(9090));
    let mut anew = service(json!({}));
    anew.metadata.uid = Some("s2".into());
    let plan = plan_for(&anew, &pods, &slices);
    assert_eq!((plan.create.len(), plan.update.len(), plan.delete.len()), (1, 0, 1));
}

#[test]
fn hints_keep_traffic_close_and_pods_of_unknown_nodes_wait() {
    let near = service(json!({"trafficDistribution": "PreferSameNode"}));
    let mut lost = pod(1, true);
    lost.spec.as_mut().unwrap().node_name = Some("n2".into());
    let plan = plan_for(&near, &[pod(0, true), lost.clone(), pod(2, false)], &[]);
    assert!(plan.incomplete);
    let hints: Vec<_> = plan.create[0].endpoints.iter().flatten().map(|one| one.hints.clone()).collect();
    assert_eq!(hints.len(), 2, "the lost pod waits for its node");
    let near = hints[0].as_ref().unwrap();
    assert_eq!(near.for_zones.as_ref().unwrap()[0].name, "z1");
    assert_eq!(near.for_nodes.as_ref().unwrap()[0].name, "n1");
    assert_eq!(hints[1], None, "unready endpoints get no traffic to keep close");
    let all = plan_for(&service(json!({"publishNotReadyAddresses": true})), &[lost], &[]);
    assert_eq!((all.incomplete, all.create[0].endpoints.as_ref().unwrap().len()), (false, 1));
}

proptest::proptest! {
    /// Whatever pods come and go, the slices hold each address once, none is too large, and a second plan
    /// finds nothing to do.
    #[test]
    fn slices_always_hold_exactly_the_pods(rounds in proptest::collection::vec(
        proptest::collection::btree_set(0..230_usize, 0..230), 1..5))
    {
        let (service, mut names, mut slices) = (service(json!({})), 0, Vec::new());
        for round in rounds {
            let pods: Vec<_> = round.iter().map(|index| pod(*index, index % 3 > 0)).collect();
            slices = applied(&slices, plan_for(&service, &pods, &slices), &mut names);
            let mut expected: Vec<_> =
                pods.iter().map(|pod| pod.status.as_ref().unwrap().pod_ip.clone().unwrap()).collect();
            expected.sort();
            proptest::prop_assert_eq!(addresses_of(&slices), expected);
            proptest::prop_assert!(slices.iter().all(|slice| slice.endpoints.as_ref().unwrap().len() <= SLICE_LIMIT));
            let again = plan_for(&service, &pods, &slices);
            proptest::prop_assert!(again.create.is_empty() && again.update.is_empty() && again.delete.is_empty());
        }
    }
}
