//! Clusters of this machine: `up`, `down`, `status`, and the processes `server` and `agent`.

mod addons;
mod agent;
mod authority;
mod build;
mod build_socket;
mod control;
mod datastore;
mod dns_probe;
mod down;
mod image;
mod image_flags;
mod join;
mod kubeconfig;
mod leader;
mod lifecycle_flags;
mod limits;
mod lock;
mod network_flags;
mod nodes;
mod policies;
mod ranges;
mod renewal;
mod resource_flags;
mod runtime;
mod server;
mod settings;
mod shutdown;
mod snapshot;
mod status;
mod transfer;
mod up;

pub(crate) use agent::Agent;
pub(crate) use down::Down;
pub(crate) use image::Image;
pub(crate) use nodes::NodeVerb;
pub(crate) use renewal::warning as authority_warning;
pub(crate) use server::Server;
pub(crate) use snapshot::Snapshot;
pub(crate) use status::Status;
pub(crate) use up::Up;

use std::time::Duration;

use decapod_client::task::Supervisor;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;

/// How long tasks get to end.
const GRACE: Duration = Duration::from_secs(5);

/// Namespaces, mounts and cgroups are root's.
fn require_root(what: &str) -> Result<(), Failure> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "`decapod {what}` must be run as root: it makes network namespaces, mounts and cgroups"
    ))
    .hint(format!("run `sudo decapod {what}`")))
}

/// Runs until a signal asks to stop, or a task failed that none can do without. The tasks run on.
async fn run_until_told(supervisor: &Supervisor) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        failure = supervisor.failed() => Err(Failure::new(format!("a task ended: {failure}"))),
    }
}

/// Ends all tasks.
async fn end(supervisor: &Supervisor) {
    let remaining = supervisor.shutdown(GRACE).await;
    if !remaining.is_empty() {
        tracing::warn!(?remaining, "tasks had to be dropped");
    }
}
