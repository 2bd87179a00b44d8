//! Tokens in Secrets that nobody uses go, in two steps of a year each.

use std::sync::Arc;
use std::time::Duration;

use decapod_client::clock::{Clock, SystemClock};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::faults::{Faults, Rates};
use crate::support::World;

const YEAR: i64 = 366 * 24 * 60 * 60;
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

/// A clock that is so many years ahead.
#[derive(Debug)]
struct Ahead(SystemClock, i64);

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        self.0.now() + jiff::SignedDuration::from_secs(self.1 * YEAR)
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep(duration)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unused_tokens_are_invalidated_and_a_year_later_removed() {
    let world = World::start().await;
    let account = json!({"metadata": {"name": "bot"}, "secrets": [{"name": "listed"}]});
    let account = world.create::<ServiceAccount>(account).await;
    for name in ["listed", "by-hand"] {
        let annotations = json!({"kubernetes.io/service-account.name": "bot",
            "kubernetes.io/service-account.uid": account.uid()});
        let secret = json!({"metadata": {"name": name, "annotations": annotations},
            "type": "kubernetes.io/service-account-token"});
        world.create::<Secret>(secret).await;
    }
    // The use of tokens was noted long enough.
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), "kube-system");
    let tracking = "kube-apiserver-legacy-service-account-token-tracking";
    let since = Patch::Merge(json!({"data": {"since": "2020-01-01"}}));
    maps.patch(tracking, &PatchParams::default(), &since).await.unwrap();
    let secrets: Api<Secret> = world.of();
    for years in [2, 4] {
        let none = Faults::new(1, Rates::default(), None);
        let controllers = world.controllers_at(&none, |_| {}, Arc::new(Ahead(SystemClock::new(), years)));
        world
            .until("the token to go out of use", async || {
                let secret = secrets.get_opt("listed").await.unwrap();
                let marked = secret.as_ref().is_some_and(|s| s.labels().contains_key(INVALID_SINCE));
                let done = if years == 2 { marked } else { secret.is_none() };
                if done { Ok(()) } else { Err(format!("{secret:?}")) }
            })
            .await;
        controllers.shutdown(Duration::ZERO).await;
    }
    let by_hand = secrets.get("by-hand").await.unwrap();
    assert!(!by_hand.labels().contains_key(INVALID_SINCE), "{by_hand:?}");
    world.end(decapod_client::task::Supervisor::new()).await;
}
