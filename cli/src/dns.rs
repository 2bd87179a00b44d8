//! `decapod dns`: cluster DNS as a process of its own, the system pod in kube-system.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use decapod_client::clock::{Clock, SystemClock};
use decapod_client::informer::Informers;
use decapod_client::task::Supervisor;
use decapod_client::transport;
use decapod_network::dns;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::{Failure, chain};

const GRACE: Duration = Duration::from_secs(2);

#[derive(Args, Debug)]
pub(crate) struct Dns {
    /// The cluster's domain.
    #[arg(long, default_value = "cluster.local")]
    domain: String,
    /// Where questions are answered.
    #[arg(long, default_value = "0.0.0.0:53")]
    listen: std::net::SocketAddr,
    /// The kubeconfig of the cluster (default: the pod's service account).
    #[arg(long = "cluster")]
    cluster: Option<PathBuf>,
}

impl Dns {
    pub(crate) async fn run(&self) -> Result<(), Failure> {
        let client = client(self.cluster.as_deref()).await?;
        let supervisor = Supervisor::new();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let informers = Informers::new(client, supervisor.clone(), clock.clone());
        let options =
            dns::Options { listen: self.listen, domain: self.domain.clone(), ..dns::Options::default() };
        let mut terminate = signal(SignalKind::terminate())?;
        let result = tokio::select! {
            result = dns::run(options, informers, supervisor.clone(), clock) => result.map_err(|e| Failure::new(chain(&e))),
            _ = terminate.recv() => Ok(()),
            failure = supervisor.failed() => Err(Failure::new(format!("a task ended: {failure}"))),
        };
        supervisor.shutdown(GRACE).await;
        result
    }
}

/// The client of a system pod: by its service account, or by a kubeconfig.
pub(crate) async fn client(kubeconfig: Option<&Path>) -> Result<kube::Client, Failure> {
    if let Some(file) = kubeconfig {
        return transport::from_kubeconfig(file).await.map_err(|e| Failure::new(chain(&e)));
    }
    let config = kube::Config::incluster().map_err(|e| {
        Failure::new(format!("this is no pod with a service account: {}", chain(&e)))
            .hint("--cluster FILE names a kubeconfig")
    })?;
    Ok(kube::Client::try_from(config)?)
}
