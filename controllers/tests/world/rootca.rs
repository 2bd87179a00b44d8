//! `[sig-auth] ServiceAccounts`: what every namespace is given.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::faults::{Faults, Rates};
use crate::support::World;

const NAME: &str = "kube-root-ca.crt";
const BUNDLE: &str = "the bundle of the cluster\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_accounts_should_guarantee_kube_root_ca_crt_exist_in_any_namespace() {
    let world = World::start().await;
    let controllers = world.controllers_with(&Faults::new(1, Rates::default(), None), |options| {
        options.root_ca = Some(BUNDLE.to_owned());
    });
    let namespace = serde_json::from_value(json!({"metadata": {"name": "e2e"}})).unwrap();
    Api::<Namespace>::all(world.client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
    for namespace in ["default", "e2e"] {
        let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), namespace);
        let whole = async || {
            let map = maps.get_opt(NAME).await.unwrap();
            let data = json!(map.as_ref().and_then(|map| map.data.as_ref()));
            if data == json!({"ca.crt": BUNDLE}) { Ok(()) } else { Err(data.to_string()) }
        };
        world.until("the bundle to be published", whole).await;
        maps.delete(NAME, &DeleteParams::default()).await.unwrap();
        world.until("the bundle to be published again", whole).await;
        let patch = Patch::Merge(json!({"data": {"ca.crt": "another", "more": "x"}}));
        maps.patch(NAME, &PatchParams::default(), &patch).await.unwrap();
        world.until("the bundle to be put right", whole).await;
    }
    world.end(controllers).await;
}
