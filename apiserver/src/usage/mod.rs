//! What nodes and pods use: the API `metrics.k8s.io/v1beta1`, which Kubernetes leaves to an add-on (metrics-server)
//! and `kubectl top` and autoscalers ask.
//!
//! Nothing of it is stored: the figures are made from what each kubelet says at `/metrics/resource`, asked for by
//! [`scrape`] with the API server's own certificate. **Invariants**: a figure is the use between two readings of one
//! counter, and its `window` says how far they lie apart; a node that does not answer has no figures rather than
//! old ones; a cluster in which nobody asks is looked at once a minute only.

mod objects;
mod rate;
mod sample;
mod scrape;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use decapod_api::resource::{Resource, Storage};
use decapod_api::status::Error;
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use crate::auth::UserInfo;
use crate::endpoint::finish;
use crate::http::accept::{self, Form, Offer};
use crate::http::{Body, RequestInfo, reply};
use crate::registry::options::ListOptions;
use crate::registry::reads::Object;
use crate::registry::{Call, core};
use crate::server::Core;
use objects::Found;
use rate::Kept;
pub(crate) use scrape::keep;

/// The group of the API.
pub(crate) const GROUP: &str = "metrics.k8s.io";
/// Its only version.
pub(crate) const VERSION: &str = "v1beta1";
/// What can be done with the figures.
const VERBS: [&str; 2] = ["get", "list"];
/// How long a request waits where there are no figures yet at all: a server that has just started looks twice.
const FIRST_FIGURES: Duration = Duration::from_secs(5);

/// One of the API's two kinds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// As in paths; the resource of the core group that it is about has the same name.
    pub(crate) plural: &'static str,
    pub(crate) kind: &'static str,
    /// Its OpenAPI name.
    type_name: &'static str,
    pub(crate) namespaced: bool,
}

/// Both kinds.
pub(crate) static KINDS: [Kind; 2] = [
    Kind {
        plural: "nodes",
        kind: "NodeMetrics",
        type_name: "io.k8s.metrics.pkg.apis.metrics.v1beta1.NodeMetrics",
        namespaced: false,
    },
    Kind {
        plural: "pods",
        kind: "PodMetrics",
        type_name: "io.k8s.metrics.pkg.apis.metrics.v1beta1.PodMetrics",
        namespaced: true,
    },
];

impl Kind {
    /// The row of what the figures are about.
    fn subject(&self) -> &'static Resource {
        core(self.plural)
    }

    fn row(&self) -> Resource {
        Resource {
            group: GROUP,
            version: VERSION,
            kind: self.kind,
            singular: "",
            short_names: &[],
            categories: &[],
            verbs: &VERBS,
            subresources: &[],
            storage: Storage::Virtual,
            type_name: self.type_name,
            ..*self.subject()
        }
    }

    fn qualified(&self) -> String {
        format!("{}.{GROUP}", self.plural)
    }
}

/// The kinds as rows, for the documents that describe them: what they are about, under another name, and not stored.
pub(crate) fn rows() -> impl Iterator<Item = &'static Resource> {
    static ROWS: LazyLock<Vec<Resource>> = LazyLock::new(|| KINDS.iter().map(Kind::row).collect());
    ROWS.iter()
}

/// The entries of the API in the documents of discovery.
pub(crate) fn discovered(group: &str, version: &str, aggregated: bool) -> Vec<Value> {
    if (group, version) != (GROUP, VERSION) {
        return Vec::new();
    }
    let entry = |kind: &Kind| match aggregated {
        true => json!({
            "resource": kind.plural, "singularResource": "", "verbs": VERBS,
            "responseKind": {"group": GROUP, "version": VERSION, "kind": kind.kind},
            "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        }),
        false => {
            json!({"name": kind.plural, "singularName": "", "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": VERBS})
        }
    };
    KINDS.iter().map(entry).collect()
}

/// The figures of all nodes, and whether somebody wants them.
#[derive(Debug)]
pub(crate) struct Usage {
    nodes: Mutex<HashMap<String, Kept>>,
    /// Somebody asked since the scraper looked last.
    asked: AtomicBool,
    wake: Notify,
    /// How often the scraper went round.
    rounds: watch::Sender<u64>,
}

impl Default for Usage {
    fn default() -> Self {
        let (rounds, _) = watch::channel(0);
        Self { nodes: Mutex::default(), asked: AtomicBool::new(false), wake: Notify::new(), rounds }
    }
}

impl Usage {
    fn nodes(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        // Nothing panics while the lock is held.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any node has figures.
    fn any(&self) -> bool {
        self.nodes().values().any(|kept| kept.node().is_some())
    }

    /// Notes that figures are wanted, and has them brought up to date; where there are none yet, waits for the first.
    async fn ask(&self) {
        self.asked.store(true, Ordering::Relaxed);
        if self.any() {
            return;
        }
        let mut rounds = self.rounds.subscribe();
        self.wake.notify_one();
        let figures = async {
            // One round finds the nodes that answer, a second one has something to compare with.
            while rounds.changed().await.is_ok() {
                if !self.nodes().values().any(Kept::young) {
                    return;
                }
            }
        };
        // A cluster without a node that answers has none to wait for: the answer is then empty.
        let _in_time = tokio::time::timeout(FIRST_FIGURES, figures).await;
    }
}

/// Answers a request for figures.
pub(crate) async fn answer(
    server: &Core,
    info: &RequestInfo,
    user: &UserInfo,
    headers: &HeaderMap,
) -> Result<Response<Body>, Error> {
    let a = &info.attributes;
    let kind = KINDS.iter().find(|kind| kind.plural == a.resource && a.version == VERSION);
    let kind = kind.filter(|_| a.subresource.is_empty()).ok_or(Error::UnknownPath)?;
    if !kind.namespaced && !a.namespace.is_empty() {
        return Err(Error::UnknownPath);
    }
    if !VERBS.contains(&a.verb.as_str()) {
        return Err(Error::MethodNotSupported { resource: kind.qualified(), verb: a.verb.clone() });
    }
    let offer = Offer { protobuf: false, transforms: true, stream: false };
    let accepted = accept::negotiate(headers, &info.query, offer)?;
    server.usage.ask().await;
    let found = match a.verb.as_str() {
        "get" => vec![one(server, kind, &a.namespace, &a.name).await?],
        _ => all(server, kind, info, user).await?,
    };
    let now = server.clock.now();
    let single = a.verb == "get";
    let document = match (accepted.form, single) {
        (Form::Table, _) => objects::table(kind, &found, info.query.get("includeObject"), now)?,
        (Form::Metadata, true) => objects::metadata(kind, &found[0], now),
        (Form::Metadata, false) => objects::metadata_list(kind, &found, now),
        (Form::Object, true) => objects::object(kind, &found[0], now),
        (Form::Object, false) => objects::list(kind, &found, now),
    };
    finish::answer(headers, accepted, reply::json(StatusCode::OK, &document)).await
}

/// The figures of one node or pod.
async fn one(server: &Core, kind: &'static Kind, namespace: &str, name: &str) -> Result<Found, Error> {
    let subject = server.registry.find(kind.subject(), namespace, name).await?;
    let found = subject.and_then(|subject| figures(server, kind, &subject));
    let named = if kind.namespaced { format!("{namespace}/{name}") } else { name.to_owned() };
    found.ok_or_else(|| Error::NotFound { resource: kind.qualified(), name: named })
}

/// The figures of all that a list selects; what has none is left out.
async fn all(
    server: &Core,
    kind: &'static Kind,
    info: &RequestInfo,
    user: &UserInfo,
) -> Result<Vec<Found>, Error> {
    let call = Call::new(user.clone(), kind.subject(), &info.attributes.namespace, "");
    let options = ListOptions::parse(&info.query)?;
    // Figures have no pages.
    let options = ListOptions { limit: None, continue_token: None, ..options };
    let list = server.registry.list(&call, &options).await?;
    let subjects = list.view.items.iter().map(|object| parse(object));
    let subjects = subjects.collect::<Result<Vec<Value>, _>>()?;
    Ok(subjects.iter().filter_map(|subject| figures(server, kind, subject)).collect())
}

fn parse(object: &Object) -> Result<Value, Error> {
    serde_json::from_slice(&object.bytes()).map_err(|e| Error::Internal(format!("{}: {e}", object.key())))
}

/// The figures of a node or pod, if there are any.
fn figures(server: &Core, kind: &Kind, subject: &Value) -> Option<Found> {
    let name = subject["metadata"]["name"].as_str()?;
    let nodes = server.usage.nodes();
    if !kind.namespaced {
        let figure = nodes.get(name)?.node()?;
        return Some(Found::new(subject, figure.window, figure.at, vec![(String::new(), figure)]));
    }
    let node = nodes.get(subject["spec"]["nodeName"].as_str()?)?;
    let containers = node.pod(subject["metadata"]["namespace"].as_str()?, name);
    // The pod's time and window are those of the container that was read first.
    let first = containers.iter().map(|(_, figure)| *figure).min_by_key(|figure| figure.at)?;
    Some(Found::new(subject, first.window, first.at, containers))
}
