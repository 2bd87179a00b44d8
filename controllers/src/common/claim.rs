//! Which objects belong to a controller's object: those whose controller reference names it and that its
//! selector matches. Matching orphans are adopted, owned objects that no longer match are released.

use std::fmt::Debug;
use std::sync::Arc;

use decapod_api::labels::Selector;
use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::informer::Informer;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{Error, Result, Says};

/// A kind of namespaced objects that can own or be owned.
pub(crate) trait Namespaced:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Namespaced for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// The reference to the object's managing controller.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether the object of this uid is the managing controller.
pub(crate) fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|owner| owner.uid == uid)
}

/// The key of the managing controller, if it is of the kind `O`.
pub(crate) fn controller_key<O: Namespaced>(meta: &ObjectMeta) -> Option<ObjectKey> {
    let owner = controller_of(meta)?;
    let same = owner.kind == O::kind(&()) && owner.api_version == O::api_version(&());
    same.then(|| ObjectKey::new(meta.namespace.as_deref().unwrap_or_default(), &owner.name))
}

/// The controller reference to `owner`. Its deletion in the foreground waits for what carries this.
pub(crate) fn controller_reference<O: Namespaced>(owner: &O) -> OwnerReference {
    OwnerReference {
        api_version: O::api_version(&()).into_owned(),
        kind: O::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// What belongs to an owner, and what has to be written so that the references say so.
#[derive(Debug)]
pub(crate) struct Claims<K> {
    pub(crate) kept: Vec<Arc<K>>,
    pub(crate) adopt: Vec<Arc<K>>,
    pub(crate) release: Vec<Arc<K>>,
}

/// Sorts the candidates of an owner. An owner that is being deleted adopts and releases nothing: that is
/// the garbage collector's from now on.
pub(crate) fn plan<K: Resource>(
    owner: &ObjectMeta,
    selector: &Selector,
    candidates: impl IntoIterator<Item = Arc<K>>,
) -> Claims<K> {
    let uid = owner.uid.as_deref().unwrap_or_default();
    let owner_deleting = owner.deletion_timestamp.is_some();
    let mut claims = Claims { kept: Vec::new(), adopt: Vec::new(), release: Vec::new() };
    for object in candidates {
        let meta = object.meta();
        let matches = selector.matches_optional(meta.labels.as_ref());
        match controller_of(meta) {
            Some(controller) if controller.uid != uid => {}
            Some(_) if matches => claims.kept.push(object),
            Some(_) if owner_deleting => {}
            Some(_) => claims.release.push(object),
            None if matches && !owner_deleting && meta.deletion_timestamp.is_none() => {
                claims.adopt.push(object);
            }
            None => {}
        }
    }
    claims
}

/// The objects that may belong to `owner`: its own, and those without controller in its namespace.
pub(crate) fn candidates<K: Namespaced>(informer: &Informer<K>, owner: &ObjectMeta) -> Vec<Arc<K>> {
    let namespace = owner.namespace.as_deref().unwrap_or_default();
    informer.claimable(owner.uid.as_deref().unwrap_or_default(), namespace)
}

/// Writes the adoptions and releases; returns what belongs to the owner. What is adopted gets the `finalizer`, if
/// any; what is released loses it.
///
/// # Errors
/// A write was refused, or [`Error::StaleCache`]: there is something to adopt, but the owner is about to go.
pub(crate) async fn apply<O: Namespaced, K: Namespaced>(
    client: &Client,
    owner: &O,
    claims: Claims<K>,
    finalizer: Option<&str>,
) -> Result<Vec<Arc<K>>> {
    let mut mine = claims.kept;
    let namespace = owner.namespace().unwrap_or_default();
    let objects: Api<K> = Api::namespaced(client.clone(), &namespace);
    if !claims.adopt.is_empty() {
        // What it may not adopt was made for it perhaps, and orphaned: it must not make that again.
        if !may_adopt(client, owner).await? {
            return Err(Error::StaleCache);
        }
        let reference = controller_reference(owner);
        for orphan in claims.adopt {
            let mut patch = json!({"metadata": {"ownerReferences": [reference], "uid": orphan.uid()}});
            if let Some(finalizer) = finalizer {
                patch["metadata"]["finalizers"] = json!([finalizer]);
            }
            let adopted =
                objects.patch(&orphan.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await;
            match adopted {
                Ok(adopted) => mine.push(Arc::new(adopted)),
                // It is gone, or another object has its name now.
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => return Err(error).says("adopt an orphan"),
            }
        }
    }
    for object in claims.release {
        let reference = json!({"$patch": "delete", "uid": owner.uid()});
        let mut patch = json!({"metadata": {"ownerReferences": [reference], "uid": object.uid()}});
        if let Some(finalizer) = finalizer {
            patch["metadata"]["$deleteFromPrimitiveList/finalizers"] = json!([finalizer]);
        }
        let released =
            objects.patch(&object.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await;
        match released {
            Ok(_) => {}
            Err(error) if error.is_not_found() || error.is_conflict() || error.is_invalid() => {}
            Err(error) => return Err(error).says("release an object that no longer matches"),
        }
    }
    Ok(mine)
}

/// Whether the owner exists as the cache shows it: an owner that was deleted meanwhile must adopt nothing.
async fn may_adopt<O: Namespaced>(client: &Client, owner: &O) -> Result<bool> {
    let owners: Api<O> = Api::namespaced(client.clone(), &owner.namespace().unwrap_or_default());
    let live = owners.get_opt(&owner.name_any()).await.says("look at the owner before an adoption")?;
    Ok(live.is_some_and(|live| live.uid() == owner.uid() && live.meta().deletion_timestamp.is_none()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn pod(name: &str, label: &str, controller: Option<&str>) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.labels = Some([("app".to_owned(), label.to_owned())].into());
        pod.metadata.owner_references = controller.map(|uid| {
            vec![OwnerReference { uid: uid.into(), controller: Some(true), ..OwnerReference::default() }]
        });
        Arc::new(pod)
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<String> {
        pods.iter().map(|pod| pod.name_any()).collect()
    }

    #[test]
    fn objects_are_kept_adopted_and_released() {
        let selector: Selector = "app=web".parse().unwrap();
        let owner = ObjectMeta { uid: Some("me".into()), ..ObjectMeta::default() };
        let mut dying = Pod::clone(&pod("dying", "web", None));
        dying.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        let pods = [
            pod("mine", "web", Some("me")),
            pod("strayed", "other", Some("me")),
            pod("orphan", "web", None),
            pod("stranger", "other", None),
            pod("taken", "web", Some("you")),
            Arc::new(dying),
        ];
        let claims = plan(&owner, &selector, pods.clone());
        assert_eq!(names(&claims.kept), ["mine"]);
        assert_eq!(names(&claims.adopt), ["orphan"]);
        assert_eq!(names(&claims.release), ["strayed"]);
        let deleting =
            ObjectMeta { deletion_timestamp: Some(Time(jiff::Timestamp::UNIX_EPOCH)), ..owner.clone() };
        let claims = plan(&deleting, &selector, pods);
        assert_eq!(names(&claims.kept), ["mine"]);
        assert!(claims.adopt.is_empty() && claims.release.is_empty());
    }
}
