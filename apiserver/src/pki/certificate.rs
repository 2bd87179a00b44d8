//! Certificates, put together and signed by the authority.

use std::net::IpAddr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rand::Rng;
use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData,
    SigningKey,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Error, der, usage};

/// The certificate authority: its name and key.
pub(super) struct Authority {
    name: Vec<u8>,
    key_id: Option<Vec<u8>>,
    not_after: Timestamp,
    key: KeyPair,
    /// We made it: nobody else signed it, or named it.
    own: bool,
}

/// What a certificate is to say. Names and keys are written in DER already.
pub(super) struct Draft<'a> {
    pub(super) subject: &'a [u8],
    pub(super) public_key: &'a [u8],
    /// The content of the extension, if there are such names.
    pub(super) alternative_names: Option<&'a [u8]>,
    pub(super) usages: &'a [String],
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
}

impl Authority {
    /// The authority of a certificate in PEM, whose key this is.
    pub(super) fn new(certificate_pem: &str, key: KeyPair) -> Result<Self, Error> {
        let bytes = CertificateDer::from_pem_slice(certificate_pem.as_bytes())?;
        let (_, certificate) = X509Certificate::from_der(&bytes).map_err(|_| Error::Authority)?;
        if certificate.public_key().raw != key.subject_public_key_info() {
            return Err(Error::OtherKey);
        }
        let key_id =
            certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            });
        let not_after = certificate.validity().not_after.timestamp();
        let mut names = certificate.subject().iter_common_name();
        let named = names.any(|name| name.as_str().is_ok_and(|name| name == super::issue::AUTHORITY));
        let own = named && certificate.issuer().as_raw() == certificate.subject().as_raw();
        Ok(Self {
            own,
            name: certificate.subject().as_raw().to_vec(),
            key_id,
            not_after: Timestamp::from_second(not_after).map_err(|_| Error::Authority)?,
            key,
        })
    }

    /// Its certificate anew, from `now` on and with the same key, where it is ours and has less than `left` to go.
    pub(super) fn renewed(&self, now: Timestamp, left: SignedDuration) -> Result<Option<String>, Error> {
        if !self.own || self.not_after.duration_since(now) >= left {
            return Ok(None);
        }
        super::issue::authority(&self.key, now).map(Some)
    }

    /// Its key, when its certificate is not needed any more.
    pub(super) fn into_key(self) -> KeyPair {
        self.key
    }

    /// When its time is over.
    pub(super) fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Signs a certificate (PEM). It ends when the authority does, at the latest.
    pub(super) fn sign(&self, draft: &Draft<'_>) -> Result<String, Error> {
        let algorithm = algorithm(&self.key)?;
        let not_after = draft.not_after.min(self.not_after);
        if draft.not_before >= not_after {
            return Err(Error::Expired);
        }
        let validity = der::sequence(&[&der::time(draft.not_before), &der::time(not_after)]);
        let extensions = self.extensions(draft);
        let body = der::sequence(&[
            &der::tlv(VERSION, &der::tlv(der::INTEGER, &[2])),
            &serial(),
            &algorithm,
            &self.name,
            &validity,
            draft.subject,
            draft.public_key,
            &der::tlv(EXTENSIONS, &der::tlv(der::SEQUENCE, &extensions)),
        ]);
        let signature = self.key.sign(&body)?;
        Ok(pem(&der::sequence(&[&body, &algorithm, &der::bits(&signature)])))
    }

    fn extensions(&self, draft: &Draft<'_>) -> Vec<u8> {
        const EMPTY_NAME: &[u8] = &[der::SEQUENCE, 0];
        let mut all = Vec::new();
        let bits = usage::key_bits(draft.usages);
        if !bits.is_empty() {
            all.extend(extension(&[2, 5, 29, 15], true, &der::named_bits(&bits)));
        }
        let purposes: Vec<u8> = usage::purposes(draft.usages).into_iter().flat_map(der::oid).collect();
        if !purposes.is_empty() {
            all.extend(extension(&[2, 5, 29, 37], false, &der::tlv(der::SEQUENCE, &purposes)));
        }
        // No authority: that is the default, and so is not written.
        all.extend(extension(&[2, 5, 29, 19], true, &der::tlv(der::SEQUENCE, &[])));
        if let Some(id) = &self.key_id {
            all.extend(extension(&[2, 5, 29, 35], false, &der::sequence(&[&der::tlv(KEY_ID, id)])));
        }
        if let Some(names) = draft.alternative_names {
            // With no other name this one counts, so it must be understood.
            all.extend(extension(&[2, 5, 29, 17], draft.subject == EMPTY_NAME, names));
        }
        all
    }
}

const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const KEY_ID: u8 = 0x80;
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;

fn extension(id: &[u64], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { der::tlv(der::BOOLEAN, &[0xff]) } else { Vec::new() };
    der::sequence(&[&der::oid(id), &critical, &der::tlv(der::OCTET_STRING, value)])
}

/// 127 random bits: unique, and not to be guessed.
fn serial() -> Vec<u8> {
    let mut bytes: [u8; 16] = rand::rng().random();
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    der::tlv(der::INTEGER, &bytes)
}

fn algorithm(key: &KeyPair) -> Result<Vec<u8>, Error> {
    let used = key.algorithm();
    let plain = |arcs: &[u64]| der::sequence(&[&der::oid(arcs)]);
    if used == &PKCS_ECDSA_P256_SHA256 {
        Ok(plain(&[1, 2, 840, 10045, 4, 3, 2]))
    } else if used == &PKCS_ECDSA_P384_SHA384 {
        Ok(plain(&[1, 2, 840, 10045, 4, 3, 3]))
    } else if used == &PKCS_ED25519 {
        Ok(plain(&[1, 3, 101, 112]))
    } else if used == &PKCS_RSA_SHA256 {
        const NULL: &[u8] = &[5, 0];
        Ok(der::sequence(&[&der::oid(&[1, 2, 840, 113549, 1, 1, 11]), NULL]))
    } else {
        Err(Error::Authority)
    }
}

/// The alternative names of hosts and addresses; `None` if there are none.
pub(super) fn alternative_names(hosts: &[String]) -> Option<Vec<u8>> {
    let name = |host: &String| match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => der::tlv(IP_ADDRESS, &ip.octets()),
        Ok(IpAddr::V6(ip)) => der::tlv(IP_ADDRESS, &ip.octets()),
        Err(_) => der::tlv(DNS_NAME, host.as_bytes()),
    };
    let names: Vec<u8> = hosts.iter().flat_map(name).collect();
    (!names.is_empty()).then(|| der::tlv(der::SEQUENCE, &names))
}

/// A moment by so much later or earlier; the ends of time are not passed.
pub(super) fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// See [`later`].
pub(super) fn earlier(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_sub(by).unwrap_or(Timestamp::MIN)
}

/// When a certificate is to be replaced: once three quarters of its time are over.
pub(super) fn renewal(issued: Timestamp, not_after: Timestamp) -> Timestamp {
    let seconds = not_after.as_second().saturating_sub(issued.as_second());
    Timestamp::from_second(issued.as_second().saturating_add(seconds / 4 * 3)).unwrap_or(Timestamp::MAX)
}

/// A certificate in PEM.
pub(super) fn pem(bytes: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|&b| char::from(b)));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}
