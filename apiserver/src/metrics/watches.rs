//! What is counted of watches: the events that are sent, and those that the store sent us.
//!
//! Of all servers of the process together: the cache knows no server.

use std::sync::LazyLock;
use std::time::Duration;

use decapod_api::resource::Resource;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::{Times, times};

/// Kubernetes' buckets of the time until all initial events are sent, in seconds.
const INITIAL: [f64; 10] = [0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    group: &'static str,
    version: &'static str,
    resource: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Row {
    group: &'static str,
    resource: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Scoped {
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    scope: &'static str,
}

struct Watches {
    sent: Family<Kind, Counter>,
    sizes: Times<Kind>,
    initial: Times<Scoped>,
    received: Family<Row, Counter>,
}

static WATCHES: LazyLock<Watches> = LazyLock::new(|| Watches {
    sent: Family::default(),
    sizes: times(|| Histogram::new(exponential_buckets(1024.0, 2.0, 8))),
    initial: times(|| Histogram::new(INITIAL)),
    received: Family::default(),
});

/// What is counted of one watch; looked up when it starts, so that an event only adds.
pub(crate) struct Sent {
    events: Counter,
    sizes: Histogram,
    initial: Histogram,
}

impl Sent {
    /// Of a watch of this kind in this scope: `cluster`, `namespace` or `resource`.
    pub(crate) fn of(row: &'static Resource, scope: &'static str) -> Self {
        let (group, version, resource) = (row.group, row.version, row.plural);
        let kind = Kind { group, version, resource };
        Self {
            events: WATCHES.sent.get_or_create_owned(&kind),
            sizes: WATCHES.sizes.get_or_create_owned(&kind),
            initial: WATCHES.initial.get_or_create_owned(&Scoped { group, version, resource, scope }),
        }
    }

    /// An event of so many bytes is sent.
    pub(crate) fn event(&self, bytes: usize) {
        self.events.inc();
        self.sizes.observe(bytes as f64);
    }

    /// All that was there at the start is sent.
    pub(crate) fn initial(&self, took: Duration) {
        self.initial.observe(took.as_secs_f64());
    }
}

/// Counts the changes of a row that the store told.
pub(crate) fn received(row: &'static Resource) -> Counter {
    WATCHES.received.get_or_create_owned(&Row { group: row.group, resource: row.plural })
}

/// Adds them to those that are shown.
pub(super) fn register(registry: &mut Registry) {
    let help = "Number of events sent in watch clients";
    registry.register("apiserver_watch_events", help, WATCHES.sent.clone());
    let help = "Watch event size distribution in bytes";
    registry.register("apiserver_watch_events_sizes", help, WATCHES.sizes.clone());
    let help = "Response latency distribution in seconds for watch list requests broken by group, version, resource and scope.";
    registry.register("apiserver_watch_list_duration_seconds", help, WATCHES.initial.clone());
    let help = "Number of etcd events received split by kind.";
    registry.register("apiserver_storage_events_received", help, WATCHES.received.clone());
}
