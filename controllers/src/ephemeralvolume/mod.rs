//! The ephemeral volume controller: makes the claims of pods' generic ephemeral volumes (KEP-1698). They belong to
//! the pod, and go with it.

use std::sync::Arc;
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::event::Recorder;
use decapod_client::informer::Informer;
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PostParams;
use kube::{Api, ResourceExt};

use crate::common::{Context, Result, Says, claim};

const NAME: &str = "ephemeral-volume-controller";

struct Controller {
    context: Context,
    recorder: Recorder,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context) {
    let queue = Queue::new(context.clock.clone());
    let (pods, claims) = (context.informers.of::<Pod>(), context.informers.of::<PersistentVolumeClaim>());
    let supervisor = &context.supervisor;
    reconcile::feed(supervisor, NAME, pods.subscribe(), &queue, |change| {
        let pod = change.new.as_ref().filter(|pod| volumes(pod).next().is_some());
        pod.map(|_| change.key.clone())
    });
    reconcile::feed(supervisor, NAME, claims.subscribe(), &queue, |change| {
        // A claim that somebody deleted is made again for the pod that owned it.
        let gone = change.old.as_ref().filter(|_| change.new.is_none());
        let owners = gone.into_iter().flat_map(|claim| claim.owner_references().to_vec());
        let owners = owners.filter(|owner| owner.controller == Some(true) && owner.kind == "Pod");
        let namespace = change.key.namespace.clone();
        owners.map(|owner| ObjectKey::new(namespace.clone(), owner.name)).collect::<Vec<_>>()
    });
    let recorder = context.recorder("ephemeral_volume");
    let controller = Arc::new(Controller { context: context.clone(), recorder, pods, claims });
    reconcile::run(supervisor, NAME, &queue, 1, move |key| {
        let controller = controller.clone();
        async move { controller.pod(&key).await }
    });
}

/// The generic ephemeral volumes of a pod that is to live.
fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let lives = pod.metadata.deletion_timestamp.is_none();
    let spec = pod.spec.as_ref().filter(|_| lives);
    spec.into_iter()
        .flat_map(|spec| spec.volumes.iter().flatten())
        .filter(|volume| volume.ephemeral.is_some())
}

/// The claim of one of them.
fn wanted(pod: &Pod, volume: &Volume) -> PersistentVolumeClaim {
    let template = volume.ephemeral.as_ref().and_then(|source| source.volume_claim_template.clone());
    let (meta, spec) = template.map(|t| (t.metadata.unwrap_or_default(), t.spec)).unwrap_or_default();
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    };
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", pod.name_any(), volume.name)),
            namespace: pod.namespace(),
            labels: meta.labels,
            annotations: meta.annotations,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

impl Controller {
    async fn pod(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        self.claims.synced().await;
        let Some(pod) = self.pods.get(key) else { return Ok(None) };
        for volume in volumes(&pod) {
            let wanted = wanted(&pod, volume);
            let name = wanted.name_any();
            if let Some(known) = self.claims.get(&ObjectKey::new(key.namespace.clone(), name.clone())) {
                if !claim::is_controlled_by(&known.metadata, &pod.uid().unwrap_or_default()) {
                    let place = format!("{}/{name}", key.namespace);
                    let message = format!(
                        "PVC {place} was not created for pod {}/{} (pod is not owner)",
                        key.namespace, key.name
                    );
                    self.recorder.warning(&*pod, "FailedEphemeralVolume", message);
                }
                continue;
            }
            let api: Api<PersistentVolumeClaim> =
                Api::namespaced(self.context.client.clone(), &key.namespace);
            match api.create(&PostParams::default(), &wanted).await {
                Ok(_) => {}
                // Made by a write whose answer was lost; or the pod's namespace is going, and with it the pod.
                Err(error) if error.is_already_exists() || error.is_namespace_terminating() => {}
                Err(error) => {
                    let message = format!("ephemeral volume {}: create PVC {name}: {error}", volume.name);
                    self.recorder.warning(&*pod, "FailedEphemeralVolume", message);
                    return Err(error).says("create the claim of an ephemeral volume");
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_claim_is_the_pods_own() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "volumes": [{"name": "plain", "emptyDir": {}}, {"name": "e", "ephemeral":
                {"volumeClaimTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {"storageClassName": "fast"}}}}]}}))
        .unwrap();
        let claims: Vec<_> = volumes(&pod).map(|volume| wanted(&pod, volume)).collect();
        assert_eq!(claims.len(), 1);
        assert_eq!(claims[0].name_any(), "p-e");
        assert_eq!(claims[0].labels()["a"], "b");
        assert!(claim::is_controlled_by(&claims[0].metadata, "u"));
        assert_eq!(claims[0].spec.as_ref().unwrap().storage_class_name.as_deref(), Some("fast"));
        let mut going = pod.clone();
        going.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(volumes(&going).count(), 0);
    }
}
