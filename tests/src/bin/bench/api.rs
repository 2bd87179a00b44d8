//! What an API server costs by the request and by the watch delivery: any, by its kubeconfig and processes.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use super::figures::{Mark, cpu, percentiles, pss, say};
use super::h2;

/// Objects of each measurement.
const OBJECTS: usize = 2000;
/// Clients at once where the rate counts, and what they make.
const CLIENTS: usize = 32;
const CREATED_AT_ONCE: usize = 4000;
const LISTS: usize = 200;
const CHANGES: usize = 100;
/// Watchers at once, with the marks for the CPU of a delivery in microseconds, and for the slowest of a
/// hundred in milliseconds.
const WATCHERS: [(usize, Option<Mark>, Option<Mark>); 3] = [
    (100, Some(Mark::AtMost(36.0 / 4.0)), None),
    (500, Some(Mark::AtMost(27.0 / 4.0)), None),
    (1000, None, Some(Mark::AtMost(50.0))),
];

/// A quarter of what kube-apiserver v1.36 with etcd 3.5 takes, in microseconds of CPU; a list a twentieth.
mod marks {
    use super::Mark;

    pub(super) const CREATE: Mark = Mark::AtMost(1740.0 / 4.0);
    pub(super) const GET: Mark = Mark::AtMost(570.0 / 4.0);
    pub(super) const PATCH: Mark = Mark::AtMost(2650.0 / 4.0);
    pub(super) const LIST: Mark = Mark::AtMost(81_000.0 / 20.0);
    pub(super) const DELETE: Mark = Mark::AtMost(2440.0 / 4.0);
    /// As many as it makes at least.
    pub(super) const RATE: Mark = Mark::AtLeast(957.0);
    /// MiB.
    pub(super) const IDLE: Mark = Mark::AtMost(332.0 / 4.0);
    pub(super) const AFTER: Mark = Mark::AtMost(663.0 / 4.0);
    /// Milliseconds.
    pub(super) const SELECTED: Mark = Mark::AtMost(10.0);
}

/// How many objects a selector goes over, in how many parts they are made and removed, and how many of
/// them it finds.
const SELECTED_FROM: usize = 100_000;
const PARTS: usize = 100;
const FOUND: usize = 100;
const SELECTIONS: usize = 100;

/// How watchers connect.
#[derive(Clone, Copy, Debug)]
enum Wire {
    /// HTTP/1.1: each watcher by a connection of its own, as the agents of as many nodes.
    Own,
    /// HTTP/2: [`h2::STREAMS`] watchers by one connection, as client-go does in one process.
    Shared,
}

/// An API server and the processes whose work is counted: its own, and its store's.
pub(crate) struct Target {
    client: kube::Client,
    config: kube::Config,
    pids: Vec<i64>,
}

impl std::fmt::Display for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Own => "HTTP/1.1",
            Self::Shared => "HTTP/2",
        })
    }
}

impl Target {
    pub(crate) async fn new(kubeconfig: &Path, pids: Vec<i64>) -> Result<Self> {
        let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig)?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
        Ok(Self { client: kube::Client::try_from(config.clone())?, config, pids })
    }

    /// A client that may do everything.
    pub(crate) fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// Clients with a connection of HTTP/2 each.
    pub(crate) async fn shared(&self, connections: usize) -> Result<Vec<kube::Client>> {
        let mut clients = Vec::new();
        while clients.len() < connections {
            clients.push(h2::connect(&self.config).await?);
        }
        Ok(clients)
    }

    /// CPU time that the processes have used so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        self.pids.iter().map(|pid| cpu(*pid)).sum()
    }

    pub(crate) fn memory(&self, when: &str, mark: Option<Mark>) -> Result<()> {
        let all: u64 = self.pids.iter().map(|pid| pss(*pid)).sum::<Result<u64>>()?;
        say(&format!("memory (PSS), {when}"), all as f64 / 1024.0, "MiB", mark);
        Ok(())
    }

    pub(crate) fn per(&self, what: &str, before: Duration, n: usize, mark: Option<Mark>) -> Result<()> {
        let each = (self.cpu()? - before).as_secs_f64() * 1e6 / n as f64;
        say(&format!("CPU per {what}"), each, "us", mark);
        Ok(())
    }

    /// Measures what marks are there for.
    pub(crate) async fn measure(&self) -> Result<()> {
        self.memory("idle", Some(marks::IDLE))?;
        self.account().await?;
        self.requests().await?;
        self.at_once().await?;
        // Creates, gets, patches and deletes of pods, and the creates at once.
        let calls = 4 * OBJECTS + CREATED_AT_ONCE;
        self.memory(&format!("after {calls} calls"), Some(marks::AFTER))?;
        self.deliveries().await?;
        self.memory("after the watches", None)
    }

    /// What watches take, however their clients connect.
    pub(crate) async fn deliveries(&self) -> Result<()> {
        for wire in [Wire::Own, Wire::Shared] {
            for (watchers, delivery, slowest) in WATCHERS {
                self.watches(wire, watchers, delivery, slowest).await?;
            }
        }
        Ok(())
    }

    /// Makes so many pods that nobody schedules.
    pub(crate) async fn fill(&self, objects: usize) -> Result<()> {
        self.account().await?;
        let pods: Api<Pod> = Api::default_namespaced(self.client.clone());
        all_at_once(0..objects, |i| {
            let pods = pods.clone();
            async move {
                pods.create(&PostParams::default(), &pod(&format!("filled-{i}"))?).await?;
                Ok(())
            }
        })
        .await
    }

    /// What a selector takes that finds a few of many objects.
    pub(crate) async fn selector(&self) -> Result<()> {
        let maps: Api<ConfigMap> = Api::default_namespaced(self.client.clone());
        all_at_once(0..SELECTED_FROM, |i| {
            let maps = maps.clone();
            async move {
                let labels = json!({"part": (i % PARTS).to_string(), "few": (i % (SELECTED_FROM / FOUND)).to_string()});
                let map = json!({"metadata": {"name": format!("many-{i}"), "labels": labels}});
                maps.create(&PostParams::default(), &serde_json::from_value(map)?).await?;
                Ok(())
            }
        })
        .await?;
        self.memory(&format!("with {SELECTED_FROM} objects"), None)?;
        let mut times = Vec::new();
        for i in 0..SELECTIONS {
            let path = format!("/api/v1/namespaces/default/configmaps?labelSelector=few%3D{i}");
            let request = http::Request::get(path).body(Vec::new())?;
            let start = Instant::now();
            let text = self.client.request_text(request).await?;
            times.push(start.elapsed());
            let found = text.matches("\"many-").count();
            ensure!(found == FOUND, "the selector found {found}");
        }
        percentiles(
            &format!("list by a label of {SELECTED_FROM} objects"),
            times,
            Some(marks::SELECTED),
            None,
        );
        for part in 0..PARTS {
            let selected = kube::api::ListParams::default().labels(&format!("part={part}"));
            maps.delete_collection(&DeleteParams::default(), &selected).await?;
        }
        Ok(())
    }

    /// Pods need an account, which nobody may be there to make.
    async fn account(&self) -> Result<()> {
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
            Api::default_namespaced(self.client.clone());
        if accounts.get_opt("default").await?.is_none() {
            let account = serde_json::from_value(json!({"metadata": {"name": "default"}}))?;
            accounts.create(&PostParams::default(), &account).await?;
        }
        Ok(())
    }

    async fn requests(&self) -> Result<()> {
        let pods: Api<Pod> = Api::default_namespaced(self.client.clone());
        let before = self.cpu()?;
        for i in 0..OBJECTS {
            pods.create(&PostParams::default(), &pod(&format!("listed-{i}"))?).await?;
        }
        self.per("create of a pod", before, OBJECTS, Some(marks::CREATE))?;
        let before = self.cpu()?;
        for i in 0..OBJECTS {
            pods.get(&format!("listed-{i}")).await?;
        }
        self.per("get", before, OBJECTS, Some(marks::GET))?;
        let before = self.cpu()?;
        for i in 0..OBJECTS {
            let patch = Patch::Merge(json!({"metadata": {"labels": {"patched": i.to_string()}}}));
            pods.patch(&format!("listed-{i}"), &PatchParams::default(), &patch).await?;
        }
        self.per("merge patch", before, OBJECTS, Some(marks::PATCH))?;
        for (media, mark) in
            [("application/json", Some(marks::LIST)), ("application/vnd.kubernetes.protobuf", None)]
        {
            let before = self.cpu()?;
            for _ in 0..LISTS {
                let request = http::Request::get("/api/v1/namespaces/default/pods").header("accept", media);
                let answer = self.client.send(request.body(kube::client::Body::empty())?).await?;
                let bytes = answer.into_body().collect().await?.to_bytes();
                ensure!(bytes.len() > OBJECTS * 300, "a short list: {} bytes", bytes.len());
            }
            self.per(&format!("list of {OBJECTS} pods, {media}"), before, LISTS, mark)?;
        }
        let before = self.cpu()?;
        for i in 0..OBJECTS {
            pods.delete(&format!("listed-{i}"), &DeleteParams::default().grace_period(0)).await?;
        }
        self.per("delete", before, OBJECTS, Some(marks::DELETE))
    }

    /// As many creates as many clients get done.
    async fn at_once(&self) -> Result<()> {
        let maps: Api<ConfigMap> = Api::default_namespaced(self.client.clone());
        let start = Instant::now();
        all_at_once(0..CREATED_AT_ONCE, |i| {
            let maps = maps.clone();
            async move {
                let map = serde_json::from_value(json!({"metadata": {"name": format!("at-once-{i}"),
                    "labels": {"bench": "at-once"}}, "data": {"n": i.to_string()}}))?;
                maps.create(&PostParams::default(), &map).await?;
                Ok(())
            }
        })
        .await?;
        let rate = CREATED_AT_ONCE as f64 / start.elapsed().as_secs_f64();
        say(&format!("creates by {CLIENTS} clients at once"), rate, "/s", Some(marks::RATE));
        let selected = kube::api::ListParams::default().labels("bench=at-once");
        maps.delete_collection(&DeleteParams::default(), &selected).await?;
        Ok(())
    }

    /// What a delivery costs the server, and how long after the write it arrives.
    async fn watches(
        &self,
        wire: Wire,
        watchers: usize,
        cpu: Option<Mark>,
        slowest: Option<Mark>,
    ) -> Result<()> {
        let clients = self.watching(wire, watchers).await?;
        let maps: Api<ConfigMap> = Api::default_namespaced(self.client.clone());
        let map = serde_json::from_value(json!({"metadata": {"name": "watched"}, "data": {"n": "0"}}))?;
        let made = maps.create(&PostParams::default(), &map).await?;
        let version = made.metadata.resource_version.context("no version")?;
        let arrivals = Arc::new(Mutex::new(Vec::with_capacity(watchers * CHANGES)));
        let mut running = Vec::new();
        for client in clients {
            running.push(tokio::spawn(watch(client, version.clone(), Arc::clone(&arrivals))));
        }
        // Until all of them are there: what a handshake costs is not a delivery's.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = self.cpu()?;
        let mut written = Vec::new();
        for i in 1..=CHANGES {
            written.push(Instant::now());
            let patch = json!({"data": {"n": i.to_string()}});
            maps.patch("watched", &PatchParams::default(), &Patch::Merge(patch)).await?;
            // So many deliveries are more than an instant: they are not to queue up.
            tokio::time::sleep(Duration::from_millis(watchers as u64 / 5)).await;
        }
        for watcher in running {
            watcher.await??;
        }
        self.per(
            &format!("watch delivery, {watchers} watchers, {wire}, patches included"),
            before,
            watchers * CHANGES,
            cpu,
        )?;
        let arrivals = std::mem::take(&mut *arrivals.lock().expect("no watcher panicked"));
        let took = arrivals.into_iter().map(|(change, at): (usize, Instant)| at - written[change]).collect();
        percentiles(&format!("delivery to {watchers} watchers, {wire}"), took, None, slowest);
        maps.delete("watched", &DeleteParams::default()).await?;
        Ok(())
    }

    /// A client for each watcher.
    async fn watching(&self, wire: Wire, watchers: usize) -> Result<Vec<kube::Client>> {
        let mut clients = Vec::new();
        while clients.len() < watchers {
            let (client, watches) = match wire {
                Wire::Own => (self.client.clone(), watchers),
                Wire::Shared => (h2::connect(&self.config).await?, h2::STREAMS),
            };
            clients.extend(std::iter::repeat_n(client, watches.min(watchers - clients.len())));
        }
        Ok(clients)
    }
}

/// Runs as many at a time as there are clients.
pub(crate) async fn all_at_once<F: Future<Output = Result<()>>>(
    numbers: std::ops::Range<usize>,
    one: impl Fn(usize) -> F,
) -> Result<()> {
    let done: Vec<_> = futures::stream::iter(numbers).map(one).buffer_unordered(CLIENTS).collect().await;
    done.into_iter().collect()
}

/// Notes when each change arrives, without reading more of it than its end.
async fn watch(
    client: kube::Client,
    version: String,
    arrivals: Arc<Mutex<Vec<(usize, Instant)>>>,
) -> Result<()> {
    let path = format!(
        "/api/v1/namespaces/default/configmaps?watch=1&fieldSelector=metadata.name%3Dwatched&resourceVersion={version}"
    );
    let request = http::Request::get(path).body(kube::client::Body::empty())?;
    let mut body = client.send(request).await?.into_body();
    let mut times = Vec::with_capacity(CHANGES);
    while times.len() < CHANGES {
        let frame = body.frame().await.context("the watch ended")??;
        let now = Instant::now();
        let lines = frame.data_ref().map_or(0, |data| data.iter().filter(|byte| **byte == b'\n').count());
        times.extend((0..lines).map(|_| now));
    }
    let mut arrivals = arrivals.lock().map_err(|_| anyhow::anyhow!("another watcher panicked"))?;
    arrivals.extend(times.into_iter().take(CHANGES).enumerate());
    Ok(())
}

fn pod(name: &str) -> Result<Pod> {
    // Nobody schedules it: only the API server works.
    Ok(serde_json::from_value(json!({"metadata": {"name": name, "labels": {"app": "bench"}},
        "spec": {"schedulerName": "nobody", "containers": [{"name": "c", "image": "busybox:1",
            "env": [{"name": "A", "value": "b"}]}]}}))?)
}
