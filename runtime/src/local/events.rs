//! What happens to sandboxes and containers, for whoever wants to know.

use std::sync::Arc;

use decapod_proto::cri;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio_stream::wrappers::BroadcastStream;

use super::Inner;
use crate::protocol::now;

/// One change; what it led to is looked up when it is delivered.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) kind: cri::ContainerEventType,
    pub(super) id: String,
    pub(super) sandbox: String,
    pub(super) at: i64,
}

impl Inner {
    /// Tells subscribers.
    pub(super) fn publish(&self, kind: cri::ContainerEventType, id: &str, sandbox: &str) {
        let change = Change { kind, id: id.to_owned(), sandbox: sandbox.to_owned(), at: now() };
        // An error says that nobody listens.
        self.changes.send(change).ok();
    }

    /// All changes from now on, until the subscriber falls too far behind.
    pub(super) fn subscribe(self: &Arc<Self>) -> BoxStream<'static, cri::ContainerEventResponse> {
        let inner = Arc::clone(self);
        BroadcastStream::new(self.changes.subscribe())
            // Behind by more than the buffer: ended, since a gap would never be noticed.
            .take_while(|change| futures::future::ready(change.is_ok()))
            .filter_map(|change| futures::future::ready(change.ok()))
            .map(move |change| inner.describe(change))
            .boxed()
    }

    fn describe(&self, change: Change) -> cri::ContainerEventResponse {
        cri::ContainerEventResponse {
            container_id: change.id,
            container_event_type: change.kind.into(),
            created_at: change.at,
            pod_sandbox_status: self.sandbox_status(&change.sandbox).ok(),
            containers_statuses: self
                .containers_of(&change.sandbox)
                .iter()
                .map(|container| self.container_status(container))
                .collect(),
        }
    }
}
