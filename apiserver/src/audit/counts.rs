//! What is counted of the audit log, under Kubernetes' names.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Plugin {
    plugin: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Level {
    level: &'static str,
}

/// Counters of the audit log; clones count the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    events: Counter,
    levels: Family<Level, Counter>,
    errors: Family<Plugin, Counter>,
}

impl Counts {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "apiserver_audit_event",
            "Counter of audit events generated and sent to the audit backend",
            self.events.clone(),
        );
        registry.register(
            "apiserver_audit_level",
            "Counter of policy levels for audit events (1 per request)",
            self.levels.clone(),
        );
        registry.register(
            "apiserver_audit_error",
            "Counter of audit events that failed to be audited properly. Plugin identifies the plugin affected by the error",
            self.errors.clone(),
        );
    }

    /// An event was made.
    pub(super) fn event(&self) {
        self.events.inc();
    }

    /// A request's level was decided.
    pub(super) fn level(&self, level: &'static str) {
        self.levels.get_or_create(&Level { level }).inc();
    }

    /// So many events were lost by a backend; how many it has lost by now.
    pub(super) fn lost(&self, plugin: &'static str, events: usize) -> u64 {
        let counter = self.errors.get_or_create_owned(&Plugin { plugin });
        let events = u64::try_from(events).unwrap_or(u64::MAX);
        counter.inc_by(events) + events
    }
}
