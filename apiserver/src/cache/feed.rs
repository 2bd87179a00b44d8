//! All rows, and the one watch of the store that keeps them current.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as StdMutex, PoisonError, RwLock};
use std::time::Duration;

use decapod_storage::{self as storage, Event, List, Revision, Store, Watch};
use futures::StreamExt;
use tokio::sync::{Mutex, OnceCell};
use tokio::task::JoinHandle;

use super::Error;
use super::reached::Reached;
use super::row::{ByPrefix, Cacher, Row};

/// How long the feed waits before it tries again to reach the store: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How many revisions a row leaves to a store that forgot what was to be read, at first: what it forgets at once.
const MARGIN: Revision = 256;

/// The caches of all rows. Dropping it stops the feed.
pub(crate) struct Cache {
    shared: Arc<Shared>,
    feed: OnceCell<Feed>,
    /// By row: only one warms it up. Several rows may do so at once, because a store on other machines
    /// takes its time to start a watch.
    warming: StdMutex<HashMap<String, Arc<Mutex<()>>>>,
}

struct Shared {
    store: Arc<dyn Store>,
    reached: Reached,
    /// By what the API server calls the row.
    rows: RwLock<HashMap<String, Arc<Cacher>>>,
    /// Held while changes are handed out, and by a row that joins: it joins between two batches.
    gate: Mutex<ByPrefix>,
}

/// The running feed.
struct Feed(JoinHandle<()>);

impl Drop for Feed {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Cache {
    /// A cache of this store. Nothing runs before the first row is used.
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        let shared =
            Shared { store, reached: Reached::new(0), rows: RwLock::default(), gate: Mutex::default() };
        Self { shared: Arc::new(shared), feed: OnceCell::new(), warming: StdMutex::default() }
    }

    /// The cache of a row, which is made by its first use. Takes what identifies the row, and what makes
    /// it.
    pub(crate) async fn row(&self, id: &str, make: impl FnOnce() -> Row) -> Result<Arc<Cacher>, Error> {
        if let Some(cacher) = self.shared.known(id) {
            return Ok(cacher);
        }
        let own = {
            let mut warming = self.warming.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(warming.entry(id.to_owned()).or_default())
        };
        let _one_at_a_time = own.lock().await;
        if let Some(cacher) = self.shared.known(id) {
            return Ok(cacher);
        }
        self.feed.get_or_try_init(|| self.start()).await?;
        self.shared.warm(id, make()).await
    }

    async fn start(&self) -> Result<Feed, Error> {
        let revision = self.shared.store.revision().await?;
        self.shared.reached.set(revision);
        Ok(Feed(tokio::spawn(Arc::clone(&self.shared).run(revision))))
    }
}

impl Shared {
    fn known(&self, id: &str) -> Option<Arc<Cacher>> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Makes a row join, as old as the store keeps it. While the store is written to it forgets: then the row
    /// is read where it has a little longer to live, and more at each try, at the newest revision at last.
    async fn warm(&self, id: &str, row: Row) -> Result<Arc<Cacher>, Error> {
        let (mut at, mut margin) = (0, 0);
        loop {
            match self.join(id, &row, at).await {
                Err(storage::Error::Compacted { oldest, .. }) => {
                    at = (oldest + margin).min(self.store.revision().await?);
                    margin = MARGIN.max(margin * 2);
                }
                Err(storage::Error::Lagged) => {}
                result => return Ok(result?),
            }
        }
    }

    /// Reads a row at a revision, follows it until it is where the feed is, and joins.
    async fn join(&self, id: &str, row: &Row, at: Revision) -> Result<Arc<Cacher>, storage::Error> {
        let page = self.store.list(&row.prefix, List { at: Some(at), ..List::default() }).await?;
        let mut watch = self.store.watch(&row.prefix, page.revision).await?;
        let cacher = Cacher::new(row.clone(), Arc::clone(&self.store), self.reached.clone(), &page);
        let cacher = Arc::new(cacher);
        self.follow(&mut watch, &cacher).await?;
        let mut gate = self.gate.lock().await;
        self.follow(&mut watch, &cacher).await?;
        gate.add(Arc::clone(&cacher));
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        rows.insert(id.to_owned(), Arc::clone(&cacher));
        Ok(cacher)
    }

    /// Hands the changes of a row's own watch to it until it is at least where the feed is now.
    async fn follow(&self, watch: &mut Watch, cacher: &Cacher) -> Result<(), storage::Error> {
        let goal = self.reached.get();
        self.store.progress().await?;
        while cacher.revision() < goal {
            match watch.next().await {
                Some(Ok(Event::Changes(changes))) => cacher.apply(&changes),
                Some(Ok(Event::Progress(revision))) if revision >= goal => return Ok(()),
                Some(Ok(Event::Progress(_))) => {}
                Some(Err(error)) => return Err(error),
                None => return Err(storage::Error::Lagged),
            }
        }
        Ok(())
    }

    /// Follows the store for ever.
    async fn run(self: Arc<Self>, mut seen: Revision) {
        let mut pause = RETRY.0;
        loop {
            let error = match self.store.watch("", seen).await {
                Ok(watch) => {
                    let before = seen;
                    let error = self.pump(watch, &mut seen).await;
                    if seen > before {
                        pause = RETRY.0;
                    }
                    error
                }
                Err(error) => error,
            };
            match error {
                // What was missed is gone: all rows start anew, and clients with them.
                storage::Error::Compacted { .. } | storage::Error::Lagged => {
                    tracing::warn!(%error, "the cache fell behind the store: all rows start anew");
                    if let Some(newest) = self.restart().await {
                        seen = newest;
                        continue;
                    }
                }
                other => tracing::warn!(error = %other, "the cache cannot follow the store; it tries again"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Hands out changes until the watch ends; says why it did.
    async fn pump(&self, mut watch: Watch, seen: &mut Revision) -> storage::Error {
        loop {
            let reached = match watch.next().await {
                Some(Ok(Event::Changes(changes))) => {
                    let last = changes.last().map_or(*seen, storage::Change::revision);
                    let gate = self.gate.lock().await;
                    hand_out(&gate, &changes);
                    self.reached.set(last);
                    last
                }
                Some(Ok(Event::Progress(revision))) => {
                    self.reached.set(revision);
                    revision
                }
                Some(Err(error)) => return error,
                None => return storage::Error::Lagged,
            };
            *seen = reached.max(*seen);
        }
    }

    /// Drops all rows; gives the revision from which to go on.
    async fn restart(&self) -> Option<Revision> {
        let mut gate = self.gate.lock().await;
        let newest = self.store.revision().await.ok()?;
        *gate = ByPrefix::default();
        let rows = std::mem::take(&mut *self.rows.write().unwrap_or_else(PoisonError::into_inner));
        for cacher in rows.into_values() {
            cacher.end();
        }
        self.reached.set(newest);
        Some(newest)
    }
}

/// Gives each row its changes, in order.
fn hand_out(rows: &ByPrefix, changes: &[storage::Change]) {
    let mut touched: Vec<(&Arc<Cacher>, Vec<storage::Change>)> = Vec::new();
    for change in changes {
        for cacher in rows.of(change.key()) {
            match touched.iter_mut().find(|(other, _)| Arc::ptr_eq(other, cacher)) {
                Some((_, changes)) => changes.push(change.clone()),
                None => touched.push((cacher, vec![change.clone()])),
            }
        }
    }
    for (cacher, changes) in touched {
        cacher.apply(&changes);
    }
}
