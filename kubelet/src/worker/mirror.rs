//! Mirror pods: how the API server sees the pods that come from files of the node.
//!
//! A mirror is made by the kubelet, in the file's words, and has the pod's status; it decides nothing. **Invariant**:
//! what is in the file runs, whether or not there is an API server, and whatever is done to the mirror.

use std::sync::Arc;

use decapod_client::error::{ErrorExt, chain};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};

use crate::pod::{mark, spec};
use crate::shared::Shared;

/// That a pod comes from a file, and its mirror, as far as there is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Local {
    pub(crate) mirror: Option<Arc<Pod>>,
}

/// The uid of the pod whose mirror this is.
pub(crate) fn mirrored(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(mark::MIRROR).map(String::as_str)
}

/// A pod with what its mirror knows of it, in the form in which all other pods come.
pub(crate) fn with_mirror(pod: &Arc<Pod>, local: &Local) -> Arc<Pod> {
    let Some(mirror) = local.mirror.as_deref().filter(|m| mirrored(m) == Some(spec::uid(pod))) else {
        return pod.clone();
    };
    let mut pod = Pod::clone(pod);
    pod.status.clone_from(&mirror.status);
    pod.metadata.resource_version.clone_from(&mirror.metadata.resource_version);
    pod.metadata.generation = mirror.metadata.generation;
    Arc::new(pod)
}

/// What the API server is given: the pod without what only the node knows.
fn mirror(pod: &Pod, node: Option<&Node>) -> Pod {
    let meta = &pod.metadata;
    let mut annotations = meta.annotations.clone().unwrap_or_default();
    annotations.insert(mark::MIRROR.to_owned(), spec::uid(pod).to_owned());
    let owner = node.and_then(|node| {
        Some(OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.metadata.name.clone()?,
            uid: node.metadata.uid.clone()?,
            controller: Some(true),
            block_owner_deletion: None,
        })
    });
    Pod {
        metadata: ObjectMeta {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            labels: meta.labels.clone(),
            annotations: Some(annotations),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: pod.spec.clone(),
        status: None,
    }
}

/// What became of looking for a mirror.
pub(super) enum Mirror {
    /// It has this uid.
    Is(String),
    /// There is none now; what happens to it wakes the worker.
    Later,
    /// The API server could not be asked.
    Unknown,
}

fn pods(shared: &Shared, pod: &Pod) -> Api<Pod> {
    Api::namespaced(shared.client.clone(), spec::namespace(pod))
}

/// Sees to it that a pod has a mirror, and that it is its own.
pub(super) async fn ensure(shared: &Shared, pod: &Pod, local: &Local) -> Mirror {
    if let Some(found) = &local.mirror {
        let own = mirrored(found) == Some(spec::uid(pod)) && found.metadata.deletion_timestamp.is_none();
        if own {
            return Mirror::Is(found.metadata.uid.clone().unwrap_or_default());
        }
        return if remove(shared, found).await { Mirror::Later } else { Mirror::Unknown };
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return Mirror::Later;
    }
    let node = shared.node.list().pop();
    match pods(shared, pod).create(&PostParams::default(), &mirror(pod, node.as_deref())).await {
        Ok(made) => Mirror::Is(made.metadata.uid.unwrap_or_default()),
        // The informer will show it; if it is somebody else's pod, the name is taken.
        Err(error) if error.is_conflict() || error.is_already_exists() => Mirror::Later,
        Err(error) => {
            tracing::warn!(
                pod = spec::name(pod),
                namespace = spec::namespace(pod),
                error = chain(&error),
                "the mirror of a static pod could not be created"
            );
            Mirror::Unknown
        }
    }
}

/// Removes a mirror at once; true if it is gone.
pub(super) async fn remove(shared: &Shared, mirror: &Pod) -> bool {
    let parameters = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: mirror.metadata.uid.clone(), ..Preconditions::default() }),
        ..DeleteParams::default()
    };
    match pods(shared, mirror).delete(spec::name(mirror), &parameters).await {
        Ok(_) => true,
        Err(error) if error.is_not_found() || error.is_conflict() => true,
        Err(error) => {
            tracing::warn!(
                pod = spec::name(mirror),
                namespace = spec::namespace(mirror),
                error = chain(&error),
                "the mirror of a static pod could not be removed"
            );
            false
        }
    }
}
