//! One run of a probe or of a lifecycle hook: http, tcp, exec, grpc.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use decapod_client::clock::{self, Clock};
use decapod_client::error::chain;
use decapod_proto::{cri, health};
use decapod_runtime::Runtime;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{
    Container, ExecAction, GRPCAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

use super::tls;

/// How much of an answer is kept for messages.
const OUTPUT_LIMIT: usize = 10 * 1024;
/// Redirects that are followed, as in Kubernetes.
const REDIRECTS: usize = 10;

/// The result of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) success: bool,
    pub(crate) output: String,
}

impl Outcome {
    fn ok(output: impl Into<String>) -> Self {
        Self { success: true, output: output.into() }
    }

    fn failed(output: impl Into<String>) -> Self {
        Self { success: false, output: output.into() }
    }
}

/// Runs commands in containers: the one thing that checks need of a runtime.
#[async_trait]
pub(crate) trait Exec: Send + Sync {
    /// Runs a command to its end, or for `timeout` unless that is zero.
    async fn exec(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<cri::ExecSyncResponse, decapod_runtime::Error>;
}

#[async_trait]
impl Exec for Arc<dyn Runtime> {
    async fn exec(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<cri::ExecSyncResponse, decapod_runtime::Error> {
        self.exec_sync(id, command, timeout).await
    }
}

/// What a check needs beside its own spec.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) exec: Arc<dyn Exec>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) container_id: String,
    pub(crate) container: Arc<Container>,
    /// The address that http and tcp checks go to unless they name a host.
    pub(crate) ip: String,
}

/// Runs a probe once, within its timeout.
pub(crate) async fn probe(target: &Target, probe: &Probe, timeout: Duration) -> Outcome {
    if let Some(action) = &probe.exec {
        return exec(target, action, timeout).await;
    }
    let run = async {
        if let Some(action) = &probe.http_get {
            http(target, action, Asks::Probe).await
        } else if let Some(action) = &probe.tcp_socket {
            tcp(target, action).await
        } else if let Some(action) = &probe.grpc {
            grpc(target, action).await
        } else {
            Outcome::failed(format!("missing probe handler for {}", target.container.name))
        }
    };
    let outcome = clock::timeout(&*target.clock, timeout, run).await;
    outcome.unwrap_or_else(|| Outcome::failed(late(target, probe, timeout)))
}

/// What a probe says that had no answer in its time; in Kubernetes' words for each kind.
fn late(target: &Target, probe: &Probe, timeout: Duration) -> String {
    let address = |host: Option<&String>, number: Option<u16>| {
        let host = host.filter(|h| !h.is_empty()).unwrap_or(&target.ip);
        authority(host, number.unwrap_or(0))
    };
    if let Some(action) = &probe.http_get {
        let scheme = if action.scheme.as_deref() == Some("HTTPS") { "https" } else { "http" };
        let address = address(action.host.as_ref(), port(&target.container, &action.port));
        let path = action.path.as_deref().unwrap_or_default().trim_start_matches('/');
        return format!(
            "Get \"{scheme}://{address}/{path}\": context deadline exceeded (Client.Timeout exceeded while \
             awaiting headers)"
        );
    }
    match &probe.tcp_socket {
        Some(action) => {
            let address = address(action.host.as_ref(), port(&target.container, &action.port));
            format!("dial tcp {address}: i/o timeout")
        }
        None => format!("timeout: health rpc did not complete within {timeout:?}"),
    }
}

/// Runs a `postStart` or `preStop` hook; it ends with its handler, however long that takes.
pub(crate) async fn hook(target: &Target, handler: &LifecycleHandler) -> Outcome {
    if let Some(action) = &handler.exec {
        exec(target, action, Duration::ZERO).await
    } else if let Some(action) = &handler.http_get {
        // Any answer will do; only none is a failure.
        http(target, action, Asks::Hook).await
    } else if let Some(action) = &handler.sleep {
        let seconds = u64::try_from(action.seconds).unwrap_or(0);
        target.clock.sleep(Duration::from_secs(seconds)).await;
        Outcome::ok("")
    } else if let Some(action) = &handler.tcp_socket {
        tcp(target, action).await
    } else {
        Outcome::ok("")
    }
}

async fn exec(target: &Target, action: &ExecAction, timeout: Duration) -> Outcome {
    let command = action.command.clone().unwrap_or_default();
    match target.exec.exec(&target.container_id, &command, timeout).await {
        Ok(response) => {
            let mut bytes = response.stdout;
            bytes.extend(response.stderr);
            bytes.truncate(OUTPUT_LIMIT);
            let output = String::from_utf8_lossy(&bytes).into_owned();
            Outcome { success: response.exit_code == 0, output }
        }
        Err(decapod_runtime::Error::DeadlineExceeded { .. }) => {
            let words: Vec<String> = command.iter().map(|w| format!("{w:?}")).collect();
            Outcome::failed(format!("command timed out: {} timed out after {timeout:?}", words.join(" ")))
        }
        Err(error) => Outcome::failed(chain(&error)),
    }
}

/// The number of a port that may be given by its name.
fn port(container: &Container, port: &IntOrString) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match name.parse() {
            Ok(number) => number,
            Err(_) => {
                let ports = container.ports.iter().flatten();
                ports.into_iter().find(|p| p.name.as_deref() == Some(name))?.container_port
            }
        },
    };
    u16::try_from(number).ok()
}

async fn tcp(target: &Target, action: &TCPSocketAction) -> Outcome {
    let Some(port) = port(&target.container, &action.port) else {
        return Outcome::failed("invalid port");
    };
    let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(&target.ip);
    match TcpStream::connect((host, port)).await {
        Ok(_) => Outcome::ok(""),
        Err(error) => Outcome::failed(format!("dial tcp {}: {error}", authority(host, port))),
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Who sends a request, which decides what counts as success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    Probe,
    Hook,
}

async fn http(target: &Target, action: &HTTPGetAction, asks: Asks) -> Outcome {
    let Some(port) = port(&target.container, &action.port) else {
        return Outcome::failed("invalid port");
    };
    let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(&target.ip);
    let secure = action.scheme.as_deref() == Some("HTTPS");
    let mut path = action.path.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "/".to_owned());
    if !path.starts_with('/') {
        path.insert(0, '/');
    }
    for _ in 0..REDIRECTS {
        let call = Call { host, port, secure, path: &path, action, asks };
        match call.send().await {
            Err(error) => {
                let scheme = if secure { "https" } else { "http" };
                return Outcome::failed(format!(
                    "Get \"{scheme}://{}{path}\": {error}",
                    authority(host, port)
                ));
            }
            Ok(Answer::Redirect(next)) => path = next,
            Ok(Answer::Done(outcome)) => return outcome,
        }
    }
    Outcome::failed("stopped after 10 redirects")
}

struct Call<'a> {
    host: &'a str,
    port: u16,
    secure: bool,
    path: &'a str,
    action: &'a HTTPGetAction,
    asks: Asks,
}

enum Answer {
    /// To another path on the same host.
    Redirect(String),
    Done(Outcome),
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Call<'_> {
    async fn send(&self) -> Result<Answer, BoxError> {
        let stream = TcpStream::connect((self.host, self.port))
            .await
            .map_err(|e| format!("dial tcp {}: {e}", authority(self.host, self.port)))?;
        if self.secure {
            let stream = tls::connect(stream, self.host).await?;
            self.exchange(TokioIo::new(stream)).await
        } else {
            self.exchange(TokioIo::new(stream)).await
        }
    }

    async fn exchange<S>(&self, stream: S) -> Result<Answer, BoxError>
    where
        S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        let answer = async {
            let response = sender.send_request(self.request()?).await?;
            let status = response.status();
            if let Some(next) = self.redirect(&response) {
                return Ok(Answer::Redirect(next));
            }
            let body = Limited::new(response.into_body(), OUTPUT_LIMIT).collect().await;
            // A body that is cut off says nothing about the status that came before it.
            let body = body.map(|b| b.to_bytes()).unwrap_or_default();
            if self.asks == Asks::Hook || (200..400).contains(&status.as_u16()) {
                return Ok(Answer::Done(Outcome::ok(String::from_utf8_lossy(&body))));
            }
            let text = format!("HTTP probe failed with statuscode: {}", status.as_u16());
            Ok(Answer::Done(Outcome::failed(text)))
        };
        let mut answer = std::pin::pin!(answer);
        let mut connection = std::pin::pin!(connection);
        // The connection is driven here and dropped with the answer. It may end first, with the answer handed over.
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            _ended = &mut connection => answer.await,
        }
    }

    fn request(&self) -> Result<Request<Empty<Bytes>>, BoxError> {
        let agent = match self.asks {
            Asks::Probe => "kube-probe/1.36",
            Asks::Hook => "kube-lifecycle/1.36",
        };
        let mut request = Request::get(self.path)
            .header(http::header::USER_AGENT, agent)
            .header(http::header::ACCEPT, "*/*")
            .header(http::header::CONNECTION, "close");
        let mut host = authority(self.host, self.port);
        for header in self.action.http_headers.iter().flatten() {
            if header.name.eq_ignore_ascii_case("host") {
                host.clone_from(&header.value);
            } else {
                request = request.header(&header.name, &header.value);
            }
        }
        Ok(request.header(http::header::HOST, host).body(Empty::new())?)
    }

    /// The path of a redirect to the same host; one to another host counts as an answer.
    fn redirect<B>(&self, response: &hyper::Response<B>) -> Option<String> {
        if !response.status().is_redirection() {
            return None;
        }
        let location = response.headers().get(http::header::LOCATION)?.to_str().ok()?;
        let uri: http::Uri = location.parse().ok()?;
        if uri.host().is_some_and(|h| h != self.host) {
            return None;
        }
        uri.path_and_query().map(|p| p.as_str().to_owned())
    }
}

async fn grpc(target: &Target, action: &GRPCAction) -> Outcome {
    let Ok(port) = u16::try_from(action.port) else {
        return Outcome::failed("invalid port");
    };
    let uri = format!("http://{}", authority(&target.ip, port));
    let endpoint = match tonic::transport::Endpoint::from_shared(uri) {
        Ok(endpoint) => endpoint,
        Err(error) => return Outcome::failed(chain(&error)),
    };
    let channel = match endpoint.connect().await {
        Ok(channel) => channel,
        Err(error) => {
            return Outcome::failed(format!(
                "timeout: failed to connect service \"{}\" within 1s: {}",
                authority(&target.ip, port),
                chain(&error)
            ));
        }
    };
    let request = health::HealthCheckRequest { service: action.service.clone().unwrap_or_default() };
    match health::health_client::HealthClient::new(channel).check(request).await {
        Ok(response) => {
            let status = response.into_inner().status();
            if status == health::health_check_response::ServingStatus::Serving {
                Outcome::ok("")
            } else {
                Outcome::failed(format!("service unhealthy (responded with \"{}\")", status.as_str_name()))
            }
        }
        Err(status) => Outcome::failed(format!("error: health rpc failed: {}", status.message())),
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
