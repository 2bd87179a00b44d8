//! `decapod`: a Kubernetes cluster in one binary.

mod duration;
mod failure;
mod terminal;
mod verbs;

use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    connection: verbs::Connection,
    #[command(subcommand)]
    verb: verbs::Verb,
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Runtime::new().expect("x");
    match runtime.block_on(verbs::run(&cli.connection, cli.verb)) {
        Ok(code) => std::process::ExitCode::from(code as u8),
        Err(e) => {
            eprintln!("error: {e}");
            std::process::ExitCode::FAILURE
        }
    }
}
