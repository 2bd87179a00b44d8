//! Pods made and deleted many at a time, as an owner needs them: the burst is bounded, and an API server that
//! refuses is not asked five hundred times.

use std::fmt::Debug;
use std::sync::Arc;

use decapod_client::ObjectKey;
use decapod_client::error::{self, ErrorExt};
use decapod_client::event::Recorder;
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};

use super::expect::Expectations;
use super::{Error, Result};

/// Pods created or deleted in one step: bounds the burst on the API server; what is left follows in the
/// next step, as Kubernetes does.
pub(crate) const BURST: usize = 500;

/// Creations at once at first, twice as many after each success.
const SLOW_START: usize = 1;

/// The sizes of the groups in which `count` things are done: one, two, four, ...
pub(crate) fn slow_start(count: usize) -> impl Iterator<Item = usize> {
    let mut left = count;
    let sizes = std::iter::successors(Some(SLOW_START), |size| size.checked_mul(2));
    sizes.map_while(move |size| {
        let now = size.min(left);
        left -= now;
        (now > 0).then_some(now)
    })
}

/// Writes the pods of one owner, and tells of it by Events and to the [`Expectations`].
pub(crate) struct Pods<'a, O> {
    pub(crate) client: &'a Client,
    pub(crate) recorder: &'a Recorder,
    pub(crate) written: &'a Expectations,
    pub(crate) key: &'a ObjectKey,
    pub(crate) owner: &'a O,
}

impl<O: Resource<DynamicType = ()> + Debug> Pods<'_, O> {
    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.key.namespace)
    }

    /// Creates the pods, whose names the API server makes up.
    ///
    /// # Errors
    /// Some were refused; those that would have come after them were not tried.
    pub(crate) async fn create(&self, pods: &[Pod]) -> Result<()> {
        let (api, parameters) = (self.api(), PostParams::default());
        let mut rest = pods;
        for now in slow_start(pods.len()) {
            let (group, later) = rest.split_at(now);
            rest = later;
            let mut failures = Vec::new();
            for outcome in join_all(group.iter().map(|pod| api.create(&parameters, pod))).await {
                match outcome {
                    Ok(pod) => {
                        self.written.wrote(self.key, &pod);
                        let message = format!("Created pod: {}", pod.name_any());
                        self.recorder.normal(self.owner, "SuccessfulCreate", message);
                    }
                    // Nothing can be created in a namespace that is going away; the owner goes with it.
                    Err(error) if error.is_namespace_terminating() => return Ok(()),
                    Err(error) => {
                        self.written.failed(self.key, &error);
                        let message = format!("Error creating: {}", error::chain(&error));
                        self.recorder.warning(self.owner, "FailedCreate", message);
                        failures.push(error);
                    }
                }
            }
            Error::of_some(failures, now)?;
        }
        Ok(())
    }

    /// Deletes the pods.
    ///
    /// # Errors
    /// Some deletions were refused; all were tried.
    pub(crate) async fn delete(&self, pods: &[Arc<Pod>]) -> Result<()> {
        let api = self.api();
        let deletions = pods.iter().map(|pod| {
            let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
            let parameters = DeleteParams::default().preconditions(preconditions);
            let api = api.clone();
            async move { (pod, api.delete(&pod.name_any(), &parameters).await) }
        });
        let mut failures = Vec::new();
        for (pod, outcome) in join_all(deletions).await {
            match outcome {
                Ok(_) => {
                    self.written.deleted(self.key, &pod.uid().unwrap_or_default());
                    let message = format!("Deleted pod: {}", pod.name_any());
                    self.recorder.normal(self.owner, "SuccessfulDelete", message);
                }
                // It is gone, or another pod has its name now.
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => {
                    self.written.failed(self.key, &error);
                    let message = format!("Error deleting: {}", error::chain(&error));
                    self.recorder.warning(self.owner, "FailedDelete", message);
                    failures.push(error);
                }
            }
        }
        Error::of_some(failures, pods.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_double_until_all_is_done() {
        assert_eq!(slow_start(0).count(), 0);
        assert_eq!(slow_start(12).collect::<Vec<_>>(), [1, 2, 4, 5]);
    }
}
