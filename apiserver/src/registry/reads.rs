//! Reading objects: the bytes as they are served, beside the little that selectors need.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use decapod_api::meta;
use decapod_api::resource::Resource;
use decapod_api::status::Error;
use decapod_api::{fields, labels};
use decapod_storage as storage;
use futures::StreamExt;
use serde_json::Value;
use storage::{Change, Entry, Event, Store};
use tokio::sync::mpsc;

use super::options::At;
use super::{fields as selectable, object};

/// An object at one revision, encoded once.
#[derive(Debug)]
pub(crate) struct Cached {
    pub(crate) key: Arc<str>,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) fields: Vec<(&'static str, String)>,
    pub(crate) revision: u64,
    pub(crate) bytes: Bytes,
}

/// What a read is about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) labels: labels::Selector,
    pub(crate) fields: fields::Selector,
}

impl Filter {
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    fn matches(&self, object: &Cached) -> bool {
        self.labels.matches(&object.labels)
            && self.fields.matches(|field| match field {
                "metadata.name" => Some(object.name.as_str()),
                "metadata.namespace" => Some(object.namespace.as_str()),
                other => object.fields.iter().find(|(name, _)| *name == other).map(|(_, value)| value.as_str()),
            })
    }
}

/// A list or a part of one.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) items: Vec<Arc<Cached>>,
    pub(crate) revision: u64,
    /// How many more there are; only known without selectors.
    pub(crate) remaining: usize,
    /// The key after which the next part starts.
    pub(crate) next: Option<Arc<str>>,
}

/// What a watch delivers.
#[derive(Clone, Debug)]
pub(crate) enum WatchEvent {
    Added(Arc<Cached>),
    Modified(Arc<Cached>),
    Deleted(Arc<Cached>),
    /// All up to this revision was delivered; true ends the initial events.
    Bookmark(u64, bool),
}

/// Where a watch starts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum From {
    /// After this revision.
    After(u64),
    /// With all that is there now, as `ADDED`; then, if asked, the bookmark that ends them.
    Initial { at: At, bookmark: bool },
}

/// Events that a watcher may be behind before it is ended.
const BUFFER: usize = 1024;
/// Bookmarks come this often, as from kube-apiserver.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// Reads over the store.
#[derive(Clone)]
pub(crate) struct Reads {
    store: Arc<dyn Store>,
}

impl Reads {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// One object, the newest.
    pub(crate) async fn get(&self, resource: &'static Resource, key: &str) -> Result<Option<Arc<Cached>>, Error> {
        let entry = self.store.get(key).await.map_err(failed)?;
        entry.map(|entry| cached(resource, &entry).map(Arc::new)).transpose()
    }

    /// The objects under a prefix.
    pub(crate) async fn list(
        &self,
        resource: &'static Resource,
        prefix: &str,
        filter: &Filter,
        at: At,
        limit: Option<usize>,
        after: Option<Arc<str>>,
    ) -> Result<View, Error> {
        let at = match at {
            At::Exact(revision) => Some(revision),
            At::NotOlderThan(revision) => {
                self.wait(revision).await?;
                None
            }
            At::Newest | At::Any => None,
        };
        let page = self.store.list(prefix, storage::List { at, limit: None, after }).await.map_err(failed)?;
        let mut view = View { items: Vec::new(), revision: page.revision, remaining: 0, next: None };
        for (index, entry) in page.entries.iter().enumerate() {
            let object = cached(resource, entry)?;
            if !filter.matches(&object) {
                continue;
            }
            if limit.is_some_and(|limit| view.items.len() >= limit) {
                view.next = view.items.last().map(|last| last.key.clone());
                view.remaining = page.entries.len() - index;
                break;
            }
            view.items.push(Arc::new(object));
        }
        Ok(view)
    }

    async fn wait(&self, revision: u64) -> Result<(), Error> {
        let current = self.store.revision().await.map_err(failed)?;
        if revision > current {
            return Err(Error::ResourceVersionTooLarge { requested: revision, current });
        }
        Ok(())
    }

    /// Watches a prefix; the stream ends after an error, or without one if the watcher is slow.
    pub(crate) async fn watch(
        &self,
        resource: &'static Resource,
        prefix: &str,
        filter: Filter,
        from: From,
        bookmarks: bool,
    ) -> Result<mpsc::Receiver<Result<WatchEvent, Error>>, Error> {
        let (initial, after, end) = match from {
            From::After(revision) => {
                self.wait(revision).await?;
                (Vec::new(), revision, false)
            }
            From::Initial { at, bookmark } => {
                let view = self.list(resource, prefix, &filter, at, None, None).await?;
                (view.items, view.revision, bookmark)
            }
        };
        let watch = self.store.watch(prefix, after).await.map_err(failed)?;
        let (sender, receiver) = mpsc::channel(BUFFER);
        tokio::spawn(async move {
            for object in initial {
                if sender.send(Ok(WatchEvent::Added(object))).await.is_err() {
                    return;
                }
            }
            if end && sender.send(Ok(WatchEvent::Bookmark(after, true))).await.is_err() {
                return;
            }
            feed(resource, watch, filter, sender, after, bookmarks).await;
        });
        Ok(receiver)
    }
}

async fn feed(
    resource: &'static Resource,
    mut watch: storage::Watch,
    filter: Filter,
    sender: mpsc::Sender<Result<WatchEvent, Error>>,
    mut seen: u64,
    bookmarks: bool,
) {
    let mut tick = tokio::time::interval(BOOKMARK_INTERVAL);
    tick.tick().await;
    loop {
        let event = tokio::select! {
            () = sender.closed() => return,
            _ = tick.tick() => {
                if bookmarks && sender.send(Ok(WatchEvent::Bookmark(seen, false))).await.is_err() {
                    return;
                }
                continue;
            }
            event = watch.next() => event,
        };
        let changes = match event {
            None => return,
            Some(Ok(Event::Progress(revision))) => {
                seen = revision;
                continue;
            }
            Some(Ok(Event::Changes(changes))) => changes,
            Some(Err(error)) => {
                drop(sender.send(Err(failed(error))).await);
                return;
            }
        };
        for change in changes {
            match translate(resource, &change, &filter) {
                Ok((revision, event)) => {
                    seen = revision;
                    if let Some(event) = event && sender.send(Ok(event)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    drop(sender.send(Err(error)).await);
                    return;
                }
            }
        }
    }
}

fn translate(
    resource: &'static Resource,
    change: &Change,
    filter: &Filter,
) -> Result<(u64, Option<WatchEvent>), Error> {
    match change {
        Change::Put { entry, previous } => {
            let now = cached(resource, entry)?;
            let matched = match previous {
                Some(previous) => filter.matches(&cached(resource, previous)?),
                None => false,
            };
            let event = match (matched, filter.matches(&now)) {
                (false, false) => None,
                (false, true) => Some(WatchEvent::Added(Arc::new(now))),
                (true, true) => Some(WatchEvent::Modified(Arc::new(now))),
                (true, false) => Some(WatchEvent::Deleted(Arc::new(now))),
            };
            Ok((entry.modified, event))
        }
        Change::Delete { previous, revision } => {
            let last = Entry { modified: *revision, ..Entry::clone(previous) };
            let last = cached(resource, &last)?;
            let event = filter.matches(&last).then(|| WatchEvent::Deleted(Arc::new(last)));
            Ok((*revision, event))
        }
    }
}

fn cached(resource: &'static Resource, entry: &Entry) -> Result<Cached, Error> {
    let object = object::decode(&entry.value, entry.modified)
        .map_err(|e| Error::Internal(format!("{} cannot be decoded: {e}", entry.key)))?;
    let labels = meta::labels(&object).into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let fields = selectable::of(resource).iter().map(|&f| (f, selectable::text(&object, f))).collect();
    Ok(Cached {
        key: entry.key.clone(),
        namespace: meta::namespace(&object).to_owned(),
        name: meta::name(&object).to_owned(),
        labels,
        fields,
        revision: entry.modified,
        bytes: served(&object),
    })
}

/// The object with kind, apiVersion and metadata first.
fn served(object: &Value) -> Bytes {
    object.to_string().into()
}

/// What a failure of the store is to a client.
pub(crate) fn failed(error: storage::Error) -> Error {
    match error {
        storage::Error::Compacted { .. } => Error::Expired {
            message: "The resourceVersion for the provided watch is too old.".to_owned(),
            continue_token: None,
        },
        storage::Error::Future { requested, current } => Error::ResourceVersionTooLarge { requested, current },
        storage::Error::Lagged => Error::Expired {
            message: "the watcher did not keep up".to_owned(),
            continue_token: None,
        },
        other => {
            tracing::error!(error = &other as &dyn std::error::Error, "the store failed");
            Error::Unavailable("the store is unavailable".to_owned())
        }
    }
}
