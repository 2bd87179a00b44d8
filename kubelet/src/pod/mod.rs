//! One pod on this node: what is wanted (the API object), what is there (the runtime's view), and the pure
//! functions between them.
//!
//! Nothing in here does I/O. [`plan`] decides what to do next, [`status`] says what clients are told; both are
//! functions of the pod, of what was observed, and of the time they are given. The `worker` module applies them.

pub(crate) mod admit;
pub(crate) mod observed;
pub(crate) mod plan;
pub(crate) mod preempt;
pub(crate) mod qos;
pub(crate) mod spec;
pub(crate) mod status;

/// A pod's `metadata.uid`: the identity of everything that a pod has on this node.
pub(crate) type Uid = String;

/// `metadata.labels` and `annotations` that the kubelet puts on sandboxes and containers. The runtime keeps them
/// across restarts of the agent, so they are the kubelet's only memory.
pub(crate) mod mark {
    pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
    pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
    pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    pub(crate) const HASH: &str = "io.kubernetes.container.hash";
    pub(crate) const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    pub(crate) const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    pub(crate) const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    /// Where a pod comes from: `file` for one of the node's own, `api` or nothing for all others.
    pub(crate) const SOURCE: &str = "kubernetes.io/config.source";
    /// What a pod's file was read as.
    pub(crate) const CONFIG_HASH: &str = "kubernetes.io/config.hash";
    /// On a mirror: the uid of the pod that it shows.
    pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";
    /// Whole seconds of crash-loop back-off that were in force when the container was created.
    pub(crate) const BACKOFF: &str = "decapod.io/restart-backoff-seconds";
    pub(crate) const CGROUP_PARENT: &str = "decapod.io/cgroup-parent";
}
