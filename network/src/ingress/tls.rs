//! Certificates by the name that a client asks for.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1::Secret;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Certificates by host; names of wildcards without their first label.
#[derive(Debug, Default)]
pub(super) struct Certificates {
    pub(super) hosts: HashMap<String, Arc<CertifiedKey>>,
    pub(super) wildcards: HashMap<String, Arc<CertifiedKey>>,
    /// Where no other fits.
    pub(super) any: Option<Arc<CertifiedKey>>,
}

impl Certificates {
    /// Puts a certificate in place for a host of an Ingress, unless an older one has it.
    pub(super) fn add(&mut self, host: &str, key: &Arc<CertifiedKey>) {
        let host = host.to_ascii_lowercase();
        match host.strip_prefix("*.") {
            Some(parent) => self.wildcards.entry(parent.to_owned()).or_insert_with(|| key.clone()),
            None => self.hosts.entry(host).or_insert_with(|| key.clone()),
        };
    }

    fn find(&self, host: &str) -> Option<&Arc<CertifiedKey>> {
        let wildcard = || host.split_once('.').and_then(|(_, parent)| self.wildcards.get(parent));
        self.hosts.get(host).or_else(wildcard)
    }
}

/// What connections use: it changes with the cluster, and connections that are open stay as they are.
#[derive(Debug)]
pub(super) struct Resolver {
    current: RwLock<Arc<Certificates>>,
    fallback: Arc<CertifiedKey>,
}

impl Resolver {
    /// None yet but a certificate that nobody signed.
    pub(super) fn new() -> Result<Self, Unusable> {
        let names = vec!["ingress.decapod.internal".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).map_err(|error| Unusable(error.to_string()))?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())
            .map_err(|error| Unusable(error.to_owned()))?;
        Ok(Self {
            current: RwLock::default(),
            fallback: Arc::new(certified(vec![made.cert.der().clone()], key)?),
        })
    }

    /// Puts others in place.
    pub(super) fn publish(&self, certificates: Certificates) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certificates);
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let host = hello.server_name().unwrap_or_default().to_ascii_lowercase();
        Some(current.find(&host).or(current.any.as_ref()).unwrap_or(&self.fallback).clone())
    }
}

/// Why a Secret is no certificate with its key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unusable(String);

/// Reads a Secret of type kubernetes.io/tls.
pub(super) fn read(secret: &Secret) -> Result<CertifiedKey, Unusable> {
    let part = |name: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(name));
        bytes.map(|bytes| &*bytes.0).ok_or_else(|| Unusable(format!("it has no {name}")))
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(part("tls.crt")?).collect();
    let chain = chain.map_err(|error| Unusable(format!("tls.crt: {error}")))?;
    if chain.is_empty() {
        return Err(Unusable("tls.crt: it holds no certificate".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_slice(part("tls.key")?);
    certified(chain, key.map_err(|error| Unusable(format!("tls.key: {error}")))?)
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, Unusable> {
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map_err(|error| Unusable(format!("tls.key: {error}")))
}
