//! Nodes are lost and come back: the cable of one is pulled, the agent of another dies.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::nodes::Node;
use decapod_tests::poll;
use serde_json::{Value, json};

/// Longer than a node may be silent and its pods are tolerated, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(300);
/// By this variable the processes of a pod are known on the machine, whatever the API says.
const MARK: &str = "DECAPOD_RECOVERY_UID";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// The nodes and what becomes of them.
struct Lost<'a> {
    cluster: &'a Cluster,
    ns: &'a str,
    /// The machine's own, which stays.
    home: &'a Node,
    /// Its cable is pulled.
    cut: &'a Node,
    /// Its agent is killed.
    dead: &'a Node,
}

fn pod(app: &str, place: &Value, tolerations: &Value) -> Value {
    let serve = "mkdir -p /www && hostname > /www/index.html && exec httpd -f -p 80 -h /www";
    json!({"metadata": {"labels": {"app": app}}, "spec": {
        "terminationGracePeriodSeconds": 1, "nodeSelector": place, "tolerations": tolerations,
        "containers": [{"name": "c", "image": "busybox:1", "command": ["sh", "-c", serve],
            "env": [{"name": MARK, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}],
            "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1}}]}})
}

/// A workload whose pods are where the label is, and leave soon.
fn workload(kind: &str, name: &str, replicas: u32) -> Value {
    let place = json!({"recovery": "here"});
    let soon = json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
        "tolerationSeconds": 1}]);
    let mut spec = json!({"replicas": replicas, "selector": {"matchLabels": {"app": name}},
        "template": pod(name, &place, &soon)});
    if kind == "StatefulSet" {
        spec["serviceName"] = "web".into();
    }
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// A pod that stays on its node whatever comes.
fn staying(name: &str, node: &Node) -> Value {
    let mut one = pod(name, &json!({"kubernetes.io/hostname": node.name}), &json!([{"operator": "Exists"}]));
    (one["apiVersion"], one["kind"], one["metadata"]["name"]) = ("v1".into(), "Pod".into(), name.into());
    one
}

fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
}

fn condition<'a>(pod: &'a Value, type_: &str) -> Option<&'a Value> {
    pod["status"]["conditions"].as_array()?.iter().find(|one| one["type"] == type_)
}

/// Whether it is ready, and nobody wants it gone.
fn serves(pod: &Value) -> bool {
    let ready = condition(pod, "Ready").is_some_and(|one| one["status"] == "True");
    ready && pod["metadata"]["deletionTimestamp"].is_null()
}

/// The pods that processes of this machine belong to.
fn running() -> Result<BTreeSet<String>> {
    let mut uids = BTreeSet::new();
    let mark = format!("{MARK}=");
    for entry in std::fs::read_dir("/proc")?.flatten() {
        // A process may end while it is looked at.
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let mut variables = environment.split(|byte| *byte == 0).filter_map(|one| str::from_utf8(one).ok());
        uids.extend(variables.find_map(|one| one.strip_prefix(&mark)).map(str::to_owned));
    }
    Ok(uids)
}

impl Lost<'_> {
    fn pods(&self, app: &str) -> Result<Vec<Value>> {
        let list = self.cluster.get(&["pods", "-n", self.ns, "-l", app])?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    fn k(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.k(&[arguments, &["-n", self.ns]].concat())
    }

    fn label(&self, node: &Node) -> Result<()> {
        self.cluster.k(&["label", "node", &node.name, "recovery=here"]).map(drop)
    }

    /// Everything runs on the node that will be cut off; returns the pods by their names.
    fn start(&self) -> Result<BTreeMap<String, Value>> {
        self.label(self.cut)?;
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
        let mut items = vec![
            service,
            workload("Deployment", "web", 2),
            workload("StatefulSet", "db", 1),
            workload("StatefulSet", "log", 1),
            staying("client", self.home),
            staying("kept-cut", self.cut),
            staying("kept-dead", self.dead),
        ];
        for item in &mut items {
            item["metadata"]["namespace"] = self.ns.into();
        }
        self.cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
        let pods = poll::until("seven pods that serve", PATIENCE, || {
            let pods = self.pods("app")?;
            let all = pods.len() == 7 && pods.iter().all(serves);
            Ok(if all { Ok(pods) } else { Err(format!("{pods:?}")) })
        })?;
        let moving = |pod: &&Value| pod["spec"]["nodeSelector"]["recovery"] == "here";
        ensure!(pods.iter().filter(moving).all(|pod| pod["spec"]["nodeName"] == self.cut.name.as_str()));
        let name = |pod: &Value| pod["metadata"]["name"].as_str().map(str::to_owned);
        pods.into_iter().map(|pod| Ok((name(&pod).context("a pod has a name")?, pod))).collect()
    }

    /// Waits until a node's taints by which it is unreachable are these effects.
    fn tainted(&self, node: &Node, effects: &[&str]) -> Result<()> {
        poll::until(&format!("{} to have the taints {effects:?}", node.name), PATIENCE, || {
            let taints = self.cluster.get(&["node", &node.name])?["spec"]["taints"].clone();
            let all = taints.as_array().cloned().unwrap_or_default();
            let found: BTreeSet<_> =
                all.iter().map(|one| (one["key"].as_str(), one["effect"].as_str())).collect();
            let key = Some("node.kubernetes.io/unreachable");
            let wanted: BTreeSet<_> = effects.iter().map(|effect| (key, Some(*effect))).collect();
            Ok(if found == wanted { Ok(()) } else { Err(taints.to_string()) })
        })
    }

    /// The Deployment's pods are marked and run again at home, where the Service leads now.
    fn replaced(&self) -> Result<()> {
        poll::until("the Deployment to run elsewhere", PATIENCE, || {
            let pods = self.pods("app=web")?;
            let (there, here): (Vec<_>, Vec<_>) =
                pods.iter().partition(|pod| pod["spec"]["nodeName"] == self.cut.name.as_str());
            let evicted = |pod: &&Value| {
                let why = condition(pod, "DisruptionTarget").map(|one| &one["reason"]);
                !pod["metadata"]["deletionTimestamp"].is_null()
                    && why.is_some_and(|why| why == "DeletionByTaintManager")
            };
            let home = |pod: &&Value| serves(pod) && pod["spec"]["nodeName"] == self.home.name.as_str();
            let done =
                there.len() == 2 && here.len() == 2 && there.iter().all(evicted) && here.iter().all(home);
            Ok(if done { Ok(()) } else { Err(format!("{pods:?}")) })
        })?;
        poll::until("the Service to leave the lost node", PATIENCE, || {
            let slices = self.cluster.get(&[
                "endpointslices",
                "-n",
                self.ns,
                "-l",
                "kubernetes.io/service-name=web",
            ])?;
            let slices = slices["items"].as_array().cloned().unwrap_or_default();
            let endpoints: Vec<_> =
                slices.iter().flat_map(|slice| slice["endpoints"].as_array()).flatten().collect();
            let ready: Vec<_> =
                endpoints.iter().filter(|one| one["conditions"]["ready"] != json!(false)).collect();
            let home = ready.len() == 2 && ready.iter().all(|one| one["nodeName"] == self.home.name.as_str());
            Ok(if home { Ok(()) } else { Err(format!("{endpoints:?}")) })
        })?;
        let address = self.k(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])?;
        let ask = format!("for i in $(seq 10); do timeout 5 wget -qO- http://{address}/ || echo none; done");
        let answers = || self.cluster.exec(self.ns, "client", &["sh", "-c", &ask]);
        // The data path follows the slices.
        let all = |text: &str| text.lines().filter(|line| line.starts_with("web-")).count() == 10;
        poll::text("the Service to answer each time", PATIENCE, answers, all).map(drop)
    }

    /// The StatefulSet has looked at its pod on the lost node, and let it be.
    fn not_replaced(&self, before: &Value) -> Result<()> {
        self.k(&["patch", "statefulset", "db", "--type=merge", "-p", r#"{"spec":{"minReadySeconds":1}}"#])?;
        poll::until("the StatefulSet to be looked at", PATIENCE, || {
            let set = self.cluster.get(&["statefulset", "db", "-n", self.ns])?;
            let pods = self.pods("app=db")?;
            let going = pods.len() == 1 && !pods[0]["metadata"]["deletionTimestamp"].is_null();
            ensure!(pods.len() == 1 && uid(&pods[0]) == uid(before), "it runs twice: {pods:?}");
            let seen = set["status"]["observedGeneration"] == set["metadata"]["generation"];
            Ok(if seen && going { Ok(()) } else { Err(format!("{} {pods:?}", set["status"])) })
        })?;
        ensure!(running()?.contains(&uid(before)), "the container on the lost node runs on");
        Ok(())
    }

    /// A pod of this name has come in the place of the one before.
    fn anew(&self, name: &str, before: &Value) -> Result<()> {
        poll::until(&format!("{name} to run elsewhere"), PATIENCE, || {
            let pods = self.pods(&format!("statefulset.kubernetes.io/pod-name={name}"))?;
            let new =
                |pod: &Value| uid(pod) != uid(before) && pod["spec"]["nodeName"] == self.home.name.as_str();
            Ok(if pods.iter().any(|pod| new(pod) && serves(pod)) { Ok(()) } else { Err(format!("{pods:?}")) })
        })
    }

    /// What the API says runs, runs, and nothing else: no pod that was given up, none twice.
    fn as_told(&self) -> Result<()> {
        poll::until("just the pods' own processes", PATIENCE, || {
            let told: BTreeSet<_> = self.pods("app")?.iter().map(uid).collect();
            let found = running()?;
            let same = told.len() == 7 && told == found;
            Ok(if same { Ok(()) } else { Err(format!("told {told:?}, found {found:?}")) })
        })
    }

    /// A pod that nobody wanted to leave is as it was.
    fn kept(&self, name: &str, before: &Value) -> Result<()> {
        let after = self.cluster.ready(self.ns, name)?;
        let container = |pod: &Value| {
            let status = &pod["status"]["containerStatuses"][0];
            (uid(pod), status["containerID"].clone(), status["restartCount"].clone())
        };
        ensure!(container(&after) == container(before), "before {before:#}, after {after:#}");
        ensure!(self.cluster.exec(self.ns, name, &["hostname"])?.trim() == name);
        Ok(())
    }

    fn lose_and_mend(&self) -> Result<()> {
        let before = self.start()?;
        self.label(self.home)?;
        self.cluster.cable(self.cut, false)?;
        self.cluster.agent_kill(&self.dead.name)?;
        for node in [self.cut, self.dead] {
            self.cluster.node_becomes(&node.name, "Unknown")?;
            self.tainted(node, &["NoSchedule", "NoExecute"])?;
        }
        self.replaced()?;
        self.not_replaced(&before["db-0"])?;
        // The one is given up by its name, the others with their node.
        self.k(&["delete", "pod", "log-0", "--force", "--grace-period=0", "--wait=false"])?;
        self.anew("log-0", &before["log-0"])?;
        self.cluster.k(&[
            "taint",
            "node",
            &self.cut.name,
            &format!("{OUT_OF_SERVICE}=nodeshutdown:NoExecute"),
        ])?;
        self.anew("db-0", &before["db-0"])?;
        let old = before.values().filter(|pod| pod["spec"]["nodeSelector"]["recovery"] == "here");
        let alive = running()?;
        ensure!(old.clone().all(|pod| alive.contains(&uid(pod))), "a node that is cut off keeps its pods");
        self.cluster.k(&["taint", "node", &self.cut.name, &format!("{OUT_OF_SERVICE}-")])?;
        self.cluster.cable(self.cut, true)?;
        self.cluster.node_becomes(&self.cut.name, "True")?;
        self.tainted(self.cut, &[])?;
        self.as_told()?;
        self.kept("kept-cut", &before["kept-cut"])?;
        self.cluster.up()?;
        self.cluster.node_becomes(&self.dead.name, "True")?;
        self.tainted(self.dead, &[])?;
        for name in ["kept-dead", "client"] {
            self.kept(name, &before[name])?;
        }
        self.as_told()
    }

    /// Three ready nodes, whatever came of the test.
    fn tidy(&self) -> Result<()> {
        self.cluster.cable(self.cut, true)?;
        // It is there only if the test ended between the two.
        self.cluster.kubectl(&["taint", "node", &self.cut.name, &format!("{OUT_OF_SERVICE}-")]).output()?;
        self.cluster.up()?;
        for node in [self.cut, self.dead] {
            self.cluster.node_becomes(&node.name, "True")?;
        }
        self.cluster.k(&["label", "nodes", "--all", "recovery-"]).map(drop)
    }
}

pub(crate) fn lost_nodes_are_replaced_and_come_back(cluster: &Cluster) -> Result<()> {
    cluster.in_namespace("recovery", |ns| {
        let nodes = cluster.nodes()?;
        let [home, dead, cut] = &nodes[..] else { anyhow::bail!("{nodes:?} are not three") };
        let lost = Lost { cluster, ns, home, cut, dead };
        let result = lost.lose_and_mend();
        let tidied = lost.tidy();
        result.and(tidied)
    })
}
