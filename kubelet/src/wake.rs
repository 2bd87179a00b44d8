//! How everything that happens reaches the pod workers: a set of pods to look at again.
//!
//! A set and not a queue of messages: nothing is lost, nothing piles up, and its size is bounded by the number of
//! pods on the node.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::pod::Uid;

/// Cheap to clone; clones wake the same workers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wakes {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    pods: Mutex<BTreeSet<Uid>>,
    notify: Notify,
}

impl Wakes {
    /// Has the pod's worker look at the pod again.
    pub(crate) fn wake(&self, uid: &str) {
        self.pods().insert(uid.to_owned());
        self.inner.notify.notify_one();
    }

    /// The pods that were woken since the last call; waits until there is one.
    pub(crate) async fn next(&self) -> BTreeSet<Uid> {
        loop {
            let woken = std::mem::take(&mut *self.pods());
            if !woken.is_empty() {
                return woken;
            }
            self.inner.notify.notified().await;
        }
    }

    fn pods(&self) -> MutexGuard<'_, BTreeSet<Uid>> {
        // Nothing panics while the lock is held.
        self.inner.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
