//! An API server with a store of its own, a scheduler in its place, and nodes without machines.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use decapod_apiserver::pki::{MASTERS, Pki};
use decapod_apiserver::{Clock as _, Handle, Server, UserInfo};
use decapod_client::clock::SystemClock;
use decapod_client::informer::Informers;
use decapod_client::task::Supervisor;
use decapod_scheduler::Options;
use decapod_scheduler::config::Configuration;
use decapod_storage::{Embedded, embedded};
use k8s_openapi::ClusterResourceScope;
use k8s_openapi::api::core::v1::{Event, Node, Pod, ServiceAccount};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::serde::Serialize;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Resource};
use serde_json::{Value, json};

/// Far longer than anything takes; only for what never comes.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct World {
    pub(crate) client: kube::Client,
    api: Handle,
    supervisor: Supervisor,
    _dir: tempfile::TempDir,
}

impl World {
    /// With Kubernetes' default scheduler.
    pub(crate) async fn start() -> Self {
        Self::with(Configuration::default()).await
    }

    pub(crate) async fn with(configuration: Configuration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(decapod_apiserver::SystemClock);
        let pki = Arc::new(Pki::open(&dir.path().join("pki"), clock.now()).unwrap());
        let store = Embedded::open(&dir.path().join("store"), embedded::Options::default()).unwrap();
        let options = decapod_apiserver::Options { listen: ([127, 0, 0, 1], 0).into(), ..Default::default() };
        let api = Server::start(options, Arc::new(store), pki, clock).await.unwrap();
        let client = |user: UserInfo| kube::Client::new(api.service_as(user), "default");
        let admin = client(UserInfo::new("admin", &[MASTERS]));
        let scheduler = client(UserInfo::new("system:kube-scheduler", &[]));
        let (supervisor, clock) = (Supervisor::new(), Arc::new(SystemClock::new()));
        let informers = Informers::new(scheduler.clone(), supervisor.clone(), clock.clone());
        let options = Options { configuration: Arc::new(configuration), seed: 11 };
        decapod_scheduler::run(options, scheduler, &informers, &supervisor, clock);
        let world = Self { client: admin, api, supervisor, _dir: dir };
        // Without controllers nobody else makes the account of pods.
        world.create::<ServiceAccount>(json!({"metadata": {"name": "default"}})).await;
        world
    }

    pub(crate) async fn end(self) {
        self.supervisor.shutdown(Duration::ZERO).await;
        self.api.shutdown().await;
    }

    pub(crate) fn of<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    pub(crate) fn all<K: Resource<DynamicType = (), Scope = ClusterResourceScope>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    pub(crate) async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + DeserializeOwned
            + Serialize
            + Clone
            + Debug,
    {
        self.of::<K>().create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap()
    }

    /// A node that is ready and offers this much.
    pub(crate) async fn node(&self, name: &str, offers: Value) {
        let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": {"providerID": format!("test://{name}")}});
        let nodes = self.all::<Node>();
        nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
        let mut amounts = json!({"cpu": "4", "memory": "8Gi", "pods": "20"});
        for (name, amount) in offers.as_object().into_iter().flatten() {
            amounts[name] = amount.clone();
        }
        let ready = json!({"status": {"capacity": amounts, "allocatable": amounts,
            "conditions": [{"type": "Ready", "status": "True"}]}});
        nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(ready)).await.unwrap();
        // What a node is tainted with until its controller has seen it.
        let spec = json!({"spec": {"taints": null}});
        nodes.patch(name, &PatchParams::default(), &Patch::Merge(spec)).await.unwrap();
    }

    /// A priority class of this name and value.
    pub(crate) async fn class(&self, name: &str, value: i32) {
        let class = json!({"metadata": {"name": name}, "value": value});
        let classes = self.all::<PriorityClass>();
        classes.create(&PostParams::default(), &serde_json::from_value(class).unwrap()).await.unwrap();
    }

    /// A pod that asks for so much CPU, with more of its spec.
    pub(crate) async fn pod(&self, name: &str, cpu: &str, more: Value) -> Pod {
        self.create(pod(name, cpu, more)).await
    }

    pub(crate) async fn get(&self, name: &str) -> Option<Pod> {
        self.of::<Pod>().get_opt(name).await.unwrap()
    }

    /// Waits until `check` answers `Ok`; panics with its last complaint.
    pub(crate) async fn until<T>(&self, what: &str, mut check: impl AsyncFnMut() -> Result<T, String>) -> T {
        let begin = Instant::now();
        loop {
            match check().await {
                Ok(found) => return found,
                Err(state) if begin.elapsed() > PATIENCE => panic!("{what}: not in time; {state}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Waits for the node of a pod.
    pub(crate) async fn bound(&self, name: &str) -> String {
        self.until(&format!("a node for {name}"), async || {
            let pod = self.get(name).await;
            let node = pod.as_ref().and_then(|pod| pod.spec.as_ref()?.node_name.clone());
            node.ok_or_else(|| format!("{:?}", pod.map(|pod| pod.status)))
        })
        .await
    }

    /// Waits until a pod is told why it has no node; what it is told.
    pub(crate) async fn unschedulable(&self, name: &str) -> String {
        self.until(&format!("the reason of {name}"), async || {
            let pod = self.get(name).await.ok_or("gone")?;
            condition(&pod, "PodScheduled", "Unschedulable").ok_or_else(|| format!("{:?}", pod.status))
        })
        .await
    }

    /// Waits until a pod is gone.
    pub(crate) async fn gone(&self, name: &str) {
        self.until(&format!("the end of {name}"), async || match self.get(name).await {
            None => Ok(()),
            Some(pod) => Err(format!("{:?} {:?}", pod.metadata.deletion_timestamp, pod.status)),
        })
        .await;
    }

    /// Waits for an event of this reason about an object; its message.
    pub(crate) async fn event(&self, about: &str, reason: &str) -> String {
        self.until(&format!("the event {reason} of {about}"), async || {
            let events = self.of::<Event>().list(&ListParams::default()).await.unwrap().items;
            let mut of_it =
                events.iter().filter(|event| event.involved_object.name.as_deref() == Some(about));
            let found = of_it.find(|event| event.reason.as_deref() == Some(reason));
            let message = found.and_then(|event| event.message.clone());
            message.ok_or_else(|| format!("{:?}", events.iter().map(|one| &one.reason).collect::<Vec<_>>()))
        })
        .await
    }
}

/// The message of a condition that has this reason.
pub(crate) fn condition(pod: &Pod, kind: &str, reason: &str) -> Option<String> {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let found = conditions.find(|one| one.type_ == kind && one.reason.as_deref() == Some(reason))?;
    Some(found.message.clone().unwrap_or_default())
}

/// A pod that asks for so much CPU and ends at once, with more of its spec.
pub(crate) fn pod(name: &str, cpu: &str, more: Value) -> Value {
    let mut pod = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]}});
    for (key, value) in more.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    pod
}
