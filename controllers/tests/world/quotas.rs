//! `[sig-api-machinery] ResourceQuota`: what conformance demands of quotas, each by a test of the entry's own
//! name. That quotas hold whatever the network does is in `limits.rs`.

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ReplicationController, ResourceQuota, Secret, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::limits::{scene, used};
use crate::support::{World, template};

/// Quotas of everything that entries speak of.
const HARD: &[(&str, &str)] = &[
    ("configmaps", "10"),
    ("count/replicasets.apps", "5"),
    ("cpu", "1"),
    ("ephemeral-storage", "50Gi"),
    ("memory", "500Mi"),
    ("persistentvolumeclaims", "10"),
    ("pods", "5"),
    ("replicationcontrollers", "10"),
    ("requests.example.com/dongle", "3"),
    ("requests.storage", "10Gi"),
    ("resourcequotas", "1"),
    ("secrets", "10"),
    ("services", "10"),
    ("services.loadbalancers", "1"),
    ("services.nodeports", "1"),
];

/// Creates the quota of everything and waits until its status says that nothing is used but itself and the Service
/// `kubernetes`, which the API server makes for itself.
async fn quota(world: &World) {
    let hard: serde_json::Map<String, Value> =
        HARD.iter().map(|(name, amount)| ((*name).to_owned(), json!(amount))).collect();
    let object = json!({"metadata": {"name": "q"}, "spec": {"hard": hard}});
    let made: ResourceQuota = world.create(object).await;
    let there = |name: &str| if matches!(name, "resourcequotas" | "services") { "1" } else { "0" };
    let nothing: Vec<_> = HARD.iter().map(|(name, _)| (*name, there(name))).collect();
    used(world, "q", &nothing).await;
    let known = world.of::<ResourceQuota>().get("q").await.unwrap();
    assert_eq!(known.status.unwrap().hard, made.spec.unwrap().hard);
}

async fn remove<K>(world: &World, name: &str)
where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + serde::de::DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    world.of::<K>().delete(name, &DeleteParams::background()).await.unwrap();
}

/// The quota counts an object while it is there.
async fn captured<K>(counted_as: &str, object: Value)
where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + serde::de::DeserializeOwned
        + serde::Serialize
        + Clone
        + std::fmt::Debug,
{
    scene(async |world| {
        quota(world).await;
        let made: K = world.create(object).await;
        used(world, "q", &[(counted_as, "1"), ("resourcequotas", "1")]).await;
        remove::<K>(world, &made.name_any()).await;
        used(world, "q", &[(counted_as, "0"), ("resourcequotas", "1")]).await;
    })
    .await;
}

async fn refused<K>(world: &World, object: Value, why: &str)
where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + serde::de::DeserializeOwned
        + serde::Serialize
        + Clone
        + std::fmt::Debug,
{
    let object: K = serde_json::from_value(object).unwrap();
    let error = world.of::<K>().create(&PostParams::default(), &object).await.unwrap_err();
    let kube::Error::Api(status) = &error else { panic!("{error}") };
    assert!(status.code == 403 && status.message.contains(why), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resource_quota_should_create_a_resource_quota_and_ensure_its_status_is_promptly_calculated() {
    scene(async |world| quota(world).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resource_quota_should_create_a_resource_quota_and_capture_the_life_of_a_config_map() {
    captured::<ConfigMap>("configmaps", json!({"metadata": {"name": "map"}, "data": {"a": "b"}})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resource_quota_should_create_a_resource_quota_and_capture_the_life_of_a_secret() {
    captured::<Secret>("secrets", json!({"metadata": {"name": "secret"}, "stringData": {"a": "b"}})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resource_quota_should_create_a_resource_quota_and_capture_the_life_of_a_replica_set() {
    let spec =
        json!({"replicas": 0, "selector": {"matchLabels": {"app": "web"}}, "template": template("v1")});
    let set = json!({"metadata": {"name": "set"}, "spec": spec});
    captured::<ReplicaSet>("count/replicasets.apps", set).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resource_quota_should_create_a_resource_quota_and_capture_the_life_of_a_replication_controller() {
    let spec = json!({"replicas": 0, "selector": {"app": "web"}, "template": template("v1")});
    let controller = json!({"metadata": {"name": "controller"}, "spec": spec});
    captured::<ReplicationController>("replicationcontrollers", controller).await;
}

fn service(name: &str, type_: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"type": type_, "ports": [{"port": 80}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resource_quota_should_create_a_resource_quota_and_capture_the_life_of_a_service() {
    scene(async |world| {
        quota(world).await;
        world.create::<Service>(service("inside", "ClusterIP")).await;
        world.create::<Service>(service("outside", "NodePort")).await;
        used(world, "q", &[("services", "3"), ("services.nodeports", "1"), ("services.loadbalancers", "0")])
            .await;
        // It would need another node port.
        refused::<Service>(world, service("balanced", "LoadBalancer"), "exceeded quota: q").await;
        for name in ["inside", "outside"] {
            remove::<Service>(world, name).await;
        }
        used(world, "q", &[("services", "1"), ("services.nodeports", "0"), ("services.loadbalancers", "0")])
            .await;
    })
    .await;
}

/// A pod that asks for and may use so much; a deadline makes it a terminating one.
fn pod(name: &str, requests: Value, deadline: Option<u32>) -> Value {
    let mut limits = requests.clone();
    if let Some(cpu) = limits.get_mut("cpu") {
        *cpu = json!("1");
    }
    json!({"metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 0,
        "activeDeadlineSeconds": deadline,
        "containers": [{"name": "c", "image": "i", "resources": {"requests": requests, "limits": limits}}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resource_quota_should_create_a_resource_quota_and_capture_the_life_of_a_pod() {
    scene(async |world| {
        quota(world).await;
        let requests = |cpu: &str, memory: &str, dongles: &str| {
            json!({"cpu": cpu, "memory": memory, "ephemeral-storage": "30Gi", "example.com/dongle": dongles})
        };
        world.create::<Pod>(pod("fits", requests("500m", "252Mi", "2"), None)).await;
        let full = [
            ("pods", "1"),
            ("cpu", "500m"),
            ("memory", "252Mi"),
            ("ephemeral-storage", "30Gi"),
            ("requests.example.com/dongle", "2"),
        ];
        used(world, "q", &full).await;
        for object in [
            pod("much-cpu", requests("600m", "100Mi", "1"), None),
            pod("many-dongles", requests("100m", "100Mi", "2"), None),
        ] {
            refused::<Pod>(world, object, "exceeded quota: q").await;
        }
        let bare = json!({"metadata": {"name": "bare"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        refused::<Pod>(world, bare, "must specify").await;
        let more = json!({"spec": {"containers": [{"name": "c",
            "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "100m"}}}]}});
        let pods = world.of::<Pod>();
        let error = pods.patch("fits", &PatchParams::default(), &Patch::Strategic(more)).await.unwrap_err();
        assert!(matches!(&error, kube::Error::Api(status) if status.code == 422), "{error}");
        used(world, "q", &full).await;
        remove::<Pod>(world, "fits").await;
        used(world, "q", &full.map(|(name, _)| (name, "0"))).await;
    })
    .await;
}

/// What a quota counts, and how much of it a pod uses.
type Counts = [(&'static str, &'static str)];

/// Pods of two kinds, each counted by the quota of its scope alone.
async fn scoped(scopes: [&str; 2], pods: [Value; 2], counts: &Counts) {
    scene(async |world| {
        let zero = |counts: &Counts| counts.iter().map(|(name, _)| (*name, "0")).collect::<Vec<_>>();
        for scope in scopes {
            let name = scope.to_lowercase();
            let hard: serde_json::Map<String, Value> =
                counts.iter().map(|(name, _)| ((*name).to_owned(), json!("5"))).collect();
            let spec = json!({"hard": hard, "scopes": [scope]});
            world.create::<ResourceQuota>(json!({"metadata": {"name": name}, "spec": spec})).await;
            used(world, &name, &zero(counts)).await;
        }
        for (index, pod) in pods.iter().enumerate() {
            let made: Pod = world.create(pod.clone()).await;
            let [own, other] = [index, 1 - index].map(|i| scopes[i].to_lowercase());
            used(world, &own, counts).await;
            used(world, &other, &zero(counts)).await;
            remove::<Pod>(world, &made.name_any()).await;
            used(world, &own, &zero(counts)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resource_quota_should_verify_resource_quota_with_best_effort_scope() {
    let bare = json!({"metadata": {"name": "bare"}, "spec": {"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "i"}]}});
    let asking = pod("asking", json!({"cpu": "500m", "memory": "200Mi"}), None);
    scoped(["BestEffort", "NotBestEffort"], [bare, asking], &[("pods", "1")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resource_quota_should_verify_resource_quota_with_terminating_scopes() {
    let pods = [None, Some(3600)].map(|deadline| pod("p", json!({"cpu": "500m", "memory": "4"}), deadline));
    let counts = [
        ("pods", "1"),
        ("requests.cpu", "500m"),
        ("requests.memory", "4"),
        ("limits.cpu", "1"),
        ("limits.memory", "4"),
    ];
    scoped(["NotTerminating", "Terminating"], pods, &counts).await;
}

/// A small quota, and its `hard` as JSON.
fn small(name: &str, cpu: &str, memory: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"e2e": "quota"}},
        "spec": {"hard": {"cpu": cpu, "memory": memory}}})
}

fn hard_of(quota: &ResourceQuota) -> Value {
    json!(quota.spec.as_ref().unwrap().hard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resource_quota_should_be_able_to_update_and_delete_resource_quota() {
    scene(async |world| {
        let api = world.of::<ResourceQuota>();
        let mut quota: ResourceQuota = world.create(small("q", "1", "500Mi")).await;
        assert_eq!(hard_of(&quota), json!({"cpu": "1", "memory": "500Mi"}));
        let wanted = json!({"cpu": "2", "memory": "1Gi"});
        quota.spec = serde_json::from_value(json!({"hard": wanted})).unwrap();
        // The controller writes its status meanwhile.
        quota.metadata.resource_version = None;
        let updated = api.replace("q", &PostParams::default(), &quota).await.unwrap();
        assert_eq!(hard_of(&updated), wanted);
        assert_eq!(hard_of(&api.get("q").await.unwrap()), wanted);
        remove::<ResourceQuota>(world, "q").await;
        assert!(api.get_opt("q").await.unwrap().is_none());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resource_quota_should_manage_the_lifecycle_of_a_resource_quota() {
    scene(async |world| {
        let api = world.of::<ResourceQuota>();
        world.create::<ResourceQuota>(small("q", "1", "500Mi")).await;
        let selected = ListParams::default().labels("e2e=quota");
        let everywhere: Api<ResourceQuota> = Api::all(world.client.clone());
        assert_eq!(everywhere.list(&selected).await.unwrap().items.len(), 1);
        let patch =
            json!({"metadata": {"labels": {"patched": "yes"}}, "spec": {"hard": {"memory": "750Mi"}}});
        let patched = api.patch("q", &PatchParams::default(), &Patch::Strategic(patch)).await.unwrap();
        assert_eq!(patched.labels()["patched"], "yes");
        assert_eq!(hard_of(&patched), json!({"cpu": "1", "memory": "750Mi"}));
        api.delete_collection(&DeleteParams::default(), &selected).await.unwrap();
        assert!(everywhere.list(&selected).await.unwrap().items.is_empty());
    })
    .await;
}

/// Waits until the status says what the spec says.
async fn agrees(world: &World, wanted: &Value) {
    world
        .until("the status to be as the spec", async || {
            let quota = world.of::<ResourceQuota>().get_status("q").await.unwrap();
            assert_eq!(&hard_of(&quota), wanted, "nobody but the test changes the spec");
            let told = json!(quota.status.unwrap_or_default().hard);
            if told == *wanted { Ok(()) } else { Err(told.to_string()) }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resource_quota_should_apply_changes_to_a_resourcequota_status() {
    scene(async |world| {
        let api = world.of::<ResourceQuota>();
        world.create::<ResourceQuota>(small("q", "500m", "500Mi")).await;
        let first = json!({"cpu": "500m", "memory": "500Mi"});
        agrees(world, &first).await;
        let status = |memory: &str| json!({"status": {"hard": {"cpu": "900m", "memory": memory}}});
        let written = |quota: ResourceQuota, memory: &str| {
            let told = json!(quota.status.unwrap().hard);
            assert_eq!(told, json!({"cpu": "900m", "memory": memory}));
        };
        let mut present = serde_json::to_value(api.get_status("q").await.unwrap()).unwrap();
        present["status"]["hard"] = status("1Gi")["status"]["hard"].clone();
        present["metadata"]["resourceVersion"].take();
        let present: ResourceQuota = serde_json::from_value(present).unwrap();
        written(api.replace_status("q", &PostParams::default(), &present).await.unwrap(), "1Gi");
        agrees(world, &first).await;
        let second = json!({"cpu": "1", "memory": "1Gi"});
        world.patch::<ResourceQuota>("q", json!({"spec": {"hard": second}})).await;
        for memory in ["750Mi", "10Gi"] {
            let patch = Patch::Merge(status(memory));
            written(api.patch_status("q", &PatchParams::default(), &patch).await.unwrap(), memory);
            agrees(world, &second).await;
        }
    })
    .await;
}
