//! Real etcd for tests: one member or several, on free loopback ports, in a folder of its own.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::poll;

/// How long a member may take to listen.
const START: Duration = Duration::from_secs(90);
/// A port that was free when we looked may be taken a moment later: then all start anew, on others.
const ATTEMPTS: usize = 5;

/// The files by which members and clients know each other.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The authority of both.
    pub ca: PathBuf,
    /// The members' certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A running etcd. Dropping it kills its processes and removes its data.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    tls: Option<Tls>,
    folder: TempDir,
}

#[derive(Debug)]
struct Member {
    client: SocketAddr,
    peer: SocketAddr,
    child: Option<Child>,
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; then there is nothing left to kill.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl Etcd {
    /// Starts this many members; `ETCD_BIN` names another program than `etcd`.
    ///
    /// # Errors
    /// That etcd is not installed, or what it printed when it did not start.
    pub fn start(members: usize, tls: Option<Tls>) -> Result<Self> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match Self::try_start(members, tls.clone()) {
                Ok(etcd) => return Ok(etcd),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no attempt was made")?)
    }

    fn try_start(members: usize, tls: Option<Tls>) -> Result<Self> {
        let mut addresses = free_ports(members * 2)?.into_iter();
        let mut etcd = Self { members: Vec::new(), tls, folder: TempDir::new()? };
        while let (Some(client), Some(peer)) = (addresses.next(), addresses.next()) {
            etcd.members.push(Member { client, peer, child: None });
        }
        for number in 0..members {
            etcd.spawn(number)?;
        }
        for number in 0..members {
            etcd.wait(number)?;
        }
        Ok(etcd)
    }

    fn spawn(&mut self, number: usize) -> Result<()> {
        let cluster: Vec<String> =
            self.members.iter().enumerate().map(|(n, m)| format!("m{n}=http://{}", m.peer)).collect();
        let folder = self.folder.path().join(format!("m{number}"));
        let log = File::options().create(true).append(true).open(self.log(number))?;
        let (client, peer) = (self.url(number), format!("http://{}", self.members[number].peer));
        let program = std::env::var_os("ETCD_BIN").unwrap_or_else(|| "etcd".into());
        let mut command = Command::new(program);
        command
            .args(["--name", &format!("m{number}"), "--data-dir"])
            .arg(folder)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster.join(","), "--logger", "zap", "--log-level", "warn"])
            // A lost leader is replaced within a second, also on a loaded machine.
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some(tls) = &self.tls {
            let flags =
                [("--trusted-ca-file", &tls.ca), ("--cert-file", &tls.certificate), ("--key-file", &tls.key)];
            for (flag, file) in flags {
                command.arg(flag).arg(file);
            }
            command.arg("--client-cert-auth");
        }
        self.members[number].child = Some(command.spawn().context("starting etcd (Debian: etcd-server)")?);
        Ok(())
    }

    fn wait(&mut self, number: usize) -> Result<()> {
        let log = self.log(number);
        let member = &mut self.members[number];
        let child = member.child.as_mut().context("the member was started")?;
        poll::until("etcd to listen", START, || {
            if let Some(status) = child.try_wait()? {
                bail!("etcd ended ({status}): {}", std::fs::read_to_string(&log)?);
            }
            Ok(TcpStream::connect(member.client).map(drop).map_err(|e| e.to_string()))
        })
    }

    fn log(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("m{number}.log"))
    }

    fn url(&self, number: usize) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.members[number].client)
    }

    /// The members' client URLs, separated by commas.
    pub fn endpoints(&self) -> String {
        (0..self.members.len()).map(|number| self.url(number)).collect::<Vec<_>>().join(",")
    }

    /// Where all data lies.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Kills a member (`SIGKILL`).
    ///
    /// # Errors
    /// That it cannot be waited for.
    pub fn kill(&mut self, number: usize) -> Result<()> {
        if let Some(mut child) = self.members[number].child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Starts a member again that was killed.
    ///
    /// # Errors
    /// That it does not start.
    pub fn restart(&mut self, number: usize) -> Result<()> {
        self.spawn(number)?;
        self.wait(number)
    }

    /// Runs `etcdctl` against all members.
    ///
    /// # Errors
    /// What it printed when it failed.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoints()]);
        if let Some(tls) = &self.tls {
            command
                .arg("--cacert")
                .arg(&tls.ca)
                .arg("--cert")
                .arg(&tls.certificate)
                .arg("--key")
                .arg(&tls.key);
        }
        crate::tools::run(command.args(arguments))
    }
}

/// Ports of this machine that are free now, all different.
fn free_ports(count: usize) -> Result<Vec<SocketAddr>> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<_>>()?;
    Ok(listeners.iter().map(TcpListener::local_addr).collect::<std::io::Result<_>>()?)
}
