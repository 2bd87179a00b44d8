//! An API server with a store of its own, controllers with faults, and what stands in for the nodes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use decapod_apiserver::pki::{MASTERS, Pki};
use decapod_apiserver::{Clock as _, Handle, Server, UserInfo};
use decapod_client::ObjectKey;
use decapod_client::clock::{Clock, SystemClock};
use decapod_client::informer::Informers;
use decapod_client::reconcile::{self, Queue};
use decapod_client::task::Supervisor;
use decapod_controllers::{Options, nodelifecycle};
use decapod_storage::{Embedded, embedded};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Binding, Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::faults::{self, Faults};

/// Far longer than anything takes; only for what never comes.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct World {
    pub(crate) client: kube::Client,
    api: Handle,
    nodes: Supervisor,
    _dir: tempfile::TempDir,
}

impl World {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(decapod_apiserver::SystemClock);
        let pki = Arc::new(Pki::open(&dir.path().join("pki"), clock.now()).unwrap());
        let store = Embedded::open(&dir.path().join("store"), embedded::Options::default()).unwrap();
        let mut options =
            decapod_apiserver::Options { listen: ([127, 0, 0, 1], 0).into(), ..Default::default() };
        // The controllers must get along with it wherever an operator enables it.
        options.admission_plugins.enable = vec!["OwnerReferencesPermissionEnforcement".to_owned()];
        let api = Server::start(options, Arc::new(store), pki, clock).await.unwrap();
        let client = kube::Client::new(api.service_as(UserInfo::new("admin", &[MASTERS])), "default");
        let nodes = Supervisor::new();
        stand_in(&client, &nodes).await;
        Self { client, api, nodes, _dir: dir }
    }

    /// Starts the controllers with these faults; they run as long as the supervisor.
    pub(crate) fn controllers(&self, faults: &Arc<Faults>) -> Supervisor {
        self.controllers_with(faults, |_| {})
    }

    /// As [`Self::controllers`], with options that differ.
    pub(crate) fn controllers_with(
        &self,
        faults: &Arc<Faults>,
        change: impl FnOnce(&mut Options),
    ) -> Supervisor {
        self.controllers_at(faults, change, Arc::new(SystemClock::new()))
    }

    /// As [`Self::controllers_with`], by another clock.
    pub(crate) fn controllers_at(
        &self,
        faults: &Arc<Faults>,
        change: impl FnOnce(&mut Options),
        clock: Arc<dyn Clock>,
    ) -> Supervisor {
        let supervisor = Supervisor::new();
        let client = faults::client(&self.api, "system:kube-controller-manager", faults.clone());
        let informers = Informers::new(client.clone(), supervisor.clone(), clock.clone());
        // The only node's heart does not beat.
        let grace = Duration::from_secs(3600);
        let node_lifecycle = nodelifecycle::Options { grace, startup_grace: grace, ..Default::default() };
        let mut options = Options { node_lifecycle, node_ipam: None, ..Options::default() };
        change(&mut options);
        decapod_controllers::run(&options, client, informers, supervisor.clone(), clock);
        supervisor
    }

    pub(crate) async fn end(self, controllers: Supervisor) {
        controllers.shutdown(Duration::ZERO).await;
        self.nodes.shutdown(Duration::ZERO).await;
        self.api.shutdown().await;
    }

    pub(crate) fn of<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Creates an object from JSON.
    pub(crate) async fn create<K>(&self, object: Value) -> K
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + serde::de::DeserializeOwned
            + serde::Serialize
            + Clone
            + std::fmt::Debug,
    {
        let object = serde_json::from_value(object).unwrap();
        self.of::<K>().create(&PostParams::default(), &object).await.unwrap()
    }

    pub(crate) async fn patch<K>(&self, name: &str, patch: Value)
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + serde::de::DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        self.of::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    pub(crate) async fn list<K>(&self) -> Vec<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + serde::de::DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        self.of::<K>().list(&ListParams::default()).await.unwrap().items
    }

    /// Waits until `check` answers `Ok`; panics with its last complaint.
    pub(crate) async fn until<F>(&self, what: &str, mut check: impl FnMut() -> F)
    where
        F: Future<Output = Result<(), String>>,
    {
        let begin = Instant::now();
        loop {
            match check().await {
                Ok(()) => return,
                Err(state) if begin.elapsed() > PATIENCE => panic!("{what}: not in time; {state}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Waits until the Deployment `web` has rolled out this image to exactly so many pods, and says so.
    pub(crate) async fn rolled_out(&self, image: &str, replicas: usize) {
        self.until("the rollout", async || {
            let pods: Vec<Pod> = self.list().await;
            let right = pods.iter().filter(|pod| image_of(pod) == image && is_available(pod)).count();
            let deployment = self.of::<Deployment>().get("web").await.unwrap();
            let status = deployment.status.clone().unwrap_or_default();
            let wanted = i32::try_from(replicas).ok();
            let told = status.observed_generation == deployment.metadata.generation
                && [status.replicas, status.updated_replicas, status.available_replicas] == [wanted; 3];
            if right == replicas && pods.len() == replicas && told {
                return Ok(());
            }
            let sets: Vec<ReplicaSet> = self.list().await;
            let sets: Vec<_> =
                sets.iter().map(|set| (set.name_any(), &set.spec.as_ref().unwrap().replicas)).collect();
            Err(format!("{right} of {replicas} right, {} pods, sets {sets:?}, {status:?}", pods.len()))
        })
        .await;
    }
}

pub(crate) fn image_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.containers[0].image.as_deref()).unwrap_or_default()
}

pub(crate) fn is_active(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
}

pub(crate) fn is_available(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    is_active(pod) && conditions.filter(|one| one.type_ == "Ready").any(|one| one.status == "True")
}

/// A Deployment named `web`.
pub(crate) fn deployment(replicas: i32, image: &str, strategy: Value) -> Value {
    json!({"metadata": {"name": "web"}, "spec": {
        "replicas": replicas, "strategy": strategy, "selector": {"matchLabels": {"app": "web"}},
        "template": template(image)}})
}

pub(crate) fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {
        "terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": image}]}})
}

/// One node, and what scheduler and kubelet do: pods are bound, get an address, get ready, and go when
/// they are to go.
async fn stand_in(client: &kube::Client, supervisor: &Supervisor) {
    let node = json!({"metadata": {"name": "n1"}});
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    nodes.patch_status("n1", &PatchParams::default(), &Patch::Merge(ready)).await.unwrap();
    let clock = Arc::new(SystemClock::new());
    let informers = Informers::new(client.clone(), supervisor.clone(), clock.clone());
    let pods = informers.of::<Pod>();
    let queue = Queue::new(clock);
    reconcile::feed(supervisor, "node", pods.subscribe(), &queue, |change| [change.key.clone()]);
    let client = client.clone();
    reconcile::run(supervisor, "node", &queue, 4, move |key: ObjectKey| {
        let (client, pod) = (client.clone(), pods.get(&key));
        async move {
            let api: Api<Pod> = Api::namespaced(client, &key.namespace);
            let outcome = match pod {
                Some(pod) => host(&api, &key, &pod).await,
                None => Ok(()),
            };
            match outcome {
                // It changed meanwhile, or is gone: the mirror will show it.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
                other => other.map(|()| None),
            }
        }
    });
}

/// The node that a daemon's pod asks for by name.
fn pinned_to(pod: &Pod) -> Option<String> {
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    terms.first()?.match_fields.as_ref()?.first()?.values.as_ref()?.first().cloned()
}

async fn host(api: &Api<Pod>, key: &ObjectKey, pod: &Pod) -> kube::Result<()> {
    let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    if pod.metadata.deletion_timestamp.is_some() {
        return api.delete(&key.name, &DeleteParams::default().grace_period(0)).await.map(|_| ());
    }
    if !bound {
        let target = json!({"kind": "Node", "name": pinned_to(pod).unwrap_or_else(|| "n1".to_owned())});
        let binding = json!({"metadata": {"name": key.name}, "target": target});
        let binding: Binding = serde_json::from_value(binding).unwrap();
        let _: Value = api.create_subresource("binding", &key.name, &PostParams::default(), &binding).await?;
        return Ok(());
    }
    if let Some(status) = end(pod) {
        let ended = json!({"metadata": {"uid": pod.uid()}, "status": status});
        return api
            .patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(ended))
            .await
            .map(|_| ());
    }
    if is_available(pod) || is_over(pod) {
        return Ok(());
    }
    let digest = key.name.bytes().fold(7_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    let ip = format!("10.9.{}.{}", digest / 251 % 251, digest % 251 + 1);
    let now = jiff::Timestamp::now().to_string();
    let ready = json!({"metadata": {"uid": pod.uid()}, "status": {
        "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}]}});
    api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(ready)).await.map(|_| ())
}

fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The status of a pod that runs to an end: its annotation `exit` says with which code, `odd` that only odd completion
/// indexes fail, `some` that a third of all pods do.
fn end(pod: &Pod) -> Option<Value> {
    let annotations = pod.metadata.annotations.as_ref()?;
    let how = annotations.get("exit").filter(|_| !is_over(pod))?;
    let index =
        annotations.get("batch.kubernetes.io/job-completion-index").and_then(|text| text.parse().ok());
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let code = match how.as_str() {
        "odd" => index.unwrap_or(0) % 2,
        "some" => i32::from(uid.bytes().map(u32::from).sum::<u32>() % 3 == 0),
        code => code.parse().unwrap(),
    };
    let now = jiff::Timestamp::now().to_string();
    Some(json!({"phase": if code == 0 { "Succeeded" } else { "Failed" },
        "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": now}],
        "containerStatuses": [{"name": "c", "image": "i", "imageID": "i", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": code, "finishedAt": now}}}]}))
}

/// What may be at any moment: active pods at most, available pods at least.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) at_most: usize,
    pub(crate) at_least: usize,
}

/// Follows every change of the pods from now on; panics where one leaves the bounds. Ends with `stop`.
pub(crate) async fn guard(client: kube::Client, bounds: Bounds, stop: tokio::sync::oneshot::Receiver<()>) {
    let api: Api<Pod> = Api::namespaced(client, "default");
    let list = api.list(&ListParams::default()).await.unwrap();
    let mut pods: BTreeMap<String, Pod> = list.items.into_iter().map(|pod| (pod.name_any(), pod)).collect();
    let mut revision = list.metadata.resource_version.unwrap();
    let mut stop = stop;
    loop {
        let mut events = api.watch(&WatchParams::default(), &revision).await.unwrap().boxed();
        loop {
            let event = tokio::select! {
                _ = &mut stop => return,
                event = events.next() => event,
            };
            let Some(event) = event else { break };
            match event.unwrap() {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                    revision = pod.resource_version().unwrap();
                    pods.insert(pod.name_any(), pod);
                }
                WatchEvent::Deleted(pod) => {
                    revision = pod.resource_version().unwrap();
                    pods.remove(&pod.name_any());
                }
                WatchEvent::Bookmark(mark) => revision = mark.metadata.resource_version,
                WatchEvent::Error(status) => panic!("{status:?}"),
            }
            let active = pods.values().filter(|pod| is_active(pod)).count();
            let available = pods.values().filter(|pod| is_available(pod)).count();
            let within = active <= bounds.at_most && available >= bounds.at_least;
            assert!(within, "{active} active and {available} available pods, but {bounds:?}");
        }
    }
}
