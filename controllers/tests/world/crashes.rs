//! The controllers die at a write, before or after it is carried out, and their successors find out.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use serde_json::json;

use crate::faults::{Faults, Rates};
use crate::support::{Bounds, World, deployment, guard, template};

/// Lives of the controllers during the rollouts: each ends at another write.
const LIVES: i64 = 24;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_survives_a_crash_at_every_write() {
    let world = World::start().await;
    let none = Faults::new(1, Rates::default(), None);
    let healthy = world.controllers(&none);
    let strategy = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}});
    world.create::<Deployment>(deployment(3, "v1", strategy)).await;
    world.rolled_out("v1", 3).await;
    healthy.shutdown(Duration::ZERO).await;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let guarding = tokio::spawn(guard(world.client.clone(), Bounds { at_most: 4, at_least: 2 }, stopped));
    let mut image = String::new();
    for life in 1..=LIVES {
        if life % 4 == 1 {
            image = format!("v{}", life + 1);
            world.patch::<Deployment>("web", json!({"spec": {"template": template(&image)}})).await;
        }
        let faults = Faults::new(life.unsigned_abs(), Rates::default(), Some(life % 7 + 1));
        let doomed = world.controllers(&faults);
        // A life that has nothing to write ends all the same.
        tokio::select! {
            () = faults.death() => {}
            () = world.rolled_out(&image, 3) => {}
        }
        doomed.shutdown(Duration::ZERO).await;
        faults.quiet().await;
    }
    let healthy = world.controllers(&none);
    world.rolled_out(&image, 3).await;
    drop(stop);
    guarding.await.unwrap();
    world.end(healthy).await;
}
