//! The pod workers: one keyed state machine that brings every pod of the node to what its spec says.
//!
//! A pod's worker is a short task that exists only while there is something to do; between syncs a pod costs its
//! [`State`] and nothing else. **Invariants**: at most one sync of a pod runs at a time; whatever happens during a
//! sync leads to another one after it; a sync never waits for a container to stop or for an image to arrive.

mod admission;
mod hooks;
mod locals;
mod mirror;
mod observe;
mod report;
mod start;
mod sync;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::informer::Change;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::measured::{self, Occasion};
use crate::pod::observed::Owner;
use crate::pod::status::{Failure, Waiting};
use crate::pod::{Uid, spec};
use crate::shared::Shared;

pub(crate) use admission::Admitted;
use mirror::Local;
pub(crate) use mirror::mirrored;
pub(crate) use sync::before;

/// Syncs that run at once: enough to keep the machine busy, and a bound for what a node of 110 pods does at start.
const CONCURRENT: usize = 16;
/// The first and the longest delay before a failed sync is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long the subscription to runtime events rests after it failed.
const RESUBSCRIBE: Duration = Duration::from_secs(1);

/// What a pod's worker remembers between two syncs. Losing it costs nothing but a few events told twice.
#[derive(Default)]
pub(crate) struct State {
    /// Why containers do not start.
    waiting: BTreeMap<String, Waiting>,
    /// What runs beside the syncs.
    under_way: Arc<Mutex<UnderWay>>,
    /// Termination messages by container id.
    messages: BTreeMap<String, String>,
    /// The status that the API server answered with last, and its revision.
    known: Option<(PodStatus, u64)>,
    /// When the pod was first seen, until it runs.
    starting: Option<Duration>,
    /// Why the pod as a whole has failed.
    failure: Option<Failure>,
    /// Since when the pod ends, by the monotonic clock: its grace is one for all of its containers.
    ending: Option<Duration>,
    /// The pod was told that it waits for the network.
    network_told: bool,
    /// Everything of the pod was removed from the node.
    removed: bool,
    /// The API server was told so.
    delete_asked: bool,
}

/// Operations of a pod that outlast a sync.
#[derive(Debug, Default)]
struct UnderWay {
    /// Containers that are being stopped, by id, and the monotonic time at which they are killed.
    stopping: BTreeMap<String, Duration>,
    /// Containers whose `postStart` hook runs, by name.
    hooked: BTreeSet<String>,
    /// `preStop` hooks that began before it was their container's turn, by id, and whether they have ended.
    pre_stops: BTreeMap<String, watch::Receiver<bool>>,
}

struct Entry {
    /// `None` when only the runtime or the disk know of it.
    pod: Option<Arc<Pod>>,
    owner: Owner,
    /// `None` while a sync has it.
    state: Option<Box<State>>,
    /// Set for a pod that comes from a file of the node.
    local: Option<Local>,
    dirty: bool,
    /// Why the next sync comes.
    occasion: Occasion,
    failures: u32,
    timer: Option<Duration>,
}

/// What a sync asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing until something happens.
    Rest,
    After(Duration),
    /// Something failed: again, later each time.
    Retry,
    /// Nothing of the pod is left.
    Gone,
}

/// A finished sync: the pod, what its worker remembers, and what comes next.
type Outcome = (Uid, Box<State>, Next);

/// The dispatcher.
pub(crate) struct Workers {
    shared: Arc<Shared>,
    entries: HashMap<Uid, Entry>,
    by_key: HashMap<ObjectKey, Uid>,
    /// The pods from files that are here, also those that end.
    locals: HashMap<ObjectKey, Uid>,
    mirrors: HashMap<ObjectKey, Arc<Pod>>,
    timers: BTreeSet<(Duration, Uid)>,
    syncs: JoinSet<Outcome>,
    running: HashMap<tokio::task::Id, Uid>,
    slots: Arc<Semaphore>,
}

impl Workers {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            entries: HashMap::new(),
            by_key: HashMap::new(),
            locals: HashMap::new(),
            mirrors: HashMap::new(),
            timers: BTreeSet::new(),
            syncs: JoinSet::new(),
            running: HashMap::new(),
            slots: Arc::new(Semaphore::new(CONCURRENT)),
        }
    }

    /// Runs until it is dropped; containers then go on running.
    pub(crate) async fn run(mut self) {
        let shared = self.shared.clone();
        let mut statics = shared.statics.subscribe();
        self.locals_changed(&statics.borrow_and_update().clone());
        // Until the API server has said which pods there are, nothing that looks left over is.
        let mut synced = std::pin::pin!(shared.pods.synced());
        let mut complete = false;
        let mut changes = shared.pods.subscribe();
        let mut relist = shared.clock.sleep(shared.options.relist_period);
        loop {
            self.start_due();
            let next = self.timers.first().map(|(due, _)| *due);
            let now = shared.clock.monotonic();
            let sleep = next.map(|due| shared.clock.sleep(due.saturating_sub(now)));
            let timer = async {
                match sleep {
                    Some(sleep) => sleep.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut synced, if !complete => {
                    complete = true;
                    while let Some(change) = changes.try_next() {
                        self.changed(change);
                    }
                    self.adopt().await;
                }
                Ok(()) = statics.changed() => {
                    let wanted = statics.borrow_and_update().clone();
                    self.locals_changed(&wanted);
                }
                change = changes.next(), if complete => match change {
                    Some(change) => self.changed(change),
                    None => return,
                },
                woken = shared.wakes.next() => woken.iter().for_each(|uid| self.wake(uid)),
                Some(done) = self.syncs.join_next_with_id() => self.done(done),
                () = timer => {}
                () = &mut relist => {
                    if complete {
                        self.adopt().await;
                    }
                    self.wake_all();
                    relist = shared.clock.sleep(shared.options.relist_period);
                }
            }
        }
    }

    /// Notes what became of the pod under one key.
    fn changed(&mut self, change: Change<Pod>) {
        let Some(change) = self.mirror_changed(change) else { return };
        let old = self.by_key.get(&change.key).cloned();
        let new = change.new.as_ref().map(|p| spec::uid(p).to_owned());
        if let Some(old) = old.filter(|old| Some(old) != new.as_ref()) {
            self.by_key.remove(&change.key);
            if let Some(entry) = self.entries.get_mut(&old) {
                entry.pod = None;
            }
            self.wake(&old);
        }
        let (Some(pod), Some(uid)) = (change.new, new) else { return };
        self.by_key.insert(change.key, uid.clone());
        let entry = self.entries.entry(uid.clone()).or_insert_with(|| {
            let owner = Owner {
                namespace: spec::namespace(&pod).to_owned(),
                name: spec::name(&pod).to_owned(),
                uid: uid.clone(),
            };
            Entry::new(owner)
        });
        if entry.pod.replace(pod).is_some() {
            entry.occasion = Occasion::Update;
        }
        self.wake(&uid);
    }

    /// Takes in pods of which only the runtime, the disk or the cgroups know: they were deleted while the agent was
    /// away, and are cleaned up like any other.
    async fn adopt(&mut self) {
        let mut found = match observe::owners(&*self.shared.runtime).await {
            Ok(owners) => owners,
            Err(error) => {
                tracing::warn!(
                    error = decapod_client::error::chain(&error),
                    "cannot list the runtime's pods"
                );
                return;
            }
        };
        let on_disk = self.shared.volumes.pods_on_disk().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot list the pods' folders");
            Vec::new()
        });
        let logged = observe::logged(&self.shared.logs_root()).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot list the pods' logs");
            Vec::new()
        });
        for owner in logged {
            found.entry(owner.uid.clone()).or_insert(owner);
        }
        // These know no more than the uid.
        for uid in on_disk.into_iter().chain(self.shared.cgroups.pods()) {
            let owner = Owner { namespace: String::new(), name: String::new(), uid: uid.clone() };
            found.entry(uid).or_insert(owner);
        }
        for (uid, owner) in found {
            if !self.entries.contains_key(&uid) {
                tracing::info!(pod = %owner.name, namespace = %owner.namespace, uid, "cleaning up a pod that is gone");
                self.entries.insert(uid.clone(), Entry::new(owner));
                self.wake(&uid);
            }
        }
    }

    fn wake_all(&mut self) {
        let uids: Vec<Uid> = self.entries.keys().cloned().collect();
        for uid in uids {
            self.wake(&uid);
        }
    }

    /// Syncs the pod now, or once more after the sync that runs.
    fn wake(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        if let Some(due) = entry.timer.take() {
            self.timers.remove(&(due, uid.to_owned()));
        }
        let Some(state) = entry.state.take() else {
            entry.dirty = true;
            return;
        };
        entry.dirty = false;
        let (shared, slots) = (self.shared.clone(), self.slots.clone());
        let (owner, local) = (entry.owner.clone(), entry.local.clone());
        let occasion = std::mem::take(&mut entry.occasion);
        let pod = match &local {
            Some(local) => entry.pod.as_ref().map(|pod| mirror::with_mirror(pod, local)),
            None => entry.pod.clone(),
        };
        let task = self.syncs.spawn(async move {
            let clock = shared.clock.clone();
            let seen = clock.monotonic();
            let _slot = slots.acquire().await.expect("the semaphore is never closed");
            let began = clock.monotonic();
            if occasion == Occasion::Create {
                measured::begun(began.saturating_sub(seen));
            }
            let uid = owner.uid.clone();
            let (state, next) = sync::PodSync::new(shared, pod, owner, state, local).run().await;
            measured::synced(occasion, clock.monotonic().saturating_sub(began));
            (uid, state, next)
        });
        self.running.insert(task.id(), uid.to_owned());
    }

    fn done(&mut self, done: Result<(tokio::task::Id, Outcome), tokio::task::JoinError>) {
        let (uid, state, next) = match done {
            Ok((id, outcome)) => {
                self.running.remove(&id);
                outcome
            }
            Err(error) => {
                tracing::error!(%error, "a pod's sync panicked");
                let Some(uid) = self.running.remove(&error.id()) else { return };
                (uid, Box::default(), Next::Retry)
            }
        };
        let Some(entry) = self.entries.get_mut(&uid) else { return };
        entry.state = Some(state);
        if next == Next::Gone && (entry.pod.is_none() || entry.local.is_some()) {
            self.entries.remove(&uid);
            self.local_gone(&uid);
            return;
        }
        if entry.dirty {
            self.wake(&uid);
            return;
        }
        let delay = match next {
            Next::Retry => {
                entry.failures = entry.failures.saturating_add(1);
                let doubled = RETRY.0.saturating_mul(1 << entry.failures.min(7).saturating_sub(1));
                Some(doubled.min(RETRY.1))
            }
            Next::After(delay) => {
                entry.failures = 0;
                Some(delay)
            }
            Next::Rest | Next::Gone => {
                entry.failures = 0;
                None
            }
        };
        if let Some(delay) = delay {
            let due = self.shared.clock.monotonic() + delay;
            entry.timer = Some(due);
            self.timers.insert((due, uid));
        }
    }

    fn start_due(&mut self) {
        let now = self.shared.clock.monotonic();
        while let Some((due, uid)) = self.timers.first().cloned() {
            if due > now {
                break;
            }
            self.timers.remove(&(due, uid.clone()));
            if let Some(entry) = self.entries.get_mut(&uid) {
                entry.timer = None;
            }
            self.wake(&uid);
        }
    }
}

impl Entry {
    fn new(owner: Owner) -> Self {
        let state = Some(Box::default());
        let occasion = Occasion::Create;
        Self { pod: None, owner, state, local: None, dirty: false, occasion, failures: 0, timer: None }
    }
}

/// Wakes the workers of pods whose containers start or end, until it is dropped.
pub(crate) async fn follow_runtime(shared: Arc<Shared>) {
    loop {
        match shared.runtime.events().await {
            Ok(mut events) => {
                while let Some(event) = events.next().await {
                    if let Some(uid) = observe::pod_of(&event) {
                        shared.wakes.wake(&uid);
                    }
                }
                tracing::warn!("the runtime's events ended");
            }
            Err(error) => {
                tracing::warn!(
                    error = decapod_client::error::chain(&error),
                    "cannot follow the runtime's events"
                );
            }
        }
        shared.clock.sleep(RESUBSCRIBE).await;
        // What happened in between is found by looking.
        for pod in shared.pods.list() {
            shared.wakes.wake(spec::uid(&pod));
        }
    }
}
