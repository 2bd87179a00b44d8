//! Time as an argument. Whatever decides by time takes an `Arc<dyn Clock>`, so that tests and the
//! simulation of a whole control plane turn the hands themselves; only [`SystemClock`] asks the machine.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{oneshot, watch};

/// A wall clock, a monotonic clock and a way to wait.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The wall-clock time: for what is written into objects.
    fn now(&self) -> Timestamp;

    /// Time since some fixed moment, never running backwards: for measuring and for deadlines.
    fn monotonic(&self) -> Duration;

    /// Resolves once `duration` has passed.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// The machine's clock.
#[derive(Debug)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock whose monotonic zero is now.
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// `future`'s output, or `None` when `limit` passed first.
pub async fn timeout<F: Future>(clock: &dyn Clock, limit: Duration, future: F) -> Option<F::Output> {
    let expired = clock.sleep(limit);
    tokio::select! {
        biased;
        output = future => Some(output),
        () = expired => None,
    }
}

/// A clock that stands still until a test advances it.
#[derive(Debug)]
pub struct ManualClock {
    start: Timestamp,
    state: Mutex<Manual>,
    sleepers: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Manual {
    elapsed: Duration,
    next_id: u64,
    sleeping: BTreeMap<(Duration, u64), oneshot::Sender<()>>,
}

impl ManualClock {
    /// A clock that shows `start`.
    pub fn new(start: Timestamp) -> Self {
        Self { start, state: Mutex::default(), sleepers: watch::Sender::new(0) }
    }

    /// Moves the hands forward and wakes all whose time has come, in order of their deadlines.
    pub fn advance(&self, duration: Duration) {
        let mut state = self.lock();
        state.elapsed += duration;
        let now = state.elapsed;
        let later = state.sleeping.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut state.sleeping, later);
        self.sleepers.send_replace(state.sleeping.len());
        drop(state);
        for waker in due.into_values() {
            // A sleeper that was dropped meanwhile needs no waking.
            waker.send(()).ok();
        }
    }

    /// Resolves once at least `count` sleeps wait for this clock: the moment at which a test may
    /// advance it and know who is woken. Sleeps that were dropped count until their time has come.
    pub async fn sleepers(&self, count: usize) {
        let mut sleepers = self.sleepers.subscribe();
        sleepers.wait_for(|sleeping| *sleeping >= count).await.expect("self holds the sender");
    }

    fn lock(&self) -> MutexGuard<'_, Manual> {
        // Nothing panics while the lock is held, so the state is whole even if the lock is poisoned.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for ManualClock {
    /// A clock that shows a fixed day of 2026.
    fn default() -> Self {
        Self::new(Timestamp::constant(1_790_000_000, 0))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        let elapsed = SignedDuration::try_from(self.monotonic()).unwrap_or(SignedDuration::MAX);
        self.start.checked_add(elapsed).unwrap_or(Timestamp::MAX)
    }

    fn monotonic(&self) -> Duration {
        self.lock().elapsed
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let (waker, woken) = oneshot::channel();
        let mut state = self.lock();
        if duration.is_zero() {
            return Box::pin(std::future::ready(()));
        }
        state.next_id += 1;
        let deadline = (state.elapsed + duration, state.next_id);
        state.sleeping.insert(deadline, waker);
        self.sleepers.send_replace(state.sleeping.len());
        Box::pin(async move {
            if woken.await.is_err() {
                // The clock is gone: its time never comes.
                std::future::pending::<()>().await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sleepers_wake_when_their_time_has_come_and_no_sooner() {
        let clock = ManualClock::default();
        let begin = clock.now();
        let mut long = clock.sleep(Duration::from_secs(10));
        let short = clock.sleep(Duration::from_secs(1));
        clock.sleepers(2).await;
        clock.advance(Duration::from_secs(9));
        short.await;
        assert!(futures::poll!(&mut long).is_pending());
        clock.advance(Duration::from_secs(1));
        long.await;
        assert_eq!(clock.now().duration_since(begin).as_secs(), 10);
    }

    #[tokio::test]
    async fn a_timeout_prefers_the_output() {
        let clock = ManualClock::default();
        assert_eq!(timeout(&clock, Duration::ZERO, async { 1 }).await, Some(1));
        assert_eq!(timeout(&clock, Duration::ZERO, std::future::pending::<()>()).await, None);
    }
}
