//! The loop around the core. One task owns the snapshot and the queue: it applies changes, decides pod by
//! pod, and hands the writing to tasks whose outcomes come back to it. So no decision ever races with a
//! change, and there is nothing to lock.

use std::sync::Arc;
use std::time::Duration;

use decapod_client::informer::{Change, Changes};
use decapod_client::task::Supervisor;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use rand::Rng;
use tokio::sync::mpsc;

use crate::binding::{Bound, Error, Writer};
use crate::core::decide::Scheduler;
use crate::core::plugins::{self, Assignment, Prepared};
use crate::core::pod::PodInfo;
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
    /// The outcome of a binding; `None` for a condition.
    bound: Option<Result<Bound, Error>>,
    tried: Tried,
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
}

pub(crate) struct Shell<R> {
    scheduler_name: String,
    scheduler: Scheduler<R>,
    snapshot: Snapshot,
    queue: Queue,
    writer: Writer,
    supervisor: Supervisor,
    written: (mpsc::UnboundedSender<Written>, mpsc::UnboundedReceiver<Written>),
    writing: usize,
}

impl<R: Rng + Send> Shell<R> {
    pub(crate) fn new(scheduler_name: String, chance: R, writer: Writer, supervisor: Supervisor) -> Self {
        Self {
            scheduler_name,
            scheduler: Scheduler::new(chance),
            snapshot: Snapshot::default(),
            queue: Queue::default(),
            writer,
            supervisor,
            // Bounded by `WRITES`: there are never more outcomes than writes under way.
            written: mpsc::unbounded_channel(),
            writing: 0,
        }
    }

    /// Schedules until the changes end.
    pub(crate) async fn run(mut self, world: World) {
        let World { mut pods, mut nodes, mut namespaces, mut claims, mut volumes, mut classes } = world;
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
        let attempt = waiting.attempts.saturating_add(1);
        let tried = Tried { attempt, begin: self.now(), since: waiting.since() };
        let decision = self.scheduler.decide(info, &self.snapshot);
        metrics::step(
            &self.scheduler_name,
            "Filter",
            decision.is_ok(),
            self.now().saturating_sub(tried.begin),
        );
        match decision {
            Ok(node) => {
                tracing::debug!(pod = pod.name_any(), node, attempts = waiting.attempts, "decided");
                let assignments = self.assignments(info, &node);
                let writer = self.writer.clone();
                if !assignments.is_empty() {
                    self.write(uid, tried, async move { Some(writer.assign(&assignments, &node).await) });
                    return;
                }
                self.snapshot.assume(info.clone(), &node);
                self.write(uid, tried, async move { Some(writer.bind(&pod, &node).await) });
            }
            Err(error) => {
                if !info.never_preempts {
                    metrics::preemption();
                }
                let relational = plugins::RELATIONAL.iter().any(|plugin| error.plugins.contains(plugin));
                self.queue.reject(&uid, relational, self.now());
                self.attempted("unschedulable", tried);
                let counts = self.queue.counts();
                tracing::debug!(pod = pod.name_any(), %error, plugins = ?error.plugins, ?counts, "no node");
                let (writer, message) = (self.writer.clone(), error.to_string());
                self.write(uid, tried, async move {
                    writer.tell_unschedulable(&pod, &message).await;
                    None
                });
            }
        }
    }

    /// What the claims of the pod that wait for a node get on this one.
    fn assignments(&self, info: &PodInfo, node: &str) -> Vec<Assignment> {
        if info.claims.is_empty() {
            return Vec::new();
        }
        let prepared = Prepared::new(info, &self.snapshot, &|_, _| false);
        self.snapshot.node(node).map(|node| prepared.assignments(node)).unwrap_or_default()
    }

    fn write(
        &mut self,
        uid: String,
        tried: Tried,
        future: impl Future<Output = Option<Result<Bound, Error>>> + Send + 'static,
    ) {
        self.writing += 1;
        let written = self.written.0.clone();
        self.supervisor.spawn("scheduler-write", async move {
            let bound = future.await;
            // The loop is gone at a shutdown; then nobody needs to know.
            written.send(Written { uid, bound, tried }).ok();
        });
    }

    fn write_ended(&mut self, written: Written) {
        self.writing = self.writing.saturating_sub(1);
        let uid = &written.uid;
        match written.bound {
            None => {}
            Some(Ok(Bound::Yes)) => {
                self.attempted("scheduled", written.tried);
                let Tried { attempt, begin, since } = written.tried;
                let now = self.now();
                metrics::scheduled_at(attempt, now.saturating_sub(since));
                metrics::step(&self.scheduler_name, "Bind", true, now.saturating_sub(begin));
            }
            Some(Ok(Bound::Waits)) => {
                let now = self.now();
                self.queue.hold(uid, now);
                // They may have come meanwhile: then no further change will tell.
                let snapshot = &self.snapshot;
                self.queue.wake(now, |info| {
                    info.uid == *uid && Prepared::new(info, snapshot, &|_, _| false).is_settled()
                });
            }
            Some(Ok(Bound::Moot)) => {
                // If the pod still waits it is tried again; else its change removes it.
                self.release(uid);
                self.queue.retry(uid, self.now());
            }
            Some(Err(error)) => {
                tracing::warn!(uid, error = decapod_client::error::chain(&error), "a pod was not bound");
                self.attempted("error", written.tried);
                self.release(uid);
                self.queue.retry(uid, self.now());
            }
        }
    }

    fn attempted(&self, result: &'static str, tried: Tried) {
        metrics::attempt(&self.scheduler_name, result, self.now().saturating_sub(tried.begin));
    }

    /// Gives back what was assumed for a pod.
    fn release(&mut self, uid: &str) {
        if let Some(node) = self.snapshot.forget(uid) {
            self.wake_for(&node);
        }
    }

    fn namespace_changed(&mut self, change: &Change<Namespace>) {
        let labels = change.new.as_ref().map(|namespace| namespace.labels().clone());
        self.snapshot.namespace_set(&change.key.name, labels);
        self.queue.wake_relational(self.now());
    }

    fn claim_changed(&mut self, change: &Change<PersistentVolumeClaim>) {
        let (namespace, name) = (&change.key.namespace, &change.key.name);
        self.snapshot.storage_mut().claim_set(namespace, name, change.new.clone());
        let now = self.now();
        self.queue.wake(now, |info| {
            info.pod.metadata.namespace.as_ref() == Some(namespace)
                && info.claims.iter().any(|claim| claim.name == *name)
        });
    }

    fn volume_changed(&mut self, change: &Change<PersistentVolume>) {
        self.snapshot.storage_mut().volume_set(&change.key.name, change.new.clone());
        self.storage_changed();
    }

    fn class_changed(&mut self, change: &Change<StorageClass>) {
        self.snapshot.storage_mut().class_set(&change.key.name, change.new.clone());
        self.storage_changed();
    }

    /// Volumes came or went: pods with claims may have found what they wait for.
    fn storage_changed(&mut self) {
        let now = self.now();
        self.queue.wake(now, |info| !info.claims.is_empty());
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
        self.snapshot.pod_put(&info);
        if !info.node_name().is_empty() {
            self.queue.wake_relational(self.now());
        }
        if !self.is_ours(pod) {
            return self.queue.remove(&info.uid);
        }
        let gated = pod
            .spec
            .as_ref()
            .is_some_and(|spec| spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()));
        if gated {
            let (writer, pod) = (self.writer.clone(), pod.clone());
            let tried = Tried { attempt: 0, begin: self.now(), since: self.now() };
            self.write(info.uid.clone(), tried, async move {
                writer.tell_gated(&pod).await;
                None
            });
        }
        self.queue.put(info, self.now());
    }

    fn pod_gone(&mut self, uid: &str) {
        self.queue.remove(uid);
        if let Some(node) = self.snapshot.pod_remove(uid) {
            self.queue.wake_relational(self.now());
            self.wake_for(&node);
        }
    }

    /// Whether this scheduler has to find a node for the pod.
    fn is_ours(&self, pod: &Pod) -> bool {
        let Some(spec) = &pod.spec else { return false };
        let scheduler = spec.scheduler_name.as_deref().unwrap_or("default-scheduler");
        spec.node_name.as_deref().unwrap_or_default().is_empty()
            && pod.metadata.deletion_timestamp.is_none()
            && scheduler == self.scheduler_name
    }

    fn node_changed(&mut self, change: &Change<Node>) {
        match &change.new {
            Some(node) => {
                self.snapshot.node_put(node.clone());
                // Most changes of a node are heartbeats, which help nobody.
                let matters = change.old.as_ref().is_none_or(|old| {
                    let offers = |node: &Node| {
                        let allocatable = node.status.as_ref().and_then(|status| status.allocatable.clone());
                        (allocatable, node.spec.clone(), node.metadata.labels.clone())
                    };
                    offers(old) != offers(node)
                });
                if matters {
                    self.queue.wake_relational(self.now());
                    self.wake_for(&change.key.name);
                }
            }
            None => self.snapshot.node_remove(&change.key.name),
        }
    }

    /// Something became free or better on a node: the unschedulable pods that would fit there now are
    /// tried again.
    fn wake_for(&mut self, node: &str) {
        if !self.queue.has_unschedulable() {
            return;
        }
        let now = self.now();
        if let Some(node) = self.snapshot.node(node).filter(|node| node.node.is_some()) {
            let snapshot = &self.snapshot;
            let fits = |info: &PodInfo| {
                let prepared = Prepared::new(info, snapshot, &|_, _| false);
                plugins::filter(info, node, &prepared).is_ok()
            };
            self.queue.wake(now, fits);
        }
    }

    fn now(&self) -> Duration {
        self.writer.clock.monotonic()
    }
}
