//! Two servers on an etcd of three members, and a node on a machine of its own: each of them is lost in turn, and pods
//! notice nothing.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::etcd::Etcd;
use decapod_tests::images;
use decapod_tests::machine::{Machine, Spec};
use decapod_tests::poll;
use decapod_tests::server::{CALM, Server};
use decapod_tests::tools::{program, run};
use serde_json::{Value, json};

/// The addresses are in a range that no other test uses.
const MACHINE: Spec = Spec { name: "dcpfail", node: NODE, here: HERE, there: "10.119.254.2" };
const HERE: &str = "10.119.254.1";
const NODE: &str = "outlives-servers";
/// Far longer than Leases hold; a loaded machine takes its time.
const PATIENCE: Duration = Duration::from_secs(300);
/// What all servers and nodes agree on.
const RANGES: [&str; 2] = ["--pod-cidr=10.121.0.0/16", "--service-cidr=10.122.0.0/16"];

/// A program by one of the servers.
fn by(server: &Server, name: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program(name)?);
    run(command.args(arguments).env("KUBECONFIG", server.data().join("kubeconfig")))
}

/// kubectl by one of the servers.
fn k(server: &Server, arguments: &[&str]) -> Result<String> {
    by(server, "kubectl", arguments)
}

fn get(server: &Server, arguments: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&k(server, &[&["get", "-o", "json"], arguments].concat())?)?)
}

fn apply(server: &Server, folder: &Path, object: &Value) -> Result<()> {
    let file = folder.join("servers.json");
    std::fs::write(&file, object.to_string())?;
    k(server, &["apply", "-f", &file.display().to_string()]).map(drop)
}

/// The cluster, as the test goes through it.
struct World<'a> {
    etcd: Etcd,
    first: Server,
    second: Server,
    machine: Machine,
    folder: &'a Path,
}

impl<'a> World<'a> {
    /// The first server, and the second one, which joins by a token and gets nothing by hand.
    async fn start(folder: &'a Path) -> Result<Self> {
        let etcd = Etcd::start(3, None)?;
        let mut flags = vec![format!("--datastore=etcd={}", etcd.endpoints())];
        flags.extend(RANGES.map(str::to_owned));
        flags.extend(CALM.map(str::to_owned));
        flags.push(format!("--node-ip={HERE}"));
        let mut first = Server::prepare("dcpone", flags.clone())?;
        let machine = Machine::new(MACHINE, folder)?;
        first.start().await?;
        // Where the cluster is is said a moment after the server is ready.
        let invited = poll::until("the cluster to say where it is", PATIENCE, || {
            let words = ["token", "create", "--role", "server", "--print-join-command"];
            Ok(by(&first, "decapod", &words).map_err(|error| format!("{error:#}")))
        })?;
        let words: Vec<&str> = invited.split_whitespace().collect();
        ensure!(words[..3] == ["decapod", "server", "--server"], "{invited}");
        let mut second = Server::prepare("dcptwo", Vec::new())?;
        let mut wrong = flags.clone();
        wrong.extend(words[2..8].iter().map(|word| (*word).to_owned()));
        flags.clone_from(&wrong);
        wrong[2] = "--service-cidr=10.123.0.0/16".to_owned();
        second.set_flags(wrong);
        let refused = second.start().await.err().context("it was let in with another range")?;
        let why = "--service-cidr 10.123.0.0/16: the cluster has 10.122.0.0/16";
        ensure!(format!("{refused:#}").contains(why), "{refused:#}");
        second.set_flags(flags);
        second.start().await?;
        Ok(Self { etcd, first, second, machine, folder })
    }

    /// The node joins by the first server alone.
    fn node(&mut self) -> Result<()> {
        let invited = by(&self.first, "decapod", &["token", "create", "--print-join-command"])?;
        let mut words: Vec<&str> = invited.split_whitespace().collect();
        // The cluster names the server that started last.
        let first = format!("https://{HERE}:{}", self.first.port());
        words[3] = &first;
        self.machine.start(&words[1..])?;
        poll::until("the node to be ready", PATIENCE, || {
            let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
            Ok(match k(&self.first, &["get", "node", NODE, "-o", path]) {
                Ok(status) if status == "True" => Ok(()),
                other => Err(format!("{other:?}; {}", self.machine.log()?)),
            })
        })?;
        self.machine.import(&images::BUSYBOX)?;
        let both = [self.first.port(), self.second.port()];
        poll::until("the agent to know both servers", PATIENCE, || {
            // It is written once the agent has heard of them.
            let told = std::fs::read_to_string(self.machine.data().join("servers")).unwrap_or_default();
            let all = both.iter().all(|port| told.contains(&format!("{HERE}:{port}")));
            Ok(if all { Ok(()) } else { Err(told) })
        })
    }

    /// A web server with a Service, and a client.
    fn serve(&self) -> Result<()> {
        let shell = |name: &str, command: &str| {
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
                "spec": {"terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "c", "image": "busybox:1", "command": ["sh", "-c", command]}]}})
        };
        let serve = "mkdir -p /www && hostname > /www/index.html && exec httpd -f -p 80 -h /www";
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
        let items = [service, shell("web", serve), shell("client", "exec sleep 3600")];
        let items = json!({"apiVersion": "v1", "kind": "List", "items": items});
        // The namespace's service account is made a moment after the start.
        poll::until("pods to be let in", PATIENCE, || {
            Ok(apply(&self.first, self.folder, &items).map_err(|error| format!("{error:#}")))
        })?;
        k(&self.first, &["wait", "--for=condition=Ready", "pod/web", "pod/client", "--timeout=300s"])?;
        Ok(())
    }

    /// What must not change, whoever dies: the containers of the pods.
    fn containers(&self, to: &Server) -> Result<Vec<Value>> {
        let pods = get(to, &["pods", "web", "client"])?;
        let pods = pods["items"].as_array().context("a list of pods")?;
        let of = |pod: &Value| {
            let container = &pod["status"]["containerStatuses"][0];
            json!([pod["metadata"]["uid"], container["containerID"], container["restartCount"]])
        };
        Ok(pods.iter().map(of).collect())
    }

    /// When the node last showed that it lives, as a server says.
    fn renewed(&self, to: &Server) -> Result<String> {
        k(to, &["get", "lease", NODE, "-n", "kube-node-lease", "-o", "jsonpath={.spec.renewTime}"])
    }

    /// The node works by this server alone: it shows that it lives, starts a pod, and its pods reach Services and the API.
    fn goes_on(&self, to: &Server, turn: &str, before: &[Value]) -> Result<()> {
        let since = self.renewed(to)?;
        poll::until(&format!("{turn}: the node to renew its Lease"), PATIENCE, || {
            let now = self.renewed(to)?;
            Ok(if now == since { Err(format!("{now}; {}", self.machine.log()?)) } else { Ok(()) })
        })?;
        let name = format!("pod-{turn}");
        let image = ["--image=busybox:1", "--command", "--", "sleep", "3600"];
        k(to, &[&["run", &name], &image[..]].concat())?;
        k(to, &["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=300s"])?;
        let web = k(to, &["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])?;
        let reach = format!(
            "timeout 5 wget -qO- http://{web}/; for i in $(seq 8); do timeout 5 nc -w 5 10.122.0.1 443 </dev/null >/dev/null || echo none; done"
        );
        poll::text(
            &format!("{turn}: pods to reach their Service, and the API each time"),
            PATIENCE,
            || Ok(k(to, &["exec", "client", "--", "sh", "-c", &reach]).unwrap_or_else(|e| format!("{e:#}"))),
            |said| said.trim() == "web",
        )?;
        k(to, &["delete", "pod", &name, "--grace-period=1", "--timeout=300s"])?;
        let now = self.containers(to)?;
        ensure!(now == before, "{turn}: before {before:?}, now {now:?}");
        Ok(())
    }

    /// Writes that are acknowledged while members of etcd come and go are all there.
    fn members(&mut self) -> Result<()> {
        let write = |server: &Server, range: std::ops::Range<u32>| -> Result<()> {
            let map = |n| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("written-{n}")}});
            let items: Vec<Value> = range.map(map).collect();
            apply(server, self.folder, &json!({"apiVersion": "v1", "kind": "List", "items": items}))
        };
        // Another leader may have to be found first.
        let written = |range: std::ops::Range<u32>| {
            poll::until("writes without a member of etcd", PATIENCE, || {
                Ok(write(&self.first, range.clone()).map_err(|error| format!("{error:#}")))
            })
        };
        self.etcd.kill(0)?;
        written(0..10)?;
        self.etcd.restart(0)?;
        // Now the one that was away is needed.
        self.etcd.kill(1)?;
        written(10..20)?;
        self.etcd.restart(1)?;
        // What the second one reads is not older; its own connection may first have to find a member that lives.
        let maps = poll::until("the second server to read", PATIENCE, || {
            Ok(k(&self.second, &["get", "configmaps", "-o", "name"]).map_err(|error| format!("{error:#}")))
        })?;
        let there = maps.lines().filter(|name| name.contains("/written-")).count();
        ensure!(there == 20, "{there} of 20: {maps}");
        Ok(())
    }

    async fn lose(&mut self) -> Result<()> {
        let before = self.containers(&self.first)?;
        self.first.kill()?;
        self.goes_on(&self.second, "killed", &before)?;
        // The server that its flags name is gone: it knows of the other.
        self.machine.stop()?;
        let server = format!("https://{HERE}:{}", self.first.port());
        self.machine.start(&[&["agent", "--server", &server], &RANGES[..]].concat())?;
        self.goes_on(&self.second, "restarted", &before)?;
        self.first.start().await?;
        self.second.hang(true)?;
        let gone_on = self.goes_on(&self.first, "hanging", &before);
        self.second.hang(false)?;
        gone_on?;
        self.members()?;
        // Both together, and back: what runs, runs on.
        self.first.kill()?;
        self.second.kill()?;
        self.second.start().await?;
        self.goes_on(&self.second, "both", &before)
    }

    fn last_words(&self) -> String {
        let agent = self.machine.log().unwrap_or_else(|error| error.to_string());
        let lines: Vec<&str> = agent.lines().collect();
        let agent = lines[lines.len().saturating_sub(40)..].join("\n");
        format!("first:\n{}\nsecond:\n{}\nagent:\n{agent}", self.first.last_words(), self.second.last_words())
    }
}

pub(crate) fn agents_go_on_with_another_server(cluster: &Cluster) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let mut world = World::start(cluster.scratch()).await?;
        let mut result = world.node().and_then(|()| world.serve());
        if result.is_ok() {
            result = world.lose().await;
        }
        result.map_err(|error| error.context(world.last_words()))
    })
}
