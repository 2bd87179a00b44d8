//! Watches over WebSockets, as browsers open them: with the token as a subprotocol.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use futures::StreamExt;
use http::header::{ACCEPT, SEC_WEBSOCKET_PROTOCOL};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::access::eventually;
use crate::harness::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Far longer than anything takes on a slow machine; only for what never comes.
const PATIENCE: Duration = Duration::from_secs(120);

type Socket = tokio_tungstenite::WebSocketStream<tokio_rustls::client::TlsStream<TcpStream>>;

/// Opens a watch as Jane, who has a token; answers with the subprotocol that was settled on.
async fn open(
    cluster: &Cluster,
    query: &str,
    accept: &str,
    offered: &str,
) -> Result<(Socket, String), Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(cluster.pki.ca_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let address = cluster.handle.address();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::from(address.ip());
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let mut request = format!("wss://{address}{MAPS}?watch=1&{query}").into_client_request()?;
    let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode("secret-token");
    let protocols = format!("base64url.bearer.authorization.k8s.io.{token}{offered}");
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, protocols.parse().unwrap());
    request.headers_mut().insert(ACCEPT, accept.parse().unwrap());
    let (socket, response) = tokio_tungstenite::client_async(request, stream).await?;
    let settled = response.headers().get(SEC_WEBSOCKET_PROTOCOL).map(|p| p.to_str().unwrap().to_owned());
    Ok((socket, settled.unwrap_or_default()))
}

async fn next(socket: &mut Socket) -> Message {
    tokio::time::timeout(PATIENCE, socket.next()).await.expect("a message in time").unwrap().unwrap()
}

/// A server on which Jane may read.
async fn scene() -> Cluster {
    let cluster = Cluster::start().await;
    let binding = json!({"metadata": {"name": "dev"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "Group", "name": "dev", "apiGroup": "rbac.authorization.k8s.io"}]});
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    cluster.admin().created(bindings, binding).await;
    eventually(&cluster.as_user("jane", &["dev"]), MAPS, 200).await;
    cluster
}

#[tokio::test]
async fn a_message_an_event() {
    let cluster = scene().await;
    let admin = cluster.admin();
    let first = admin.created(MAPS, json!({"metadata": {"name": "first"}})).await;
    let query = format!("resourceVersion={}", first["metadata"]["resourceVersion"].as_str().unwrap());
    let (mut socket, settled) =
        open(&cluster, &query, "application/json", ", base64.binary.k8s.io").await.unwrap();
    assert_eq!(settled, "base64.binary.k8s.io");
    for name in ["a", "b", "c"] {
        admin.created(MAPS, json!({"metadata": {"name": name}})).await;
    }
    for name in ["a", "b", "c"] {
        let Message::Text(text) = next(&mut socket).await else { panic!("no text") };
        let event: Value = serde_json::from_str(text.as_str()).unwrap();
        assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("ADDED"), &json!(name)));
    }
    // The server's end is the socket's.
    cluster.handle.shutdown().await;
    assert!(matches!(next(&mut socket).await, Message::Close(_)));
}

#[tokio::test]
async fn protobuf_goes_in_binary_messages_and_time_ends_the_watch() {
    let cluster = scene().await;
    cluster.admin().created(MAPS, json!({"metadata": {"name": "a"}})).await;
    let accept = "application/vnd.kubernetes.protobuf;stream=watch";
    let (mut socket, settled) = open(&cluster, "", accept, ", x.example.com").await.unwrap();
    assert_eq!(settled, "x.example.com", "the only one that is offered");
    let Message::Binary(event) = next(&mut socket).await else { panic!("not binary") };
    assert!(event.starts_with(b"\n\x05ADDED"), "{event:?}");
    let (mut socket, _) = open(&cluster, "timeoutSeconds=1", accept, ", binary.k8s.io").await.unwrap();
    while !matches!(next(&mut socket).await, Message::Close(_)) {}
}

#[tokio::test]
async fn what_is_refused_is_answered_in_plain() {
    let cluster = scene().await;
    for (query, offered, wanted) in
        [("resourceVersion=x", "", 400), ("labelSelector=a%3D%3D%3Db", "", 400), ("", ", x, y", 400)]
    {
        let refused = open(&cluster, query, "application/json", offered).await.err();
        let Some(Error::Http(response)) = refused else { panic!("{query}: {refused:?}") };
        let status: Value = serde_json::from_slice(response.body().as_deref().unwrap_or_default()).unwrap();
        assert_eq!((response.status().as_u16(), &status["kind"]), (wanted, &json!("Status")), "{status}");
    }
}
