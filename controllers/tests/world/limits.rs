//! Quotas, disruption budgets, storage protection and ranges of Service addresses: what the API server
//! admits and what the controllers keep agree, whatever the network does between them.

use futures::future::join_all;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolumeClaim, Pod, ResourceQuota, Service, ServiceAccount,
};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, EvictParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::faults::{Faults, Rates};
use crate::support::{Bounds, World, deployment, guard};

const BAD: Rates = Rates { refused: 20, conflict: 40, lost: 40, ended: 10, late: 50 };

/// Waits until a quota says that this much is used.
pub(crate) async fn used(world: &World, quota: &str, wanted: &[(&str, &str)]) {
    let what = format!("{wanted:?} to be used");
    world
        .until(&what, async || {
            let quota = world.of::<ResourceQuota>().get(quota).await.unwrap();
            let used = quota.status.and_then(|status| status.used).unwrap_or_default();
            let told = |name: &str| used.get(name).map(|amount| amount.0.as_str());
            let same = wanted.iter().all(|(name, amount)| told(name) == Some(amount));
            if same { Ok(()) } else { Err(format!("{used:?}")) }
        })
        .await;
}

/// A world with controllers, for one test.
pub(crate) async fn scene(test: impl AsyncFnOnce(&World)) {
    let world = World::start().await;
    let controllers = world.controllers(&Faults::new(1, Rates::default(), None));
    account(&world).await;
    test(&world).await;
    world.end(controllers).await;
}

/// Waits for the account under which pods run.
pub(crate) async fn account(world: &World) {
    world
        .until("the account of pods", async || {
            let account = world.of::<ServiceAccount>().get_opt("default").await.unwrap();
            account.map(drop).ok_or_else(String::new)
        })
        .await;
}

async fn pod(world: &World, name: &str) -> kube::Result<Pod> {
    let resources = json!({"requests": {"cpu": "300m"}});
    let object = json!({"metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "i", "resources": resources}]}});
    world.of::<Pod>().create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_follows_the_life_of_what_it_counts() {
    let world = World::start().await;
    let controllers = world.controllers(&Faults::new(21, BAD, None));
    world.create::<ConfigMap>(json!({"metadata": {"name": "before"}})).await;
    let hard = json!({"pods": "20", "requests.cpu": "1", "count/configmaps": "3", "services": "1"});
    world.create::<ResourceQuota>(json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})).await;
    used(&world, "q", &[("pods", "0"), ("requests.cpu", "0"), ("count/configmaps", "1"), ("services", "1")])
        .await;
    account(&world).await;
    let names: Vec<String> = (0..8).map(|i| format!("p{i}")).collect();
    let made = join_all(names.iter().map(|name| pod(&world, name))).await;
    assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 3, "{made:?}");
    used(&world, "q", &[("pods", "3"), ("requests.cpu", "900m")]).await;
    let first = made.into_iter().flatten().next().unwrap().name_any();
    // A name that is taken is charged for, and given back.
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    let service: Service = serde_json::from_value(service).unwrap();
    let refused = world.of::<Service>().create(&PostParams::default(), &service).await.unwrap_err();
    assert!(
        refused.to_string().contains("exceeded quota: q, requested: services=1, used: services=1"),
        "{refused}"
    );
    let again: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "before"}})).unwrap();
    assert!(world.of::<ConfigMap>().create(&PostParams::default(), &again).await.is_err());
    used(&world, "q", &[("count/configmaps", "1")]).await;
    world.of::<Pod>().delete(&first, &DeleteParams::default()).await.unwrap();
    used(&world, "q", &[("pods", "2"), ("requests.cpu", "600m")]).await;
    pod(&world, "one-more").await.unwrap();
    // More is allowed at once where the quota says so.
    world.patch::<ResourceQuota>("q", json!({"spec": {"hard": {"requests.cpu": "2"}}})).await;
    world
        .until("the quota to be raised", async || {
            pod(&world, "after-the-raise").await.map(drop).map_err(|e| e.to_string())
        })
        .await;
    for pod in world.list::<Pod>().await {
        world.of::<Pod>().delete(&pod.name_any(), &DeleteParams::default()).await.unwrap();
    }
    used(&world, "q", &[("pods", "0"), ("requests.cpu", "0"), ("count/configmaps", "1")]).await;
    world.end(controllers).await;
}

/// [sig-apps] DisruptionController should block an eviction until the PDB is updated to allow it; should
/// update/patch PodDisruptionBudget status.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evictions_never_leave_fewer_than_the_budget_says() {
    let world = World::start().await;
    let controllers = world.controllers(&Faults::new(22, BAD, None));
    world.create::<Deployment>(deployment(3, "v1", json!({}))).await;
    world.rolled_out("v1", 3).await;
    let spec = json!({"minAvailable": "60%", "selector": {"matchLabels": {"app": "web"}}});
    world.create::<PodDisruptionBudget>(json!({"metadata": {"name": "b"}, "spec": spec})).await;
    world
        .until("the budget to be known", async || {
            let status = world.of::<PodDisruptionBudget>().get("b").await.unwrap().status.unwrap_or_default();
            let known = status.disruptions_allowed == Some(1)
                && status.expected_pods == Some(3)
                && status.desired_healthy == Some(2);
            if known { Ok(()) } else { Err(format!("{status:?}")) }
        })
        .await;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let guard = tokio::spawn(guard(world.client.clone(), Bounds { at_most: 4, at_least: 2 }, stopped));
    let before: Vec<String> = world.list::<Pod>().await.iter().map(ResourceExt::name_any).collect();
    let api = world.of::<Pod>();
    let drained = before.iter().map(|name| {
        world.until("the eviction", async || match api.evict(name, &EvictParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error.to_string()),
        })
    });
    join_all(drained).await;
    world.rolled_out("v1", 3).await;
    let after: Vec<String> = world.list::<Pod>().await.iter().map(ResourceExt::name_any).collect();
    assert!(after.iter().all(|name| !before.contains(name)), "{before:?} {after:?}");
    let _ = stop.send(());
    guard.await.unwrap();
    world.end(controllers).await;
}

/// [sig-storage] PVC Protection: verify that a PVC in active use by a pod is not removed immediately.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_stays_while_a_pod_uses_it() {
    let world = World::start().await;
    let controllers = world.controllers(&Faults::new(23, BAD, None));
    let claim = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}})
    };
    world.create::<PersistentVolumeClaim>(claim("data")).await;
    world.create::<PersistentVolumeClaim>(claim("idle")).await;
    let user = json!({"metadata": {"name": "user"}, "spec": {"containers": [{"name": "c", "image": "i"}],
        "terminationGracePeriodSeconds": 0,
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}});
    account(&world).await;
    world.create::<Pod>(user).await;
    world
        .until("the pod to have a node", async || {
            let pod = world.of::<Pod>().get("user").await.unwrap();
            pod.spec.and_then(|spec| spec.node_name).map(drop).ok_or_else(String::new)
        })
        .await;
    let claims = world.of::<PersistentVolumeClaim>();
    for name in ["data", "idle"] {
        claims.delete(name, &DeleteParams::default()).await.unwrap();
    }
    let gone = async |name: &str| match claims.get_opt(name).await.unwrap() {
        None => Ok(()),
        Some(claim) => Err(format!("{:?}", claim.metadata.finalizers)),
    };
    world.until("the idle claim to go", async || gone("idle").await).await;
    assert!(gone("data").await.is_err(), "its pod is there");
    world.of::<Pod>().delete("user", &DeleteParams::default()).await.unwrap();
    world.until("the claim to follow its pod", async || gone("data").await).await;
    world.end(controllers).await;
}

/// [sig-network] Service CIDRs: a range gets ready, gives addresses, and stays while they are used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_stays_while_a_service_needs_it() {
    let world = World::start().await;
    let controllers = world.controllers(&Faults::new(24, BAD, None));
    let ranges: Api<ServiceCIDR> = Api::all(world.client.clone());
    let range = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.50.0.0/24"]}});
    ranges.create(&PostParams::default(), &serde_json::from_value(range).unwrap()).await.unwrap();
    let service =
        json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.50.0.9", "ports": [{"port": 80}]}});
    world
        .until("the range to be ready", async || {
            let service: Service = serde_json::from_value(service.clone()).unwrap();
            let made = world.of::<Service>().create(&PostParams::default(), &service).await;
            made.map(drop).map_err(|error| error.to_string())
        })
        .await;
    ranges.delete("more", &DeleteParams::default()).await.unwrap();
    let reason = async || -> Option<Value> {
        let range = serde_json::to_value(ranges.get_opt("more").await.unwrap()?).unwrap();
        Some(range["status"]["conditions"][0]["reason"].clone())
    };
    world
        .until("the range to say why it stays", async || match reason().await {
            Some(reason) if reason == "Terminating" => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    world.of::<Service>().delete("s", &DeleteParams::default()).await.unwrap();
    world
        .until("the range to go", async || match reason().await {
            None => Ok(()),
            Some(reason) => Err(reason.to_string()),
        })
        .await;
    world.end(controllers).await;
}
