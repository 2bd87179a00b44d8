//! How who joins comes to trust a cluster: by the hash of its authority's public key, as kubeadm pins it.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::certificate;
use crate::nodeproxy::insecure;

/// A server that does not answer the handshake by then is given up.
const LIMIT: Duration = Duration::from_secs(10);

/// Why a cluster's authority could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The server cannot be reached, or speaks no TLS.
    #[error("cannot reach {0}")]
    Unreachable(String, #[source] std::io::Error),
    /// No name or address of a server.
    #[error("{0:?} is no host name")]
    Host(String),
    /// What it shows was not made by the authority that is wanted.
    #[error("{0} shows no certificate whose public key has the hash {1}: it belongs to another cluster")]
    Other(String, String),
}

/// The hash of a certificate's public key, `sha256:` and hexadecimal digits; `None` for what is no
/// certificate in PEM.
pub fn pin(pem: &str) -> Option<String> {
    pin_of(&CertificateDer::from_pem_slice(pem.as_bytes()).ok()?)
}

/// As [`pin`], of a certificate in DER.
pub fn pin_of(der: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate.public_key().raw);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("sha256:{hex}"))
}

/// The authority (PEM) that a server shows, if the hash of its key is `wanted`. Nothing is sent to the server
/// but the handshake, and nothing of it is believed but this certificate: whether the server has the
/// authority's trust is seen by connecting again with it.
///
/// # Errors
/// If the server cannot be reached, or shows no such certificate.
pub async fn discover(host: &str, port: u16, wanted: &str) -> Result<String, DiscoveryError> {
    let at = format!("{host}:{port}");
    let name = ServerName::try_from(host.to_owned()).map_err(|_| DiscoveryError::Host(host.to_owned()))?;
    let shown = tokio::time::timeout(LIMIT, async {
        let socket = TcpStream::connect((host, port)).await?;
        let stream = TlsConnector::from(Arc::clone(&insecure::config())).connect(name, socket).await?;
        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
        Ok::<_, std::io::Error>(shown.iter().map(|der| der.to_vec()).collect::<Vec<_>>())
    });
    let shown = shown.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    let shown = shown.map_err(|source| DiscoveryError::Unreachable(at.clone(), source))?;
    let authority = shown.iter().find(|der| pin_of(der).as_deref() == Some(wanted));
    let authority = authority.ok_or_else(|| DiscoveryError::Other(at, wanted.to_owned()))?;
    Ok(certificate::pem(authority))
}
