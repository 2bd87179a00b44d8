//! Who comes in: certificates, static tokens, service account tokens.

use decapod_apiserver::pki::CertificateRequest;
use serde_json::json;

use crate::harness::{Cluster, pod};

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";

async fn who(client: &crate::harness::Client) -> (u16, String, String) {
    let (code, review) = client.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", json!({})).await;
    let user = &review["status"]["userInfo"];
    (code, user["username"].as_str().unwrap_or_default().to_owned(), user["groups"].to_string())
}

#[tokio::test]
async fn certificates_and_static_tokens() {
    let cluster = Cluster::start().await;
    let certificate = CertificateRequest::client("system:kube-scheduler", &[]);
    let scheduler = cluster.over_tls(Some(certificate), None);
    assert_eq!(
        who(&scheduler).await,
        (201, "system:kube-scheduler".into(), "[\"system:authenticated\"]".into())
    );
    let jane = cluster.over_tls(None, Some("secret-token"));
    assert_eq!(who(&jane).await, (201, "jane".into(), "[\"dev\",\"system:authenticated\"]".into()));
    assert_eq!(who(&cluster.over_tls(None, Some("wrong"))).await.0, 401);
    assert_eq!(who(&cluster.over_tls(None, None)).await.0, 401);
}

#[tokio::test]
async fn a_service_account_token_lives_with_its_pod() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.service_account("default").await;
    let made = admin.created("/api/v1/namespaces/default/pods", pod("p")).await;
    let request = json!({"spec": {"audiences": [], "expirationSeconds": 600,
        "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": made["metadata"]["uid"]}}});
    let issued = admin.created(&format!("{ACCOUNTS}/default/token"), request).await;
    let token = issued["status"]["token"].as_str().unwrap().to_owned();
    let client = cluster.over_tls(None, Some(&token));
    let (code, user, groups) = who(&client).await;
    assert_eq!((code, user.as_str()), (201, "system:serviceaccount:default:default"));
    assert!(groups.contains("system:serviceaccounts:default"));
    let review = json!({"spec": {"token": token}});
    let (_, review) = admin.create("/apis/authentication.k8s.io/v1/tokenreviews", review).await;
    assert_eq!(review["status"]["authenticated"], true);
    assert_eq!(review["status"]["user"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    let other = json!({"spec": {"token": token, "audiences": ["vault"]}});
    let (_, review) = admin.create("/apis/authentication.k8s.io/v1/tokenreviews", other).await;
    assert_ne!(review["status"]["authenticated"], true);
    admin.delete("/api/v1/namespaces/default/pods/p").await;
    assert_eq!(who(&client).await.0, 401, "the pod is gone, and its token with it");
    let short = json!({"spec": {"expirationSeconds": 10}});
    assert_eq!(admin.create(&format!("{ACCOUNTS}/default/token"), short).await.0, 422);
}
