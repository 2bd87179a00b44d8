//! The file that names the webhook: a kubeconfig, of which server and credentials of the current context count.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Uri};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::Deserialize;

use super::send::Target;
use crate::nodeproxy::insecure;

/// Why the webhook cannot be reached as its file says.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is no kubeconfig.
    #[error("{path} is no kubeconfig: {why}")]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It does not say where to, or not so that it can be done.
    #[error("{path}: {field}: {why}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    #[serde(default)]
    clusters: Vec<Named>,
    #[serde(default)]
    users: Vec<Named>,
    #[serde(default)]
    contexts: Vec<Named>,
    #[serde(default)]
    current_context: String,
}

/// An entry of one of the lists.
#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    cluster: Cluster,
    #[serde(default)]
    user: User,
    #[serde(default)]
    context: Context,
}

#[derive(Default, Deserialize)]
struct Context {
    #[serde(default)]
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    password: Option<String>,
}

/// Reads where to send, and as whom.
pub(super) fn read(path: &Path) -> Result<Target, Error> {
    let text = text(path)?;
    let config: Kubeconfig = serde_saphyr::from_str(&text)
        .map_err(|error| Error::Form { path: path.to_owned(), why: error.to_string() })?;
    let at = At(path);
    let (cluster, user) = config.current().ok_or_else(|| at.wrong("current-context", "names no cluster"))?;
    let uri: Uri =
        cluster.server.parse().map_err(|e| at.wrong("server", format!("{:?}: {e}", cluster.server)))?;
    let secure = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(at.wrong("server", format!("{:?}: expected https://HOST/PATH", cluster.server))),
    };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let tls = if secure {
        let name = cluster.tls_server_name.clone().unwrap_or_else(|| host.clone());
        let name = ServerName::try_from(name).map_err(|e| at.wrong("tls-server-name", e.to_string()))?;
        Some((at.tls(&cluster, &user)?, name))
    } else {
        None
    };
    Ok(Target { host, port, tls, authorization: at.authorization(&user)?, uri })
}

fn text(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

impl Kubeconfig {
    /// What the current context names, or the only cluster where there is no context.
    fn current(&self) -> Option<(Cluster, User)> {
        let named = |list: &[Named], name: &str| list.iter().position(|entry| entry.name == name);
        let Some(context) = named(&self.contexts, &self.current_context) else {
            let [only] = self.clusters.as_slice() else { return None };
            return Some((
                only.cluster.clone(),
                self.users.first().map(|u| u.user.clone()).unwrap_or_default(),
            ));
        };
        let context = &self.contexts[context].context;
        let cluster = self.clusters[named(&self.clusters, &context.cluster)?].cluster.clone();
        let user = named(&self.users, &context.user).map(|index| self.users[index].user.clone());
        Some((cluster, user.unwrap_or_default()))
    }
}

/// The file that is read, for errors, and for paths that are relative to it.
struct At<'a>(&'a Path);

impl At<'_> {
    fn wrong(&self, field: &'static str, why: impl Into<String>) -> Error {
        Error::Field { path: self.0.to_owned(), field, why: why.into() }
    }

    /// PEM that stands in the file, or in one that it names.
    fn pem(
        &self,
        field: &'static str,
        data: Option<&String>,
        file: Option<&PathBuf>,
    ) -> Result<Option<String>, Error> {
        if let Some(data) = data {
            let bytes = STANDARD.decode(data).map_err(|e| self.wrong(field, e.to_string()))?;
            return String::from_utf8(bytes).map(Some).map_err(|e| self.wrong(field, e.to_string()));
        }
        file.map(|file| text(&self.0.parent().unwrap_or(Path::new(".")).join(file))).transpose()
    }

    fn tls(&self, cluster: &Cluster, user: &User) -> Result<Arc<ClientConfig>, Error> {
        if cluster.insecure_skip_tls_verify {
            return Ok(insecure::config());
        }
        let field = "certificate-authority";
        let wrong = |error: &dyn std::error::Error| self.wrong(field, error.to_string());
        let authority = self.pem(
            field,
            cluster.certificate_authority_data.as_ref(),
            cluster.certificate_authority.as_ref(),
        )?;
        let authority = authority.ok_or_else(|| self.wrong(field, "is missing"))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
            roots.add(certificate.map_err(|e| wrong(&e))?).map_err(|e| wrong(&e))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| wrong(&e))?
            .with_root_certificates(roots);
        let field = "client-certificate";
        let certificate =
            self.pem(field, user.client_certificate_data.as_ref(), user.client_certificate.as_ref())?;
        let key = self.pem("client-key", user.client_key_data.as_ref(), user.client_key.as_ref())?;
        let (Some(certificate), Some(key)) = (certificate, key) else {
            return Ok(Arc::new(builder.with_no_client_auth()));
        };
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|e| self.wrong(field, e.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes());
        let key = key.map_err(|e| self.wrong("client-key", e.to_string()))?;
        let config = builder.with_client_auth_cert(chain, key);
        Ok(Arc::new(config.map_err(|e| self.wrong(field, e.to_string()))?))
    }

    fn authorization(&self, user: &User) -> Result<Option<HeaderValue>, Error> {
        let token = match (&user.token, &user.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(file)) => {
                Some(text(&self.0.parent().unwrap_or(Path::new(".")).join(file))?.trim().to_owned())
            }
            (None, None) => None,
        };
        let value = match (token, &user.username) {
            (Some(token), _) => format!("Bearer {token}"),
            (None, Some(name)) => {
                let password = user.password.as_deref().unwrap_or_default();
                format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
            }
            (None, None) => return Ok(None),
        };
        HeaderValue::from_str(&value).map(Some).map_err(|e| self.wrong("token", e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Target, Error> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "abc\n").unwrap();
        let file = dir.path().join("webhook.yaml");
        std::fs::write(&file, text).unwrap();
        read(&file)
    }

    #[test]
    fn the_current_context_counts() {
        let target = of("
clusters:
- {name: other, cluster: {server: 'http://other'}}
- {name: audit, cluster: {server: 'http://127.0.0.1:8080/events?x=1'}}
users:
- {name: me, user: {tokenFile: token}}
contexts:
- {name: here, context: {cluster: audit, user: me}}
current-context: here
")
        .unwrap();
        assert_eq!((target.host.as_str(), target.port), ("127.0.0.1", 8080));
        assert_eq!(target.authorization.unwrap(), "Bearer abc");
        assert!(target.tls.is_none());
        let target =
            of("clusters: [{name: a, cluster: {server: 'https://h/', insecure-skip-tls-verify: true}}]");
        assert_eq!(target.unwrap().port, 443);
    }

    #[test]
    fn what_cannot_be_reached_is_refused() {
        for (text, wanted) in [
            ("clusters: []", "current-context"),
            ("clusters: [{name: a, cluster: {server: 'ftp://x'}}]", "expected https"),
            ("clusters: [{name: a, cluster: {server: 'https://x'}}]", "certificate-authority: is missing"),
            ("clusters: {", "is no kubeconfig"),
        ] {
            let error = of(text).err().unwrap().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
