//! Certificates that lie in files or that nobody can renew by himself: the administrator's, which is
//! written anew in time, and the authority's, whose end is announced long before.
//!
//! The certificates of servers renew themselves at handshakes (`decapod_apiserver::pki::Renewing`); parts of
//! this process need none to speak to the API server.

use std::sync::Arc;
use std::time::Duration;

use decapod_apiserver::Handle;
use decapod_apiserver::pki::{ADMIN_USER, CertificateRequest, MASTERS, Pair, Pki};
use decapod_client::clock::Clock;
use decapod_client::event::{Recorder, Severity};
use decapod_client::task::Supervisor;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;

use super::kubeconfig;
use super::settings::Place;
use crate::failure::{Failure, chain};

/// How often it is looked whether something is due. A machine may sleep or be set right: no timer runs for long.
const LOOK: Duration = Duration::from_secs(6 * 60 * 60);
/// The authority's end is announced this long before: each client must learn of its successor in that time.
pub(super) const ANNOUNCED: SignedDuration = SignedDuration::from_hours(180 * 24);

/// The administrator's kubeconfig, beside the data.
pub(super) struct Admin {
    place: Place,
    url: String,
    pki: Arc<Pki>,
}

impl Admin {
    /// The administrator of this API server.
    pub(super) fn new(place: &Place, api: &Handle) -> Self {
        let address = api.address();
        let host =
            if address.ip().is_unspecified() { "127.0.0.1".to_owned() } else { address.ip().to_string() };
        let url = format!("https://{host}:{}", address.port());
        Self { place: place.clone(), url, pki: api.pki().clone() }
    }

    /// Writes the kubeconfig with a certificate from now on.
    pub(super) fn write(&self, now: Timestamp) -> Result<Pair, Failure> {
        let request = CertificateRequest::client(ADMIN_USER, &[MASTERS]);
        let pair = self.pki.issue(&request, now).map_err(|e| Failure::new(chain(&e)))?;
        let (ca, name) = (self.pki.ca_pem(), self.place.name());
        let made = kubeconfig::make(name, &self.url, ca, &pair.certificate_pem, &pair.key_pem);
        kubeconfig::write(&self.place.kubeconfig(), &made)?;
        Ok(pair)
    }

    /// Writes it anew each time that the certificate is due.
    pub(super) async fn keep(self, mut pair: Pair, clock: Arc<dyn Clock>) {
        loop {
            clock.sleep(LOOK).await;
            let now = clock.now();
            if now < pair.renew_at {
                continue;
            }
            match self.write(now) {
                Ok(next) => {
                    tracing::info!(file = %self.place.kubeconfig().display(), "the administrator's certificate is renewed");
                    pair = next;
                }
                Err(error) => tracing::error!(%error, "the administrator's certificate cannot be renewed"),
            }
        }
    }
}

/// What there is to say of an authority that ends soon; `None` while there is time.
pub(crate) fn warning(ends: Timestamp, now: Timestamp) -> Option<String> {
    let left = ends.duration_since(now);
    if left > ANNOUNCED {
        return None;
    }
    let date = ends.strftime("%Y-%m-%d");
    Some(match left.as_hours().div_euclid(24) {
        days if days < 0 => {
            format!("the cluster's certificate authority ended on {date}: nobody trusts it any more")
        }
        days => format!(
            "the cluster's certificate authority ends on {date}, in {days} days, and with it every certificate: start the server again before, which renews it (an authority of your own: replace DATA/pki/ca.crt and ca.key)"
        ),
    })
}

/// Announces the end of the authority, in the log and as an Event, once a day while it is near.
pub(super) fn authority(
    ends: Timestamp,
    client: kube::Client,
    supervisor: &Supervisor,
    clock: Arc<dyn Clock>,
) -> impl Future<Output = ()> + use<> {
    let recorder = Recorder::new(client, "decapod-server", "", supervisor, clock.clone());
    let about = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("ConfigMap".to_owned()),
        namespace: Some("kube-system".to_owned()),
        name: Some("kube-root-ca.crt".to_owned()),
        ..Default::default()
    };
    async move {
        loop {
            if let Some(warning) = warning(ends, clock.now()) {
                tracing::warn!("{warning}");
                recorder.record(about.clone(), Severity::Warning, "AuthorityEnds", warning);
            }
            clock.sleep(LOOK * 4).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use decapod_client::clock::ManualClock;

    use super::*;
    use crate::cluster::settings::Which;

    fn certificate(file: &std::path::Path) -> String {
        use base64::Engine;
        let config = kubeconfig::read(file).unwrap().unwrap();
        let encoded = config["users"][0]["user"]["client-certificate-data"].as_str().unwrap();
        String::from_utf8(base64::engine::general_purpose::STANDARD.decode(encoded).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn the_administrators_certificate_never_ends() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::default());
        let pki = Arc::new(Pki::open(&dir.path().join("pki"), clock.now()).unwrap());
        let which = Which { name: "x".to_owned(), data_dir: dir.path().to_owned() };
        let place = which.place().unwrap();
        let file = place.kubeconfig();
        let admin = Admin { place, url: "https://127.0.0.1:1".to_owned(), pki };
        let first = admin.write(clock.now()).unwrap();
        let keeping = tokio::spawn(admin.keep(first, clock.clone()));
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..2 * 365 {
            clock.sleepers(1).await;
            let pem = certificate(&file);
            let ends = decapod_apiserver::pki::expiry(&pem).unwrap();
            assert!(ends > clock.now());
            seen.insert(pem);
            clock.advance(Duration::from_secs(24 * 60 * 60));
        }
        assert!(seen.len() > 2, "{}", seen.len());
        keeping.abort();
    }

    #[test]
    fn the_end_of_the_authority_is_announced() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let day = SignedDuration::from_hours(24);
        assert_eq!(warning(now + day * 181, now), None);
        let soon = warning(now + day * 30, now).unwrap();
        assert!(soon.contains("in 30 days"), "{soon}");
        assert!(warning(now - day, now).unwrap().contains("ended"));
    }
}
