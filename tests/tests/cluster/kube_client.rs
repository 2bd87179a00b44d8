//! Rust's `kube` against the cluster: a controller with finalizers and server-side apply, port forwarding, and fifty
//! streams at once.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, AttachParams, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::{finalizer, wait, watcher};
use kube::{Resource, ResourceExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::clients::pods;

const PATIENCE: Duration = Duration::from_secs(60);
const FINALIZER: &str = "tests.decapod/cleanup";
/// How many streams there are at once.
const STREAMS: usize = 50;

/// Runs a test with a client, on a runtime of its own.
pub(crate) fn with_client<F>(cluster: &Cluster, test: impl FnOnce(kube::Client) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let kubeconfig = kube::config::Kubeconfig::read_from(cluster.kubeconfig())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        test(kube::Client::try_from(config)?).await
    })
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(PATIENCE, future)
        .await
        .with_context(|| format!("{what} did not come within {PATIENCE:?}"))
}

/// Makes a map `copy-x` of each map `x`, and a map `end-of-x` when `x` goes.
async fn reconcile(
    map: Arc<ConfigMap>,
    maps: Arc<Api<ConfigMap>>,
) -> Result<Action, finalizer::Error<kube::Error>> {
    finalizer(&maps, FINALIZER, map, |event| async {
        let apply = PatchParams::apply("tests-controller").force();
        let (name, data, owner) = match event {
            finalizer::Event::Apply(map) => {
                let owner = map.controller_owner_ref(&());
                (format!("copy-{}", map.name_any()), map.data.clone(), owner)
            }
            finalizer::Event::Cleanup(map) => (format!("end-of-{}", map.name_any()), None, None),
        };
        let wanted = ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                owner_references: owner.map(|owner| vec![owner]),
                ..Default::default()
            },
            data,
            ..Default::default()
        };
        maps.patch(&name, &apply, &Patch::Apply(&wanted)).await?;
        Ok(Action::await_change())
    })
    .await
}

/// A controller as `kube`'s users write them.
pub(crate) fn a_controller_with_finalizers_and_server_side_apply(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("kube-controller", |ns| {
        with_client(cluster, |client| controller(client, ns.to_owned()))
    })
}

async fn controller(client: kube::Client, ns: String) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client, &ns);
    let parents = watcher::Config::default().labels("role=parent");
    let controller =
        Controller::new(maps.clone(), parents).owns(maps.clone(), watcher::Config::default()).run(
            reconcile,
            |_, error, _| {
                eprintln!("the controller failed: {error}");
                Action::requeue(Duration::from_secs(1))
            },
            Arc::new(maps.clone()),
        );
    let running = tokio::spawn(controller.for_each(|_| async {}));
    let data = |value: &str| BTreeMap::from([("key".to_owned(), value.to_owned())]);
    let parent = ConfigMap {
        metadata: ObjectMeta {
            name: Some("x".into()),
            labels: Some(BTreeMap::from([("role".into(), "parent".into())])),
            ..Default::default()
        },
        data: Some(data("1")),
        ..Default::default()
    };
    maps.create(&PostParams::default(), &parent).await?;
    let copied = |value: &'static str| {
        move |map: Option<&ConfigMap>| {
            map.and_then(|m| m.data.as_ref()?.get("key")).is_some_and(|v| v == value)
        }
    };
    let copy = in_time("the copy", wait::await_condition(maps.clone(), "copy-x", copied("1"))).await??;
    let managers = copy.context("a copy")?.metadata.managed_fields.unwrap_or_default();
    ensure!(managers.len() == 1 && managers[0].operation.as_deref() == Some("Apply"), "{managers:?}");
    let finalized = maps.get("x").await?.finalizers().to_vec();
    ensure!(finalized == [FINALIZER], "{finalized:?}");
    // What others change in the copy the controller takes back, and what changes in the parent it follows.
    let meddling = Patch::Merge(serde_json::json!({ "data": { "key": "other" } }));
    maps.patch("copy-x", &PatchParams::default(), &meddling).await?;
    in_time("the copy as it was", wait::await_condition(maps.clone(), "copy-x", copied("1"))).await??;
    let change = Patch::Merge(serde_json::json!({ "data": { "key": "2" } }));
    maps.patch("x", &PatchParams::default(), &change).await?;
    in_time("the new copy", wait::await_condition(maps.clone(), "copy-x", copied("2"))).await??;
    maps.delete("x", &DeleteParams::default()).await?;
    let there = |map: Option<&ConfigMap>| map.is_some();
    in_time("the cleanup", wait::await_condition(maps.clone(), "end-of-x", there)).await??;
    for gone in ["x", "copy-x"] {
        let absent = |map: Option<&ConfigMap>| map.is_none();
        in_time(gone, wait::await_condition(maps.clone(), gone, absent)).await??;
    }
    running.abort();
    Ok(())
}

/// Fifty commands at once, each with its own input; those that are given up leave no process.
pub(crate) fn fifty_streams_at_once(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("kube-streams", |ns| {
        pods(cluster, ns)?;
        with_client(cluster, |client| streams(client, ns.to_owned()))
    })
}

async fn streams(client: kube::Client, ns: String) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client, &ns);
    let much: Vec<u8> = (0..64 * 1024u32).flat_map(u32::to_le_bytes).collect();
    let echoes = (0..STREAMS).map(|_| echo(&pods, &much));
    in_time("the echoes", futures::future::try_join_all(echoes)).await??;
    let held = (0..STREAMS).map(|_| {
        let held = AttachParams::default().stdin(true).stderr(false);
        let pods = pods.clone();
        async move { pods.exec("shell", ["sleep", "5555"], &held).await }
    });
    let held = in_time("commands that stay", futures::future::try_join_all(held)).await??;
    in_time("all of them", sleepers(&pods, STREAMS)).await??;
    drop(held);
    in_time("none of them", sleepers(&pods, 0)).await??;
    forward(&pods).await
}

/// Sends all to a process and reads all back.
async fn echo(pods: &Api<Pod>, much: &[u8]) -> Result<()> {
    let parameters = AttachParams::default().stdin(true).stderr(false);
    let mut process = pods.exec("shell", ["head", "-c", &much.len().to_string()], &parameters).await?;
    let (mut input, mut output) = (process.stdin().context("input")?, process.stdout().context("output")?);
    let status = process.take_status().context("a status")?;
    let mut received = Vec::new();
    let (sent, read) = tokio::join!(input.write_all(much), output.read_to_end(&mut received));
    sent?;
    read?;
    ensure!(received == much, "{} of {} bytes came back", received.len(), much.len());
    let status = status.await.context("a status")?;
    ensure!(status.status.as_deref() == Some("Success"), "{status:?}");
    Ok(())
}

/// Waits until so many of the commands run.
async fn sleepers(pods: &Api<Pod>, wanted: usize) -> Result<()> {
    loop {
        let parameters = AttachParams::default().stderr(false);
        let mut list = pods.exec("shell", ["ps", "-o", "args"], &parameters).await?;
        let mut text = String::new();
        list.stdout().context("output")?.read_to_string(&mut text).await?;
        if text.lines().filter(|line| line.contains("sleep 5555")).count() == wanted {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A port of a pod as a stream.
async fn forward(pods: &Api<Pod>) -> Result<()> {
    let mut ports = pods.portforward("web", &[80]).await?;
    let mut stream = ports.take_stream(80).context("the port")?;
    stream.write_all(b"GET /version HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    in_time("an answer", stream.read_to_end(&mut answer)).await??;
    ensure!(answer.ends_with(b"\r\n\r\n1\n"), "{}", String::from_utf8_lossy(&answer));
    let lines =
        pods.log_stream("counter", &kube::api::LogParams { follow: true, ..Default::default() }).await?;
    let lines = futures::AsyncBufReadExt::lines(lines).take(5).try_collect::<Vec<_>>();
    let lines = in_time("lines of a log", lines).await??;
    ensure!(lines == (0..5).map(|i| format!("line {i}")).collect::<Vec<_>>(), "{lines:?}");
    Ok(())
}
