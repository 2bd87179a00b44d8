//! Where an informer's objects come from: a list in pages and a watch, of whole objects or of their
//! metadata only.

use futures::StreamExt;
use futures::stream::BoxStream;
use kube::Client;
use kube::api::{ListParams, Request, WatchEvent, WatchParams};
use kube::core::ObjectList;
use serde::de::DeserializeOwned;

/// The events of one watch, until the server or the connection ends it.
pub(super) type Events<K> = BoxStream<'static, kube::Result<WatchEvent<K>>>;

/// A list and a watch of one collection.
pub(super) struct Source<K> {
    pub(super) client: Client,
    /// The collection: all of a kind, or those of one namespace.
    pub(super) request: Request,
    /// Ask for `PartialObjectMetadata` in place of the objects.
    pub(super) metadata_only: bool,
    /// Takes out of a received object what no reader of this informer needs, to save memory.
    pub(super) slim: fn(&mut K),
}

impl<K: Clone + DeserializeOwned + Send + 'static> Source<K> {
    /// One page of the collection.
    pub(super) async fn list(&self, params: &ListParams) -> kube::Result<ObjectList<K>> {
        let request =
            if self.metadata_only { self.request.list_metadata(params) } else { self.request.list(params) };
        let mut page: ObjectList<K> =
            self.client.request(request.map_err(kube::Error::BuildRequest)?).await?;
        page.items.iter_mut().for_each(self.slim);
        Ok(page)
    }

    /// What happened to the collection after `revision`.
    pub(super) async fn watch(&self, params: &WatchParams, revision: &str) -> kube::Result<Events<K>> {
        let request = if self.metadata_only {
            self.request.watch_metadata(params, revision)
        } else {
            self.request.watch(params, revision)
        };
        let events = self.client.request_events(request.map_err(kube::Error::BuildRequest)?).await?;
        Ok(events.boxed())
    }
}
