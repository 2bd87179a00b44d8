//! A node as decisions see it: what it offers, what is taken, and by whom.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use decapod_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Node, Taint};

use super::pod::{PodInfo, full_image_name};
use super::resources::Resources;

/// A node and the pods on it. The sums are kept up to date with every pod that comes and goes.
#[derive(Debug, Default)]
pub(crate) struct NodeInfo {
    pub(crate) name: String,
    /// The node; `None` while only pods that are bound to it are known.
    pub(crate) node: Option<Arc<Node>>,
    pub(crate) allocatable: Resources,
    /// How many pods the node takes.
    pub(crate) capacity: i64,
    pub(crate) taints: Vec<Taint>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) unschedulable: bool,
    /// The images on the node and their sizes in bytes.
    pub(crate) images: HashMap<String, i64>,
    pub(crate) pods: HashMap<String, Arc<PodInfo>>,
    pub(crate) requested: Resources,
    /// Different after each change that a decision may depend on, and from that of every other node.
    pub(crate) generation: u64,
    /// CPU and memory as they count when nodes are compared.
    pub(crate) weight: (i64, i64),
}

impl NodeInfo {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// Takes over what the node says of itself.
    pub(crate) fn set_node(&mut self, node: Option<Arc<Node>>) {
        let spec = node.as_ref().and_then(|node| node.spec.clone()).unwrap_or_default();
        let status = node.as_ref().and_then(|node| node.status.as_ref());
        let allocatable = status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref()));
        self.allocatable = allocatable.map(Resources::parse).unwrap_or_default();
        let pods =
            allocatable.and_then(|list| list.get("pods")).and_then(|pods| Quantity::try_from(pods).ok());
        self.capacity = pods.map_or(0, |pods| pods.units());
        self.images = HashMap::new();
        for image in status.into_iter().flat_map(|status| status.images.iter().flatten()) {
            let size = image.size_bytes.unwrap_or(0);
            let names = image.names.iter().flatten();
            self.images.extend(names.map(|name| (full_image_name(name), size)));
        }
        self.taints = spec.taints.unwrap_or_default();
        self.unschedulable = spec.unschedulable == Some(true);
        self.labels = node.as_ref().and_then(|node| node.metadata.labels.clone()).unwrap_or_default();
        self.node = node;
    }

    /// Whether the node says of itself what is known of it already. Most changes of a node are heartbeats.
    pub(crate) fn is_same(&self, node: Option<&Node>) -> bool {
        let (Some(known), Some(new)) = (self.node.as_deref(), node) else {
            return self.node.is_none() && node.is_none();
        };
        let same_offer = match (&known.status, &new.status) {
            (Some(before), Some(now)) => {
                before.allocatable == now.allocatable
                    && before.capacity == now.capacity
                    && before.images == now.images
            }
            (before, now) => before.is_none() && now.is_none(),
        };
        known.metadata.labels == new.metadata.labels && known.spec == new.spec && same_offer
    }

    pub(crate) fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested += &pod.requests;
        self.weight =
            (self.weight.0.saturating_add(pod.weight.0), self.weight.1.saturating_add(pod.weight.1));
        self.pods.insert(pod.uid.clone(), pod);
    }

    pub(crate) fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(uid)?;
        self.requested -= &pod.requests;
        self.weight = (self.weight.0 - pod.weight.0, self.weight.1 - pod.weight.1);
        Some(pod)
    }

    /// Whether nothing is known of it any more.
    pub(crate) fn is_forgotten(&self) -> bool {
        self.node.is_none() && self.pods.is_empty()
    }
}
