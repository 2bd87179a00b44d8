//! A second machine joins by a token and the hash of the cluster's authority: a network namespace with a link to the first
//! one, and an agent of its own in it.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::images;
use decapod_tests::poll;
use decapod_tests::tools::{program, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The name of the machine: of its cluster's data, its namespace and its end of the link.
const NAME: &str = "dcpjoin";
/// The link, in a range that no other test uses.
const HERE: &str = "10.119.255.1";
const THERE: &str = "10.119.255.2";
const NODE: &str = "joined";
/// A node is ready within seconds; a loaded machine takes its time.
const PATIENCE: Duration = Duration::from_secs(300);

/// The second machine. Dropping it takes everything of it away, whatever came of the test.
struct Machine<'a> {
    cluster: &'a Cluster,
    agent: Option<Child>,
}

impl<'a> Machine<'a> {
    fn new(cluster: &'a Cluster) -> Result<Self> {
        let machine = Self { cluster, agent: None };
        for command in [
            format!("netns add {NAME}"),
            format!("link add {NAME} type veth peer name eth0 netns {NAME}"),
            format!("addr add {HERE}/30 dev {NAME}"),
            format!("link set {NAME} up"),
            format!("-n {NAME} link set lo up"),
            format!("-n {NAME} addr add {THERE}/30 dev eth0"),
            format!("-n {NAME} link set eth0 up"),
            format!("-n {NAME} route add default via {HERE}"),
        ] {
            run(Command::new("ip").args(command.split(' ')))?;
        }
        Ok(machine)
    }

    fn data(&self) -> PathBuf {
        self.cluster.scratch().join(NAME)
    }

    fn log(&self) -> PathBuf {
        self.cluster.scratch().join(format!("{NAME}.log"))
    }

    /// Starts the agent as `token create --print-join-command` said, or with less.
    fn start(&mut self, join: &[&str]) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{NAME}")).arg(program("decapod")?);
        command.args(join).args(["--name", NAME, "--data-dir"]).arg(self.data());
        command.args(["--node-name", NODE, "--node-ip", THERE]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.agent = Some(command.spawn().context("starting nsenter")?);
        Ok(())
    }

    /// Asks the agent to end; its containers run on.
    fn stop(&mut self) -> Result<()> {
        let Some(mut agent) = self.agent.take() else { return Ok(()) };
        kill(Pid::from_raw(i32::try_from(agent.id())?), Signal::SIGTERM)?;
        agent.wait()?;
        Ok(())
    }

    /// Waits until the node has this readiness.
    fn until_ready(&self) -> Result<()> {
        poll::until("the node to be ready", PATIENCE, || {
            let path = "{.status.conditions[?(@.type==\"Ready\")].status}";
            let told = self.cluster.k(&["get", "node", NODE, "-o", &format!("jsonpath={path}")]);
            Ok(match told {
                Ok(status) if status == "True" => Ok(()),
                other => Err(format!("{other:?}; {}", std::fs::read_to_string(self.log())?)),
            })
        })
    }

    /// Takes everything away.
    fn remove(&mut self) -> Result<()> {
        let stopped = self.stop();
        let mut down = self.cluster.decapod(&["down", "--name", NAME, "--data-dir"]);
        let down = run(down.arg(self.data()));
        // The other end goes with the namespace.
        let namespace = run(Command::new("ip").args(["netns", "del", NAME]));
        let node = self.cluster.k(&["delete", "node", NODE, "--ignore-not-found"]);
        stopped.and(down.map(drop)).and(namespace.map(drop)).and(node.map(drop))
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("the second machine was not taken away: {error:?}");
        }
    }
}

pub(crate) fn a_second_node_joins_by_token_and_hash(cluster: &Cluster) -> Result<()> {
    let join = run(&mut cluster.decapod(&["token", "create", "--print-join-command"]))?;
    let join: Vec<&str> = join.split_whitespace().collect();
    ensure!(join[..2] == ["decapod", "agent"] && join[4] == "--token", "{join:?}");
    ensure!(join[8..] == ["--pod-cidr", "10.117.0.0/16", "--service-cidr", "10.118.0.0/16"], "{join:?}");
    let mut machine = Machine::new(cluster)?;
    machine.start(&join[1..])?;
    machine.until_ready()?;
    let mut import = cluster.decapod(&["image", "import", "--name", NAME, "--data-dir"]);
    run(import.arg(machine.data()).arg(images::archive(&images::BUSYBOX)?))?;
    let result = cluster.in_namespace("joining", |ns| {
        let overrides = format!(
            "{{\"spec\": {{\"nodeSelector\": {{\"kubernetes.io/hostname\": \"{NODE}\"}}, \"terminationGracePeriodSeconds\": 0}}}}"
        );
        let pod = ["run", "p", "-n", ns, "--image=busybox:1", "--overrides", &overrides, "--command", "--"];
        let shell = ["sh", "-c", "echo from afar; exec sleep 3600"];
        cluster.k(&[&pod[..], &shell].concat())?;
        let pod = cluster.ready(ns, "p")?;
        ensure!(pod["spec"]["nodeName"] == NODE, "{}", pod["spec"]);
        let logs = || -> Result<()> {
            // The node's server gets its certificate a moment after the node is ready.
            poll::until("the logs of a pod on the second node", PATIENCE, || {
                let told = cluster.k(&["logs", "p", "-n", ns]);
                Ok(if told.as_deref().is_ok_and(|t| t == "from afar\n") { Ok(()) } else { Err(format!("{told:?}")) })
            })
        };
        logs()?;
        ensure!(cluster.exec(ns, "p", &["hostname"])?.trim() == "p");
        // It has a certificate of its own now, and needs the token no more.
        machine.stop()?;
        machine.start(&[&join[1..4], &join[6..]].concat())?;
        machine.until_ready()?;
        logs()?;
        let restarts = &cluster.ready(ns, "p")?["status"]["containerStatuses"][0]["restartCount"];
        ensure!(*restarts == 0, "{restarts}");
        Ok(())
    });
    if result.is_err() {
        eprintln!("{}", std::fs::read_to_string(machine.log()).unwrap_or_default());
    }
    let revoked = cluster.decapod(&["token", "revoke", join[5]]).output()?;
    ensure!(revoked.status.success(), "{revoked:?}");
    result
}
