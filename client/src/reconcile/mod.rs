//! The reconcile driver: a key comes in, the reconciler looks at the world and moves it one step closer
//! to what is wanted. It gets no event: what it does depends on the world alone, so missed, merged and
//! repeated changes make no difference.

mod queue;

use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;

pub use queue::{Backoff, Queue};

use crate::error::{self, ErrorExt};
use crate::informer::{Change, Changes};
use crate::task::{Supervisor, panic_message};

/// Runs `workers` workers named `name` on `queue` until the supervisor shuts down.
///
/// `reconcile` answers with the time after which it wants to look at the key again, if any. A key whose
/// reconciliation fails or panics is retried after a back-off; conflicts are expected and logged quietly.
pub fn run<K, F, Fut, E>(
    supervisor: &Supervisor,
    name: &'static str,
    queue: &Queue<K>,
    workers: usize,
    reconcile: F,
) where
    K: Clone + Eq + Hash + std::fmt::Debug + Send + Sync + 'static,
    F: Fn(K) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Option<Duration>, E>> + Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    queue.count_as(name);
    let reconcile = Arc::new(reconcile);
    for _ in 0..workers {
        let (queue, reconcile) = (queue.clone(), reconcile.clone());
        supervisor.spawn(name, async move {
            while let Some(key) = queue.next().await {
                work(name, &queue, key, &*reconcile).await;
            }
        });
    }
    let (queue, shutdown) = (queue.clone(), supervisor.shutdown_token());
    supervisor.spawn(name, async move {
        shutdown.cancelled().await;
        queue.close();
    });
}

async fn work<K, F, Fut, E>(name: &'static str, queue: &Queue<K>, key: K, reconcile: &F)
where
    K: Clone + Eq + Hash + std::fmt::Debug,
    F: Fn(K) -> Fut,
    Fut: Future<Output = Result<Option<Duration>, E>>,
    E: std::error::Error + 'static,
{
    let begin = queue.clock().monotonic();
    let outcome = AssertUnwindSafe(async { reconcile(key.clone()).await }).catch_unwind().await;
    let elapsed = queue.clock().monotonic().saturating_sub(begin);
    match outcome {
        Ok(Ok(again)) => {
            tracing::trace!(controller = name, ?key, ?elapsed, ?again, "reconciled");
            queue.forget(&key);
            if let Some(delay) = again {
                queue.add_after(key.clone(), delay);
            }
        }
        Ok(Err(error)) => {
            let failures = queue.failures(&key) + 1;
            if is_conflict(&error) {
                tracing::debug!(controller = name, ?key, failures, "the object changed meanwhile; again");
            } else {
                tracing::warn!(controller = name, ?key, failures, error = error::chain(&error), "failed");
            }
            queue.add_failed(key.clone());
        }
        Err(panic) => {
            let reason = panic_message(&*panic);
            tracing::error!(controller = name, ?key, reason, "the reconciler panicked");
            queue.add_failed(key.clone());
        }
    }
    queue.done(&key);
}

/// Whether a conflict lies somewhere under `error`.
fn is_conflict(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut errors = std::iter::successors(Some(error), |error| error.source());
    errors.any(|error| error::as_kube(error).is_some_and(ErrorExt::is_conflict))
}

/// Adds to `queue` the keys that each change of an informer concerns, until the informer ends.
pub fn feed<T, K, I, F>(
    supervisor: &Supervisor,
    name: &'static str,
    mut changes: Changes<T>,
    queue: &Queue<K>,
    keys: F,
) where
    T: Send + Sync + 'static,
    K: Clone + Eq + Hash + Send + Sync + 'static,
    I: IntoIterator<Item = K>,
    I::IntoIter: Send,
    F: Fn(&Change<T>) -> I + Send + 'static,
{
    let queue = queue.clone();
    supervisor.spawn_until_shutdown(name, async move {
        while let Some(change) = changes.next().await {
            for key in keys(&change) {
                queue.add(key);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::clock::{Clock, ManualClock, SystemClock};

    #[derive(Debug, thiserror::Error)]
    #[error("not yet")]
    struct NotYet;

    #[tokio::test]
    async fn failures_and_panics_are_retried_with_back_off() {
        let clock = Arc::new(ManualClock::default());
        let backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(100) };
        let queue = Queue::with_backoff(clock.clone(), backoff);
        let supervisor = Supervisor::new();
        let (tried, mut tries) = tokio::sync::mpsc::unbounded_channel();
        let (count, times) = (Mutex::new(0), clock.clone());
        run(&supervisor, "stubborn", &queue, 1, move |key: u32| {
            let mut count = count.lock().unwrap();
            *count += 1;
            tried.send((*count, times.monotonic().as_secs())).unwrap();
            let attempt = *count;
            async move {
                assert!(attempt != 2, "a bug on key {key}");
                if attempt < 3 { Err(NotYet) } else { Ok(None) }
            }
        });
        queue.add(1);
        assert_eq!(tries.recv().await, Some((1, 0)));
        clock.sleepers(1).await;
        clock.advance(Duration::from_secs(1));
        assert_eq!(tries.recv().await, Some((2, 1)));
        clock.sleepers(1).await;
        clock.advance(Duration::from_secs(2));
        assert_eq!(tries.recv().await, Some((3, 3)));
        assert_eq!(supervisor.shutdown(Duration::from_secs(10)).await, Vec::<&str>::new());
        assert_eq!(queue.failures(&1), 0, "a success forgets the failures");
    }

    #[tokio::test]
    async fn many_keys_on_many_workers_are_each_worked_on_alone() {
        let queue = Queue::new(Arc::new(SystemClock::new()));
        let supervisor = Supervisor::new();
        let seen = Arc::new(Mutex::new(std::collections::HashMap::<u32, (bool, u32)>::new()));
        let (done, mut all) = tokio::sync::mpsc::unbounded_channel();
        let book = seen.clone();
        run(&supervisor, "many", &queue, 4, move |key: u32| {
            let (book, done) = (book.clone(), done.clone());
            async move {
                let busy = std::mem::replace(&mut book.lock().unwrap().entry(key).or_default().0, true);
                assert!(!busy, "two workers on key {key}");
                tokio::task::yield_now().await;
                let mut book = book.lock().unwrap();
                let entry = book.get_mut(&key).unwrap();
                (entry.0, entry.1) = (false, entry.1 + 1);
                done.send(()).unwrap();
                Ok::<_, NotYet>(None)
            }
        });
        (0..1000).for_each(|n| queue.add(n % 100));
        for _ in 0..100 {
            all.recv().await.unwrap();
        }
        supervisor.shutdown(Duration::from_secs(10)).await;
        assert_eq!(seen.lock().unwrap().len(), 100);
    }
}
