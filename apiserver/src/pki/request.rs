//! Certificate signing requests (PKCS #10) as clients send them.

use std::net::IpAddr;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// What a block of PEM begins with, before its type.
const BEGIN: &[u8] = b"-----BEGIN ";

/// Why a certificate signing request is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It is no PEM block of the right type.
    #[error("PEM block type must be CERTIFICATE REQUEST")]
    Pem,
    /// The block holds something else.
    #[error("x509: malformed certificate request")]
    Malformed,
    /// Whoever made it does not hold the key.
    #[error("x509: the signature of the certificate request does not verify")]
    Signature,
}

/// A certificate signing request and the key that it was made with, both PEM.
#[derive(Clone)]
pub struct Application {
    /// The request, for whoever signs.
    pub request_pem: String,
    /// The private key (PKCS #8): a secret.
    pub key_pem: String,
}

impl std::fmt::Debug for Application {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Application").finish_non_exhaustive()
    }
}

impl Application {
    /// Asks for a certificate for this common name, member of this organization, with these alternative
    /// names (host names and addresses), with a new key.
    ///
    /// # Errors
    /// If a name cannot be put in a certificate.
    pub fn new(common_name: &str, organization: &str, hosts: &[String]) -> Result<Self, super::Error> {
        let mut params = CertificateParams::new(hosts.to_vec())?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate()?;
        Ok(Self { request_pem: params.serialize_request(&key)?.pem()?, key_pem: key.serialize_pem() })
    }
}

/// What a certificate signing request asks for. Its signature was verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SigningRequest {
    /// The common name: the user name of a client.
    pub common_name: String,
    /// The organizations: the groups of a client.
    pub organizations: Vec<String>,
    /// The DNS names of a server.
    pub dns_names: Vec<String>,
    /// The addresses of a server.
    pub ip_addresses: Vec<IpAddr>,
    /// The email addresses.
    pub emails: Vec<String>,
    /// The URIs.
    pub uris: Vec<String>,
    pub(super) subject: Vec<u8>,
    pub(super) public_key: Vec<u8>,
    pub(super) alternative_names: Option<Vec<u8>>,
}

impl SigningRequest {
    /// Reads a request in PEM and verifies that its maker holds the key.
    ///
    /// # Errors
    /// If it is no request, or its signature is of another key.
    pub fn parse(pem: &[u8]) -> Result<Self, RequestError> {
        // The first block counts, whatever follows it.
        let first = pem.windows(BEGIN.len()).position(|window| window == BEGIN).ok_or(RequestError::Pem)?;
        if !pem[first + BEGIN.len()..].starts_with(b"CERTIFICATE REQUEST-----") {
            return Err(RequestError::Pem);
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem).map_err(|_| RequestError::Pem)?;
        let (rest, request) =
            X509CertificationRequest::from_der(&der).map_err(|_| RequestError::Malformed)?;
        if !rest.is_empty() {
            return Err(RequestError::Malformed);
        }
        request.verify_signature().map_err(|_| RequestError::Signature)?;
        let info = &request.certification_request_info;
        let mut parsed = Self {
            common_name: texts(&info.subject, Part::CommonName)?.pop().unwrap_or_default(),
            organizations: texts(&info.subject, Part::Organization)?,
            subject: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
            ..Self::default()
        };
        for attribute in info.iter_attributes() {
            let ParsedCriAttribute::ExtensionRequest(wanted) = attribute.parsed_attribute() else { continue };
            for extension in &wanted.extensions {
                if let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() {
                    parsed.alternative_names = Some(extension.value.to_vec());
                    names.general_names.iter().for_each(|name| parsed.add(name));
                }
            }
        }
        Ok(parsed)
    }

    fn add(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(name) => self.dns_names.push((*name).to_owned()),
            GeneralName::RFC822Name(name) => self.emails.push((*name).to_owned()),
            GeneralName::URI(name) => self.uris.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                let address = four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
                self.ip_addresses.extend(address);
            }
            _ => {}
        }
    }
}

#[derive(Clone, Copy)]
enum Part {
    CommonName,
    Organization,
}

/// What cannot be read is refused: it would be signed as it is, and others may read it.
fn texts(name: &X509Name<'_>, part: Part) -> Result<Vec<String>, RequestError> {
    let text = |value: &AttributeTypeAndValue<'_>| {
        value.as_str().map(str::to_owned).map_err(|_| RequestError::Malformed)
    };
    match part {
        Part::CommonName => name.iter_common_name().map(text).collect(),
        Part::Organization => name.iter_organization().map(text).collect(),
    }
}
