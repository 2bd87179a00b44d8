//! The way out where a machine reaches registries through a proxy only: `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` of the
//! agent's environment, as all clients read them.
//!
//! **Invariant**: this machine itself is reached directly, whatever the environment says; and a proxy sees nothing of
//! what is said to a registry, since connections through it are tunnels (`CONNECT`) for TLS. Registries without TLS are
//! reached directly.

use std::error::Error as StdError;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

type Failure = Box<dyn StdError + Send + Sync>;

/// Connects directly, or through the proxy that the environment names for the destination.
#[derive(Clone)]
pub(super) struct Proxied {
    direct: HttpConnector,
    matcher: Arc<Matcher>,
}

impl Proxied {
    /// As this process' environment says now.
    pub(super) fn from_environment(direct: HttpConnector) -> Self {
        Self { direct, matcher: Arc::new(Matcher::from_env()) }
    }

    /// The way to a destination, if it is not the direct one.
    fn tunnel(&self, to: &Uri) -> Option<Tunnel<HttpConnector>> {
        let host = to.host().unwrap_or_default().trim_matches(['[', ']']);
        let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if here || to.scheme_str() != Some("https") {
            return None;
        }
        let proxy = self.matcher.intercept(to)?;
        let tunnel = Tunnel::new(proxy.uri().clone(), self.direct.clone());
        Some(match proxy.basic_auth() {
            Some(auth) => tunnel.with_auth(auth.clone()),
            None => tunnel,
        })
    }
}

impl Service<Uri> for Proxied {
    type Response = TokioIo<TcpStream>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.direct.poll_ready(context).map_err(Failure::from)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        match self.tunnel(&to) {
            Some(mut tunnel) => Box::pin(async move {
                let way = "through the proxy of HTTPS_PROXY or ALL_PROXY (see also NO_PROXY)";
                tunnel.call(to).await.map_err(|error| Failure::from(format!("{way}: {error}")))
            }),
            None => {
                let direct = self.direct.call(to);
                Box::pin(async move { direct.await.map_err(Failure::from) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn proxied(proxy: &str) -> Proxied {
        let mut direct = HttpConnector::new();
        direct.enforce_http(false);
        let matcher = Matcher::builder().https(proxy.to_owned()).no("direct.internal,10.0.0.0/8").build();
        Proxied { direct, matcher: Arc::new(matcher) }
    }

    /// A proxy for one connection; what it was asked.
    async fn proxy(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(asked).unwrap()
        });
        (format!("http://user:word@{address}"), serving)
    }

    #[tokio::test]
    async fn registries_are_reached_through_the_proxy() {
        let (address, serving) = proxy("HTTP/1.1 200 OK\r\n\r\n").await;
        let to = Uri::from_static("https://registry.internal:5000/v2/");
        proxied(&address).call(to).await.unwrap();
        let asked = serving.await.unwrap();
        assert!(asked.starts_with("CONNECT registry.internal:5000 HTTP/1.1\r\n"), "{asked}");
        // "user:word"
        assert!(asked.to_lowercase().contains("proxy-authorization: basic dxnlcjp3b3jk"), "{asked}");
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_is_named() {
        let (address, serving) = proxy("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
        let to = Uri::from_static("https://registry.internal/v2/");
        let refused = proxied(&address).call(to).await.unwrap_err().to_string();
        assert!(refused.contains("HTTPS_PROXY") && refused.contains("proxy auth"), "{refused}");
        serving.await.unwrap();
    }

    #[test]
    fn what_is_near_is_reached_directly() {
        let proxied = proxied("http://192.0.2.1:3128");
        for direct in [
            "https://direct.internal/",
            "https://10.1.2.3/",
            "https://localhost:5000/",
            "https://127.0.0.1:5000/",
            "https://[::1]:5000/",
            "http://registry.internal/",
        ] {
            assert!(proxied.tunnel(&Uri::from_static(direct)).is_none(), "{direct}");
        }
        assert!(proxied.tunnel(&Uri::from_static("https://registry.internal/")).is_some());
    }
}
