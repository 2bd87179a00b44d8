//! Images for containers: what is here is used, what is missing is pulled, what cannot be pulled is tried again with
//! doubling delays while the pod tells the real cause.
//!
//! A pull never blocks a pod's worker: it runs as a task of its own and wakes the worker when it is done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use decapod_client::clock::Clock;
use decapod_client::error::chain;
use decapod_client::task::Supervisor;
use decapod_proto::cri;
use decapod_runtime::Runtime;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::pod::status::Waiting;
use crate::pod::{Uid, spec};
use crate::tell::Tell;
use crate::wake::Wakes;

/// The first delay after a failed pull.
const BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// The longest delay after a failed pull.
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// What a container's image is like now.
#[derive(Debug)]
pub(crate) enum Ready {
    Here(Box<cri::Image>),
    /// A pull is under way; the worker is woken at its end.
    Pulling,
    /// It cannot be had; look again after the delay.
    Waits(Waiting, Option<Duration>),
}

/// One pull per pod and image.
type Key = (Uid, String);

enum Pull {
    Running,
    Pulled,
    Failed { cause: String, until: Duration, delay: Duration, told: bool },
}

/// The images of the node.
#[derive(Clone)]
pub(crate) struct Images {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Arc<dyn Runtime>,
    clock: Arc<dyn Clock>,
    supervisor: Supervisor,
    wakes: Wakes,
    tell: Tell,
    pulls: Mutex<HashMap<Key, Pull>>,
}

impl Images {
    pub(crate) fn new(
        runtime: Arc<dyn Runtime>,
        clock: Arc<dyn Clock>,
        supervisor: Supervisor,
        wakes: Wakes,
        tell: Tell,
    ) -> Self {
        Self { inner: Arc::new(Inner { runtime, clock, supervisor, wakes, tell, pulls: Mutex::default() }) }
    }

    /// The image of a container, or why it is not here.
    pub(crate) async fn ensure(&self, pod: &Arc<Pod>, container: &Container) -> Ready {
        let inner = &self.inner;
        let reference = container.image.clone().unwrap_or_default();
        let image = cri::ImageSpec { image: reference.clone(), ..Default::default() };
        let local = match inner.runtime.image_status(&image).await {
            Ok(local) => local,
            Err(error) => {
                let message = format!("Failed to inspect image \"{reference}\": {}", chain(&error));
                inner.tell.container_warning(pod, &container.name, "InspectFailed", &message);
                return Ready::Waits(Waiting { reason: "ImageInspectError", message }, Some(BACKOFF_FIRST));
            }
        };
        let key = (spec::uid(pod).to_owned(), reference.clone());
        let policy = container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
        match (policy, local) {
            ("Never", None) => {
                let message =
                    format!("Container image \"{reference}\" is not present with pull policy of Never");
                inner.tell.container_warning(pod, &container.name, "ErrImageNeverPull", &message);
                inner.tell.container_warning(pod, &container.name, "Failed", "Error: ErrImageNeverPull");
                Ready::Waits(Waiting { reason: "ErrImageNeverPull", message }, Some(BACKOFF_FIRST))
            }
            ("Always", local) => self.pulled(pod, container, key, local),
            (_, Some(local)) => {
                let message = format!(
                    "Container image \"{reference}\" already present on machine and can be accessed by the pod"
                );
                inner.tell.container(pod, &container.name, "Pulled", message);
                Ready::Here(Box::new(local))
            }
            (_, None) => self.pulled(pod, container, key, None),
        }
    }

    /// Forgets the pulls of a pod that is gone.
    pub(crate) fn release(&self, uid: &str) {
        self.inner.pulls().retain(|(pod, _), _| pod != uid);
    }

    /// The outcome of the pull that this start needs. An image that could not be pulled but is here is used: a node
    /// without its registry goes on running what it has.
    fn pulled(&self, pod: &Arc<Pod>, container: &Container, key: Key, local: Option<cri::Image>) -> Ready {
        let inner = &self.inner;
        let now = inner.clock.monotonic();
        let mut pulls = inner.pulls();
        match pulls.get_mut(&key) {
            Some(Pull::Running) => Ready::Pulling,
            Some(Pull::Pulled) => match local {
                Some(local) => {
                    // The next start pulls again, as its policy asks.
                    pulls.remove(&key);
                    Ready::Here(Box::new(local))
                }
                None => {
                    self.start(pod, container, &key, &mut pulls);
                    Ready::Pulling
                }
            },
            Some(Pull::Failed { cause, .. }) if local.is_some() => {
                tracing::warn!(image = key.1, cause, "the image could not be pulled: the local one is used");
                pulls.remove(&key);
                local.map_or(Ready::Pulling, |image| Ready::Here(Box::new(image)))
            }
            Some(Pull::Failed { cause, until, told, .. }) if now < *until => {
                let wait = Some(*until - now);
                if !*told {
                    *told = true;
                    return Ready::Waits(
                        Waiting { reason: "ErrImagePull", message: cause.clone() },
                        Some(Duration::ZERO),
                    );
                }
                let brief = format!("Back-off pulling image \"{}\"", key.1);
                inner.tell.container(pod, &container.name, "BackOff", &brief);
                inner.tell.container_warning(pod, &container.name, "Failed", "Error: ImagePullBackOff");
                let message = format!("{brief}: ErrImagePull: {cause}");
                Ready::Waits(Waiting { reason: "ImagePullBackOff", message }, wait)
            }
            Some(Pull::Failed { .. }) | None => {
                self.start(pod, container, &key, &mut pulls);
                Ready::Pulling
            }
        }
    }

    fn start(&self, pod: &Arc<Pod>, container: &Container, key: &Key, pulls: &mut HashMap<Key, Pull>) {
        let last = match pulls.insert(key.clone(), Pull::Running) {
            Some(Pull::Failed { delay, .. }) => Some(delay),
            _ => None,
        };
        let inner = self.inner.clone();
        let (pod, name, key) = (pod.clone(), container.name.clone(), key.clone());
        self.inner.supervisor.spawn_until_shutdown("image-pull", async move {
            inner.pull(&pod, &name, &key, last).await;
            inner.wakes.wake(&key.0);
        });
    }
}

impl Inner {
    async fn pull(&self, pod: &Pod, container: &str, key: &Key, last: Option<Duration>) {
        let reference = &key.1;
        self.tell.container(pod, container, "Pulling", format!("Pulling image \"{reference}\""));
        let began = self.clock.monotonic();
        let image = cri::ImageSpec { image: reference.clone(), ..Default::default() };
        let result = self.runtime.image_pull(&image, None).await;
        let now = self.clock.monotonic();
        let pull = match result {
            Ok(_) => {
                let size = match self.runtime.image_status(&image).await {
                    Ok(found) => found.map_or(0, |i| i.size),
                    // Only the event's text suffers; the next look at the image tells.
                    Err(_) => 0,
                };
                let took = format!("{}ms", (now - began).as_millis());
                let message = format!(
                    "Successfully pulled image \"{reference}\" in {took} ({took} including waiting). \
                     Image size: {size} bytes."
                );
                self.tell.container(pod, container, "Pulled", message);
                Pull::Pulled
            }
            Err(error) => {
                let cause = chain(&error);
                let message = format!("Failed to pull image \"{reference}\": {cause}");
                self.tell.container_warning(pod, container, "Failed", message);
                self.tell.container_warning(pod, container, "Failed", "Error: ErrImagePull");
                let delay = last.map_or(BACKOFF_FIRST, |d| (d * 2).min(BACKOFF_MAX));
                Pull::Failed { cause, until: now + delay, delay, told: false }
            }
        };
        // A pod that went away meanwhile has nobody to tell.
        if let Some(entry) = self.pulls().get_mut(key) {
            *entry = pull;
        }
    }

    fn pulls(&self) -> MutexGuard<'_, HashMap<Key, Pull>> {
        // Nothing panics while the lock is held.
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
