//! Making certificates: the authority's own, and those that it signs.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};

use super::certificate::{Authority, Draft};
use super::{Error, SigningRequest, certificate, der};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// An authority lives as long as kubeadm's: replacing it touches every client.
const AUTHORITY_LIFETIME: Duration = DAY.saturating_mul(3650);
/// Certificates are dated back by this much, for clients whose clock runs behind.
const BACKDATED: Duration = DAY;

/// Whom a certificate is for, and for what it may be used.
#[derive(Clone, Debug, Default)]
pub struct CertificateRequest {
    /// The common name: the user name of a client, the host of a server.
    pub common_name: String,
    /// The organizations: the groups of a client.
    pub organizations: Vec<String>,
    /// Host names and IP addresses that a server answers for.
    pub hosts: Vec<String>,
    /// May be used by a TLS server.
    pub server: bool,
    /// May be used by a TLS client.
    pub client: bool,
    /// How long it is valid from now; zero takes one year.
    pub lifetime: Duration,
}

impl CertificateRequest {
    /// A certificate by which `user`, member of `groups`, authenticates.
    pub fn client(user: impl Into<String>, groups: &[&str]) -> Self {
        Self {
            common_name: user.into(),
            organizations: groups.iter().map(|&g| g.to_owned()).collect(),
            client: true,
            ..Self::default()
        }
    }

    /// A certificate with which a server answers for `hosts` (names or IP addresses).
    pub fn server(common_name: impl Into<String>, hosts: Vec<String>) -> Self {
        Self { common_name: common_name.into(), hosts, server: true, ..Self::default() }
    }
}

/// A certificate with its private key, both as PEM.
#[derive(Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate_pem: String,
    /// The private key (PKCS #8): a secret.
    pub key_pem: String,
    /// When the certificate ends: with its authority, at the latest.
    pub not_after: Timestamp,
    /// When the next one is to be issued: a quarter of the time is left then.
    pub renew_at: Timestamp,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// What an authority of ours is called.
pub(super) const AUTHORITY: &str = "decapod";

pub(super) fn authority(key: &KeyPair, now: Timestamp) -> Result<String, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(AUTHORITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    validity(&mut params, now, AUTHORITY_LIFETIME);
    Ok(params.self_signed(key)?.pem())
}

pub(super) fn leaf(
    authority: &Authority,
    request: &CertificateRequest,
    now: Timestamp,
) -> Result<Pair, Error> {
    let lifetime = if request.lifetime.is_zero() { DAY * 365 } else { request.lifetime };
    let mut usages = vec!["digital signature".to_owned()];
    usages.extend(request.server.then(|| "server auth".to_owned()));
    usages.extend(request.client.then(|| "client auth".to_owned()));
    if let Some(bad) = request.hosts.iter().find(|host| !host.is_ascii()) {
        return Err(Error::Host(bad.clone()));
    }
    let key = KeyPair::generate()?;
    let names = certificate::alternative_names(&request.hosts);
    let not_after = certificate::later(now, lifetime).min(authority.not_after());
    if not_after <= now {
        return Err(Error::Expired);
    }
    let certificate_pem = authority.sign(&Draft {
        subject: &der::name(&request.common_name, &request.organizations),
        public_key: &key.subject_public_key_info(),
        alternative_names: names.as_deref(),
        usages: &usages,
        not_before: certificate::earlier(now, BACKDATED),
        not_after,
    })?;
    let renew_at = certificate::renewal(now, not_after);
    Ok(Pair { certificate_pem, key_pem: key.serialize_pem(), not_after, renew_at })
}

/// Certificates of requests are dated back by this much: Kubernetes' choice.
const REQUEST_BACKDATED: Duration = Duration::from_secs(5 * 60);
/// For shorter lifetimes than this the dating back would be felt, so they are not shortened by it.
const SHORT: Duration = Duration::from_secs(8 * 60 * 60);

/// Signs what a client asked for: its subject, its key and its alternative names as they are.
pub(super) fn requested(
    authority: &Authority,
    request: &SigningRequest,
    usages: &[String],
    lifetime: Duration,
    now: Timestamp,
) -> Result<String, Error> {
    let end = certificate::later(now, lifetime);
    let not_after = if lifetime < SHORT { end } else { certificate::earlier(end, REQUEST_BACKDATED) };
    authority.sign(&Draft {
        subject: &request.subject,
        public_key: &request.public_key,
        alternative_names: request.alternative_names.as_deref(),
        usages,
        not_before: certificate::earlier(now, REQUEST_BACKDATED),
        not_after,
    })
}

/// rcgen's own names, for the authority itself.
fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn validity(params: &mut CertificateParams, now: Timestamp, lifetime: Duration) {
    let date = now.to_zoned(TimeZone::UTC);
    let (year, month, day) = (i32::from(date.year()), date.month() as u8, date.day() as u8);
    // The `time` crate is rcgen's affair: its day is built here from jiff's, and seconds added.
    let midnight = rcgen::date_time_ymd(year, month, day);
    let since_midnight = Duration::from_secs(now.as_second().rem_euclid(DAY.as_secs() as i64) as u64);
    params.not_before = midnight - BACKDATED;
    params.not_after = midnight + since_midnight + lifetime;
}
