//! `decapod down`: ends a cluster and leaves nothing behind.
//!
//! It cleans up by what is on disk and in the kernel, not by what a server says: it works as well when the
//! server was killed, or never came up.

use std::time::{Duration, Instant};

use clap::Args;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::agent;
use super::kubeconfig;
use super::lock::Lock;
use super::settings::{Place, Which};
use crate::failure::Failure;

/// How long the server gets to end by itself.
const GRACE: Duration = Duration::from_secs(15);

#[derive(Args, Debug)]
pub(crate) struct Down {
    #[command(flatten)]
    which: Which,
    /// Keep objects, images and volumes: a later `up` goes on with them.
    #[arg(long)]
    keep_data: bool,
}

impl Down {
    pub(crate) async fn run(&self) -> Result<(), Failure> {
        super::require_root("down")?;
        let place = self.which.place()?;
        if !place.data().exists() && !place.run().exists() {
            println!("there is no cluster \"{}\" in {}", place.name(), place.data().display());
            return Ok(());
        }
        if let Some(pid) = Lock::holder(&place)? {
            println!("stopping the server (process {pid})");
            end(Pid::from_raw(pid)).await?;
        }
        let lock = Lock::take(&place)?;
        // Each part is removed whatever comes of the others; then the first failure is told.
        let mut failures = Vec::new();
        failures.extend(agent::remove_pods(&place).await.err());
        failures.extend(agent::remove_network(&place).err());
        if let Some(failure) = failures.into_iter().next() {
            return Err(failure.hint("run `decapod down` again; its data is kept until all else is gone"));
        }
        self.forget(&place)?;
        if !self.keep_data {
            remove_tree(place.data())?;
        }
        drop(lock);
        remove_tree(&place.run())?;
        println!("the cluster \"{}\" is down", place.name());
        Ok(())
    }

    /// Takes the context out of the kubeconfig that `up` put it in.
    fn forget(&self, place: &Place) -> Result<(), Failure> {
        if self.keep_data {
            return Ok(());
        }
        let Some(ours) = kubeconfig::read(&place.kubeconfig())? else { return Ok(()) };
        let server = ours["clusters"][0]["cluster"]["server"].as_str().unwrap_or_default().to_owned();
        let Some(file) = kubeconfig::users_file() else { return Ok(()) };
        let Some(existing) = kubeconfig::read(&file)? else { return Ok(()) };
        match kubeconfig::forget(existing, place.name(), &server) {
            Some(rest) => kubeconfig::write(&file, &rest),
            None => Ok(()),
        }
    }
}

fn remove_tree(path: &std::path::Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::new(format!("{} cannot be removed: {e}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Asks the process to end, and kills it if it does not.
async fn end(pid: Pid) -> Result<(), Failure> {
    let failed = |e: Errno| Failure::new(format!("the server (process {pid}) cannot be stopped: {e}"));
    let signal = |signal: Option<Signal>| match kill(pid, signal) {
        Ok(()) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(e) => Err(failed(e)),
    };
    let started = Instant::now();
    let mut alive = signal(Some(Signal::SIGTERM))?;
    let mut killed = false;
    while alive {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if !killed && started.elapsed() > GRACE {
            killed = true;
            signal(Some(Signal::SIGKILL))?;
        }
        if started.elapsed() > GRACE * 2 {
            return Err(Failure::new(format!("the server (process {pid}) does not end")));
        }
        alive = signal(None)?;
    }
    Ok(())
}
