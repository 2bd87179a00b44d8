//! What the API server counts, under Kubernetes' names, at `/metrics`.
//!
//! Labels never hold what a client makes up: unknown resources, paths and verbs are all one.

pub(crate) mod admission;
mod labels;
pub(crate) mod pods;
mod store;
pub(crate) mod watches;

use std::time::Duration;

use decapod_api::exposition;
use decapod_api::resource::{RESOURCES, Storage};
use decapod_storage::{List, Store};
use http::{Response, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::flow::Flow;
use crate::http::{Body, reply};

pub(crate) use labels::{Labels, Route};
pub(crate) use store::Measured;

/// Kubernetes' buckets for the latency of requests, in seconds.
const LATENCY: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
/// Kubernetes' buckets for what is mostly done within a millisecond: authentication, authorization.
const SHORT: [f64; 15] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384,
];

/// The classic text format, as Prometheus names it.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// A family of histograms that all have the same buckets.
pub(crate) type Times<L> = Family<L, Histogram, fn() -> Histogram>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    request_kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Result {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Username {
    username: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Resource {
    resource: String,
}

/// An API that clients should leave.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Deprecated {
    group: String,
    version: String,
    resource: String,
    subresource: &'static str,
    removed_release: &'static str,
}

/// What the other components of this process count, in the OpenMetrics text format without its end mark.
pub(crate) type Components = Option<fn() -> std::result::Result<String, std::fmt::Error>>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    major: &'static str,
    minor: &'static str,
    git_version: String,
    git_commit: String,
    git_tree_state: String,
    build_date: String,
    go_version: &'static str,
    compiler: &'static str,
    platform: String,
}

/// One of the stores, as Kubernetes numbers them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Cluster {
    storage_cluster_id: &'static str,
}

/// The only store that there is.
const STORE: Cluster = Cluster { storage_cluster_id: "etcd-0" };

/// The API server's metrics.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    durations: Times<Route>,
    sizes: Times<Route>,
    long: Family<Route, Gauge>,
    inflight: Family<Kind, Gauge>,
    authentications: Family<Result, Counter>,
    authentication_times: Times<Result>,
    users: Family<Username, Counter>,
    authorizations: Family<Result, Counter>,
    authorization_times: Times<Result>,
    objects: Family<Resource, Gauge>,
    size: Family<Cluster, Gauge>,
    terminations: Family<Labels, Counter>,
    deprecated: Family<Deprecated, Gauge>,
    components: Components,
}

/// A place among the requests in flight; given back when dropped.
pub(crate) struct Slot(Gauge);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// An empty family of histograms.
pub(crate) fn times<L: Clone + std::hash::Hash + Eq>(new: fn() -> Histogram) -> Times<L> {
    Family::new_with_constructor(new)
}

impl Metrics {
    /// Nothing counted yet; with what the store, and priority and fairness, count.
    pub(crate) fn new(store: &Measured, flow: &Flow, components: Components) -> Self {
        let mut registry = Registry::default();
        let metrics = Self {
            requests: Family::default(),
            durations: times(|| Histogram::new(LATENCY)),
            sizes: times(|| Histogram::new(exponential_buckets(1_000.0, 10.0, 7))),
            long: Family::default(),
            inflight: Family::default(),
            authentications: Family::default(),
            authentication_times: times(|| Histogram::new(SHORT)),
            users: Family::default(),
            authorizations: Family::default(),
            authorization_times: times(|| Histogram::new(SHORT)),
            objects: Family::default(),
            size: Family::default(),
            terminations: Family::default(),
            deprecated: Family::default(),
            components,
            registry: Registry::default(),
        };
        metrics.register(&mut registry);
        store.register(&mut registry);
        flow.register(&mut registry);
        admission::register(&mut registry);
        watches::register(&mut registry);
        Self { registry, ..metrics }
    }

    /// Shows what this was built from.
    pub(crate) fn build(&mut self, build: &crate::Build) {
        build_info(&mut self.registry, build);
    }

    /// Shows how the server's health was found.
    pub(crate) fn health(&mut self, health: &crate::server::Health) {
        health.register(&mut self.registry);
    }

    /// Shows what the audit log counts.
    pub(crate) fn audit(&mut self, counts: &crate::audit::Counts) {
        counts.register(&mut self.registry);
    }

    /// The text format appends `_total` to counters.
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "apiserver_request",
            "Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code",
            self.requests.clone(),
        );
        registry.register(
            "apiserver_request_duration_seconds",
            "Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component",
            self.durations.clone(),
        );
        registry.register(
            "apiserver_response_sizes",
            "Response size distribution in bytes for each group, version, verb, resource, subresource, scope and component",
            self.sizes.clone(),
        );
        registry.register(
            "apiserver_longrunning_requests",
            "Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component",
            self.long.clone(),
        );
        registry.register(
            "apiserver_current_inflight_requests",
            "Maximal number of currently used inflight request limit of this apiserver per request kind in last second",
            self.inflight.clone(),
        );
        registry.register(
            "apiserver_requested_deprecated_apis",
            "Gauge of deprecated APIs that have been requested, broken out by API group, version, resource, subresource, and removed_release",
            self.deprecated.clone(),
        );
        registry.register(
            "apiserver_request_terminations",
            "Number of requests which apiserver terminated in self-defense",
            self.terminations.clone(),
        );
        registry.register(
            "authentication_attempts",
            "Counter of authenticated attempts",
            self.authentications.clone(),
        );
        registry.register(
            "authentication_duration_seconds",
            "Authentication duration in seconds broken out by result",
            self.authentication_times.clone(),
        );
        registry.register(
            "authenticated_user_requests",
            "Counter of authenticated requests broken out by username",
            self.users.clone(),
        );
        registry.register(
            "authorization_attempts",
            "Counter of authorization attempts broken down by result",
            self.authorizations.clone(),
        );
        registry.register(
            "authorization_duration_seconds",
            "Authorization duration in seconds broken out by result",
            self.authorization_times.clone(),
        );
        registry.register(
            "apiserver_storage_objects",
            "Number of stored objects at the time of last check split by kind",
            self.objects.clone(),
        );
        registry.register(
            "apiserver_storage_size_bytes",
            "Size of the storage database file physically allocated in bytes",
            self.size.clone(),
        );
    }

    /// Counts an answered request.
    pub(crate) fn request(&self, labels: Labels, took: Duration, size: Option<u64>) {
        // How long a watch lasts says nothing about how fast it was served.
        if !matches!(labels.route.verb.as_str(), "WATCH" | "CONNECT") {
            self.durations.get_or_create(&labels.route).observe(took.as_secs_f64());
        }
        if let Some(size) = size.filter(|_| matches!(labels.route.verb.as_str(), "GET" | "LIST")) {
            let route = labels.route.without_dry_run();
            self.sizes.get_or_create(&route).observe(size as f64);
        }
        if labels.route.is_deprecated() {
            let Route { group, version, resource, .. } = labels.route.clone();
            let api = Deprecated { group, version, resource, subresource: "", removed_release: "" };
            self.deprecated.get_or_create(&api).set(1);
        }
        // Turned away, or not done in time.
        if matches!(labels.code, 429 | 504) {
            self.terminations.get_or_create(&labels).inc();
        }
        self.requests.get_or_create(&labels).inc();
    }

    /// Counts an attempt to find out who asks.
    pub(crate) fn authentication(&self, user: Option<&str>, took: Duration) {
        let result = Result { result: if user.is_some() { "success" } else { "failure" } };
        self.authentications.get_or_create(&result).inc();
        self.authentication_times.get_or_create(&result).observe(took.as_secs_f64());
        if let Some(user) = user {
            self.users.get_or_create(&Username { username: username(user) }).inc();
        }
    }

    /// Counts a decision whether somebody may.
    pub(crate) fn authorization(&self, allowed: bool, took: Duration) {
        let result = Result { result: if allowed { "allowed" } else { "no-opinion" } };
        self.authorizations.get_or_create(&result).inc();
        self.authorization_times.get_or_create(&result).observe(took.as_secs_f64());
    }

    /// A request is counted as in flight until this is dropped.
    pub(crate) fn in_flight(&self, reads: bool) -> Slot {
        let request_kind = if reads { "readOnly" } else { "mutating" };
        let gauge = self.inflight.get_or_create_owned(&Kind { request_kind });
        gauge.inc();
        Slot(gauge)
    }

    /// A watch or stream is counted until this is dropped.
    pub(crate) fn long_running(&self, route: &Route) -> Slot {
        let gauge = self.long.get_or_create_owned(&route.without_dry_run());
        gauge.inc();
        Slot(gauge)
    }

    /// The text that Prometheus scrapes. Counts what is stored, which takes a few milliseconds.
    pub(crate) async fn answer(&self, store: &dyn Store) -> Response<Body> {
        self.count_objects(store).await;
        match store.size().await {
            Ok(bytes) => drop(self.size.get_or_create(&STORE).set(i64::try_from(bytes).unwrap_or(i64::MAX))),
            // As Kubernetes tells that it could not find out: not at all.
            Err(_) => drop(self.size.remove(&STORE)),
        }
        let mut metrics = String::new();
        let components = self.components.map_or(Ok(String::new()), |components| components());
        let written = components.and_then(|components| {
            metrics.push_str(&components);
            encode(&mut metrics, &self.registry)
        });
        match written {
            Ok(()) => reply::with_type(StatusCode::OK, TEXT, exposition::classic(&metrics)),
            Err(_) => reply::text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written"),
        }
    }

    async fn count_objects(&self, store: &dyn Store) {
        for row in RESOURCES {
            let (Storage::Stored(_), Some(prefix)) = (&row.storage, row.key_prefix()) else { continue };
            let list = List { limit: Some(0), ..List::default() };
            // As Kubernetes tells that it could not count.
            let count = store.list(&prefix, list).await.map_or(-1, |page| page.remaining as i64);
            self.objects.get_or_create(&Resource { resource: row.qualified() }).set(count);
        }
    }
}

/// The names of the cluster's own components; of others only that there was one, as Kubernetes does.
fn username(user: &str) -> String {
    match user {
        "system:anonymous" => "anonymous".to_owned(),
        user if user.contains('@') => "email_id".to_owned(),
        "admin" | "client" | "kube_proxy" | "kubelet" | "system:serviceaccount:kube-system:default" => {
            user.to_owned()
        }
        _ => "other".to_owned(),
    }
}

fn build_info(registry: &mut Registry, build: &crate::Build) {
    let info: Family<Build, Gauge> = Family::default();
    let build = Build {
        major: "1",
        minor: "36",
        git_version: crate::version::git_version().to_string(),
        git_commit: build.git_commit.clone(),
        git_tree_state: build.git_tree_state.clone(),
        build_date: build.date.clone(),
        go_version: crate::version::LANGUAGE,
        compiler: crate::version::COMPILER,
        platform: crate::version::platform(),
    };
    info.get_or_create(&build).set(1);
    let help = "A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.";
    registry.register("kubernetes_build_info", help, info);
}
