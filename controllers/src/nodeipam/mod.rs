//! The node IPAM controller: gives each node its part of the pod network (`spec.podCIDR`).
//!
//! A node keeps what it has for ever; two nodes never get the same. One worker plans from a view that
//! contains its own writes, and a second controller would be stopped by the revision in each write.

mod plan;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::event::Recorder;
use decapod_client::informer::Informer;
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::core::v1::Node;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::common::expect::Expectations;
use crate::common::{Context, Result, Says};
pub use plan::{Cidr, InvalidCidr};

const NAME: &str = "node-ipam-controller";

/// What is divided among the nodes.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The network of all pods.
    pub cluster_cidr: Cidr,
    /// The prefix length of a node's part.
    pub node_bits: u8,
}

impl Default for Options {
    /// 10.244.0.0/16 in parts of /24: 256 nodes with 254 pods each.
    fn default() -> Self {
        let cluster_cidr = "10.244.0.0/16".parse().expect("a constant network");
        Self { cluster_cidr, node_bits: 24 }
    }
}

struct Controller {
    context: Context,
    options: Options,
    nodes: Informer<Node>,
    recorder: Recorder,
    expectations: Expectations,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, options: Options) {
    let queue = Queue::new(context.clock.clone());
    let nodes = context.informers.of::<Node>();
    let supervisor = &context.supervisor;
    reconcile::feed(supervisor, NAME, nodes.subscribe(), &queue, |change| {
        let needs = change.new.as_ref().is_some_and(|node| blocks(node).next().is_none());
        needs.then(|| change.key.clone())
    });
    let recorder = context.recorder(NAME);
    let controller = Arc::new(Controller {
        context: context.clone(),
        options,
        nodes,
        recorder,
        expectations: Expectations::default(),
    });
    // One worker: two would give out the same block.
    reconcile::run(supervisor, NAME, &queue, 1, move |key: ObjectKey| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

/// The blocks that a node has; those that are no IPv4 networks are not ours to give out.
fn blocks(node: &Node) -> impl Iterator<Item = Cidr> {
    let spec = node.spec.as_ref();
    let one = spec.and_then(|spec| spec.pod_cidr.as_ref());
    let all = spec.and_then(|spec| spec.pod_cidrs.as_ref()).into_iter().flatten().chain(one);
    all.filter_map(|block| block.parse().ok())
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        self.nodes.synced().await;
        // All writes are noted under one key: every decision depends on all of them.
        let all = ObjectKey::default();
        let api: Api<Node> = Api::all(self.context.client.clone());
        // A block whose giving was not answered may be taken: no other node must get it.
        self.expectations.resolve(&all, &api, &ListParams::default(), || self.nodes.list()).await?;
        self.expectations.settled(&all, &self.nodes, &*self.context.clock).await?;
        let Some(node) = self.nodes.get(key).filter(|node| blocks(node).next().is_none()) else {
            return Ok(None);
        };
        let used: BTreeSet<Cidr> =
            self.nodes.list().iter().flat_map(|node| blocks(node).collect::<Vec<_>>()).collect();
        let Some(block) = plan::free_block(self.options.cluster_cidr, self.options.node_bits, &used) else {
            let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
            self.recorder.warning(&*node, "CIDRNotAvailable", message);
            // A node that goes frees its block, but no event of this node tells.
            return Ok(Some(Duration::from_secs(30)));
        };
        let patch = json!({
            "metadata": {"resourceVersion": node.resource_version(), "uid": node.uid()},
            "spec": {"podCIDR": block.to_string(), "podCIDRs": [block.to_string()]},
        });
        let patched = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        match patched.inspect_err(|error| self.expectations.failed(&all, error)) {
            Ok(patched) => self.expectations.wrote(&all, &patched),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error).says("give a node its pod CIDR"),
        }
        Ok(None)
    }
}
