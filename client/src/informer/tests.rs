//! Informers against a small server: lists in pages, watches that end, expired revisions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::*;
use crate::clock::SystemClock;

type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// A write: its revision, the type of its event, and the object.
type Written = (u64, &'static str, Value);

/// An API server of one kind, in the essentials of list and watch.
#[derive(Clone)]
struct Server {
    state: Arc<Mutex<Vec<Written>>>,
    revision: Arc<AtomicU64>,
    /// Watches from before this revision are refused.
    compacted: Arc<AtomicU64>,
    wake: broadcast::Sender<()>,
    /// Ends all watches when it changes.
    epoch: tokio::sync::watch::Sender<u64>,
    lists: Arc<AtomicU64>,
}

impl Server {
    fn new() -> Self {
        Self {
            state: Arc::default(),
            revision: Arc::default(),
            compacted: Arc::default(),
            wake: broadcast::Sender::new(64),
            epoch: tokio::sync::watch::Sender::new(0),
            lists: Arc::default(),
        }
    }

    fn write(&self, kind: &'static str, name: &str) {
        let mut state = self.state.lock().unwrap();
        let revision = self.revision.fetch_add(1, Ordering::SeqCst) + 1;
        let meta = json!({"name": name, "namespace": "ns", "resourceVersion": revision.to_string(), "managedFields": [{}]});
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta});
        state.push((revision, kind, object));
        drop(state);
        self.wake.send(()).ok();
    }

    /// Cuts all watches; with `forget`, the past is compacted as well.
    fn cut(&self, forget: bool) {
        if forget {
            self.compacted.store(self.revision.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        self.epoch.send_modify(|epoch| *epoch += 1);
    }

    fn objects(&self) -> std::collections::BTreeMap<String, Value> {
        let mut objects = std::collections::BTreeMap::new();
        for (_, kind, object) in &*self.state.lock().unwrap() {
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            match *kind {
                "DELETED" => objects.remove(&name),
                _ => objects.insert(name, object.clone()),
            };
        }
        objects
    }

    fn list(&self, token: usize) -> Value {
        self.lists.fetch_add(1, Ordering::SeqCst);
        // Pages of two, whatever limit was asked for.
        let objects: Vec<Value> = self.objects().into_values().collect();
        let more = objects.len() > token + 2;
        let page: Vec<Value> = objects.into_iter().skip(token).take(2).collect();
        let mut meta = json!({"resourceVersion": self.revision.load(Ordering::SeqCst).to_string()});
        if more {
            meta["continue"] = json!((token + 2).to_string());
        }
        json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": meta, "items": page})
    }

    fn watch(&self, from: u64) -> Body {
        let server = self.clone();
        let (mut wake, mut epoch) = (self.wake.subscribe(), self.epoch.subscribe());
        let frames = futures::stream::unfold(from, move |from| {
            let server = server.clone();
            let next = {
                let state = server.state.lock().unwrap();
                state.iter().find(|(revision, ..)| *revision > from).cloned()
            };
            let waiting = match next {
                Some(_) => None,
                None => Some((wake.resubscribe(), epoch.clone())),
            };
            wake = wake.resubscribe();
            epoch.mark_unchanged();
            async move {
                if let Some((revision, kind, object)) = next {
                    let mut line = json!({"type": kind, "object": object}).to_string();
                    line.push('\n');
                    return Some((Ok(Frame::data(Bytes::from(line))), revision));
                }
                let (mut wake, mut epoch) = waiting.unwrap();
                tokio::select! {
                    _ = wake.recv() => Some((Ok(Frame::data(Bytes::new())), from)),
                    _ = epoch.changed() => None,
                    () = tokio::time::sleep(Duration::from_millis(20)) => Some((Ok(Frame::data(Bytes::new())), from)),
                }
            }
        });
        StreamBody::new(frames).boxed_unsync()
    }

    fn answer(&self, request: &Request<kube::client::Body>) -> Response<Body> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let parameter = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
        };
        let whole = |value: Value, code: StatusCode| {
            let body = Full::new(Bytes::from(value.to_string())).boxed_unsync();
            Response::builder().status(code).body(body).unwrap()
        };
        if parameter("watch").is_none() {
            let token = parameter("continue").map_or(0, |token| token.parse().unwrap());
            return whole(self.list(token), StatusCode::OK);
        }
        let from: u64 = parameter("resourceVersion").unwrap().parse().unwrap();
        if from < self.compacted.load(Ordering::SeqCst) {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410,
                "reason": "Expired", "message": "too old resource version"});
            return whole(status, StatusCode::GONE);
        }
        Response::new(self.watch(from))
    }

    fn informers(&self, supervisor: &Supervisor) -> Informers {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let response = server.answer(&request);
            async move { Ok::<_, std::convert::Infallible>(response) }
        });
        let client = crate::transport::in_process(service, ());
        Informers::new(client, supervisor.clone(), Arc::new(SystemClock::new()))
    }
}

async fn until(informer: &Informer<ConfigMap>, what: impl Fn() -> bool) {
    for _ in 0..1000 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let names: Vec<_> = informer.list().iter().map(|map| map.metadata.name.clone()).collect();
    panic!("not reached within 5 s; the mirror holds {names:?}");
}

fn has(informer: &Informer<ConfigMap>, name: &str) -> bool {
    informer.get(&ObjectKey::new("ns", name)).is_some()
}

#[tokio::test]
async fn an_informer_lists_all_pages_and_follows() {
    let (server, supervisor) = (Server::new(), Supervisor::new());
    for name in ["a", "b", "c", "d", "e"] {
        server.write("ADDED", name);
    }
    let informers = server.informers(&supervisor);
    let informer = informers.of::<ConfigMap>();
    informer.synced().await;
    assert_eq!(informer.len(), 5);
    assert!(informer.list().iter().all(|map| map.metadata.managed_fields.is_none()));
    server.write("ADDED", "f");
    server.write("DELETED", "a");
    tokio::time::timeout(Duration::from_secs(60), informer.reached("7")).await.unwrap();
    assert!(has(&informer, "f") && !has(&informer, "a"));
    supervisor.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_cut_watch_is_resumed_without_a_list() {
    let (server, supervisor) = (Server::new(), Supervisor::new());
    server.write("ADDED", "a");
    let informers = server.informers(&supervisor);
    let informer = informers.of::<ConfigMap>();
    informer.synced().await;
    let lists = server.lists.load(Ordering::SeqCst);
    server.cut(false);
    server.write("ADDED", "b");
    until(&informer, || has(&informer, "b")).await;
    assert_eq!(server.lists.load(Ordering::SeqCst), lists);
    supervisor.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn an_expired_revision_leads_to_a_list_and_subscribers_hear_all() {
    let (server, supervisor) = (Server::new(), Supervisor::new());
    server.write("ADDED", "a");
    server.write("ADDED", "b");
    let informers = server.informers(&supervisor);
    let informer = informers.of::<ConfigMap>();
    let mut changes = informer.subscribe();
    informer.synced().await;
    // What happens between the cut and the new list is never seen as events.
    server.write("DELETED", "a");
    server.write("ADDED", "c");
    server.cut(true);
    until(&informer, || has(&informer, "c") && !has(&informer, "a")).await;
    let mut heard = std::collections::BTreeMap::new();
    while let Some(change) = changes.try_next() {
        heard.insert(change.key.name, change.new.is_some());
    }
    assert_eq!(heard.get("b"), Some(&true));
    assert_eq!(heard.get("c"), Some(&true));
    assert_ne!(heard.get("a"), Some(&true), "what is gone is told as gone or was never told");
    supervisor.shutdown(Duration::from_secs(5)).await;
    assert!(changes.next().await.is_none(), "a subscription ends with its informer");
}

#[tokio::test]
async fn informers_are_shared_and_end_when_nobody_holds_them() {
    let (server, supervisor) = (Server::new(), Supervisor::new());
    let informers = server.informers(&supervisor);
    let one = informers.of::<ConfigMap>();
    let other = informers.of::<ConfigMap>();
    let single = informers.single::<ConfigMap>(&ObjectKey::new("ns", "a"));
    assert_eq!(supervisor.running().get("informer"), Some(&2));
    drop((one, other, single));
    let probe = informers.of::<ConfigMap>();
    until(&probe, || supervisor.running().get("informer") == Some(&1)).await;
    supervisor.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn the_frames_of_a_watch_may_be_split_anywhere() {
    let lines = b"{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"a\",\"namespace\":\"ns\",\"resourceVersion\":\"1\"}}}\n";
    let service = tower::service_fn(move |request: Request<kube::client::Body>| async move {
        let watching = request.uri().query().unwrap_or_default().contains("watch=true");
        let chunks: Vec<Bytes> = if watching {
            lines.chunks(7).map(Bytes::from_static).collect()
        } else {
            vec![Bytes::from_static(b"{\"metadata\":{\"resourceVersion\":\"0\"},\"items\":[]}")]
        };
        let frames =
            futures::stream::iter(chunks).map(|chunk| Ok::<_, std::convert::Infallible>(Frame::data(chunk)));
        let body: Body = if watching {
            StreamBody::new(frames.chain(futures::stream::pending())).boxed_unsync()
        } else {
            StreamBody::new(frames).boxed_unsync()
        };
        Ok::<_, std::convert::Infallible>(Response::new(body))
    });
    let supervisor = Supervisor::new();
    let client = crate::transport::in_process(service, ());
    let informers = Informers::new(client, supervisor.clone(), Arc::new(SystemClock::new()));
    let informer = informers.of::<ConfigMap>();
    tokio::time::timeout(Duration::from_secs(60), informer.reached("1")).await.unwrap();
    assert!(has(&informer, "a"));
    supervisor.shutdown(Duration::from_secs(5)).await;
}
