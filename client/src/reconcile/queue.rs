//! The work queue of a reconciler.
//!
//! Invariants: a key waits at most once; a key is worked on by at most one worker at a time; a key that
//! is added while it is worked on is worked on again afterwards. So no change is lost, however many
//! changes a key sees, and the queue is bounded by the number of distinct keys.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::Clock;
use crate::metrics::{QueueMetrics, Working};

/// How long a failing key waits: `base` after the first failure, twice as long after each further one.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The wait after the first failure.
    pub base: Duration,
    /// The longest wait.
    pub cap: Duration,
}

impl Default for Backoff {
    /// From 5 ms, so that a conflict is retried at once, to a minute, so that a fault which the world
    /// heals without an event is noticed soon enough.
    fn default() -> Self {
        Self { base: Duration::from_millis(5), cap: Duration::from_secs(60) }
    }
}

impl Backoff {
    /// The wait after `failures` failures in a row (from 1).
    pub fn delay(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.cap)
    }
}

/// A keyed, deduplicating queue with delays. Cheap to clone; clones are the same queue.
#[derive(Debug)]
pub struct Queue<K> {
    inner: Arc<Inner<K>>,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

#[derive(Debug)]
struct Inner<K> {
    state: Mutex<State<K>>,
    changed: Notify,
    clock: Arc<dyn Clock>,
    backoff: Backoff,
}

#[derive(Debug)]
struct State<K> {
    ready: VecDeque<K>,
    /// Keys that need work, and since when: those in `ready`, and those in `active` that were added again.
    dirty: HashMap<K, Duration>,
    /// Keys that are worked on, and since when.
    active: HashMap<K, Duration>,
    failures: HashMap<K, u32>,
    delayed: BTreeMap<(Duration, u64), K>,
    deadlines: HashMap<K, (Duration, u64)>,
    next_id: u64,
    closed: bool,
    /// None before the queue has a name.
    metrics: Option<QueueMetrics>,
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// An empty queue with Decapod's usual back-off.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self::with_backoff(clock, Backoff::default())
    }

    /// An empty queue with a back-off of its own.
    pub fn with_backoff(clock: Arc<dyn Clock>, backoff: Backoff) -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashMap::new(),
            active: HashMap::new(),
            failures: HashMap::new(),
            delayed: BTreeMap::new(),
            deadlines: HashMap::new(),
            next_id: 0,
            closed: false,
            metrics: None,
        };
        Self { inner: Arc::new(Inner { state: Mutex::new(state), changed: Notify::new(), clock, backoff }) }
    }

    /// Asks for work on `key`, now.
    pub fn add(&self, key: K) {
        let now = self.inner.clock.monotonic();
        let mut state = self.lock();
        state.add(key, now);
        drop(state);
        self.inner.changed.notify_one();
    }

    /// Asks for work on `key` after `delay`. An earlier moment that was asked for already stands.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let deadline = self.inner.clock.monotonic() + delay;
        let mut state = self.lock();
        state.delay(key, deadline);
        drop(state);
        self.inner.changed.notify_one();
    }

    /// Asks for work on `key` after the back-off that its failures in a row deserve, this one included.
    pub fn add_failed(&self, key: K) {
        let mut state = self.lock();
        let failures = state.failures.entry(key.clone()).or_insert(0);
        *failures = failures.saturating_add(1);
        let delay = self.inner.backoff.delay(*failures);
        if let Some(metrics) = &state.metrics {
            metrics.retries.inc();
        }
        drop(state);
        self.add_after(key, delay);
    }

    /// Forgets the failures of `key`: the next one waits the shortest time again.
    pub fn forget(&self, key: &K) {
        self.lock().failures.remove(key);
    }

    /// The failures of `key` in a row.
    pub fn failures(&self, key: &K) -> u32 {
        self.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// The next key to work on; `None` once the queue is closed. Each key must be given back with
    /// [`Queue::done`].
    pub async fn next(&self) -> Option<K> {
        loop {
            let changed = self.inner.changed.notified();
            let wait = {
                let now = self.inner.clock.monotonic();
                let mut state = self.lock();
                if state.closed {
                    drop(state);
                    // Wakes the next waiting worker in turn: a closed queue needs all of them to look.
                    self.inner.changed.notify_one();
                    return None;
                }
                state.promote(now);
                if let Some(key) = state.take(now) {
                    // Also for a key that is not due yet: this worker may have been the one that held the timer.
                    let more = !state.ready.is_empty() || !state.delayed.is_empty();
                    drop(state);
                    if more {
                        self.inner.changed.notify_one();
                    }
                    return Some(key);
                }
                state.delayed.keys().next().map(|(deadline, _)| deadline.saturating_sub(now))
            };
            match wait {
                None => changed.await,
                Some(wait) => {
                    let due = self.inner.clock.sleep(wait);
                    tokio::select! { () = changed => {}, () = due => {} }
                }
            }
        }
    }

    /// Gives `key` back after the work on it.
    pub fn done(&self, key: &K) {
        let now = self.inner.clock.monotonic();
        let mut state = self.lock();
        let since = state.active.remove(key);
        if let (Some(since), Some(metrics)) = (since, &state.metrics) {
            metrics.works.observe(now.saturating_sub(since).as_secs_f64());
        }
        let again = state.dirty.contains_key(key);
        if again {
            state.queue(key.clone());
        }
        drop(state);
        if again {
            self.inner.changed.notify_one();
        }
    }

    /// Ends the queue: [`Queue::next`] returns `None` from now on.
    pub fn close(&self) {
        self.lock().closed = true;
        self.inner.changed.notify_one();
    }

    /// Keys that wait for a worker, without those whose time has not come.
    pub fn len(&self) -> usize {
        self.lock().ready.len()
    }

    /// Whether no key waits for a worker.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.inner.clock
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.inner.lock()
    }
}

impl<K: Clone + Eq + Hash + Send + Sync + 'static> Queue<K> {
    /// Counts what happens from now on as that of the queue `name`, together with others of this name.
    pub(super) fn count_as(&self, name: &'static str) {
        let weak: Weak<Inner<K>> = Arc::downgrade(&self.inner);
        let metrics = QueueMetrics::of(name, weak);
        let mut state = self.lock();
        metrics.depth.inc_by(i64::try_from(state.ready.len()).unwrap_or(i64::MAX));
        metrics.adds.inc_by(state.dirty.len() as u64);
        state.metrics = Some(metrics);
    }
}

impl<K> Inner<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        // Nothing panics while the lock is held, so the state is whole even if the lock is poisoned.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Send + Sync> Working for Inner<K> {
    fn working(&self) -> (&'static str, Vec<Duration>) {
        let now = self.clock.monotonic();
        let state = self.lock();
        let name = state.metrics.as_ref().map_or("", |metrics| metrics.name);
        (name, state.active.values().map(|since| now.saturating_sub(*since)).collect())
    }
}

impl<K> Drop for State<K> {
    fn drop(&mut self) {
        if let Some(metrics) = &self.metrics {
            // Keys that nobody will take do not wait.
            metrics.depth.dec_by(i64::try_from(self.ready.len()).unwrap_or(i64::MAX));
        }
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn add(&mut self, key: K, now: Duration) {
        if let Some(deadline) = self.deadlines.remove(&key) {
            self.delayed.remove(&deadline);
        }
        if self.dirty.contains_key(&key) {
            return;
        }
        self.dirty.insert(key.clone(), now);
        if let Some(metrics) = &self.metrics {
            metrics.adds.inc();
        }
        if !self.active.contains_key(&key) {
            self.queue(key);
        }
    }

    fn queue(&mut self, key: K) {
        self.ready.push_back(key);
        if let Some(metrics) = &self.metrics {
            metrics.depth.inc();
        }
    }

    fn delay(&mut self, key: K, deadline: Duration) {
        if self.dirty.contains_key(&key) && !self.active.contains_key(&key) {
            return; // It waits for a worker already, which is sooner.
        }
        if let Some(earlier) = self.deadlines.get(&key) {
            if earlier.0 <= deadline {
                return;
            }
            self.delayed.remove(earlier);
        }
        self.next_id += 1;
        let deadline = (deadline, self.next_id);
        self.deadlines.insert(key.clone(), deadline);
        self.delayed.insert(deadline, key);
    }

    /// Moves the keys whose time has come to those that wait for a worker.
    fn promote(&mut self, now: Duration) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let key = entry.remove();
            self.deadlines.remove(&key);
            self.add(key, now);
        }
    }

    fn take(&mut self, now: Duration) -> Option<K> {
        let key = self.ready.pop_front()?;
        let since = self.dirty.remove(&key).unwrap_or(now);
        if let Some(metrics) = &self.metrics {
            metrics.depth.dec();
            metrics.waits.observe(now.saturating_sub(since).as_secs_f64());
        }
        self.active.insert(key.clone(), now);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    fn queue() -> (Queue<&'static str>, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::default());
        (Queue::new(clock.clone()), clock)
    }

    #[tokio::test]
    async fn a_key_waits_once_and_is_never_worked_on_twice_at_a_time() {
        let (queue, _) = queue();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.len(), 1);
        assert_eq!(queue.next().await, Some("a"));
        queue.add("a");
        assert!(queue.is_empty(), "a worker has it");
        queue.done(&"a");
        assert_eq!(queue.next().await, Some("a"));
        queue.done(&"a");
        assert!(queue.is_empty());
    }

    #[tokio::test]
    async fn of_two_delays_the_earlier_stands() {
        let (queue, clock) = queue();
        queue.add_after("a", Duration::from_secs(5));
        queue.add_after("a", Duration::from_secs(9));
        let mut next = std::pin::pin!(queue.next());
        assert!(futures::poll!(&mut next).is_pending());
        clock.advance(Duration::from_secs(5));
        assert_eq!(next.await, Some("a"));
        queue.done(&"a");
        clock.advance(Duration::from_secs(60));
        assert!(futures::poll!(std::pin::pin!(queue.next())).is_pending());
    }

    #[tokio::test]
    async fn an_add_overtakes_a_delay() {
        let (queue, clock) = queue();
        queue.add_after("a", Duration::from_secs(5));
        queue.add("a");
        assert_eq!(queue.next().await, Some("a"));
        queue.done(&"a");
        clock.advance(Duration::from_secs(6));
        assert!(futures::poll!(std::pin::pin!(queue.next())).is_pending());
    }

    #[tokio::test]
    async fn whoever_takes_a_key_leaves_the_timer_of_the_others_to_another() {
        let (queue, clock) = queue();
        let mut first = std::pin::pin!(queue.next());
        let mut second = std::pin::pin!(queue.next());
        assert!(futures::poll!(&mut first).is_pending());
        assert!(futures::poll!(&mut second).is_pending());
        // As if a worker had held the timer when it was woken for another key: nobody waits for this one.
        queue.lock().delay("late", Duration::from_secs(5));
        queue.add("now");
        assert_eq!(first.await, Some("now"));
        assert!(futures::poll!(&mut second).is_pending());
        clock.advance(Duration::from_secs(5));
        assert_eq!(futures::poll!(&mut second), std::task::Poll::Ready(Some("late")));
    }

    #[tokio::test]
    async fn a_named_queue_counts() {
        let (queue, clock) = queue();
        queue.add("a");
        queue.count_as("counted");
        queue.add("b");
        queue.add("b");
        clock.advance(Duration::from_secs(2));
        assert_eq!(queue.next().await, Some("a"));
        clock.advance(Duration::from_secs(3));
        queue.add_failed("a");
        let lines = |text: &str, wanted: &[&str]| {
            for wanted in wanted {
                assert!(text.lines().any(|line| line == *wanted), "{wanted} is not in:\n{text}");
            }
        };
        let text = crate::metrics::text().unwrap();
        lines(
            &text,
            &[
                "workqueue_adds_total{name=\"counted\"} 2",
                "workqueue_depth{name=\"counted\"} 1",
                "workqueue_retries_total{name=\"counted\"} 1",
                "workqueue_queue_duration_seconds_sum{name=\"counted\"} 2.0",
                "workqueue_queue_duration_seconds_bucket{le=\"10.0\",name=\"counted\"} 1",
                "workqueue_unfinished_work_seconds{name=\"counted\"} 3.0",
                "workqueue_longest_running_processor_seconds{name=\"counted\"} 3.0",
            ],
        );
        queue.done(&"a");
        let text = crate::metrics::text().unwrap();
        lines(&text, &["workqueue_work_duration_seconds_sum{name=\"counted\"} 3.0"]);
        drop(queue);
        let text = crate::metrics::text().unwrap();
        lines(&text, &["workqueue_depth{name=\"counted\"} 0"]);
        assert!(!text.contains("unfinished_work_seconds{name=\"counted\"}"), "{text}");
    }

    #[test]
    fn the_back_off_doubles_up_to_its_cap() {
        let backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(10) };
        let delays = [1, 2, 3, 4, 5, 99].map(|failures| backoff.delay(failures).as_secs());
        assert_eq!(delays, [1, 2, 4, 8, 10, 10]);
    }

    #[tokio::test]
    async fn closing_wakes_every_worker() {
        let (queue, _) = queue();
        let workers = [queue.clone(), queue.clone(), queue.clone()];
        let waiting = workers.map(|queue| tokio::task::spawn(async move { queue.next().await }));
        queue.close();
        for worker in waiting {
            assert_eq!(worker.await.unwrap(), None);
        }
    }
}
