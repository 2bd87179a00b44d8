//! `/livez`, `/readyz` and `/healthz`: the only paths that need no authentication.

use std::sync::atomic::{AtomicU8, Ordering};

use http::{Response, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::http::query::Query;
use crate::http::{Body, reply};
use crate::registry::Registry;

const STARTING: u8 = 0;
const SERVING: u8 = 1;
const STOPPING: u8 = 2;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Check {
    name: &'static str,
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    name: &'static str,
    r#type: &'static str,
    status: &'static str,
}

/// How far the server is, and what was told of it.
#[derive(Debug, Default)]
pub(crate) struct Health {
    state: AtomicU8,
    now: Family<Check, Gauge>,
    told: Family<Outcome, Counter>,
}

/// Whether a path is a health path.
pub(super) fn is_path(path: &str) -> bool {
    let root = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    matches!(root, "livez" | "readyz" | "healthz")
}

impl Health {
    /// Shows what was told.
    pub(crate) fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        let help = "This metric records the result of a single healthcheck.";
        registry.register("kubernetes_healthcheck", help, self.now.clone());
        let help = "This metric records the results of all healthcheck.";
        registry.register("kubernetes_healthchecks", help, self.told.clone());
    }

    /// Counts what was found of one check for a path of this kind.
    fn count(&self, r#type: &'static str, (name, ok): (&'static str, bool)) {
        self.now.get_or_create(&Check { name, r#type }).set(i64::from(ok));
        let status = if ok { "success" } else { "error" };
        self.told.get_or_create(&Outcome { name, r#type, status }).inc();
    }

    /// The objects are there that every cluster has.
    pub(super) fn bootstrapped(&self) {
        self.state.store(SERVING, Ordering::Release);
    }

    /// No more requests are wanted. Whether that is news.
    pub(super) fn stopping(&self) -> bool {
        self.state.swap(STOPPING, Ordering::AcqRel) != STOPPING
    }

    /// Whether requests are wanted; else the check that failed.
    pub(super) async fn ready(&self, registry: &Registry) -> Result<(), &'static str> {
        if let Some((name, _)) = self.checks(registry, true).await.into_iter().find(|(_, ok)| !ok) {
            return Err(name);
        }
        Ok(())
    }

    async fn checks(&self, registry: &Registry, ready: bool) -> Vec<(&'static str, bool)> {
        let state = self.state.load(Ordering::Acquire);
        let mut checks =
            vec![("ping", true), ("log", true), ("etcd", registry.store.revision().await.is_ok())];
        if ready {
            checks.push(("poststarthook/bootstrap-objects", state != STARTING));
            checks.push(("shutdown", state != STOPPING));
        }
        checks
    }

    pub(super) async fn answer(&self, registry: &Registry, path: &str, query: &Query) -> Response<Body> {
        let ready = path.starts_with("/readyz");
        let root = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let kind = ["livez", "readyz"].into_iter().find(|kind| *kind == root).unwrap_or("healthz");
        let one = path.trim_start_matches('/').strip_prefix(root).unwrap_or_default().trim_matches('/');
        let mut checks = self.checks(registry, ready).await;
        if !one.is_empty() {
            checks.retain(|(name, _)| *name == one);
            if checks.is_empty() {
                return reply::text(StatusCode::NOT_FOUND, "404 page not found\n");
            }
        }
        checks.iter().for_each(|check| self.count(kind, *check));
        let good = checks.iter().all(|(_, ok)| *ok);
        if good && !query.flag("verbose") {
            return reply::text(StatusCode::OK, "ok");
        }
        let mut text = String::new();
        for (name, ok) in checks {
            let line =
                if ok { format!("[+]{name} ok\n") } else { format!("[-]{name} failed: reason withheld\n") };
            text.push_str(&line);
        }
        text.push_str(&format!("{root} check {}\n", if good { "passed" } else { "failed" }));
        reply::text(if good { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR }, text)
    }
}
