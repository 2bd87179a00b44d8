//! A control plane without a node, which can be killed and started again over the same data.

use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::poll;
use crate::tools::{program, run};

/// How long a start may take before it counts as failed: far longer than it takes.
const START: Duration = Duration::from_secs(60);
/// How often readiness is looked at: a fraction of what a start takes.
const STEP: Duration = Duration::from_millis(10);

/// The address that servers tell of unless their flags name one: a documentation address, where nobody is. It must not
/// be one of loopback, which no endpoint may have.
const ADDRESS: &str = "--node-ip=192.0.2.1";

/// However long a busy machine is silent, nobody takes its nodes for lost, or their pods away.
pub const CALM: [&str; 3] = [
    "--node-monitor-grace-period=600s",
    "--default-not-ready-toleration-seconds=600",
    "--default-unreachable-toleration-seconds=600",
];

/// The server. Dropping it kills it and removes its data.
#[derive(Debug)]
pub struct Server {
    binary: PathBuf,
    name: String,
    port: u16,
    flags: Vec<String>,
    folder: TempDir,
    child: Option<Child>,
}

impl Server {
    /// Prepares a server with these further flags of `decapod server`; starts nothing.
    ///
    /// # Errors
    /// That the program is missing, or no port is free.
    pub fn prepare(name: &str, flags: Vec<String>) -> Result<Self> {
        let port = free_port()?;
        let folder = tempfile::Builder::new().prefix("dcpserver").tempdir()?;
        let name = format!("{name}-{}", std::process::id());
        Ok(Self { binary: program("decapod")?, name, port, flags, folder, child: None })
    }

    /// Starts the server, and waits until it is ready.
    ///
    /// # Errors
    /// What it printed when it ended.
    pub async fn start(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let own_address = !self.flags.iter().any(|flag| flag.starts_with("--node-ip"));
        let child = Command::new(&self.binary)
            .args(["server", "--no-agent", "--name", &self.name, "--data-dir"])
            .arg(self.data())
            .arg(format!("--listen=0.0.0.0:{}", self.port))
            .args(own_address.then_some(ADDRESS))
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", self.binary.display()))?;
        self.child = Some(child);
        tokio::time::timeout(START, self.ready()).await.context("the server does not get ready")?
    }

    async fn ready(&mut self) -> Result<()> {
        loop {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                bail!("the server ended ({status}): {}", std::fs::read_to_string(self.log())?);
            }
            if let Ok(client) = self.client().await {
                let request = http::Request::get("/readyz").body(Vec::new())?;
                if client.request_text(request).await.is_ok() {
                    return Ok(());
                }
            }
            tokio::time::sleep(STEP).await;
        }
    }

    /// The end of what it logged, for who looks into a failure.
    pub fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_else(|error| error.to_string());
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// A client that may do everything, with connections of its own.
    ///
    /// # Errors
    /// That the server has not written its kubeconfig yet.
    pub async fn client(&self) -> Result<kube::Client> {
        let config = Kubeconfig::read_from(self.data().join("kubeconfig"))?;
        let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        Ok(kube::Client::try_from(config)?)
    }

    /// Kills it (`SIGKILL`).
    ///
    /// # Errors
    /// That it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    /// That it does not end.
    pub fn stop(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
        poll::until("the server to end", START * 2, || {
            Ok(child.try_wait()?.map(drop).ok_or_else(|| "it runs".to_owned()))
        })?;
        self.child = None;
        Ok(())
    }

    /// Stops its process where it is (`SIGSTOP`), as a machine that hangs, or lets it go on.
    ///
    /// # Errors
    /// That none runs.
    pub fn hang(&self, hangs: bool) -> Result<()> {
        let pid = self.pid().context("no server runs")?;
        let signal = if hangs { Signal::SIGSTOP } else { Signal::SIGCONT };
        Ok(kill(Pid::from_raw(i32::try_from(pid)?), signal)?)
    }

    /// Starts it with other flags from now on.
    pub fn set_flags(&mut self, flags: Vec<String>) {
        self.flags = flags;
    }

    /// Runs `decapod` with these words, about this server.
    ///
    /// # Errors
    /// What it printed.
    pub fn decapod(&self, words: &[&str]) -> Result<String> {
        run(Command::new(&self.binary)
            .args(words)
            .args(["--name", &self.name, "--data-dir"])
            .arg(self.data()))
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process that runs now.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// How it ended, once it has.
    ///
    /// # Errors
    /// That it cannot be waited for.
    pub fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        Ok(self.child.as_mut().map(Child::try_wait).transpose()?.flatten())
    }

    /// Where its data lies.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What it prints.
    pub fn log(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }
}

/// A port that stays free while the server is down: the kernel gives those from 32768 on to whoever
/// connects to something.
fn free_port() -> Result<u16> {
    const ATTEMPTS: usize = 100;
    let mut ports = (0..ATTEMPTS).map(|_| rand::random_range(20_000..30_000));
    let free = ports.find(|port| TcpListener::bind(("0.0.0.0", *port)).is_ok());
    free.context("no port is free")
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("the server cannot be killed: {error}");
        }
        // What it had there is gone with its last start, or never was.
        std::fs::remove_dir_all(format!("/run/decapod/{}", self.name)).ok();
    }
}
