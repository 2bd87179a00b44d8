//! The loop that keeps a mirror true: list once, watch from the list's revision, list again only where
//! the server no longer has the revision. Nothing is skipped: a watch that ends is resumed at the
//! revision last seen, and an event that cannot be understood leads to a new list.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::Resource;
use kube::api::{ListParams, WatchEvent, WatchParams};
use rand::Rng;
use serde::de::DeserializeOwned;

use super::source::{Events, Source};
use super::store::Store;
use crate::ObjectKey;
use crate::clock::{self, Clock};
use crate::error::{self, ErrorExt};
use crate::reconcile::Backoff;

/// Objects per page of a list: bounds the body that has to be held and parsed at once.
const PAGE: u32 = 500;

/// For how long the server is asked to keep a watch, at least; up to twice as long, by chance, so that
/// the watches of a process do not all end together.
const WATCH_SECONDS: u32 = 240;

/// How long after the agreed end a silent watch counts as dead.
const WATCH_GRACE: Duration = Duration::from_secs(15);

/// A watch that served at least this long was healthy: its end starts no back-off.
const HEALTHY: Duration = Duration::from_secs(5);

/// How fast a lost server is asked again. The first tries are quick, because in one process the server
/// is merely starting; the cap keeps the recovery of a restarted server prompt.
const BACKOFF: Backoff = Backoff { base: Duration::from_millis(50), cap: Duration::from_secs(5) };

/// Which objects of a kind an informer mirrors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selection {
    /// Only objects of this namespace; empty for all namespaces.
    pub namespace: String,
    /// Field selector, such as `spec.nodeName=n1`; empty for all.
    pub fields: String,
    /// Label selector; empty for all.
    pub labels: String,
}

/// What ended a watch.
enum End {
    /// It may be resumed at the revision that was reached.
    Resume,
    /// The mirror cannot be brought up to date by a watch: list again.
    Relist,
}

pub(super) struct Pump<K> {
    /// The path of the collection, for logs.
    pub(super) path: String,
    pub(super) source: Source<K>,
    pub(super) selection: Selection,
    pub(super) store: Arc<Store<K>>,
    pub(super) clock: Arc<dyn Clock>,
}

impl<K: Resource + Clone + DeserializeOwned + Send + Sync + 'static> Pump<K> {
    /// Keeps the mirror true for ever.
    pub(super) async fn run(self) {
        let mut failures = 0_u32;
        let mut revision = None;
        loop {
            let outcome = self.turn(&mut revision, &mut failures).await;
            if let Err(error) = outcome {
                failures = failures.saturating_add(1);
                let retry = jitter(BACKOFF.delay(failures));
                let error = error::chain(&error);
                if failures > 5 {
                    tracing::warn!(path = self.path, failures, error, "cannot list or watch; trying again");
                } else {
                    tracing::debug!(path = self.path, failures, error, "cannot list or watch; trying again");
                }
                self.clock.sleep(retry).await;
            }
        }
    }

    /// One list where it is needed, and one watch.
    async fn turn(&self, revision: &mut Option<String>, failures: &mut u32) -> kube::Result<()> {
        let from = match revision.take() {
            Some(revision) => revision,
            None => {
                let listed = self.list().await?;
                tracing::debug!(path = self.path, revision = listed, objects = self.store.len(), "listed");
                *failures = 0;
                listed
            }
        };
        let begin = self.clock.monotonic();
        let seconds = rand::rng().random_range(WATCH_SECONDS..WATCH_SECONDS * 2);
        let opened = self.source.watch(&self.watch_params(seconds), &from).await;
        let events = match opened {
            Ok(events) => events,
            Err(error) if error.is_expired() => return Ok(()), // Without a revision the next turn lists.
            Err(error) => {
                *revision = Some(from);
                return Err(error);
            }
        };
        let mut reached = from;
        let limit = Duration::from_secs(u64::from(seconds)) + WATCH_GRACE;
        let following = self.follow(events, &mut reached);
        let end = clock::timeout(&*self.clock, limit, following).await.unwrap_or(Ok(End::Resume));
        if matches!(end, Ok(End::Resume)) {
            *revision = Some(reached);
        }
        if self.clock.monotonic().saturating_sub(begin) >= HEALTHY {
            *failures = 0;
        } else if end.is_ok() {
            // A server that ends watches at once must not be asked in a tight loop.
            *failures = failures.saturating_add(1);
            self.clock.sleep(jitter(BACKOFF.delay(*failures))).await;
        }
        end.map(|_| ())
    }

    /// Lists all pages, makes the mirror equal to them, and returns the revision to watch from.
    async fn list(&self) -> kube::Result<String> {
        let mut objects = Vec::new();
        let mut token = None;
        loop {
            let mut page = self.source.list(&self.list_params(token.take())).await?;
            objects.append(&mut page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(next) => token = Some(next),
                None => {
                    self.store.replace(objects);
                    let revision = page.metadata.resource_version.unwrap_or_default();
                    self.store.reached(&revision);
                    return Ok(revision);
                }
            }
        }
    }

    /// Applies the events of a watch until it ends; `reached` is the revision of the last one.
    async fn follow(&self, mut events: Events<K>, reached: &mut String) -> kube::Result<End> {
        while let Some(event) = events.next().await {
            match event {
                Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    note_revision(reached, &object);
                    self.put(object);
                    self.store.reached(reached);
                }
                Ok(WatchEvent::Deleted(object)) => {
                    note_revision(reached, &object);
                    self.store.remove(&ObjectKey::of(&object));
                    self.store.reached(reached);
                }
                Ok(WatchEvent::Bookmark(bookmark)) => {
                    *reached = bookmark.metadata.resource_version;
                    self.store.reached(reached);
                }
                Ok(WatchEvent::Error(status)) if status.code == 410 => {
                    tracing::debug!(path = self.path, from = *reached, "the revision has expired");
                    return Ok(End::Relist);
                }
                Ok(WatchEvent::Error(status)) => return Err(kube::Error::Api(status)),
                Err(error) if error.is_expired() => return Ok(End::Relist),
                // The connection broke; what was applied is applied.
                Err(error @ kube::Error::ReadEvents(_)) => {
                    tracing::debug!(path = self.path, error = error::chain(&error), "a watch broke");
                    return Ok(End::Resume);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(End::Resume)
    }

    fn put(&self, mut object: K) {
        (self.source.slim)(&mut object);
        self.store.put(object);
    }

    fn list_params(&self, token: Option<String>) -> ListParams {
        let mut params = ListParams::default().limit(PAGE);
        params.continue_token = token;
        params.field_selector = some(&self.selection.fields);
        params.label_selector = some(&self.selection.labels);
        params
    }

    fn watch_params(&self, seconds: u32) -> WatchParams {
        let mut params = WatchParams::default().timeout(seconds);
        params.field_selector = some(&self.selection.fields);
        params.label_selector = some(&self.selection.labels);
        params
    }
}

fn note_revision<K: Resource>(reached: &mut String, object: &K) {
    if let Some(revision) = &object.meta().resource_version {
        reached.clone_from(revision);
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// Between three quarters and all of `delay`, by chance: many clients of a restarted server spread out.
fn jitter(delay: Duration) -> Duration {
    delay.mul_f64(rand::rng().random_range(0.75..=1.0))
}
