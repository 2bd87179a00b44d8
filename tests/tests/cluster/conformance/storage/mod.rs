//! `[sig-storage]`: volumes as pods see them.
//!
//! Each entry is one container of a few pods that run once, side by side: what it sees it prints, what it waits for
//! it waits for. The entries' tests then look at what their containers said.

mod claims;
mod entries;
mod many;

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{Scene, scene};

/// Many containers start and end here: far longer than that takes on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(600);

pub(super) fn tests() -> Vec<Test<Cluster>> {
    [entries::TESTS, many::TESTS, claims::TESTS].concat()
}

/// What an entry demands: a container with these volumes, and what it has to say.
#[derive(Clone, Debug, Default)]
struct Entry {
    /// The volumes' sources; the container finds them at `/v0`, `/v1`...
    sources: Vec<Value>,
    /// More of the mount of the first volume.
    mount: Value,
    /// More of the container.
    more: Value,
    script: String,
    /// The lines that it must print, and no others.
    says: Vec<String>,
    /// In the pod whose files belong to a group.
    grouped: bool,
}

fn entry(sources: impl IntoIterator<Item = Value>, script: &str, says: &[&str]) -> Entry {
    Entry {
        sources: sources.into_iter().collect(),
        mount: json!({}),
        more: json!({}),
        script: script.to_owned(),
        says: says.iter().map(|line| (*line).to_owned()).collect(),
        grouped: false,
    }
}

impl Entry {
    fn mounted(self, mount: Value) -> Self {
        Self { mount, ..self }
    }

    fn with(self, more: Value) -> Self {
        Self { more, ..self }
    }

    fn run_by(self, user: i64) -> Self {
        self.with(json!({"securityContext": {"runAsUser": user}}))
    }

    fn in_group(self) -> Self {
        Self { grouped: true, ..self }
    }

    /// Its volumes and its container.
    fn parts(&self, index: usize) -> (Vec<Value>, Value) {
        let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
        for (place, source) in self.sources.iter().enumerate() {
            let name = format!("v{index}-{place}");
            let mut mount = json!({"name": name, "mountPath": format!("/v{place}")});
            if place == 0 {
                merge(&mut mount, &self.mount);
            }
            mounts.push(mount);
            let mut volume = source.clone();
            volume["name"] = json!(name);
            volumes.push(volume);
        }
        let mut container = json!({"name": format!("c{index}"), "image": "busybox:1", "volumeMounts": mounts,
            "command": ["sh", "-c", self.script]});
        merge(&mut container, &self.more);
        (volumes, container)
    }
}

fn merge(base: &mut Value, more: &Value) {
    for (key, value) in more.as_object().into_iter().flatten() {
        base[key] = value.clone();
    }
}

/// What the containers of all entries printed and how they ended.
type Seen = BTreeMap<String, (String, Value)>;

/// Runs the pods of all entries once.
fn seen(cluster: &Cluster) -> Result<&'static Seen> {
    static SEEN: OnceLock<Result<Seen, String>> = OnceLock::new();
    let seen = SEEN.get_or_init(|| {
        let mut seen = Seen::new();
        let run = scene(cluster, "storage", |scene| {
            // Another secret of the same name elsewhere must not be in the way.
            cluster.in_namespace("conf-storage-other", |other| {
                let other = Scene { cluster, namespace: other };
                other.create(&entries::secret("secret-1", json!({"data-1": "other"})))?;
                seen = run(scene)?;
                Ok(())
            })
        });
        run.map(|()| seen).map_err(|error| format!("{error:?}"))
    });
    seen.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
}

fn run(scene: &Scene<'_>) -> Result<Seen> {
    scene.create_all(entries::objects())?;
    let all = entries::all(&allocatable(scene)?);
    let numbered: Vec<(usize, &Entry)> = all.iter().map(|(_, entry)| entry).enumerate().collect();
    let names = ["plain", "grouped"];
    for name in names {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false}});
        pod["metadata"] = json!({"name": name, "labels": {"is": "old"}, "annotations": {"is": "old"}});
        if name == "grouped" {
            pod["spec"]["securityContext"] = json!({"runAsUser": 1000, "fsGroup": 1001});
        }
        let of_pod = numbered.iter().filter(|(_, entry)| entry.grouped == (name == "grouped"));
        let (volumes, mut containers): (Vec<_>, Vec<_>) =
            of_pod.map(|(index, entry)| entry.parts(*index)).unzip();
        if name == "plain" {
            containers.push(entries::writer());
        }
        pod["spec"]["volumes"] = json!(volumes.concat());
        pod["spec"]["containers"] = json!(containers);
        scene.create(&pod)?;
    }
    let waiting = all.iter().filter(|(_, entry)| entry.says.iter().any(|line| line == "ready")).count();
    poll::until("those that wait for changes to have seen what was before", PATIENCE, || {
        let ready = logs(scene, "plain")?.values().filter(|said| said.contains("ready\n")).count();
        Ok(if ready == waiting { Ok(()) } else { Err(format!("{ready} of {waiting}: {}", states(scene)?)) })
    })?;
    entries::change(scene)?;
    let ended = poll::until("the end of all containers", PATIENCE, || {
        let states = states(scene)?;
        let all = states.as_object().into_iter().flatten();
        let open: Vec<_> = all.filter(|(_, state)| !state["terminated"].is_object()).collect();
        Ok(if open.is_empty() { Ok(()) } else { Err(format!("{open:?}")) })
    });
    // Those that did not end are told by their entries.
    if let Err(error) = ended {
        eprintln!("{error:?}");
    }
    let states = states(scene)?;
    let mut seen = Seen::new();
    for pod in names {
        for (container, said) in logs(scene, pod)? {
            seen.insert(container.clone(), (said, states[&container].clone()));
        }
    }
    for (container, state) in states.as_object().into_iter().flatten() {
        seen.entry(container.clone()).or_insert_with(|| (String::new(), state.clone()));
    }
    Ok(seen)
}

/// The states of all containers.
fn states(scene: &Scene<'_>) -> Result<Value> {
    let mut states = json!({});
    for pod in scene.list(&["pods"])? {
        for status in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
            states[status["name"].as_str().unwrap_or_default()] = status["state"].clone();
        }
    }
    Ok(states)
}

/// What each container of a pod printed; nothing as long as one of them has not started.
fn logs(scene: &Scene<'_>, pod: &str) -> Result<BTreeMap<String, String>> {
    let mut said: BTreeMap<String, String> = BTreeMap::new();
    let Ok(text) = scene.k(&["logs", pod, "--all-containers", "--prefix"]) else { return Ok(said) };
    for line in text.lines() {
        let (prefix, line) = line.split_once("] ").context("a line without its container")?;
        let container = prefix.rsplit('/').next().unwrap_or_default();
        let text = said.entry(container.to_owned()).or_default();
        text.push_str(line);
        text.push('\n');
    }
    Ok(said)
}

/// What the only node has for pods: CPUs and bytes.
fn allocatable(scene: &Scene<'_>) -> Result<(String, String)> {
    let nodes = scene.list(&["nodes"])?;
    let allocatable = &nodes.first().context("no node")?["status"]["allocatable"];
    let text = |name: &str| allocatable[name].as_str().unwrap_or_default().to_owned();
    Ok((text("cpu"), text("memory")))
}

/// Whether the container of an entry saw what it had to.
fn outcome(cluster: &Cluster, name: &str) -> Result<()> {
    let seen = seen(cluster)?;
    // Only what depends on the node differs.
    let all = entries::all(&(String::new(), String::new()));
    let index = all.iter().position(|(entry, _)| *entry == name).context("no such entry")?;
    let wanted = &all[index].1.says;
    let (said, state) = seen.get(&format!("c{index}")).context("its container never was")?;
    ensure!(state["terminated"]["exitCode"] == 0, "it did not end well: {state}; it said: {said}");
    let said: Vec<&str> = said.lines().collect();
    ensure!(said == *wanted, "it said {said:?}, not {wanted:?}");
    Ok(())
}
