//! Deletion with its ways of propagation, on a real API server.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Pod, ReplicationController};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::faults::{Faults, Rates};
use crate::support::{World, deployment, template};

const BAD: Rates = Rates { refused: 20, conflict: 40, lost: 40, ended: 10, late: 50 };

async fn gone<K>(world: &World) -> Result<(), String>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + serde::de::DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    let left: Vec<K> = world.list().await;
    if left.is_empty() { Ok(()) } else { Err(format!("{} are left", left.len())) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreground_background_and_orphan_do_what_they_say() {
    let world = World::start().await;
    let controllers = world.controllers(&Faults::new(11, BAD, None));
    world.create::<Deployment>(deployment(2, "v1", json!({}))).await;
    world.rolled_out("v1", 2).await;
    let api = world.of::<Deployment>();
    api.delete("web", &DeleteParams::orphan()).await.unwrap();
    world
        .until("the ReplicaSet to be an orphan", async || {
            let sets: Vec<ReplicaSet> = world.list().await;
            assert_eq!(sets.len(), 1, "orphans stay");
            if sets[0].owner_references().is_empty() { Ok(()) } else { Err("it is owned".to_owned()) }
        })
        .await;
    // The same Deployment adopts it again, once the first is gone.
    world
        .until("the orphaning Deployment to go", async || match api.get_opt("web").await.unwrap() {
            None => Ok(()),
            Some(web) => Err(format!("{:?}", web.metadata)),
        })
        .await;
    world.create::<Deployment>(deployment(2, "v1", json!({}))).await;
    world.rolled_out("v1", 2).await;
    assert_eq!(world.list::<ReplicaSet>().await.len(), 1);
    api.delete("web", &DeleteParams::foreground()).await.unwrap();
    world
        .until("the owner to go after its dependents", async || {
            let sets = world.list::<ReplicaSet>().await.len();
            let owner = api.get_opt("web").await.unwrap();
            if owner.is_none() {
                assert!(gone::<ReplicaSet>(&world).await.is_ok(), "the owner went first");
                return Ok(());
            }
            Err(format!("{sets} ReplicaSets"))
        })
        .await;
    world.until("no pod", async || gone::<Pod>(&world).await).await;
    world.create::<Deployment>(deployment(2, "v2", json!({}))).await;
    world.rolled_out("v2", 2).await;
    api.delete("web", &DeleteParams::background()).await.unwrap();
    world.until("no ReplicaSet", async || gone::<ReplicaSet>(&world).await).await;
    world.until("no pod", async || gone::<Pod>(&world).await).await;
    world.end(controllers).await;
}

fn owned(name: &str, owners: &[(&ConfigMap, bool)]) -> serde_json::Value {
    let reference = |(owner, blocks): &(&ConfigMap, bool)| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "name": owner.name_any(), "uid": owner.uid(),
            "blockOwnerDeletion": blocks})
    };
    json!({"metadata": {"name": name, "ownerReferences": owners.iter().map(reference).collect::<Vec<_>>()}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_owners_and_circles() {
    let world = World::start().await;
    let controllers = world.controllers(&Faults::new(13, BAD, None));
    let api = world.of::<ConfigMap>();
    let first: ConfigMap = world.create(json!({"metadata": {"name": "first"}})).await;
    let second: ConfigMap = world.create(json!({"metadata": {"name": "second"}})).await;
    world.create::<ConfigMap>(owned("both", &[(&first, true), (&second, true)])).await;
    world.create::<ConfigMap>(owned("one", &[(&first, true)])).await;
    api.delete("first", &DeleteParams::foreground()).await.unwrap();
    world
        .until("the first owner to go", async || match api.get_opt("first").await.unwrap() {
            None => Ok(()),
            Some(first) => Err(format!("{:?}", first.metadata)),
        })
        .await;
    assert!(api.get_opt("one").await.unwrap().is_none(), "a blocking dependent outlived its owner");
    let both = api.get("both").await.unwrap();
    let left: Vec<_> = both.owner_references().iter().map(|owner| owner.name.clone()).collect();
    assert_eq!(left, ["second"]);
    // a -> b -> c -> a, all blocking.
    let mut circle: Vec<ConfigMap> = Vec::new();
    for name in ["a", "b", "c"] {
        let owner = circle.last().map(|owner| (owner, true));
        circle.push(world.create(owned(name, owner.as_slice())).await);
    }
    let closing = owned("a", &[(&circle[2], true)]);
    world.patch::<ConfigMap>("a", closing).await;
    api.delete("b", &DeleteParams::foreground()).await.unwrap();
    world
        .until("the circle to be gone", async || {
            let names: Vec<_> = world.list::<ConfigMap>().await.iter().map(|one| one.name_any()).collect();
            if ["a", "b", "c"].iter().any(|name| names.contains(&(*name).to_owned())) {
                Err(format!("{names:?}"))
            } else {
                Ok(())
            }
        })
        .await;
    world.end(controllers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_in_another_namespace_counts_for_nothing_and_is_warned_of() {
    let world = World::start().await;
    let controllers = world.controllers(&Faults::new(17, Rates::default(), None));
    let namespace = serde_json::from_value(json!({"metadata": {"name": "other"}})).unwrap();
    Api::<Namespace>::all(world.client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
    let owner: ConfigMap = world.create(json!({"metadata": {"name": "owner"}})).await;
    let child = serde_json::from_value(owned("child", &[(&owner, false)])).unwrap();
    let others: Api<ConfigMap> = Api::namespaced(world.client.clone(), "other");
    others.create(&PostParams::default(), &child).await.unwrap();
    let sibling: ConfigMap = world.create(owned("sibling", &[(&owner, false)])).await;
    world
        .until("the warning", async || {
            let events: Api<Event> = Api::namespaced(world.client.clone(), "other");
            let events = events.list(&Default::default()).await.unwrap().items;
            let found =
                events.iter().any(|event| event.reason.as_deref() == Some("OwnerRefInvalidNamespace"));
            let gone = others.get_opt("child").await.unwrap().is_none();
            if found && gone { Ok(()) } else { Err(format!("warned: {found}, gone: {gone}")) }
        })
        .await;
    let left = world.of::<ConfigMap>().get("sibling").await.unwrap();
    assert_eq!(left.uid(), sibling.uid(), "the same owner in its own namespace counts");
    world.end(controllers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replication_controller_goes_after_its_pods_or_leaves_them() {
    let world = World::start().await;
    let controllers = world.controllers(&Faults::new(19, BAD, None));
    let api = world.of::<ReplicationController>();
    for (replicas, parameters) in [(3, DeleteParams::foreground()), (2, DeleteParams::orphan())] {
        let controller = json!({"metadata": {"name": "rc"}, "spec": {
            "replicas": replicas, "selector": {"app": "web"}, "template": template("v1")}});
        world.create::<ReplicationController>(controller).await;
        world
            .until("the pods", async || {
                let pods = world.list::<Pod>().await.len();
                if pods == replicas { Ok(()) } else { Err(format!("{pods} pods")) }
            })
            .await;
        api.delete("rc", &parameters).await.unwrap();
        world
            .until("the end of the controller", async || match api.get_opt("rc").await.unwrap() {
                None => Ok(()),
                Some(rc) => Err(format!("{:?}", rc.metadata)),
            })
            .await;
        let left: Vec<Pod> = world.list().await;
        if replicas == 3 {
            assert!(left.is_empty(), "deleted in the foreground, it went before its pods");
        } else {
            assert_eq!(left.len(), 2);
            assert!(left.iter().all(|pod| pod.owner_references().is_empty() && pod.metadata.deletion_timestamp.is_none()));
        }
    }
    world.end(controllers).await;
}
