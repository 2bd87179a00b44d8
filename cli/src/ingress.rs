//! `decapod ingress`: the Ingress controller as a process of its own, a system pod in kube-system.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use decapod_client::clock::{Clock, SystemClock};
use decapod_client::informer::Informers;
use decapod_client::task::Supervisor;
use decapod_network::ingress;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::{Failure, chain};

/// How long requests that are under way may take when the pod ends: less than its grace period.
const GRACE: Duration = Duration::from_secs(20);

#[derive(Args, Debug)]
pub(crate) struct Ingress {
    /// Where HTTP is answered.
    #[arg(long, default_value = "0.0.0.0:8080")]
    http: SocketAddr,
    /// Where HTTPS is answered.
    #[arg(long, default_value = "0.0.0.0:8443")]
    https: SocketAddr,
    /// The port under which clients know the first.
    #[arg(long, default_value_t = 80)]
    http_port: u16,
    /// The port under which clients know the second.
    #[arg(long, default_value_t = 443)]
    https_port: u16,
    /// The kubeconfig of the cluster (default: the pod's service account).
    #[arg(long = "cluster")]
    cluster: Option<PathBuf>,
}

impl Ingress {
    pub(crate) async fn run(&self) -> Result<(), Failure> {
        let client = crate::dns::client(self.cluster.as_deref()).await?;
        let supervisor = Supervisor::new();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let informers = Informers::new(client, supervisor.clone(), clock.clone());
        let options = ingress::Options {
            http: self.http,
            https: self.https,
            ports: (self.http_port, self.https_port),
            ..ingress::Options::default()
        };
        let server = ingress::Server::bind(options).await.map_err(|e| Failure::new(chain(&e)))?;
        let mut terminate = signal(SignalKind::terminate())?;
        let result = tokio::select! {
            result = server.run(informers, supervisor.clone(), clock) => result.map_err(|e| Failure::new(chain(&e))),
            _ = terminate.recv() => Ok(()),
            failure = supervisor.failed() => Err(Failure::new(format!("a task ended: {failure}"))),
        };
        supervisor.shutdown(GRACE).await;
        result
    }
}
