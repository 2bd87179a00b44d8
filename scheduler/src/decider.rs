//! The core without a cluster around it: who brings the objects gets the decisions. For benchmarks, and for whoever
//! wants to know what would be.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::core::decide::Scheduler;
use crate::core::pod::PodInfo;
use crate::core::profile::Profile;
use crate::core::snapshot::Snapshot;

/// A snapshot and Kubernetes' default profile.
#[derive(Debug)]
pub struct Decider {
    scheduler: Scheduler<StdRng>,
    snapshot: Snapshot,
    profile: Profile,
}

/// What was decided for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It was placed on this node, and counts there from now on.
    Placed(String),
    /// These pods, by uid, would have to leave this node first. The node is promised to the pod from now on.
    Preempts(String, Vec<String>),
    /// No node will do, in Kubernetes' words.
    Refused(String),
}

impl Decider {
    /// Without nodes or pods; the same seed gives the same decisions.
    pub fn new(seed: u64) -> Self {
        Self {
            scheduler: Scheduler::new(StdRng::seed_from_u64(seed)),
            snapshot: Snapshot::default(),
            profile: Profile::new("default-scheduler"),
        }
    }

    /// The node is in this state now.
    pub fn node_put(&mut self, node: Node) {
        self.snapshot.node_put(Arc::new(node));
    }

    /// The node is gone.
    pub fn node_remove(&mut self, name: &str) {
        self.snapshot.node_remove(name);
    }

    /// The pod, which has a node, is in this state now.
    pub fn pod_put(&mut self, pod: Pod) {
        self.snapshot.pod_put(&Arc::new(PodInfo::new(Arc::new(pod))));
    }

    /// The pod of this uid is gone.
    pub fn pod_remove(&mut self, uid: &str) {
        self.snapshot.pod_remove(uid);
    }

    /// Decides for a pod that waits.
    pub fn decide(&mut self, pod: Pod) -> Decision {
        let info = Arc::new(PodInfo::new(Arc::new(pod)));
        match self.scheduler.decide(&info, &self.snapshot, &self.profile) {
            Ok(node) => {
                self.snapshot.unnominate(&info.uid);
                self.snapshot.assume(info, &node);
                Decision::Placed(node)
            }
            Err(failure) => match failure.preemption {
                Some(candidate) => {
                    self.snapshot.nominate(&info, &candidate.node);
                    let victims = candidate.victims.iter().map(|victim| victim.pod.uid().unwrap_or_default());
                    Decision::Preempts(candidate.node.clone(), victims.collect())
                }
                None => Decision::Refused(failure.error.to_string()),
            },
        }
    }
}
