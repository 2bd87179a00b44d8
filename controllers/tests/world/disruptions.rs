//! `[sig-apps] DisruptionController`: what conformance demands of budgets, each by a test of the entry's own name. That
//! budgets hold whatever the network does is in `limits.rs`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use kube::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::limits::scene;
use crate::support::World;

fn budget(name: &str, limits: Value) -> Value {
    let mut budget = json!({"metadata": {"name": name, "labels": {"kind": "special"}}, "spec": {
        "selector": {"matchLabels": {"foo": "bar"}}}});
    for (key, value) in limits.as_object().into_iter().flatten() {
        budget["spec"][key] = value.clone();
    }
    budget
}

/// Creates pods that the budgets are about.
async fn pods(world: &World, count: usize) {
    for number in 0..count {
        let pod = json!({"metadata": {"name": format!("p{number}"), "labels": {"foo": "bar"}}, "spec": {
            "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "i"}]}});
        world.create::<Pod>(pod).await;
    }
}

/// Waits until the status of the budget `b` looks right, as it is for the present spec.
async fn status(
    world: &World,
    what: &str,
    right: impl Fn(&PodDisruptionBudgetStatus) -> bool,
) -> PodDisruptionBudget {
    let api = world.of::<PodDisruptionBudget>();
    world
        .until(what, async || {
            let budget = api.get("b").await.unwrap();
            let status = budget.status.unwrap_or_default();
            let present = status.observed_generation == budget.metadata.generation;
            if present && right(&status) { Ok(()) } else { Err(format!("{status:?}")) }
        })
        .await;
    api.get("b").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disruption_controller_listing_pod_disruption_budgets_for_all_namespaces_should_list_and_delete_a_collection_of_pod_disruption_budgets()
 {
    scene(async |world| {
        let other: Namespace = serde_json::from_value(json!({"metadata": {"name": "other"}})).unwrap();
        Api::<Namespace>::all(world.client.clone()).create(&PostParams::default(), &other).await.unwrap();
        let elsewhere: Api<PodDisruptionBudget> = Api::namespaced(world.client.clone(), "other");
        let here = world.of::<PodDisruptionBudget>();
        for (api, name, least) in
            [(&here, "foo", json!(2)), (&here, "foo2", json!("1%")), (&elsewhere, "foo3", json!(2))]
        {
            let budget =
                serde_json::from_value(budget(name, json!({"minAvailable": least.clone()}))).unwrap();
            api.create(&PostParams::default(), &budget).await.unwrap();
        }
        let special = ListParams::default().labels("kind=special");
        let names = async |api: &Api<PodDisruptionBudget>| -> Vec<String> {
            api.list(&special).await.unwrap().items.iter().map(ResourceExt::name_any).collect()
        };
        let everywhere: Api<PodDisruptionBudget> = Api::all(world.client.clone());
        assert_eq!(names(&everywhere).await, ["foo", "foo2", "foo3"]);
        assert_eq!(names(&here).await, ["foo", "foo2"]);
        here.delete_collection(&DeleteParams::default(), &special).await.unwrap();
        assert_eq!(names(&everywhere).await, ["foo3"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disruption_controller_should_create_a_pod_disruption_budget() {
    scene(async |world| {
        let api = world.of::<PodDisruptionBudget>();
        let made: PodDisruptionBudget = world.create(budget("b", json!({"minAvailable": "1%"}))).await;
        let mut budget = status(world, "the controller to know it", |_| true).await;
        assert_eq!(budget.uid(), made.uid());
        let least = |budget: &PodDisruptionBudget| json!(budget.spec.as_ref().unwrap().min_available);
        budget.spec.as_mut().unwrap().min_available = serde_json::from_value(json!("2%")).unwrap();
        // The controller writes its status meanwhile: then it is read and tried again.
        world
            .until("the update", async || {
                let mut budget = budget.clone();
                budget.metadata.resource_version = api.get("b").await.unwrap().resource_version();
                let updated = api.replace("b", &PostParams::default(), &budget).await;
                let updated = updated.map_err(|error| error.to_string())?;
                assert_eq!(least(&updated), json!("2%"));
                Ok(())
            })
            .await;
        let patch = Patch::Merge(json!({"spec": {"minAvailable": "3%"}}));
        let patched = api.patch("b", &PatchParams::default(), &patch).await.unwrap();
        assert_eq!(least(&patched), json!("3%"));
        assert_eq!(patched.metadata.generation, Some(3));
        let both = json!({"spec": {"maxUnavailable": 1}});
        let refused = api.patch("b", &PatchParams::default(), &Patch::Merge(both)).await.unwrap_err();
        assert!(
            refused.to_string().contains("minAvailable and maxUnavailable cannot be both set"),
            "{refused}"
        );
        api.delete("b", &DeleteParams::default()).await.unwrap();
        assert!(api.get_opt("b").await.unwrap().is_none());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disruption_controller_should_observe_pod_disruption_budget_status_updated() {
    scene(async |world| {
        world.create::<PodDisruptionBudget>(budget("b", json!({"minAvailable": 1}))).await;
        status(world, "a budget of no pods", |status| {
            status.disruptions_allowed == Some(0) && status.expected_pods == Some(0)
        })
        .await;
        pods(world, 3).await;
        // No controller says how many there should be: they are counted as they are.
        let told = status(world, "two that may go", |status| status.disruptions_allowed == Some(2)).await;
        let told = told.status.unwrap();
        assert_eq!(
            (told.current_healthy, told.desired_healthy, told.expected_pods),
            (Some(3), Some(1), Some(3))
        );
        let condition = &told.conditions.unwrap()[0];
        assert_eq!(
            (condition.type_.as_str(), condition.reason.as_str()),
            ("DisruptionAllowed", "SufficientPods")
        );
        world.patch::<PodDisruptionBudget>("b", json!({"spec": {"minAvailable": 3}})).await;
        let told = status(world, "none that may go", |status| status.disruptions_allowed == Some(0)).await;
        let condition = &told.status.unwrap().conditions.unwrap()[0];
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "InsufficientPods"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disruption_controller_should_update_patch_pod_disruption_budget_status() {
    scene(async |world| {
        let api = world.of::<PodDisruptionBudget>();
        world.create::<PodDisruptionBudget>(budget("b", json!({"minAvailable": 1}))).await;
        pods(world, 1).await;
        status(world, "the pod to be counted", |status| status.current_healthy == Some(1)).await;
        // Ahead of time, so that the two minutes for which it counts do not pass.
        let later = jiff::Timestamp::now() + std::time::Duration::from_secs(3600);
        let charged = BTreeMap::from([("p0".to_owned(), json!(later.to_string()))]);
        world
            .until("the update of the status", async || {
                let mut budget = api.get("b").await.unwrap();
                budget.status.get_or_insert_default().disrupted_pods =
                    serde_json::from_value(json!(charged)).unwrap();
                let updated = api.replace_status("b", &PostParams::default(), &budget).await;
                updated.map(drop).map_err(|error| error.to_string())
            })
            .await;
        // The pod is there: until it goes, it counts as one that is about to.
        let told =
            status(world, "the controller to heed it", |status| status.current_healthy == Some(0)).await;
        let disrupted = told.status.unwrap().disrupted_pods.unwrap_or_default();
        assert!(disrupted.contains_key("p0"), "{disrupted:?}");
        let patch = Patch::Merge(json!({"status": {"disruptedPods": null}}));
        let patched = api.patch_status("b", &PatchParams::default(), &patch).await.unwrap();
        assert!(patched.status.unwrap().disrupted_pods.unwrap_or_default().is_empty());
        status(world, "the pod to be counted again", |status| status.current_healthy == Some(1)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disruption_controller_should_block_an_eviction_until_the_pdb_is_updated_to_allow_it() {
    scene(async |world| {
        pods(world, 3).await;
        world.create::<PodDisruptionBudget>(budget("b", json!({"minAvailable": 3}))).await;
        status(world, "the three", |status| status.current_healthy == Some(3)).await;
        let api = world.of::<Pod>();
        let refused = api.evict("p0", &EvictParams::default()).await.unwrap_err();
        let kube::Error::Api(refused) = refused else { panic!("{refused:?}") };
        assert_eq!(refused.code, 429);
        let details = json!(refused.details);
        assert_eq!(details["causes"][0]["reason"], "DisruptionBudget", "{details}");
        assert_eq!(
            details["causes"][0]["message"],
            "The disruption budget b needs 3 healthy pods and has 3 currently",
            "{details}"
        );
        world.patch::<PodDisruptionBudget>("b", json!({"spec": {"minAvailable": 2}})).await;
        status(world, "one that may go", |status| status.disruptions_allowed == Some(1)).await;
        api.evict("p0", &EvictParams::default()).await.unwrap();
        // The next is refused at once, before the controller has counted; and afterwards.
        assert!(api.evict("p1", &EvictParams::default()).await.is_err());
        world
            .until("the end of the pod", async || match api.get_opt("p0").await.unwrap() {
                None => Ok(()),
                Some(pod) => Err(format!("{:?}", pod.metadata)),
            })
            .await;
        // A patch of the budget's may allow it, and its removal does.
        world.patch::<PodDisruptionBudget>("b", json!({"spec": {"minAvailable": 3}})).await;
        status(world, "two of three", |status| status.disruptions_allowed == Some(0)).await;
        assert!(api.evict("p1", &EvictParams::default()).await.is_err());
        world.of::<PodDisruptionBudget>().delete("b", &DeleteParams::default()).await.unwrap();
        api.evict("p1", &EvictParams::default()).await.unwrap();
    })
    .await;
}
