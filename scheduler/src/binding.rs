//! What the scheduler writes: a binding for a pod that found its node, a condition and an Event for one
//! that did not.

use std::collections::BTreeMap;
use std::sync::Arc;

use decapod_api::storage;
use decapod_client::clock::Clock;
use decapod_client::error::ErrorExt;
use decapod_client::event::Recorder;
use k8s_openapi::api::core::v1::{
    Binding, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod, PodCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::response::Status;
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::{Value, json};

use crate::core::plugins::Assignment;
use crate::core::preempt::Candidate;

/// Why a decision could not be carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The API server refused the binding or did not answer.
    #[error("cannot bind the pod")]
    Bind(#[source] Box<kube::Error>),
    /// The pod's claims could not be told of the node.
    #[error("cannot have the volumes of the pod bound")]
    Volumes(#[source] Box<kube::Error>),
    /// A pod of lower priority could not be removed.
    #[error("cannot remove a pod of lower priority")]
    Preempt(#[source] Box<kube::Error>),
}

/// How a binding ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// The pod is bound.
    Yes,
    /// The pod is gone, or another is in its place, or it is bound already: nothing is left to do, what
    /// became of it comes as a change.
    Moot,
    /// Its volumes are on their way: it is bound once they are there.
    Waits,
}

/// Writes in the scheduler's name.
#[derive(Clone)]
pub(crate) struct Writer {
    pub(crate) client: Client,
    /// Who tells of the pods of each profile, by its name.
    pub(crate) recorders: Arc<BTreeMap<String, Recorder>>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Writer {
    /// Binds `pod` to the node `node`.
    ///
    /// # Errors
    /// When the API server refused or did not answer: the pod has to be tried again.
    pub(crate) async fn bind(&self, pod: &Pod, node: &str) -> Result<Bound, Error> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.clone()),
                uid: pod.uid(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let answer: kube::Result<Status> =
            api.create_subresource("binding", &name, &PostParams::default(), &binding).await;
        match answer {
            Ok(_) => {
                let message = format!("Successfully assigned {namespace}/{name} to {node}");
                self.tell(pod, |recorder| recorder.normal(pod, "Scheduled", message));
                Ok(Bound::Yes)
            }
            Err(error) if error.is_not_found() || error.is_conflict() => {
                tracing::debug!(pod = name, namespace, node, %error, "the binding is moot");
                Ok(Bound::Moot)
            }
            Err(error) => {
                let message = format!("running Bind plugin \"DefaultBinder\": {}", words(&error));
                self.tell(pod, |recorder| recorder.warning(pod, "FailedScheduling", message.clone()));
                self.note(pod, "SchedulerError", &message, None).await;
                Err(Error::Bind(Box::new(error)))
            }
        }
    }

    /// Gives the claims that waited for `node` their volumes, or has them made there.
    ///
    /// # Errors
    /// When the API server refused or did not answer: the pod has to be tried again.
    pub(crate) async fn assign(&self, assignments: &[Assignment], node: &str) -> Result<Bound, Error> {
        for assignment in assignments {
            match self.assign_one(assignment, node).await {
                Ok(()) => {}
                // It changed since: the change is on its way here.
                Err(error) if error.is_not_found() || error.is_conflict() => return Ok(Bound::Moot),
                Err(error) => return Err(Error::Volumes(Box::new(error))),
            }
        }
        Ok(Bound::Waits)
    }

    async fn assign_one(&self, assignment: &Assignment, node: &str) -> kube::Result<()> {
        let parameters = PostParams::default();
        match assignment {
            Assignment::Bind(claim, volume) => {
                if storage::refers_to(volume, claim) {
                    return Ok(());
                }
                let mut bound = PersistentVolume::clone(volume);
                bound.spec.get_or_insert_default().claim_ref = Some(claim.object_ref(&()));
                let annotations = bound.metadata.annotations.get_or_insert_default();
                annotations.insert(storage::BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
                let api: Api<PersistentVolume> = Api::all(self.client.clone());
                api.replace(&volume.name_any(), &parameters, &bound).await.map(drop)
            }
            Assignment::Provision(claim) => {
                let mut told = PersistentVolumeClaim::clone(claim);
                let annotations = told.metadata.annotations.get_or_insert_default();
                let known = annotations.insert(storage::SELECTED_NODE.to_owned(), node.to_owned());
                if known.as_deref() == Some(node) {
                    return Ok(());
                }
                let namespace = claim.namespace().unwrap_or_default();
                let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
                api.replace(&claim.name_any(), &parameters, &told).await.map(drop)
            }
        }
    }

    /// Records an event in the name of the pod's scheduler.
    fn tell(&self, pod: &Pod, record: impl FnOnce(&Recorder)) {
        let name = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
        if let Some(recorder) = self.recorders.get(name.unwrap_or("default-scheduler")) {
            record(recorder);
        }
    }

    /// Has the pods of a candidate leave for `pod`: each is told why, then deleted.
    ///
    /// # Errors
    /// When the API server refused or did not answer: the pod has to be tried again.
    pub(crate) async fn preempt(&self, pod: &Pod, candidate: &Candidate) -> Result<(), Error> {
        for victim in &candidate.victims {
            if victim.pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            match self.remove(&victim.pod, pod).await {
                Ok(()) => {
                    let message = format!(
                        "Preempted by pod {} on node {}",
                        pod.uid().unwrap_or_default(),
                        candidate.node
                    );
                    self.tell(pod, |recorder| recorder.normal(&*victim.pod, "Preempted", message));
                }
                // Gone already, or another of its name.
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => return Err(Error::Preempt(Box::new(error))),
            }
        }
        Ok(())
    }

    async fn remove(&self, victim: &Pod, pod: &Pod) -> kube::Result<()> {
        let scheduler = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
        let condition = PodCondition {
            type_: "DisruptionTarget".to_owned(),
            status: "True".to_owned(),
            reason: Some("PreemptionByScheduler".to_owned()),
            message: Some(format!(
                "{}: preempting to accommodate a higher priority pod",
                scheduler.unwrap_or("default-scheduler")
            )),
            last_transition_time: Some(Time(self.clock.now())),
            observed_generation: victim.metadata.generation,
            last_probe_time: None,
        };
        let patch = json!({"metadata": {"uid": victim.uid()}, "status": {"conditions": [condition]}});
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &victim.namespace().unwrap_or_default());
        let name = victim.name_any();
        api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        let preconditions = Preconditions { uid: victim.uid(), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        api.delete(&name, &parameters).await.map(drop)
    }

    /// Tells why `pod` found no node; and which one it was promised instead, or (empty) that it is none any more.
    pub(crate) async fn tell_unschedulable(&self, pod: &Pod, message: &str, nomination: Option<&str>) {
        self.tell(pod, |recorder| recorder.warning(pod, "FailedScheduling", message));
        self.note(pod, "Unschedulable", message, nomination).await;
    }

    /// Tells that `pod` is held back by its scheduling gates.
    pub(crate) async fn tell_gated(&self, pod: &Pod) {
        let message = "Scheduling is blocked due to non-empty scheduling gates";
        self.note(pod, "SchedulingGated", message, None).await;
    }

    /// Tells that `pod` is promised no node any more.
    pub(crate) async fn renounce(&self, pod: &Pod) {
        let status = json!({"nominatedNodeName": null});
        self.patch(pod, &status).await;
    }

    /// Sets the condition `PodScheduled` to false. It is a help for people: should it fail, the next try
    /// writes it again.
    async fn note(&self, pod: &Pod, reason: &str, message: &str, nomination: Option<&str>) {
        let known = pod.status.as_ref().and_then(|status| {
            status.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled")
        });
        let is_same = |known: &PodCondition| {
            known.status == "False"
                && known.reason.as_deref() == Some(reason)
                && known.message.as_deref() == Some(message)
        };
        let promised = pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref());
        let nomination = nomination.filter(|node| promised.unwrap_or_default() != *node);
        if known.is_some_and(is_same) && nomination.is_none() {
            return;
        }
        let since = known.filter(|known| known.status == "False");
        let since = since.and_then(|known| known.last_transition_time.clone());
        let condition = PodCondition {
            type_: "PodScheduled".to_owned(),
            status: "False".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: Some(since.unwrap_or_else(|| Time(self.clock.now()))),
            observed_generation: pod.metadata.generation,
            last_probe_time: None,
        };
        let mut status = json!({"conditions": [condition]});
        match nomination {
            Some("") => status["nominatedNodeName"] = Value::Null,
            Some(node) => status["nominatedNodeName"] = json!(node),
            None => {}
        }
        self.patch(pod, &status).await;
    }

    async fn patch(&self, pod: &Pod, status: &Value) {
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": status});
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let patched =
            api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await;
        if let Err(error) = patched {
            let error = decapod_client::error::chain(&error);
            tracing::debug!(pod = pod.name_any(), error, "cannot write the pod's status");
        }
    }
}

/// The API server's own words where it answered.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => decapod_client::error::chain(other),
    }
}
