//! `/livez`, `/readyz` and `/healthz`: the only paths that need no authentication.

use std::sync::atomic::{AtomicU8, Ordering};

use http::{Response, StatusCode};

use crate::http::query::Query;
use crate::http::{Body, reply};
use crate::registry::Registry;

const STARTING: u8 = 0;
const SERVING: u8 = 1;
const STOPPING: u8 = 2;

/// How far the server is.
#[derive(Debug, Default)]
pub(crate) struct Health(AtomicU8);

/// Whether a path is a health path.
pub(super) fn is_path(path: &str) -> bool {
    let root = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    matches!(root, "livez" | "readyz" | "healthz")
}

impl Health {
    /// The objects are there that every cluster has.
    pub(super) fn bootstrapped(&self) {
        self.0.store(SERVING, Ordering::Release);
    }

    /// No more requests are wanted. Whether that is news.
    pub(super) fn stopping(&self) -> bool {
        self.0.swap(STOPPING, Ordering::AcqRel) != STOPPING
    }

    /// Whether requests are wanted; else the check that failed.
    pub(super) async fn ready(&self, registry: &Registry) -> Result<(), &'static str> {
        if let Some((name, _)) = self.checks(registry, true).await.into_iter().find(|(_, ok)| !ok) {
            return Err(name);
        }
        Ok(())
    }

    async fn checks(&self, registry: &Registry, ready: bool) -> Vec<(&'static str, bool)> {
        let state = self.0.load(Ordering::Acquire);
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
        let one = path.trim_start_matches('/').strip_prefix(root).unwrap_or_default().trim_matches('/');
        let mut checks = self.checks(registry, ready).await;
        if !one.is_empty() {
            checks.retain(|(name, _)| *name == one);
            if checks.is_empty() {
                return reply::text(StatusCode::NOT_FOUND, "404 page not found\n");
            }
        }
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
