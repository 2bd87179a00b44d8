//! The runtime's tasks: named, ended together, their panics said aloud.
//!
//! The runtime is below the crate with the common supervisor, hence one of its own.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A group of tasks.
#[derive(Clone, Debug, Default)]
pub(super) struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
}

impl Tasks {
    /// Runs a task until it ends or all are ended.
    pub(super) fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let token = self.token.clone();
        self.tracker.spawn(async move {
            let guarded = AssertUnwindSafe(task).catch_unwind();
            if let Some(Err(_)) = token.run_until_cancelled(guarded).await {
                tracing::error!(task = name, "panicked");
            }
        });
    }

    /// Ends all tasks and waits for them.
    pub(super) async fn end(&self) {
        self.token.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}
