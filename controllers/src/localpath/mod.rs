//! The built-in provisioner `decapod.dev/local-path`: the volume of a claim is a folder on the node that the
//! scheduler chose. The node makes and removes the folder; the provisioner asks it to, through the API server, and
//! keeps the books.
//!
//! **Invariant**: a folder is removed only after its claim is gone (the binder said so), where the policy says so;
//! and the volume is forgotten only after its node said that the folder is gone, or the node itself is.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use decapod_api::storage;
use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::event::Recorder;
use decapod_client::informer::Informer;
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use serde::Deserialize;

use crate::common::{Context, Error, Result, Says};
use plan::{End, Wish};

const NAME: &str = "local-path-provisioner";

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Claim(ObjectKey),
    Volume(String),
}

struct Provisioner {
    context: Context,
    recorder: Recorder,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    nodes: Informer<Node>,
}

/// A node's answer to the request for a folder.
#[derive(Deserialize)]
struct Folder {
    path: String,
}

/// Starts the provisioner.
pub(crate) fn start(context: &Context, workers: usize) {
    let informers = &context.informers;
    let provisioner = Arc::new(Provisioner {
        context: context.clone(),
        recorder: context.recorder(storage::LOCAL_PATH),
        claims: informers.of(),
        volumes: informers.of(),
        classes: informers.of(),
        nodes: informers.of(),
    });
    let (supervisor, queue) = (&context.supervisor, Queue::new(context.clock.clone()));
    reconcile::feed(supervisor, NAME, provisioner.claims.subscribe(), &queue, |change| {
        [Key::Claim(change.key.clone())]
    });
    reconcile::feed(supervisor, NAME, provisioner.volumes.subscribe(), &queue, |change| {
        [Key::Volume(change.key.name.clone())]
    });
    reconcile::run(supervisor, NAME, &queue, workers, move |key| {
        let provisioner = provisioner.clone();
        async move {
            match key {
                Key::Claim(key) => provisioner.claim(&key).await,
                Key::Volume(name) => provisioner.volume(&name).await,
            }
        }
    });
}

impl Provisioner {
    async fn claim(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        self.classes.synced().await;
        self.nodes.synced().await;
        let Some(claim) = self.claims.get(key) else { return Ok(None) };
        let class = self.classes.get(&ObjectKey::cluster(storage::class_of_claim(&claim)));
        let has_node = |name: &str| self.nodes.get(&ObjectKey::cluster(name)).is_some();
        match plan::wish(&claim, class.as_deref(), has_node) {
            Wish::Nothing => {}
            Wish::Impossible(why) => self.recorder.warning(&*claim, "ProvisioningFailed", why),
            Wish::Reschedule(node) => {
                let message = format!("the selected node {node:?} is gone: another is to be chosen");
                self.recorder.warning(&*claim, "ProvisioningFailed", message);
                self.reschedule(&claim).await?;
            }
            Wish::Make(node) => {
                let node = self.nodes.get(&ObjectKey::cluster(node));
                if let (Some(class), Some(node)) = (class, node) {
                    self.make(&claim, &class, &node).await?;
                }
            }
        }
        Ok(None)
    }

    /// Lets the scheduler choose anew.
    async fn reschedule(&self, claim: &PersistentVolumeClaim) -> Result<()> {
        let mut freed = claim.clone();
        if let Some(annotations) = freed.metadata.annotations.as_mut() {
            annotations.remove(storage::SELECTED_NODE);
        }
        let api: Api<PersistentVolumeClaim> =
            Api::namespaced(self.context.client.clone(), &claim.namespace().unwrap_or_default());
        match api.replace(&claim.name_any(), &PostParams::default(), &freed).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error).says("take back the selected node of a claim"),
        }
    }

    async fn make(&self, claim: &PersistentVolumeClaim, class: &StorageClass, node: &Node) -> Result<()> {
        let name = plan::name(claim);
        if self.volumes.get(&ObjectKey::cluster(name.clone())).is_some() {
            return Ok(()); // The binder has the next word.
        }
        let whose = format!("{}/{}", claim.namespace().unwrap_or_default(), claim.name_any());
        let message = format!("External provisioner is provisioning volume for claim {whose:?}");
        self.recorder.normal(claim, "Provisioning", message);
        let made = async {
            let folder: Folder = self.ask(http::Method::PUT, &node.name_any(), &name).await?;
            let volume = plan::volume(claim, class, node, &folder.path);
            let api: Api<PersistentVolume> = Api::all(self.context.client.clone());
            match api.create(&PostParams::default(), &volume).await {
                Ok(_) => Ok(()),
                // By a write whose answer was lost.
                Err(error) if error.is_already_exists() => Ok(()),
                Err(error) => Err(error).says("create the volume of a claim"),
            }
        };
        match made.await {
            Ok(()) => {
                self.recorder.normal(
                    claim,
                    "ProvisioningSucceeded",
                    format!("Successfully provisioned volume {name}"),
                );
                Ok(())
            }
            Err(error) => {
                let message = format!(
                    "failed to provision volume with StorageClass {:?}: {}",
                    class.name_any(),
                    error.reported()
                );
                self.recorder.warning(claim, "ProvisioningFailed", message);
                Err(error)
            }
        }
    }

    async fn volume(&self, name: &str) -> Result<Option<Duration>> {
        self.nodes.synced().await;
        let Some(volume) = self.volumes.get(&ObjectKey::cluster(name)) else { return Ok(None) };
        match plan::end(&volume) {
            End::Keep => return Ok(None),
            End::LetGo => {}
            End::Remove(node) => {
                if let Err(error) = self.remove(&node, name).await {
                    self.recorder.warning(&*volume, "VolumeFailedDelete", error.reported());
                    return Err(error);
                }
            }
        }
        self.forget(&volume).await?;
        Ok(None)
    }

    /// A node that is gone took its folders along.
    async fn remove(&self, node: &str, name: &str) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.context.client.clone());
        if nodes.get_opt(node).await.says("look for the node of a volume")?.is_none() {
            return Ok(());
        }
        self.ask::<serde_json::Value>(http::Method::DELETE, node, name).await.map(drop)
    }

    /// The object goes: first it is deleted, then nothing holds it any more.
    async fn forget(&self, volume: &PersistentVolume) -> Result<()> {
        let api: Api<PersistentVolume> = Api::all(self.context.client.clone());
        let name = volume.name_any();
        let mut latest = volume.clone();
        if volume.metadata.deletion_timestamp.is_none() {
            let preconditions = Preconditions { uid: volume.uid(), resource_version: None };
            let parameters = DeleteParams::default().preconditions(preconditions);
            match api.delete(&name, &parameters).await {
                Ok(answer) => match answer.left() {
                    Some(left) => latest = left,
                    None => return Ok(()),
                },
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => return Err(error).says("delete a released volume"),
            }
        }
        latest
            .metadata
            .finalizers
            .get_or_insert_default()
            .retain(|one| one != storage::PROVISIONER_FINALIZER);
        match api.replace(&name, &PostParams::default(), &latest).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error).says("let go of a released volume"),
        }
    }

    /// Asks a node about the folder of this name.
    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        method: http::Method,
        node: &str,
        name: &str,
    ) -> Result<T> {
        let path = format!("/api/v1/nodes/{node}/proxy/localPath/{name}");
        let request = http::Request::builder().method(method).uri(path).header("accept", "application/json");
        let request = request.body(Vec::new()).map_err(|e| Error::Api {
            what: "name the folder of a volume",
            source: Box::new(kube::Error::HttpError(e)),
        })?;
        self.context
            .client
            .request::<T>(request)
            .await
            .says("have a node make or remove the folder of a volume")
    }
}
