//! How a node elsewhere comes in and stays: a bootstrap token buys its first certificate, with which it
//! renews that and the one of its server, for as long as it runs.
//!
//! **Invariant**: nothing secret is sent to a server that the cluster's authority has not vouched for. The
//! authority is known by its certificate, or found by the hash of its key.

mod duplicate;
mod follow;
mod further;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use decapod_apiserver::pki::{self, Application};
use decapod_client::clock::Clock;
use decapod_client::servers::{Connect, Servers};
use decapod_client::transport;
use futures::StreamExt as _;
use http::Uri;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, PostParams, WatchEvent, WatchParams};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::authority;
use super::renewal::ANNOUNCED;
use super::settings::{Place, Settings, write_whole};
use crate::failure::{Failure, chain};

pub(super) use follow::follow;
pub(super) use further::Further;

const CLIENT: (&str, &str) = ("kubernetes.io/kube-apiserver-client-kubelet", "client auth");
const SERVING: (&str, &str) = ("kubernetes.io/kubelet-serving", "server auth");
/// Where the cluster says what all its nodes must agree on.
const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
/// How often a request is looked at beside being watched, and a certificate's age.
const LOOK: Duration = Duration::from_secs(1);
const AGE: Duration = Duration::from_secs(60 * 60);
/// How long the first certificate is waited for: a person may have to approve it.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
/// A server that has just started may not have made the bindings of bootstrap tokens yet: a refusal counts after this long.
const SETTLING: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_millis(200);
/// After a failure it is tried again after this long.
const REST: Duration = Duration::from_secs(30);

/// Whether a token is one for bootstrapping, by its form.
pub(super) fn is_bootstrap(token: &str) -> bool {
    let is = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    token.split_once('.').is_some_and(|(id, secret)| is(id, 6) && is(secret, 16))
}

/// A certificate and its key, both PEM.
#[derive(Clone)]
struct Credentials {
    certificate: String,
    key: String,
}

impl Credentials {
    /// Those in a file, if they are good for a while.
    fn read(file: &Path, now: Timestamp) -> Option<Self> {
        // What cannot be read is asked for anew.
        let text = std::fs::read_to_string(file).ok()?;
        let at = text.find("-----BEGIN PRIVATE KEY-----")?;
        let (certificate, key) = text.split_at(at);
        let good = pki::expiry(certificate).is_some_and(|ends| ends > now);
        good.then(|| Self { certificate: certificate.to_owned(), key: key.to_owned() })
    }

    fn write(&self, file: &Path) -> Result<(), Failure> {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        write_whole(file, format!("{}{}", self.certificate, self.key).as_bytes(), 0o600)
    }

    fn is_due(&self, now: Timestamp) -> bool {
        pki::renew_at(&self.certificate).is_none_or(|at| at <= now)
    }

    fn certified(&self) -> Result<CertifiedKey, Failure> {
        let bad = |e: &(dyn std::error::Error + 'static)| {
            Failure::new(format!("the certificate of the node's server cannot be used: {}", chain(e)))
        };
        let certificates = CertificateDer::pem_slice_iter(self.certificate.as_bytes());
        let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(|e| bad(&e))?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|e| bad(&e))?;
        let provider = rustls::crypto::ring::default_provider();
        CertifiedKey::from_der(certificates, key, &provider).map_err(|e| bad(&e))
    }
}

/// The certificate of the node's server; until the first is there no handshake succeeds.
#[derive(Debug, Default)]
pub(super) struct Held(RwLock<Option<Arc<CertifiedKey>>>);

impl Held {
    fn put(&self, key: CertifiedKey) {
        *self.0.write().unwrap_or_else(|e| e.into_inner()) = Some(Arc::new(key));
    }
}

impl ResolvesServerCert for Held {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(|e| e.into_inner()).clone()
    }
}

/// Where the cluster's servers are, and which authority it is trusted by.
#[derive(Clone)]
pub(super) struct Cluster {
    named: Vec<Uri>,
    /// Those that the cluster named when it was last seen.
    told: Vec<Uri>,
    pub(super) authority: CertificateDer<'static>,
}

/// As whom a cluster is spoken to.
#[derive(Clone)]
enum As {
    Bearer(String),
    Owner(Credentials),
}

impl Cluster {
    /// By the file with the authority's certificate, or by the hash of its key; a node that has joined
    /// knows it already.
    pub(super) async fn find(
        servers: &[String],
        file: Option<&Path>,
        hash: Option<&str>,
        place: &Place,
    ) -> Result<Self, Failure> {
        let named = servers.iter().map(|server| server_url(server)).collect::<Result<Vec<Uri>, _>>()?;
        let told = follow::told_before(&follow::file(place))?;
        let known = place.data().join("pki/cluster-ca.crt");
        // Who has joined starts without the servers, too.
        let pem = match (file, hash) {
            (Some(file), _) => read(file)?,
            (None, Some(hash)) if pinned(&known, hash) => read(&known)?,
            (None, Some(hash)) => {
                let pem = discover(named.iter().chain(&told), hash).await?;
                std::fs::create_dir_all(place.data().join("pki"))?;
                write_whole(&known, pem.as_bytes(), 0o644)?;
                pem
            }
            (None, None) => std::fs::read_to_string(&known).map_err(|_| {
                Failure::new("the cluster's authority is not known")
                    .hint("--ca-cert-hash sha256:… or --ca-file says which it is; `decapod token create --print-join-command` prints the whole command")
            })?,
        };
        let authority = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| Failure::new(format!("the cluster's authority is no certificate: {e}")))?;
        Ok(Self { named, told, authority })
    }

    /// The hash of the authority's key.
    fn pin(&self) -> Result<String, Failure> {
        pki::pin_of(&self.authority).ok_or_else(|| Failure::new("the cluster's authority is no certificate"))
    }

    /// The servers, spoken to with a token.
    pub(super) fn with_token(&self, token: &str, clock: Arc<dyn Clock>) -> Result<Servers, Failure> {
        self.servers(As::Bearer(token.to_owned()), clock)
    }

    /// Refuses settings that are not the cluster's. What the cluster does not tell, or not to this token, joining shows.
    pub(super) async fn agrees(
        &self,
        token: &str,
        settings: &Settings,
        clock: &Arc<dyn Clock>,
    ) -> Result<(), Failure> {
        let client = self.with_token(token, clock.clone())?.client();
        let asked = http::Request::get(CLUSTER_INFO).body(Vec::new()).map_err(kube::Error::HttpError)?;
        match client.request::<serde_json::Value>(asked).await {
            Ok(info) => authority::agreed(&info, settings),
            Err(error) => {
                tracing::debug!(error = chain(&error), "the cluster does not tell what it is made of");
                Ok(())
            }
        }
    }

    fn servers(&self, who: As, clock: Arc<dyn Clock>) -> Result<Servers, Failure> {
        let servers = Servers::new(self.named.clone(), self.told.clone(), self.connect(who), clock)?;
        servers.ok_or_else(|| Failure::new("no server is named").hint("write --server https://HOST:6443"))
    }

    /// Makes clients of its servers.
    fn connect(&self, who: As) -> Connect {
        let authority = self.authority.to_vec();
        Arc::new(move |url| {
            let mut config = kube::Config::new(url.clone());
            config.root_cert = Some(vec![authority.clone()]);
            match &who {
                As::Bearer(token) => config.auth_info.token = Some(token.clone().into()),
                As::Owner(own) => {
                    config.auth_info.client_certificate_data = Some(STANDARD.encode(&own.certificate));
                    config.auth_info.client_key_data = Some(STANDARD.encode(&own.key).into());
                }
            }
            let client = transport::over_link(&config)?;
            let host = url.authority().map_or("", |authority| authority.as_str());
            Ok(transport::counted_client(client, host))
        })
    }
}

fn server_url(server: &str) -> Result<Uri, Failure> {
    let bad = |why: &str| Failure::new(format!("--server {server}: {why}")).hint("write https://HOST:6443");
    let url: Uri = server.parse().map_err(|e| bad(&format!("{e}")))?;
    // A token goes to nobody who was not recognized.
    if url.scheme_str() == Some("https") && url.host().is_some() {
        Ok(url)
    } else {
        Err(bad("expected https://"))
    }
}

/// The authority's certificate from the first server that answers. One that shows another authority ends the search:
/// somebody is not who was meant.
async fn discover(servers: impl Iterator<Item = &Uri>, hash: &str) -> Result<String, Failure> {
    let mut last = None;
    for url in servers {
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
        match pki::discover(host, url.port_u16().unwrap_or(443), hash).await {
            Ok(pem) => return Ok(pem),
            Err(error @ pki::DiscoveryError::Unreachable(..)) => last = Some(error),
            Err(error) => return Err(Failure::new(chain(&error))),
        }
    }
    let why = last.map_or_else(|| "no server is named".to_owned(), |error| chain(&error));
    Err(Failure::new(why).hint("--server names the cluster's API servers, one or several"))
}

/// Whether a file has the authority whose key has this hash, and for long: one that ends is looked for anew.
fn pinned(file: &Path, hash: &str) -> bool {
    // What cannot be read is looked for anew, too.
    let pem = std::fs::read_to_string(file).unwrap_or_default();
    let lasting = pki::expiry(&pem).is_some_and(|ends| ends > Timestamp::now() + ANNOUNCED);
    lasting && pki::pin(&pem).as_deref() == Some(hash)
}

fn read(file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file).map_err(|e| Failure::new(format!("{} cannot be read: {e}", file.display())))
}

/// Where a node's own certificate is kept.
fn certificate(place: &Place) -> PathBuf {
    place.data().join("pki/node-client.pem")
}

/// Whether a node of this place has come in already.
pub(super) fn has_joined(place: &Place) -> bool {
    certificate(place).exists()
}

/// What is wrong with a node's certificate that cannot be used.
fn lacking(file: &Path) -> String {
    // What cannot be read is as good as not there.
    let ended = std::fs::read_to_string(file).ok().and_then(|pem| pki::expiry(&pem));
    match ended {
        Some(at) => {
            format!("this node's certificate ({}) ended on {}", file.display(), at.strftime("%Y-%m-%d"))
        }
        None => "this node has no certificate".to_owned(),
    }
}

/// A node that has come in.
pub(super) struct Member {
    cluster: Cluster,
    file: PathBuf,
    node: String,
    credentials: Credentials,
    servers: Servers,
    clock: Arc<dyn Clock>,
}

impl Member {
    /// Comes in with the certificate of an earlier time, or by the token.
    pub(super) async fn join(
        cluster: Cluster,
        token: Option<&str>,
        (node, address): (&str, IpAddr),
        place: &Place,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Failure> {
        let file = certificate(place);
        let credentials = match (Credentials::read(&file, clock.now()), token) {
            (Some(credentials), _) => credentials,
            (None, None) => {
                return Err(Failure::new(format!("{}, and there is no token to get one", lacking(&file)))
                    .hint("`decapod token create` on the server makes one; --token takes it"));
            }
            (None, Some(token)) => {
                let client = cluster.with_token(token, clock.clone())?.client();
                let asked = first(&client, node, &*clock);
                let credentials = decapod_client::clock::timeout(&*clock, PATIENCE, asked).await;
                let credentials = credentials.unwrap_or_else(|| {
                    Err(Failure::new("nobody has approved this node's certificate in 10 minutes")
                        .hint("`kubectl get csr` shows it, `kubectl certificate approve` approves it"))
                })?;
                let own = cluster.servers(As::Owner(credentials.clone()), clock.clone())?;
                duplicate::refuse(&own.client(), node, address, &*clock).await?;
                credentials.write(&file)?;
                tracing::info!(node, "the node has got its certificate");
                credentials
            }
        };
        let servers = cluster.servers(As::Owner(credentials.clone()), clock.clone())?;
        Ok(Self { cluster, file, node: node.to_owned(), credentials, servers, clock })
    }

    /// The servers, spoken to as the node for as long as the certificate is renewed.
    pub(super) fn servers(&self) -> &Servers {
        &self.servers
    }

    fn client(&self) -> kube::Client {
        self.servers.client()
    }

    /// Renews the node's certificate.
    pub(super) async fn keep(mut self) {
        loop {
            if self.credentials.is_due(self.clock.now())
                && let Err(error) = self.renew().await
            {
                tracing::warn!(%error, "the node's certificate cannot be renewed yet");
            }
            self.clock.sleep(AGE).await;
        }
    }

    async fn renew(&mut self) -> Result<(), Failure> {
        let next = obtain(&self.client(), CLIENT, &self.node, &[], &*self.clock).await?;
        next.write(&self.file)?;
        self.servers.reconnect(self.cluster.connect(As::Owner(next.clone())))?;
        self.credentials = next;
        tracing::info!("the node's certificate is renewed");
        Ok(())
    }
}

/// Keeps a certificate for the node's server, once the node is registered: until then nobody vouches for its
/// addresses.
pub(super) async fn keep_serving(
    client: kube::Client,
    held: Arc<Held>,
    node: String,
    address: IpAddr,
    clock: Arc<dyn Clock>,
) {
    let hosts = [node.clone(), address.to_string()];
    let mut current: Option<Credentials> = None;
    loop {
        if current.as_ref().is_none_or(|credentials| credentials.is_due(clock.now())) {
            let next = obtain(&client, SERVING, &node, &hosts, &*clock).await;
            match next.and_then(|credentials| Ok((credentials.certified()?, credentials))) {
                Ok((key, credentials)) => {
                    held.put(key);
                    current = Some(credentials);
                    tracing::info!("the node's server has a certificate");
                }
                Err(error) => {
                    tracing::warn!(%error, "the node's server has no certificate yet");
                    clock.sleep(REST).await;
                    continue;
                }
            }
        }
        clock.sleep(AGE).await;
    }
}

/// Asks for a certificate and waits until it is there, or is refused for good.
async fn obtain(
    client: &kube::Client,
    (signer, usage): (&str, &str),
    node: &str,
    hosts: &[String],
    clock: &dyn Clock,
) -> Result<Credentials, Failure> {
    let application = Application::new(&format!("system:node:{node}"), "system:nodes", hosts)
        .map_err(|e| Failure::new(chain(&e)))?;
    let request = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("csr-".to_owned()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(application.request_pem.into_bytes()),
            signer_name: signer.to_owned(),
            usages: Some(vec!["digital signature".to_owned(), usage.to_owned()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let mut current = api.create(&PostParams::default(), &request).await?;
    let name = current.name_any();
    let watch = WatchParams::default().fields(&format!("metadata.name={name}"));
    let version = current.resource_version().unwrap_or_default();
    let mut events = match api.watch(&watch, &version).await {
        Ok(events) => events.boxed(),
        Err(error) => {
            tracing::debug!(error = chain(&error), "the request cannot be watched; it is looked at");
            futures::stream::empty().boxed()
        }
    };
    loop {
        let status = current.status.take().unwrap_or_default();
        if let Some(certificate) = status.certificate.filter(|bytes| !bytes.0.is_empty()) {
            let certificate = String::from_utf8(certificate.0)
                .map_err(|_| Failure::new(format!("the certificate of {name} is no PEM")))?;
            return Ok(Credentials { certificate, key: application.key_pem });
        }
        let refused = status.conditions.into_iter().flatten().find(|c| c.type_ != "Approved");
        if let Some(refused) = refused {
            let why = refused.message.unwrap_or_default();
            return Err(Failure::new(format!("the certificate request {name}: {}: {why}", refused.type_)));
        }
        tokio::select! {
            Some(event) = events.next() => if let Ok(WatchEvent::Added(next) | WatchEvent::Modified(next)) = event {
                current = next;
            },
            // What a watch does not tell, because it ended or the server did, is found by looking.
            () = clock.sleep(LOOK) => current = api.get(&name).await?,
        }
    }
}

/// Asks for the first certificate, by a bootstrap token.
async fn first(client: &kube::Client, node: &str, clock: &dyn Clock) -> Result<Credentials, Failure> {
    let begun = clock.monotonic();
    loop {
        let refused = match obtain(client, CLIENT, node, &[], clock).await {
            Err(failure) if failure.is("Unauthorized") => {
                return Err(Failure::new("the server does not know the token, or it has expired").hint(
                    "`decapod token create --print-join-command` on the server makes a new one, `decapod token list` shows them",
                ));
            }
            Err(failure) if failure.is("Forbidden") => failure,
            other => return other,
        };
        if clock.monotonic().saturating_sub(begun) > SETTLING {
            return Err(refused);
        }
        clock.sleep(SOON).await;
    }
}

#[cfg(test)]
mod tests;
