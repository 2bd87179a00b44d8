//! The reviews: who may do what, asked without doing it.

use http::Request;
use serde_json::{Value, json};

use crate::harness::{Cluster, message};

const AUTHZ: &str = "/apis/authorization.k8s.io/v1";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

#[tokio::test]
async fn subject_review_should_support_subject_review_api_operations() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.service_account("default").await;
    let user = "system:serviceaccount:default:default";
    let attributes =
        json!({"verb": "list", "resource": "configmaps", "namespace": "kube-system", "version": "v1"});
    let review = json!({"spec": {"user": user, "resourceAttributes": attributes}});
    let impersonated =
        Request::get("/api/v1/namespaces/kube-system/configmaps").header("impersonate-user", user);
    let over_tls = cluster.over_tls(
        Some(decapod_apiserver::pki::CertificateRequest::client("root", &["system:masters"])),
        None,
    );
    let (status, _, _) = over_tls.send(impersonated.body(Vec::new()).unwrap()).await;
    let answer = admin.created(&format!("{AUTHZ}/subjectaccessreviews"), review.clone()).await;
    assert_eq!(answer["status"]["allowed"], status.is_success());
    let local = format!("{AUTHZ}/namespaces/kube-system/localsubjectaccessreviews");
    let answer = admin.created(&local, review.clone()).await;
    assert_eq!(answer["status"]["allowed"], status.is_success());
    assert_eq!(answer["metadata"]["namespace"], "kube-system");
    let elsewhere =
        admin.create(&format!("{AUTHZ}/namespaces/default/localsubjectaccessreviews"), review).await;
    assert_eq!(elsewhere.0, 422);
    assert!(message(&elsewhere).contains("must match metadata.namespace"), "{elsewhere:?}");
}

#[tokio::test]
async fn reviews_are_validated() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let path = format!("{AUTHZ}/subjectaccessreviews");
    for (spec, words) in [
        (
            json!({"user": "jane"}),
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        (
            json!({"resourceAttributes": {}}),
            "spec.user: Invalid value: \"\": at least one of user or group must be specified",
        ),
        (
            json!({"user": "a", "resourceAttributes": {}, "nonResourceAttributes": {}}),
            "cannot be specified in combination with resourceAttributes",
        ),
        (
            json!({"user": "a", "resourceAttributes": {"fieldSelector": {}}}),
            "spec.resourceAttributes.fieldSelector.requirements: Required value",
        ),
    ] {
        let answer = admin.create(&path, json!({"spec": spec})).await;
        assert_eq!(answer.0, 422, "{answer:?}");
        assert!(message(&answer).contains(words), "{words}: {}", message(&answer));
    }
    let named = json!({"metadata": {"name": "x"}, "spec": {"user": "a", "resourceAttributes": {}}});
    assert!(message(&admin.create(&path, named).await).contains("must be empty"));
    let empty = admin.create("/apis/authentication.k8s.io/v1/tokenreviews", json!({"spec": {}})).await;
    assert_eq!(message(&empty), "token is required for TokenReview in authentication");
}

#[tokio::test]
async fn a_user_sees_their_own_rules_and_self() {
    let cluster = Cluster::start().await;
    let (admin, jane) = (cluster.admin(), cluster.as_user("jane", &["dev"]));
    let rules = |review: &Value, field: &str| review["status"][field].as_array().cloned().unwrap_or_default();
    let path = format!("{AUTHZ}/selfsubjectrulesreviews");
    let ask = json!({"spec": {"namespace": "default"}});
    let mine = jane.created(&path, ask.clone()).await;
    assert_eq!(mine["status"]["incomplete"], false);
    assert!(
        rules(&mine, "nonResourceRules")
            .iter()
            .any(|r| r["nonResourceURLs"].to_string().contains("/version"))
    );
    let all = admin.created(&path, ask.clone()).await;
    assert!(
        rules(&all, "resourceRules")
            .contains(&json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}))
    );
    let node = cluster.as_user("system:node:n", &["system:nodes"]).created(&path, ask).await;
    assert_eq!(node["status"]["incomplete"], true);
    assert_eq!(jane.create(&path, json!({"spec": {}})).await.0, 400);
    let node_fields = json!({"spec": {"resourceAttributes": {"verb": "list", "resource": "pods", "version": "v1",
        "fieldSelector": {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["n"]}]}}}});
    let node = cluster.as_user("system:node:n", &["system:nodes"]);
    let own = node.created(&format!("{AUTHZ}/selfsubjectaccessreviews"), node_fields).await;
    assert_eq!(own["status"]["allowed"], true, "{own}");
}

#[tokio::test]
async fn impersonation_needs_each_right() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let role = json!({"metadata": {"name": "imp"}, "rules": [
        {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"], "resourceNames": ["joe"]},
        {"apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"], "resourceNames": ["ops"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["userextras/scopes"], "verbs": ["impersonate"], "resourceNames": ["view"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["uids"], "verbs": ["impersonate"], "resourceNames": ["7"]}]});
    admin.created(&format!("{RBAC}/clusterroles"), role).await;
    let binding = json!({"metadata": {"name": "imp"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "imp"},
        "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}]});
    admin.created(&format!("{RBAC}/clusterrolebindings"), binding).await;
    let jane = cluster.over_tls(None, Some("secret-token"));
    let ask = |headers: Vec<(&'static str, &'static str)>| {
        let jane = jane.clone();
        async move {
            let mut request = Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
                .header("content-type", "application/json");
            for (name, value) in headers {
                request = request.header(name, value);
            }
            let (status, _, body) = jane.send(request.body(b"{}".to_vec()).unwrap()).await;
            (status.as_u16(), serde_json::from_slice::<Value>(&body).unwrap())
        }
    };
    let all = vec![
        ("impersonate-user", "joe"),
        ("impersonate-group", "ops"),
        ("impersonate-uid", "7"),
        ("impersonate-extra-scopes", "view"),
    ];
    let mut answer = (0, Value::Null);
    for _ in 0..6000 {
        // Roles take effect once the mirror has seen them.
        answer = ask(all.clone()).await;
        if answer.0 == 201 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let user = &answer.1["status"]["userInfo"];
    assert_eq!(
        *user,
        json!({"username": "joe", "uid": "7", "groups": ["ops", "system:authenticated"], "extra": {"scopes": ["view"]}})
    );
    for (header, value, words) in [
        (
            "impersonate-user",
            "root",
            "User \"jane\" cannot impersonate-on:user-info:create resource \"selfsubjectreviews\"",
        ),
        (
            "impersonate-user",
            "system:serviceaccount:default:x",
            "User \"jane\" cannot impersonate-on:serviceaccount:create resource \"selfsubjectreviews\"",
        ),
    ] {
        let refused = ask(vec![(header, value)]).await;
        assert_eq!(refused.0, 403);
        assert!(message(&refused).contains(words), "{}", message(&refused));
    }
    for extra in
        [("impersonate-group", "admins"), ("impersonate-uid", "8"), ("impersonate-extra-scopes", "edit")]
    {
        assert_eq!(ask(vec![("impersonate-user", "joe"), extra]).await.0, 403, "{extra:?}");
    }
    assert_eq!(ask(vec![("impersonate-group", "ops")]).await.0, 400);
}
