//! From the request that creates a pod to its binding, end to end: a whole control plane, many nodes that are objects
//! only but renew their leases as agents do, and several clients that create pods. `bench --placing` measures this
//! alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use decapod_tests::server::Server;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use http_body_util::BodyExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::task::AbortHandle;

use super::api::{Target, all_at_once};
use super::figures::{Mark, cpu, say};

const NODES: usize = 1_000;
const PODS: usize = 3_000;
/// Connections of HTTP/2 by which pods are created: client-go has one a process.
const CONNECTIONS: usize = 4;
/// How often an agent renews its lease.
const RENEWED: Duration = Duration::from_secs(2);
/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(300);
/// Room for a range of addresses for each node.
const NETWORK: [&str; 4] = ["--pod-cidr", "10.128.0.0/10", "--service-cidr", "10.96.0.0/16"];

/// Eight times the rate of kube-apiserver v1.36, etcd 3.5 and kube-scheduler, and a sixth of their memory in MiB.
mod marks {
    use super::Mark;

    pub(super) const RATE: Mark = Mark::AtLeast(8.0 * 308.0);
    pub(super) const CPU: Mark = Mark::AtMost(6_300.0 / 6.0);
    pub(super) const MEMORY: Mark = Mark::AtMost(1_046.0 / 6.0);
}

pub(crate) async fn measure() -> Result<()> {
    println!("\n{PODS} pods placed on {NODES} nodes by a whole control plane:");
    let mut server = Server::prepare("dcpbench", NETWORK.map(str::to_owned).to_vec())?;
    server.start().await?;
    let pid = server.pid().context("the server does not run")?;
    let target = Target::new(&server.data().join("kubeconfig"), vec![pid.into()]).await?;
    let client = target.client();
    let _renewals = nodes(&client).await?;
    placed(&client).await.context("no pod was placed")?;
    target.memory(&format!("with {NODES} nodes"), None)?;

    let bound = Arc::new(AtomicUsize::new(0));
    let watch = tokio::spawn(binding(client.clone(), Arc::clone(&bound)));
    let clients = target.shared(CONNECTIONS).await?;
    let (before, own, start) = (target.cpu()?, cpu(std::process::id().into())?, Instant::now());
    all_at_once(0..PODS, |i| create(clients[i % CONNECTIONS].clone(), i)).await?;
    let (created, waiting) = (start.elapsed(), PODS - bound.load(Ordering::Relaxed).min(PODS));
    let last = tokio::time::timeout(PATIENCE, watch).await.context("not all pods were bound")???;
    let took = last.duration_since(start);
    say("pods created by clients at once", PODS as f64 / created.as_secs_f64(), "/s", None);
    say("pods not yet bound when the last was created", waiting as f64, "", None);
    say("pods created and bound", PODS as f64 / took.as_secs_f64(), "/s", Some(marks::RATE));
    target.per("pod created and bound, leases included", before, PODS, Some(marks::CPU))?;
    let own = (cpu(std::process::id().into())? - own).as_secs_f64() * 1e6 / PODS as f64;
    say("CPU of the clients on the same machine, per pod", own, "us", None);
    target.memory("when all were bound", Some(marks::MEMORY))
}

/// Creates a pod, and reads no more of the answer than that it was made.
async fn create(client: kube::Client, i: usize) -> Result<()> {
    let body = serde_json::to_vec(&pod(&format!("placed-{i}"))?)?;
    let request =
        http::Request::post("/api/v1/namespaces/default/pods").header(CONTENT_TYPE, "application/json");
    let answer = client.send(request.body(body.into())?).await?;
    let status = answer.status();
    let answer = answer.into_body().collect().await?.to_bytes();
    ensure!(status == StatusCode::CREATED, "{status}: {}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// Makes the nodes, has them renewed for as long as what is returned lives, and waits until they can take pods.
async fn nodes(client: &kube::Client) -> Result<Renewals> {
    let api: Api<Node> = Api::all(client.clone());
    all_at_once(0..NODES, |i| {
        let api = api.clone();
        async move { api.create(&PostParams::default(), &node(i)?).await.map(drop).map_err(Into::into) }
    })
    .await?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    all_at_once(0..NODES, |i| {
        let leases = leases.clone();
        async move {
            let lease = json!({"metadata": {"name": name(i)}, "spec": {"holderIdentity": name(i),
                "leaseDurationSeconds": 4 * RENEWED.as_secs(), "renewTime": MicroTime(Timestamp::now())}});
            leases.create(&PostParams::default(), &serde_json::from_value(lease)?).await?;
            Ok(())
        }
    })
    .await?;
    let renewals = Renewals(tokio::spawn(renew(leases)).abort_handle());
    let ready = async {
        loop {
            let nodes = api.list(&ListParams::default()).await?;
            let takes_pods = |node: &Node| {
                node.spec.as_ref().is_some_and(|spec| spec.taints.is_none() && spec.pod_cidr.is_some())
            };
            if nodes.items.iter().all(takes_pods) {
                return Ok::<_, anyhow::Error>(());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ready)
        .await
        .context("some node keeps its taint, or gets no addresses")??;
    Ok(renewals)
}

/// Ends with it.
struct Renewals(AbortHandle);

impl Drop for Renewals {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Renews each lease once in a period, one after the other.
async fn renew(leases: Api<Lease>) {
    let mut turns = tokio::time::interval(RENEWED / u32::try_from(NODES).unwrap_or(u32::MAX));
    for i in (0..NODES).cycle() {
        turns.tick().await;
        let patch = Patch::Merge(json!({"spec": {"renewTime": MicroTime(Timestamp::now())}}));
        if let Err(error) = leases.patch(&name(i), &PatchParams::default(), &patch).await {
            eprintln!("the lease of {} was not renewed: {error}", name(i));
        }
    }
}

/// A pod more, before what is measured: when it is bound, the control plane is at work.
async fn placed(client: &kube::Client) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "kube-public");
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "kube-public");
    let bound = async {
        // Accounts are made by a controller, a moment after their namespace.
        while accounts.get_opt("default").await?.is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        pods.create(&PostParams::default(), &pod("first")?).await?;
        while pods.get("first").await?.spec.and_then(|spec| spec.node_name).is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, bound).await?
}

/// Counts pods as they are bound; when the last was.
async fn binding(client: kube::Client, bound: Arc<AtomicUsize>) -> Result<Instant> {
    let path = "/api/v1/namespaces/default/pods?watch=1&fieldSelector=spec.nodeName%21%3D";
    let request = http::Request::get(path).body(kube::client::Body::empty())?;
    let mut body = client.send(request).await?.into_body();
    let mut rest = Vec::new();
    loop {
        let frame = body.frame().await.context("the watch ended")??;
        rest.extend_from_slice(frame.data_ref().context("no data")?);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            // A selection gets what comes to be in it as added.
            if line.starts_with(br#"{"type":"ADDED""#) && bound.fetch_add(1, Ordering::Relaxed) + 1 == PODS {
                return Ok(Instant::now());
            }
            ensure!(!line.starts_with(br#"{"type":"ERROR""#), "{}", String::from_utf8_lossy(&line));
        }
    }
}

fn name(i: usize) -> String {
    format!("bench-{i:04}")
}

/// Of another system than what daemons of the cluster itself are for: cluster DNS would be on each.
fn node(i: usize) -> Result<Node> {
    let resources = json!({"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "200Gi"});
    let now = Time(Timestamp::now());
    let condition = |kind: &str, status: &str| {
        json!({"type": kind, "status": status, "reason": "Bench", "message": "of a node that is an object only",
            "lastHeartbeatTime": now, "lastTransitionTime": now})
    };
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name(i), "labels": {"kubernetes.io/hostname": name(i), "kubernetes.io/os": "none",
            "kubernetes.io/arch": "amd64", "topology.kubernetes.io/zone": format!("zone-{}", i % 3)}},
        "status": {"capacity": resources, "allocatable": resources, "conditions": [condition("Ready", "True"),
            condition("MemoryPressure", "False"), condition("DiskPressure", "False"), condition("PIDPressure", "False")]},
    }))?)
}

fn pod(name: &str) -> Result<Pod> {
    Ok(serde_json::from_value(json!({"metadata": {"name": name, "labels": {"app": "bench"}},
        "spec": {"containers": [{"name": "c", "image": "busybox:1", "env": [{"name": "A", "value": "b"}],
            "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}}}]}}))?)
}
