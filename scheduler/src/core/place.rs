//! A node as one thought sees it: with some of its pods counted as gone (victims of a preemption that is thought
//! through) and others as there already (pods that are nominated for it).

use std::sync::Arc;

use super::node::NodeInfo;
use super::pod::PodInfo;
use super::resources::Resources;

/// A node and what the thought changes of it. Without changes it costs nothing.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub(crate) node: &'a NodeInfo,
    /// Where the node stands in the snapshot: the row of every column.
    pub(crate) position: usize,
    gone: Vec<&'a Arc<PodInfo>>,
    more: Vec<&'a Arc<PodInfo>>,
    changed: Option<Resources>,
}

impl<'a> Place<'a> {
    /// The node as it is.
    pub(crate) fn new(node: &'a NodeInfo, position: usize) -> Self {
        Self { node, position, gone: Vec::new(), more: Vec::new(), changed: None }
    }

    /// What the pods there are granted together.
    pub(crate) fn requested(&self) -> &Resources {
        self.changed.as_ref().unwrap_or(&self.node.requested)
    }

    /// How many pods are there.
    pub(crate) fn count(&self) -> usize {
        (self.node.pods.len() + self.more.len()).saturating_sub(self.gone.len())
    }

    /// The pods there.
    pub(crate) fn pods(&self) -> impl Iterator<Item = &Arc<PodInfo>> {
        let staying = self.node.pods.values().filter(|pod| !self.is_gone(&pod.uid));
        staying.chain(self.more.iter().copied())
    }

    /// Whether the pod of this uid is counted as gone.
    pub(crate) fn is_gone(&self, uid: &str) -> bool {
        self.gone.iter().any(|pod| pod.uid == uid)
    }

    /// How many of the pods that `matches` the thought takes away (negative) or adds.
    pub(crate) fn difference(&self, matches: impl Fn(&PodInfo) -> bool) -> i64 {
        let count = |pods: &[&Arc<PodInfo>]| {
            i64::try_from(pods.iter().filter(|pod| matches(pod)).count()).unwrap_or(i64::MAX)
        };
        if self.is_unchanged() { 0 } else { count(&self.more) - count(&self.gone) }
    }

    /// Whether it is the node as it is.
    pub(crate) fn is_unchanged(&self) -> bool {
        self.gone.is_empty() && self.more.is_empty()
    }

    /// Counts one of the node's pods as gone.
    pub(crate) fn take(&mut self, pod: &'a Arc<PodInfo>) {
        *self.changed.get_or_insert_with(|| self.node.requested.clone()) -= &pod.requests;
        self.gone.push(pod);
    }

    /// Counts a pod as there again that was counted as gone.
    pub(crate) fn put_back(&mut self, pod: &'a Arc<PodInfo>) {
        *self.changed.get_or_insert_with(|| self.node.requested.clone()) += &pod.requests;
        self.gone.retain(|gone| gone.uid != pod.uid);
    }

    /// Counts a pod as there that is not yet.
    pub(crate) fn add(&mut self, pod: &'a Arc<PodInfo>) {
        *self.changed.get_or_insert_with(|| self.node.requested.clone()) += &pod.requests;
        self.more.push(pod);
    }
}
