//! The client's side of a connection to a kubelet.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::target::Target;
use crate::clock::Clock;
use crate::http::Body;
use crate::http::body::BoxError;
use crate::pki::{self, CertificateRequest, MASTERS, Pki};

/// As whom the API server comes to kubelets.
const USER: &str = "kube-apiserver-kubelet-client";
/// A kubelet that does not answer the handshake by then is given up.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// The client certificate is renewed once less than this is left.
const RENEW_BEFORE_SECONDS: i64 = 30 * 24 * 60 * 60;

/// Connects to kubelets.
pub(crate) struct Kubelets {
    pki: Arc<Pki>,
    clock: Arc<dyn Clock>,
    config: Mutex<(Arc<ClientConfig>, Timestamp)>,
}

impl Kubelets {
    pub(crate) fn new(pki: &Arc<Pki>, clock: Arc<dyn Clock>) -> Result<Self, pki::Error> {
        let config = Mutex::new(config(pki, clock.now())?);
        Ok(Self { pki: pki.clone(), clock, config })
    }

    fn config(&self) -> Result<Arc<ClientConfig>, pki::Error> {
        let now = self.clock.now();
        let mut current = self.config.lock().unwrap_or_else(|e| e.into_inner());
        if current.1.as_second() - now.as_second() < RENEW_BEFORE_SECONDS {
            *current = config(&self.pki, now)?;
        }
        Ok(current.0.clone())
    }

    /// Sends a request over a connection of its own, which lives as long as the answer.
    pub(super) async fn send(
        &self,
        target: &Target,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, BoxError> {
        let connector = TlsConnector::from(self.config()?);
        let dial = async {
            let socket = TcpStream::connect((target.address, target.port)).await?;
            socket.set_nodelay(true)?;
            connector.connect(ServerName::IpAddress(target.address.into()), socket).await
        };
        let stream = tokio::time::timeout(DIAL_TIMEOUT, dial).await.map_err(|_| "dial timed out")??;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to a kubelet ended");
            }
        });
        Ok(sender.send_request(request).await?)
    }
}

fn config(pki: &Pki, now: Timestamp) -> Result<(Arc<ClientConfig>, Timestamp), pki::Error> {
    let pair = pki.issue(&CertificateRequest::client(USER, &[MASTERS]), now)?;
    let chain =
        CertificateDer::pem_slice_iter(pair.certificate_pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes())?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pki.ca_pem().as_bytes()) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    Ok((Arc::new(config), pair.not_after))
}
