//! A server on a loopback port with a store in a temporary folder, and clients of it.

use std::sync::Arc;

use decapod_apiserver::pki::{CertificateRequest, MASTERS, Pki};
use decapod_apiserver::{Clock, Handle, Options, Server, SystemClock, UserInfo};
use decapod_storage::{Embedded, Store, embedded};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

pub(crate) struct Cluster {
    pub(crate) handle: Handle,
    pub(crate) pki: Arc<Pki>,
    store: Arc<Embedded>,
    dir: tempfile::TempDir,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_, _| {}).await
    }

    /// With options that differ from the usual; the folder is the cluster's.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Options, &std::path::Path)) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), change).await
    }

    async fn start_in(dir: tempfile::TempDir, change: impl FnOnce(&mut Options, &std::path::Path)) -> Self {
        let now = SystemClock.now();
        let pki = Arc::new(Pki::open(&dir.path().join("pki"), now).unwrap());
        let tokens = dir.path().join("tokens");
        std::fs::write(&tokens, "secret-token,jane,7,\"dev\"\n").unwrap();
        let store = Arc::new(open(&dir.path().join("store")).await);
        let mut options = Options {
            listen: ([127, 0, 0, 1], 0).into(),
            token_file: Some(tokens),
            proxy_to_loopback: true,
            ..Options::default()
        };
        change(&mut options, dir.path());
        let handle = Server::start(options, store.clone(), pki.clone(), Arc::new(SystemClock)).await.unwrap();
        Self { handle, pki, store, dir }
    }

    /// Another server on the same store, with the same keys.
    pub(crate) async fn another(&self, change: impl FnOnce(&mut Options)) -> Handle {
        let mut options = Options { listen: ([127, 0, 0, 1], 0).into(), ..Options::default() };
        change(&mut options);
        Server::start(options, self.store.clone(), self.pki.clone(), Arc::new(SystemClock)).await.unwrap()
    }

    /// Stops the server and starts another one on the same folder.
    pub(crate) async fn restart(self) -> Self {
        self.handle.shutdown().await;
        drop((self.handle, self.store));
        Self::start_in(self.dir, |_, _| {}).await
    }

    /// Forgets the history of the store.
    pub(crate) async fn compact(&self) {
        let newest = self.store.revision().await.unwrap();
        self.store.compact(newest).await.unwrap();
    }

    /// Writes an object past the API: what an older server may have let in.
    pub(crate) async fn smuggle(&self, key: &str, object: &Value) {
        self.store.create(key, object.to_string().into()).await.unwrap();
    }

    pub(crate) fn admin(&self) -> Client {
        self.as_user("system:admin", &[MASTERS])
    }

    pub(crate) fn as_user(&self, name: &str, groups: &[&str]) -> Client {
        let service = self.handle.service_as(UserInfo::new(name, groups));
        Client(kube::Client::new(service, "default"))
    }

    /// A connection of which a test writes every byte itself.
    pub(crate) async fn connect(&self) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pki.ca_pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.unwrap().with_root_certificates(roots).with_no_client_auth();
        let socket = tokio::net::TcpStream::connect(self.handle.address()).await.unwrap();
        let name = "localhost".try_into().unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap()
    }

    /// A client over TLS with the given credentials.
    pub(crate) fn over_tls(&self, certificate: Option<CertificateRequest>, token: Option<&str>) -> Client {
        let mut config = kube::Config::new(format!("https://{}", self.handle.address()).parse().unwrap());
        let root = CertificateDer::from_pem_slice(self.pki.ca_pem().as_bytes()).unwrap();
        config.root_cert = Some(vec![root.to_vec()]);
        if let Some(request) = certificate {
            use base64::Engine;
            let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
            let pair = self.pki.issue(&request, SystemClock.now()).unwrap();
            config.auth_info.client_certificate_data = Some(encode(&pair.certificate_pem));
            config.auth_info.client_key_data = Some(encode(&pair.key_pem).into());
        }
        config.auth_info.token = token.map(|token| token.to_owned().into());
        Client(kube::Client::try_from(config).unwrap())
    }
}

/// Opens the store; after a restart the clients of the server before may need a moment to let go.
async fn open(path: &std::path::Path) -> Embedded {
    let mut last = None;
    for _ in 0..6000 {
        match Embedded::open(path, embedded::Options::default()) {
            Ok(store) => return store,
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("cannot open the store: {last:?}");
}

#[derive(Clone)]
pub(crate) struct Client(pub(crate) kube::Client);

/// A status code and a JSON body.
pub(crate) type Answer = (u16, Value);

impl Client {
    pub(crate) async fn send(&self, request: Request<Vec<u8>>) -> (StatusCode, http::HeaderMap, Vec<u8>) {
        let response = self.0.send(request.map(Body::from)).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes().to_vec();
        (parts.status, parts.headers, bytes)
    }

    async fn ask(&self, method: Method, path: &str, content_type: &str, body: Option<&Value>) -> Answer {
        let mut request = Request::builder().method(method).uri(path).header("accept", "application/json");
        if body.is_some() {
            request = request.header("content-type", content_type);
        }
        let body = body.map(|b| b.to_string().into_bytes()).unwrap_or_default();
        let (status, _, bytes) = self.send(request.body(body).unwrap()).await;
        let value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into());
        (status.as_u16(), value)
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, "", None).await
    }

    pub(crate) async fn create(&self, path: &str, body: Value) -> Answer {
        self.ask(Method::POST, path, "application/json", Some(&body)).await
    }

    pub(crate) async fn update(&self, path: &str, body: Value) -> Answer {
        self.ask(Method::PUT, path, "application/json", Some(&body)).await
    }

    pub(crate) async fn patch(&self, path: &str, kind: &str, body: Value) -> Answer {
        self.ask(Method::PATCH, path, &format!("application/{kind}+json"), Some(&body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.ask(Method::DELETE, path, "", None).await
    }

    /// Creates what must succeed.
    pub(crate) async fn created(&self, path: &str, body: Value) -> Value {
        let (code, value) = self.create(path, body).await;
        assert_eq!(code, 201, "{value}");
        value
    }

    /// A namespace with its default service account, as the controllers would make it.
    pub(crate) async fn namespace(&self, name: &str) {
        self.created("/api/v1/namespaces", json!({"metadata": {"name": name}})).await;
        self.service_account(name).await;
    }

    pub(crate) async fn service_account(&self, namespace: &str) {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        self.created(&path, json!({"metadata": {"name": "default"}})).await;
    }
}

pub(crate) fn message(answer: &Answer) -> &str {
    answer.1["message"].as_str().unwrap_or_default()
}

pub(crate) fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "busybox"}]}})
}
