//! Who may use the node server.

use std::sync::Arc;

use axum::Extension;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use rustls::RootCertStore;
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls_pki_types::CertificateDer;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::options::ServerOptions;

/// Kubernetes' group of those who may do everything.
const MASTERS: &str = "system:masters";

/// What a connection may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Allowed,
    /// Known, but not one of those who may.
    Forbidden {
        user: String,
    },
    /// No certificate.
    Unknown,
}

/// TLS with client certificates of the cluster's CA; a client without one gets as far as a `401`.
pub(super) fn acceptor(
    options: &ServerOptions,
) -> Result<TlsAcceptor, Box<dyn std::error::Error + Send + Sync>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(options.client_ca.clone())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(options.certificate.clone());
    // WebSockets are upgrades of HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Reads user and groups from the certificate that the handshake has verified.
pub(super) fn access(certificates: Option<&[CertificateDer<'_>]>, allowed: &[String]) -> Access {
    let Some(first) = certificates.and_then(<[_]>::first) else { return Access::Unknown };
    let Ok((_, certificate)) = X509Certificate::from_der(first) else { return Access::Unknown };
    let subject = certificate.subject();
    let user = subject.iter_common_name().find_map(|n| n.as_str().ok()).unwrap_or_default().to_owned();
    let master = subject.iter_organization().any(|o| o.as_str() == Ok(MASTERS));
    if master || allowed.contains(&user) { Access::Allowed } else { Access::Forbidden { user } }
}

/// Lets through only those who may.
pub(super) async fn enforce(Extension(access): Extension<Access>, request: Request, next: Next) -> Response {
    match access {
        Access::Allowed => next.run(request).await,
        Access::Unknown => (StatusCode::UNAUTHORIZED, "Unauthorized").into_response(),
        Access::Forbidden { user } => {
            let message = format!("Forbidden (user={user}, verb={}, resource=nodes)", request.method());
            (StatusCode::FORBIDDEN, message).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn certificate(user: &str, group: &str) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, user);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn only_the_api_server_and_masters_may() {
        let allowed = ["kube-apiserver-kubelet-client".to_owned()];
        let of = |user: &str, group: &str| access(Some(&[certificate(user, group)]), &allowed);
        assert_eq!(of("admin", MASTERS), Access::Allowed);
        assert_eq!(of("kube-apiserver-kubelet-client", "any"), Access::Allowed);
        assert_eq!(of("system:node:n2", "system:nodes"), Access::Forbidden { user: "system:node:n2".into() });
        assert_eq!(access(None, &allowed), Access::Unknown);
    }
}
