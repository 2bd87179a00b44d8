//! `decapod down`: ends a cluster and leaves nothing behind.
//!
//! It cleans up by what is on disk and in the kernel, not by what a server says: it works as well when the
//! server was killed, or never came up.

use std::time::{Duration, Instant};

use clap::Args;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use decapod_network::{Netns, link};

use super::lock::Lock;
use super::nodes::{self, LocalNode, Roster};
use super::settings::{Place, Which};
use super::{agent, kubeconfig};
use crate::failure::{Failure, chain};

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
            end("the server", Pid::from_raw(pid)).await?;
        }
        let lock = Lock::take(&place)?;
        let further = Roster::load(&place)?.map(|roster| roster.nodes(&place)).unwrap_or_default();
        // Each part is removed whatever comes of the others; then the first failure is told.
        let mut failures = remove_nodes(&place, &further).await;
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
        for node in &further {
            remove_tree(&node.place.run())?;
        }
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

/// Ends the further nodes of this machine, and removes the wire between them.
async fn remove_nodes(place: &Place, further: &[LocalNode]) -> Vec<Failure> {
    if further.is_empty() && Roster::load(place).is_ok_and(|roster| roster.is_none()) {
        return Vec::new();
    }
    println!("stopping {} further nodes", further.len());
    let ended = futures::future::join_all(further.iter().map(nodes::end)).await;
    let mut failures: Vec<Failure> = ended.into_iter().filter_map(Result::err).collect();
    let wire = link::tear_down(&Netns::Own, &place.wire(), &place.wire_table());
    failures.extend(wire.err().map(|e| Failure::new(chain(&e))));
    // While something of a node runs, its namespace stays findable.
    if failures.is_empty() {
        let unmade = further.iter().map(|node| Netns::unmake(&node.namespace()));
        failures.extend(unmade.filter_map(Result::err).map(|e| Failure::new(chain(&e))));
    }
    failures
}

pub(super) fn remove_tree(path: &std::path::Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::new(format!("{} cannot be removed: {e}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Asks the process to end, and kills it if it does not.
pub(super) async fn end(what: &str, pid: Pid) -> Result<(), Failure> {
    let failed = |e: Errno| Failure::new(format!("{what} (process {pid}) cannot be stopped: {e}"));
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
            return Err(Failure::new(format!("{what} (process {pid}) does not end")));
        }
        alive = signal(None)?;
    }
    Ok(())
}
