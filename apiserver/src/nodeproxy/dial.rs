//! The client's side of a connection to a kubelet or pod.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::insecure;
use super::target::{Backend, Target};
use crate::clock::Clock;
use crate::http::Body;
use crate::http::body::BoxError;
use crate::pki::{self, CertificateRequest, MASTERS, Pki};

/// As whom the API server comes to kubelets.
const USER: &str = "kube-apiserver-kubelet-client";
/// A kubelet that does not answer the handshake by then is given up.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to kubelets.
pub(crate) struct Kubelets {
    pki: Arc<Pki>,
    clock: Arc<dyn Clock>,
    config: Mutex<(Arc<ClientConfig>, Timestamp)>,
    to_loopback: bool,
}

impl Kubelets {
    pub(crate) fn new(pki: &Arc<Pki>, clock: Arc<dyn Clock>, to_loopback: bool) -> Result<Self, pki::Error> {
        let config = Mutex::new(config(pki, clock.now())?);
        Ok(Self { pki: pki.clone(), clock, config, to_loopback })
    }

    fn config(&self) -> Result<Arc<ClientConfig>, pki::Error> {
        let now = self.clock.now();
        let mut current = self.config.lock().unwrap_or_else(|e| e.into_inner());
        if now >= current.1 {
            *current = config(&self.pki, now)?;
        }
        Ok(current.0.clone())
    }

    /// Whether a pod can have an address.
    pub(super) fn may_reach(&self, address: IpAddr) -> bool {
        allowed(address, self.to_loopback)
    }

    /// Sends a request over a connection of its own, which lives as long as the answer.
    pub(super) async fn send(
        &self,
        target: &Target,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, BoxError> {
        let socket = tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect((target.address, target.port)));
        let socket = socket.await.map_err(|_| "dial timed out")??;
        socket.set_nodelay(true)?;
        match target.backend {
            Backend::Plain => exchange(socket, request).await,
            Backend::Kubelet | Backend::Tls => {
                let config = if target.backend == Backend::Tls { insecure::config() } else { self.config()? };
                let connector = TlsConnector::from(config);
                let name = ServerName::IpAddress(target.address.into());
                let stream = tokio::time::timeout(DIAL_TIMEOUT, connector.connect(name, socket));
                exchange(stream.await.map_err(|_| "TLS handshake timed out")??, request).await
            }
        }
    }
}

/// Whether a pod can have an address: not this machine's own, nor the link's.
fn allowed(address: IpAddr, to_loopback: bool) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let own = address.is_loopback() && !to_loopback;
    !(own || link_local || address.is_unspecified() || address.is_multicast())
}

async fn exchange<S>(stream: S, request: Request<Body>) -> Result<Response<Incoming>, BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a node or pod ended");
        }
    });
    Ok(sender.send_request(request).await?)
}

/// How to meet kubelets, and when to renew that.
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
    Ok((Arc::new(config), pair.renew_at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_for_kubelets_is_renewed_over_the_years() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(crate::clock::Manual::new());
        let pki = Arc::new(Pki::open(dir.path(), clock.now()).unwrap());
        let kubelets = Kubelets::new(&pki, clock.clone(), false).unwrap();
        let mut held = kubelets.config().unwrap();
        let mut renewals = 0;
        for _ in 0..3 * 36 {
            clock.advance(10);
            let next = kubelets.config().unwrap();
            renewals += u32::from(!Arc::ptr_eq(&held, &next));
            let due = kubelets.config.lock().unwrap().1;
            assert!(due > clock.now(), "what is handed out is not due");
            held = next;
        }
        // Each is good for a year, and replaced after nine months of it.
        assert_eq!(renewals, 3);
    }

    #[test]
    fn what_a_pod_may_not_be_is_not_connected_to() {
        for (address, wanted) in [
            ("10.244.0.7", true),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("0.0.0.0", false),
            ("224.0.0.1", false),
            ("::1", false),
            ("fe80::1", false),
            ("fd00::1", true),
        ] {
            assert_eq!(allowed(address.parse().unwrap(), false), wanted, "{address}");
        }
        assert!(allowed("127.0.0.1".parse().unwrap(), true));
    }
}
