//! Exec and attach: the streams of a process over Kubernetes' channels.

use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use decapod_client::clock::{self, Clock};
use decapod_client::error::chain;
use decapod_runtime::{Input, Output, Session};
use futures::StreamExt;
use futures::future::BoxFuture;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::channel::{
    self, CLOSE, Channels, ERROR, RESIZE, STDERR, STDIN, STDOUT, Source, V1, V1_BASE64, V4, V4_BASE64, V5,
};
use super::upgrade::{self, Bytestream, Upgrade};
use super::{Host, Refusal, spdy};

/// SPDY's third protocol: as v2, and terminals have a size.
const V3: &str = "v3.channel.k8s.io";
/// SPDY's second protocol: as v1, without its faults.
const V2: &str = "v2.channel.k8s.io";

/// What a client asks for. The API server's names in a query (`input`) and those of clients (`stdin`) are both taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The command, of an exec.
    pub command: Vec<String>,
    /// Whether the client feeds the process.
    pub stdin: bool,
    /// Whether it wants the standard output.
    pub stdout: bool,
    /// Whether it wants the standard error; never with a terminal, where both outputs are one.
    pub stderr: bool,
    /// Whether the process has a terminal.
    pub tty: bool,
    /// Whether the end of the client's input is that of the whole stream: so it is for who is attached to a process
    /// whose input stays open. No client says it.
    pub detach: bool,
}

impl Request {
    /// Reads a query string.
    pub fn parse(query: Option<&str>) -> Self {
        let mut request = Self::default();
        for (name, value) in form(query.unwrap_or_default()) {
            let yes = matches!(value.as_str(), "1" | "true" | "True");
            match name.as_str() {
                "command" => request.command.push(value),
                "input" | "stdin" => request.stdin = yes,
                "output" | "stdout" => request.stdout = yes,
                "error" | "stderr" => request.stderr = yes,
                "tty" => request.tty = yes,
                _ => {}
            }
        }
        // With a terminal both outputs are one.
        request.stderr &= !request.tty;
        request
    }

    /// Refuses a request for no stream at all.
    ///
    /// # Errors
    /// As Kubernetes words it.
    pub fn check(&self) -> Result<(), Refusal> {
        if self.stdin || self.stdout || self.stderr {
            return Ok(());
        }
        let message = "you must specify at least 1 of stdin, stdout, stderr";
        Err(Refusal::new(StatusCode::BAD_REQUEST, message))
    }

    /// The channels that a client has to open for it.
    fn channels(&self, resizable: bool) -> Vec<u8> {
        let wanted = [
            (ERROR, true),
            (STDIN, self.stdin),
            (STDOUT, self.stdout),
            (STDERR, self.stderr),
            (RESIZE, self.tty && resizable),
        ];
        wanted.into_iter().filter(|(_, wanted)| *wanted).map(|(channel, _)| channel).collect()
    }
}

/// Decodes a query string, keeping repeated names in order.
pub(crate) fn form(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let hex = after.get(..2).and_then(|h| std::str::from_utf8(h).ok());
        match (byte, hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(code)) => {
                bytes.push(code);
                rest = &after[2..];
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Starts a process, or takes hold of one.
pub type Open = BoxFuture<'static, Result<Session, decapod_runtime::Error>>;

/// What the client's protocol says about the form of things.
#[derive(Clone, Copy, Debug)]
struct Form {
    /// The channel that tells a client of WebSockets by an empty message that the streams are there.
    first: u8,
    /// Whether the error channel carries a `metav1.Status`, or a line of text if there is an error.
    status: bool,
    /// Whether the end of the client's input is that of the whole stream: so it is for who is attached to a process
    /// whose input stays open.
    detach: bool,
}

/// Upgrades first and opens then, so that what is wrong with a command arrives on the error channel.
///
/// # Errors
/// When client and server have no protocol in common.
pub fn serve(
    upgrade: Upgrade,
    headers: &HeaderMap,
    open: Open,
    request: &Request,
    host: &Host,
) -> Result<Response, Refusal> {
    let clock = host.clock.clone();
    let first = match (request.stdout, request.stderr) {
        (true, _) => STDOUT,
        (false, true) => STDERR,
        (false, false) => ERROR,
    };
    match upgrade {
        Upgrade::WebSocket(upgrade) => {
            let detach = request.detach;
            let upgrade = upgrade::agree(*upgrade, headers, &[V5, V4, V4_BASE64, V1, V1_BASE64])?;
            Ok(upgrade.on_upgrade(move |socket| {
                let status = matches!(upgrade::protocol(&socket), V5 | V4 | V4_BASE64);
                run(Channels::over(socket), open, Form { first, status, detach }, clock)
            }))
        }
        Upgrade::Spdy(upgrade, headers) => {
            let protocol = spdy::negotiate(&headers, &[V4, V3, V2, V1])?;
            let wanted = request.channels(matches!(protocol, V4 | V3));
            let form = Form { first, status: protocol == V4, detach: request.detach };
            host.supervisor.spawn_until_shutdown("stream", async move {
                match Bytestream::plain(upgrade).await {
                    Ok(bytes) => {
                        run(spdy::channels::over(bytes, wanted, clock.clone()), open, form, clock).await;
                    }
                    Err(error) => tracing::debug!(%error, "an upgrade to SPDY failed"),
                }
            });
            Ok(spdy::switching(protocol))
        }
    }
}

/// Carries the streams until the process has ended or the client is gone; dropping the session then ends an exec.
async fn run(channels: Channels, open: Open, form: Form, clock: Arc<dyn Clock>) {
    let Channels { source, out, sending, idle } = channels;
    let work = async {
        let Some(mut source) = source.await else { return };
        let session = match open.await {
            Ok(session) => session,
            Err(error) => {
                let cause = format!("error executing command in container: {}", chain(&error));
                end(out, Err(format!("Internal error occurred: {cause}")), form).await;
                return channel::linger(&mut source, &*clock).await;
            }
        };
        if out.send(channel::message(form.first, &[])).await.is_err() {
            return;
        }
        let Session { stdin, stdout, stderr, resize, exit } = session;
        let last = out.clone();
        let mut process = std::pin::pin!(carry(stdout, stderr, exit, out, form));
        tokio::select! {
            () = &mut process => drop(last),
            input_ended = receive(&mut source, stdin, Some(resize), form.detach) => {
                if !input_ended {
                    return;
                }
                // What the process says to the last of its input, as far as it says it at once.
                if clock::timeout(&*clock, channel::QUIET, process).await.is_none() {
                    end(last, Ok(0), form).await;
                }
            }
            () = idle.expired(&*clock) => return,
        }
        channel::linger(&mut source, &*clock).await;
    };
    tokio::join!(work, sending);
}

/// Says how it ended.
async fn end(out: mpsc::Sender<Bytes>, exit: Result<i32, String>, form: Form) {
    let status = channel::exit_status(exit);
    let text = match form.status {
        true => status.to_string(),
        false => status["message"].as_str().unwrap_or_default().to_owned(),
    };
    if !text.is_empty() {
        // A client that is gone does not care.
        let _gone = out.send(channel::message(ERROR, text.as_bytes())).await;
    }
}

/// Sends both outputs until the process has ended, and then how it ended.
async fn carry(
    stdout: Option<Output>,
    stderr: Option<Output>,
    exit: BoxFuture<'static, Result<i32, decapod_runtime::Error>>,
    out: mpsc::Sender<Bytes>,
    form: Form,
) {
    let outputs = (pump(stdout, STDOUT, out.clone()), pump(stderr, STDERR, out.clone()));
    let ((), (), code) = tokio::join!(outputs.0, outputs.1, exit);
    end(out, code.map_err(|e| chain(&e)), form).await;
}

async fn pump(source: Option<Output>, channel: u8, out: mpsc::Sender<Bytes>) {
    let Some(source) = source else { return };
    if let Err(error) = channel::pump(source, channel, out).await {
        tracing::debug!(%error, "a stream of a process ended early");
    }
}

/// Takes what the client sends; ends when the client is gone, or with `detach` (and true) when its input has ended.
async fn receive(
    source: &mut Source,
    mut stdin: Option<Input>,
    resize: Option<mpsc::Sender<decapod_runtime::TerminalSize>>,
    detach: bool,
) -> bool {
    while let Some((channel, data)) = source.next().await {
        match channel {
            STDIN => feed(&mut stdin, &data).await,
            RESIZE => {
                if let (Some(size), Some(resize)) = (channel::size(&data), &resize) {
                    // Full means that a newer size is on its way already.
                    let _newer = resize.try_send(size);
                }
            }
            CLOSE if data.first() == Some(&STDIN) => {
                stdin = None;
                if detach {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}

async fn feed(stdin: &mut Option<Input>, data: &Bytes) {
    let Some(input) = stdin else { return };
    let written = async {
        input.write_all(data).await?;
        input.flush().await
    };
    if let Err(error) = written.await {
        // The process closed its input: the rest goes nowhere, as in a pipe.
        tracing::debug!(%error, "a process does not read its input");
        *stdin = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_of_clients_and_of_the_api_server_mean_the_same() {
        let client = Request::parse(Some(
            "command=sh&command=-c&command=echo+a%20b&stdin=true&stdout=true&stderr=true",
        ));
        let server =
            Request::parse(Some("input=1&output=1&error=1&command=sh&command=-c&command=echo%20a%20b"));
        assert_eq!(client, server);
        assert_eq!(client.command, ["sh", "-c", "echo a b"]);
        assert!(!Request::parse(Some("tty=true&stderr=true")).stderr);
    }
}
