//! Sends a batch: a connection each, which batches of many seconds can afford.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::http::body::BoxError;

/// A server that has not answered by then has not taken the batch: Kubernetes' limit.
const LIMIT: Duration = Duration::from_secs(30);

/// Where to, and as whom.
pub(super) struct Target {
    pub(super) uri: Uri,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    pub(super) authorization: Option<HeaderValue>,
}

/// Why a batch was not taken.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It may be taken later.
    Passing(String),
    /// It will never be.
    Lasting(String),
}

/// Sends batches.
pub(super) struct Sender(Target);

impl Sender {
    pub(super) fn new(target: Target) -> Self {
        Self(target)
    }

    /// Sends a batch and waits for the answer.
    pub(super) async fn send(&self, body: Bytes) -> Result<(), Trouble> {
        let answer = tokio::time::timeout(LIMIT, self.exchange(body)).await;
        let status = match answer {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => return Err(Trouble::Passing(error.to_string())),
            Err(_) => return Err(Trouble::Passing("no answer in 30 seconds".to_owned())),
        };
        let why = format!("the answer was {status}");
        if status.is_success() {
            Ok(())
        } else if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            Err(Trouble::Passing(why))
        } else {
            Err(Trouble::Lasting(why))
        }
    }

    async fn exchange(&self, body: Bytes) -> Result<StatusCode, BoxError> {
        let target = &self.0;
        let path = target.uri.path_and_query().map_or("/", |path| path.as_str());
        let host = target.uri.authority().map_or("", |authority| authority.as_str());
        let mut request = Request::post(path)
            .header(HOST, host)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        if let Some(authorization) = &target.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        let socket = TcpStream::connect((target.host.as_str(), target.port)).await?;
        match &target.tls {
            None => post(socket, request).await,
            Some((config, name)) => {
                let stream = TlsConnector::from(config.clone()).connect(name.clone(), socket).await?;
                post(stream, request).await
            }
        }
    }
}

async fn post<S>(stream: S, request: Request<Full<Bytes>>) -> Result<StatusCode, BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let response = sender.send_request(request);
    tokio::pin!(response);
    // The connection is driven only for as long as the answer takes; its body says nothing to us.
    tokio::select! {
        biased;
        response = &mut response => return Ok(response?.status()),
        ended = connection => ended?,
    }
    // A server may end the connection with its answer.
    Ok(response.await?.status())
}
