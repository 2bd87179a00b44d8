//! Pods that come, run, end and go on a real node, while its agent is killed: right state each time, nothing left. And
//! as many at once as the node takes.
//!
//! `DECAPOD_AGENT_KILLS` says how often the agent is killed: not here, 100 times by `cargo xtask kills`;
//! `DECAPOD_NODE_PODS` how many pods come and go at least: few here, 1,000 by `cargo xtask soak`.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use decapod_tests::node::Node;
use k8s_openapi::api::core::v1::{ContainerStatus, Node as NodeObject, Pod};
use kube::api::{Api, AttachParams, DeleteParams, ListParams, PostParams};
use serde_json::json;

const KILLS: usize = 0;
const PODS: usize = 60;
/// Pods that come and go at the same time.
const AT_ONCE: usize = 8;
/// With a few pods the agent has some fifty.
const MAX_DESCRIPTORS: usize = 200;
/// Pods that run all the time.
const STEADY: usize = 5;
/// How long the agent lives between two kills: from not having begun to having nothing to catch up with.
const BETWEEN: Range<Duration> = Duration::ZERO..Duration::from_millis(1500);
/// For what takes seconds, also on a slow machine that is busy.
const PATIENCE: Duration = Duration::from_secs(600);
const STEP: Duration = Duration::from_millis(100);

fn number(variable: &str, otherwise: usize) -> Result<usize> {
    let Ok(text) = std::env::var(variable) else { return Ok(otherwise) };
    text.parse().with_context(|| format!("{variable}={text:?} is no number"))
}

fn pod(name: &str, command: &str, restart: &str) -> Result<Pod> {
    Ok(serde_json::from_value(json!({"metadata": {"name": name}, "spec": {
        "restartPolicy": restart, "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "busybox:1", "command": ["sh", "-c", command]}]}}))?)
}

fn container(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()
}

/// Waits for what a pod is to become. Other phases that a pod cannot leave are an error at once.
async fn becomes(pods: &Api<Pod>, name: &str, phase: &str) -> Result<Pod> {
    let look = async {
        loop {
            let pod = pods.get(name).await?;
            let now = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
            if now == phase {
                return Ok(pod);
            }
            if ["Succeeded", "Failed"].contains(&now.as_str()) {
                bail!("{name} is {now}, not {phase}: {:?}", pod.status);
            }
            tokio::time::sleep(STEP).await;
        }
    };
    let became = tokio::time::timeout(PATIENCE, look).await;
    became.with_context(|| format!("{name} does not become {phase}"))?
}

async fn goes(pods: &Api<Pod>, name: &str) -> Result<()> {
    pods.delete(name, &DeleteParams::default()).await?;
    let look = async {
        while pods.get_opt(name).await?.is_some() {
            tokio::time::sleep(STEP).await;
        }
        Ok::<_, kube::Error>(())
    };
    let gone = tokio::time::timeout(PATIENCE, look).await;
    Ok(gone.with_context(|| format!("{name} does not go"))??)
}

/// One pod from its beginning to its end: by turns one that succeeds, one that fails, one that runs until it is deleted.
async fn one(pods: &Api<Pod>, number: usize) -> Result<()> {
    let name = format!("pod-{number}");
    let (command, restart, phase, code) = match number % 3 {
        0 => ("exit 0", "Never", "Succeeded", Some(0)),
        1 => ("exit 3", "Never", "Failed", Some(3)),
        _ => ("exec sleep 1000", "Always", "Running", None),
    };
    pods.create(&PostParams::default(), &pod(&name, command, restart)?).await?;
    let now = becomes(pods, &name, phase).await?;
    let status = container(&now).with_context(|| format!("{name} has no status of its container"))?;
    let terminated = status.state.as_ref().and_then(|state| state.terminated.as_ref());
    ensure!(terminated.map(|end| end.exit_code) == code, "{name}: {status:?}");
    ensure!(status.restart_count == 0, "{name} was restarted: {status:?}");
    goes(pods, &name).await
}

/// Pods come and go until it is enough and they are told to end; returns how many.
async fn churn(pods: &Api<Pod>, least: usize, ends: &AtomicBool) -> Result<usize> {
    let next = AtomicUsize::new(0);
    let worker = || async {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= least && ends.load(Ordering::Relaxed) {
                return Ok::<_, anyhow::Error>(());
            }
            one(pods, number).await?;
        }
    };
    futures::future::try_join_all((0..AT_ONCE).map(|_| worker())).await?;
    Ok(next.into_inner() - AT_ONCE)
}

async fn kill(node: &mut Node, kills: usize, ends: &AtomicBool) -> Result<()> {
    for _ in 0..kills {
        tokio::time::sleep(rand::random_range(BETWEEN)).await;
        node.kill()?;
        node.launch()?;
    }
    ends.store(true, Ordering::Relaxed);
    Ok(())
}

/// The containers of pods that run all the time: each by its id, never restarted, and they take commands.
async fn steady(pods: &Api<Pod>) -> Result<BTreeSet<String>> {
    let mut ids = BTreeSet::new();
    for number in 0..STEADY {
        let name = format!("steady-{number}");
        let now = becomes(pods, &name, "Running").await?;
        let status = container(&now).with_context(|| format!("{name} has no status of its container"))?;
        ensure!(status.restart_count == 0, "{name} was restarted: {status:?}");
        ids.extend(status.container_id.clone());
        let answers = async {
            // The node's server comes up with the agent.
            while pods.exec(&name, ["true"], &AttachParams::default()).await.is_err() {
                tokio::time::sleep(STEP).await;
            }
        };
        tokio::time::timeout(PATIENCE, answers).await.with_context(|| format!("{name} takes no command"))?;
    }
    Ok(ids)
}

/// Pods come and go, the agent is killed and started again, and others do not notice.
async fn killed(node: &mut Node, kills: usize, least: usize) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(node.client().await?);
    for number in 0..STEADY {
        let steady = pod(&format!("steady-{number}"), "exec sleep 100000", "Always")?;
        pods.create(&PostParams::default(), &steady).await?;
    }
    let containers = steady(&pods).await?;
    let (ends, began) = (AtomicBool::new(false), Instant::now());
    let (came, killed) = tokio::join!(churn(&pods, least, &ends), kill(node, kills, &ends));
    killed?;
    println!("{} pods came and went, with {kills} kills, in {:.1} s", came?, began.elapsed().as_secs_f64());
    ensure!(steady(&pods).await? == containers, "containers were replaced");
    let descriptors = node.descriptors()?;
    println!("the agent has {descriptors} descriptors open");
    // Those of the steady pods, of watches, and of what is being closed: not one for each pod that there was.
    ensure!(descriptors < MAX_DESCRIPTORS, "the agent has {descriptors} descriptors open");
    Ok(())
}

/// Pods that there are and that take room.
async fn present(pods: &Api<Pod>) -> Result<Vec<Pod>> {
    let over = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        phase.is_some_and(|phase| ["Succeeded", "Failed"].contains(&phase))
    };
    Ok(pods.list(&ListParams::default()).await?.items.into_iter().filter(|pod| !over(pod)).collect())
}

/// As many pods as the node takes run at once; the one too many waits until there is room.
async fn crowded(node: &Node) -> Result<()> {
    let client = node.client().await?;
    let object = Api::<NodeObject>::all(client.clone()).get(decapod_tests::node::NAME).await?;
    let room =
        object.status.and_then(|status| status.allocatable?.remove("pods")).context("no room told of")?;
    ensure!(room.0 == "110", "room for {} pods", room.0);
    let others = present(&Api::all(client.clone())).await?.len();
    let pods: Api<Pod> = Api::default_namespaced(client);
    let (names, began): (Vec<String>, _) =
        ((others..110).map(|number| format!("crowd-{number}")).collect(), Instant::now());
    let created = names.iter().map(|name| async {
        pods.create(&PostParams::default(), &pod(name, "exec sleep 100000", "Always")?).await?;
        Ok::<_, anyhow::Error>(())
    });
    futures::future::try_join_all(created).await?;
    let mut addresses = BTreeSet::new();
    for name in &names {
        let now = becomes(&pods, name, "Running").await?;
        let status = container(&now).with_context(|| format!("{name} has no status of its container"))?;
        ensure!(status.restart_count == 0, "{name} was restarted: {status:?}");
        addresses.extend(now.status.and_then(|status| status.pod_ip));
    }
    println!("{} pods beside {others} others ran after {:.1} s", names.len(), began.elapsed().as_secs_f64());
    ensure!(addresses.len() == names.len(), "{} addresses for {} pods", addresses.len(), names.len());
    let waiting = pod("one-too-many", "exec sleep 100000", "Always")?;
    pods.create(&PostParams::default(), &waiting).await?;
    let told = async {
        loop {
            let status = pods.get("one-too-many").await?.status.unwrap_or_default();
            let why = status.conditions.into_iter().flatten().find_map(|condition| condition.message);
            if why.is_some_and(|why| why.contains("Too many pods")) {
                return Ok::<_, kube::Error>(());
            }
            tokio::time::sleep(STEP).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.context("the pod too many is not told why it waits")??;
    goes(&pods, &names[0]).await?;
    becomes(&pods, "one-too-many", "Running").await.map(drop)
}

/// Deletes all pods, and waits until the machine has nothing of them.
async fn emptied(node: &Node, before: &BTreeSet<String>) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(node.client().await?);
    pods.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    let began = Instant::now();
    loop {
        let left: Vec<String> = node.holds()?.difference(before).cloned().collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "left behind: {left:#?}");
        tokio::time::sleep(STEP).await;
    }
}

async fn checked(node: &mut Node) -> Result<()> {
    let (kills, least) = (number("DECAPOD_AGENT_KILLS", KILLS)?, number("DECAPOD_NODE_PODS", PODS)?);
    let before = node.holds()?;
    killed(node, kills, least).await?;
    emptied(node, &before).await.context("after the kills")?;
    crowded(node).await?;
    emptied(node, &before).await.context("after the crowd")
}

/// In one test, since it is one node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_come_and_go_through_kills_and_in_crowds() -> Result<()> {
    let mut node = Node::start().await?;
    let outcome = checked(&mut node).await;
    if outcome.is_err() {
        println!("the agent's last words:\n{}", node.last_words());
    }
    outcome
}
