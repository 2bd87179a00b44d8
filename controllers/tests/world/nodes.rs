//! A node falls silent: it is tainted, its pods leave as they tolerate it, and it may come back.

use std::sync::Arc;
use std::time::Duration;

use decapod_client::clock::{Clock, ManualClock};
use decapod_controllers::nodelifecycle;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::faults::{Faults, Rates};
use crate::support::World;

const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// Two nodes, of which the test makes the hearts beat.
struct Nodes<'a> {
    world: &'a World,
    clock: Arc<ManualClock>,
}

impl Nodes<'_> {
    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.world.client.clone(), "kube-node-lease")
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.world.client.clone())
    }

    async fn beat(&self, node: &str) {
        let now = self.clock.now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        let patch = Patch::Merge(json!({"spec": {"renewTime": now, "holderIdentity": node}}));
        self.leases().patch(node, &PatchParams::default(), &patch).await.unwrap();
    }

    async fn add(&self, name: &str) {
        if self.nodes().get_opt(name).await.unwrap().is_none() {
            let node = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
            self.nodes().create(&PostParams::default(), &node).await.unwrap();
        }
        let lease = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        self.leases().create(&PostParams::default(), &lease).await.unwrap();
        self.beat(name).await;
        self.says(name, "True").await;
    }

    async fn says(&self, name: &str, ready: &str) {
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": ready,
            "lastHeartbeatTime": self.clock.now().to_string()}]}});
        self.nodes().patch_status(name, &PatchParams::default(), &Patch::Strategic(status)).await.unwrap();
    }

    /// Lets time pass in steps in which only these nodes are heard, until something holds.
    async fn until<F: Future<Output = Result<(), String>>>(
        &self,
        alive: &[&str],
        what: &str,
        check: impl Fn() -> F,
    ) {
        let (check, one) = (&check, &self);
        self.world
            .until(what, async || {
                for node in alive {
                    one.beat(node).await;
                }
                one.clock.advance(Duration::from_millis(500));
                check().await
            })
            .await;
    }

    async fn taints(&self, name: &str) -> Vec<String> {
        let node = self.nodes().get(name).await.unwrap();
        let taints = node.spec.unwrap_or_default().taints.unwrap_or_default();
        taints.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect()
    }

    /// A pod on n2 that stays to be seen when it is deleted.
    async fn pod(&self, name: &str, tolerated: Option<i64>) {
        let mut toleration = json!({"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute"});
        if let Some(seconds) = tolerated {
            toleration["tolerationSeconds"] = seconds.into();
        }
        let pod = json!({"metadata": {"name": name, "finalizers": ["tests.example/keep"]},
            "spec": {"nodeName": "n2", "tolerations": [toleration], "containers": [{"name": "c", "image": "x"}]}});
        self.world.create::<Pod>(pod).await;
    }

    /// Whether a pod is to go, and is marked as evicted by its node's taint.
    async fn leaves(&self, name: &str) -> Result<(), String> {
        let pod = self.world.of::<Pod>().get(name).await.unwrap();
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let mut conditions = conditions.filter(|one| one.type_ == "DisruptionTarget");
        let marked = conditions.any(|one| one.reason.as_deref() == Some("DeletionByTaintManager"));
        match pod.metadata.deletion_timestamp.is_some() && marked {
            true => Ok(()),
            false => Err(format!("{name}: {:?}", pod.status)),
        }
    }

    async fn forget(&self, pods: &[&str]) {
        let none = Patch::Merge::<Value>(json!({"metadata": {"finalizers": null}}));
        for name in pods {
            self.world.of::<Pod>().patch(name, &PatchParams::default(), &none).await.unwrap();
            match self.world.of::<Pod>().delete(name, &DeleteParams::default().grace_period(0)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => drop(other.unwrap()),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_leave_a_silent_node_as_they_tolerate_it() {
    let world = World::start().await;
    let clock = Arc::new(ManualClock::new(jiff::Timestamp::now()));
    let nodes = Nodes { world: &world, clock: clock.clone() };
    world.create::<ServiceAccount>(json!({"metadata": {"name": "default"}})).await;
    nodes.add("n1").await;
    nodes.add("n2").await;
    for (name, tolerated) in
        [("at-once", Some(0)), ("soon", Some(5)), ("late", Some(100_000)), ("never", None)]
    {
        nodes.pod(name, tolerated).await;
    }
    let none = Faults::new(1, Rates::default(), None);
    let lifecycle = nodelifecycle::Options { grace: Duration::from_secs(8), ..Default::default() };
    let controllers = world.controllers_at(&none, |options| options.node_lifecycle = lifecycle, clock);

    nodes
        .until(&["n1"], "the silent node to be tainted", async || {
            let taints = nodes.taints("n2").await;
            let wanted = [format!("{UNREACHABLE}:NoSchedule"), format!("{UNREACHABLE}:NoExecute")];
            if taints == wanted { Ok(()) } else { Err(format!("{taints:?}")) }
        })
        .await;
    assert!(nodes.taints("n1").await.is_empty());
    let silent = nodes.nodes().get("n2").await.unwrap().status.unwrap().conditions.unwrap();
    assert!(silent.iter().any(|one| one.type_ == "Ready" && one.status == "Unknown"), "{silent:?}");

    nodes
        .until(&["n1"], "the pods to leave", async || {
            nodes.leaves("at-once").await?;
            nodes.leaves("soon").await
        })
        .await;
    for name in ["late", "never"] {
        assert!(nodes.leaves(name).await.is_err(), "{name} tolerates it");
    }

    nodes.beat("n2").await;
    nodes.says("n2", "True").await;
    nodes
        .until(&["n1", "n2"], "the node that came back to be free of taints", async || {
            let taints = nodes.taints("n2").await;
            if taints.is_empty() { Ok(()) } else { Err(format!("{taints:?}")) }
        })
        .await;
    nodes.forget(&["at-once", "soon", "late", "never"]).await;
    world.end(controllers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taints_that_evict_go_where_no_node_is_heard_of() {
    let world = World::start().await;
    let clock = Arc::new(ManualClock::new(jiff::Timestamp::now()));
    let nodes = Nodes { world: &world, clock: clock.clone() };
    world.create::<ServiceAccount>(json!({"metadata": {"name": "default"}})).await;
    nodes.add("n1").await;
    nodes.add("n2").await;
    nodes.pod("at-once", Some(0)).await;
    let none = Faults::new(1, Rates::default(), None);
    let lifecycle = nodelifecycle::Options { grace: Duration::from_secs(8), ..Default::default() };
    let controllers = world.controllers_at(&none, |options| options.node_lifecycle = lifecycle, clock);
    nodes
        .until(&[], "both nodes to count as lost", async || {
            let both = [nodes.taints("n1").await, nodes.taints("n2").await];
            let wanted = vec![format!("{UNREACHABLE}:NoSchedule")];
            if both.iter().all(|taints| *taints == wanted) { Ok(()) } else { Err(format!("{both:?}")) }
        })
        .await;
    // One of them lives after all: now it is the other one that is lost.
    nodes.beat("n1").await;
    nodes.says("n1", "True").await;
    nodes.until(&["n1"], "the pod to leave", async || nodes.leaves("at-once").await).await;
    nodes.forget(&["at-once"]).await;
    world.end(controllers).await;
}
