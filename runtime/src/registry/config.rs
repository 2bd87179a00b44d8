//! `registries.yaml`, in the form of k3s: mirrors of registries, and how to reach hosts.
//!
//! It is read at each pull, so that a change needs no restart; a file that cannot be understood fails the pull rather
//! than being half obeyed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde::Deserialize;

use super::auth::Credentials;

/// Why the file about registries, or a file that it names, cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// It cannot be read.
    #[error("{path} cannot be read")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no YAML of the known form.
    #[error("{path} is not a file about registries: {why}")]
    Form {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        why: String,
    },
    /// It holds no certificate or key.
    #[error("{path} is no {kind} in PEM: {why}")]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What it should be.
        kind: &'static str,
        /// Why not.
        why: String,
    },
    /// What it says about TLS does not fit together.
    #[error("the TLS settings of registry {host} cannot be used")]
    Tls {
        /// The host.
        host: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// The content of the file; empty where there is none.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Registries {
    /// By the registry's name in images; `*` for all others.
    mirrors: BTreeMap<String, Mirror>,
    /// By host and port.
    configs: BTreeMap<String, Host>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Mirror {
    /// URLs, asked in order before the registry itself.
    endpoint: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Host {
    auth: Option<Credentials>,
    tls: Option<Tls>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Tls {
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    insecure_skip_verify: bool,
}

/// Docker Hub's name in images is not the host that serves them.
const DOCKER: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// Where to ask for an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// `https` or `http`.
    pub(super) scheme: &'static str,
    /// Host and port.
    pub(super) authority: String,
    /// Before `/v2`: empty, or a path.
    pub(super) prefix: String,
    /// The registry itself, not a mirror.
    pub(super) own: bool,
}

impl Registries {
    /// Reads the file, if there is one.
    pub(crate) fn read(path: Option<&Path>) -> Result<Self, Error> {
        let Some(path) = path else { return Ok(Self::default()) };
        match fs::read_to_string(path) {
            Ok(text) if text.trim().is_empty() => Ok(Self::default()),
            Ok(text) => serde_saphyr::from_str(&text)
                .map_err(|error| Error::Form { path: path.to_owned(), why: error.to_string() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(Error::Read { path: path.to_owned(), source }),
        }
    }

    /// Where to ask for images of a registry: its mirrors, then itself. `insecure` lets certificates be wrong, and
    /// plain HTTP be spoken.
    pub(super) fn places(&self, registry: &str, insecure: bool) -> Vec<Place> {
        let mirrors = self.mirrors.get(registry).or_else(|| self.mirrors.get("*"));
        let mut places: Vec<Place> = Vec::new();
        for endpoint in mirrors.into_iter().flat_map(|mirror| &mirror.endpoint) {
            let (scheme, rest) = match endpoint.split_once("://") {
                Some(("http", rest)) => ("http", rest),
                Some((_, rest)) => ("https", rest),
                None => ("https", endpoint.as_str()),
            };
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let path = path.trim_end_matches('/').trim_end_matches("v2").trim_end_matches('/');
            places.push(Place {
                scheme,
                authority: authority.to_owned(),
                prefix: if path.is_empty() { String::new() } else { format!("/{path}") },
                own: authority == registry,
            });
        }
        let authority = if registry == DOCKER.0 { DOCKER.1 } else { registry };
        let own =
            |scheme| Place { scheme, authority: authority.to_owned(), prefix: String::new(), own: true };
        places.push(own("https"));
        if insecure || is_loopback(registry) {
            places.push(own("http"));
        }
        places
    }

    /// The credentials that the file has for a host.
    pub(super) fn credentials(&self, registry: &str, authority: &str) -> Option<Credentials> {
        let host = self.configs.get(authority).or_else(|| self.configs.get(registry));
        host.and_then(|host| host.auth.clone())
    }

    /// How to speak TLS with a host.
    pub(super) fn tls(&self, authority: &str, insecure: bool) -> Result<ClientConfig, Error> {
        let none = Tls::default();
        let host = self
            .configs
            .get(authority)
            .or_else(|| (authority == DOCKER.1).then(|| self.configs.get(DOCKER.0)).flatten());
        let settings = host.and_then(|host| host.tls.as_ref()).unwrap_or(&none);
        let wrong = |source| Error::Tls { host: authority.to_owned(), source };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(wrong)?;
        let roots = roots(settings.ca_file.as_deref())?;
        let builder = if insecure || settings.insecure_skip_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        } else if roots.is_empty() {
            // Then nobody is trusted, and the error says whom.
            builder.with_root_certificates(roots)
        } else {
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
            let verifier = verifier.map_err(|error| wrong(rustls::Error::General(error.to_string())))?;
            builder.with_webpki_verifier(verifier)
        };
        match (&settings.cert_file, &settings.key_file) {
            (Some(certificate), Some(key)) => {
                let bad = |path: &Path, kind, why: rustls_pki_types::pem::Error| Error::Pem {
                    path: path.to_owned(),
                    kind,
                    why: why.to_string(),
                };
                let chain = certificates(certificate)?;
                let key = PrivateKeyDer::from_pem_file(key).map_err(|e| bad(key, "private key", e))?;
                builder.with_client_auth_cert(chain, key).map_err(wrong)
            }
            _ => Ok(builder.with_no_client_auth()),
        }
    }
}

/// The system's authorities and one's own.
fn roots(own: Option<&Path>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "a root certificate of the system cannot be read");
    }
    roots.add_parsable_certificates(found.certs);
    for certificate in own.map(certificates).transpose()?.into_iter().flatten() {
        roots.add(certificate).map_err(|why| Error::Pem {
            path: own.unwrap_or(Path::new("")).to_owned(),
            kind: "certificate",
            why: why.to_string(),
        })?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bad = |why: rustls_pki_types::pem::Error| Error::Pem {
        path: path.to_owned(),
        kind: "certificate",
        why: why.to_string(),
    };
    CertificateDer::pem_file_iter(path).map_err(bad)?.collect::<Result<_, _>>().map_err(bad)
}

/// True for a host and port of this machine itself.
pub(super) fn is_loopback(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Takes whatever certificate a server shows: where the user asked for it. Signatures are checked all the same.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(registries: &Registries, registry: &str, insecure: bool) -> Vec<String> {
        let places = registries.places(registry, insecure);
        places.iter().map(|p| format!("{}://{}{}", p.scheme, p.authority, p.prefix)).collect()
    }

    #[test]
    fn plain_http_is_for_this_machine_and_where_it_is_named() {
        let none = Registries::default();
        assert_eq!(urls(&none, "docker.io", false), ["https://registry-1.docker.io"]);
        assert_eq!(urls(&none, "r.example:5000", false), ["https://r.example:5000"]);
        let both = ["https://localhost:5000", "http://localhost:5000"];
        assert_eq!(urls(&none, "localhost:5000", false), both);
        assert_eq!(urls(&none, "r.example", true), ["https://r.example", "http://r.example"]);
        assert!(is_loopback("[::1]:5000") && is_loopback("127.8.0.1") && !is_loopback("10.0.0.1:80"));
    }

    #[test]
    fn mirrors_come_first() {
        let registries: Registries = serde_saphyr::from_str(
            "mirrors:\n  docker.io:\n    endpoint: [\"http://mirror:5000/cache/\"]\n  \"*\":\n    endpoint: [\"https://all\"]\n",
        )
        .unwrap();
        let expected = ["http://mirror:5000/cache", "https://registry-1.docker.io"];
        assert_eq!(urls(&registries, "docker.io", false), expected);
        assert_eq!(urls(&registries, "registry.example", false), ["https://all", "https://registry.example"]);
        assert!(!registries.places("docker.io", false)[0].own);
    }

    #[test]
    fn unknown_fields_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.yaml");
        fs::write(&path, "mirors: {}\n").unwrap();
        let error = Registries::read(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("mirors") && error.contains("registries.yaml"), "{error}");
    }
}
