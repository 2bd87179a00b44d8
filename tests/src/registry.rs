//! Debian's docker-registry for tests: open to one user alone, on a free port of loopback, in a folder of its own.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::poll;

/// How long it may take to listen.
const START: Duration = Duration::from_secs(90);
/// A port that was free when we looked may be taken a moment later: then it starts anew, on another.
const ATTEMPTS: usize = 5;

/// The user whom it knows.
pub const USER: &str = "crab";
/// The user's password.
pub const PASSWORD: &str = "geheim";
/// The same as htpasswd has it; of few rounds, since nobody guards anything with it.
const HTPASSWD: &str = "crab:$2b$04$fbgEVoyy.qp83Q3oR5lFbO8ThjtBIKrWMUdAUEk8Gz63Sqn4s855q\n";

/// A running registry. Dropping it kills its process and removes its data.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    folder: TempDir,
    child: Child,
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have been stopped before; then there is nothing left to kill.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Registry {
    /// Starts an empty one.
    ///
    /// # Errors
    /// That docker-registry is not installed, or what it printed when it did not start.
    pub fn start() -> Result<Self> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
            let folder = TempDir::new()?;
            match run(&folder, address) {
                Ok(child) => return Ok(Self { address, folder, child }),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no attempt was made")?)
    }

    /// The name of an image in it.
    pub fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.address)
    }

    /// Host and port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it, as an outage does.
    ///
    /// # Errors
    /// If it cannot be ended.
    pub fn stop(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again with what it has, at the same port.
    ///
    /// # Errors
    /// What it printed.
    pub fn restart(&mut self) -> Result<()> {
        self.child = poll::until("the registry to have its port again", START, || {
            Ok(run(&self.folder, self.address).map_err(|error| error.to_string()))
        })?;
        Ok(())
    }
}

fn run(folder: &TempDir, address: SocketAddr) -> Result<Child> {
    let at = folder.path().display();
    std::fs::write(folder.path().join("htpasswd"), HTPASSWD)?;
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {at}/data}}}}\n\
         auth: {{htpasswd: {{realm: crabs, path: {at}/htpasswd}}}}\nhttp: {{addr: '{address}'}}\n"
    );
    let file = folder.path().join("config.yml");
    std::fs::write(&file, config)?;
    let log = File::create(folder.path().join("log"))?;
    let mut child = Command::new("docker-registry")
        .arg("serve")
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("Debian's docker-registry is not installed")?;
    let listens = poll::until("docker-registry to listen", START, || {
        if let Some(status) = child.try_wait()? {
            let said = std::fs::read_to_string(folder.path().join("log"))?;
            bail!("docker-registry ended ({status}): {said}");
        }
        Ok(TcpStream::connect(address).map(drop).map_err(|error| error.to_string()))
    });
    if let Err(error) = listens {
        child.kill().ok();
        child.wait().ok();
        return Err(error);
    }
    Ok(child)
}
