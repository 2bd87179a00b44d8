//! A further machine: a network namespace with a link to this one, and an agent of its own in it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::images::{self, Recipe};
use crate::tools::{program, run};

/// What a machine is called, and how it is reached.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// The name of its cluster's data, of its namespace and of this end of the link: 15 letters at most.
    pub name: &'static str,
    /// Its node's name.
    pub node: &'static str,
    /// The address of this end of the link, in a /30 that nothing else uses.
    pub here: &'static str,
    /// Its own address.
    pub there: &'static str,
}

/// The machine. Dropping it takes everything of it away, whatever came of the test.
#[derive(Debug)]
pub struct Machine {
    spec: Spec,
    folder: PathBuf,
    agent: Option<Child>,
}

impl Machine {
    /// Makes it, with its data below `folder`; starts nothing.
    ///
    /// # Errors
    /// What `ip` printed.
    pub fn new(spec: Spec, folder: &Path) -> Result<Self> {
        let machine = Self { spec, folder: folder.to_owned(), agent: None };
        let Spec { name, here, there, .. } = spec;
        for command in [
            format!("netns add {name}"),
            format!("link add {name} type veth peer name eth0 netns {name}"),
            format!("addr add {here}/30 dev {name}"),
            format!("link set {name} up"),
            format!("-n {name} link set lo up"),
            format!("-n {name} addr add {there}/30 dev eth0"),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} route add default via {here}"),
        ] {
            run(Command::new("ip").args(command.split(' ')))?;
        }
        Ok(machine)
    }

    /// Where its data lies.
    pub fn data(&self) -> PathBuf {
        self.folder.join(self.spec.name)
    }

    /// What its agent printed.
    ///
    /// # Errors
    /// That it cannot be read.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.log_file())?)
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.spec.name))
    }

    /// Starts the agent as `token create --print-join-command` said, or with other words.
    ///
    /// # Errors
    /// That it cannot be started.
    pub fn start(&mut self, join: &[&str]) -> Result<()> {
        let Spec { name, node, there, .. } = self.spec;
        let log = File::options().create(true).append(true).open(self.log_file())?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{name}")).arg(program("decapod")?);
        command.args(join).args(["--name", name, "--data-dir"]).arg(self.data());
        command.args(["--node-name", node, "--node-ip", there]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.agent = Some(command.spawn().context("starting nsenter")?);
        Ok(())
    }

    /// Asks the agent to end; its containers run on.
    ///
    /// # Errors
    /// That it cannot be waited for.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut agent) = self.agent.take() else { return Ok(()) };
        kill(Pid::from_raw(i32::try_from(agent.id())?), Signal::SIGTERM)?;
        agent.wait()?;
        Ok(())
    }

    /// Brings an image to it.
    ///
    /// # Errors
    /// What could not be made or imported.
    pub fn import(&self, recipe: &Recipe) -> Result<()> {
        let mut import = Command::new(program("decapod")?);
        import.args(["image", "import", "--name", self.spec.name, "--data-dir"]).arg(self.data());
        run(import.arg(images::archive(recipe)?)).map(drop)
    }

    /// Takes everything away.
    fn remove(&mut self) -> Result<()> {
        let stopped = self.stop();
        let mut down = Command::new(program("decapod")?);
        let down = run(down.args(["down", "--name", self.spec.name, "--data-dir"]).arg(self.data()));
        // The other end goes with the namespace.
        let namespace = run(Command::new("ip").args(["netns", "del", self.spec.name]));
        stopped.and(down.map(drop)).and(namespace.map(drop))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("the machine {} was not taken away: {error:?}", self.spec.name);
        }
    }
}
