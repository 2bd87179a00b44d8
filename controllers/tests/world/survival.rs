//! What the controllers keep that keep no pods, through a death at every write over a bad network: namespaces and their
//! accounts, dependents, quotas, budgets, endpoints, autoscalers, taints of nodes, and Jobs that have had their time.
//! Whoever comes next finds out what the one before did.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, Pod, ResourceQuota, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::faults::{Faults, Rates};
use crate::limits::account;
use crate::support::{World, deployment, is_available};

/// Lives of the controllers: each ends at another write.
const LIVES: i64 = 21;

/// The network of the lives.
const BAD: Rates = Rates { refused: 10, conflict: 20, lost: 40, ended: 20, late: 100 };

/// How many pods the autoscaler asks for at least.
const PODS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_survives_a_death_at_every_write() {
    let world = World::start().await;
    let none = Faults::new(1, Rates::default(), None);
    let healthy = world.controllers(&none);
    account(&world).await;
    standing(&world).await;
    healthy.shutdown(Duration::ZERO).await;
    none.quiet().await;
    for life in 1..=LIVES {
        change(&world, life).await;
        let faults = Faults::new(life.unsigned_abs(), BAD, Some(life % 8 + 1));
        let doomed = world.controllers(&faults);
        // A life that has nothing left to write ends all the same.
        tokio::select! {
            () = faults.death() => {}
            () = settled(&world, life) => {}
        }
        doomed.shutdown(Duration::ZERO).await;
        faults.quiet().await;
    }
    let healthy = world.controllers(&none);
    settled(&world, LIVES).await;
    world.end(healthy).await;
}

/// What is there all the time.
async fn standing(world: &World) {
    world.create::<Deployment>(deployment(2, "v1", json!({}))).await;
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"});
    let range = json!({"minReplicas": PODS, "maxReplicas": PODS + 2, "scaleTargetRef": target});
    world.create::<HorizontalPodAutoscaler>(json!({"metadata": {"name": "web"}, "spec": range})).await;
    let ports = json!({"selector": {"app": "web"}, "ports": [{"port": 80}]});
    world.create::<Service>(json!({"metadata": {"name": "web"}, "spec": ports})).await;
    let budget = json!({"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}});
    world.create::<PodDisruptionBudget>(json!({"metadata": {"name": "web"}, "spec": budget})).await;
    let hard = json!({"pods": "100", "count/configmaps": "100"});
    world.create::<ResourceQuota>(json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})).await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let node = serde_json::from_value(json!({"metadata": {"name": "n2"}})).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
}

/// What happens before a life: something comes, something goes, something changes.
async fn change(world: &World, life: i64) {
    let spaces: Api<Namespace> = Api::all(world.client.clone());
    let space = serde_json::from_value(json!({"metadata": {"name": format!("ns-{life}")}})).unwrap();
    spaces.create(&PostParams::default(), &space).await.unwrap();
    if let Some(gone) = spaces.get_opt(&format!("ns-{}", life - 1)).await.unwrap() {
        spaces.delete(&gone.name_any(), &DeleteParams::default()).await.unwrap();
    }
    let owner: ConfigMap = world.create(json!({"metadata": {"name": format!("owner-{life}")}})).await;
    let reference = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": owner.name_any(), "uid": owner.uid(),
        "blockOwnerDeletion": true}]);
    let child = json!({"metadata": {"name": format!("child-{life}"), "ownerReferences": reference}});
    world.create::<ConfigMap>(child).await;
    let earlier = format!("owner-{}", life - 1);
    if world.of::<ConfigMap>().get_opt(&earlier).await.unwrap().is_some() {
        let how = if life % 2 == 0 { PropagationPolicy::Foreground } else { PropagationPolicy::Background };
        let how = DeleteParams { propagation_policy: Some(how), ..DeleteParams::default() };
        world.of::<ConfigMap>().delete(&earlier, &how).await.unwrap();
    }
    let template = json!({"metadata": {"annotations": {"exit": "0"}}, "spec": {"restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "i"}]}});
    let brief = json!({"ttlSecondsAfterFinished": 0, "template": template});
    world.create::<Job>(json!({"metadata": {"name": format!("brief-{life}")}, "spec": brief})).await;
    // The autoscaler looks at it anew whenever a life begins.
    world.patch::<Deployment>("web", json!({"spec": {"replicas": 2}})).await;
    let ready = if life % 2 == 0 { "True" } else { "False" };
    let nodes: Api<Node> = Api::all(world.client.clone());
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
    nodes.patch_status("n2", &PatchParams::default(), &Patch::Merge(ready)).await.unwrap();
}

async fn settled(world: &World, life: i64) {
    world.until(&format!("life {life}"), async || whole(world, life).await).await;
}

/// Whether all is as it has to be; else what is not.
async fn whole(world: &World, life: i64) -> Result<(), String> {
    same(
        "namespaces",
        &names::<Namespace>(Api::all(world.client.clone()), "ns-").await,
        &[format!("ns-{life}")][..],
    )?;
    let accounts: Api<ServiceAccount> = Api::namespaced(world.client.clone(), &format!("ns-{life}"));
    same("accounts", &names(accounts, "").await, &["default"][..])?;
    let maps = [format!("child-{life}"), format!("owner-{life}")];
    same("ConfigMaps", &names::<ConfigMap>(world.of(), "").await, &maps[..])?;
    same("Jobs", &names::<Job>(world.of(), "").await, &[""; 0][..])?;
    let pods: Vec<Pod> = world.list().await;
    same("available pods", &pods.iter().filter(|pod| is_available(pod)).count(), &PODS)?;
    same("pods", &pods.len(), &PODS)?;
    let scaled = world.of::<Deployment>().get("web").await.unwrap();
    same("replicas", &json!(scaled.spec.unwrap().replicas), &json!(PODS))?;
    let quota = world.of::<ResourceQuota>().get("q").await.unwrap();
    let used = json!(quota.status.unwrap_or_default().used);
    same("the quota", &used, &json!({"pods": PODS.to_string(), "count/configmaps": "2"}))?;
    let budget = world.of::<PodDisruptionBudget>().get("web").await.unwrap().status.unwrap_or_default();
    let count = i32::try_from(PODS).unwrap();
    let told = (budget.expected_pods, budget.current_healthy, budget.disruptions_allowed);
    same("the budget", &told, &(Some(count), Some(count), Some(count - 1)))?;
    reached(world, &pods).await?;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let taints = nodes.get("n2").await.unwrap().spec.unwrap_or_default().taints.unwrap_or_default();
    let tainted = taints.iter().any(|taint| {
        (taint.key.as_str(), taint.effect.as_str()) == ("node.kubernetes.io/not-ready", "NoSchedule")
    });
    same("the taint", &tainted, &(life % 2 != 0))
}

/// Whether the Service leads to these pods and no others, in one slice and in the Endpoints.
async fn reached(world: &World, pods: &[Pod]) -> Result<(), String> {
    let wanted: BTreeSet<Option<String>> =
        pods.iter().map(|pod| pod.status.as_ref().and_then(|status| status.pod_ip.clone())).collect();
    let of_it = ListParams::default().labels("kubernetes.io/service-name=web");
    let slices = world.of::<EndpointSlice>().list(&of_it).await.unwrap().items;
    same("slices", &slices.len(), &1)?;
    let there: BTreeSet<_> =
        slices[0].endpoints.iter().flatten().map(|one| one.addresses.first().cloned()).collect();
    same("the slice", &there, &wanted)?;
    let old = world.of::<Endpoints>().get_opt("web").await.unwrap();
    let subsets = old.and_then(|old| old.subsets).unwrap_or_default();
    let there = subsets.iter().flat_map(|one| one.addresses.iter().flatten()).map(|one| Some(one.ip.clone()));
    same("the Endpoints", &there.collect::<BTreeSet<_>>(), &wanted)
}

/// The names of all objects that begin so, less those that every namespace has.
async fn names<K>(api: Api<K>, prefix: &str) -> Vec<String>
where
    K: kube::Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug,
{
    let all = api.list(&ListParams::default()).await.unwrap().items;
    let names = all.iter().map(ResourceExt::name_any);
    names.filter(|name| name.starts_with(prefix) && name != "kube-root-ca.crt").collect()
}

/// Whether this is as it is to be; else what it is.
fn same<A, B>(what: &str, there: &A, wanted: &B) -> Result<(), String>
where
    A: PartialEq<B> + Debug,
    B: Debug + ?Sized,
{
    if there == wanted { Ok(()) } else { Err(format!("{what}: {there:?}, not {wanted:?}")) }
}
