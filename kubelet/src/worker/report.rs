//! Tells the API server: the pod's status, and at last that the pod is gone.

use std::sync::Arc;

use decapod_client::error::{ErrorExt, chain};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};

use super::Next;
use super::mirror::{self, Mirror};
use super::sync::PodSync;
use crate::measured;
use crate::pod::observed::Observed;
use crate::pod::{spec, status};

impl PodSync {
    fn api(&self, pod: &Pod) -> Api<Pod> {
        Api::namespaced(self.shared.client.clone(), spec::namespace(pod))
    }

    /// Writes the status if it changed; false if the API server could not be told.
    pub(super) async fn report(&mut self, pod: &Arc<Pod>, observed: &Observed, terminal: bool) -> bool {
        let old = self.newest_status(pod);
        let hooked = self.under_way().hooked.clone();
        let new = status::compute(&status::Input {
            pod,
            old: &old,
            observed,
            waiting: &self.state.waiting,
            hooked: &hooked,
            verdicts: &self.shared.probes,
            terminal,
            failure: self.state.failure.as_ref(),
            messages: &self.state.messages,
            host_ips: &self.shared.host_ips,
            runtime: &self.shared.runtime_name,
            now: self.shared.clock.now(),
        });
        self.measure_start(&old, &new);
        let uid = match &self.local {
            None => spec::uid(pod).to_owned(),
            Some(local) => match mirror::ensure(&self.shared, pod, local).await {
                Mirror::Is(uid) => uid,
                Mirror::Later => return true,
                Mirror::Unknown => return false,
            },
        };
        let Some(patch) = status::patch(&uid, &old, &new) else {
            return true;
        };
        let began = self.shared.clock.monotonic();
        let answer = self
            .api(pod)
            .patch_status(spec::name(pod), &PatchParams::default(), &Patch::Strategic(&patch))
            .await;
        match answer {
            Ok(answer) => {
                measured::reported(self.shared.clock.monotonic().saturating_sub(began));
                let revision = revision(&answer);
                self.state.known = answer.status.map(|status| (status, revision));
                true
            }
            // The pod is gone, or another one has its name: the informer will say so.
            Err(error) if error.is_not_found() || error.is_conflict() => {
                tracing::debug!(pod = spec::name(pod), error = chain(&error), "the status was not wanted");
                true
            }
            Err(error) => {
                tracing::warn!(
                    pod = spec::name(pod),
                    namespace = spec::namespace(pod),
                    error = chain(&error),
                    "the status could not be written"
                );
                false
            }
        }
    }

    /// Notes when a pod that was never reported is first seen.
    pub(super) fn note_start(&mut self, pod: &Pod) {
        let reported = pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
        if !reported && self.state.known.is_none() && self.state.starting.is_none() {
            self.state.starting = Some(self.shared.clock.monotonic());
        }
    }

    /// Notes how long the pod took from its first sync until it runs; not of one that ran before.
    fn measure_start(&mut self, old: &PodStatus, new: &PodStatus) {
        let now = self.shared.clock.monotonic();
        if new.phase.as_deref() == Some("Running")
            && let Some(since) = self.state.starting.take()
            && old.phase.as_deref() != Some("Running")
        {
            self.shared.measures.started(now.saturating_sub(since));
        }
    }

    /// The informer lags behind our own writes: the newer of both is the status to compare with.
    fn newest_status(&self, pod: &Pod) -> PodStatus {
        let seen = revision(pod);
        match &self.state.known {
            Some((known, at)) if *at > seen => known.clone(),
            _ => pod.status.clone().unwrap_or_default(),
        }
    }

    /// Nothing of the pod is on this node any more: the API server may forget it.
    pub(super) async fn delete(&mut self, pod: &Pod) -> Next {
        if let Some(local) = &self.local {
            let own = local.mirror.as_deref().filter(|m| mirror::mirrored(m) == Some(spec::uid(pod)));
            return match own {
                Some(own) if !mirror::remove(&self.shared, own).await => Next::Retry,
                _ => Next::Gone,
            };
        }
        if self.state.delete_asked {
            // Finalizers hold it; the API server needs no reminder.
            return Next::Rest;
        }
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(spec::uid(pod).to_owned()),
                ..Preconditions::default()
            }),
            ..DeleteParams::default()
        };
        match self.api(pod).delete(spec::name(pod), &parameters).await {
            Ok(_) => {
                self.state.delete_asked = true;
                Next::Rest
            }
            Err(error) if error.is_not_found() || error.is_conflict() => Next::Rest,
            Err(error) => {
                tracing::warn!(
                    pod = spec::name(pod),
                    namespace = spec::namespace(pod),
                    error = chain(&error),
                    "the deletion could not be finished"
                );
                Next::Retry
            }
        }
    }
}

/// An object's revision as a number; 0 where it is none, so that the informer's view wins.
fn revision(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}
