//! Events about pods and their containers, in Kubernetes' wording.

use decapod_client::event::{Recorder, Severity};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::Resource;

use crate::pod::spec::{self, Sort};

/// Writes events in the name of the kubelet. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Tell {
    recorder: Recorder,
}

impl Tell {
    pub(crate) fn new(recorder: Recorder) -> Self {
        Self { recorder }
    }

    /// Something normal about the pod as a whole.
    pub(crate) fn pod(&self, pod: &Pod, reason: &str, message: impl Into<String>) {
        self.recorder.record(reference(pod), Severity::Normal, reason, message);
    }

    /// Something wrong about the pod as a whole.
    pub(crate) fn pod_warning(&self, pod: &Pod, reason: &str, message: impl Into<String>) {
        self.recorder.record(reference(pod), Severity::Warning, reason, message);
    }

    /// Something normal about one container.
    pub(crate) fn container(&self, pod: &Pod, name: &str, reason: &str, message: impl Into<String>) {
        self.recorder.record(container(pod, name), Severity::Normal, reason, message);
    }

    /// Something wrong about one container.
    pub(crate) fn container_warning(&self, pod: &Pod, name: &str, reason: &str, message: impl Into<String>) {
        self.recorder.record(container(pod, name), Severity::Warning, reason, message);
    }

    /// Something wrong about the node.
    pub(crate) fn node_warning(&self, name: &str, reason: &str, message: impl Into<String>) {
        self.recorder.record(node(name), Severity::Warning, reason, message);
    }

    /// Something normal about the node.
    pub(crate) fn node(&self, node: ObjectReference, reason: &str, message: impl Into<String>) {
        self.recorder.record(node, Severity::Normal, reason, message);
    }
}

/// Events about a node carry its name as uid, by an old habit of Kubernetes that `kubectl describe` relies on.
pub(crate) fn node(name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(name.to_owned()),
        uid: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}

fn reference(pod: &Pod) -> ObjectReference {
    pod.object_ref(&())
}

fn container(pod: &Pod, name: &str) -> ObjectReference {
    let sort = pod.spec.as_ref().and_then(|s| spec::find(s, name)).map(|(_, sort)| sort);
    let field = match sort {
        Some(Sort::Init | Sort::Sidecar) => "initContainers",
        Some(Sort::Ephemeral) => "ephemeralContainers",
        _ => "containers",
    };
    ObjectReference { field_path: Some(format!("spec.{field}{{{name}}}")), ..reference(pod) }
}

/// `name_namespace(uid)`, as Kubernetes names a pod in messages.
pub(crate) fn format_pod(pod: &Pod) -> String {
    format!("{}_{}({})", spec::name(pod), spec::namespace(pod), spec::uid(pod))
}
