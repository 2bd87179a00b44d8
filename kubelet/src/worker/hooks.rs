//! What outlasts a sync: stopping containers with grace, and lifecycle hooks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use decapod_client::clock;
use decapod_client::error::chain;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use tokio::sync::watch;

use super::UnderWay;
use super::sync::PodSync;
use crate::probe::{Target, hook};
use crate::shared::Shared;

/// What a container has left after its `preStop` hook or after those that end before it, at least: Kubernetes'
/// minimum.
pub(super) const LEAST_GRACE: Duration = Duration::from_secs(2);

/// How long a pod that is deleted waits until no Service of this node sends it new connections, at most. Its
/// EndpointSlices change in milliseconds; if nobody writes them any more, a pod must end all the same.
const DRAIN: Duration = Duration::from_secs(1);

/// One container to stop.
struct Kill {
    shared: Arc<Shared>,
    under_way: Arc<Mutex<UnderWay>>,
    uid: String,
    id: String,
    /// When it is to be dead, by the monotonic clock.
    deadline: Duration,
}

fn lock(under_way: &Mutex<UnderWay>) -> std::sync::MutexGuard<'_, UnderWay> {
    // Nothing panics while the lock is held.
    under_way.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PodSync {
    fn kill_of(&self, id: &str, grace: Duration) -> Kill {
        let deadline = self.shared.clock.monotonic() + grace;
        let kill = Kill {
            shared: self.shared.clone(),
            under_way: self.state.under_way.clone(),
            uid: self.owner.uid.clone(),
            id: id.to_owned(),
            deadline,
        };
        lock(&kill.under_way).stopping.insert(kill.id.clone(), deadline);
        kill
    }

    /// Stops a container of which no spec is left.
    pub(super) fn kill_plainly(&self, id: &str, grace: Duration) {
        let kill = self.kill_of(id, grace);
        self.shared.supervisor.spawn_until_shutdown("container-stop", kill.run(grace));
    }

    /// Lets the pod's Services forget it if it is being deleted, runs the `preStop` hook if there is one, then
    /// stops the container with what is left of its grace.
    pub(super) fn spawn_kill(
        &self,
        pod: &Arc<Pod>,
        name: &str,
        id: &str,
        grace: Duration,
        (handler, early): (Option<LifecycleHandler>, Option<watch::Receiver<bool>>),
    ) {
        self.shared.probes.rest(&self.owner.uid, name);
        let kill = self.kill_of(id, grace);
        let target = self.target(pod, name, id);
        let (pod, name) = (pod.clone(), name.to_owned());
        let address = pod.metadata.deletion_timestamp.as_ref().and_then(|_| self.ip.parse().ok());
        self.shared.supervisor.spawn_until_shutdown("container-stop", async move {
            if let Some(address) = address {
                // Half of the grace remains the container's in any case.
                let left = kill.shared.traffic.left(address);
                let _in_time = clock::timeout(&*kill.shared.clock, DRAIN.min(grace / 2), left).await;
            }
            if let Some(mut early) = early {
                let left = kill.deadline.saturating_sub(kill.shared.clock.monotonic());
                // If nobody runs it any more it has ended, too.
                let ended = early.wait_for(|ended| *ended);
                let _in_time = clock::timeout(&*kill.shared.clock, left, ended).await.is_some();
            }
            if let (Some(handler), Some(target)) = (handler, target) {
                kill.pre_stop(&pod, &name, &target, &handler, grace).await;
                let left = kill.deadline.saturating_sub(kill.shared.clock.monotonic());
                kill.run(left.max(LEAST_GRACE.min(grace))).await;
            } else {
                let left = kill.deadline.saturating_sub(kill.shared.clock.monotonic());
                kill.run(left).await;
            }
        });
    }

    /// Runs the `preStop` hook of a container that is to stop once others have ended.
    pub(super) fn pre_stop_early(&self, pod: &Arc<Pod>, name: &str, id: &str, grace: Duration) {
        let Some(target) = self.target(pod, name, id) else { return };
        let Some(handler) = target.container.lifecycle.as_ref().and_then(|l| l.pre_stop.clone()) else {
            return;
        };
        let (ended, early) = watch::channel(false);
        lock(&self.state.under_way).pre_stops.insert(id.to_owned(), early);
        self.shared.tell.container(pod, name, "Killing", format!("Stopping container {name}"));
        let kill = Kill {
            shared: self.shared.clone(),
            under_way: self.state.under_way.clone(),
            uid: self.owner.uid.clone(),
            id: id.to_owned(),
            deadline: Duration::MAX,
        };
        let (pod, name) = (pod.clone(), name.to_owned());
        self.shared.supervisor.spawn_until_shutdown("pre-stop-hook", async move {
            kill.pre_stop(&pod, &name, &target, &handler, grace).await;
            ended.send_replace(true);
        });
    }

    /// Runs the `postStart` hook; until it ends the container does not count as started, and if it fails the
    /// container is stopped.
    pub(super) fn post_start(
        &self,
        pod: &Arc<Pod>,
        container: &Container,
        id: &str,
        handler: LifecycleHandler,
    ) {
        let Some(target) = self.target(pod, &container.name, id) else { return };
        let under_way = self.state.under_way.clone();
        lock(&under_way).hooked.insert(container.name.clone());
        let (pod, name) = (pod.clone(), container.name.clone());
        let grace = pod.spec.as_ref().map_or(Duration::ZERO, crate::pod::spec::grace);
        let kill = Kill {
            shared: self.shared.clone(),
            under_way: under_way.clone(),
            uid: self.owner.uid.clone(),
            id: id.to_owned(),
            deadline: Duration::MAX,
        };
        self.shared.supervisor.spawn_until_shutdown("post-start-hook", async move {
            let outcome = hook(&target, &handler).await;
            lock(&under_way).hooked.remove(&name);
            if outcome.success {
                kill.shared.wakes.wake(&kill.uid);
                return;
            }
            kill.shared.tell.container_warning(&pod, &name, "FailedPostStartHook", "PostStartHook failed");
            tracing::warn!(container = name, output = outcome.output, "a postStart hook failed");
            kill.shared.tell.container(&pod, &name, "Killing", "FailedPostStartHook");
            let at = kill.shared.clock.monotonic() + grace;
            lock(&under_way).stopping.insert(kill.id.clone(), at);
            let pre_stop = target.container.lifecycle.as_ref().and_then(|l| l.pre_stop.clone());
            if let Some(handler) = pre_stop {
                kill.pre_stop(&pod, &name, &target, &handler, grace).await;
            }
            let left = at.saturating_sub(kill.shared.clock.monotonic());
            kill.run(left.max(LEAST_GRACE.min(grace))).await;
        });
    }

    fn target(&self, pod: &Pod, name: &str, id: &str) -> Option<Target> {
        let (container, _) = crate::pod::spec::find(pod.spec.as_ref()?, name)?;
        Some(Target {
            exec: Arc::new(self.shared.runtime.clone()),
            clock: self.shared.clock.clone(),
            container_id: id.to_owned(),
            container: Arc::new(container),
            ip: self.ip.clone(),
        })
    }
}

impl Kill {
    async fn pre_stop(
        &self,
        pod: &Pod,
        name: &str,
        target: &Target,
        handler: &LifecycleHandler,
        grace: Duration,
    ) {
        match clock::timeout(&*self.shared.clock, grace, hook(target, handler)).await {
            Some(outcome) if outcome.success => {}
            Some(outcome) => {
                self.shared.tell.container_warning(pod, name, "FailedPreStopHook", "PreStopHook failed");
                tracing::warn!(container = name, output = outcome.output, "a preStop hook failed");
            }
            None => tracing::warn!(container = name, "a preStop hook took all of the grace"),
        }
    }

    async fn run(self, grace: Duration) {
        if let Err(error) = self.shared.runtime.container_stop(&self.id, grace).await {
            tracing::warn!(container = self.id, error = chain(&error), "failed to stop a container");
            // The worker would ask again at once: rest for a moment.
            self.shared.clock.sleep(Duration::from_secs(1)).await;
        }
        lock(&self.under_way).stopping.remove(&self.id);
        self.shared.wakes.wake(&self.uid);
    }
}
