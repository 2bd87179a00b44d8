//! The kinds that keep a number of pods: ReplicaSet, and ReplicationController from before it. They differ
//! in their types alone; all else works on what is common to them, in the terms of the ReplicaSet.

use decapod_api::labels::Selector;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};

use crate::common::Result;
use crate::common::family::Owner;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) replicas: i32,
    pub(super) min_ready_seconds: i32,
    pub(super) template: Option<&'a PodTemplateSpec>,
    /// Whether the status counts pods that are on their way out (KEP-3973).
    pub(super) tells_terminating: bool,
}

/// A kind that keeps a number of pods.
pub(super) trait Set: Owner {
    /// The name of its controller, as Events carry it.
    const CONTROLLER: &'static str;

    fn wanted(&self) -> Wanted<'_>;
    fn status(&self) -> ReplicaSetStatus;
    fn with_status(&self, status: ReplicaSetStatus) -> Self;
}

impl Owner for ReplicaSet {
    fn selector(&self) -> Result<Selector> {
        let selector = self.spec.as_ref().map(|spec| &spec.selector).cloned().unwrap_or_default();
        Ok(Selector::try_from(&selector)?)
    }
}

impl Set for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset-controller";

    fn wanted(&self) -> Wanted<'_> {
        let spec = self.spec.as_ref();
        Wanted {
            replicas: spec.and_then(|spec| spec.replicas).unwrap_or(1),
            min_ready_seconds: spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0),
            template: spec.and_then(|spec| spec.template.as_ref()),
            tells_terminating: true,
        }
    }

    fn status(&self) -> ReplicaSetStatus {
        self.status.clone().unwrap_or_default()
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        Self { status: Some(status), ..self.clone() }
    }
}

impl Owner for ReplicationController {
    fn selector(&self) -> Result<Selector> {
        let selector = self.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        Ok(selector.map_or_else(Selector::nothing, Selector::from_map))
    }
}

impl Set for ReplicationController {
    const CONTROLLER: &'static str = "replication-controller";

    fn wanted(&self) -> Wanted<'_> {
        let spec = self.spec.as_ref();
        Wanted {
            replicas: spec.and_then(|spec| spec.replicas).unwrap_or(1),
            min_ready_seconds: spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0),
            template: spec.and_then(|spec| spec.template.as_ref()),
            tells_terminating: false,
        }
    }

    fn status(&self) -> ReplicaSetStatus {
        let status = self.status.clone().unwrap_or_default();
        let conditions = status.conditions.map(|conditions| conditions.into_iter().map(from_old).collect());
        ReplicaSetStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            terminating_replicas: None,
            conditions,
        }
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        let conditions = status.conditions.map(|conditions| conditions.into_iter().map(to_old).collect());
        let status = ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            conditions,
        };
        Self { status: Some(status), ..self.clone() }
    }
}

fn from_old(condition: ReplicationControllerCondition) -> ReplicaSetCondition {
    let ReplicationControllerCondition { type_, status, reason, message, last_transition_time } = condition;
    ReplicaSetCondition { type_, status, reason, message, last_transition_time }
}

fn to_old(condition: ReplicaSetCondition) -> ReplicationControllerCondition {
    let ReplicaSetCondition { type_, status, reason, message, last_transition_time } = condition;
    ReplicationControllerCondition { type_, status, reason, message, last_transition_time }
}
