//! The end of the machine: where its service manager is stopping everything, pods get their grace before the agent goes.
//! An agent that is merely restarted leaves them alone.

use std::process::Stdio;
use std::time::Duration;

use decapod_kubelet::Drain;
use tokio::process::Command;

/// Ends the pods, if the machine is about to stop and pods are to have a grace then.
pub(super) async fn pods(drain: &Drain, (grace, critical): (Duration, Duration)) {
    if grace.is_zero() || !machine_stops().await {
        return;
    }
    tracing::info!(?grace, "the machine stops: pods are ended");
    drain.pods(grace, critical).await;
}

/// Whether systemd is stopping the machine; one without systemd does not say.
async fn machine_stops() -> bool {
    let mut command = Command::new("systemctl");
    let command = command.arg("is-system-running").stdin(Stdio::null()).stderr(Stdio::null());
    match command.output().await {
        Ok(output) => output.stdout.trim_ascii() == b"stopping",
        Err(error) => {
            tracing::debug!(%error, "systemd cannot be asked whether the machine stops");
            false
        }
    }
}
