//! The cluster's keys and certificates, made at the first start and kept under `<data-dir>/pki`.
//!
//! One certificate authority signs everything (API server, kubelets, clients), and one ES256 key
//! signs service account tokens. Only the authority, its key and the token key lie on disk; the
//! server certificate is issued anew at each start and renewed while the process runs, so that no
//! restart is ever needed because of an expired certificate.
//!
//! **Invariant**: private keys are written with mode 0600 and moved into place as a whole, so a
//! crash at any point leaves either no authority or a complete one.

mod certificate;
mod der;
mod discover;
mod issue;
mod renew;
mod request;
pub mod share;
pub(crate) mod usage;

pub use discover::{DiscoveryError, discover, pin, pin_of};
pub use issue::{CertificateRequest, Pair};
pub(crate) use renew::Hands;
pub use renew::Renewing;
pub use request::{Application, RequestError, SigningRequest};

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use certificate::Authority;

/// The user that may do everything: member of [`MASTERS`].
pub const ADMIN_USER: &str = "system:admin";
/// The group whose members no authorizer refuses.
pub const MASTERS: &str = "system:masters";

const CA_CERT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const TOKEN_KEY: &str = "sa.key";

/// The certificate of our own authority is renewed at a start at which it has less than this to go: a year, of ten. Its
/// key stays, so that who trusts the one certificate believes what was signed under the other, and the hash by which
/// nodes recognize the authority stays too.
const RENEWED: SignedDuration = SignedDuration::from_hours(365 * 24);

/// Why a key or certificate could not be made, read or kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the PKI could not be read or written.
    #[error("cannot use {path}")]
    File {
        /// The file in question.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A key or certificate could not be made or parsed.
    #[error("cannot make or parse a key or certificate")]
    Certificate(#[from] rcgen::Error),
    /// The authority's certificate cannot be used.
    #[error("the certificate of the authority cannot be used")]
    Authority,
    /// The authority's key is another one than its certificate says.
    #[error("the key of the authority does not belong to its certificate")]
    OtherKey,
    /// The authority's time is over.
    #[error("the certificate of the authority has expired")]
    Expired,
    /// A host name that cannot be put in a certificate.
    #[error("{0:?} is no host name")]
    Host(String),
    /// Only one half of the authority lies on disk.
    #[error("{} exists but {} does not: restore it, or remove both to make a new authority", .present.display(), .missing.display())]
    Incomplete {
        /// What is there.
        present: PathBuf,
        /// What is not.
        missing: PathBuf,
    },
    /// rustls refused what was issued.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// A PEM file held something else than expected.
    #[error("cannot read PEM")]
    Pem(#[from] rustls_pki_types::pem::Error),
}

/// The certificate authority of the cluster and the key that signs service account tokens.
pub struct Pki {
    certificate_pem: String,
    authority: Authority,
    token_key: KeyPair,
    former_token_keys: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki").finish_non_exhaustive()
    }
}

impl Pki {
    /// Reads the PKI under `dir`, or makes it there if `dir` holds none. `now` starts the
    /// validity of a new authority, and of the next certificate of one that ends soon.
    ///
    /// # Errors
    /// If files cannot be read or written, are damaged, or only half of the authority exists.
    pub fn open(dir: &Path, now: Timestamp) -> Result<Self, Error> {
        make_folder(dir)?;
        let (cert_path, key_path) = (dir.join(CA_CERT), dir.join(CA_KEY));
        if !key_path.exists() && !cert_path.exists() {
            let key = KeyPair::generate()?;
            let certificate = issue::authority(&key, now)?;
            // The key first: without its certificate it is harmless and is refused below.
            write_private(&key_path, &key.serialize_pem())?;
            write_private(&cert_path, &certificate)?;
        }
        match (cert_path.exists(), key_path.exists()) {
            (true, false) => return Err(Error::Incomplete { present: cert_path, missing: key_path }),
            (false, true) => {
                // The first start was cut off between the two: nothing was ever signed with this key.
                let key = KeyPair::from_pem(&read(&key_path)?)?;
                write_private(&cert_path, &issue::authority(&key, now)?)?;
            }
            _ => {}
        }
        let mut certificate_pem = read(&cert_path)?;
        let mut authority = Authority::new(&certificate_pem, KeyPair::from_pem(&read(&key_path)?)?)?;
        if let Some(renewed) = authority.renewed(now, RENEWED)? {
            write_private(&cert_path, &renewed)?;
            tracing::info!(ended = %authority.not_after(), "the certificate of the cluster's authority is renewed");
            authority = Authority::new(&renewed, authority.into_key())?;
            certificate_pem = renewed;
        }
        let token_path = dir.join(TOKEN_KEY);
        if !token_path.exists() {
            write_private(&token_path, &KeyPair::generate()?.serialize_pem())?;
        }
        let token_key = KeyPair::from_pem(&read(&token_path)?)?;
        let former_token_keys = former_token_keys(dir)?;
        Ok(Self { certificate_pem, authority, token_key, former_token_keys })
    }

    /// The certificate of the authority, as PEM: what clients trust, and what
    /// `kube-root-ca.crt` holds.
    pub fn ca_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// When the authority ends, and with it every certificate: long before, a new one must be brought in.
    pub fn authority_ends(&self) -> Timestamp {
        self.authority.not_after()
    }

    /// Issues a certificate with a new key.
    ///
    /// # Errors
    /// If a name in the request cannot be put in a certificate.
    pub fn issue(&self, request: &CertificateRequest, now: Timestamp) -> Result<Pair, Error> {
        issue::leaf(&self.authority, request, now)
    }

    /// Signs what a client asked for, for some usages (in the words of `certificates.k8s.io`) and some
    /// time from now. Returns the certificate in PEM. Whether the client may have it is not looked at.
    ///
    /// # Errors
    /// If the authority has expired, or its key cannot sign.
    pub fn sign(
        &self,
        request: &SigningRequest,
        usages: &[String],
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<String, Error> {
        issue::requested(&self.authority, request, usages, lifetime, now)
    }

    /// The key that signs service account tokens (ECDSA P-256).
    pub(crate) fn token_key(&self) -> &KeyPair {
        &self.token_key
    }

    /// The public keys (uncompressed points) of tokens that were signed before the last rotation.
    pub(crate) fn former_token_keys(&self) -> impl Iterator<Item = &[u8]> {
        self.former_token_keys.iter().map(Vec::as_slice)
    }
}

/// Reads `sa-<anything>.key`: to rotate the key of tokens, `sa.key` is renamed so and the server
/// started again; once the old tokens have ended, the file can go.
fn former_token_keys(dir: &Path) -> Result<Vec<Vec<u8>>, Error> {
    let failed = |source| Error::File { path: dir.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy().into_owned();
        if is_former(&name) {
            paths.push(dir.join(name));
        }
    }
    paths.sort();
    paths.iter().map(|path| Ok(KeyPair::from_pem(&read(path)?)?.public_key_raw().to_vec())).collect()
}

/// Whether a file of the PKI is a former key of tokens.
fn is_former(name: &str) -> bool {
    name.starts_with("sa-") && name.ends_with(".key") && !name.contains('/')
}

/// Makes the folder of a PKI, for its owner alone.
fn make_folder(dir: &Path) -> Result<(), Error> {
    let failed = |source| Error::File { path: dir.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)
}

/// When the first certificate in a PEM text is to be replaced: a quarter of its time is left then. `None` if
/// there is none.
pub fn renew_at(pem: &str) -> Option<Timestamp> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    let validity = certificate.validity();
    let from = Timestamp::from_second(validity.not_before.timestamp()).ok()?;
    let until = Timestamp::from_second(validity.not_after.timestamp()).ok()?;
    Some(certificate::renewal(from, until))
}

/// When the first certificate in a PEM text ends; `None` if there is none.
pub fn expiry(pem: &str) -> Option<Timestamp> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    ends(&der)
}

/// When a certificate in DER ends.
pub(crate) fn ends(der: &[u8]) -> Option<Timestamp> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

/// Writes a file that only its owner may read: whole, synced, then renamed into place.
fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    let temporary = path.with_extension("new");
    let write = || {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|source| Error::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_survives_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let first = Pki::open(dir.path(), now).unwrap();
        let second = Pki::open(dir.path(), now).unwrap();
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert_eq!(first.token_key().public_key_raw(), second.token_key().public_key_raw());
    }

    #[test]
    fn a_client_has_all_its_groups() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let pki = Pki::open(dir.path(), now).unwrap();
        let pair = pki.issue(&CertificateRequest::client("jane", &["dev", "ops"]), now).unwrap();
        let der = CertificateDer::from_pem_slice(pair.certificate_pem.as_bytes()).unwrap();
        let user = crate::auth::UserInfo::from_certificate(&der).unwrap();
        assert_eq!(
            (user.username.as_str(), user.groups),
            ("jane", ["dev", "ops", "system:authenticated"].map(String::from).to_vec())
        );
    }

    #[test]
    fn a_request_is_signed_as_it_is() {
        use x509_parser::prelude::FromDer;
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let pki = Pki::open(dir.path(), now).unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["web.example".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "jane");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "dev");
        let key = KeyPair::generate().unwrap();
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        let request = SigningRequest::parse(pem.as_bytes()).unwrap();
        assert_eq!((request.common_name.as_str(), request.dns_names.len()), ("jane", 1));
        let usages = ["client auth", "key encipherment"].map(str::to_owned);
        let signed = pki.sign(&request, &usages, Duration::from_secs(3600), now).unwrap();
        let der = CertificateDer::from_pem_slice(signed.as_bytes()).unwrap();
        let (_, certificate) = x509_parser::prelude::X509Certificate::from_der(&der).unwrap();
        let authority = CertificateDer::from_pem_slice(pki.ca_pem().as_bytes()).unwrap();
        let (_, authority) = x509_parser::prelude::X509Certificate::from_der(&authority).unwrap();
        certificate.verify_signature(Some(authority.public_key())).unwrap();
        assert_eq!(certificate.validity().not_after.timestamp(), 1_800_003_600);
        assert!(certificate.extended_key_usage().unwrap().unwrap().value.client_auth);
        assert!(certificate.key_usage().unwrap().unwrap().value.key_encipherment());
        assert_eq!(certificate.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
        let forged = pem.replacen('M', "N", 1);
        assert!(SigningRequest::parse(forged.as_bytes()).is_err());
        assert_eq!(SigningRequest::parse(b"x"), Err(RequestError::Pem));
    }

    #[test]
    fn half_an_authority_is_refused_and_a_lone_key_is_completed() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        Pki::open(dir.path(), now).unwrap();
        fs::remove_file(dir.path().join(CA_CERT)).unwrap();
        assert!(Pki::open(dir.path(), now).is_ok());
        fs::remove_file(dir.path().join(CA_KEY)).unwrap();
        assert!(matches!(Pki::open(dir.path(), now), Err(Error::Incomplete { .. })));
    }

    #[test]
    fn an_authority_that_ends_soon_is_renewed_with_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let begin = Timestamp::now();
        let year = SignedDuration::from_hours(365 * 24);
        let first = Pki::open(dir.path(), begin).unwrap();
        let same = Pki::open(dir.path(), begin + year * 8).unwrap();
        assert_eq!(same.ca_pem(), first.ca_pem(), "there is time");
        let late = begin + year * 9 + year / 2;
        let leaf = first.issue(&CertificateRequest::client("a", &[]), late).unwrap();
        let renewed = Pki::open(dir.path(), late).unwrap();
        assert_ne!(renewed.ca_pem(), first.ca_pem());
        assert!(renewed.authority_ends() > late + year * 9);
        assert_eq!(pin(renewed.ca_pem()).unwrap(), pin(first.ca_pem()).unwrap());
        // Whichever of the two somebody trusts, he believes what was signed under the other.
        let after = renewed.issue(&CertificateRequest::client("b", &[]), late).unwrap();
        for (authority, leaf) in [(&renewed, &leaf), (&first, &after)] {
            let (authority, leaf) = (der_of(authority.ca_pem()), der_of(&leaf.certificate_pem));
            let (_, authority) = x509_parser::parse_x509_certificate(&authority).unwrap();
            let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
            assert_eq!(leaf.issuer().as_raw(), authority.subject().as_raw());
            leaf.verify_signature(Some(authority.public_key())).unwrap();
        }
    }

    fn der_of(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    #[test]
    fn private_keys_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        Pki::open(dir.path(), Timestamp::now()).unwrap();
        for file in [CA_KEY, TOKEN_KEY] {
            let mode = fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }
}
