//! Runs the controllers against any Kubernetes API server: `controllers KUBECONFIG`.

use std::path::PathBuf;
use std::sync::Arc;

use decapod_client::clock::SystemClock;
use decapod_client::informer::Informers;
use decapod_client::task::Supervisor;
use decapod_client::transport;
use decapod_controllers::Options;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let path = std::env::args_os().nth(1).ok_or("usage: controllers KUBECONFIG")?;
    let client = transport::from_kubeconfig(&PathBuf::from(path)).await?;
    let (supervisor, clock) = (Supervisor::new(), Arc::new(SystemClock::new()));
    let informers = Informers::new(client.clone(), supervisor.clone(), clock.clone());
    let options = Options { root_ca: Some("no certificate".to_owned()), ..Options::default() };
    decapod_controllers::run(&options, client, informers, supervisor.clone(), clock);
    let failure = supervisor.failed().await;
    Err(failure.to_string().into())
}
