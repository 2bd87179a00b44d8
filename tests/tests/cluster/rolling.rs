//! A rolling update under load: nobody who asks the Service notices.
//!
//! The pods of the old version end when they are told that nobody asks them any more, as a careful application does
//! by a `preStop` hook; the test tells them when it has seen that the Service no longer leads to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use serde_json::{Value, json};

use crate::application::http_get;

/// Far longer than anything takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// Clients that ask one request after the other, and how often each of them does: 200 requests per second.
const CLIENTS: usize = 8;
const PACE: Duration = Duration::from_millis(40);

/// Answers of each client in a row without one from a certain pod after which the Service does not lead there: while
/// it leads to both of two pods, all clients together would miss one by a chance of less than one in 2^160.
const CLEAN: usize = 20;

/// What one client heard: the pods that answered, in order, and what went wrong.
#[derive(Default)]
struct Heard {
    pods: Vec<String>,
    failures: Vec<String>,
}

struct Load {
    heard: Vec<Arc<Mutex<Heard>>>,
    done: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(address: &str) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let heard: Vec<Arc<Mutex<Heard>>> = (0..CLIENTS).map(|_| Arc::default()).collect();
        let clients = heard.iter().map(|heard| {
            let (done, heard, address) = (done.clone(), heard.clone(), address.to_owned());
            std::thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    let answer = http_get(&address, "/");
                    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                    match answer {
                        Ok(pod) => heard.pods.push(pod.trim().to_owned()),
                        Err(error) => heard.failures.push(format!("{error:#}")),
                    }
                    drop(heard);
                    std::thread::sleep(PACE.saturating_sub(begin.elapsed()));
                }
            })
        });
        let clients = clients.collect();
        Self { heard, done, clients }
    }

    /// How many answers each client has heard.
    fn counts(&self) -> Vec<usize> {
        self.each(|heard| heard.pods.len())
    }

    /// Whether every client has heard some answers since it had heard `since`, the last ones from others than `pod`.
    fn avoids(&self, pod: &str, since: &[usize]) -> bool {
        let clean = |heard: &Heard| heard.pods.iter().rev().take_while(|one| *one != pod).count();
        let each = self.each(|heard| (heard.pods.len(), clean(heard)));
        each.iter().zip(since).all(|((count, clean), since)| count - since >= CLEAN && *clean >= CLEAN)
    }

    fn each<T>(&self, of: impl Fn(&Heard) -> T) -> Vec<T> {
        let locked = self.heard.iter().map(|heard| heard.lock().unwrap_or_else(PoisonError::into_inner));
        locked.map(|heard| of(&heard)).collect()
    }

    /// Ends it; the number of answers, or what went wrong.
    fn end(self) -> Result<usize> {
        self.done.store(true, Ordering::Relaxed);
        let Self { heard, clients, .. } = self;
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
        }
        let locked = heard.iter().map(|heard| heard.lock().unwrap_or_else(PoisonError::into_inner));
        let all: Vec<_> = locked.map(|heard| (heard.pods.len(), heard.failures.clone())).collect();
        let failures: Vec<_> = all.iter().flat_map(|(_, failures)| failures).collect();
        ensure!(failures.is_empty(), "{} requests failed: {failures:#?}", failures.len());
        Ok(all.iter().map(|(count, _)| count).sum())
    }
}

fn web(namespace: &str) -> Value {
    let labels = json!({"app": "web"});
    let wait = "until [ -e /told ]; do sleep 0.1; done";
    let container = json!({"name": "nginx", "image": "nginx:1",
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 80}, "periodSeconds": 1},
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", wait]}}}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": namespace}, "spec": {"replicas": 2,
            "selector": {"matchLabels": labels}, "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 600,
                "containers": [container]}}}});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": namespace},
        "spec": {"selector": labels, "ports": [{"port": 80}]}});
    json!({"apiVersion": "v1", "kind": "List", "items": [deployment, service]})
}

pub(crate) fn an_update_under_load_loses_no_request(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("loaded", |ns| {
        cluster.apply(&web(ns).to_string())?;
        cluster.k(&["rollout", "status", "deployment/web", "-n", ns, "--timeout=180s"])?;
        let service = cluster.get(&["service", "web", "-n", ns])?;
        let address = format!("{}:80", service["spec"]["clusterIP"].as_str().context("no address")?);
        let reached = || -> Result<_> {
            let seen: BTreeSet<String> = (0..30).filter_map(|_| http_get(&address, "/").ok()).collect();
            Ok(if seen.len() == 2 { Ok(()) } else { Err(format!("{seen:?}")) })
        };
        poll::until("both pods to answer", PATIENCE, reached)?;
        let load = Load::start(&address);
        let updated = update(cluster, ns, &load);
        let answers = load.end();
        // Pods that nobody told would stay for their whole grace.
        if updated.is_err() || answers.is_err() {
            cluster.k(&["delete", "pods", "--all", "-n", ns, "--force", "--grace-period=0"])?;
        }
        let (rolled, answers) = (updated?, answers?);
        // Nobody asks any more: those that are left may end too.
        let left = cluster.k(&["get", "pods", "-n", ns, "-o", "jsonpath={.items[*].metadata.name}"])?;
        for pod in left.split_whitespace() {
            tell(cluster, ns, pod)?;
        }
        ensure!(rolled == 2 && answers > CLIENTS * CLEAN, "{rolled} pods, {answers} answers");
        Ok(())
    })
}

/// Tells a pod that nobody asks it any more.
fn tell(cluster: &Cluster, namespace: &str, pod: &str) -> Result<()> {
    cluster.exec(namespace, pod, &["touch", "/told"]).map(drop)
}

/// Rolls another version out; how many pods were replaced.
fn update(cluster: &Cluster, ns: &str, load: &Load) -> Result<usize> {
    cluster.k(&["set", "image", "deployment/web", "nginx=nginx:2", "-n", ns])?;
    let (mut told, mut leaving) = (BTreeSet::new(), BTreeMap::new());
    poll::until("the update", PATIENCE, || {
        let pods = cluster.get(&["pods", "-n", ns])?;
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        let going = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_string());
        let going: BTreeSet<_> =
            going.filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect();
        for pod in going.difference(&told.clone()) {
            let since = leaving.entry(pod.clone()).or_insert_with(|| load.counts());
            if load.avoids(pod, since) {
                tell(cluster, ns, pod)?;
                told.insert(pod.clone());
            }
        }
        let new = pods.iter().filter(|pod| pod["spec"]["containers"][0]["image"] == "nginx:2").count();
        let state = format!("{} pods, {new} new, {going:?} going, {told:?} told", pods.len());
        Ok(if pods.len() == 2 && new == 2 { Ok(()) } else { Err(state) })
    })?;
    cluster.k(&["rollout", "status", "deployment/web", "-n", ns, "--timeout=180s"])?;
    Ok(told.len())
}
