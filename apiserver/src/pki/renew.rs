//! A server certificate that is renewed while the process runs.

use std::sync::{Arc, RwLock};

use jiff::Timestamp;
use rustls::crypto::ring::sign::any_ecdsa_type;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{CertificateRequest, Error, Pair, Pki};
use crate::clock::Clock;

/// A certificate is replaced once less than this share of a year is left.
const RENEW_BEFORE_SECONDS: i64 = 90 * 24 * 60 * 60;

/// Hands rustls the server's certificate, and issues the next one in time.
pub(crate) struct Renewing {
    pki: Arc<Pki>,
    request: CertificateRequest,
    clock: Arc<dyn Clock>,
    current: RwLock<(Arc<CertifiedKey>, Timestamp)>,
}

impl std::fmt::Debug for Renewing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewing").field("request", &self.request).finish_non_exhaustive()
    }
}

impl Renewing {
    pub(crate) fn new(
        pki: Arc<Pki>,
        request: CertificateRequest,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        let pair = pki.issue(&request, clock.now())?;
        let current = RwLock::new((Arc::new(certified(&pair)?), pair.not_after));
        Ok(Self { pki, request, clock, current })
    }

    fn renewed(&self) -> Result<Arc<CertifiedKey>, Error> {
        let pair = self.pki.issue(&self.request, self.clock.now())?;
        let key = Arc::new(certified(&pair)?);
        *self.current.write().unwrap_or_else(|e| e.into_inner()) = (key.clone(), pair.not_after);
        tracing::info!(not_after = %pair.not_after, "server certificate renewed");
        Ok(key)
    }
}

impl ResolvesServerCert for Renewing {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let (key, not_after) = self.current.read().unwrap_or_else(|e| e.into_inner()).clone();
        if not_after.as_second() - self.clock.now().as_second() > RENEW_BEFORE_SECONDS {
            return Some(key);
        }
        match self.renewed() {
            Ok(key) => Some(key),
            Err(error) => {
                tracing::error!(%error, "cannot renew the server certificate");
                Some(key)
            }
        }
    }
}

fn certified(pair: &Pair) -> Result<CertifiedKey, Error> {
    let chain =
        CertificateDer::pem_slice_iter(pair.certificate_pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes())?;
    Ok(CertifiedKey::new(chain, any_ecdsa_type(&key)?))
}
