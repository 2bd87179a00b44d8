//! A server certificate that is renewed while the process runs.
//!
//! **Invariant**: a handshake is answered with a certificate that has at least a quarter of its time left,
//! as long as the authority can sign. Connections that stand are not touched.

use std::sync::{Arc, RwLock};

use jiff::Timestamp;
use rustls::crypto::ring::sign::any_ecdsa_type;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use super::{CertificateRequest, Error, Pair, Pki};
use crate::clock::Clock;

/// Hands rustls the certificate of a server of this process (the API server, the node), and issues the
/// next one in time.
pub struct Renewing {
    pki: Arc<Pki>,
    request: CertificateRequest,
    clock: Arc<dyn Clock>,
    current: RwLock<Current>,
}

#[derive(Clone)]
struct Current {
    key: Arc<CertifiedKey>,
    renew_at: Timestamp,
}

impl std::fmt::Debug for Renewing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewing").field("request", &self.request).finish_non_exhaustive()
    }
}

impl Renewing {
    /// Issues the first certificate.
    ///
    /// # Errors
    /// If the request names what cannot be in a certificate, or the authority has expired.
    pub fn new(pki: Arc<Pki>, request: CertificateRequest, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let current = RwLock::new(current(&pki, &request, clock.now())?);
        Ok(Self { pki, request, clock, current })
    }

    /// The certificate for a handshake now.
    fn now(&self) -> Arc<CertifiedKey> {
        let now = self.clock.now();
        let held = self.current.read().unwrap_or_else(|e| e.into_inner()).clone();
        if now < held.renew_at {
            return held.key;
        }
        match current(&self.pki, &self.request, now) {
            Ok(next) => {
                tracing::info!(name = self.request.common_name, "server certificate renewed");
                *self.current.write().unwrap_or_else(|e| e.into_inner()) = next.clone();
                next.key
            }
            Err(error) => {
                tracing::error!(%error, name = self.request.common_name, "cannot renew the server certificate");
                held.key
            }
        }
    }
}

impl ResolvesServerCert for Renewing {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now())
    }
}

fn current(pki: &Pki, request: &CertificateRequest, now: Timestamp) -> Result<Current, Error> {
    let pair = pki.issue(request, now)?;
    Ok(Current { key: Arc::new(certified(&pair, pki.ca_pem())?), renew_at: pair.renew_at })
}

/// The authority is shown too, for those who know only its hash as yet ([`super::discover`]).
fn certified(pair: &Pair, authority: &str) -> Result<CertifiedKey, Error> {
    let own = CertificateDer::pem_slice_iter(pair.certificate_pem.as_bytes());
    let chain =
        own.chain(CertificateDer::pem_slice_iter(authority.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes())?;
    Ok(CertifiedKey::new(chain, any_ecdsa_type(&key)?))
}

/// Lets rustls judge certificates by the injected clock.
pub(crate) struct Hands(pub(crate) Arc<dyn Clock>);

impl std::fmt::Debug for Hands {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hands")
    }
}

impl TimeProvider for Hands {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)))
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::clock::Manual;
    use crate::pki::expiry;

    #[test]
    fn a_walk_over_the_years_finds_no_certificate_expired() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(Manual::new());
        let pki = Arc::new(Pki::open(dir.path(), clock.now()).unwrap());
        let authority_ends = pki.authority_ends();
        let request = CertificateRequest::server("x", vec!["x".to_owned()]);
        let renewing = Renewing::new(pki, request, clock.clone()).unwrap();
        let mut met = Vec::new();
        while clock.now() < authority_ends {
            let key = renewing.now();
            let (_, leaf) = x509_parser::parse_x509_certificate(&key.cert[0]).unwrap();
            let ends = leaf.validity().not_after.timestamp();
            assert!(ends > clock.now().as_second(), "on {}", clock.now());
            assert!(ends <= authority_ends.as_second());
            met.push(ends);
            clock.advance(10);
        }
        met.dedup();
        assert!(met.len() >= 13, "ten years of certificates of one year: {}", met.len());
        // The authority's time is over: the last certificate is all there is.
        assert_eq!(renewing.now().cert[0], renewing.now().cert[0]);
    }

    #[test]
    fn a_pair_says_truly_when_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let pki = Pki::open(dir.path(), start).unwrap();
        let late = pki.authority_ends() - SignedDuration::from_hours(24 * 8);
        let pair = pki.issue(&CertificateRequest::client("x", &[]), late).unwrap();
        assert_eq!(pair.not_after, pki.authority_ends());
        assert_eq!(expiry(&pair.certificate_pem).unwrap(), pair.not_after);
        assert_eq!(pair.renew_at, late + SignedDuration::from_hours(24 * 6));
    }
}
