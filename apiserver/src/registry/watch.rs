//! Watch: where a stream of events starts, by what the client asks for.

use decapod_api::status::Error;

use super::list::filter;
use super::options::ListOptions;
use super::reads::{At, Start, Watching};
use super::{Call, Registry, object};

impl Registry {
    /// Watches the objects of the call's kind and namespace (empty: of all).
    pub(crate) async fn watch(&self, call: &Call, options: &ListOptions) -> Result<Watching, Error> {
        let filter = filter(call, options)?;
        let prefix = object::prefix(call.resource, &call.namespace).ok_or(Error::UnknownPath)?;
        let start = match (options.send_initial_events, options.resource_version) {
            (Some(true), _) => Start::Initial { at: options.at, bookmark: options.bookmarks },
            (Some(false), None | Some(0)) => {
                Start::After(self.store.revision().await.map_err(super::reads::failed)?)
            }
            (None, None) => Start::Initial { at: At::Newest, bookmark: false },
            (None, Some(0)) => Start::Initial { at: At::Any, bookmark: false },
            (_, Some(revision)) => Start::After(revision),
        };
        self.reads.watch(call.resource, &prefix, &filter, start, options.bookmarks).await
    }
}
