//! `[sig-api-machinery] Watchers`.

use serde_json::{Value, json};

use super::Watch;
use crate::harness::{Client, Cluster};

const MAPS: &str = "/api/v1/namespaces/e2e/configmaps";

/// A server with a namespace for the test.
async fn scene() -> (Cluster, Client) {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.namespace("e2e").await;
    (cluster, admin)
}

async fn make(admin: &Client, name: &str, label: &str) -> Value {
    admin.created(MAPS, json!({"metadata": {"name": name, "labels": {"watch": label}}})).await
}

async fn patch(admin: &Client, name: &str, patch: Value) -> Value {
    let (code, object) = admin.patch(&format!("{MAPS}/{name}"), "merge-patch", patch).await;
    assert_eq!(code, 200, "{object}");
    object
}

/// Writes a number into a ConfigMap; its new resource version.
async fn mutate(admin: &Client, name: &str, round: u32) -> String {
    let object = patch(admin, name, json!({"data": {"mutation": round.to_string()}})).await;
    object["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

async fn remove(admin: &Client, name: &str) {
    assert_eq!(admin.delete(&format!("{MAPS}/{name}")).await.0, 200);
}

#[tokio::test]
async fn watchers_should_observe_add_update_and_delete_watch_notifications_on_configmaps() {
    let (_cluster, admin) = scene().await;
    let select = |text: &str| format!("labelSelector=watch{text}");
    let mut of_a = Watch::from_now(&admin, MAPS, &select("%3Da")).await;
    let mut of_b = Watch::from_now(&admin, MAPS, &select("%3Db")).await;
    let mut of_both = Watch::from_now(&admin, MAPS, &select("%20in%20(a,b)")).await;
    for (label, watch) in [("a", &mut of_a), ("b", &mut of_b)] {
        make(&admin, label, label).await;
        let mut mutations = Vec::new();
        for round in 1..=2 {
            mutations.push(mutate(&admin, label, round).await);
        }
        remove(&admin, label).await;
        for watch in [watch, &mut of_both] {
            watch.expect("ADDED", label).await;
            for (round, version) in (1..).zip(&mutations) {
                let object = watch.expect("MODIFIED", label).await;
                assert_eq!(object["data"]["mutation"], round.to_string());
                assert_eq!(object["metadata"]["resourceVersion"], version.as_str());
            }
            let last = watch.expect("DELETED", label).await;
            assert_eq!(last["data"]["mutation"], "2");
        }
    }
    // What the other label's objects did came between: the first watch was told nothing of it.
    make(&admin, "a-again", "a").await;
    make(&admin, "b-again", "b").await;
    of_a.expect("ADDED", "a-again").await;
    of_b.expect("ADDED", "b-again").await;
}

#[tokio::test]
async fn watchers_should_be_able_to_start_watching_from_a_specific_resource_version() {
    let (_cluster, admin) = scene().await;
    make(&admin, "map", "x").await;
    let first = mutate(&admin, "map", 1).await;
    mutate(&admin, "map", 2).await;
    remove(&admin, "map").await;
    let query = format!("labelSelector=watch%3Dx&resourceVersion={first}");
    let mut watch = Watch::open(&admin, MAPS, &query).await;
    let second = watch.expect("MODIFIED", "map").await;
    assert_eq!(second["data"]["mutation"], "2");
    watch.expect("DELETED", "map").await;
}

#[tokio::test]
async fn watchers_should_be_able_to_restart_watching_from_the_last_resource_version_observed_by_the_previous_watch()
 {
    let (_cluster, admin) = scene().await;
    let mut watch = Watch::from_now(&admin, MAPS, "labelSelector=watch%3Dx").await;
    make(&admin, "map", "x").await;
    mutate(&admin, "map", 1).await;
    watch.expect("ADDED", "map").await;
    let seen = watch.expect("MODIFIED", "map").await;
    let version = seen["metadata"]["resourceVersion"].as_str().unwrap();
    drop(watch);
    mutate(&admin, "map", 2).await;
    remove(&admin, "map").await;
    let query = format!("labelSelector=watch%3Dx&resourceVersion={version}");
    let mut watch = Watch::open(&admin, MAPS, &query).await;
    let second = watch.expect("MODIFIED", "map").await;
    assert_eq!(second["data"]["mutation"], "2");
    watch.expect("DELETED", "map").await;
}

#[tokio::test]
async fn watchers_should_observe_an_object_deletion_if_it_stops_meeting_the_requirements_of_the_selector() {
    let (_cluster, admin) = scene().await;
    let mut watch = Watch::from_now(&admin, MAPS, "labelSelector=watch%3Dx").await;
    let relabel = |label: &str| json!({"metadata": {"labels": {"watch": label}}});
    make(&admin, "map", "x").await;
    mutate(&admin, "map", 1).await;
    let left = patch(&admin, "map", relabel("y")).await;
    watch.expect("ADDED", "map").await;
    watch.expect("MODIFIED", "map").await;
    let gone = watch.expect("DELETED", "map").await;
    assert_eq!(gone["metadata"]["resourceVersion"], left["metadata"]["resourceVersion"]);
    // What it does outside of the selection is not told.
    mutate(&admin, "map", 2).await;
    patch(&admin, "map", relabel("x")).await;
    mutate(&admin, "map", 3).await;
    remove(&admin, "map").await;
    let back = watch.expect("ADDED", "map").await;
    assert_eq!(back["data"]["mutation"], "2");
    let third = watch.expect("MODIFIED", "map").await;
    assert_eq!(third["data"]["mutation"], "3");
    watch.expect("DELETED", "map").await;
}

/// How many events are compared, each with a watch of its own.
const ROUNDS: u32 = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_should_receive_events_on_concurrent_watches_in_same_order() {
    let (_cluster, admin) = scene().await;
    let mut watches = vec![Watch::from_now(&admin, MAPS, "labelSelector=watch%3Dx").await];
    let writer = admin.clone();
    // Three objects that come, change and go by turns: one event a write.
    let writing = tokio::spawn(async move {
        for round in 0..=ROUNDS {
            let name = format!("map-{}", round % 3);
            match round / 3 % 3 {
                0 => drop(make(&writer, &name, "x").await),
                1 => drop(mutate(&writer, &name, round).await),
                _ => remove(&writer, &name).await,
            }
        }
    });
    for _ in 0..ROUNDS {
        let event = watches[0].brief().await;
        for watch in &mut watches[1..] {
            assert_eq!(watch.brief().await, event);
        }
        let query = format!("labelSelector=watch%3Dx&resourceVersion={}", event.2);
        watches.push(Watch::open(&admin, MAPS, &query).await);
    }
    writing.await.unwrap();
}
