//! What a node takes for its pods: until they run, step by step; many at once; at rest, with probes; and a command run
//! in one. `bench --pods` measures this alone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use decapod_tests::node::Node;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, AttachParams, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use serde_json::{Value, json};

use super::figures::{Mark, cpu, percentiles, private, pss, say};
use super::steps::Steps;

/// Pods one after the other, many at once, and those that the node rests with.
const ONE_BY_ONE: usize = 60;
const AT_ONCE: usize = 90;
const AT_REST: usize = 30;
const COMMANDS: usize = 100;
/// For how long a node at rest is looked at, once what its start took was given back.
const SETTLED: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_secs(60);
/// How long pods may take to come or to go.
const PATIENCE: Duration = Duration::from_secs(300);

/// Milliseconds, seconds, MiB, and hundredths of a core.
mod marks {
    use super::Mark;

    pub(super) const RUNNING: Mark = Mark::AtMost(150.0);
    pub(super) const SLOWEST: Mark = Mark::AtMost(500.0);
    pub(super) const ALL: Mark = Mark::AtMost(10.0);
    pub(super) const AGENT: Mark = Mark::AtMost(30.0);
    pub(super) const SHIM: Mark = Mark::AtMost(2.0);
    pub(super) const IDLE: Mark = Mark::AtMost(0.5);
    pub(super) const COMMAND: Mark = Mark::AtMost(30.0);
}

/// When a watcher saw what of a pod that was created at zero.
#[derive(Debug, Default)]
struct Seen {
    bound: Option<Duration>,
    /// The node's agent tells of network, volumes and containers at once, where none of them takes long.
    running: Option<Duration>,
}

pub(crate) async fn measure() -> Result<()> {
    println!("\nA node and its pods:");
    let node = Node::start().await?;
    let client = node.client().await?;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let before = served(&client).await?;
    one_by_one(&pods).await?;
    Steps::look(&client).await?.say_since(&before)?;
    gone(&pods).await?;
    at_once(&pods).await?;
    gone(&pods).await?;
    for i in 0..AT_REST {
        pods.create(&PostParams::default(), &pod(&format!("rest-{i}"), &serving())?).await?;
    }
    until(&pods, "ready", |pod| is(pod, "Ready")).await?;
    commands(&pods).await?;
    at_rest(&node).await
}

/// The node's server gets its certificate a moment after the node is ready.
async fn served(client: &kube::Client) -> Result<Steps> {
    let mut last = None;
    let look = async {
        loop {
            match Steps::look(client).await {
                Ok(steps) => return steps,
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let looked = tokio::time::timeout(PATIENCE, look).await;
    looked.ok().with_context(|| format!("the node serves no metrics: {last:?}"))
}

fn pod(name: &str, container: &Value) -> Result<Pod> {
    let mut container = container.clone();
    container["name"] = "c".into();
    container["image"] = "busybox:1".into();
    Ok(serde_json::from_value(json!({"metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]}}))?)
}

fn sleeping() -> Value {
    json!({"command": ["sleep", "3600"]})
}

/// A web server with the probes that such a pod usually has.
fn serving() -> Value {
    let probe = json!({"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 10});
    json!({"command": ["sh", "-c", "mkdir -p /www; echo > /www/index.html; exec httpd -f -p 8080 -h /www"],
        "livenessProbe": probe, "readinessProbe": probe})
}

fn is(pod: &Pod, kind: &str) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == kind && c.status == "True")
}

fn runs(status: &PodStatus) -> bool {
    status.phase.as_deref() == Some("Running")
}

async fn watch(pods: &Api<Pod>, fields: &str) -> Result<BoxStream<'static, kube::Result<WatchEvent<Pod>>>> {
    let list = pods.list(&ListParams::default().limit(1)).await?;
    let version = list.metadata.resource_version.unwrap_or_default();
    Ok(pods.watch(&WatchParams::default().fields(fields), &version).await?.boxed())
}

/// From the request that creates a pod to the event that says that it runs, with a local image.
async fn one_by_one(pods: &Api<Pod>) -> Result<()> {
    let mut all = Vec::new();
    for i in 0..ONE_BY_ONE {
        let name = format!("one-{i}");
        let mut events = watch(pods, &format!("metadata.name={name}")).await?;
        let start = Instant::now();
        pods.create(&PostParams::default(), &pod(&name, &sleeping())?).await?;
        let mut steps = Seen::default();
        while steps.running.is_none() {
            let event = tokio::time::timeout(PATIENCE, events.try_next()).await??;
            if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event.context("the watch ended")? {
                steps.note(&pod, start.elapsed());
            }
        }
        all.push(steps);
    }
    let step = |what: &str, of: fn(&Seen) -> Option<Duration>, p50, p99| {
        let times: Option<Vec<_>> = all.iter().map(of).collect();
        percentiles(&format!("pod created -> {what}"), times.unwrap_or_default(), p50, p99);
    };
    step("bound to its node", |steps| steps.bound, None, None);
    step("Running", |steps| steps.running, Some(marks::RUNNING), Some(marks::SLOWEST));
    Ok(())
}

impl Seen {
    /// Events may be of several steps: what a later one shows was there before it.
    fn note(&mut self, pod: &Pod, at: Duration) {
        let status = pod.status.clone().unwrap_or_default();
        let running = runs(&status);
        let bound = running || pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        for (step, seen) in [(&mut self.bound, bound), (&mut self.running, running)] {
            if seen && step.is_none() {
                *step = Some(at);
            }
        }
    }
}

async fn at_once(pods: &Api<Pod>) -> Result<()> {
    let start = Instant::now();
    let created = (0..AT_ONCE).map(|i| async move {
        pods.create(&PostParams::default(), &pod(&format!("many-{i}"), &sleeping())?).await?;
        Ok::<_, anyhow::Error>(())
    });
    let made = futures::future::try_join_all(created);
    let run = until(pods, "running", |pod| pod.status.as_ref().is_some_and(runs));
    // Both at once: the watch begins before the pods do, so that none is missed.
    let (run, made) = tokio::join!(run, made);
    made?;
    run?;
    say(&format!("{AT_ONCE} pods created -> Running"), start.elapsed().as_secs_f64(), "s", Some(marks::ALL));
    Ok(())
}

/// Waits until there are pods and all of them are as wanted.
async fn until(pods: &Api<Pod>, what: &str, wanted: impl Fn(&Pod) -> bool) -> Result<()> {
    let look = async {
        let initial = WatchParams::default();
        let mut events = pods.watch(&initial, "0").await?.boxed();
        let (mut seen, mut good) = (BTreeSet::new(), BTreeSet::new());
        while let Some(event) = events.try_next().await? {
            let (WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = event else { continue };
            let name = pod.metadata.name.clone().unwrap_or_default();
            if wanted(&pod) {
                good.insert(name.clone())
            } else {
                good.remove(&name)
            };
            seen.insert(name);
            let all = if seen.iter().any(|name| name.starts_with("many")) { AT_ONCE } else { AT_REST };
            if good.len() == all {
                return Ok(());
            }
        }
        bail!("the watch ended")
    };
    tokio::time::timeout(PATIENCE, look).await.with_context(|| format!("not all pods are {what}"))?
}

async fn gone(pods: &Api<Pod>) -> Result<()> {
    let now = DeleteParams::default().grace_period(0);
    pods.delete_collection(&now, &ListParams::default()).await?;
    let look = async {
        while !pods.list(&ListParams::default()).await?.items.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // The node has yet to take away what it ran.
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(())
    };
    tokio::time::timeout(PATIENCE, look).await.context("not all pods go")?
}

/// From the request to the status of a command that does nothing.
async fn commands(pods: &Api<Pod>) -> Result<()> {
    let mut times = Vec::new();
    for i in 0..COMMANDS {
        let pod = format!("rest-{}", i % AT_REST);
        let start = Instant::now();
        let mut process = pods.exec(&pod, ["true"], &AttachParams::default()).await?;
        let status = process.take_status().context("a status")?.await.context("a status")?;
        times.push(start.elapsed());
        ensure!(status.status.as_deref() == Some("Success"), "{status:?}");
    }
    percentiles("exec, round trip through the API server", times, Some(marks::COMMAND), None);
    Ok(())
}

async fn at_rest(node: &Node) -> Result<()> {
    tokio::time::sleep(SETTLED).await;
    let (agent, shims) = (node.agent()?, node.shims()?);
    ensure!(shims.len() == AT_REST, "{} shims for {AT_REST} pods", shims.len());
    let mib = |kib: u64| kib as f64 / 1024.0;
    say(&format!("memory (PSS) of the agent, {AT_REST} pods"), mib(pss(agent)?), "MiB", Some(marks::AGENT));
    say("private memory of the agent", mib(private(agent)?), "MiB", None);
    let own: Vec<u64> = shims.iter().map(|pid| private(*pid)).collect::<Result<_>>()?;
    let most = own.iter().copied().max().unwrap_or_default();
    say("private memory of the largest shim", mib(most), "MiB", Some(marks::SHIM));
    let before = (cpu(agent)?, shims_cpu(&shims)?);
    tokio::time::sleep(LOOK).await;
    let share = |used: Duration| used.as_secs_f64() / LOOK.as_secs_f64() * 100.0;
    let idle = share(cpu(agent)? - before.0);
    say(&format!("idle CPU of the agent, {AT_REST} pods, probes"), idle, "%", Some(marks::IDLE));
    say("idle CPU of their shims together", share(shims_cpu(&shims)? - before.1), "%", None);
    Ok(())
}

fn shims_cpu(shims: &[i64]) -> Result<Duration> {
    shims.iter().map(|pid| cpu(*pid)).sum()
}
