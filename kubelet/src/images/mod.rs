//! Images for containers: what is here and may be used is used, what is missing is pulled, what cannot be pulled is
//! tried again with doubling delays while the pod tells the real cause.
//!
//! A pull never blocks a pod's worker: it runs as a task of its own and wakes the worker when it is done.

mod access;
mod gc;
mod keyring;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::clock::Clock;
use decapod_client::error::chain;
use decapod_client::task::Supervisor;
use decapod_proto::cri;
use decapod_runtime::{Runtime, repository_of};
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::Semaphore;

use crate::Options;
use crate::pod::status::Waiting;
use crate::pod::{Uid, spec};
use crate::shared::Shared;
use crate::tell::Tell;
use crate::volume::Objects;
use crate::wake::Wakes;

use access::{Accesses, Allowed};
pub(crate) use gc::{Collector, in_use};
use keyring::{Keyring, Known};

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

/// What a pull is for.
struct Wanted<'a> {
    pod: &'a Arc<Pod>,
    /// The container's name.
    container: &'a str,
    /// As the spec has it.
    reference: &'a str,
    /// Its full name without tag.
    repository: &'a str,
    /// An image of that name is here, though it is not the one to use unseen.
    is_here: bool,
}

/// The images of the node.
#[derive(Clone)]
pub(crate) struct Images {
    inner: Arc<Inner>,
}

/// What the images of a node work with.
pub(crate) struct Parts {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) supervisor: Supervisor,
    pub(crate) wakes: Wakes,
    pub(crate) tell: Tell,
    pub(crate) objects: Arc<Objects>,
}

struct Inner {
    parts: Parts,
    accesses: Accesses,
    /// Files of Docker's that have the node's own credentials.
    node_configs: Vec<PathBuf>,
    /// Pulls that may run at once.
    slots: Semaphore,
    pulls: Mutex<HashMap<Key, Pull>>,
}

impl Images {
    /// Opens the records of the node's pulls, in its data directory.
    pub(crate) fn new(options: &Options, parts: Parts) -> std::io::Result<Self> {
        let accesses = Accesses::open(options.data_dir.join("image_manager"))?;
        let slots = Semaphore::new(options.parallel_pulls.clamp(1, Semaphore::MAX_PERMITS));
        let node_configs = options.docker_configs.clone();
        let inner = Inner { parts, accesses, node_configs, slots, pulls: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Who removes images that nobody uses.
    pub(crate) fn collector(&self, shared: Arc<Shared>) -> Collector {
        Collector::new(self.clone(), shared)
    }

    /// The image of a container, or why it is not here.
    pub(crate) async fn ensure(&self, pod: &Arc<Pod>, container: &Container) -> Ready {
        let inner = &self.inner;
        let reference = container.image.clone().unwrap_or_default();
        let Ok(repository) = repository_of(&reference) else {
            return inner.invalid_name(pod, &container.name, &reference);
        };
        let image = cri::ImageSpec { image: reference.clone(), ..Default::default() };
        let local = match inner.parts.runtime.image_status(&image).await {
            Ok(local) => local,
            Err(error) => {
                let message = format!("Failed to inspect image \"{reference}\": {}", chain(&error));
                inner.parts.tell.container_warning(pod, &container.name, "InspectFailed", &message);
                return inner.waits(pod, &container.name, "ImageInspectError", message);
            }
        };
        let key = (spec::uid(pod).to_owned(), reference.clone());
        let local = match local {
            Some(local) if inner.has_pulled(&key) => return Ready::Here(Box::new(local)),
            local => local,
        };
        let wanted = Wanted {
            pod,
            container: &container.name,
            reference: &reference,
            repository: &repository,
            is_here: local.is_some(),
        };
        match (container.image_pull_policy.as_deref().unwrap_or("IfNotPresent"), local) {
            ("Always", _) => self.pulled(&wanted, key),
            (policy, Some(local)) => {
                if inner.may_use(&wanted, &local.id).await {
                    let message = format!(
                        "Container image \"{reference}\" already present on machine and can be accessed by the pod"
                    );
                    inner.parts.tell.container(pod, &container.name, "Pulled", message);
                    inner.pulls().remove(&key);
                    return Ready::Here(Box::new(local));
                }
                if policy == "Never" { inner.never(&wanted) } else { self.pulled(&wanted, key) }
            }
            ("Never", None) => inner.never(&wanted),
            (_, None) => self.pulled(&wanted, key),
        }
    }

    /// Forgets the pulls of a pod that is gone.
    pub(crate) fn release(&self, uid: &str) {
        self.inner.pulls().retain(|(pod, _), _| pod != uid);
    }

    /// The outcome of the pull that this start needs.
    fn pulled(&self, wanted: &Wanted<'_>, key: Key) -> Ready {
        let inner = &self.inner;
        let now = inner.parts.clock.monotonic();
        let mut pulls = inner.pulls();
        match pulls.get_mut(&key) {
            Some(Pull::Running) => Ready::Pulling,
            Some(Pull::Failed { cause, until, told, .. }) if now < *until => {
                if !*told {
                    *told = true;
                    let waiting = Waiting { reason: "ErrImagePull", message: cause.clone() };
                    return Ready::Waits(waiting, Some(Duration::ZERO));
                }
                let wait = *until - now;
                let brief = format!("Back-off pulling image \"{}\"", wanted.reference);
                inner.parts.tell.container(wanted.pod, wanted.container, "BackOff", &brief);
                let message = format!("{brief}: ErrImagePull: {cause}");
                let Ready::Waits(waiting, _) =
                    inner.waits(wanted.pod, wanted.container, "ImagePullBackOff", message)
                else {
                    return Ready::Pulling;
                };
                Ready::Waits(waiting, Some(wait))
            }
            // What was pulled and is gone again is pulled again.
            Some(Pull::Pulled | Pull::Failed { .. }) | None => {
                let last = match pulls.insert(key.clone(), Pull::Running) {
                    Some(Pull::Failed { delay, .. }) => Some(delay),
                    _ => None,
                };
                self.start(wanted, key, last);
                Ready::Pulling
            }
        }
    }

    fn start(&self, wanted: &Wanted<'_>, key: Key, last: Option<Duration>) {
        let inner = self.inner.clone();
        let (pod, container) = (wanted.pod.clone(), wanted.container.to_owned());
        let (repository, is_here) = (wanted.repository.to_owned(), wanted.is_here);
        self.inner.parts.supervisor.spawn_until_shutdown("image-pull", async move {
            let wanted = Wanted {
                pod: &pod,
                container: &container,
                reference: &key.1,
                repository: &repository,
                is_here,
            };
            let pull = inner.pull(&wanted, last).await;
            // A pod that went away meanwhile has nobody to tell.
            if let Some(entry) = inner.pulls().get_mut(&key) {
                *entry = pull;
            }
            inner.parts.wakes.wake(&key.0);
        });
    }
}

impl Inner {
    /// True once after a pull for this pod: the next start looks again, as its policy asks.
    fn has_pulled(&self, key: &Key) -> bool {
        let mut pulls = self.pulls();
        let pulled = matches!(pulls.get(key), Some(Pull::Pulled));
        if pulled {
            pulls.remove(key);
        }
        pulled
    }

    fn waits(&self, pod: &Pod, container: &str, reason: &'static str, message: String) -> Ready {
        self.parts.tell.container_warning(pod, container, "Failed", format!("Error: {reason}"));
        Ready::Waits(Waiting { reason, message }, Some(BACKOFF_FIRST))
    }

    fn invalid_name(&self, pod: &Pod, container: &str, reference: &str) -> Ready {
        let message = format!(
            "Failed to apply default image tag \"{reference}\": couldn't parse image name \"{reference}\": \
             invalid reference format"
        );
        self.parts.tell.container_warning(pod, container, "InspectFailed", &message);
        self.waits(pod, container, "InvalidImageName", message)
    }

    /// Not here, or not for this pod: which of the two is not told.
    fn never(&self, wanted: &Wanted<'_>) -> Ready {
        let message =
            format!("Container image \"{}\" is not present with pull policy of Never", wanted.reference);
        self.parts.tell.container_warning(wanted.pod, wanted.container, "ErrImageNeverPull", &message);
        self.waits(wanted.pod, wanted.container, "ErrImageNeverPull", message)
    }

    /// Whether the pod may use an image that is here without asking its registry.
    async fn may_use(&self, wanted: &Wanted<'_>, image: &str) -> bool {
        match self.accesses.allowed(wanted.reference, wanted.repository, image) {
            Allowed::Yes => true,
            Allowed::No => false,
            Allowed::WithProof => match self.credentials(wanted).await {
                Ok(credentials) => self.accesses.proven(wanted.repository, image, &credentials),
                // The pull that follows tells what is wrong with them.
                Err(_) => false,
            },
        }
    }

    /// The credentials for an image: of the pod's Secrets, then the node's own.
    async fn credentials(&self, wanted: &Wanted<'_>) -> Result<Vec<Known>, keyring::Error> {
        let pod = wanted.pod;
        let mut of_pod = Keyring::default();
        let mut missing = Vec::new();
        let named = pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten());
        for name in named.map(|secret| secret.name.as_str()).filter(|name| !name.is_empty()) {
            let key = ObjectKey::new(spec::namespace(pod), name);
            match self.parts.objects.secret(spec::uid(pod), &key).await {
                Ok(Some(secret)) => of_pod.add_secret(&secret)?,
                Ok(None) | Err(_) => missing.push(name.to_owned()),
            }
        }
        if !missing.is_empty() {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            self.parts.tell.pod_warning(pod, "FailedToRetrieveImagePullSecret", message);
        }
        let mut of_node = Keyring::default();
        for file in &self.node_configs {
            let place = file.display().to_string();
            match std::fs::read(file) {
                Ok(json) => of_node.add_config(&json, &place, None)?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(%error, place, "the node's credentials cannot be read"),
            }
        }
        Ok(of_pod.lookup(wanted.repository).into_iter().chain(of_node.lookup(wanted.repository)).collect())
    }

    async fn pull(&self, wanted: &Wanted<'_>, last: Option<Duration>) -> Pull {
        let (tell, reference) = (&self.parts.tell, wanted.reference);
        tell.container(wanted.pod, wanted.container, "Pulling", format!("Pulling image \"{reference}\""));
        let asked = self.parts.clock.monotonic();
        let slot = self.slots.acquire().await;
        let began = self.parts.clock.monotonic();
        let result = self.fetch(wanted).await;
        drop(slot);
        let now = self.parts.clock.monotonic();
        match result {
            Ok(size) => {
                let message = format!(
                    "Successfully pulled image \"{reference}\" in {} ({} including waiting). Image size: {size} bytes.",
                    seconds(now - began),
                    seconds(now - asked)
                );
                tell.container(wanted.pod, wanted.container, "Pulled", message);
                Pull::Pulled
            }
            Err(mut cause) => {
                if wanted.is_here {
                    cause.push_str(
                        "; an image of that name is on this node: imagePullPolicy IfNotPresent uses it as it is",
                    );
                }
                let message = format!("Failed to pull image \"{reference}\": {cause}");
                tell.container_warning(wanted.pod, wanted.container, "Failed", message);
                tell.container_warning(wanted.pod, wanted.container, "Failed", "Error: ErrImagePull");
                let delay = last.map_or(BACKOFF_FIRST, |d| (d * 2).min(BACKOFF_MAX));
                Pull::Failed { cause, until: now + delay, delay, told: false }
            }
        }
    }

    /// Pulls with one of the credentials after the other; the size of the image, or why none did.
    async fn fetch(&self, wanted: &Wanted<'_>) -> Result<u64, String> {
        let credentials = self.credentials(wanted).await.map_err(|error| chain(&error))?;
        let noted = |what: &str, result: std::io::Result<()>| {
            if let Err(error) = result {
                tracing::warn!(%error, image = wanted.reference, "{what} cannot be recorded");
            }
        };
        self.accesses
            .intend(wanted.reference)
            .map_err(|error| format!("the pull cannot be recorded on this node's disk: {error}"))?;
        let image = cri::ImageSpec { image: wanted.reference.to_owned(), ..Default::default() };
        let result = self.try_all(&image, &credentials).await;
        let size = match &result {
            Ok((id, used)) => {
                noted("a pull", self.accesses.record(wanted.repository, id, used.as_ref()));
                match self.parts.runtime.image_status(&image).await {
                    Ok(found) => found.map_or(0, |image| image.size),
                    // Only the event's text suffers; the next look at the image tells.
                    Err(_) => 0,
                }
            }
            Err(_) => 0,
        };
        noted("the end of a pull", self.accesses.end(wanted.reference));
        result.map(|_| size)
    }

    async fn try_all(
        &self,
        image: &cri::ImageSpec,
        credentials: &[Known],
    ) -> Result<(String, Option<Known>), String> {
        if credentials.is_empty() {
            let pulled = self.parts.runtime.image_pull(image, None).await;
            return pulled.map(|id| (id, None)).map_err(|error| cause(&error));
        }
        let mut causes: Vec<String> = Vec::new();
        for known in credentials {
            match self.parts.runtime.image_pull(image, Some(&known.auth)).await {
                Ok(id) => return Ok((id, Some(known.clone()))),
                Err(error) => causes.push(cause(&error)),
            }
        }
        causes.dedup();
        Err(if causes.len() == 1 { causes.remove(0) } else { format!("[{}]", causes.join(", ")) })
    }

    fn pulls(&self) -> MutexGuard<'_, HashMap<Key, Pull>> {
        // Nothing panics while the lock is held.
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The credentials that a file of Docker's (`config.json`) has for an image, the most specific first.
///
/// # Errors
/// If the file cannot be read or is not of that form, or the name is not an image's.
pub fn docker_credentials(
    file: &std::path::Path,
    reference: &str,
) -> Result<Vec<cri::AuthConfig>, Box<dyn std::error::Error + Send + Sync>> {
    let mut keyring = Keyring::default();
    keyring.add_config(&std::fs::read(file)?, &file.display().to_string(), None)?;
    Ok(keyring.lookup(&repository_of(reference)?).into_iter().map(|known| known.auth).collect())
}

/// In the words that users know from other runtimes.
fn cause(error: &decapod_runtime::Error) -> String {
    match error {
        decapod_runtime::Error::Image { reference, source } => {
            format!("failed to pull and unpack image \"{reference}\": {}", chain(source.as_ref()))
        }
        error => chain(error),
    }
}

/// A duration in milliseconds, as Kubernetes writes it: `523ms`, `1.2s`, `2m0.5s`.
fn seconds(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let rest = format!("{}.{:03}", millis / 1000 % 60, millis % 1000);
    let rest = rest.trim_end_matches('0').trim_end_matches('.');
    if millis < 60_000 { format!("{rest}s") } else { format!("{}m{rest}s", millis / 60_000) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_kubernetes() {
        for (millis, text) in
            [(7, "7ms"), (1000, "1s"), (1230, "1.23s"), (60_000, "1m0s"), (125_050, "2m5.05s")]
        {
            assert_eq!(seconds(Duration::from_millis(millis)), text);
        }
    }
}
