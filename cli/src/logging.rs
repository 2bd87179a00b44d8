//! What the program says about itself: text or JSON lines on standard error, levels by `RUST_LOG`.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct Logging {
    /// The form of log lines.
    #[arg(long, global = true, default_value = "text")]
    log_format: Format,
}

impl Logging {
    /// Starts logging: servers tell what they do, commands only what goes wrong.
    pub(crate) fn start(&self, server: bool) {
        // A command says itself what failed, once: the client library says it each time.
        let default = if server { "info" } else { "error,kube_client=off" };
        let wanted = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| default.to_owned());
        let (filter, wrong) = match EnvFilter::try_new(&wanted) {
            Ok(filter) => (filter, None),
            Err(error) => (EnvFilter::new(default), Some(error)),
        };
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        match self.log_format {
            Format::Text => builder.init(),
            Format::Json => builder.json().init(),
        }
        if let Some(error) = wrong {
            tracing::error!(%error, "{} cannot be read: {default} it is", EnvFilter::DEFAULT_ENV);
        }
    }
}
