//! What Kubernetes' conformance entries demand, each by a test of the entry's own name (without its tags):
//! written from the entries' descriptions, with kubectl as the client.

mod accounts;
mod addresses;
mod cli;
mod collecting;
mod daemons;
mod endpoints;
mod guestbook;
mod jobs;
mod names;
mod namespaces;
mod node;
mod paths;
mod services;
mod sets;
mod stateful;
mod storage;
mod taints;
mod workloads;

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

/// All tests, in the order in which they run.
pub(crate) fn tests() -> Vec<Test<Cluster>> {
    let of_controllers =
        [jobs::TESTS, workloads::TESTS, sets::TESTS, stateful::TESTS, daemons::TESTS, collecting::TESTS]
            .concat();
    let of_namespaces = [namespaces::TESTS, endpoints::TESTS, services::TESTS].concat();
    let of_the_network = [names::TESTS, paths::TESTS, addresses::TESTS].concat();
    let others = [cli::TESTS, guestbook::TESTS, accounts::TESTS, &node::tests(), &storage::tests()].concat();
    let last = [jobs::LATE, taints::TESTS].concat();
    [of_controllers, of_namespaces, of_the_network, others, last].concat()
}

/// Far longer than anything takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// A namespace of a test, as it is used with kubectl.
struct Scene<'a> {
    cluster: &'a Cluster,
    namespace: &'a str,
}

/// Runs a test in a namespace of its own.
fn scene(cluster: &Cluster, name: &str, test: impl FnOnce(&Scene<'_>) -> Result<()>) -> Result<()> {
    cluster.in_namespace(&format!("conf-{name}"), |namespace| test(&Scene { cluster, namespace }))
}

impl Scene<'_> {
    /// kubectl in the namespace.
    fn k(&self, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["-n", self.namespace];
        all.extend(arguments);
        self.cluster.k(&all)
    }

    /// kubectl with an object on its standard input; what it printed as JSON.
    fn send(&self, arguments: &[&str], object: &Value) -> Result<Value> {
        let mut all = vec!["-n", self.namespace, "-o", "json"];
        all.extend(arguments);
        all.extend(["-f", "-"]);
        let mut command = self.cluster.kubectl(&all);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        child.stdin.take().context("piped")?.write_all(object.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{all:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn create(&self, object: &Value) -> Result<Value> {
        self.send(&["create"], object)
    }

    /// Creates many objects at once.
    fn create_all(&self, mut objects: Vec<Value>) -> Result<()> {
        for object in &mut objects {
            object["metadata"]["namespace"] = json!(self.namespace);
        }
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.cluster.apply(&list.to_string()).map(drop)
    }

    fn get(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = vec!["-n", self.namespace];
        all.extend(arguments);
        self.cluster.get(&all)
    }

    /// The items of a list.
    fn list(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        Ok(self.get(arguments)?["items"].as_array().cloned().unwrap_or_default())
    }

    fn merge(&self, object: &str, patch: &Value) -> Result<Value> {
        let patch = patch.to_string();
        Ok(serde_json::from_str(&self.k(&["patch", object, "--type=merge", "-o", "json", "-p", &patch])?)?)
    }

    /// Waits until an object looks right.
    fn until(&self, object: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        poll::until(what, PATIENCE, || {
            let object = self.get(&[object])?;
            Ok(if holds(&object) { Ok(object) } else { Err(object["status"].to_string()) })
        })
    }

    /// Waits until a list looks right.
    fn until_list(&self, kind: &str, what: &str, holds: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
        poll::until(what, PATIENCE, || {
            let items = self.list(&[kind])?;
            let names = || items.iter().map(|one| one["metadata"]["name"].to_string()).collect::<Vec<_>>();
            Ok(if holds(&items) { Ok(items) } else { Err(format!("{:?}", names())) })
        })
    }

    /// Waits until an object is gone.
    fn until_gone(&self, object: &str) -> Result<()> {
        poll::until(&format!("the end of {object}"), PATIENCE, || {
            let left = self.k(&["get", object, "--ignore-not-found", "-o", "name"])?;
            Ok(if left.is_empty() { Ok(()) } else { Err(left) })
        })
    }

    /// Waits for a Deployment's rollout.
    fn rolled_out(&self, deployment: &str) -> Result<()> {
        self.k(&["rollout", "status", deployment, "--timeout=90s"]).map(drop)
    }
}

/// A template of pods with this label, that do nothing and end at once.
fn template(label: &str) -> Value {
    json!({"metadata": {"labels": {"app": label}}, "spec": {"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "busybox:1", "command": ["sleep", "3600"]}]}})
}

/// A pod of the [`template`].
fn pod(name: &str, label: &str) -> Value {
    let mut pod = template(label);
    (pod["apiVersion"], pod["kind"]) = (json!("v1"), json!("Pod"));
    pod["metadata"]["name"] = json!(name);
    pod
}

/// A Deployment of the [`template`], with more of its spec.
fn deployment(name: &str, replicas: u32, more: Value) -> Value {
    let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template(name)}});
    for (key, value) in more.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

/// The uids of an object's owners.
fn owners(object: &Value) -> Vec<&str> {
    let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    owners.filter_map(|owner| owner["uid"].as_str()).collect()
}
