//! Runs the scheduler against any Kubernetes API server: `scheduler KUBECONFIG`.

use std::path::PathBuf;
use std::sync::Arc;

use decapod_client::clock::SystemClock;
use decapod_client::informer::Informers;
use decapod_client::task::Supervisor;
use decapod_client::transport;
use decapod_scheduler::Options;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let path = std::env::args_os().nth(1).ok_or("usage: scheduler KUBECONFIG")?;
    let client = transport::from_kubeconfig(&PathBuf::from(path)).await?;
    let (supervisor, clock) = (Supervisor::new(), Arc::new(SystemClock::new()));
    let informers = Informers::new(client.clone(), supervisor.clone(), clock.clone());
    decapod_scheduler::run(Options::default(), client, &informers, &supervisor, clock);
    let failure = supervisor.failed().await;
    Err(failure.to_string().into())
}
