//! Eviction: before the node runs out of memory, disk, inodes or process ids, pods are ended, and the node says what
//! it is short of. By Kubernetes' signals, order and messages.
//!
//! What a pod uses is measured only when there is a shortage, or where the pod has a limit of its own: a node with
//! enough of everything costs three reads a pass. A shortage of memory that the kernel notices ([`pressure`]) is
//! looked after at once.
//!
//! **Invariants**: at most one pod goes at a time for a shortage, and the next only when nothing of it runs any more;
//! critical pods never go; that a pod is evicted is decided here, and carried out by its worker like any other end.

mod limits;
mod observe;
mod plan;
mod pressure;
mod reclaim;
pub(crate) mod threshold;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use decapod_api::quantity::Quantity;
use decapod_client::error::chain;
use decapod_proto::cri;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Toleration};
use tokio::sync::Notify;

use crate::pod::{Uid, mark, qos, spec, status};
use crate::shared::Shared;
use crate::usage::{self, PodUsage};
use observe::Observer;
use plan::{Candidate, Observation, Observations, Tracker};
pub(crate) use threshold::Pressure;
use threshold::{Amount, Resource, Signal, Threshold};

/// A pod's folders are measured again after this many times the time that it took, at least.
const REST_OF_MEASURING: u32 = 20;
/// A pod that is evicted for a hard threshold has this long to end.
const GRACE: Duration = Duration::from_secs(1);
/// How long the next eviction waits for the last pod to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(30);
/// The reason of a pod that was evicted, and of its event.
const EVICTED: &str = "Evicted";
/// From this priority on a pod is critical for the node or the cluster.
const CRITICAL: i32 = 2_000_000_000;

/// When to evict.
#[derive(Clone, Debug, PartialEq)]
pub struct EvictionOptions {
    /// Hard and soft thresholds.
    pub thresholds: Vec<Threshold>,
    /// How long a condition of the node holds after it was last observed: 5 min by default.
    pub transition: Duration,
    /// The longest grace that a pod gets for a soft threshold, whatever its own: 0 by default.
    pub max_grace: Duration,
    /// Between two looks at the node: 10 s by default, as in Kubernetes.
    pub period: Duration,
}

impl Default for EvictionOptions {
    /// Kubernetes' thresholds for memory and inodes. A twentieth of a disk in place of its tenth and seventh: the disk
    /// is often a workstation's, where a tenth may be many gigabytes. And 1,000 process ids, where Kubernetes has no
    /// threshold: a node without any cannot even start what would help.
    fn default() -> Self {
        let hard = |signal, value| Threshold { signal, value, grace: None, reclaim: None };
        Self {
            thresholds: vec![
                hard(Signal::MemoryAvailable, Amount::Absolute(100 << 20)),
                hard(Signal::NodeFsAvailable, Amount::Percent(5.0)),
                hard(Signal::NodeFsInodesFree, Amount::Percent(5.0)),
                hard(Signal::ImageFsAvailable, Amount::Percent(5.0)),
                hard(Signal::ImageFsInodesFree, Amount::Percent(5.0)),
                hard(Signal::PidAvailable, Amount::Absolute(1000)),
            ],
            transition: Duration::from_secs(300),
            max_grace: Duration::ZERO,
            period: Duration::from_secs(10),
        }
    }
}

impl EvictionOptions {
    /// What a hard threshold keeps free of a signal: it is not allocatable.
    pub(crate) fn reserve(&self, signal: Signal, capacity: u64) -> u64 {
        let hard = self.thresholds.iter().filter(|t| t.signal == signal && t.grace.is_none());
        hard.map(|threshold| threshold.value.of(capacity)).max().unwrap_or(0)
    }
}

/// That a pod has to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Eviction {
    /// `status.reason`.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) grace: Duration,
    /// The node was short of something, so that the pod is the target of a disruption.
    pub(crate) disruption: bool,
}

/// What the manager has decided: read by pod workers, and by who tells of the node. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evictions {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    pods: BTreeMap<Uid, Eviction>,
    pressures: BTreeSet<Pressure>,
    /// The machine is about to stop.
    stopping: bool,
    /// By signal, for the metrics.
    counts: BTreeMap<&'static str, u64>,
}

impl Evictions {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the pod has to go.
    pub(crate) fn of(&self, uid: &str) -> Option<Eviction> {
        self.state().pods.get(uid).cloned()
    }

    /// What the node is short of.
    pub(crate) fn pressures(&self) -> BTreeSet<Pressure> {
        self.state().pressures.clone()
    }

    /// Returns once what the node is short of has changed.
    pub(crate) async fn changed(&self) {
        self.inner.changed.notified().await;
    }

    /// Evictions by signal.
    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.state().counts.clone()
    }

    /// The machine is about to stop: no pod is taken on any more.
    pub(crate) fn stop(&self) {
        self.state().stopping = true;
        self.inner.changed.notify_one();
    }

    /// Whether the machine is about to stop.
    pub(crate) fn stopping(&self) -> bool {
        self.state().stopping
    }

    /// Has a pod end, unless it has to already.
    pub(crate) fn end(&self, uid: &str, eviction: Eviction) {
        self.state().pods.entry(uid.to_owned()).or_insert(eviction);
    }

    /// Why a pod that is new to the node is not taken on, in Kubernetes' words: a node that is short of memory takes no
    /// BestEffort pod, one that is short of anything else takes none but critical ones. A reason and a message.
    pub(crate) fn refuses(&self, pod: &Pod) -> Option<(&'static str, String)> {
        if self.stopping() {
            let message = "Pod was rejected as the node is shutting down.".to_owned();
            return Some(("NodeShutdown", message));
        }
        let pressures = self.pressures();
        let pod_spec = pod.spec.as_ref()?;
        if pressures.is_empty() || is_critical(pod) {
            return None;
        }
        if pressures.iter().eq([&Pressure::Memory])
            && (qos::class(pod_spec) != qos::Class::BestEffort || tolerates_memory_pressure(pod_spec))
        {
            return None;
        }
        let names: Vec<&str> = pressures.into_iter().map(Pressure::condition).collect();
        Some((EVICTED, format!("The node had condition: [{}]. ", names.join(" "))))
    }
}

fn tolerates_memory_pressure(pod_spec: &PodSpec) -> bool {
    const TAINT: &str = "node.kubernetes.io/memory-pressure";
    let tolerates = |toleration: &Toleration| {
        let key = toleration.key.as_deref().unwrap_or_default();
        let exists = toleration.operator.as_deref() == Some("Exists");
        let value = exists || toleration.value.as_deref().unwrap_or_default().is_empty();
        let effect = toleration.effect.as_deref().is_none_or(|e| e.is_empty() || e == "NoSchedule");
        effect && value && (key == TAINT || (key.is_empty() && exists))
    };
    pod_spec.tolerations.iter().flatten().any(tolerates)
}

/// Whether node or cluster would not work without the pod: it never goes.
pub(crate) fn is_critical(pod: &Pod) -> bool {
    let own = pod.metadata.annotations.as_ref().and_then(|a| a.get("kubernetes.io/config.source"));
    own.is_some_and(|source| source != "api") || priority(pod) >= CRITICAL
}

/// The number that the pod's priority class stands for.
pub(crate) fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
}

/// Looks after the node until it is dropped.
pub(crate) struct Manager {
    shared: Arc<Shared>,
    tracker: Tracker,
    observer: Observer,
    /// When a pod with limits of its own is measured again.
    measured: HashMap<Uid, Duration>,
    /// Who was evicted last, and until when the next one waits for it.
    last: Option<(Uid, Duration)>,
}

impl Manager {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            tracker: Tracker::default(),
            observer: Observer::default(),
            measured: HashMap::new(),
            last: None,
        }
    }

    pub(crate) async fn run(mut self) {
        let shared = self.shared.clone();
        shared.pods.synced().await;
        let mut pressure = pressure::Memory::open();
        loop {
            self.pass().await;
            tokio::select! {
                () = shared.clock.sleep(shared.options.eviction.period) => {}
                () = pressure.rises() => {
                    tracing::info!("the kernel reports pressure on memory");
                }
            }
        }
    }

    async fn pass(&mut self) {
        let shared = self.shared.clone();
        let pods = active(&shared);
        let all: BTreeSet<Uid> = shared.pods.list().iter().map(|pod| spec::uid(pod).to_owned()).collect();
        shared.evictions.state().pods.retain(|uid, _| all.contains(uid));
        self.measured.retain(|uid, _| all.contains(uid));
        let observations = self.observer.look(&shared).await;
        let now = shared.clock.monotonic();
        let options = &shared.options.eviction;
        let step = self.tracker.step(&options.thresholds, &observations, now, options.transition);
        self.tell(step.pressures);
        let evicted = self.enforce_limits(&pods).await;
        let (Some(threshold), false) = (step.due, evicted) else { return };
        if let Err(error) = self.reclaim(&pods, threshold, &observations).await {
            tracing::warn!(error = chain(&error), "nothing can be reclaimed");
        }
    }

    fn tell(&self, pressures: BTreeSet<Pressure>) {
        let mut state = self.shared.evictions.state();
        if state.pressures != pressures {
            tracing::info!(?pressures, "what the node is short of has changed");
            state.pressures = pressures;
            self.shared.evictions.inner.changed.notify_one();
        }
    }

    /// Evicts pods that use more of the disk than they may; true if there was one.
    async fn enforce_limits(&mut self, pods: &[Arc<Pod>]) -> bool {
        let shared = self.shared.clone();
        let mut evicted = false;
        for pod in pods.iter().filter(|pod| limits::limited(pod)) {
            let uid = spec::uid(pod);
            let began = shared.clock.monotonic();
            if self.measured.get(uid).is_some_and(|due| began < *due) || shared.evictions.of(uid).is_some() {
                continue;
            }
            let usage = usage::of_pod(&shared, pod).await;
            let ended = shared.clock.monotonic();
            self.measured.insert(uid.to_owned(), ended + (ended.saturating_sub(began)) * REST_OF_MEASURING);
            if let Some(message) = limits::exceeded(pod, &usage, self.observer.dedicated_images())
                && !is_critical(pod)
            {
                let eviction = Eviction { reason: EVICTED, message, grace: GRACE, disruption: false };
                self.evict(pod, eviction, "ephemeral-storage.limit");
                evicted = true;
            }
        }
        evicted
    }

    /// Reclaims what the node is short of: first what no pod needs, then one pod.
    async fn reclaim(
        &mut self,
        pods: &[Arc<Pod>],
        threshold: Threshold,
        observations: &Observations,
    ) -> Result<(), decapod_runtime::Error> {
        let shared = self.shared.clone();
        let now = shared.clock.monotonic();
        if let Some((uid, until)) = &self.last
            && now < *until
            && shared.pods.list().iter().any(|pod| spec::uid(pod) == uid)
            && runs(&shared, uid).await?
        {
            return Ok(());
        }
        self.last = None;
        let resource = threshold.signal.resource();
        let message = format!("Attempting to reclaim {}", resource.name());
        shared.tell.node_warning(&shared.options.node_name, "EvictionThresholdMet", message);
        if matches!(resource, Resource::Disk | Resource::Inodes)
            && reclaim::remove_images(&shared).await?
            && self.enough(threshold).await
        {
            tracing::info!("removing what no pod needs was enough");
            return Ok(());
        }
        let mut usages = HashMap::new();
        let mut candidates = Vec::new();
        for pod in pods.iter().filter(|pod| !is_critical(pod)) {
            let uid = spec::uid(pod);
            if shared.evictions.of(uid).is_some() {
                continue;
            }
            let usage = usage::of_pod(&shared, pod).await;
            let used = used(&usage, resource);
            let request = request(pod, resource);
            let priority = priority(pod);
            candidates.push(Candidate { uid: uid.to_owned(), priority, usage: used, request });
            usages.insert(uid.to_owned(), (pod, usage));
        }
        plan::rank(&mut candidates, resource);
        let Some((pod, usage)) = candidates.first().and_then(|first| usages.get(&first.uid)) else {
            tracing::warn!(resource = resource.name(), "the node is short of it, and no pod can be evicted");
            return Ok(());
        };
        let own = pod.spec.as_ref().map_or(Duration::ZERO, spec::grace);
        let grace = threshold.grace.map_or(GRACE, |_| own.min(shared.options.eviction.max_grace));
        let observed = observations.get(&threshold.signal).copied();
        let message = message_of(pod, usage, threshold, observed);
        self.last = Some((spec::uid(pod).to_owned(), now + grace + GONE_WITHIN));
        let eviction = Eviction { reason: EVICTED, message, grace, disruption: true };
        self.evict(pod, eviction, threshold.signal.name());
        Ok(())
    }

    /// Whether the threshold is not met any more.
    async fn enough(&mut self, threshold: Threshold) -> bool {
        let observations = self.observer.look(&self.shared).await;
        let observed = observations.get(&threshold.signal);
        observed.is_none_or(|observed| observed.available >= threshold.value.of(observed.capacity))
    }

    fn evict(&self, pod: &Pod, eviction: Eviction, signal: &'static str) {
        tracing::warn!(
            pod = spec::name(pod),
            namespace = spec::namespace(pod),
            message = eviction.message,
            "evicted"
        );
        self.shared.tell.pod_warning(pod, EVICTED, eviction.message.clone());
        let mut state = self.shared.evictions.state();
        state.pods.insert(spec::uid(pod).to_owned(), eviction);
        *state.counts.entry(signal).or_default() += 1;
        drop(state);
        self.shared.wakes.wake(spec::uid(pod));
    }
}

/// The pods that were taken on, and use anything that could be reclaimed.
pub(crate) fn active(shared: &Shared) -> Vec<Arc<Pod>> {
    let active = |pod: &Arc<Pod>| {
        pod.status.as_ref().is_some_and(|own| own.start_time.is_some() && !status::is_terminal(own))
    };
    shared.pods.list().into_iter().filter(active).collect()
}

/// Whether a container of the pod runs.
pub(crate) async fn runs(shared: &Shared, uid: &str) -> Result<bool, decapod_runtime::Error> {
    let filter = cri::ContainerFilter {
        label_selector: [(mark::POD_UID.to_owned(), uid.to_owned())].into(),
        state: Some(cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning as i32 }),
        ..Default::default()
    };
    Ok(!shared.runtime.container_list(Some(&filter)).await?.is_empty())
}

fn used(usage: &PodUsage, resource: Resource) -> Option<u64> {
    match resource {
        Resource::Memory => usage.memory,
        Resource::Pids => usage.processes,
        Resource::Disk => Some(usage.disk().bytes),
        Resource::Inodes => Some(usage.disk().inodes),
    }
}

fn requested(container: &Container, resource: Resource) -> Quantity {
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    let quantity = requests.and_then(|r| Quantity::try_from(r.get(resource.name())?).ok());
    quantity.unwrap_or(Quantity::ZERO)
}

fn request(pod: &Pod, resource: Resource) -> u64 {
    let Some(pod_spec) = &pod.spec else { return 0 };
    let whole = pod_spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    let whole = whole.and_then(|r| Quantity::try_from(r.get(resource.name())?).ok());
    let request = whole.unwrap_or_else(|| qos::together(pod_spec, |c| requested(c, resource)));
    u64::try_from(request.units()).unwrap_or(0)
}

/// Why the pod was chosen, in Kubernetes' words.
fn message_of(pod: &Pod, usage: &PodUsage, threshold: Threshold, observed: Option<Observation>) -> String {
    let resource = threshold.signal.resource();
    let mut message = format!("The node was low on resource: {}. ", resource.name());
    if let Some(observed) = observed {
        let wanted = resource.amount(threshold.value.of(observed.capacity));
        let available = resource.amount(observed.available);
        message += &format!("Threshold quantity: {wanted}, available: {available}. ");
    }
    let spec = pod.spec.iter();
    let containers = spec.flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    for container in containers {
        let Some(own) = usage.containers.get(&container.name) else { continue };
        let used = match resource {
            Resource::Memory => own.memory,
            Resource::Disk => Some(own.rootfs.bytes + own.logs.bytes),
            Resource::Inodes | Resource::Pids => None,
        };
        let request = requested(container, resource);
        if let Some(used) = used.filter(|used| i64::try_from(*used).is_ok_and(|u| u > request.units())) {
            message += &format!(
                "Container {} was using {}, request is {request}, has larger consumption of {}. ",
                container.name,
                resource.amount(used),
                resource.name()
            );
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::usage::ContainerUsage;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn under(pressures: &[Pressure]) -> Evictions {
        let evictions = Evictions::default();
        evictions.state().pressures = pressures.iter().copied().collect();
        evictions
    }

    #[test]
    fn who_is_taken_on_under_pressure() {
        let best_effort = pod(json!({"containers": [{"name": "a"}]}));
        let requests = json!({"requests": {"memory": "1Mi"}});
        let burstable = pod(json!({"containers": [{"name": "a", "resources": requests}]}));
        let critical = pod(json!({"containers": [{"name": "a"}], "priority": 2_000_001_000}));
        let toleration = json!([{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]);
        let tolerant = pod(json!({"containers": [{"name": "a"}], "tolerations": toleration}));
        let refused = |pressures: &[Pressure], pod: &Pod| under(pressures).refuses(pod).map(|(_, why)| why);
        assert_eq!(refused(&[], &best_effort), None);
        let memory = &[Pressure::Memory];
        assert_eq!(
            refused(memory, &best_effort).as_deref(),
            Some("The node had condition: [MemoryPressure]. ")
        );
        for pod in [&burstable, &critical, &tolerant] {
            assert_eq!(refused(memory, pod), None);
        }
        let both = &[Pressure::Memory, Pressure::Disk];
        assert_eq!(
            refused(both, &burstable).as_deref(),
            Some("The node had condition: [MemoryPressure DiskPressure]. ")
        );
        assert_eq!(refused(both, &critical), None);
        let stopping = under(&[]);
        stopping.stop();
        assert_eq!(stopping.refuses(&critical).unwrap().0, "NodeShutdown", "nobody");
    }

    #[test]
    fn why_a_pod_goes() {
        let requests = json!({"requests": {"memory": "1Mi"}});
        let pod = pod(json!({"containers": [{"name": "a", "resources": requests}, {"name": "b"}]}));
        let container = |memory| ContainerUsage { memory: Some(memory), ..ContainerUsage::default() };
        let usage = PodUsage {
            containers: [("a".to_owned(), container(2 << 20)), ("b".to_owned(), container(0))].into(),
            ..PodUsage::default()
        };
        let threshold = EvictionOptions::default().thresholds[0];
        let observed = Some(Observation { available: 50 << 20, capacity: 1 << 30 });
        assert_eq!(
            message_of(&pod, &usage, threshold, observed),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container a was using 2Mi, request is 1Mi, has larger consumption of memory. "
        );
        assert_eq!(request(&pod, Resource::Memory), 1 << 20);
        assert_eq!(EvictionOptions::default().reserve(Signal::NodeFsAvailable, 1000), 50);
    }
}
