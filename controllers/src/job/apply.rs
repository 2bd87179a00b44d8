//! What the Job controller does to pods. It makes no choices.

use std::collections::HashSet;
use std::sync::Arc;

use decapod_client::ObjectKey;
use decapod_client::error::{self, ErrorExt};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use super::plan::{self, Start, Steps};
use super::track::Numbers;
use super::view::View;
use super::{Controller, pod};
use crate::common::{Error, Result, claim, pods};

/// What was done: the numbers of pods after it, and what went wrong.
pub(super) struct Outcome {
    pub(super) numbers: Numbers,
    pub(super) error: Option<Error>,
}

impl Controller {
    /// Deletes and makes pods.
    pub(super) async fn carry_out(&self, key: &ObjectKey, view: &View<'_>, steps: Steps) -> Outcome {
        let mut numbers =
            Numbers { active: view.active.len(), ready: view.ready(), terminating: view.terminating.len() };
        let (unwanted, first) = self.release(key, &steps.drop).await;
        // A pod whose end would still be counted must not be deleted yet.
        let free = |pod: &&Arc<Pod>| !pod::is_tracked(pod) || unwanted.contains(pod::uid(pod));
        let goes: Vec<_> = steps.stop.iter().chain(steps.drop.iter().filter(free)).cloned().collect();
        let (gone, second) = self.delete(key, view, &goes).await;
        for pod in gone {
            numbers.active -= 1;
            numbers.ready -= usize::from(pods::is_ready(pod));
            numbers.terminating += 1;
        }
        let (made, third) = self.create(key, view, &steps.start).await;
        numbers.active += made;
        Outcome { numbers, error: [first, second, third].into_iter().find_map(Result::err) }
    }

    /// Takes the finalizer from pods; the uids of those that carry it no more.
    pub(super) async fn release(&self, key: &ObjectKey, pods: &[Arc<Pod>]) -> (HashSet<String>, Result<()>) {
        let api = self.pods(key);
        let patches = pods.iter().filter(|pod| pod::is_tracked(pod)).map(|pod| {
            let patch = release_patch(pod);
            let api = api.clone();
            async move { (pod, api.patch(&pod.name_any(), &PatchParams::default(), &patch).await) }
        });
        let (mut released, mut failures) = (HashSet::new(), Vec::new());
        for (pod, outcome) in join_all(patches).await {
            match outcome {
                Ok(patched) => {
                    self.family.written.wrote(key, &patched);
                    released.insert(pod::uid(pod).to_owned());
                }
                // It is gone, or another pod has its name now.
                Err(error) if error.is_not_found() || error.is_conflict() => {
                    released.insert(pod::uid(pod).to_owned());
                }
                Err(error) => {
                    self.family.written.failed(key, &error);
                    failures.push(error);
                }
            }
        }
        self.let_go(key, released.iter().map(String::as_str));
        (released, Error::of_some(failures, pods.len()))
    }

    /// Deletes pods; those that were.
    async fn delete<'a>(
        &self,
        key: &ObjectKey,
        view: &View<'_>,
        pods: &'a [Arc<Pod>],
    ) -> (Vec<&'a Arc<Pod>>, Result<()>) {
        let api = self.pods(key);
        let deletions = pods.iter().map(|pod| {
            let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
            let parameters = DeleteParams::default().preconditions(preconditions);
            let api = api.clone();
            async move { (pod, api.delete(&pod.name_any(), &parameters).await) }
        });
        let (mut gone, mut failures) = (Vec::new(), Vec::new());
        for (pod, outcome) in join_all(deletions).await {
            match outcome {
                Ok(deleted) => {
                    self.family.written.deleted(key, pod::uid(pod));
                    // Where it only begins to go, the mirror has to show that.
                    if let Some(leaving) = deleted.left() {
                        self.family.written.wrote(key, &leaving);
                    }
                    let message = format!("Deleted pod: {}", pod.name_any());
                    self.recorder.normal(view.job, "SuccessfulDelete", message);
                    gone.push(pod);
                }
                Err(error) if error.is_not_found() || error.is_conflict() => gone.push(pod),
                Err(error) => {
                    self.family.written.failed(key, &error);
                    let message = format!("Error deleting: {}", error::chain(&error));
                    self.recorder.warning(view.job, "FailedDelete", message);
                    failures.push(error);
                }
            }
        }
        (gone, Error::of_some(failures, pods.len()))
    }

    /// Makes pods: one at first, then twice as many after each success; how many were made.
    async fn create(&self, key: &ObjectKey, view: &View<'_>, starts: &[Start]) -> (usize, Result<()>) {
        let api = self.pods(key);
        let owner = claim::controller_reference(view.job);
        let (mut made, mut batch, mut left) = (0, 1, starts);
        while !left.is_empty() {
            let (now, later) = left.split_at(batch.min(left.len()));
            let created = join_all(now.iter().map(|start| {
                let (pod, api) = (plan::pod(view, start, owner.clone()), api.clone());
                async move { api.create(&PostParams::default(), &pod).await }
            }))
            .await;
            let mut failures = Vec::new();
            for outcome in created {
                match outcome {
                    Ok(pod) => {
                        self.family.written.wrote(key, &pod);
                        let message = format!("Created pod: {}", pod.name_any());
                        self.recorder.normal(view.job, "SuccessfulCreate", message);
                        made += 1;
                    }
                    // Nothing can be created in a namespace that is going away; this Job goes with it.
                    Err(error) if error.is_namespace_terminating() => return (made, Ok(())),
                    Err(error) => {
                        self.family.written.failed(key, &error);
                        let message = format!("Error creating: {}", error::chain(&error));
                        self.recorder.warning(view.job, "FailedCreate", message);
                        failures.push(error);
                    }
                }
            }
            if !failures.is_empty() {
                return (made, Error::of_some(failures, now.len()));
            }
            left = later;
            batch *= 2;
        }
        (made, Ok(()))
    }
}

/// Takes the finalizer from this pod, and from no other that has its name.
fn release_patch(pod: &Pod) -> Patch<serde_json::Value> {
    Patch::Strategic(json!({"metadata": {
        "uid": pod.metadata.uid,
        "$deleteFromPrimitiveList/finalizers": [pod::FINALIZER],
    }}))
}
