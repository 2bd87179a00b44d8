//! Connections through the API server to a kubelet: logs, exec, and the kubelet's own paths.

use axum::Router;
use axum::body::Body;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::extract::{Path, RawQuery};
use axum::response::Response;
use axum::routing::get;
use decapod_apiserver::pki::{CertificateRequest, Pki};
use decapod_apiserver::{Clock, SystemClock};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::{Client, Cluster, message, pod};

/// A stand-in for a kubelet that wants the API server's certificate. Returns its port.
pub(crate) async fn kubelet(pki: &Pki, router: Router) -> u16 {
    let pair = pki
        .issue(&CertificateRequest::server("system:node:n1", vec!["127.0.0.1".to_owned()]), SystemClock.now())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pki.ca_pem().as_bytes()).unwrap()).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(pair.certificate_pem.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (acceptor, router) = (acceptor.clone(), router.clone());
            tokio::spawn(async move {
                let stream = acceptor.accept(socket).await.unwrap();
                let service = TowerToHyperService::new(router);
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                // A client that goes away is no failure of the test.
                drop(builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await);
            });
        }
    });
    port
}

async fn logs(
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    let lines = [format!("{namespace}/{pod}/{container}\n"), format!("{}\n", query.unwrap_or_default())];
    let lines = futures::stream::iter(lines.map(Ok::<_, std::io::Error>));
    Response::new(Body::from_stream(lines))
}

/// Says the command on stdout, then echoes what comes on stdin once.
async fn exec(RawQuery(query): RawQuery, upgrade: WebSocketUpgrade) -> Response {
    upgrade.protocols(["v5.channel.k8s.io", "v4.channel.k8s.io"]).on_upgrade(move |mut socket| async move {
        let frame = |channel: u8, bytes: &[u8]| Message::Binary([&[channel], bytes].concat().into());
        socket.send(frame(1, query.unwrap_or_default().as_bytes())).await.unwrap();
        while let Some(Ok(message)) = socket.recv().await {
            if let Message::Binary(bytes) = message
                && bytes.first() == Some(&0)
                && bytes.len() > 1
            {
                socket.send(frame(1, &bytes[1..])).await.unwrap();
                break;
            }
        }
        socket.send(frame(3, br#"{"metadata":{},"status":"Success"}"#)).await.unwrap();
    })
}

async fn cluster_with_pod() -> (Cluster, Client) {
    let cluster = Cluster::start().await;
    let router = Router::new()
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs))
        .route("/exec/{namespace}/{pod}/{container}", get(exec).post(exec))
        .route("/healthz", get(|| async { "fine" }));
    let port = kubelet(&cluster.pki, router).await;
    let admin = cluster.admin();
    admin.service_account("default").await;
    let status = json!({"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}});
    admin.created("/api/v1/nodes", json!({"metadata": {"name": "n1"}, "status": status})).await;
    admin.created("/api/v1/namespaces/default/pods", pod("p")).await;
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    admin.create("/api/v1/namespaces/default/pods/p/binding", binding).await;
    (cluster, admin)
}

#[tokio::test]
async fn logs_and_paths_of_the_kubelet() {
    let (cluster, admin) = cluster_with_pod().await;
    let path = "/api/v1/namespaces/default/pods/p/log?tailLines=3&follow=true";
    let (code, log) = admin.get(path).await;
    assert_eq!((code, log.as_str()), (200, Some("default/p/c\ntailLines=3&follow=true\n")));
    let none = admin.get("/api/v1/namespaces/default/pods/p/log?tailLines=-1").await;
    assert_eq!(none.0, 422, "{none:?}");
    let wrong = admin.get("/api/v1/namespaces/default/pods/p/log?container=x").await;
    assert_eq!((wrong.0, message(&wrong)), (400, "container x is not valid for pod p"));
    let (code, health) = admin.get("/api/v1/nodes/n1/proxy/healthz").await;
    assert_eq!((code, health.as_str()), (200, Some("fine")));
    assert_eq!(cluster.as_user("jane", &[]).get(path).await.0, 403);
}

#[tokio::test]
async fn exec_is_carried_both_ways() {
    let (cluster, _) = cluster_with_pod().await;
    let certificate = CertificateRequest::client("system:admin", &["system:masters"]);
    let client = cluster.over_tls(Some(certificate), None);
    let pods: Api<Pod> = Api::namespaced(client.0, "default");
    let parameters = AttachParams::default().stdin(true).stderr(false);
    let mut process = pods.exec("p", ["cat", "-"], &parameters).await.unwrap();
    let (mut stdin, mut stdout) = (process.stdin().unwrap(), process.stdout().unwrap());
    let status = process.take_status().unwrap();
    stdin.write_all(b" and back").await.unwrap();
    let mut text = String::new();
    stdout.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("command=cat&command=-") && text.ends_with(" and back"), "{text}");
    assert_eq!(status.await.unwrap().status.as_deref(), Some("Success"));
}

#[tokio::test]
async fn a_pod_and_its_service_answer_through_the_proxy() {
    let (cluster, admin) = cluster_with_pod().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let whole = |uri: axum::http::Uri| async move { uri.to_string() };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(whole)).await });
    let root = "/api/v1/namespaces/default";
    let status = json!({"status": {"podIP": "127.0.0.1"}});
    admin.patch(&format!("{root}/pods/p/status"), "merge-patch", status).await;
    let (code, text) = admin.get(&format!("{root}/pods/p:{port}/proxy/a%2Fb/c/?x=y")).await;
    assert_eq!((code, text.as_str()), (200, Some("/a%2Fb/c/?x=y")));
    admin
        .created(
            &format!("{root}/services"),
            json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}}),
        )
        .await;
    let nobody = admin.get(&format!("{root}/services/s/proxy/")).await;
    assert_eq!(nobody.0, 503, "{nobody:?}");
    // The API takes no loopback address as an endpoint; there is no other that every machine has.
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "s-1",
        "namespace": "default", "uid": "u", "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4",
        "ports": [{"name": "", "port": port}], "endpoints": [{"addresses": ["127.0.0.1"]}]});
    cluster.smuggle("/registry/endpointslices/default/s-1", &slice).await;
    let (code, text) = admin.get(&format!("{root}/services/s:80/proxy/hello")).await;
    assert_eq!((code, text.as_str()), (200, Some("/hello")), "{text}");
}

/// The status, headers and body that a method gets.
async fn raw(client: &Client, method: &str, path: &str) -> (u16, axum::http::HeaderMap, String) {
    let request = axum::http::Request::builder().method(method).uri(path).body(Vec::new()).unwrap();
    let (status, headers, body) = client.send(request).await;
    (status.as_u16(), headers, String::from_utf8(body).unwrap())
}

/// A pod that answers as web servers do: with links, redirects and the method.
async fn site() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let page = |headers: axum::http::HeaderMap| async move {
        assert!(!headers.contains_key("authorization"));
        ([("content-type", "text/html"), ("access-control-allow-origin", "*")], "<a href=\"/x\">x</a>")
    };
    let method = |method: axum::http::Method, uri: axum::http::Uri| async move { format!("{method} {uri}") };
    let away = || async { ([("location", "/home")], axum::http::StatusCode::FOUND) };
    let router = Router::new().route("/page", get(page)).route("/away", get(away)).fallback(method);
    tokio::spawn(async move { axum::serve(listener, router).await });
    port
}

#[tokio::test]
async fn links_redirects_and_methods_go_through_the_proxy() {
    let (_cluster, admin) = cluster_with_pod().await;
    let port = site().await;
    let root = "/api/v1/namespaces/default/pods";
    let status = json!({"status": {"podIP": "127.0.0.1"}});
    admin.patch(&format!("{root}/p/status"), "merge-patch", status).await;
    let proxy = format!("{root}/p:{port}/proxy");
    let (code, headers, body) = raw(&admin, "GET", &format!("{proxy}/page")).await;
    assert_eq!((code, body), (200, format!("<a href=\"{proxy}/x\">x</a>")));
    assert!(!headers.contains_key("access-control-allow-origin"));
    let (code, headers, _) = raw(&admin, "GET", &format!("{proxy}/away")).await;
    assert_eq!((code, headers["location"].to_str().unwrap()), (302, &*format!("{proxy}/home")));
    let (code, headers, _) = raw(&admin, "HEAD", &format!("{proxy}?a=b")).await;
    assert_eq!((code, headers["location"].to_str().unwrap()), (301, &*format!("{proxy}/?a=b")));
    for method in ["DELETE", "OPTIONS", "PATCH", "POST", "PUT"] {
        let (code, _, body) = raw(&admin, method, &format!("{proxy}?a=b")).await;
        assert_eq!((code, body), (200, format!("{method} /?a=b")));
    }
    let bad = admin.get(&format!("{root}/ftp:p:80/proxy/")).await;
    assert_eq!((bad.0, message(&bad)), (400, "invalid pod request \"ftp:p:80\""));
    let closed = admin.get(&format!("{root}/p:1/proxy/")).await;
    assert_eq!(closed.0, 503);
    assert!(message(&closed).starts_with("error trying to reach service: "), "{closed:?}");
}

#[tokio::test]
async fn streams_need_the_right_to_create() {
    let (cluster, admin) = cluster_with_pod().await;
    let rules = |verb| json!([{"apiGroups": [""], "resources": ["pods/exec"], "verbs": [verb]}]);
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    admin.created(&format!("{rbac}/roles"), json!({"metadata": {"name": "r"}, "rules": rules("get")})).await;
    let binding = json!({"metadata": {"name": "r"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]});
    admin.created(&format!("{rbac}/rolebindings"), binding).await;
    let path = "/api/v1/namespaces/default/pods/p/exec?command=x&stdout=true";
    let refused = cluster.as_user("jane", &[]).get(path).await;
    assert_eq!(refused.0, 403);
    assert!(message(&refused).contains("cannot create resource \"pods/exec\""), "{refused:?}");
}
