//! `exec`: a command in a running container, with its standard streams and its exit code.

use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{Api, AttachParams, TerminalSize};
use tokio::io::{AsyncRead, AsyncWrite};

use super::logs::pod_of;
use super::session::Session;
use crate::failure::Failure;

#[derive(Args, Debug)]
pub(crate) struct Exec {
    /// A pod, or TYPE/NAME of a workload (then one of its pods).
    target: String,
    /// The container (default: the first).
    #[arg(short, long)]
    container: Option<String>,
    /// Pass standard input on.
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the command a terminal.
    #[arg(short, long)]
    tty: bool,
    /// The command and its arguments, after --.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl Exec {
    /// Runs the command; returns its exit code.
    pub(super) async fn run(&self, session: &Session) -> Result<i32, Failure> {
        let pod = pod_of(session, &self.target).await?;
        let pods: Api<Pod> = Api::namespaced(session.client.clone(), decapod_api::meta::namespace(&pod));
        let tty = self.tty && crate::terminal::is_terminal();
        if self.tty && !tty {
            eprintln!("Unable to use a TTY - input is not a terminal");
        }
        let mut params = AttachParams::default().stdin(self.stdin).stdout(true).stderr(!tty).tty(tty);
        params.container = self
            .container
            .clone()
            .or_else(|| pod["spec"]["containers"][0]["name"].as_str().map(str::to_owned));
        let mut process = pods.exec(decapod_api::meta::name(&pod), &self.command, &params).await?;

        let raw = if tty && self.stdin { Some(crate::terminal::Raw::enter()?) } else { None };
        let resizes = process.terminal_size().filter(|_| tty);
        let input = process.stdin();
        let (output, errors) = (process.stdout(), process.stderr());
        let status = process.take_status();
        let background = async {
            tokio::join!(resize(resizes), copy(Some(tokio::io::stdin()).filter(|_| input.is_some()), input));
            std::future::pending::<()>().await;
        };
        let streams = async {
            tokio::join!(copy(output, Some(tokio::io::stdout())), copy(errors, Some(tokio::io::stderr())))
        };
        let status = tokio::select! {
            (status, _) = async { tokio::join!(async { match status { Some(s) => s.await, None => None } }, streams) } => status,
            () = background => None,
        };
        drop(raw);
        exit_code(status)
    }
}

async fn copy(from: Option<impl AsyncRead + Unpin>, to: Option<impl AsyncWrite + Unpin>) {
    if let (Some(mut from), Some(mut to)) = (from, to)
        && let Err(error) = tokio::io::copy(&mut from, &mut to).await
    {
        tracing::debug!(%error, "a stream of exec ended");
    }
}

async fn resize(sizes: Option<futures::channel::mpsc::Sender<TerminalSize>>) {
    let Some(mut sizes) = sizes else { return };
    let Ok(mut changes) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change())
    else {
        return;
    };
    loop {
        if let Some((width, height)) = crate::terminal::size()
            && futures::SinkExt::send(&mut sizes, TerminalSize { width, height }).await.is_err()
        {
            return;
        }
        changes.recv().await;
    }
}

fn exit_code(status: Option<Status>) -> Result<i32, Failure> {
    let Some(status) = status else {
        return Err(Failure::new("the connection ended before the command did"));
    };
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let causes = status.details.and_then(|d| d.causes).unwrap_or_default();
    let code = causes
        .iter()
        .find(|c| c.reason.as_deref() == Some("ExitCode"))
        .and_then(|c| c.message.as_deref()?.parse().ok());
    let message = status.message.unwrap_or_default();
    match code {
        Some(code) => {
            eprintln!("command terminated with exit code {code}");
            Ok(code)
        }
        None => Err(Failure::new(format!("the command was not run: {message}"))),
    }
}
