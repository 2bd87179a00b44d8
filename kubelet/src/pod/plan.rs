//! What to do next for one pod: a pure function of its spec, of what the runtime has, and of the time.
//!
//! **Invariant**: a plan is made from what *is*, never from what was done before, so that a restarted agent plans
//! exactly as the one before it would have. Even the crash-loop back-off is read from the containers: each carries
//! the back-off that was in force when it was created, and when it was created and ended.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::observed::{self, Observed, State};
use super::spec::{self, Sort};

/// Kubernetes' first crash-loop delay.
const BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// Kubernetes' longest crash-loop delay.
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// A container that ran this long starts its next crash loop afresh (twice the longest delay).
const BACKOFF_RESET: Duration = Duration::from_secs(600);

/// What the pod should come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Run, as far as the restart policy lets it.
    Run,
    /// Stop everything; keep what is needed to read status and logs.
    Stop { grace: Duration },
}

/// What probes have found, by container id; `None` while there is no verdict.
pub(crate) trait Verdicts: Sync {
    /// Whether the startup probe succeeded; `Some(true)` where there is none.
    fn startup(&self, container: &Container, id: &str) -> Option<bool>;
    /// Whether the liveness probe succeeds; `Some(true)` where there is none.
    fn liveness(&self, container: &Container, id: &str) -> Option<bool>;
    /// Whether the readiness probe succeeds; `true` where there is none.
    fn readiness(&self, container: &Container, id: &str) -> bool;
}

/// What the plan depends on beside the spec and the runtime's view.
pub(crate) struct Facts<'a> {
    pub(crate) now: Timestamp,
    pub(crate) verdicts: &'a dyn Verdicts,
    /// Ids of containers that are being stopped at this moment.
    pub(crate) stopping: &'a BTreeSet<String>,
    /// Names of containers whose `postStart` hook has not finished.
    pub(crate) hooked: &'a BTreeSet<String>,
    /// Ids of containers whose `preStop` hook has begun before it was their turn to stop.
    pub(crate) pre_stopped: &'a BTreeSet<String>,
}

/// Why a running container is stopped; the worker words the event from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KillReason {
    Liveness,
    Startup,
    SpecChanged,
    SandboxLost,
    /// Another container ended in a way for which its rules restart the whole pod.
    RestartAll,
    /// A sidecar whose pod has done its work, or a pod that is to end.
    PodEnds,
}

/// One step. Steps of one plan do not depend on each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    ContainerKill {
        id: String,
        name: String,
        reason: KillReason,
        grace: Duration,
    },
    /// Run the `preStop` hook of a sidecar that others keep from stopping yet.
    ContainerPreStop {
        id: String,
        name: String,
        grace: Duration,
    },
    SandboxStop {
        id: String,
    },
    SandboxRemove {
        id: String,
    },
    SandboxCreate {
        attempt: u32,
    },
    /// Pull if need be, create and start.
    ContainerStart {
        name: String,
        attempt: u32,
        backoff: Duration,
    },
    ContainerRemove {
        id: String,
    },
}

/// A container that may not start yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backoff {
    pub(crate) name: String,
    /// The whole delay, as Kubernetes words it.
    pub(crate) delay: Duration,
}

/// The outcome of planning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) actions: Vec<Action>,
    pub(crate) backoffs: Vec<Backoff>,
    /// When to plan again although nothing happened.
    pub(crate) wake_after: Option<Duration>,
    /// No container of the pod runs or will run again.
    pub(crate) ended: bool,
}

impl Plan {
    fn wake(&mut self, after: Duration) {
        self.wake_after = Some(self.wake_after.map_or(after, |w| w.min(after)));
    }

    fn push(&mut self, action: Action) {
        self.actions.push(action);
    }
}

/// Decides what to do next.
pub(crate) fn plan(pod: &Pod, observed: &Observed, goal: Goal, facts: &Facts<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = pod.spec.as_ref() else {
        return plan;
    };
    match goal {
        Goal::Run => run(pod, spec, observed, facts, &mut plan),
        Goal::Stop { grace } => stop(spec, observed, grace, false, facts, &mut plan),
    }
    plan
}

/// Plans the end of a pod of which only the runtime still knows.
pub(crate) fn plan_orphan(observed: &Observed, grace: Duration, facts: &Facts<'_>) -> Plan {
    let mut plan = Plan::default();
    stop(&PodSpec::default(), observed, grace, true, facts, &mut plan);
    plan
}

fn run(pod: &Pod, spec: &PodSpec, observed: &Observed, facts: &Facts<'_>, plan: &mut Plan) {
    let Some(sandbox) = observed.sandbox().filter(|s| s.ready) else {
        return sandbox_lost(pod, spec, observed, facts, plan);
    };
    let mut view = View { pod, spec, observed, sandbox: &sandbox.id, facts, plan };
    if view.restarting_all() {
        return;
    }
    match view.init() {
        Init::Pending => {}
        Init::Failed => view.end(),
        Init::Done => view.apps(),
    }
    collect(observed, plan);
}

/// No sandbox is ready: make one, unless the pod has nothing left to do.
fn sandbox_lost(pod: &Pod, spec: &PodSpec, observed: &Observed, facts: &Facts<'_>, plan: &mut Plan) {
    if finished(spec, observed) {
        return stop(spec, observed, spec::grace(spec), false, facts, plan);
    }
    let mut waits = false;
    for container in observed.alive() {
        waits = true;
        if !facts.stopping.contains(&container.id) {
            plan.push(kill(container, KillReason::SandboxLost, spec::grace(spec)));
        }
    }
    if waits {
        return;
    }
    if let Some(old) = observed.sandbox() {
        // Stopping again is harmless and frees the address of a sandbox that died.
        plan.push(Action::SandboxStop { id: old.id.clone() });
    }
    let known = pod.status.as_ref().and_then(|s| s.pod_ip.as_ref()).is_some();
    let attempt = observed.sandbox().map_or(u32::from(known), |s| s.attempt + 1);
    plan.push(Action::SandboxCreate { attempt });
}

/// Whether the restart policy lets nothing of this pod start again, judged without a sandbox.
fn finished(spec: &PodSpec, observed: &Observed) -> bool {
    let ended = |container: &Container, sort: Sort| {
        observed
            .newest(&container.name)
            .is_some_and(|c| c.state == State::Exited && !spec::restarts(spec, container, sort, c.exit_code))
    };
    let failed_init = spec.init_containers.iter().flatten().any(|container| {
        let sort = spec::init_sort(container);
        sort == Sort::Init
            && ended(container, sort)
            && observed.newest(&container.name).is_some_and(|c| c.exit_code != 0)
    });
    failed_init || spec.containers.iter().all(|c| ended(c, Sort::App))
}

/// The container whose end is that of all containers of the sandbox, as long as it has not been removed.
pub(crate) fn ended_all<'a>(
    spec: &PodSpec,
    observed: &'a Observed,
    sandbox: &str,
) -> Option<&'a observed::Container> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let seen = containers.filter_map(|c| observed.newest_in(sandbox, &c.name).map(|seen| (c, seen)));
    let mut ended =
        seen.filter(|(c, seen)| seen.state == State::Exited && spec::restarts_all(c, seen.exit_code));
    ended.next().map(|(_, seen)| seen)
}

enum Init {
    Pending,
    Failed,
    Done,
}

/// Planning inside one ready sandbox.
struct View<'a, 'p> {
    pod: &'a Pod,
    spec: &'a PodSpec,
    observed: &'a Observed,
    sandbox: &'a str,
    facts: &'a Facts<'a>,
    plan: &'p mut Plan,
}

impl<'a> View<'a, '_> {
    fn current(&self, name: &str) -> Option<&'a observed::Container> {
        self.observed.newest_in(self.sandbox, name)
    }

    /// Whether a container ended so that all begin anew: the others are stopped, and once the API server knows of
    /// the end, all are removed. What is there then is a pod that has not begun.
    fn restarting_all(&mut self) -> bool {
        let Some(trigger) = ended_all(self.spec, self.observed, self.sandbox) else { return false };
        let mut runs = false;
        for container in self.observed.alive() {
            runs = true;
            if !self.facts.stopping.contains(&container.id) {
                self.plan.push(kill(container, KillReason::RestartAll, spec::grace(self.spec)));
            }
        }
        if !runs && self.told(trigger) {
            let others = self.observed.containers.iter().filter(|c| c.id != trigger.id);
            let removals = others.chain([trigger]).map(|c| Action::ContainerRemove { id: c.id.clone() });
            self.plan.actions.extend(removals);
        }
        true
    }

    /// Whether the pod's status has the end of a container; the status that says so wakes the worker.
    fn told(&self, container: &observed::Container) -> bool {
        let status = self.pod.status.as_ref();
        let mut all = status.into_iter().flat_map(|s| {
            [&s.container_statuses, &s.init_container_statuses].into_iter().flatten().flatten()
        });
        all.any(|s| {
            let ended = s.state.as_ref().and_then(|s| s.terminated.as_ref());
            ended.and_then(|t| t.container_id.as_deref()).is_some_and(|id| id.ends_with(&container.id))
        })
    }

    /// Walks the init containers up to the first that others must wait for.
    fn init(&mut self) -> Init {
        let spec = self.spec;
        let initialized = spec.containers.iter().any(|c| self.current(&c.name).is_some());
        if initialized && finished_here(spec, self.observed, self.sandbox) {
            return Init::Done;
        }
        for container in spec.init_containers.iter().flatten() {
            let sort = spec::init_sort(container);
            if initialized && sort == Sort::Init {
                continue;
            }
            match (sort, self.current(&container.name)) {
                (_, None) => {
                    self.start(container);
                    if !initialized {
                        return Init::Pending;
                    }
                }
                (Sort::Sidecar, Some(c)) => {
                    if !self.sidecar(container, c) && !initialized {
                        return Init::Pending;
                    }
                }
                (_, Some(c)) => match c.state {
                    State::Running | State::Unknown => return Init::Pending,
                    State::Created => {
                        self.start(container);
                        return Init::Pending;
                    }
                    State::Exited if c.exit_code == 0 => {}
                    State::Exited => {
                        if !spec::restarts(spec, container, sort, c.exit_code) {
                            return Init::Failed;
                        }
                        self.restart(container, c);
                        return Init::Pending;
                    }
                },
            }
        }
        Init::Done
    }

    /// Keeps one sidecar running; true once those behind it may start.
    fn sidecar(&mut self, container: &Container, current: &observed::Container) -> bool {
        match current.state {
            State::Running | State::Unknown => {
                self.running(container, current);
                !self.facts.hooked.contains(&container.name)
                    && self.facts.verdicts.startup(container, &current.id) == Some(true)
            }
            State::Created => {
                self.start(container);
                false
            }
            State::Exited => {
                self.restart(container, current);
                false
            }
        }
    }

    fn apps(&mut self) {
        let spec = self.spec;
        let mut ended = true;
        for container in &spec.containers {
            ended &= self.app(container);
        }
        for ephemeral in spec.ephemeral_containers.iter().flatten() {
            if self.observed.newest(&ephemeral.name).is_none() {
                self.start(&spec::ephemeral(ephemeral));
            }
        }
        if ended {
            self.end();
        }
    }

    /// Plans one app container; true if it has ended for good.
    fn app(&mut self, container: &Container) -> bool {
        let Some(current) = self.current(&container.name) else {
            // An attempt in an earlier sandbox may have ended for good.
            let ended = self.observed.newest(&container.name).is_some_and(|c| {
                c.state == State::Exited && !spec::restarts(self.spec, container, Sort::App, c.exit_code)
            });
            if !ended {
                self.start(container);
            }
            return ended;
        };
        match current.state {
            State::Running | State::Unknown => self.running(container, current),
            State::Created => self.start(container),
            State::Exited => {
                if !spec::restarts(self.spec, container, Sort::App, current.exit_code) {
                    return true;
                }
                self.restart(container, current);
            }
        }
        false
    }

    /// Stops a running container that probes or a changed spec condemn.
    fn running(&mut self, container: &Container, current: &observed::Container) {
        if self.facts.stopping.contains(&current.id) {
            return;
        }
        let verdicts = self.facts.verdicts;
        let (reason, probe) = if !current.hash.is_empty() && current.hash != spec::hash(container) {
            (KillReason::SpecChanged, None)
        } else if verdicts.liveness(container, &current.id) == Some(false) {
            (KillReason::Liveness, container.liveness_probe.as_ref())
        } else if verdicts.startup(container, &current.id) == Some(false) {
            (KillReason::Startup, container.startup_probe.as_ref())
        } else {
            return;
        };
        let grace = probe
            .and_then(|p| p.termination_grace_period_seconds)
            .and_then(|s| u64::try_from(s).ok())
            .map_or_else(|| spec::grace(self.spec), Duration::from_secs);
        self.plan.push(kill(current, reason, grace));
    }

    /// The first start, or one after the container was lost: no back-off.
    fn start(&mut self, container: &Container) {
        if self.facts.hooked.contains(&container.name) {
            return;
        }
        let attempt = match self.observed.newest(&container.name) {
            Some(c) if c.state == State::Created => {
                self.plan.push(Action::ContainerRemove { id: c.id.clone() });
                c.attempt
            }
            Some(c) => c.attempt + 1,
            None => self.forgotten(&container.name),
        };
        self.plan.push(Action::ContainerStart {
            name: container.name.clone(),
            attempt,
            backoff: Duration::ZERO,
        });
    }

    /// The attempt of a container that the API has seen run but the runtime no longer knows.
    fn forgotten(&self, name: &str) -> u32 {
        let status = self.pod.status.as_ref();
        let all = status.iter().flat_map(|s| {
            [&s.container_statuses, &s.init_container_statuses].into_iter().flatten().flatten()
        });
        all.filter(|s| s.name == name && s.container_id.is_some())
            .find_map(|s| u32::try_from(s.restart_count).ok())
            .map_or(0, |count| count + 1)
    }

    /// A start after an exit: at once the first time, then with doubling delays.
    fn restart(&mut self, container: &Container, exited: &observed::Container) {
        let finished = exited.finished_at.unwrap_or(exited.created_at);
        let ran = elapsed(exited.created_at, finished);
        let (delay, next) = if exited.backoff.is_zero() || ran > BACKOFF_RESET {
            (Duration::ZERO, BACKOFF_FIRST)
        } else {
            (exited.backoff, (exited.backoff * 2).min(BACKOFF_MAX))
        };
        let since = elapsed(finished, self.facts.now);
        if since < delay {
            self.plan.wake(delay - since);
            self.plan.backoffs.push(Backoff { name: container.name.clone(), delay });
            return;
        }
        self.plan.push(Action::ContainerStart {
            name: container.name.clone(),
            attempt: exited.attempt + 1,
            backoff: next,
        });
    }

    /// Nothing starts any more: sidecars end, then the sandbox.
    fn end(&mut self) {
        self.plan.ended = true;
        stop(self.spec, self.observed, spec::grace(self.spec), false, self.facts, self.plan);
    }
}

/// Whether all app containers of this sandbox have ended for good.
fn finished_here(spec: &PodSpec, observed: &Observed, sandbox: &str) -> bool {
    spec.containers.iter().all(|container| {
        observed.newest_in(sandbox, &container.name).or_else(|| observed.newest(&container.name)).is_some_and(
            |c| c.state == State::Exited && !spec::restarts(spec, container, Sort::App, c.exit_code),
        )
    })
}

/// Plans the end: apps and init containers first, then sidecars in reverse order, then the sandboxes.
fn stop(
    spec: &PodSpec,
    observed: &Observed,
    grace: Duration,
    remove: bool,
    facts: &Facts<'_>,
    plan: &mut Plan,
) {
    plan.ended = true;
    let sidecars: Vec<&str> = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| spec::init_sort(c) == Sort::Sidecar)
        .map(|c| c.name.as_str())
        .collect();
    let alive: Vec<&observed::Container> = observed.alive().collect();
    let others = alive.iter().any(|c| !sidecars.contains(&c.name.as_str()));
    let last_sidecar = sidecars.iter().rev().find(|name| alive.iter().any(|c| c.name == **name));
    for container in &alive {
        let is_sidecar = sidecars.contains(&container.name.as_str());
        let turn = !is_sidecar || (!others && last_sidecar == Some(&container.name.as_str()));
        if facts.stopping.contains(&container.id) {
            continue;
        }
        if turn {
            plan.push(kill(container, KillReason::PodEnds, grace));
        } else if has_pre_stop(spec, &container.name) && !facts.pre_stopped.contains(&container.id) {
            // All learn of the end at once; only the signals come in turn.
            let (id, name) = (container.id.clone(), container.name.clone());
            plan.push(Action::ContainerPreStop { id, name, grace });
        }
    }
    if !alive.is_empty() {
        return;
    }
    for sandbox in &observed.sandboxes {
        if remove {
            plan.push(Action::SandboxRemove { id: sandbox.id.clone() });
        } else if sandbox.ready {
            plan.push(Action::SandboxStop { id: sandbox.id.clone() });
        }
    }
}

fn has_pre_stop(spec: &PodSpec, name: &str) -> bool {
    let mut inits = spec.init_containers.iter().flatten();
    let lifecycle = inits.find(|c| c.name == name).and_then(|c| c.lifecycle.as_ref());
    lifecycle.is_some_and(|l| l.pre_stop.is_some())
}

/// Removes what is no longer needed: of each container one dead attempt is kept for `lastState` and for
/// `logs --previous`, and a dead sandbox as long as such an attempt lies in it.
fn collect(observed: &Observed, plan: &mut Plan) {
    let mut kept_sandboxes = BTreeSet::new();
    let mut dead = std::collections::BTreeMap::<&str, usize>::new();
    let removed: BTreeSet<String> = plan
        .actions
        .iter()
        .filter_map(|a| if let Action::ContainerRemove { id } = a { Some(id.clone()) } else { None })
        .collect();
    for container in &observed.containers {
        if container.state == State::Exited {
            let count = dead.entry(&container.name).or_default();
            *count += 1;
            if *count > 1 {
                plan.push(Action::ContainerRemove { id: container.id.clone() });
                continue;
            }
        }
        if !removed.contains(&container.id) {
            kept_sandboxes.insert(container.sandbox_id.as_str());
        }
    }
    for sandbox in observed.sandboxes.iter().skip(1) {
        if !kept_sandboxes.contains(sandbox.id.as_str()) {
            plan.push(Action::SandboxRemove { id: sandbox.id.clone() });
        }
    }
}

fn kill(container: &observed::Container, reason: KillReason, grace: Duration) -> Action {
    Action::ContainerKill { id: container.id.clone(), name: container.name.clone(), reason, grace }
}

/// The time from one moment to a later one; zero if the clock was set back.
pub(crate) fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    to.duration_since(from).try_into().unwrap_or(Duration::ZERO)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
