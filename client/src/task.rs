//! Named, supervised tasks. No part of Decapod calls `tokio::spawn` by itself: a task that ends with an
//! error or a panic is logged under its name and reported to whoever composed the process, and a
//! shutdown reaches every task and waits for it.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// How a task ended: nothing to report, or the reason of its failure.
pub trait Outcome {
    /// The reason of the failure, if it is one.
    fn failure(self) -> Option<String>;
}

impl Outcome for () {
    fn failure(self) -> Option<String> {
        None
    }
}

impl Outcome for std::convert::Infallible {
    fn failure(self) -> Option<String> {
        match self {}
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> Outcome for Result<(), E> {
    fn failure(self) -> Option<String> {
        let error: Box<dyn std::error::Error + Send + Sync> = self.err()?.into();
        Some(crate::error::chain(&*error))
    }
}

/// A task that ended with an error or a panic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The name under which the task was spawned.
    pub task: &'static str,
    /// Its error with all sources, or the panic's message.
    pub reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.task, self.reason)
    }
}

/// Spawns tasks, knows which of them run, and ends them. Cheap to clone; clones are the same supervisor.
#[derive(Clone, Debug)]
pub struct Supervisor {
    group: Arc<Group>,
    shared: Arc<Shared>,
}

/// A supervisor and its descendants: a shutdown of a group ends the groups below it as well.
#[derive(Debug)]
struct Group {
    parent: Option<Arc<Group>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    /// Cancelled when the grace of a shutdown is over: drops what still runs.
    abort: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    running: Mutex<BTreeMap<&'static str, usize>>,
    failed: watch::Sender<Option<Failure>>,
}

impl Supervisor {
    /// A supervisor without tasks.
    pub fn new() -> Self {
        let group = Group {
            parent: None,
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            abort: CancellationToken::new(),
        };
        let shared = Shared { running: Mutex::default(), failed: watch::Sender::new(None) };
        Self { group: Arc::new(group), shared: Arc::new(shared) }
    }

    /// A supervisor whose tasks end with those of `self`, and which can be shut down alone.
    #[must_use]
    pub fn child(&self) -> Self {
        let group = Group {
            parent: Some(self.group.clone()),
            tasks: TaskTracker::new(),
            shutdown: self.group.shutdown.child_token(),
            abort: self.group.abort.child_token(),
        };
        Self { group: Arc::new(group), shared: self.shared.clone() }
    }

    /// Runs `future` as the task `name`. At a shutdown the task is expected to end by itself, by looking
    /// at [`Supervisor::shutdown_token`] or by a stream that ends; it is dropped when the grace is over.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future + Send + 'static,
        F::Output: Outcome,
    {
        let shared = self.shared.clone();
        let abort = self.group.abort.clone();
        shared.started(name);
        let watched = async move {
            let guarded = AssertUnwindSafe(future).catch_unwind();
            let failure = tokio::select! {
                biased;
                ended = guarded => match ended {
                    Ok(outcome) => outcome.failure(),
                    Err(panic) => Some(format!("panicked: {}", panic_message(&*panic))),
                },
                () = abort.cancelled() => {
                    tracing::debug!(task = name, "dropped: it did not end within the grace of the shutdown");
                    None
                }
            };
            shared.ended(name, failure);
        };
        let held = self.lineage();
        let span = tracing::debug_span!(parent: None, "task", name);
        self.group.tasks.spawn(
            async move {
                watched.await;
                drop(held)
            }
            .instrument(span),
        );
    }

    /// Runs `future` as the task `name` and drops it at its next await once a shutdown begins: for tasks
    /// that may stop anywhere.
    pub fn spawn_until_shutdown<F>(&self, name: &'static str, future: F)
    where
        F: Future + Send + 'static,
        F::Output: Outcome,
    {
        let shutdown = self.shutdown_token();
        self.spawn(name, async move {
            let reason = tokio::select! {
                biased;
                () = shutdown.cancelled() => None,
                outcome = future => outcome.failure(),
            };
            reason.map_or(Ok(()), Err)
        });
    }

    /// Cancelled when the shutdown of this supervisor, or of one above it, begins.
    pub fn shutdown_token(&self) -> CancellationToken {
        self.group.shutdown.clone()
    }

    /// Tells all tasks to end, waits for them for up to `grace`, and drops those that remain. Returns the
    /// names of the tasks that had to be dropped (and of all supervisors of this process that share names).
    pub async fn shutdown(&self, grace: Duration) -> Vec<&'static str> {
        self.group.shutdown.cancel();
        self.group.tasks.close();
        if tokio::time::timeout(grace, self.group.tasks.wait()).await.is_ok() {
            return Vec::new();
        }
        let remaining = self.running().into_keys().collect();
        self.group.abort.cancel();
        self.group.tasks.wait().await;
        remaining
    }

    /// Resolves with the first failure of a task of this supervisor's whole family.
    pub async fn failed(&self) -> Failure {
        let mut failed = self.shared.failed.subscribe();
        let failure = failed.wait_for(Option::is_some).await.expect("self holds the sender");
        failure.clone().expect("waited for a failure")
    }

    /// How many tasks of each name run now, in this supervisor's whole family.
    pub fn running(&self) -> BTreeMap<&'static str, usize> {
        self.shared.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What makes every ancestor wait for a task of this group.
    fn lineage(&self) -> Vec<tokio_util::task::task_tracker::TaskTrackerToken> {
        let above = std::iter::successors(self.group.parent.as_ref(), |group| group.parent.as_ref());
        above.map(|group| group.tasks.token()).collect()
    }
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}

impl Shared {
    fn started(&self, name: &'static str) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        *running.entry(name).or_default() += 1;
    }

    fn ended(&self, name: &'static str, failure: Option<String>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = running.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                running.remove(name);
            }
        }
        drop(running);
        let Some(reason) = failure else { return };
        tracing::error!(task = name, reason, "a task failed");
        self.failed.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                *first = Some(Failure { task: name, reason });
            }
            is_first
        });
    }
}

/// The text of a caught panic, as far as it has one.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use futures::future::BoxFuture;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_reported_under_the_name_of_the_task() {
        let supervisor = Supervisor::new();
        let fragile: BoxFuture<'static, ()> = Box::pin(async { panic!("boom {}", 7) });
        supervisor.child().spawn("fragile", fragile);
        let failure = supervisor.failed().await;
        assert_eq!(failure, Failure { task: "fragile", reason: "panicked: boom 7".into() });
        assert!(supervisor.running().is_empty());
    }

    #[tokio::test]
    async fn an_error_is_reported_and_success_is_not() {
        let supervisor = Supervisor::new();
        supervisor.spawn("fine", async {});
        supervisor.spawn("faulty", async { Err(std::io::Error::other("no disk")) });
        assert_eq!(supervisor.failed().await.to_string(), "faulty: no disk");
    }

    #[tokio::test]
    async fn a_shutdown_lets_tasks_finish_and_drops_the_stubborn() {
        let supervisor = Supervisor::new();
        let child = supervisor.child();
        let token = child.shutdown_token();
        let (done, finished) = tokio::sync::oneshot::channel();
        child.spawn("tidy", async move {
            token.cancelled().await;
            done.send(()).unwrap();
        });
        child.spawn_until_shutdown("endless", std::future::pending::<()>());
        supervisor.spawn("stubborn", std::future::pending::<()>());
        let dropped = supervisor.shutdown(Duration::from_millis(50)).await;
        assert_eq!(dropped, ["stubborn"]);
        finished.await.unwrap();
        assert!(supervisor.running().is_empty());
    }

    #[tokio::test]
    async fn a_child_ends_alone() {
        let supervisor = Supervisor::new();
        let child = supervisor.child();
        let token = child.shutdown_token();
        child.spawn("below", async move { token.cancelled().await });
        child.shutdown(Duration::from_secs(10)).await;
        assert!(!supervisor.shutdown_token().is_cancelled());
    }
}
