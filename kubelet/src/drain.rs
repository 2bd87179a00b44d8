//! The end of the machine's run: pods are asked to end before the machine does, the critical ones last.
//!
//! The kubelet does not find out by itself that the machine is about to stop: whoever is told ends the pods by
//! [`Drain::pods`], as Kubernetes' graceful node shutdown does (KEP-2000), with its reasons and messages.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::eviction::{self, Eviction};
use crate::pod::spec;
use crate::shared::Shared;

/// Between two looks at what still runs: there is no event for the end of many.
const LOOK: Duration = Duration::from_millis(100);

/// Ends the pods of a kubelet that runs. Cheap to clone.
#[derive(Clone)]
pub struct Drain {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Drain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drain").finish_non_exhaustive()
    }
}

impl Drain {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Ends all pods within `grace`, of which the last part, `critical`, is for the critical ones: the node is told to
    /// be not ready and takes no new ones on. Returns when nothing runs any more, or the time is up.
    pub async fn pods(&self, grace: Duration, critical: Duration) {
        self.shared.evictions.stop();
        let rounds = [(false, grace.saturating_sub(critical)), (true, critical.min(grace))];
        for (is_critical, grace) in rounds {
            let pods: Vec<Arc<Pod>> = eviction::active(&self.shared)
                .into_iter()
                .filter(|pod| eviction::is_critical(pod) == is_critical)
                .collect();
            self.end(&pods, grace).await;
        }
    }

    async fn end(&self, pods: &[Arc<Pod>], grace: Duration) {
        let clock = &self.shared.clock;
        let until = clock.monotonic() + grace;
        for pod in pods {
            let own = pod.spec.as_ref().map_or(Duration::ZERO, spec::grace);
            let eviction = Eviction {
                reason: "Terminated",
                message: "Pod was terminated in response to imminent node shutdown.".to_owned(),
                grace: own.min(grace),
                disruption: true,
            };
            self.shared.evictions.end(spec::uid(pod), eviction);
            self.shared.wakes.wake(spec::uid(pod));
        }
        for pod in pods {
            while clock.monotonic() < until && self.runs(pod).await {
                clock.sleep(LOOK).await;
            }
        }
    }

    /// Whether anything of the pod runs, or the cluster has not been told yet that nothing does.
    async fn runs(&self, pod: &Pod) -> bool {
        match eviction::runs(&self.shared, spec::uid(pod)).await {
            Ok(runs) => {
                runs || eviction::active(&self.shared).iter().any(|one| spec::uid(one) == spec::uid(pod))
            }
            Err(error) => {
                tracing::warn!(%error, "the runtime does not say what still runs");
                false
            }
        }
    }
}
