//! How far the cache is: one number for all rows, because one feed serves them all.

use std::sync::Arc;
use std::time::Duration;

use decapod_storage::{Revision, Store};
use tokio::sync::watch;

use super::Error;

/// How long a read waits for the cache at most; as kube-apiserver.
const PATIENCE: Duration = Duration::from_secs(3);
/// After how long the store is asked how far it is: changes come by themselves, but a revision that
/// changed nothing the cache sees does not.
const ASK_AFTER: Duration = Duration::from_millis(100);

/// The revision up to which all changes are in all rows.
#[derive(Clone, Debug)]
pub(super) struct Reached(Arc<watch::Sender<Revision>>);

impl Reached {
    pub(super) fn new(revision: Revision) -> Self {
        Self(Arc::new(watch::Sender::new(revision)))
    }

    pub(super) fn get(&self) -> Revision {
        *self.0.borrow()
    }

    /// Says that all changes up to this revision are in all rows.
    pub(super) fn set(&self, revision: Revision) {
        self.0.send_if_modified(|reached| {
            let further = *reached < revision;
            *reached = revision.max(*reached);
            further
        });
    }

    /// Waits, but not for ever, until the cache has reached a revision.
    pub(super) async fn wait(&self, revision: Revision, store: &dyn Store) -> Result<(), Error> {
        let mut reached = self.0.subscribe();
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
