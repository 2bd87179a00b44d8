//! Watch: where a stream of events starts, by what the client asks for.

use decapod_api::status::Error;
use tokio::sync::mpsc;

use super::list::filter;
use super::options::{At, ListOptions};
use super::reads::{From, WatchEvent};
use super::{Call, Registry, object};

/// A running watch; it ends without an error if the watcher is too slow or the server stops.
pub(crate) type Watching = mpsc::Receiver<Result<WatchEvent, Error>>;

impl Registry {
    /// Watches the objects of the call's kind and namespace (empty: of all).
    pub(crate) async fn watch(&self, call: &Call, options: &ListOptions) -> Result<Watching, Error> {
        let filter = filter(call, options)?;
        let prefix = object::prefix(call.resource, &call.namespace).ok_or(Error::UnknownPath)?;
        let from = match (options.send_initial_events, options.resource_version) {
            (Some(true), _) => From::Initial { at: options.at, bookmark: options.bookmarks },
            (Some(false), None | Some(0)) => {
                From::After(self.store.revision().await.map_err(super::reads::failed)?)
            }
            (None, None) => From::Initial { at: At::Newest, bookmark: false },
            (None, Some(0)) => From::Initial { at: At::Any, bookmark: false },
            (_, Some(revision)) => From::After(revision),
        };
        self.reads.watch(call.resource, &prefix, filter, from, options.bookmarks).await
    }
}
