//! The Node object: registered at start, its status written when it changes and every few minutes, its life shown by
//! a Lease in `kube-node-lease`.

mod desired;
pub(crate) mod facts;

use std::sync::Arc;
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::clock;
use decapod_client::error::{ErrorExt, chain};
use decapod_client::informer::Changes;
use decapod_proto::cri;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeStatus, NodeSystemInfo, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::Options;
use crate::shared::Shared;
use crate::tell;
pub(crate) use desired::RuntimeState;

/// How often the status is computed: conditions such as memory pressure change without an event.
const CHECK: Duration = Duration::from_secs(10);
/// How often it is computed while the node is not ready: a node should not be idle for want of a look.
const CHECK_UNREADY: Duration = Duration::from_millis(200);
/// How often the status is written although it did not change, as in Kubernetes.
const WRITE: Duration = Duration::from_secs(300);
/// Kubernetes' namespace of node leases.
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// A lease holds this many times as long as the time between two renewals, as in Kubernetes.
const LEASE_PERIODS: u32 = 4;
/// A renewal is given up after this long, if the lease does not hold longer: behind a broken link it would wait for
/// minutes, and the node would still be silent when the link is mended.
const RENEWAL: Duration = Duration::from_secs(10);
/// Between attempts while the API server does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// The node before it was registered: nothing but its name and its labels.
pub(crate) fn unregistered(options: &Options) -> Node {
    let metadata = ObjectMeta {
        name: Some(options.node_name.clone()),
        labels: Some(desired::labels(options)),
        ..ObjectMeta::default()
    };
    Node { metadata, ..Node::default() }
}

/// The node could not be described to the API server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("failed to write the Node")]
    Api(#[from] kube::Error),
    #[error("failed to ask the runtime")]
    Runtime(#[from] decapod_runtime::Error),
}

/// Writes Node and Lease.
pub(crate) struct Registrar {
    shared: Arc<Shared>,
    info: NodeSystemInfo,
}

impl Registrar {
    pub(crate) fn new(shared: Arc<Shared>, runtime_version: &str) -> Self {
        Self { shared, info: facts::system_info(runtime_version) }
    }

    /// Registers the node and keeps its status until it is dropped.
    pub(crate) async fn run(self) {
        while let Err(error) = self.register().await {
            tracing::warn!(error = chain(&error), "the node could not be registered");
            self.shared.clock.sleep(RETRY).await;
        }
        self.shared.tell.node(self.reference(), "Starting", "Starting kubelet.");
        let mut written = self.shared.clock.monotonic();
        let mut changes = self.shared.node.subscribe();
        loop {
            let due = self.shared.clock.monotonic() - written >= WRITE;
            match self.refresh(due).await {
                Ok(true) => written = self.shared.clock.monotonic(),
                Ok(false) => {}
                Err(error) => tracing::warn!(error = chain(&error), "the node's status could not be written"),
            }
            let check = match runtime_state(&self.shared).await {
                RuntimeState::NotReady(_) if !self.shared.evictions.stopping() => CHECK_UNREADY,
                _ => CHECK,
            };
            tokio::select! {
                () = self.shared.clock.sleep(check) => {}
                () = self.shared.evictions.changed() => {}
                () = given_up(&mut changes) => {}
            }
        }
    }

    fn api(&self) -> Api<Node> {
        Api::all(self.shared.client.clone())
    }

    fn reference(&self) -> ObjectReference {
        tell::node(&self.shared.options.node_name)
    }

    async fn status(&self, old: Option<&NodeStatus>) -> Result<NodeStatus, Error> {
        let shared = &self.shared;
        let images = shared.runtime.image_list(None).await?;
        let told = shared.runtime.status().await;
        let handlers = told.as_ref().map(|status| status.runtime_handlers.clone()).unwrap_or_default();
        let runtime = state_of(shared, told);
        let input = desired::Input {
            options: &shared.options,
            machine: facts::machine(&shared.options.data_dir),
            pressures: &shared.evictions.pressures(),
            info: &self.info,
            images: &images,
            handlers: &handlers,
            runtime: &runtime,
            now: shared.clock.now(),
        };
        Ok(desired::status(&input, old))
    }

    /// Creates the Node, or takes over the one that is there.
    async fn register(&self) -> Result<(), Error> {
        let node = desired::node(&self.shared.options, self.status(None).await?);
        match self.api().create(&PostParams::default(), &node).await {
            Ok(_) => {
                tracing::info!(node = self.shared.options.node_name, "the node is registered");
                return Ok(());
            }
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error.into()),
        }
        let found = self.api().get(&self.shared.options.node_name).await?;
        let missing: serde_json::Map<String, Value> = desired::labels(&self.shared.options)
            .into_iter()
            .filter(|(k, v)| found.metadata.labels.as_ref().and_then(|l| l.get(k)) != Some(v))
            .map(|(k, v)| (k, Value::String(v)))
            .collect();
        if !missing.is_empty() {
            let patch = json!({ "metadata": { "labels": missing } });
            let parameters = PatchParams::default();
            self.api().patch(&self.shared.options.node_name, &parameters, &Patch::Merge(&patch)).await?;
        }
        let status = self.status(found.status.as_ref()).await?;
        self.write(found.status.as_ref(), &status).await
    }

    /// Writes the status if it changed or `due`; true if it was written.
    async fn refresh(&self, due: bool) -> Result<bool, Error> {
        let key = ObjectKey::cluster(&self.shared.options.node_name);
        self.shared.node.synced().await;
        let Some(node) = self.shared.node.get(&key) else {
            // Somebody deleted the Node: a node that lives registers again.
            self.register().await?;
            return Ok(true);
        };
        let old = node.status.clone().unwrap_or_default();
        let new = self.status(Some(&old)).await?;
        if !due && !desired::differs(&old, &new) {
            return Ok(false);
        }
        self.write(Some(&old), &new).await?;
        Ok(true)
    }

    /// A patch, so that what others keep in the status stays.
    async fn write(&self, old: Option<&NodeStatus>, new: &NodeStatus) -> Result<(), Error> {
        let mut status = serde_json::to_value(new).expect("a status of texts and numbers is JSON");
        // Addresses merge by type, so that one that is gone would stay.
        let before = old.and_then(|o| o.addresses.as_ref()).is_some_and(|a| !a.is_empty());
        if let Some(addresses) = status.get_mut("addresses").and_then(Value::as_array_mut).filter(|_| before)
        {
            addresses.push(json!({ "$patch": "replace" }));
        }
        let patch = json!({ "status": status });
        let parameters = PatchParams::default();
        let name = &self.shared.options.node_name;
        self.api().patch_status(name, &parameters, &Patch::Strategic(&patch)).await?;
        let (before, now) = (old.and_then(ready), ready(new));
        if before != now {
            let reason = if now == Some(true) { "NodeReady" } else { "NodeNotReady" };
            let message = format!("Node {name} status is now: {reason}");
            self.shared.tell.node(self.reference(), reason, message);
        }
        Ok(())
    }
}

/// Resolves once the control plane takes the node for lost: whoever lives says so at once.
async fn given_up(changes: &mut Changes<Node>) {
    while let Some(change) = changes.next().await {
        let conditions =
            change.new.iter().filter_map(|node| node.status.as_ref()?.conditions.as_ref()).flatten();
        if conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "Unknown") {
            return;
        }
    }
    // The informer ended with the process.
    std::future::pending().await
}

/// Whether a status says that the node is ready.
fn ready(status: &NodeStatus) -> Option<bool> {
    status.conditions.iter().flatten().find(|c| c.type_ == "Ready").map(|c| c.status == "True")
}

/// Ready if the runtime says so of itself and of the network.
pub(crate) async fn runtime_state(shared: &Shared) -> RuntimeState {
    state_of(shared, shared.runtime.status().await)
}

fn state_of(shared: &Shared, told: Result<cri::StatusResponse, decapod_runtime::Error>) -> RuntimeState {
    if shared.evictions.stopping() {
        return RuntimeState::NotReady("node is shutting down".to_owned());
    }
    let status = match told {
        Ok(status) => status.status.unwrap_or_default(),
        Err(error) => return RuntimeState::NotReady(format!("container runtime is down: {}", chain(&error))),
    };
    let bad = status.conditions.iter().find(|c| !c.status);
    match bad {
        None => RuntimeState::Ready,
        Some(c) if c.r#type == "NetworkReady" => RuntimeState::NotReady(format!(
            "container runtime network not ready: NetworkReady=false reason:{} message:{}",
            c.reason, c.message
        )),
        Some(c) => {
            RuntimeState::NotReady(format!("container runtime not ready: {}: {}", c.reason, c.message))
        }
    }
}

/// Renews the node's Lease until it is dropped.
pub(crate) async fn heartbeat(shared: Arc<Shared>) {
    let api = Api::<Lease>::namespaced(shared.client.clone(), LEASE_NAMESPACE);
    let name = shared.options.node_name.clone();
    let limit = RENEWAL.max(shared.options.lease_period * LEASE_PERIODS);
    loop {
        let wait = match clock::timeout(&*shared.clock, limit, renew(&shared, &api, &name)).await {
            Some(Ok(true)) => shared.options.lease_period,
            Some(Ok(false)) => CHECK_UNREADY,
            Some(Err(error)) => {
                tracing::warn!(error = chain(&error), "the node's lease could not be renewed");
                RETRY
            }
            None => {
                tracing::warn!(?limit, "the API server does not answer: the node's lease is not renewed");
                RETRY
            }
        };
        shared.clock.sleep(wait).await;
    }
}

/// Renews or creates the Lease; false while there is no Node to own it.
async fn renew(shared: &Shared, api: &Api<Lease>, name: &str) -> Result<bool, kube::Error> {
    let now = MicroTime(shared.clock.now());
    let holds = (shared.options.lease_period * LEASE_PERIODS).as_secs().max(1);
    let patch =
        json!({ "spec": { "holderIdentity": name, "leaseDurationSeconds": holds, "renewTime": now } });
    match api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Err(error) if error.is_not_found() => {}
        other => return other.map(|_| true),
    }
    // The Node owns its Lease, so that both go together.
    let node = shared.node.get(&ObjectKey::cluster(name));
    let Some(uid) = node.and_then(|n| n.metadata.uid.clone()) else { return Ok(false) };
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.to_owned(),
        uid,
        ..OwnerReference::default()
    };
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(LEASE_NAMESPACE.to_owned()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: Some(i32::try_from(holds).unwrap_or(i32::MAX)),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    api.create(&PostParams::default(), &lease).await.map(|_| true)
}
