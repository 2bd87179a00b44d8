//! `[sig-auth] ServiceAccounts`, as far as no pod is needed.

use serde_json::{Value, json};

use super::{Watch, names};
use crate::harness::{Cluster, pod};

#[tokio::test]
async fn service_accounts_should_create_a_service_account_token_and_ensure_a_successful_token_review() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.namespace("e2e").await;
    let accounts = "/api/v1/namespaces/e2e/serviceaccounts";
    let account = admin.created(accounts, json!({"metadata": {"name": "robot"}})).await;
    let issued = admin.created(&format!("{accounts}/robot/token"), json!({"spec": {}})).await;
    let token = issued["status"]["token"].as_str().unwrap();
    assert!(!token.is_empty());
    let review = json!({"spec": {"token": token}});
    let review = admin.created("/apis/authentication.k8s.io/v1/tokenreviews", review).await;
    let status = &review["status"];
    assert!(status["authenticated"] == true && status.get("error").is_none(), "{review}");
    assert_eq!(status["user"]["username"], "system:serviceaccount:e2e:robot");
    assert_eq!(status["user"]["uid"], account["metadata"]["uid"]);
}

#[tokio::test]
async fn service_accounts_should_run_through_the_lifecycle_of_a_service_account() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.namespace("e2e").await;
    let (accounts, selector) = ("/api/v1/namespaces/e2e/serviceaccounts", "labelSelector=static%3Dtrue");
    let mut watch = Watch::from_now(&admin, accounts, selector).await;
    let object = json!({"metadata": {"name": "robot", "labels": {"static": "true"}}});
    admin.created(accounts, object).await;
    let added = watch.expect("ADDED", "robot").await;
    assert_eq!(added["metadata"]["labels"]["static"], "true");
    let one = format!("{accounts}/robot");
    let patch = json!({"automountServiceAccountToken": false});
    let (code, patched) = admin.patch(&one, "strategic-merge-patch", patch).await;
    assert_eq!((code, &patched["automountServiceAccountToken"]), (200, &json!(false)));
    watch.expect("MODIFIED", "robot").await;
    let (_, list) = admin.get(&format!("/api/v1/serviceaccounts?{selector}")).await;
    assert_eq!(names(&list), ["robot"]);
    assert_eq!(list["items"][0]["automountServiceAccountToken"], false);
    assert_eq!(admin.delete(&format!("{accounts}?{selector}")).await.0, 200);
    watch.expect("DELETED", "robot").await;
    assert_eq!(admin.get(&one).await.0, 404);
}

#[tokio::test]
async fn service_accounts_should_update_a_service_account() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.namespace("e2e").await;
    let accounts = "/api/v1/namespaces/e2e/serviceaccounts";
    let one = format!("{accounts}/robot");
    let made = json!({"metadata": {"name": "robot"}, "automountServiceAccountToken": false});
    let mut account = admin.created(accounts, made).await;
    account["automountServiceAccountToken"] = json!(true);
    let (code, updated) = admin.update(&one, account).await;
    assert_eq!((code, &updated["automountServiceAccountToken"]), (200, &json!(true)), "{updated}");
    assert_eq!(admin.get(&one).await.1["automountServiceAccountToken"], true);
}

const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

#[tokio::test]
async fn service_accounts_should_allow_opting_out_of_api_token_automount() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.namespace("e2e").await;
    let settings = [("nil", Value::Null), ("yes", json!(true)), ("no", json!(false))];
    for (account, setting) in &settings {
        let object = json!({"metadata": {"name": account}, "automountServiceAccountToken": setting});
        admin.created("/api/v1/namespaces/e2e/serviceaccounts", object).await;
    }
    for (of_pod, setting) in &settings {
        for (account, of_account) in &settings {
            let mut object = pod(&format!("{of_pod}-{account}"));
            object["spec"]["serviceAccountName"] = json!(account);
            object["spec"]["automountServiceAccountToken"] = setting.clone();
            let made = admin.created("/api/v1/namespaces/e2e/pods", object).await;
            let mounts = made["spec"]["containers"][0]["volumeMounts"].as_array();
            let mounted = mounts.into_iter().flatten().any(|mount| mount["mountPath"] == MOUNT);
            // The pod's word counts, then the account's; without any, the token is mounted.
            let wanted = setting.as_bool().or(of_account.as_bool()).unwrap_or(true);
            assert_eq!(mounted, wanted, "{made}");
        }
    }
}
