//! Tokens beyond the usual: requests that are refused, Secrets that hold tokens, bootstrap tokens, and
//! how others verify them.

use base64::Engine;
use serde_json::{Value, json};

use crate::harness::{Client, Cluster, message, pod};

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

fn encode(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

async fn reviewed(admin: &Client, token: &str) -> Value {
    let (code, review) = admin.create(REVIEWS, json!({"spec": {"token": token}})).await;
    assert_eq!(code, 201, "{review}");
    review["status"].clone()
}

#[tokio::test]
async fn token_requests_are_checked() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.service_account("default").await;
    admin.created(ACCOUNTS, json!({"metadata": {"name": "other"}})).await;
    admin.created("/api/v1/namespaces/default/pods", pod("p")).await;
    let path = format!("{ACCOUNTS}/default/token");
    let bound = |kind: &str, name: &str, uid: &str| json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name, "uid": uid}}});
    for (path, body, code, words) in [
        (
            &path,
            json!({"spec": {"expirationSeconds": 599}}),
            422,
            "may not specify a duration less than 10 minutes",
        ),
        (
            &path,
            json!({"spec": {"expirationSeconds": 1_i64 << 33}}),
            422,
            "may not specify a duration larger than 2^32 seconds",
        ),
        (
            &path,
            json!({"metadata": {"name": "other"}, "spec": {}}),
            422,
            "metadata.name: Invalid value: \"other\": must match the service account name if specified",
        ),
        (
            &path,
            json!({"metadata": {"uid": "x"}, "spec": {}}),
            409,
            "the UID in the token request (x) does not match",
        ),
        (&path, bound("Pod", "gone", ""), 404, "pods \"gone\" not found"),
        (
            &path,
            bound("Pod", "p", "x"),
            409,
            "the UID in the bound object reference (x) does not match the UID in record",
        ),
        (&path, bound("ConfigMap", "c", ""), 400, "cannot bind token to object of type /v1, Kind=ConfigMap"),
        (
            &format!("{ACCOUNTS}/other/token"),
            bound("Pod", "p", ""),
            400,
            "cannot bind token for serviceaccount \"other\" to pod running with different serviceaccount name.",
        ),
        (&format!("{ACCOUNTS}/gone/token"), json!({"spec": {}}), 404, "serviceaccounts \"gone\" not found"),
    ] {
        let answer = admin.create(path, body).await;
        assert_eq!(answer.0, code, "{answer:?}");
        assert!(message(&answer).contains(words), "{words}: {}", message(&answer));
    }
    let issued = admin.created(&path, json!({"spec": {"expirationSeconds": 100_000_000}})).await;
    assert_eq!(issued["spec"]["expirationSeconds"], 365 * 24 * 3600, "shortened to the longest");
    let own = &issued["spec"]["audiences"];
    assert_eq!(*own, json!(["https://kubernetes.default.svc.cluster.local"]));
}

#[tokio::test]
async fn tokens_of_secrets_and_of_nodes_die_with_them() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.service_account("default").await;
    let secrets = "/api/v1/namespaces/default/secrets";
    admin.created(secrets, json!({"metadata": {"name": "s"}})).await;
    admin.created("/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    let path = format!("{ACCOUNTS}/default/token");
    for (kind, name, object) in
        [("Secret", "s", format!("{secrets}/s")), ("Node", "n", "/api/v1/nodes/n".into())]
    {
        let bound = json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name}}});
        let issued = admin.created(&path, bound).await;
        let token = issued["status"]["token"].as_str().unwrap();
        assert_eq!(reviewed(&admin, token).await["authenticated"], true);
        admin.delete(&object).await;
        let status = reviewed(&admin, token).await;
        assert_eq!(status["error"], "[invalid bearer token, service account token has been invalidated]");
    }
    assert_eq!(reviewed(&admin, "nonsense").await["error"], "invalid bearer token");
}

#[tokio::test]
async fn a_secret_may_hold_a_token_that_does_not_expire() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let account = admin.created(ACCOUNTS, json!({"metadata": {"name": "bot"}})).await;
    let uid = account["metadata"]["uid"].as_str().unwrap();
    let token = cluster.handle.secret_token("default", "bot", uid, "bot-token").unwrap();
    assert_eq!(reviewed(&admin, &token).await["error"], "[invalid bearer token, Token has been invalidated]");
    let secrets = "/api/v1/namespaces/default/secrets";
    let secret = json!({"metadata": {"name": "bot-token", "annotations": {
        "kubernetes.io/service-account.name": "bot", "kubernetes.io/service-account.uid": uid}},
        "type": "kubernetes.io/service-account-token", "data": {"token": encode(&token)}});
    admin.created(secrets, secret).await;
    let status = reviewed(&admin, &token).await;
    assert_eq!(status["user"]["username"], "system:serviceaccount:default:bot");
    let bot = cluster.over_tls(None, Some(&token));
    assert_eq!(bot.get("/version").await.0, 200);
    let (_, used) = admin.get(&format!("{secrets}/bot-token")).await;
    let day = used["metadata"]["labels"]["kubernetes.io/legacy-token-last-used"].as_str().unwrap();
    assert_eq!(day.len(), "2026-01-01".len());
    let label =
        |value: Value| json!({"metadata": {"labels": {"kubernetes.io/legacy-token-invalid-since": value}}});
    let given_up = label("2026-01-01".into());
    admin.patch(&format!("{secrets}/bot-token"), "merge-patch", given_up).await;
    let status = reviewed(&admin, &token).await;
    assert!(status["error"].as_str().unwrap().contains("has been marked invalid"), "{status}");
    admin.patch(&format!("{secrets}/bot-token"), "merge-patch", label(Value::Null)).await;
    assert!(reviewed(&admin, &token).await["error"].is_null());
    let other = json!({"data": {"token": encode("other")}});
    admin.patch(&format!("{secrets}/bot-token"), "merge-patch", other).await;
    let status = reviewed(&admin, &token).await;
    assert_eq!(status["error"], "[invalid bearer token, Token does not match server's copy]");
}

#[tokio::test]
async fn bootstrap_tokens_authenticate_while_their_secret_says_so() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let data = |usage: &str| {
        json!({"token-id": "abcdef", "token-secret": "0123456789abcdef",
        "usage-bootstrap-authentication": usage, "auth-extra-groups": "system:bootstrappers:nodes"})
    };
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    let secret = json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token", "stringData": data("true")});
    admin.created(secrets, secret).await;
    let node = cluster.over_tls(None, Some("abcdef.0123456789abcdef"));
    let who = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let (_, review) = node.create(who, json!({})).await;
    let user = &review["status"]["userInfo"];
    assert_eq!(user["username"], "system:bootstrap:abcdef");
    assert_eq!(
        user["groups"],
        json!(["system:bootstrappers", "system:bootstrappers:nodes", "system:authenticated"])
    );
    assert_eq!(cluster.over_tls(None, Some("abcdef.0123456789abcdee")).get("/version").await.0, 401);
    let off = json!({"stringData": data("false")});
    admin.patch(&format!("{secrets}/bootstrap-token-abcdef"), "merge-patch", off).await;
    assert_eq!(node.get("/version").await.0, 401);
}

/// What a pod of the suite does with its token, its user does here.
#[tokio::test]
async fn service_accounts_service_account_issuer_discovery_should_support_oidc_discovery_of_service_account_issuer()
 {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.service_account("default").await;
    let issued = admin.created(&format!("{ACCOUNTS}/default/token"), json!({"spec": {}})).await;
    let token = issued["status"]["token"].as_str().unwrap();
    let account = cluster.over_tls(None, Some(token));
    let (code, document) = account.get("/.well-known/openid-configuration").await;
    assert_eq!(code, 200, "service accounts may read it: {document}");
    let (_, keys) = account.get("/openid/v1/jwks").await;
    let decode = |part: &str| -> Value {
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    };
    let mut parts = token.split('.');
    let header = decode(parts.next().unwrap());
    let claims = decode(parts.next().unwrap());
    assert_eq!(claims["iss"], document["issuer"]);
    assert_eq!(claims["sub"], "system:serviceaccount:default:default");
    assert_eq!(claims["kubernetes.io"]["serviceaccount"]["name"], "default");
    let key = keys["keys"].as_array().unwrap().iter().find(|key| key["kid"] == header["kid"]).unwrap();
    let key =
        jsonwebtoken::DecodingKey::from_ec_components(key["x"].as_str().unwrap(), key["y"].as_str().unwrap());
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
    validation.set_audience(&[document["issuer"].as_str().unwrap()]);
    let verified = jsonwebtoken::decode::<Value>(token, &key.unwrap(), &validation).unwrap();
    assert_eq!(verified.claims, claims);
    assert_eq!(cluster.as_user("jane", &[]).get("/openid/v1/jwks").await.0, 403);
}
