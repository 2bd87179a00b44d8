//! `persistentVolumeClaim` and generic `ephemeral` volumes: the persistent volume that the claim is bound to.
//!
//! A claim's volume does not change once it is bound: it is looked up once per pod. The kubelet may read the claims
//! of its pods one by one only (Node authorizer), so they are not watched; a pod whose claim is not bound tries again.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use decapod_api::storage;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use kube::{Api, ResourceExt};

use super::{kinds, ownership};
use crate::pod::{Uid, spec};

/// Why a claim's volume cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("error processing PVC {claim}: failed to fetch PVC from API server")]
    Fetch {
        claim: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("error processing PVC {claim}: persistentvolumeclaim not found")]
    NotFound { claim: String },
    #[error("error processing PVC {claim}: PVC is being deleted")]
    Going { claim: String },
    #[error("error processing PVC {claim}: PVC is not bound")]
    Unbound { claim: String },
    #[error("error processing PVC {claim}: PVC was not created for the pod")]
    NotForPod { claim: String },
    #[error("error processing PVC {claim}: failed to fetch PV {volume:?} from API server")]
    FetchVolume {
        claim: String,
        volume: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("error processing PVC {claim}: PV {volume:?} is not bound to it")]
    Misbound { claim: String, volume: String },
    #[error("storage node affinity check failed for volume {0:?} : no matching NodeSelectorTerms")]
    Affinity(String),
    #[error("volume {volume:?} of claim {claim}: the kind {kind} is not supported by this node")]
    Kind { claim: String, volume: String, kind: &'static str },
    #[error("path {0:?} does not exist")]
    Missing(PathBuf),
    #[error("path {0:?} is no block device, but spec.volumeMode of the volume is Block")]
    NoDevice(PathBuf),
    #[error("volume {volume:?}")]
    HostPath {
        volume: String,
        #[source]
        source: Box<super::Error>,
    },
    #[error("applyFSGroup failed for volume {volume:?}")]
    Group {
        volume: String,
        #[source]
        source: io::Error,
    },
}

/// A claim as a pod refers to it.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    name: String,
    pub(super) read_only: bool,
    /// The claim was made for this pod, and must be its own.
    made_for_pod: bool,
}

impl Claim {
    /// The claim behind a volume; `None` for volumes of another kind.
    pub(super) fn of(pod: &Pod, volume: &Volume) -> Option<Self> {
        if let Some(source) = &volume.persistent_volume_claim {
            let read_only = source.read_only == Some(true);
            return Some(Self { name: source.claim_name.clone(), read_only, made_for_pod: false });
        }
        volume.ephemeral.as_ref()?;
        let name = format!("{}-{}", spec::name(pod), volume.name);
        Some(Self { name, read_only: false, made_for_pod: true })
    }
}

/// The volumes of the claims of this node's pods.
pub(crate) struct Claims {
    client: kube::Client,
    /// Where each is that is ready, by pod and claim.
    ready: Mutex<HashMap<(Uid, String), Found>>,
}

/// A volume on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    /// A device (`volumeMode: Block`), in place of a folder.
    pub(super) block: bool,
}

impl Claims {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self { client, ready: Mutex::default() }
    }

    /// Where the claim's volume is on this node, ready for the pod.
    pub(super) async fn place(&self, pod: &Pod, claim: &Claim, node: Option<&Node>) -> Result<Found, Error> {
        let key = (spec::uid(pod).to_owned(), claim.name.clone());
        let known = self.lock().get(&key).cloned();
        if let Some(found) = known {
            return Ok(found);
        }
        let whose = format!("{}/{}", spec::namespace(pod), claim.name);
        let volume = self.volume(pod, claim, &whose).await?;
        let name = volume.name_any();
        if let Some(node) = node
            && !storage::reachable_from(&volume, &node.name_any(), node.labels())
        {
            return Err(Error::Affinity(name));
        }
        let found = source(&volume, &whose)?;
        // As in Kubernetes, a path of the host's stays as it is.
        let local = !found.block && volume.spec.as_ref().is_some_and(|spec| spec.local.is_some());
        if let Some((group, on_root_mismatch)) = group(pod).filter(|_| local) {
            let (root, read_only) = (found.path.clone(), claim.read_only);
            let given = tokio::task::spawn_blocking(move || {
                ownership::give(&root, group, read_only, on_root_mismatch)
            })
            .await;
            let given = given.unwrap_or_else(|panic| Err(io::Error::other(panic)));
            given.map_err(|source| Error::Group { volume: name, source })?;
        }
        self.lock().insert(key, found.clone());
        Ok(found)
    }

    /// The volume that the claim is bound to.
    async fn volume(&self, pod: &Pod, claim: &Claim, whose: &str) -> Result<PersistentVolume, Error> {
        let whose = || whose.to_owned();
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), spec::namespace(pod));
        let found = claims.get_opt(&claim.name).await;
        let found = found.map_err(|source| Error::Fetch { claim: whose(), source: Box::new(source) })?;
        let found = found.ok_or_else(|| Error::NotFound { claim: whose() })?;
        let owned =
            found.owner_references().iter().any(|o| o.controller == Some(true) && o.uid == spec::uid(pod));
        if claim.made_for_pod && !owned {
            return Err(Error::NotForPod { claim: whose() });
        }
        if found.metadata.deletion_timestamp.is_some() {
            return Err(Error::Going { claim: whose() });
        }
        let name = found.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
        let bound = found.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        if !bound || name.is_empty() {
            return Err(Error::Unbound { claim: whose() });
        }
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let volume = volumes.get(&name).await.map_err(|source| Error::FetchVolume {
            claim: whose(),
            volume: name.clone(),
            source: Box::new(source),
        })?;
        let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        if reference.and_then(|r| r.uid.as_ref()) != found.metadata.uid.as_ref() {
            return Err(Error::Misbound { claim: whose(), volume: name });
        }
        Ok(volume)
    }

    /// The pod is gone.
    pub(super) fn release(&self, pod: &str) {
        self.lock().retain(|(uid, _), _| uid != pod);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Uid, String), Found>> {
        // Nothing panics while the lock is held.
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The group that the pod's volumes are to belong to, and whether a root that does is enough.
fn group(pod: &Pod) -> Option<(u32, bool)> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    let group = u32::try_from(context.fs_group?).ok()?;
    Some((group, context.fs_group_change_policy.as_deref() == Some("OnRootMismatch")))
}

/// The path of a volume that is on this node.
fn source(volume: &PersistentVolume, claim: &str) -> Result<Found, Error> {
    let name = volume.name_any();
    let unsupported = |kind| Error::Kind { claim: claim.to_owned(), volume: name.clone(), kind };
    let Some(spec) = &volume.spec else { return Err(unsupported("none")) };
    let block = spec.volume_mode.as_deref() == Some("Block");
    if let Some(host_path) = &spec.host_path {
        if block {
            return Err(unsupported("hostPath with volumeMode Block"));
        }
        return kinds::host_path(host_path)
            .map(|path| Found { path, block })
            .map_err(|source| Error::HostPath { volume: name, source: Box::new(source) });
    }
    if let Some(local) = &spec.local {
        let path = PathBuf::from(&local.path);
        return match (std::fs::metadata(&path), block) {
            (Ok(meta), true) if meta.file_type().is_block_device() => Ok(Found { path, block }),
            (Ok(_), true) => Err(Error::NoDevice(path)),
            (Ok(meta), false) if meta.is_dir() => Ok(Found { path, block }),
            _ => Err(Error::Missing(path)),
        };
    }
    let kinds: BTreeMap<&'static str, bool> = BTreeMap::from([
        ("csi", spec.csi.is_some()),
        ("nfs", spec.nfs.is_some()),
        ("iscsi", spec.iscsi.is_some()),
        ("fc", spec.fc.is_some()),
    ]);
    let kind = kinds.into_iter().find(|(_, is)| *is).map_or("of this volume", |(kind, _)| kind);
    Err(unsupported(kind))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    fn volume(spec: Value) -> PersistentVolume {
        serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": spec})).unwrap()
    }

    #[test]
    fn what_is_not_there_or_not_possible_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let local = |path: &Path| volume(json!({"local": {"path": path}}));
        let found = Found { path: dir.path().to_owned(), block: false };
        assert_eq!(source(&local(dir.path()), "n/c").unwrap(), found);
        let gone = source(&local(&dir.path().join("gone")), "n/c").unwrap_err().to_string();
        assert!(gone.ends_with("gone\" does not exist"), "{gone}");
        let block = volume(json!({"local": {"path": dir.path()}, "volumeMode": "Block"}));
        assert!(matches!(source(&block, "n/c"), Err(Error::NoDevice(_))));
        let host = volume(json!({"hostPath": {"path": dir.path()}, "volumeMode": "Block"}));
        assert!(matches!(source(&host, "n/c"), Err(Error::Kind { .. })));
        let nfs = volume(json!({"nfs": {"server": "s", "path": "/"}}));
        assert_eq!(
            source(&nfs, "n/c").unwrap_err().to_string(),
            "volume \"v\" of claim n/c: the kind nfs is not supported by this node"
        );
    }

    #[test]
    fn the_claim_of_an_ephemeral_volume_has_the_pods_name() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": []}})).unwrap();
        let of = |volume: Value| Claim::of(&pod, &serde_json::from_value(volume).unwrap());
        let named =
            of(json!({"name": "a", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}})).unwrap();
        assert_eq!((named.name.as_str(), named.read_only), ("c", true));
        assert_eq!(of(json!({"name": "a", "ephemeral": {}})).unwrap().name, "p-a");
        assert!(of(json!({"name": "a", "emptyDir": {}})).is_none());
    }
}
