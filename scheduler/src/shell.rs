//! The loop around the core. One task owns the snapshot and the queue: it applies changes, decides pod by
//! pod, and hands the writing to tasks whose outcomes come back to it. So no decision ever races with a
//! change, and there is nothing to lock.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use decapod_client::informer::{Change, Changes};
use decapod_client::task::Supervisor;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use rand::Rng;
use tokio::sync::mpsc;

use crate::binding::{Bound, Error, Writer};
use crate::config::Configuration;
use crate::core::decide::{self, Failure, Scheduler};
use crate::core::plugin::Plugin;
use crate::core::plugins::{self, Assignment, Prepared};
use crate::core::pod::PodInfo;
use crate::core::preempt::Candidate;
use crate::core::profile::Profile;
use crate::core::snapshot::{Snapshot, is_terminal};
use crate::metrics;
use crate::queue::{Queue, Waiting};

/// Bindings and conditions that are being written at a time: enough to hide their latency, few enough to
/// leave the API server room.
const WRITES: usize = 64;

/// Decisions between two looks at what has changed meanwhile: a change is never older than these.
const BATCH: usize = 32;

/// How a write ended.
struct Written {
    uid: String,
    outcome: Outcome,
    tried: Tried,
}

enum Outcome {
    /// Of a binding.
    Bound(Result<Bound, Error>),
    /// Of a condition: it is a help for people.
    Told,
    /// Of making room.
    Preempted(Result<(), Error>),
}

/// Which attempt to schedule a pod this was, and when it began.
#[derive(Clone, Copy)]
struct Tried {
    attempt: u32,
    begin: Duration,
    /// When the pod came to wait.
    since: Duration,
}

/// Everything that happens in the cluster and matters here.
pub(crate) struct World {
    pub(crate) pods: Changes<Pod>,
    pub(crate) nodes: Changes<Node>,
    pub(crate) namespaces: Changes<Namespace>,
    pub(crate) claims: Changes<PersistentVolumeClaim>,
    pub(crate) volumes: Changes<PersistentVolume>,
    pub(crate) classes: Changes<StorageClass>,
    pub(crate) budgets: Changes<PodDisruptionBudget>,
}

pub(crate) struct Shell<R> {
    configuration: Arc<Configuration>,
    scheduler: Scheduler<R>,
    snapshot: Snapshot,
    queue: Queue,
    /// The pods that others have to leave for, and of those the ones that are not on their way out yet, as far as this
    /// scheduler has seen. Until then it does not try such a pod: it would make room a second time.
    preempting: HashMap<String, BTreeSet<String>>,
    writer: Writer,
    supervisor: Supervisor,
    written: (mpsc::UnboundedSender<Written>, mpsc::UnboundedReceiver<Written>),
    writing: usize,
}

impl<R: Rng + Send> Shell<R> {
    pub(crate) fn new(
        configuration: Arc<Configuration>,
        chance: R,
        writer: Writer,
        supervisor: Supervisor,
    ) -> Self {
        Self {
            scheduler: Scheduler::new(chance),
            snapshot: Snapshot::default(),
            queue: Queue::new(configuration.backoff),
            configuration,
            preempting: HashMap::new(),
            writer,
            supervisor,
            // Bounded by `WRITES`: there are never more outcomes than writes under way.
            written: mpsc::unbounded_channel(),
            writing: 0,
        }
    }

    /// Schedules until the changes end.
    pub(crate) async fn run(mut self, world: World) {
        let World { mut pods, mut nodes, mut namespaces, mut claims, mut volumes, mut classes, mut budgets } =
            world;
        loop {
            while let Some(change) = namespaces.try_next() {
                self.namespace_changed(&change);
            }
            while let Some(change) = classes.try_next() {
                self.class_changed(&change);
            }
            while let Some(change) = volumes.try_next() {
                self.volume_changed(&change);
            }
            while let Some(change) = claims.try_next() {
                self.claim_changed(&change);
            }
            while let Some(change) = budgets.try_next() {
                self.budget_changed(&change);
            }
            self.take_in(&mut pods, &mut nodes);
            if self.decide_some() {
                tokio::task::yield_now().await;
                continue;
            }
            metrics::pending(self.queue.counts());
            let now = self.now();
            let due = self.queue.next_due().map(|due| due.saturating_sub(now));
            let clock = self.writer.clock.clone();
            let timer = async move {
                match due {
                    Some(due) => clock.sleep(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                change = pods.next() => match change {
                    Some(change) => self.pod_changed(&change),
                    None => return,
                },
                change = nodes.next() => match change {
                    Some(change) => self.node_changed(&change),
                    None => return,
                },
                change = namespaces.next() => match change {
                    Some(change) => self.namespace_changed(&change),
                    None => return,
                },
                change = claims.next() => match change {
                    Some(change) => self.claim_changed(&change),
                    None => return,
                },
                change = volumes.next() => match change {
                    Some(change) => self.volume_changed(&change),
                    None => return,
                },
                change = classes.next() => match change {
                    Some(change) => self.class_changed(&change),
                    None => return,
                },
                change = budgets.next() => match change {
                    Some(change) => self.budget_changed(&change),
                    None => return,
                },
                Some(written) = self.written.1.recv() => self.write_ended(written),
                () = timer => {}
            }
        }
    }

    /// Applies everything that has happened.
    fn take_in(&mut self, pods: &mut Changes<Pod>, nodes: &mut Changes<Node>) {
        while let Some(change) = nodes.try_next() {
            self.node_changed(&change);
        }
        while let Some(change) = pods.try_next() {
            self.pod_changed(&change);
        }
        while let Ok(written) = self.written.1.try_recv() {
            self.write_ended(written);
        }
    }

    /// Decides for the next few pods; whether there may be more at once.
    fn decide_some(&mut self) -> bool {
        for _ in 0..BATCH {
            if self.writing >= WRITES {
                return false;
            }
            let Some(waiting) = self.queue.pop(self.now()) else { return false };
            self.decide(&waiting);
        }
        true
    }

    fn decide(&mut self, waiting: &Waiting) {
        let info = &waiting.info;
        let (pod, uid) = (info.pod.clone(), info.uid.clone());
        let configuration = self.configuration.clone();
        let Some(profile) = configuration.profile(info.scheduler_name()) else {
            return self.queue.remove(&uid);
        };
        if self.preempting.contains_key(&uid) {
            return self.queue.hold(&uid, self.now());
        }
        let attempt = waiting.attempts.saturating_add(1);
        let tried = Tried { attempt, begin: self.now(), since: waiting.since() };
        let decision = self.scheduler.decide(info, &self.snapshot, profile);
        metrics::step(&profile.name, "Filter", decision.is_ok(), self.now().saturating_sub(tried.begin));
        match decision {
            Ok(node) => {
                tracing::debug!(pod = pod.name_any(), node, attempts = waiting.attempts, "decided");
                let assignments = self.assignments(info, &node, profile);
                let writer = self.writer.clone();
                if !assignments.is_empty() {
                    let assign = async move { Outcome::Bound(writer.assign(&assignments, &node).await) };
                    return self.write(uid, tried, assign);
                }
                self.snapshot.unnominate(&uid);
                self.snapshot.assume(info.clone(), &node);
                self.write(uid, tried, async move { Outcome::Bound(writer.bind(&pod, &node).await) });
            }
            Err(failure) => {
                if profile.preempts() {
                    metrics::preemption();
                }
                self.queue.reject(&uid, failure.error.plugins, self.now());
                self.attempted(info, "unschedulable", tried);
                let (error, counts) = (&failure.error, self.queue.counts());
                tracing::debug!(pod = pod.name_any(), %error, plugins = ?error.plugins, ?counts, "no node");
                self.failed(info, failure, tried);
            }
        }
    }

    /// No node would do: tells why, and makes room where that helps.
    fn failed(&mut self, info: &Arc<PodInfo>, failure: Failure, tried: Tried) {
        let (pod, uid, message) = (info.pod.clone(), info.uid.clone(), failure.error.to_string());
        let writer = self.writer.clone();
        let Some(candidate) = failure.preemption else {
            // What was promised would not do any more.
            let renounced = failure.renounces && (self.unpromise(&uid) || !info.nominated_node().is_empty());
            let nomination = renounced.then_some("");
            return self.write(uid, tried, async move {
                writer.tell_unschedulable(&pod, &message, nomination).await;
                Outcome::Told
            });
        };
        let outranked = self.make_room(info, &candidate);
        self.write(uid, tried, async move {
            writer.tell_unschedulable(&pod, &message, Some(&candidate.node)).await;
            for other in outranked {
                writer.renounce(&other.pod).await;
            }
            Outcome::Preempted(writer.preempt(&pod, &candidate).await)
        });
    }

    /// Promises the pod its node; returns the waiting pods of lower priority that had been promised it.
    fn make_room(&mut self, info: &Arc<PodInfo>, candidate: &Candidate) -> Vec<Arc<PodInfo>> {
        let victims = candidate.victims.iter();
        let staying = victims.filter(|victim| victim.pod.metadata.deletion_timestamp.is_none());
        let staying: BTreeSet<_> = staying.map(|victim| victim.uid.clone()).collect();
        metrics::victims(candidate.victims.len());
        if !staying.is_empty() {
            self.preempting.insert(info.uid.clone(), staying);
        }
        let outranked = self.snapshot.outranked(&candidate.node, info);
        let now = self.now();
        for other in &outranked {
            self.snapshot.unnominate(&other.uid);
            self.queue.wake("NominationLost", now, |waiting| waiting.info.uid == other.uid);
        }
        self.snapshot.nominate(info, &candidate.node);
        outranked
    }

    /// No node is promised to the pod any more: others may have the room. Whether one was.
    fn unpromise(&mut self, uid: &str) -> bool {
        let Some(node) = self.snapshot.unnominate(uid) else { return false };
        self.wake_for("NominationLost", &node, false);
        true
    }

    /// A pod that had to go is on its way out, or gone.
    fn victim_leaves(&mut self, uid: &str) {
        if !self.preempting.is_empty() {
            self.preempting.retain(|_, staying| {
                staying.remove(uid);
                !staying.is_empty()
            });
        }
    }

    /// What the claims of the pod that wait for a node get on this one.
    fn assignments(&self, info: &Arc<PodInfo>, node: &str, profile: &Profile) -> Vec<Assignment> {
        if info.claims.is_empty() {
            return Vec::new();
        }
        let prepared = Prepared::new(info, &self.snapshot, profile);
        self.snapshot.node(node).map(|node| prepared.assignments(node)).unwrap_or_default()
    }

    fn write(&mut self, uid: String, tried: Tried, future: impl Future<Output = Outcome> + Send + 'static) {
        self.writing += 1;
        let written = self.written.0.clone();
        self.supervisor.spawn("scheduler-write", async move {
            let outcome = future.await;
            // The loop is gone at a shutdown; then nobody needs to know.
            written.send(Written { uid, outcome, tried }).ok();
        });
    }

    fn write_ended(&mut self, written: Written) {
        self.writing = self.writing.saturating_sub(1);
        let (uid, tried) = (&written.uid, written.tried);
        match written.outcome {
            Outcome::Told | Outcome::Preempted(Ok(())) => {}
            Outcome::Preempted(Err(error)) => {
                tracing::warn!(uid, error = decapod_client::error::chain(&error), "no room was made");
                self.preempting.remove(uid);
                self.queue.retry(uid, self.now());
            }
            Outcome::Bound(Ok(Bound::Yes)) => {
                let now = self.now();
                metrics::scheduled_at(tried.attempt, now.saturating_sub(tried.since));
                if let Some(info) = self.queue.get(uid).map(|waiting| waiting.info.clone()) {
                    self.attempted(&info, "scheduled", tried);
                    metrics::step(info.scheduler_name(), "Bind", true, now.saturating_sub(tried.begin));
                } else if let Some(info) = self.snapshot.pod(uid).cloned() {
                    // The informer was faster than the answer.
                    self.attempted(&info, "scheduled", tried);
                    metrics::step(info.scheduler_name(), "Bind", true, now.saturating_sub(tried.begin));
                }
            }
            Outcome::Bound(Ok(Bound::Waits)) => {
                let now = self.now();
                self.queue.hold(uid, now);
                // They may have come meanwhile: then no further change will tell.
                let (snapshot, configuration) = (&self.snapshot, &self.configuration);
                self.queue.wake("PersistentVolumeClaimUpdate", now, |waiting| {
                    waiting.info.uid == *uid
                        && prepared(&waiting.info, snapshot, configuration).is_some_and(|p| p.is_settled())
                });
            }
            Outcome::Bound(Ok(Bound::Moot)) => {
                // If the pod still waits it is tried again; else its change removes it.
                self.release(uid);
                self.queue.retry(uid, self.now());
            }
            Outcome::Bound(Err(error)) => {
                tracing::warn!(uid, error = decapod_client::error::chain(&error), "a pod was not bound");
                if let Some(info) = self.queue.get(uid).map(|waiting| waiting.info.clone()) {
                    self.attempted(&info, "error", tried);
                }
                self.release(uid);
                self.queue.retry(uid, self.now());
            }
        }
    }

    fn attempted(&self, info: &PodInfo, result: &'static str, tried: Tried) {
        metrics::attempt(info.scheduler_name(), result, self.now().saturating_sub(tried.begin));
    }

    /// Gives back what was assumed for a pod.
    fn release(&mut self, uid: &str) {
        if let Some(node) = self.snapshot.forget(uid) {
            self.wake_for("ScheduleAttemptFailure", &node, false);
        }
    }

    fn namespace_changed(&mut self, change: &Change<Namespace>) {
        let labels = change.new.as_ref().map(|namespace| namespace.labels().clone());
        if change.old.as_ref().map(|namespace| namespace.labels().clone()) == labels && change.old.is_some() {
            return;
        }
        self.snapshot.namespace_set(&change.key.name, labels);
        let now = self.now();
        self.queue.wake("NamespaceUpdate", now, |waiting| waiting.was_rejected_by(&plugins::RELATIONAL));
    }

    fn budget_changed(&mut self, change: &Change<PodDisruptionBudget>) {
        // A pod may always make room against a budget; so this helps nobody who could not before.
        self.snapshot.budgets_mut().set(&change.key.namespace, &change.key.name, change.new.clone());
    }

    fn claim_changed(&mut self, change: &Change<PersistentVolumeClaim>) {
        let (namespace, name) = (&change.key.namespace, &change.key.name);
        self.snapshot.storage_mut().claim_set(namespace, name, change.new.clone());
        let now = self.now();
        self.queue.wake("PersistentVolumeClaimUpdate", now, |waiting| {
            waiting.info.pod.metadata.namespace.as_ref() == Some(namespace)
                && waiting.info.claims.iter().any(|claim| claim.name == *name)
        });
    }

    fn volume_changed(&mut self, change: &Change<PersistentVolume>) {
        self.snapshot.storage_mut().volume_set(&change.key.name, change.new.clone());
        self.storage_changed("PersistentVolumeUpdate");
    }

    fn class_changed(&mut self, change: &Change<StorageClass>) {
        self.snapshot.storage_mut().class_set(&change.key.name, change.new.clone());
        self.storage_changed("StorageClassUpdate");
    }

    /// Volumes came or went: pods with claims may have found what they wait for. A claim that is not there, or not to
    /// be helped, waits for a change of its own.
    fn storage_changed(&mut self, event: &'static str) {
        let now = self.now();
        let (snapshot, configuration) = (&self.snapshot, &self.configuration);
        self.queue.wake(event, now, |waiting| {
            let info = &waiting.info;
            !info.claims.is_empty()
                && prepared(info, snapshot, configuration).is_some_and(|p| p.refusal().is_none())
        });
    }

    fn pod_changed(&mut self, change: &Change<Pod>) {
        let old_uid = change.old.as_ref().and_then(|pod| pod.uid());
        let new_uid = change.new.as_ref().and_then(|pod| pod.uid());
        if let Some(uid) = old_uid.filter(|uid| Some(uid) != new_uid.as_ref()) {
            self.pod_gone(&uid);
        }
        let Some(pod) = &change.new else { return };
        let info = Arc::new(PodInfo::new(pod.clone()));
        if is_terminal(pod) {
            return self.pod_gone(&info.uid);
        }
        if pod.metadata.deletion_timestamp.is_some() {
            self.victim_leaves(&info.uid);
        }
        let known = self.snapshot.pod(&info.uid).cloned();
        self.snapshot.pod_put(&info);
        if !info.node_name().is_empty() {
            self.unpromise(&info.uid);
            self.placed_changed(known.as_ref(), &info);
        }
        if !self.is_ours(&info) {
            self.unpromise(&info.uid);
            self.preempting.remove(&info.uid);
            return self.queue.remove(&info.uid);
        }
        self.nomination_changed(change.old.as_deref(), &info);
        let holds = |profile: &Profile| profile.gates.contains(Plugin::SchedulingGates);
        let gated = info.is_gated() && self.configuration.profile(info.scheduler_name()).is_some_and(holds);
        if gated {
            let (writer, pod) = (self.writer.clone(), pod.clone());
            let tried = Tried { attempt: 0, begin: self.now(), since: self.now() };
            self.write(info.uid.clone(), tried, async move {
                writer.tell_gated(&pod).await;
                Outcome::Told
            });
        }
        self.queue.put(info, gated, self.now());
    }

    /// A node was promised to a waiting pod by somebody, or is not any more. What this scheduler promised and has not
    /// seen yet stands.
    fn nomination_changed(&mut self, old: Option<&Pod>, info: &Arc<PodInfo>) {
        let before =
            old.and_then(|pod| pod.status.as_ref()?.nominated_node_name.as_deref()).unwrap_or_default();
        let now = info.nominated_node();
        if before != now {
            self.snapshot.nominate(info, now);
        } else if let Some(node) = self.snapshot.nomination(&info.uid).map(str::to_owned) {
            self.snapshot.nominate(info, &node);
        }
    }

    /// A placed pod came or changed: those that were rejected because of others may like that, and one that needs less
    /// leaves room.
    fn placed_changed(&mut self, known: Option<&Arc<PodInfo>>, info: &Arc<PodInfo>) {
        if !self.queue.has_unschedulable() {
            return;
        }
        let is_news = known.is_none_or(|known| {
            let (before, now) = (&known.pod.metadata, &info.pod.metadata);
            before.labels != now.labels
                || before.deletion_timestamp != now.deletion_timestamp
                || known.node_name().is_empty()
        });
        if is_news {
            self.wake_related("AssignedPodUpdate", known, info);
        }
        if known.is_some_and(|known| known.requests != info.requests) {
            self.wake_for("AssignedPodUpdate", info.node_name(), false);
        }
    }

    /// Pods that were rejected because of others are tried again if this one is such an other.
    fn wake_related(&mut self, event: &'static str, before: Option<&Arc<PodInfo>>, other: &Arc<PodInfo>) {
        let now = self.now();
        let (snapshot, configuration) = (&self.snapshot, &self.configuration);
        self.queue.wake(event, now, |waiting| {
            waiting.was_rejected_by(&plugins::RELATIONAL)
                && prepared(&waiting.info, snapshot, configuration).is_some_and(|prepared| {
                    prepared.concerns(other) || before.is_some_and(|before| prepared.concerns(before))
                })
        });
    }

    fn pod_gone(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.unpromise(uid);
        self.preempting.remove(uid);
        self.victim_leaves(uid);
        let pod = self.snapshot.pod(uid).cloned();
        if let Some(node) = self.snapshot.pod_remove(uid) {
            if let Some(pod) = pod {
                self.wake_related("AssignedPodDelete", None, &pod);
            }
            self.wake_for("AssignedPodDelete", &node, false);
        }
    }

    /// Whether this scheduler has to find a node for the pod.
    fn is_ours(&self, info: &PodInfo) -> bool {
        info.pod.spec.is_some()
            && info.node_name().is_empty()
            && info.pod.metadata.deletion_timestamp.is_none()
            && self.configuration.profile(info.scheduler_name()).is_some()
    }

    fn node_changed(&mut self, change: &Change<Node>) {
        match &change.new {
            Some(node) => {
                let name = &change.key.name;
                let before = self.snapshot.node(name).map(|known| known.generation);
                self.snapshot.node_put(node.clone());
                // Most changes of a node are heartbeats, which help nobody.
                if self.snapshot.node(name).map(|known| known.generation) != before {
                    let now = self.now();
                    let event = if change.old.is_some() { "NodeUpdate" } else { "NodeAdd" };
                    self.queue.wake(event, now, |waiting| waiting.was_rejected_by(&plugins::RELATIONAL));
                    self.wake_for(event, name, true);
                }
            }
            None => {
                self.snapshot.node_remove(&change.key.name);
                // Fewer places: what was uneven may be even now.
                let now = self.now();
                self.queue
                    .wake("NodeDelete", now, |waiting| waiting.was_rejected_by(&[Plugin::PodTopologySpread]));
            }
        }
    }

    /// Something became free or better on a node: the unschedulable pods that would fit there now are tried again; and
    /// if the node itself `changed`, those for which room could be made there.
    fn wake_for(&mut self, event: &'static str, node: &str, changed: bool) {
        if !self.queue.has_unschedulable() {
            return;
        }
        let now = self.now();
        let Some(position) = self.snapshot.position_of(node) else { return };
        let (snapshot, configuration) = (&self.snapshot, &self.configuration);
        let here = &snapshot.nodes()[position];
        if here.node.is_none() {
            return;
        }
        self.queue.wake(event, now, |waiting| {
            let info = &waiting.info;
            let Some(prepared) = prepared(info, snapshot, configuration) else { return false };
            match decide::check(info, snapshot, &prepared, position) {
                Ok(()) => true,
                Err(why) => {
                    changed
                        && why.resolvable
                        && here.pods.values().any(|other| other.priority < info.priority)
                }
            }
        });
    }

    fn now(&self) -> Duration {
        self.writer.clock.monotonic()
    }
}

/// What the filters need to know for a pod; none if no profile is for it.
fn prepared<'a>(
    info: &'a Arc<PodInfo>,
    snapshot: &'a Snapshot,
    configuration: &'a Configuration,
) -> Option<Prepared<'a>> {
    Some(Prepared::new(info, snapshot, configuration.profile(info.scheduler_name())?))
}
