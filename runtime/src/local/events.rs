//! What happens to sandboxes and containers, for whoever wants to know.

use std::sync::Arc;

use decapod_proto::cri;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio_stream::wrappers::BroadcastStream;

use super::Inner;
use crate::protocol::now;

impl Inner {
    /// Tells subscribers what has happened, with the statuses of this moment.
    pub(super) fn publish(&self, kind: cri::ContainerEventType, id: &str, sandbox: &str) {
        if self.changes.receiver_count() == 0 {
            return;
        }
        let containers = self.containers_of(sandbox);
        let event = cri::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: now(),
            pod_sandbox_status: self.sandbox_status(sandbox).ok(),
            containers_statuses: containers
                .iter()
                .map(|container| self.container_status(container))
                .collect(),
        };
        // An error says that the last subscriber has just gone.
        self.changes.send(Arc::new(event)).ok();
    }

    /// All changes from now on, until the subscriber falls too far behind.
    pub(super) fn subscribe(&self) -> BoxStream<'static, cri::ContainerEventResponse> {
        BroadcastStream::new(self.changes.subscribe())
            // Behind by more than the buffer: ended, since a gap would never be noticed.
            .take_while(|event| futures::future::ready(event.is_ok()))
            .filter_map(|event| futures::future::ready(event.ok().map(Arc::unwrap_or_clone)))
            .boxed()
    }
}
