//! One sync of one pod: look, plan, act, tell.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use decapod_client::error::chain;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;

use super::mirror::Local;
use super::{Next, State, UnderWay, hooks, observe};
use crate::node::{RuntimeState, runtime_state};
use crate::pod::observed::{Observed, Owner};
use crate::pod::plan::{self, Action, Facts, Goal, KillReason, Plan};
use crate::pod::status::{self, Failure, Waiting};
use crate::pod::{observed, qos, spec};
use crate::probe::{Seed, Target};
use crate::shared::Shared;
use crate::tell::format_pod;
use crate::{config, files, rotate, volume};

/// The grace for what is left of a pod that the API server no longer has.
const ORPHAN_GRACE: Duration = Duration::from_secs(1);
/// While the network is not ready: how often a pod that needs it looks again.
const NETWORK_CHECK: Duration = Duration::from_millis(500);
/// Rounds of planning in one sync: sandbox, then containers, and a bound in case a plan should not settle.
const ROUNDS: usize = 8;

/// One sync.
pub(super) struct PodSync {
    pub(super) shared: Arc<Shared>,
    pub(super) pod: Option<Arc<Pod>>,
    pub(super) owner: Owner,
    pub(super) state: Box<State>,
    /// Set for a pod that comes from a file of the node.
    pub(super) local: Option<Local>,
    pub(super) wake_at: Option<Duration>,
    pub(super) failed: bool,
    /// The pod's primary address, once it has one: where hooks and probes go.
    pub(super) ip: String,
    /// The volumes as prepared in this sync.
    pub(super) prepared: Option<volume::Prepared>,
}

impl PodSync {
    pub(super) fn new(
        shared: Arc<Shared>,
        pod: Option<Arc<Pod>>,
        owner: Owner,
        state: Box<State>,
        local: Option<Local>,
    ) -> Self {
        Self {
            shared,
            pod,
            owner,
            state,
            local,
            wake_at: None,
            failed: false,
            ip: String::new(),
            prepared: None,
        }
    }

    pub(super) async fn run(mut self) -> (Box<State>, Next) {
        let done = match self.pod.clone() {
            Some(pod) => self.pod(&pod).await,
            None => self.orphan().await,
        };
        let next = match done {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(
                    pod = %self.owner.name,
                    namespace = %self.owner.namespace,
                    error = chain(&error),
                    "a pod could not be synced"
                );
                Next::Retry
            }
        };
        let next = match (next, self.failed, self.wake_at) {
            (Next::Rest, true, _) => Next::Retry,
            (Next::Rest, false, Some(delay)) => Next::After(delay),
            (other, _, _) => other,
        };
        (self.state, next)
    }

    /// Wakes the worker again after `delay`, unless something else does before.
    pub(super) fn wake_after(&mut self, delay: Duration) {
        self.wake_at = Some(self.wake_at.map_or(delay, |at| at.min(delay)));
    }

    pub(super) fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        // Nothing panics while the lock is held.
        self.state.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look(&self) -> Result<Observed, decapod_runtime::Error> {
        observe::pod(&*self.shared.runtime, &self.owner.uid).await
    }

    /// A pod that the API server has.
    async fn pod(&mut self, pod: &Arc<Pod>) -> Result<Next, decapod_runtime::Error> {
        let Some(pod_spec) = pod.spec.as_ref() else { return Ok(Next::Rest) };
        if self.state.removed {
            return Ok(self.delete(pod).await);
        }
        self.note_start(pod);
        let mut observed = self.look().await?;
        // One that was refused has failed, and ends like any other that has.
        if !self.admit(pod, &observed).await {
            return Ok(Next::Retry);
        }
        let goal = self.goal(pod, pod_spec);
        let mut plan = Plan::default();
        for _ in 0..ROUNDS {
            self.ip = self.pod_ips(pod, &observed).into_iter().next().unwrap_or_default();
            plan = self.plan(pod, &observed, goal);
            let acted = self.apply(pod, pod_spec, &observed, &plan).await;
            if acted {
                observed = self.look().await?;
            } else {
                break;
            }
        }
        if let Some(delay) = plan.wake_after {
            self.wake_after(delay);
        }
        self.probe(pod, pod_spec, &observed);
        if goal == Goal::Run {
            self.refresh_volumes(pod, &observed).await;
        }
        self.read_messages(pod_spec, &observed).await;
        let ended = plan.ended && observed.alive().next().is_none();
        let told = self.report(pod, &observed, ended).await;
        if !told && self.local.is_none() {
            return Ok(Next::Retry);
        }
        // A pod from a file ends without an API server, too.
        self.failed |= !told;
        if pod.metadata.deletion_timestamp.is_some() && ended {
            self.remove(&observed).await?;
            return Ok(self.delete(pod).await);
        }
        Ok(Next::Rest)
    }

    /// What is left of a pod that the API server no longer has.
    async fn orphan(&mut self) -> Result<Next, decapod_runtime::Error> {
        if self.state.removed {
            return Ok(Next::Gone);
        }
        let observed = self.look().await?;
        let stopping = self.stopping(ORPHAN_GRACE);
        let none = BTreeSet::new();
        let facts = Facts {
            now: self.shared.clock.now(),
            verdicts: &self.shared.probes,
            stopping: &stopping,
            hooked: &none,
            pre_stopped: &none,
        };
        let plan = plan::plan_orphan(&observed, ORPHAN_GRACE, &facts);
        for action in &plan.actions {
            if let Action::ContainerKill { id, grace, .. } = action {
                self.kill_plainly(id, *grace);
            }
        }
        if observed.alive().next().is_some() {
            return Ok(Next::Rest);
        }
        self.remove(&observed).await?;
        Ok(if self.failed { Next::Retry } else { Next::Gone })
    }

    fn goal(&mut self, pod: &Pod, pod_spec: &PodSpec) -> Goal {
        if let Some(grace) = spec::deletion_grace(pod) {
            return Goal::Stop { grace };
        }
        if let Some(remaining) = self.deadline(pod, pod_spec) {
            if remaining.is_zero() {
                self.fail(
                    pod,
                    "DeadlineExceeded",
                    "Pod was active on the node longer than the specified deadline",
                );
            } else {
                self.wake_after(remaining);
            }
        }
        if let Some(goal) = self.evicted(pod) {
            return goal;
        }
        let over = pod.status.as_ref().is_some_and(status::is_terminal);
        if over || self.state.failure.is_some() {
            return Goal::Stop { grace: spec::grace(pod_spec) };
        }
        Goal::Run
    }

    /// How long `activeDeadlineSeconds` lets the pod run yet.
    fn deadline(&self, pod: &Pod, pod_spec: &PodSpec) -> Option<Duration> {
        let seconds = u64::try_from(pod_spec.active_deadline_seconds?).ok()?;
        let known = self.state.known.as_ref().and_then(|(s, _)| s.start_time.as_ref());
        let start = known.or_else(|| pod.status.as_ref().and_then(|s| s.start_time.as_ref()))?;
        let active = plan::elapsed(start.0, self.shared.clock.now());
        Some(Duration::from_secs(seconds).saturating_sub(active))
    }

    fn fail(&mut self, pod: &Pod, reason: &str, message: &str) {
        if self.state.failure.is_none() {
            self.shared.tell.pod(pod, reason, message);
            self.state.failure =
                Some(Failure { reason: reason.to_owned(), message: message.to_owned(), disruption: false });
        }
    }

    /// How an eviction ends the pod, if it has to go.
    fn evicted(&mut self, pod: &Pod) -> Option<Goal> {
        let eviction = self.shared.evictions.of(spec::uid(pod))?;
        if self.state.failure.is_none() {
            self.state.failure = Some(Failure {
                reason: eviction.reason.to_owned(),
                message: eviction.message,
                disruption: eviction.disruption,
            });
        }
        Some(Goal::Stop { grace: eviction.grace })
    }

    /// Ids that are being stopped at least as fast as `grace` asks.
    fn stopping(&self, grace: Duration) -> BTreeSet<String> {
        let latest = self.shared.clock.monotonic() + grace;
        self.under_way().stopping.iter().filter(|(_, at)| **at <= latest).map(|(id, _)| id.clone()).collect()
    }

    fn plan(&self, pod: &Pod, observed: &Observed, goal: Goal) -> Plan {
        let stopping = match goal {
            Goal::Run => self.stopping(Duration::MAX / 2),
            Goal::Stop { grace } => self.stopping(grace),
        };
        let hooked = self.under_way().hooked.clone();
        let pre_stopped = self.under_way().pre_stops.keys().cloned().collect();
        let facts = Facts {
            now: self.shared.clock.now(),
            verdicts: &self.shared.probes,
            stopping: &stopping,
            hooked: &hooked,
            pre_stopped: &pre_stopped,
        };
        plan::plan(pod, observed, goal, &facts)
    }

    /// Carries the plan out; true if something changed at once, so that it pays to look again.
    async fn apply(&mut self, pod: &Arc<Pod>, pod_spec: &PodSpec, observed: &Observed, plan: &Plan) -> bool {
        for backoff in &plan.backoffs {
            self.back_off(pod, &backoff.name, backoff.delay);
        }
        let mut acted = false;
        for action in &plan.actions {
            acted |= match action {
                Action::ContainerKill { id, name, reason, grace } => {
                    self.kill(pod, pod_spec, id, name, *reason, *grace);
                    false
                }
                Action::ContainerPreStop { id, name, grace } => {
                    self.pre_stop_early(pod, name, id, *grace);
                    false
                }
                Action::SandboxStop { id } => self.sandbox_stop(id, observed).await,
                Action::SandboxRemove { id } => {
                    let removed = self.shared.runtime.sandbox_remove(id).await;
                    self.ok("remove a sandbox", removed)
                }
                Action::SandboxCreate { attempt } => {
                    self.sandbox_create(pod, pod_spec, observed, *attempt).await
                }
                Action::ContainerStart { name, attempt, backoff } => {
                    self.container_start(pod, pod_spec, observed, name, *attempt, *backoff).await
                }
                Action::ContainerRemove { id } => {
                    self.state.messages.remove(id);
                    let removed = self.shared.runtime.container_remove(id).await;
                    remove_log(observed, id);
                    self.ok("remove a container", removed)
                }
            };
        }
        acted && !self.failed
    }

    /// Notes a failure that the next sync may mend.
    pub(super) fn ok<T>(&mut self, doing: &str, result: Result<T, decapod_runtime::Error>) -> bool {
        match result {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(pod = %self.owner.name, namespace = %self.owner.namespace, error = chain(&error), "failed to {doing}");
                self.failed = true;
                false
            }
        }
    }

    fn back_off(&mut self, pod: &Pod, name: &str, delay: Duration) {
        let text = duration(delay);
        let message = format!("back-off {text} restarting failed container={name} pod={}", format_pod(pod));
        let known = self.state.waiting.get(name).is_some_and(|w| w.message == message);
        if !known {
            let event = format!("Back-off restarting failed container {name} in pod {}", format_pod(pod));
            self.shared.tell.container_warning(pod, name, "BackOff", event);
        }
        self.state.waiting.insert(name.to_owned(), Waiting { reason: "CrashLoopBackOff", message });
    }

    async fn sandbox_stop(&mut self, id: &str, observed: &Observed) -> bool {
        let was_ready = observed.sandboxes.iter().any(|s| s.id == id && s.ready);
        self.shared.probes.remove_pod(&self.owner.uid);
        let stopped = self.shared.runtime.sandbox_stop(id).await;
        self.ok("stop a sandbox", stopped) && was_ready
    }

    async fn sandbox_create(
        &mut self,
        pod: &Arc<Pod>,
        pod_spec: &PodSpec,
        observed: &Observed,
        attempt: u32,
    ) -> bool {
        if observed.sandbox().is_some() {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            self.shared.tell.pod(pod, "SandboxChanged", message);
        }
        if pod_spec.host_network != Some(true)
            && let RuntimeState::NotReady(why) = runtime_state(&self.shared).await
        {
            if !self.state.network_told {
                let message = format!("network is not ready: {why}");
                self.shared.tell.pod_warning(pod, "NetworkNotReady", message);
                self.state.network_told = true;
            }
            self.wake_after(NETWORK_CHECK);
            return false;
        }
        if !self.make_cgroup(pod, pod_spec) || !self.prepare_volumes(pod, observed).await {
            return false;
        }
        let facts = match self.pod_facts(pod, pod_spec) {
            Ok(facts) => facts,
            Err(error) => {
                let message = format!("error making pod data directories: {error}");
                self.shared.tell.pod_warning(pod, "Failed", message);
                self.failed = true;
                return false;
            }
        };
        let sandbox = config::sandbox(&facts, attempt);
        let host_name = facts.host_name.clone();
        let run = async {
            files::check_host_name(&host_name)?;
            let handler = self.handler(pod_spec).await?;
            let run = self.shared.runtime.sandbox_run(&sandbox, &handler).await;
            run.map_err(|error| chain(&error).to_string())
        };
        let made = run.await;
        self.shared.measures.pod(made.is_ok());
        match made {
            Ok(_) => true,
            Err(error) => {
                let message = format!("Failed to create pod sandbox: {error}");
                self.shared.tell.pod_warning(pod, "FailedCreatePodSandBox", &message);
                tracing::warn!(pod = %self.owner.name, namespace = %self.owner.namespace, message);
                self.failed = true;
                false
            }
        }
    }

    /// How the runtime is to run the pod: as its RuntimeClass says.
    async fn handler(&self, pod_spec: &PodSpec) -> Result<String, String> {
        let handler = self.named_handler(pod_spec).await?;
        if pod_spec.host_users == Some(false) {
            let status = self.shared.runtime.status().await.map_err(|error| chain(&error))?;
            let known = status.runtime_handlers.iter().find(|known| known.name == handler);
            if !known.and_then(|known| known.features).is_some_and(|features| features.user_namespaces) {
                let way_out = "leave spec.hostUsers out, or set it to true";
                let what = match handler.as_str() {
                    "" => "runtime does not support user namespaces".to_owned(),
                    name => format!("RuntimeClass handler {name:?} does not support user namespaces"),
                };
                return Err(format!("can't set `spec.hostUsers: false`, {what}: {way_out}"));
            }
        }
        Ok(handler)
    }

    async fn named_handler(&self, pod_spec: &PodSpec) -> Result<String, String> {
        let Some(name) = pod_spec.runtime_class_name.as_deref().filter(|n| !n.is_empty()) else {
            return Ok(String::new());
        };
        match Api::<RuntimeClass>::all(self.shared.client.clone()).get_opt(name).await {
            Ok(Some(class)) => Ok(class.handler),
            Ok(None) => Err(format!("RuntimeClass {name:?} not found")),
            Err(error) => Err(format!("cannot look up RuntimeClass {name:?}: {}", chain(&error))),
        }
    }

    fn make_cgroup(&mut self, pod: &Pod, pod_spec: &PodSpec) -> bool {
        let class = qos::class(pod_spec);
        let limits = qos::pod(pod_spec);
        match self.shared.cgroups.ensure_pod(class, &self.owner.uid, limits) {
            Ok(_) => {
                if class == qos::Class::Burstable {
                    weigh_burstable(&self.shared);
                }
                true
            }
            Err(error) => {
                let message = format!("unable to ensure pod container exists: {}", chain(&error));
                self.shared.tell.pod_warning(pod, "FailedCreatePodContainer", message);
                self.failed = true;
                false
            }
        }
    }

    /// What sandbox and containers of the pod have in common; makes the pod's folders.
    pub(super) fn pod_facts<'a>(
        &self,
        pod: &'a Pod,
        pod_spec: &'a PodSpec,
    ) -> Result<config::PodFacts<'a>, std::io::Error> {
        let log_directory = self.log_directory();
        std::fs::create_dir_all(&log_directory)?;
        std::fs::create_dir_all(self.shared.volumes.pod_dir(&self.owner.uid))?;
        let options = &self.shared.options;
        let servers: Vec<String> = options.cluster_dns.iter().map(ToString::to_string).collect();
        let cluster = files::Cluster { servers: &servers, domain: &options.cluster_domain };
        let class = qos::class(pod_spec);
        Ok(config::PodFacts {
            pod,
            spec: pod_spec,
            cgroup_parent: self.shared.cgroups.pod(class, &self.owner.uid),
            log_directory,
            host_name: files::kernel_host_name(pod, &options.cluster_domain),
            seccomp_root: options.data_dir.join("seccomp"),
            dns: files::dns(pod, &cluster, &self.shared.node_dns()),
            users: match pod_spec.host_users {
                Some(false) => Some(self.shared.volumes.users.of(&self.owner.uid)?),
                _ => None,
            },
        })
    }

    pub(super) fn log_directory(&self) -> PathBuf {
        let owner = &self.owner;
        config::log_directory(&self.shared.logs_root(), &owner.namespace, &owner.name, &owner.uid)
    }

    /// The pod's addresses as containers see them.
    pub(super) fn pod_ips(&self, pod: &Pod, observed: &Observed) -> Vec<String> {
        if spec::host_network(pod) {
            return self.shared.host_ips.clone();
        }
        observed.sandbox().filter(|s| s.ready).map(|s| s.ips.clone()).unwrap_or_default()
    }

    /// Makes the volumes ready; on failure the pod is told why and waits.
    pub(super) async fn prepare_volumes(&mut self, pod: &Pod, observed: &Observed) -> bool {
        if self.prepared.is_some() {
            return true;
        }
        let pod_ips = self.pod_ips(pod, observed);
        let shared = self.shared.clone();
        let services = Vec::new();
        let node = shared.node.list().pop();
        let facts = crate::environment::Facts {
            pod,
            pod_ips: &pod_ips,
            host_ips: &shared.host_ips,
            node: node.as_deref(),
            services: &services,
        };
        match shared.volumes.prepare(pod, &facts).await {
            Ok(prepared) => {
                if let Some(at) = prepared.renew_at {
                    let wait = plan::elapsed(shared.clock.now(), at);
                    self.wake_after(wait.max(Duration::from_secs(1)));
                }
                self.prepared = Some(prepared);
                true
            }
            Err(failure) => {
                let message = format!("{failure} : {}", chain(&failure.source));
                self.shared.tell.pod_warning(pod, "FailedMount", message);
                self.failed = true;
                false
            }
        }
    }

    /// Brings the volumes of a running pod up to date.
    async fn refresh_volumes(&mut self, pod: &Pod, observed: &Observed) {
        let has_volumes =
            pod.spec.as_ref().is_some_and(|s| s.volumes.as_ref().is_some_and(|v| !v.is_empty()));
        if has_volumes && observed.alive().next().is_some() {
            // A failure is told there; running containers keep what they have.
            let _told_by_an_event: bool = self.prepare_volumes(pod, observed).await;
        }
    }

    /// Probes what runs.
    fn probe(&mut self, pod: &Arc<Pod>, pod_spec: &PodSpec, observed: &Observed) {
        let init = pod_spec.init_containers.iter().flatten().map(|c| (c, spec::init_sort(c)));
        let apps = pod_spec.containers.iter().map(|c| (c, spec::Sort::App));
        for (container, sort) in init.chain(apps) {
            let newest = observed.newest(&container.name);
            let Some(current) = newest.filter(|c| c.state == observed::State::Running) else {
                self.shared.probes.remove(&self.owner.uid, &container.name);
                continue;
            };
            if self.under_way().stopping.contains_key(&current.id) {
                // Whether it is ready is asked to the end.
                continue;
            }
            let target = Target {
                exec: Arc::new(self.shared.runtime.clone()),
                clock: self.shared.clock.clone(),
                container_id: current.id.clone(),
                container: Arc::new(container.clone()),
                ip: self.ip.clone(),
            };
            let since = current.started_at.unwrap_or(current.created_at);
            let running_for = plan::elapsed(since, self.shared.clock.now());
            let seed = self.seed(pod, current);
            self.shared.probes.ensure(pod, sort, &target, running_for, seed);
        }
    }

    /// What the API server knows of this very container.
    fn seed(&self, pod: &Pod, current: &observed::Container) -> Seed {
        let id = status::id_of(&self.shared.runtime_name, &current.id);
        let all = pod.status.iter().flat_map(|s| {
            [&s.container_statuses, &s.init_container_statuses].into_iter().flatten().flatten()
        });
        let known = all.into_iter().find(|s| s.container_id.as_deref() == Some(id.as_str()));
        known.map_or_else(Seed::default, |s| Seed { started: s.started, ready: Some(s.ready) })
    }

    /// Stops a container in a task of its own.
    fn kill(
        &mut self,
        pod: &Arc<Pod>,
        pod_spec: &PodSpec,
        id: &str,
        name: &str,
        reason: KillReason,
        grace: Duration,
    ) {
        let grace = if reason == KillReason::PodEnds { self.share_of(pod_spec, name, grace) } else { grace };
        let message = match reason {
            KillReason::Liveness => format!("Container {name} failed liveness probe, will be restarted"),
            KillReason::Startup => format!("Container {name} failed startup probe, will be restarted"),
            KillReason::SpecChanged => format!("Container {name} definition changed, will be restarted"),
            KillReason::SandboxLost | KillReason::PodEnds | KillReason::RestartAll => {
                format!("Stopping container {name}")
            }
        };
        let early = self.under_way().pre_stops.get(id).cloned();
        let again = early.is_some() || self.under_way().stopping.contains_key(id);
        if !again {
            self.shared.tell.container(pod, name, "Killing", message);
        }
        let handler = spec::find(pod_spec, name)
            .and_then(|(c, _)| c.lifecycle)
            .and_then(|l| l.pre_stop)
            .filter(|_| !again);
        self.spawn_kill(pod, name, id, grace, (handler, early));
    }

    /// What is left of the pod's grace for a container that had to wait for others to end.
    fn share_of(&mut self, pod_spec: &PodSpec, name: &str, grace: Duration) -> Duration {
        let now = self.shared.clock.monotonic();
        let began = *self.state.ending.get_or_insert(now);
        match spec::find(pod_spec, name) {
            Some((_, spec::Sort::Sidecar)) => {
                grace.saturating_sub(now.saturating_sub(began)).max(hooks::LEAST_GRACE.min(grace))
            }
            _ => grace,
        }
    }

    /// Removes everything of the pod from this node, once nothing of it runs.
    async fn remove(&mut self, observed: &Observed) -> Result<(), decapod_runtime::Error> {
        let uid = self.owner.uid.clone();
        self.shared.probes.remove_pod(&uid);
        self.shared.images.release(&uid);
        for container in &observed.containers {
            self.shared.runtime.container_remove(&container.id).await?;
        }
        for sandbox in &observed.sandboxes {
            self.shared.runtime.sandbox_stop(&sandbox.id).await?;
            self.shared.runtime.sandbox_remove(&sandbox.id).await?;
        }
        let shared = self.shared.clone();
        let logs = (!self.owner.name.is_empty()).then(|| self.log_directory());
        let cleaned = tokio::task::spawn_blocking(move || clean(&shared, &uid, logs)).await;
        match cleaned {
            Ok(Ok(())) => {
                self.shared.admitted.forget(&self.owner.uid);
                self.state.removed = true;
            }
            Ok(Err(error)) => {
                tracing::warn!(pod = %self.owner.name, error = %error, "failed to clean up after a pod");
                self.failed = true;
            }
            Err(error) => {
                tracing::error!(%error, "the clean-up of a pod panicked");
                self.failed = true;
            }
        }
        Ok(())
    }
}

/// Nobody can ask for the log of an attempt that is removed.
fn remove_log(observed: &Observed, id: &str) {
    let container = observed.containers.iter().find(|container| container.id == id);
    let Some(path) = container.map(|c| c.log_path.as_str()).filter(|path| !path.is_empty()) else { return };
    if let Err(error) = rotate::remove(Path::new(path)) {
        tracing::warn!(path, %error, "the log of a removed container is still there");
    }
}

/// Disk, memory and cgroups of a pod.
fn clean(
    shared: &Shared,
    uid: &str,
    logs: Option<PathBuf>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    shared.volumes.remove(uid)?;
    if let Some(logs) = logs {
        volume::remove_tree(&logs)?;
    }
    shared.cgroups.remove_pod(uid)?;
    weigh_burstable(shared);
    Ok(())
}

/// The Burstable pods of the node weigh what they request together; a node that cannot say so still runs them.
fn weigh_burstable(shared: &Shared) {
    let pods = shared.pods.list();
    let running = pods.iter().filter(|p| !p.status.as_ref().is_some_and(status::is_terminal));
    let specs = running.filter_map(|p| p.spec.as_ref()).filter(|s| qos::class(s) == qos::Class::Burstable);
    let sum: u64 = specs.map(|s| qos::pod(s).shares).sum();
    if let Err(error) = shared.cgroups.weigh_burstable(sum.clamp(2, 262_144)) {
        tracing::warn!(error = chain(&error), "the weight of Burstable pods could not be set");
    }
}

/// A duration as Kubernetes writes it: `10s`, `1m20s`, `5m0s`.
fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

/// A point in time that many seconds before `now`.
pub(crate) fn before(now: Timestamp, seconds: i64) -> Timestamp {
    now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_kubernetes() {
        for (seconds, text) in [(10, "10s"), (40, "40s"), (80, "1m20s"), (300, "5m0s")] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }
}
