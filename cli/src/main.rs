//! `decapod`: a Kubernetes cluster in one binary.
//!
//! **Invariant**: a shim is recognized before anything else happens. It must have one thread, and this
//! program in all its other roles has many.

mod cluster;
mod dns;
mod duration;
mod failure;
mod ingress;
mod logging;
mod terminal;
mod verbs;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A Kubernetes cluster in one binary.
#[derive(Parser)]
#[command(name = "decapod", version, max_term_width = 120, infer_subcommands = false)]
struct Cli {
    #[command(flatten)]
    connection: verbs::Connection,
    #[command(flatten)]
    logging: logging::Logging,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a local cluster in the background, or wait until the running one is ready.
    Up(cluster::Up),
    /// Stop a cluster and leave nothing of it behind.
    Down(cluster::Down),
    /// Show components, nodes, processes and memory.
    Status(cluster::Status),
    /// Run the control plane, and this machine's node.
    Server(cluster::Server),
    /// Run a node of a cluster whose control plane is elsewhere.
    Agent(cluster::Agent),
    /// The further nodes of a cluster on this machine.
    #[command(subcommand)]
    Node(cluster::NodeVerb),
    /// The images of this machine's node.
    #[command(subcommand)]
    Image(cluster::Image),
    /// Save what a cluster's store holds into a file, and restore it.
    #[command(subcommand)]
    Snapshot(cluster::Snapshot),
    /// Answer DNS queries for the cluster (run as a system pod).
    Dns(dns::Dns),
    /// Take HTTP from outside to Services, by Ingresses (run as a system pod).
    Ingress(ingress::Ingress),
    #[command(flatten)]
    Verb(verbs::Verb),
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments.get(1).is_some_and(|a| a == decapod_runtime::shim::ARGUMENT) {
        return decapod_runtime::shim::main(&arguments[2..]);
    }
    let cli = Cli::parse_from(arguments);
    cli.logging.start(matches!(
        cli.command,
        Command::Server(_) | Command::Agent(_) | Command::Dns(_) | Command::Ingress(_)
    ));
    match run(cli) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<i32, Failure> {
    // Fails only if a provider is installed already, and this is the first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        match cli.command {
            Command::Up(up) => up.run(cli.connection.kubeconfig.as_deref()).await?,
            Command::Down(down) => down.run().await?,
            Command::Status(status) => status.run().await?,
            Command::Server(server) => server.run().await?,
            Command::Agent(agent) => agent.run().await?,
            Command::Node(node) => node.run().await?,
            Command::Image(image) => image.run().await?,
            Command::Snapshot(snapshot) => snapshot.run().await?,
            Command::Dns(dns) => dns.run().await?,
            Command::Ingress(ingress) => ingress.run().await?,
            Command::Verb(verb) => return verbs::run(&cli.connection, verb).await,
        }
        Ok::<_, Failure>(0)
    })?;
    // What still blocks (standard input, above all) must not keep the process.
    runtime.shutdown_background();
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_all_verbs_do_not_take_the_arguments_of_one() {
        for line in [
            &["decapod", "image", "build", "-t", "a:1", "folder"][..],
            &["decapod", "--context", "one", "image", "build", "-t", "a:1", "folder"],
        ] {
            assert!(matches!(Cli::parse_from(line).command, Command::Image(_)), "{line:?}");
        }
    }
}
