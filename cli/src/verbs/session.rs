//! A connection to one cluster, and the requests that the verbs make.

use std::path::Path;

use futures::io::AsyncBufRead;
use http::{Method, Request};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;

use super::kinds::{Kind, Kinds};
use crate::failure::{Failure, chain};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
const JSON: &str = "application/json";

/// A client, the namespace that is meant, and what the cluster serves.
pub(crate) struct Session {
    pub(crate) client: kube::Client,
    pub(crate) namespace: String,
    kinds: tokio::sync::OnceCell<Kinds>,
}

impl Session {
    /// Opens the connection that a kubeconfig describes.
    pub(crate) async fn open(
        file: Option<&Path>,
        context: Option<&str>,
        namespace: Option<&str>,
    ) -> Result<Self, Failure> {
        let options = KubeConfigOptions { context: context.map(str::to_owned), ..Default::default() };
        let unreadable = |e: kube::config::KubeconfigError| {
            Failure::new(format!("the kubeconfig cannot be used: {}", chain(&e))).hint(
                "`decapod up` starts a cluster and writes one; --kubeconfig or KUBECONFIG names another",
            )
        };
        let config = match file {
            Some(file) => {
                let kubeconfig = Kubeconfig::read_from(file).map_err(unreadable)?;
                kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(unreadable)?
            }
            None => kube::Config::from_kubeconfig(&options).await.map_err(unreadable)?,
        };
        let namespace = namespace.map_or_else(|| config.default_namespace.clone(), str::to_owned);
        let client = kube::Client::try_from(config)?;
        Ok(Self { client, namespace, kinds: tokio::sync::OnceCell::new() })
    }

    /// What the cluster serves; asked for once.
    pub(crate) async fn kinds(&self) -> Result<&Kinds, Failure> {
        self.kinds.get_or_try_init(|| Kinds::discover(&self.client)).await
    }

    /// The namespace for a kind: none if it has none.
    pub(crate) fn namespace_of(&self, kind: &Kind) -> Option<&str> {
        kind.namespaced.then_some(self.namespace.as_str())
    }

    fn request(
        method: Method,
        path: &str,
        accept: &str,
        content: &str,
        body: Vec<u8>,
    ) -> Result<Request<Vec<u8>>, Failure> {
        let builder = Request::builder().method(method).uri(path).header("accept", accept);
        let builder = if body.is_empty() { builder } else { builder.header("content-type", content) };
        builder.body(body).map_err(|e| Failure::new(format!("{path} is no path: {e}")))
    }

    /// Gets an object or a list.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        Ok(self.client.request(Self::request(Method::GET, path, JSON, JSON, Vec::new())?).await?)
    }

    /// Gets an object, or nothing if it is not there.
    pub(crate) async fn find(&self, path: &str) -> Result<Option<Value>, Failure> {
        match self.client.request(Self::request(Method::GET, path, JSON, JSON, Vec::new())?).await {
            Ok(value) => Ok(Some(value)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Gets an object or a list as the table that the server prints.
    pub(crate) async fn table(&self, path: &str) -> Result<Value, Failure> {
        Ok(self.client.request(Self::request(Method::GET, path, TABLE, JSON, Vec::new())?).await?)
    }

    /// Opens a stream of lines: a watch, or logs.
    pub(crate) async fn stream(&self, path: &str, table: bool) -> Result<impl AsyncBufRead + use<>, Failure> {
        let accept = if table { TABLE } else { "*/*" };
        Ok(self.client.request_stream(Self::request(Method::GET, path, accept, JSON, Vec::new())?).await?)
    }

    /// Creates an object.
    pub(crate) async fn create(&self, path: &str, object: &Value) -> Result<Value, Failure> {
        Ok(self
            .client
            .request(Self::request(Method::POST, path, JSON, JSON, object.to_string().into_bytes())?)
            .await?)
    }

    /// Patches an object; `form` is the patch's media type.
    pub(crate) async fn patch(&self, path: &str, form: &str, patch: &Value) -> Result<Value, Failure> {
        Ok(self
            .client
            .request(Self::request(Method::PATCH, path, JSON, form, patch.to_string().into_bytes())?)
            .await?)
    }

    /// Deletes an object.
    pub(crate) async fn delete(&self, path: &str, options: &Value) -> Result<Value, Failure> {
        Ok(self
            .client
            .request(Self::request(Method::DELETE, path, JSON, JSON, options.to_string().into_bytes())?)
            .await?)
    }
}

/// A merge patch.
pub(crate) const MERGE: &str = "application/merge-patch+json";
/// A strategic merge patch.
pub(crate) const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// Adds query parameters to a path.
pub(crate) fn with_query(path: &str, pairs: &[(&str, String)]) -> String {
    let mut query = String::new();
    for (key, value) in pairs {
        query.push(if query.is_empty() { '?' } else { '&' });
        query.push_str(key);
        query.push('=');
        query.push_str(&escape(value));
    }
    format!("{path}{query}")
}

/// Escapes what is not plain in a query or a path segment.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(byte as char),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}
