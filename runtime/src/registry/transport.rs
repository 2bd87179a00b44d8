//! HTTP to registries: one connection pool per way of speaking TLS, and answers within bounds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::config::Registries;
use super::error::{Error, Result};
use super::proxy::Proxied;

/// For a connection to come about: what other clients allow.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);

/// Without a byte for this long a registry has failed; slow ones send something.
pub(super) const STALLED_AFTER: Duration = Duration::from_secs(60);

type Http = hyper_util::client::legacy::Client<HttpsConnector<Proxied>, Full<Bytes>>;

/// The connections of one client.
pub(super) struct Transports {
    registries: Arc<Registries>,
    insecure: bool,
    by_host: Mutex<HashMap<String, Http>>,
}

impl Transports {
    pub(super) fn new(registries: Arc<Registries>, insecure: bool) -> Self {
        Self { registries, insecure, by_host: Mutex::default() }
    }

    fn of(&self, authority: &str) -> Result<Http> {
        // Nothing panics while the lock is held.
        let mut by_host = self.by_host.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(http) = by_host.get(authority) {
            return Ok(http.clone());
        }
        let tls = self.registries.tls(authority, self.insecure)?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT_WITHIN));
        connector.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Proxied::from_environment(connector));
        let http: Http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
        by_host.insert(authority.to_owned(), http.clone());
        Ok(http)
    }

    /// Sends a request; the answer's head has to come in time.
    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        let authority = authority(request.uri());
        let http = self.of(&authority)?;
        let path = request.uri().path().to_owned();
        match tokio::time::timeout(STALLED_AFTER, http.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() => {
                Err(Error::Unreachable { registry: authority, source: error.into() })
            }
            Ok(Err(error)) => Err(Error::Broken { registry: authority, what: path, source: error.into() }),
            Err(_) => {
                Err(Error::Stalled { registry: authority, what: path, seconds: STALLED_AFTER.as_secs() })
            }
        }
    }
}

/// Host and port of a URL.
pub(super) fn authority(url: &Uri) -> String {
    url.authority().map(ToString::to_string).unwrap_or_default()
}

/// The next piece of a body; `None` at its end.
pub(super) async fn next(body: &mut Incoming, registry: &str, what: &str) -> Result<Option<Bytes>> {
    loop {
        let frame = tokio::time::timeout(STALLED_AFTER, body.frame()).await.map_err(|_| Error::Stalled {
            registry: registry.to_owned(),
            what: what.to_owned(),
            seconds: STALLED_AFTER.as_secs(),
        })?;
        match frame {
            None => return Ok(None),
            Some(Ok(frame)) => {
                // Trailers are of no interest.
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Some(Err(error)) => {
                return Err(Error::Broken {
                    registry: registry.to_owned(),
                    what: what.to_owned(),
                    source: error.into(),
                });
            }
        }
    }
}

/// A whole body, if it is no larger than allowed.
pub(super) async fn whole(mut body: Incoming, limit: usize, registry: &str, what: &str) -> Result<Bytes> {
    let mut whole = BytesMut::new();
    while let Some(piece) = next(&mut body, registry, what).await? {
        if whole.len() + piece.len() > limit {
            let what = format!("{what} is larger than {limit} bytes");
            return Err(Error::Protocol { registry: registry.to_owned(), what });
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}
