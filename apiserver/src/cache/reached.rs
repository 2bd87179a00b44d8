//! How far the cache is: one number for all rows, because one feed serves them all.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use decapod_storage::{Revision, Store};
use tokio::sync::watch;

use super::Error;
use super::state::WINDOW_AGE;

/// How long a read waits for the cache at most; as kube-apiserver.
const PATIENCE: Duration = Duration::from_secs(3);
/// After how long the store is asked how far it is: changes come by themselves, but a revision that
/// changed nothing the cache sees does not.
const ASK_AFTER: Duration = Duration::from_millis(100);
/// How exactly the age of a revision is known: so few moments are kept, and it is little beside the age.
const STEP: Duration = Duration::from_secs(10);

/// The revision up to which all changes are in all rows.
#[derive(Clone, Debug)]
pub(super) struct Reached(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    revision: watch::Sender<Revision>,
    ages: Mutex<Ages>,
}

/// When which revision was the newest.
#[derive(Debug, Default)]
struct Ages {
    /// Moments of the last [`WINDOW_AGE`], a [`STEP`] apart at least.
    moments: VecDeque<(Instant, Revision)>,
    /// The newest that was reached before those.
    oldest: Revision,
}

impl Ages {
    fn note(&mut self, revision: Revision, now: Instant) {
        if self.moments.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= STEP) {
            self.moments.push_back((now, revision));
        }
        self.expire(now);
    }

    fn expire(&mut self, now: Instant) {
        let is_old = |(at, _): &mut (Instant, Revision)| now.saturating_duration_since(*at) > WINDOW_AGE;
        while let Some((_, revision)) = self.moments.pop_front_if(is_old) {
            self.oldest = revision;
        }
    }
}

impl Reached {
    pub(super) fn new(revision: Revision) -> Self {
        Self(Arc::new(Inner { revision: watch::Sender::new(revision), ages: Mutex::default() }))
    }

    pub(super) fn get(&self) -> Revision {
        *self.0.revision.borrow()
    }

    /// Says that all changes up to this revision are in all rows.
    pub(super) fn set(&self, revision: Revision) {
        self.ages().note(revision, Instant::now());
        self.0.revision.send_if_modified(|reached| {
            let further = *reached < revision;
            *reached = revision.max(*reached);
            further
        });
    }

    /// Fails for a revision that has not been the newest for [`WINDOW_AGE`]. A row that nothing changes
    /// could be read at such a one for ever, but Kubernetes ends a list in pages then, and whoever takes
    /// longer is to know that what he reads is old.
    pub(super) fn check_age(&self, requested: Revision) -> Result<(), Error> {
        let mut ages = self.ages();
        ages.expire(Instant::now());
        if requested < ages.oldest {
            return Err(Error::Expired { requested, oldest: ages.oldest });
        }
        Ok(())
    }

    fn ages(&self) -> MutexGuard<'_, Ages> {
        // Nothing panics while the lock is held.
        self.0.ages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits, but not for ever, until the cache has reached a revision.
    pub(super) async fn wait(&self, revision: Revision, store: &dyn Store) -> Result<(), Error> {
        let mut reached = self.0.revision.subscribe();
        let arrived = async {
            // The sender lives in `self`: the wait can only end well.
            reached.wait_for(|reached| *reached >= revision).await.map(drop).ok()
        };
        let asking = async {
            tokio::time::sleep(ASK_AFTER).await;
            if let Err(error) = store.progress().await {
                tracing::debug!(%error, "the store did not say how far it is");
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            _ = arrived => Ok(()),
            () = asking => Ok(()),
            () = tokio::time::sleep(PATIENCE) => Err(Error::Future { requested: revision, current: self.get() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_kept_as_long_as_it_was_the_newest_lately() {
        let (mut ages, start) = (Ages::default(), Instant::now());
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        ages.note(5, after(0));
        ages.note(6, after(1));
        ages.note(9, after(12));
        assert_eq!((ages.moments.len(), ages.oldest), (2, 0), "a moment each ten seconds");
        ages.expire(after(300));
        assert_eq!(ages.oldest, 0);
        ages.expire(after(301));
        assert_eq!(ages.oldest, 5, "5 itself was the newest a second longer");
        ages.note(10, after(320));
        assert_eq!((ages.oldest, ages.moments.len()), (9, 1));
    }
}
