//! The decision: a pod and a view of the cluster in, a node or the reasons against every node out.
//!
//! Nothing here waits, reads a clock or talks to anyone; chance comes in as an argument. So a decision can
//! be repeated, and the whole core is tested without a cluster.

pub(crate) mod affinity;
pub(crate) mod budget;
pub(crate) mod decide;
pub(crate) mod fit_error;
pub(crate) mod index;
pub(crate) mod node;
#[cfg(test)]
mod oracle;
pub(crate) mod place;
pub(crate) mod plugin;
pub(crate) mod plugins;
pub(crate) mod pod;
pub(crate) mod preempt;
pub(crate) mod profile;
pub(crate) mod relation;
pub(crate) mod resources;
pub(crate) mod snapshot;
pub(crate) mod storage;
