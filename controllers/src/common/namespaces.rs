//! What controllers that keep an object in each namespace ask about it.

use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::informer::Informer;
use k8s_openapi::api::core::v1::Namespace;

/// Whether the namespace exists and is not about to go.
pub(crate) fn is_active(namespaces: &Informer<Namespace>, name: &str) -> bool {
    let namespace = namespaces.get(&ObjectKey::cluster(name));
    namespace.is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_none())
}

/// Whether a creation failed because the namespace is gone or going: then there is nothing to do.
pub(crate) fn is_over(error: &kube::Error) -> bool {
    error.is_namespace_terminating() || error.is_not_found()
}
