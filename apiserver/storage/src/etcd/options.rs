//! Where etcd is, and by which certificates we know each other.

use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{Certificate, Identity, TlsOptions};
use tonic::transport::Uri;

/// How long a start waits for etcd: as long as kube-apiserver dials it.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often history is forgotten: Kubernetes' own interval, so that clients may resume for five to ten
/// minutes.
const COMPACT_EVERY: Duration = Duration::from_secs(300);

/// How to reach etcd.
#[derive(Clone, Debug)]
pub struct Options {
    /// The members' client URLs.
    pub endpoints: Vec<String>,
    /// The certificates of `https` endpoints.
    pub tls: Tls,
    /// Who we are where etcd wants a name and a password.
    pub login: Option<Login>,
    /// How long [`super::Etcd::open`] waits for a member to answer.
    pub patience: Duration,
    /// How often history is compacted to what was the newest revision one interval before; `None`
    /// leaves it to others.
    pub compact_every: Option<Duration>,
}

/// The files of certificates, PEM.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// The authority that signed the members' certificates.
    pub ca: Option<PathBuf>,
    /// Our certificate, if the members ask for one.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// The user of etcd that we are (`etcdctl user add`). It needs to read and write all keys.
#[derive(Clone, Debug)]
pub struct Login {
    /// Its name.
    pub user: String,
    /// The file of its password; a newline at its end does not count.
    pub password_file: PathBuf,
}

impl Login {
    /// Name and password.
    pub(super) fn read(&self) -> Result<(String, String), OptionsError> {
        let bytes = read(&self.password_file)?;
        let text = String::from_utf8(bytes)
            .map_err(|_| OptionsError::Password { path: self.password_file.clone() })?;
        Ok((self.user.clone(), text.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

/// What is wrong with the options.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// No endpoint is named.
    #[error("no etcd endpoint is named")]
    NoEndpoint,
    /// An endpoint is no URL of a member.
    #[error("{endpoint:?} is no etcd endpoint: {why}")]
    Endpoint {
        /// What was named.
        endpoint: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// `https` without an authority to check it by.
    #[error("https endpoints of etcd need the file of the authority that signed their certificates")]
    NoAuthority,
    /// A certificate without its key, or a key without its certificate.
    #[error("the certificate and the key for etcd are named together or not at all")]
    Half,
    /// The file of a password is no text.
    #[error("the password in {path} is no text")]
    Password {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl Options {
    /// The usual options for these endpoints, separated by commas: `https://a:2379,https://b:2379`.
    ///
    /// # Errors
    /// If there is none, one is no URL, or one is `http` and not on this machine: whoever listens on the
    /// way would read every Secret, and write.
    pub fn new(endpoints: &str, tls: Tls) -> Result<Self, OptionsError> {
        let endpoints: Vec<String> =
            endpoints.split(',').map(str::trim).filter(|e| !e.is_empty()).map(str::to_owned).collect();
        if endpoints.is_empty() {
            return Err(OptionsError::NoEndpoint);
        }
        let mut secure = false;
        for endpoint in &endpoints {
            let wrong = |why| OptionsError::Endpoint { endpoint: endpoint.clone(), why };
            let uri: Uri = endpoint.parse().map_err(|_| wrong("not a URL"))?;
            let host = uri.host().ok_or_else(|| wrong("it names no host"))?;
            match uri.scheme_str() {
                Some("https") => secure = true,
                Some("http") if is_loopback(host) => {}
                Some("http") => return Err(wrong("http is for loopback addresses only; use https")),
                _ => return Err(wrong("it starts neither with https:// nor with http://")),
            }
            if !matches!(uri.path(), "" | "/") {
                return Err(wrong("it has a path"));
            }
        }
        if secure && tls.ca.is_none() {
            return Err(OptionsError::NoAuthority);
        }
        if tls.certificate.is_some() != tls.key.is_some() {
            return Err(OptionsError::Half);
        }
        Ok(Self { endpoints, tls, login: None, patience: PATIENCE, compact_every: Some(COMPACT_EVERY) })
    }

    /// What a secure connection is made with; none without an authority.
    pub(super) fn tls(&self) -> Result<Option<TlsOptions>, OptionsError> {
        let Some(ca) = &self.tls.ca else { return Ok(None) };
        let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca)?));
        if let (Some(certificate), Some(key)) = (&self.tls.certificate, &self.tls.key) {
            options = options.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        Ok(Some(options))
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn read(path: &Path) -> Result<Vec<u8>, OptionsError> {
    std::fs::read(path).map_err(|source| OptionsError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(endpoints: &str) -> Result<Vec<String>, String> {
        let tls = Tls { ca: Some("/ca".into()), ..Tls::default() };
        Options::new(endpoints, tls).map(|options| options.endpoints).map_err(|e| e.to_string())
    }

    #[test]
    fn endpoints_are_urls_and_plain_ones_are_local() {
        assert_eq!(
            parsed("https://a:2379, https://[fd00::1]:2379/").unwrap(),
            ["https://a:2379", "https://[fd00::1]:2379/"]
        );
        for local in ["http://127.0.0.1:2379", "http://[::1]:2379", "http://localhost:2379"] {
            assert_eq!(parsed(local).unwrap(), [local]);
        }
        for bad in [
            "",
            " , ",
            "a:2379",
            "http://10.0.0.1:2379",
            "http://example.org:1",
            "ftp://a:1",
            "https://a:1/x",
        ] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
        assert!(parsed("http://10.0.0.1:2379").unwrap_err().contains("loopback addresses only"));
    }

    #[test]
    fn certificates_are_complete() {
        assert!(matches!(Options::new("https://a:1", Tls::default()), Err(OptionsError::NoAuthority)));
        let half = Tls { ca: Some("/ca".into()), key: Some("/key".into()), certificate: None };
        assert!(matches!(Options::new("https://a:1", half), Err(OptionsError::Half)));
        let missing = Tls { ca: Some("/does/not/exist".into()), ..Tls::default() };
        let options = Options::new("https://a:1", missing).unwrap();
        assert!(matches!(options.tls(), Err(OptionsError::File { .. })));
    }
}
