//! The probes of all containers of the node.
//!
//! One task keeps them in the order in which they are due and starts a check when its time has come; checks run
//! beside each other, results go to the pod's worker. **Invariant**: a verdict is about one container id; a new
//! container starts without a past.

mod check;
mod state;
mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use decapod_client::clock::Clock;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

pub(crate) use check::{Outcome, Target, hook};
pub(crate) use state::Kind;
use state::{State, Timing};

use crate::pod::plan::Verdicts;
use crate::pod::spec::Sort;
use crate::pod::{Uid, spec};
use crate::tell::Tell;
use crate::wake::Wakes;

/// Checks that run at once: bounds what a node of hanging containers costs.
const CONCURRENT: usize = 64;

/// Which probe of which container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    uid: Uid,
    container: String,
    kind: Kind,
}

struct Worker {
    state: State,
    target: Target,
    probe: Arc<Probe>,
    pod: Arc<Pod>,
    /// Monotonic time of the next check; `None` while one runs or the probe rests.
    due: Option<Duration>,
    /// The container is being stopped.
    ends: bool,
    /// How many checks succeeded, and how many failed, of this and earlier containers of the name.
    results: (u64, u64),
}

/// The results of one probe so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) uid: Uid,
    pub(crate) container: String,
    pub(crate) kind: &'static str,
    pub(crate) successful: u64,
    pub(crate) failed: u64,
}

#[derive(Default)]
struct Table {
    workers: BTreeMap<Key, Worker>,
    due: BTreeSet<(Duration, Key)>,
}

/// All probes. Cheap to clone; clones share them.
#[derive(Clone)]
pub(crate) struct Probes {
    inner: Arc<Inner>,
}

struct Inner {
    table: Mutex<Table>,
    changed: Notify,
    clock: Arc<dyn Clock>,
    wakes: Wakes,
    tell: Tell,
    slots: Arc<Semaphore>,
}

/// What was known of a container before the agent started.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seed {
    pub(crate) started: Option<bool>,
    pub(crate) ready: Option<bool>,
}

impl Probes {
    pub(crate) fn new(clock: Arc<dyn Clock>, wakes: Wakes, tell: Tell) -> Self {
        let inner = Inner {
            table: Mutex::default(),
            changed: Notify::new(),
            clock,
            wakes,
            tell,
            slots: Arc::new(Semaphore::new(CONCURRENT)),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Probes a container that runs since `running_for`; does nothing for one that is probed already.
    pub(crate) fn ensure(
        &self,
        pod: &Arc<Pod>,
        sort: Sort,
        target: &Target,
        running_for: Duration,
        seed: Seed,
    ) {
        if matches!(sort, Sort::Init | Sort::Ephemeral) {
            return;
        }
        let now = self.inner.clock.monotonic();
        for (kind, probe) in probes(&target.container) {
            let container = target.container.name.clone();
            let key = Key { uid: spec::uid(pod).to_owned(), container, kind };
            let mut table = self.inner.table();
            let known = table.workers.get(&key);
            if known.is_some_and(|w| w.target.container_id == target.container_id) {
                continue;
            }
            let seed = match kind {
                Kind::Startup => seed.started,
                Kind::Liveness => None,
                Kind::Readiness => seed.ready,
            };
            let state = State::new(kind, Timing::of(probe), seed);
            let wait = state.timing.initial_delay.saturating_sub(running_for);
            let due = (!state.rests).then(|| now + wait);
            let results = known.map_or((0, 0), |worker| worker.results);
            table.put(
                key,
                Worker {
                    state,
                    target: target.clone(),
                    probe: Arc::new(probe.clone()),
                    pod: pod.clone(),
                    due,
                    ends: false,
                    results,
                },
            );
        }
        self.inner.changed.notify_one();
    }

    /// The results of all probes of this node's pods.
    pub(crate) fn tallies(&self) -> Vec<Tally> {
        let table = self.inner.table();
        let tally = |(key, worker): (&Key, &Worker)| Tally {
            namespace: worker.pod.metadata.namespace.clone().unwrap_or_default(),
            pod: worker.pod.metadata.name.clone().unwrap_or_default(),
            uid: key.uid.clone(),
            container: key.container.clone(),
            kind: key.kind.as_str(),
            successful: worker.results.0,
            failed: worker.results.1,
        };
        table.workers.iter().map(tally).collect()
    }

    /// Stops probing one container.
    pub(crate) fn remove(&self, uid: &str, container: &str) {
        self.inner.table().remove(|k| k.uid == uid && k.container == container);
    }

    /// Stops asking what could only condemn a container that ends: whether it lives and whether it has started.
    /// Whether it is ready is asked as long as it runs.
    pub(crate) fn rest(&self, uid: &str, container: &str) {
        let mut table = self.inner.table();
        for kind in [Kind::Startup, Kind::Liveness] {
            let key = Key { uid: uid.to_owned(), container: container.to_owned(), kind };
            table.rest(&key);
        }
    }

    /// Stops probing a pod.
    pub(crate) fn remove_pod(&self, uid: &str) {
        self.inner.table().remove(|k| k.uid == uid);
    }

    /// Runs the probes until it is dropped.
    pub(crate) async fn run(self) {
        let mut checks: JoinSet<(Key, String, Outcome)> = JoinSet::new();
        loop {
            let next = self.inner.table().due.first().map(|(due, _)| *due);
            let now = self.inner.clock.monotonic();
            if next.is_some_and(|due| due <= now) {
                self.start_due(now, &mut checks);
                continue;
            }
            let sleep = next.map(|due| self.inner.clock.sleep(due - now));
            tokio::select! {
                () = async { match sleep { Some(sleep) => sleep.await, None => std::future::pending().await } } => {}
                () = self.inner.changed.notified() => {}
                Some(done) = checks.join_next() => match done {
                    Ok((key, id, outcome)) => self.done(&key, &id, &outcome),
                    Err(error) => tracing::error!(%error, "a probe's check panicked"),
                },
            }
        }
    }

    fn start_due(&self, now: Duration, checks: &mut JoinSet<(Key, String, Outcome)>) {
        let mut table = self.inner.table();
        while let Some((due, key)) = table.due.first().cloned() {
            if due > now {
                break;
            }
            table.due.remove(&(due, key.clone()));
            let held = key.kind != Kind::Startup && table.startup(&key) != Some(true);
            let Some(worker) = table.workers.get_mut(&key) else { continue };
            if held {
                let next = now + worker.state.timing.period;
                worker.due = Some(next);
                table.due.insert((next, key));
                continue;
            }
            worker.due = None;
            let (target, probe, timeout) =
                (worker.target.clone(), worker.probe.clone(), worker.state.timing.timeout);
            let slots = self.inner.slots.clone();
            checks.spawn(async move {
                let _slot = slots.acquire().await.expect("the semaphore is never closed");
                let outcome = check::probe(&target, &probe, timeout).await;
                (key, target.container_id, outcome)
            });
        }
    }

    fn done(&self, key: &Key, id: &str, outcome: &Outcome) {
        let mut table = self.inner.table();
        let current = |worker: &&mut Worker| worker.target.container_id == id && !worker.ends;
        let Some(worker) = table.workers.get_mut(key).filter(current) else {
            return;
        };
        let results = &mut worker.results;
        *(if outcome.success { &mut results.0 } else { &mut results.1 }) += 1;
        let changed = worker.state.observe(outcome.success);
        if !outcome.success {
            let message = format!("{} probe failed: {}", key.kind.as_str(), outcome.output);
            self.inner.tell.container_warning(&worker.pod, &key.container, "Unhealthy", message);
        }
        if !worker.state.rests {
            let next = self.inner.clock.monotonic() + worker.state.timing.period;
            worker.due = Some(next);
            table.due.insert((next, key.clone()));
        }
        if changed && key.kind == Kind::Startup && outcome.success {
            table.hasten(key, self.inner.clock.monotonic());
        }
        drop(table);
        if changed {
            self.inner.wakes.wake(&key.uid);
        }
    }

    fn verdict(&self, kind: Kind, container: &Container, id: &str) -> Option<bool> {
        let table = self.inner.table();
        let worker = table
            .workers
            .iter()
            .find(|(k, w)| k.kind == kind && k.container == container.name && w.target.container_id == id);
        worker.map_or_else(
            // Not probed yet: as before the first result.
            || State::new(kind, Timing::of(&Probe::default()), None).verdict(),
            |(_, w)| w.state.verdict(),
        )
    }
}

impl Verdicts for Probes {
    fn startup(&self, container: &Container, id: &str) -> Option<bool> {
        if container.startup_probe.is_none() {
            return Some(true);
        }
        self.verdict(Kind::Startup, container, id)
    }

    fn liveness(&self, container: &Container, id: &str) -> Option<bool> {
        if container.liveness_probe.is_none() {
            return Some(true);
        }
        self.verdict(Kind::Liveness, container, id)
    }

    fn readiness(&self, container: &Container, id: &str) -> bool {
        container.readiness_probe.is_none() || self.verdict(Kind::Readiness, container, id) == Some(true)
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while the lock is held.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn put(&mut self, key: Key, worker: Worker) {
        self.remove(|k| *k == key);
        if let Some(due) = worker.due {
            self.due.insert((due, key.clone()));
        }
        self.workers.insert(key, worker);
    }

    fn remove(&mut self, gone: impl Fn(&Key) -> bool) {
        self.workers.retain(|key, _| !gone(key));
        self.due.retain(|(_, key)| !gone(key));
    }

    /// Runs the probe no more; what it found stays.
    fn rest(&mut self, key: &Key) {
        let Some(worker) = self.workers.get_mut(key) else { return };
        worker.ends = true;
        if let Some(due) = worker.due.take() {
            self.due.remove(&(due, key.clone()));
        }
    }

    /// Whether the container of `key` has started, as far as its startup probe knows.
    fn startup(&self, key: &Key) -> Option<bool> {
        let startup = Key { kind: Kind::Startup, ..key.clone() };
        self.workers.get(&startup).map_or(Some(true), |w| w.state.verdict())
    }

    /// The container has started: the probes that waited for it are due now.
    fn hasten(&mut self, key: &Key, now: Duration) {
        for kind in [Kind::Liveness, Kind::Readiness] {
            let key = Key { kind, ..key.clone() };
            let Some(worker) = self.workers.get_mut(&key) else { continue };
            if let Some(due) = worker.due.filter(|due| *due > now) {
                worker.due = Some(now);
                self.due.remove(&(due, key.clone()));
                self.due.insert((now, key));
            }
        }
    }
}

fn probes(container: &Container) -> impl Iterator<Item = (Kind, &Probe)> {
    [
        (Kind::Startup, container.startup_probe.as_ref()),
        (Kind::Liveness, container.liveness_probe.as_ref()),
        (Kind::Readiness, container.readiness_probe.as_ref()),
    ]
    .into_iter()
    .filter_map(|(kind, probe)| probe.map(|p| (kind, p)))
}

#[cfg(test)]
#[path = "wheel_tests.rs"]
mod tests;
