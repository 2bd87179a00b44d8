//! The pods that wait for a node. Each is in one of three places: *active*, to be tried next, by priority
//! and then by age; in *back-off* after a failure, for a growing time; *unschedulable*, until something
//! happens that could help, or until it has waited long enough to be tried for safety's sake.
//!
//! Time is an argument; nothing here waits.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::core::plugin::{Plugin, Set};
use crate::core::pod::PodInfo;
use crate::metrics;

/// How long a pod waits after failures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    /// After the first; it doubles with each further one.
    pub(crate) first: Duration,
    /// The longest.
    pub(crate) longest: Duration,
}

impl Default for Backoff {
    /// As in Kubernetes.
    fn default() -> Self {
        Self { first: Duration::from_secs(1), longest: Duration::from_secs(10) }
    }
}

impl Backoff {
    fn after(self, attempts: u32) -> Duration {
        let doublings = attempts.saturating_sub(1).min(16);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

/// After this time an unschedulable pod is tried though nothing happened that should help.
const UNSCHEDULABLE_LIMIT: Duration = Duration::from_secs(300);

/// A pod that waits.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) info: Arc<PodInfo>,
    /// Failed tries.
    pub(crate) attempts: u32,
    /// When it began to wait: among equals the oldest is first.
    since: Duration,
    place: Place,
    /// The plugins that rejected it the last time: what these look at could help it.
    plugins: Set,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Active,
    /// Until this time.
    Backoff(Duration),
    /// Since this time.
    Unschedulable(Duration),
    /// Taken out to be tried.
    InFlight,
    /// Held back by scheduling gates.
    Gated,
}

/// The order of the active pods.
type Rank = (Reverse<i32>, Duration, String);

/// All pods that wait for a node.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pods: HashMap<String, Waiting>,
    active: BTreeSet<Rank>,
    backoff: BTreeSet<(Duration, String)>,
    unschedulable: BTreeSet<(Duration, String)>,
    gated: usize,
    backoff_times: Backoff,
}

impl Waiting {
    /// Whether one of these plugins rejected it the last time.
    pub(crate) fn was_rejected_by(&self, plugins: &[Plugin]) -> bool {
        plugins.iter().any(|plugin| self.plugins.contains(*plugin))
    }

    /// When it began to wait.
    pub(crate) fn since(&self) -> Duration {
        self.since
    }
}

impl Place {
    /// Kubernetes' name of the queue that this is; none of what is being tried.
    fn queue(self) -> Option<&'static str> {
        match self {
            Self::Active => Some("active"),
            Self::Backoff(_) => Some("backoff"),
            Self::Unschedulable(_) => Some("unschedulable"),
            Self::Gated => Some("gated"),
            Self::InFlight => None,
        }
    }
}

fn rank(waiting: &Waiting) -> Rank {
    (Reverse(waiting.info.priority), waiting.since, waiting.info.uid.clone())
}

impl Queue {
    /// An empty queue in which failures cost these waits.
    pub(crate) fn new(backoff_times: Backoff) -> Self {
        Self { backoff_times, ..Self::default() }
    }

    /// The pod waits in this state now. A new one is active; one that has changed by its own spec is tried
    /// again after its back-off.
    pub(crate) fn put(&mut self, info: Arc<PodInfo>, gated: bool, now: Duration) {
        let uid = info.uid.clone();
        let Some(known) = self.take_out(&uid) else {
            let place = if gated { Place::Gated } else { Place::Active };
            count(place, "PodAdd");
            return self.put_in(Waiting { info, attempts: 0, since: now, place, plugins: Set::default() });
        };
        let changed = known.info.pod.spec != info.pod.spec
            || known.info.pod.metadata.labels != info.pod.metadata.labels;
        let place = match known.place {
            _ if gated => Place::Gated,
            Place::Gated => Place::Active,
            Place::Unschedulable(_) if changed => self.after_backoff(known.attempts, now),
            place => place,
        };
        if place != known.place {
            count(place, "PodUpdate");
        }
        self.put_in(Waiting { info, place, ..known });
    }

    /// The pod waits no longer: it is bound, gone or somebody else's.
    pub(crate) fn remove(&mut self, uid: &str) {
        self.take_out(uid);
    }

    /// The next pod to try, if there is one now.
    pub(crate) fn pop(&mut self, now: Duration) -> Option<Waiting> {
        self.promote(now);
        let (_, _, uid) = self.active.first()?.clone();
        let mut waiting = self.take_out(&uid)?;
        waiting.place = Place::InFlight;
        self.put_in(waiting.clone());
        Some(waiting)
    }

    /// No node would do, as these plugins say: the pod waits until something happens that could help.
    pub(crate) fn reject(&mut self, uid: &str, plugins: Set, now: Duration) {
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.plugins = plugins;
        }
        self.fail(uid, |_| Place::Unschedulable(now));
    }

    /// A node was found, but the pod's volumes are not there yet: it waits until they change. This is no failure.
    pub(crate) fn hold(&mut self, uid: &str, now: Duration) {
        let Some(mut waiting) = self.take_out(uid) else { return };
        waiting.place = Place::Unschedulable(now);
        self.put_in(waiting);
    }

    /// Something else went wrong: the pod is tried again after its back-off.
    pub(crate) fn retry(&mut self, uid: &str, now: Duration) {
        let times = self.backoff_times;
        self.fail(uid, |attempts| Place::Backoff(now + times.after(attempts)));
    }

    fn fail(&mut self, uid: &str, place: impl FnOnce(u32) -> Place) {
        let Some(mut waiting) = self.take_out(uid) else { return };
        waiting.attempts = waiting.attempts.saturating_add(1);
        waiting.place = place(waiting.attempts);
        count(waiting.place, "ScheduleAttemptFailure");
        self.put_in(waiting);
    }

    /// Something happened, by Kubernetes' name of the event: the unschedulable pods that it could help are tried again
    /// after their back-off.
    pub(crate) fn wake(&mut self, event: &'static str, now: Duration, helps: impl Fn(&Waiting) -> bool) {
        let woken: Vec<String> = self
            .unschedulable
            .iter()
            .filter(|(_, uid)| self.pods.get(uid).is_some_and(&helps))
            .map(|(_, uid)| uid.clone())
            .collect();
        for uid in woken {
            self.wake_one(&uid, now, event);
        }
    }

    fn wake_one(&mut self, uid: &str, now: Duration, event: &'static str) {
        let Some(mut waiting) = self.take_out(uid) else { return };
        let Place::Unschedulable(failed) = waiting.place else { return self.put_in(waiting) };
        let until = failed + self.backoff_times.after(waiting.attempts);
        waiting.place =
            if waiting.attempts == 0 || until <= now { Place::Active } else { Place::Backoff(until) };
        count(waiting.place, event);
        self.put_in(waiting);
    }

    /// When something will be due though nothing happens.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        let backoff = self.backoff.first().map(|(until, _)| *until);
        let leftover = self.unschedulable.first().map(|(since, _)| *since + UNSCHEDULABLE_LIMIT);
        backoff.into_iter().chain(leftover).min()
    }

    /// Whether any pod is unschedulable: whether it is worth asking what a change could help.
    pub(crate) fn has_unschedulable(&self) -> bool {
        !self.unschedulable.is_empty()
    }

    /// How many pods are active, in back-off, unschedulable and gated.
    pub(crate) fn counts(&self) -> [usize; 4] {
        [self.active.len(), self.backoff.len(), self.unschedulable.len(), self.gated]
    }

    /// The pod of this uid, if it waits.
    pub(crate) fn get(&self, uid: &str) -> Option<&Waiting> {
        self.pods.get(uid)
    }

    fn promote(&mut self, now: Duration) {
        while let Some((_, uid)) = self.backoff.first().filter(|(until, _)| *until <= now).cloned() {
            let Some(mut waiting) = self.take_out(&uid) else { continue };
            waiting.place = Place::Active;
            count(waiting.place, "BackoffComplete");
            self.put_in(waiting);
        }
        let is_over = |since: Duration| since + UNSCHEDULABLE_LIMIT <= now;
        while let Some((_, uid)) = self.unschedulable.first().filter(|(since, _)| is_over(*since)).cloned() {
            self.wake_one(&uid, now, "UnschedulableTimeout");
        }
    }

    fn after_backoff(&self, attempts: u32, now: Duration) -> Place {
        if attempts == 0 { Place::Active } else { Place::Backoff(now + self.backoff_times.after(attempts)) }
    }

    fn take_out(&mut self, uid: &str) -> Option<Waiting> {
        let waiting = self.pods.remove(uid)?;
        match waiting.place {
            Place::Active => drop(self.active.remove(&rank(&waiting))),
            Place::Backoff(until) => drop(self.backoff.remove(&(until, uid.to_owned()))),
            Place::Unschedulable(since) => drop(self.unschedulable.remove(&(since, uid.to_owned()))),
            Place::Gated => self.gated -= 1,
            Place::InFlight => {}
        }
        Some(waiting)
    }

    fn put_in(&mut self, waiting: Waiting) {
        let uid = waiting.info.uid.clone();
        match waiting.place {
            Place::Active => drop(self.active.insert(rank(&waiting))),
            Place::Backoff(until) => drop(self.backoff.insert((until, uid.clone()))),
            Place::Unschedulable(since) => drop(self.unschedulable.insert((since, uid.clone()))),
            Place::Gated => self.gated += 1,
            Place::InFlight => {}
        }
        self.pods.insert(uid, waiting);
    }
}

/// Counts a pod that came to a place because of an event.
fn count(place: Place, event: &'static str) {
    if let Some(queue) = place.queue() {
        metrics::incoming(queue, event);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, priority: i32) -> Arc<PodInfo> {
        let pod = json!({"metadata": {"name": name, "uid": name},
            "spec": {"containers": [], "priority": priority}});
        Arc::new(PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap())))
    }

    fn second(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    fn pop(queue: &mut Queue, now: u64) -> Option<String> {
        queue.pop(second(now)).map(|waiting| waiting.info.uid.clone())
    }

    #[test]
    fn priority_comes_before_age() {
        let mut queue = Queue::default();
        queue.put(pod("old", 0), false, second(0));
        queue.put(pod("young", 0), false, second(1));
        queue.put(pod("important", 9), false, second(2));
        let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue, 3)).collect();
        assert_eq!(order, ["important", "old", "young"]);
    }

    #[test]
    fn failures_wait_longer_and_longer() {
        let mut queue = Queue::default();
        queue.put(pod("p", 0), false, second(0));
        let mut now = 0;
        for wait in [1, 2, 4, 8, 10, 10] {
            assert_eq!(pop(&mut queue, now).as_deref(), Some("p"), "at {now}");
            queue.retry("p", second(now));
            assert_eq!(queue.next_due(), Some(second(now + wait)));
            assert_eq!(pop(&mut queue, now + wait - 1), None);
            now += wait;
        }
    }

    #[test]
    fn the_unschedulable_wait_for_what_helps_them() {
        let mut queue = Queue::default();
        for name in ["a", "b"] {
            queue.put(pod(name, 0), false, second(0));
            pop(&mut queue, 0);
            queue.reject(name, Set::default(), second(0));
        }
        assert_eq!(pop(&mut queue, 20), None);
        queue.wake("x", second(20), |waiting| waiting.info.uid == "b");
        assert_eq!(pop(&mut queue, 20).as_deref(), Some("b"));
        assert_eq!(pop(&mut queue, 299), None);
        assert_eq!(pop(&mut queue, 300).as_deref(), Some("a"), "for safety's sake");
    }

    #[test]
    fn pods_that_were_rejected_for_others_wait_for_others() {
        let mut queue = Queue::default();
        for (name, plugin) in [("alone", Plugin::NodeName), ("social", Plugin::InterPodAffinity)] {
            queue.put(pod(name, 0), false, second(0));
            pop(&mut queue, 0);
            queue.reject(name, [plugin].into_iter().collect(), second(0));
        }
        queue.wake("x", second(9), |waiting| waiting.was_rejected_by(&[Plugin::InterPodAffinity]));
        assert_eq!((pop(&mut queue, 9).as_deref(), pop(&mut queue, 9)), (Some("social"), None));
    }

    #[test]
    fn a_pod_that_was_held_is_tried_as_soon_as_something_changes() {
        let mut queue = Queue::default();
        queue.put(pod("p", 0), false, second(5));
        pop(&mut queue, 5);
        queue.hold("p", second(5));
        assert_eq!(pop(&mut queue, 5), None);
        queue.wake("x", second(5), |_| true);
        assert_eq!(pop(&mut queue, 5).as_deref(), Some("p"));
    }

    #[test]
    fn help_that_comes_at_once_still_waits_for_the_back_off() {
        let mut queue = Queue::default();
        queue.put(pod("p", 0), false, second(5));
        pop(&mut queue, 5);
        queue.reject("p", Set::default(), second(5));
        queue.wake("x", second(5), |_| true);
        assert_eq!(pop(&mut queue, 5), None);
        assert_eq!(pop(&mut queue, 6).as_deref(), Some("p"));
    }

    #[test]
    fn gates_hold_a_pod_until_they_are_gone() {
        let mut queue = Queue::default();
        queue.put(pod("p", 0), true, second(0));
        assert_eq!((pop(&mut queue, 1000), queue.next_due()), (None, None));
        queue.put(pod("p", 0), false, second(1000));
        assert_eq!(pop(&mut queue, 1000).as_deref(), Some("p"));
    }

    #[test]
    fn a_status_change_wakes_nobody_and_a_spec_change_does() {
        let mut queue = Queue::default();
        queue.put(pod("p", 0), false, second(0));
        pop(&mut queue, 0);
        queue.reject("p", Set::default(), second(0));
        queue.put(pod("p", 0), false, second(100));
        assert_eq!(pop(&mut queue, 100), None);
        queue.put(pod("p", 7), false, second(101));
        assert_eq!(pop(&mut queue, 102).as_deref(), Some("p"));
        queue.remove("p");
        assert_eq!(queue.counts(), [0; 4]);
    }
}
