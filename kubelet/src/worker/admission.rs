//! Lets a pod in once, before anything of it is made, and remembers that it did.
//!
//! **Invariant**: decisions are taken one after another, each with all pods before it, so that two pods that arrive
//! together never share what only one of them can have.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use decapod_client::error::chain;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;

use super::mirror::mirrored;
use super::sync::PodSync;
use crate::eviction::{Eviction, is_critical};
use crate::node;
use crate::pod::admit::{self, Rejection};
use crate::pod::observed::Observed;
use crate::pod::{Uid, preempt, spec, status};

/// The pods that this kubelet let in. Those of an earlier agent are known by their status: they have started.
#[derive(Debug, Default)]
pub(crate) struct Admitted {
    uids: Mutex<BTreeSet<Uid>>,
}

impl Admitted {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<Uid>> {
        // Nothing panics while the lock is held.
        self.uids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod holds nothing of the node any more.
    pub(super) fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }
}

/// What became of a pod that asked to be let in.
enum Verdict {
    Admitted,
    /// Others are on their way out for it.
    Waits,
    Refused(Rejection),
}

fn started(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|s| s.start_time.is_some())
}

impl PodSync {
    /// Lets the pod in or refuses it, unless that was done before; a pod that was refused has failed. False if it
    /// could not be decided now.
    pub(super) async fn admit(&mut self, pod: &Arc<Pod>, observed: &Observed) -> bool {
        let over = pod.status.as_ref().is_some_and(status::is_terminal);
        let known = over || started(pod) || !observed.sandboxes.is_empty() || self.state.known.is_some();
        if known || pod.metadata.deletion_timestamp.is_some() || self.state.failure.is_some() {
            if !over {
                self.shared.admitted.lock().insert(spec::uid(pod).to_owned());
            }
            return true;
        }
        // A node under pressure takes nobody on whom it would have to evict.
        if let Some((reason, why)) = self.shared.evictions.refuses(pod) {
            self.refuse(pod, Rejection { reason: reason.to_owned(), message: why, by_node: false });
            return true;
        }
        // Before the node is registered it is as it will be: with its labels, and without limits.
        let seen = self.shared.node.list().pop();
        let seen = seen.unwrap_or_else(|| Arc::new(node::unregistered(&self.shared.options)));
        let mut verdict = self.try_admit(pod, &seen, false);
        if let Verdict::Refused(rejection) = &verdict
            && rejection.by_node
        {
            // What the informer has may be older than what the scheduler saw.
            match Api::<Node>::all(self.shared.client.clone()).get_opt(&self.shared.options.node_name).await {
                Ok(Some(node)) => verdict = self.try_admit(pod, &node, true),
                Ok(None) => verdict = self.try_admit(pod, &seen, true),
                // A pod from a file has nobody else to ask.
                Err(_) if self.local.is_some() => verdict = self.try_admit(pod, &seen, true),
                Err(error) => {
                    tracing::warn!(error = chain(&error), "cannot look at the node again");
                    return false;
                }
            }
        }
        match verdict {
            Verdict::Admitted => true,
            // Asked again until they are gone.
            Verdict::Waits => false,
            Verdict::Refused(rejection) => {
                self.refuse(pod, rejection);
                true
            }
        }
    }

    /// `room`: others may have to go for the pod.
    fn try_admit(&self, pod: &Pod, node: &Node, room: bool) -> Verdict {
        let uid = spec::uid(pod);
        let mut admitted = self.shared.admitted.lock();
        if admitted.contains(uid) {
            return Verdict::Admitted;
        }
        let shared = &self.shared;
        let of_api = shared.pods.list().into_iter().filter(|pod| mirrored(pod).is_none());
        let others: Vec<Arc<Pod>> = of_api
            .chain(shared.statics.list())
            .filter(|other| {
                spec::uid(other) != uid && (started(other) || admitted.contains(spec::uid(other)))
            })
            .filter(|other| !other.status.as_ref().is_some_and(status::is_terminal))
            .collect();
        let facts = admit::Facts {
            node,
            others: &others,
            unsafe_sysctls: &self.shared.options.allowed_unsafe_sysctls,
            apparmor: Path::new("/sys/module/apparmor/parameters/enabled").exists(),
        };
        match admit::check(pod, &facts) {
            Ok(()) => {
                admitted.insert(uid.to_owned());
                Verdict::Admitted
            }
            Err(rejection) if room && is_critical(pod) => self.make_room(pod, &facts, rejection),
            Err(rejection) => Verdict::Refused(rejection),
        }
    }

    /// A critical pod is not refused for want of resources: others have to go for it.
    fn make_room(&self, pod: &Pod, facts: &admit::Facts<'_>, rejection: Rejection) -> Verdict {
        if let Err(other) = admit::check_but_resources(pod, facts) {
            return Verdict::Refused(other);
        }
        let Some(pod_spec) = pod.spec.as_ref() else { return Verdict::Refused(rejection) };
        // Those that have to go already are as good as gone.
        let evictions = &self.shared.evictions;
        let staying = |other: &&Arc<Pod>| evictions.of(spec::uid(other)).is_none();
        let others: Vec<Arc<Pod>> = facts.others.iter().filter(staying).cloned().collect();
        let short = admit::shortages(pod_spec, facts.node, &others);
        let Some(victims) = preempt::victims(pod, &others, &short) else {
            let short: Vec<String> =
                short.iter().map(|s| format!("(res: {}, q: {}), ", s.name, s.missing())).collect();
            let message = format!(
                "Unexpected error while attempting to recover from admission failure: preemption: error finding a \
                 set of pods to preempt: no set of running pods found to reclaim resources: [{}]",
                short.concat()
            );
            let reason = "UnexpectedAdmissionError".to_owned();
            return Verdict::Refused(Rejection { reason, message, by_node: rejection.by_node });
        };
        for victim in victims {
            tracing::warn!(
                pod = spec::name(&victim),
                namespace = spec::namespace(&victim),
                critical = spec::name(pod),
                "preempted"
            );
            self.shared.tell.pod_warning(&victim, preempt::REASON, preempt::MESSAGE);
            let eviction = Eviction {
                reason: preempt::REASON,
                message: preempt::MESSAGE.to_owned(),
                grace: victim.spec.as_ref().map_or(Duration::ZERO, spec::grace),
                disruption: true,
            };
            evictions.end(spec::uid(&victim), eviction);
            self.shared.wakes.wake(spec::uid(&victim));
        }
        Verdict::Waits
    }

    fn refuse(&mut self, pod: &Pod, rejection: Rejection) {
        let Rejection { reason, message, .. } = rejection;
        tracing::info!(pod = spec::name(pod), namespace = spec::namespace(pod), reason, message, "refused");
        self.shared.tell.pod_warning(pod, &reason, &message);
        let message = format!("Pod was rejected: {message}");
        self.state.failure = Some(status::Failure { reason, message, disruption: false });
    }
}
