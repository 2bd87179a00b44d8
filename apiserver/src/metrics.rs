//! What the API server counts, under Kubernetes' names, at `/metrics`.

use std::sync::Arc;
use std::time::Duration;

use http::{Response, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::{Body, RequestInfo, reply};
use crate::server::limits::{MAX_READS, MAX_WRITES};

const BUCKETS: [f64; 14] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.25, 2.0, 5.0, 15.0, 60.0];

/// The labels of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Labels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Timed {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    request_kind: &'static str,
}

impl Labels {
    /// The labels of an answered request. What a client makes up is not taken for a label: unknown
    /// resources and paths are all one.
    pub(crate) fn of(info: &RequestInfo, code: u16) -> Self {
        let a = &info.attributes;
        let known = decapod_api::resource::find(&a.group, &a.version, &a.resource).is_some();
        let text = |t: &str| if known { t.to_owned() } else { String::new() };
        let scope = match (known, a.name.is_empty(), a.namespace.is_empty()) {
            (false, ..) => "",
            (true, false, _) => "resource",
            (true, true, false) => "namespace",
            (true, true, true) => "cluster",
        };
        let verb = match a.verb.as_str() {
            verb @ ("get" | "list" | "watch" | "create" | "update" | "patch" | "delete"
            | "deletecollection") => verb.to_ascii_uppercase(),
            "post" | "put" | "head" | "options" => a.verb.to_ascii_uppercase(),
            _ => "other".to_owned(),
        };
        let known_subresource = decapod_api::resource::find(&a.group, &a.version, &a.resource)
            .is_some_and(|row| row.subresource(&a.subresource).is_some());
        Self {
            verb,
            group: text(&a.group),
            version: text(&a.version),
            resource: text(&a.resource),
            subresource: if known_subresource { a.subresource.clone() } else { String::new() },
            scope,
            code,
        }
    }

    fn timed(&self) -> Timed {
        Timed {
            verb: self.verb.clone(),
            group: self.group.clone(),
            version: self.version.clone(),
            resource: self.resource.clone(),
            subresource: self.subresource.clone(),
            scope: self.scope,
        }
    }
}

/// The API server's metrics, and the slots for requests in flight.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    durations: Family<Timed, Histogram, fn() -> Histogram>,
    inflight: Family<Kind, Gauge>,
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
}

/// A place among the requests in flight; given back when dropped.
pub(crate) struct Slot {
    _permit: OwnedSemaphorePermit,
    gauge: Gauge,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        let new: fn() -> Histogram = || Histogram::new(BUCKETS);
        let durations = Family::new_with_constructor(new);
        let inflight = Family::default();
        // The text format appends `_total` to counters.
        registry.register("apiserver_request", "Counter of apiserver requests broken out for each verb, group, version, resource, scope, component, and HTTP response code", requests.clone());
        registry.register("apiserver_request_duration_seconds", "Response latency distribution in seconds for each verb, group, version, resource, subresource and scope", durations.clone());
        registry.register("apiserver_current_inflight_requests", "Maximal number of currently used inflight request limit of this apiserver per request kind in last second", inflight.clone());
        Self {
            registry,
            requests,
            durations,
            inflight,
            reads: Arc::new(Semaphore::new(MAX_READS)),
            writes: Arc::new(Semaphore::new(MAX_WRITES)),
        }
    }
}

impl Metrics {
    /// Counts an answered request.
    pub(crate) fn request(&self, labels: Labels, took: Duration) {
        // How long a watch lasts says nothing about how fast it was served.
        if labels.verb != "WATCH" {
            self.durations.get_or_create(&labels.timed()).observe(took.as_secs_f64());
        }
        self.requests.get_or_create(&labels).inc();
    }

    /// A slot for a request of this verb; `None` if all are taken.
    pub(crate) fn slot(&self, verb: &str) -> Option<Slot> {
        let read = matches!(verb, "get" | "list" | "head");
        let (slots, request_kind) = if read { (&self.reads, "readOnly") } else { (&self.writes, "mutating") };
        let permit = slots.clone().try_acquire_owned().ok()?;
        let gauge = self.inflight.get_or_create_owned(&Kind { request_kind });
        gauge.inc();
        Some(Slot { _permit: permit, gauge })
    }

    /// The text that Prometheus scrapes.
    pub(crate) fn answer(&self) -> Response<Body> {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => reply::with_type(
                StatusCode::OK,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                text,
            ),
            Err(_) => reply::text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written"),
        }
    }
}
