//! kubectl's verbs, driven by discovery and by tables that the server prints.

mod apply;
mod delete;
mod describe;
mod doctor;
mod exec;
mod get;
mod kinds;
mod logs;
mod manifest;
mod rollout;
mod scale;
mod session;
mod three_way;
pub(crate) mod token;
mod why;

use clap::{Args, Subcommand};

use crate::failure::Failure;
use session::Session;

/// Where the cluster is, and which namespace is meant.
#[derive(Args, Clone, Debug)]
pub(crate) struct Connection {
    /// The kubeconfig to use (default: $KUBECONFIG, then ~/.kube/config).
    #[arg(long, global = true)]
    pub(crate) kubeconfig: Option<std::path::PathBuf>,
    /// The context of the kubeconfig to use.
    #[arg(long, global = true)]
    context: Option<String>,
    /// The namespace.
    #[arg(short, long, global = true)]
    namespace: Option<String>,
}

/// A verb on the cluster's objects.
#[derive(Subcommand, Debug)]
pub(crate) enum Verb {
    /// Create objects from manifests, or change them to what the manifests say.
    Apply(apply::Apply),
    /// Show objects.
    Get(get::Get),
    /// Show one object or several in detail, with their events.
    Describe(describe::Describe),
    /// Say why something is pending, restarting, not ready or does not go away, and what can be done.
    Why(why::Why),
    /// Look for what is wrong with the cluster, or with the way to a URL or Service.
    Doctor(doctor::Doctor),
    /// Print the logs of a container.
    Logs(logs::Logs),
    /// Run a command in a container.
    Exec(exec::Exec),
    /// Delete objects.
    Delete(delete::Delete),
    /// Make, show or revoke bootstrap tokens, with which new nodes first come in.
    #[command(subcommand)]
    Token(token::Token),
    /// Set the number of replicas of a workload.
    Scale(scale::Scale),
    /// Watch, undo or restart the roll-out of a workload.
    #[command(subcommand)]
    Rollout(rollout::Rollout),
}

/// Runs a verb; returns the exit code.
pub(crate) async fn run(connection: &Connection, verb: Verb) -> Result<i32, Failure> {
    let session = Session::open(
        connection.kubeconfig.as_deref(),
        connection.context.as_deref(),
        connection.namespace.as_deref(),
    )
    .await;
    let session = match (session, &verb) {
        // Without a cluster there is the machine to look at.
        (Err(failure), Verb::Doctor(doctor)) => return doctor.run(Err(failure)).await,
        (session, _) => session?,
    };
    match verb {
        Verb::Apply(apply) => apply.run(&session).await?,
        Verb::Get(get) => get.run(&session).await?,
        Verb::Describe(describe) => describe.run(&session).await?,
        Verb::Why(why) => why.run(&session).await?,
        Verb::Doctor(doctor) => return doctor.run(Ok(session)).await,
        Verb::Logs(logs) => logs.run(&session).await?,
        Verb::Exec(exec) => return exec.run(&session).await,
        Verb::Delete(delete) => delete.run(&session).await?,
        Verb::Token(token) => token.run(&session).await?,
        Verb::Scale(scale) => scale.run(&session).await?,
        Verb::Rollout(rollout) => rollout.run(&session).await?,
    }
    Ok(0)
}
