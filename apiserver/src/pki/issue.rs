//! Making certificates: the authority's own, and those that it signs.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

use super::Error;

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
    /// When the certificate ends.
    pub not_after: Timestamp,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

pub(super) fn authority(key: &KeyPair, now: Timestamp) -> Result<String, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("decapod", &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    validity(&mut params, now, AUTHORITY_LIFETIME);
    Ok(params.self_signed(key)?.pem())
}

pub(super) fn leaf(
    issuer: &Issuer<'_, KeyPair>,
    request: &CertificateRequest,
    now: Timestamp,
) -> Result<Pair, Error> {
    let lifetime = if request.lifetime.is_zero() { DAY * 365 } else { request.lifetime };
    let mut params = CertificateParams::default();
    params.distinguished_name = name(&request.common_name, &request.organizations);
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if request.server {
        params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth);
    }
    if request.client {
        params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ClientAuth);
    }
    for host in &request.hosts {
        params.subject_alt_names.push(match host.parse() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(host.as_str().try_into()?),
        });
    }
    validity(&mut params, now, lifetime);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    let not_after =
        Timestamp::from_second(now.as_second() + lifetime.as_secs() as i64).unwrap_or(Timestamp::MAX);
    Ok(Pair { certificate_pem: certificate.pem(), key_pem: key.serialize_pem(), not_after })
}

fn name(common_name: &str, organizations: &[String]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for organization in organizations {
        name.push(DnType::OrganizationName, organization.as_str());
    }
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
