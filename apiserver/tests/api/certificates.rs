//! Certificate signing requests: their operations, and who may decide on them.

use base64::Engine;
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::{Value, json};

use crate::conformance::Operations;
use crate::harness::{Cluster, message};

const ALL: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";

fn encode(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn pem(common_name: &str, organization: &str) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

fn request(name: &str, signer: &str, pem: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"signerName": signer, "request": encode(pem),
        "usages": ["digital signature", "client auth"], "username": "root"}})
}

#[tokio::test]
async fn certificates_api_should_support_csr_api_operations() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let kind = Operations {
        group: "certificates.k8s.io",
        plural: "certificatesigningrequests",
        subresources: &["approval", "status"],
        make: |name| request(name, "example.com/x", &pem("jane", "dev")),
    };
    kind.are_discovered(&admin).await;
    kind.all_work(&admin).await;
    admin.created(ALL, (kind.make)("with-status")).await;
    kind.status_works(&admin, "with-status").await;
    assert_eq!(admin.delete(&format!("{ALL}/with-status")).await.0, 200);
    let made = admin.created(ALL, request("a", "example.com/x", &pem("jane", "dev"))).await;
    assert_eq!(made["spec"]["username"], "system:admin", "who asks is not the client's to say");
    let one = format!("{ALL}/a");
    assert_eq!(admin.get(&one).await.0, 200);
    assert_eq!(admin.get(ALL).await.1["items"].as_array().unwrap().len(), 1);
    let patched = admin.patch(&one, "merge-patch", json!({"metadata": {"annotations": {"p": "1"}}})).await;
    assert_eq!(patched.1["metadata"]["annotations"]["p"], "1");
    let approve =
        json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "E2E"}]}});
    let approved = admin.patch(&format!("{one}/approval"), "merge-patch", approve).await;
    let condition = &approved.1["status"]["conditions"][0];
    assert!(
        condition["lastUpdateTime"].is_string() && condition["lastTransitionTime"].is_string(),
        "{approved:?}"
    );
    let certificate = encode(cluster.pki.ca_pem());
    let signed = admin
        .patch(&format!("{one}/status"), "merge-patch", json!({"status": {"certificate": certificate}}))
        .await;
    assert_eq!(signed.1["status"]["certificate"], certificate, "{signed:?}");
    assert_eq!(signed.1["status"]["conditions"][0]["type"], "Approved", "signing keeps the decision");
    for sub in ["approval", "status"] {
        assert_eq!(admin.get(&format!("{one}/{sub}")).await.0, 200);
    }
    let again = admin
        .patch(&format!("{one}/status"), "merge-patch", json!({"status": {"certificate": encode("x")}}))
        .await;
    assert_eq!(again.0, 422);
    let undo =
        admin.patch(&format!("{one}/approval"), "merge-patch", json!({"status": {"conditions": []}})).await;
    assert!(message(&undo).contains("updates may not remove a condition of type \"Approved\""), "{undo:?}");
    assert_eq!(admin.delete(&one).await.0, 200);
    admin.created(ALL, request("b", "example.com/x", &pem("jane", "dev"))).await;
    assert_eq!(admin.delete(ALL).await.0, 200);
    assert_eq!(admin.get(ALL).await.1["items"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn requests_are_validated() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let good = pem("jane", "dev");
    let with = |field: &str, value: Value| {
        let mut object = request("a", CLIENT, &good);
        object["spec"][field] = value;
        object
    };
    for (object, words) in [
        (with("request", encode("x").into()), "PEM block type must be CERTIFICATE REQUEST"),
        (
            with("request", encode(&format!("{}{good}", cluster.pki.ca_pem())).into()),
            "PEM block type must be CERTIFICATE REQUEST",
        ),
        (with("usages", json!([])), "spec.usages: Required value"),
        (with("usages", json!(["dancing"])), "spec.usages[0]: Unsupported value: \"dancing\""),
        (with("signerName", json!("x")), "must be a fully qualified domain and path of the form"),
        (with("signerName", json!("kubernetes.io/legacy-unknown")), "the legacy signerName is not allowed"),
        (
            with("expirationSeconds", json!(599)),
            "may not specify a duration less than 600 seconds (10 minutes)",
        ),
    ] {
        let answer = admin.create(ALL, object).await;
        assert_eq!(answer.0, 422, "{answer:?}");
        assert!(message(&answer).contains(words), "{words}: {}", message(&answer));
    }
    // All at once, also what is wrong with other parts of the object.
    let mut wrong = with("usages", json!([]));
    wrong["metadata"]["labels"] = json!({"a b": "c"});
    let answer = admin.create(ALL, wrong).await;
    for words in ["metadata.labels: Invalid value: \"a b\"", "spec.usages: Required value"] {
        assert!(message(&answer).contains(words), "{words}: {}", message(&answer));
    }
    let root = admin.create(ALL, request("a", CLIENT, &pem("jane", "system:masters"))).await;
    assert!(message(&root).contains("signer with system:masters group is not allowed"), "{root:?}");
    let both = json!({"status": {"conditions": [{"type": "Approved", "status": "True"}, {"type": "Denied", "status": "True"}]}});
    let made = admin.created(ALL, request("a", CLIENT, &good)).await;
    let same = admin.update(&format!("{ALL}/a/status"), made.clone()).await;
    assert_eq!(same.1, made, "nothing is made where there is nothing");
    let both = admin.patch(&format!("{ALL}/a/approval"), "merge-patch", both).await;
    assert!(message(&both).contains("Approved and Denied conditions are mutually exclusive"), "{both:?}");
}

#[tokio::test]
async fn approving_and_signing_need_the_right_on_the_signer() {
    let cluster = Cluster::start().await;
    let (admin, jane) = (cluster.admin(), cluster.as_user("jane", &[]));
    let role = json!({"metadata": {"name": "csr"}, "rules": [
        {"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests", "certificatesigningrequests/approval", "certificatesigningrequests/status"], "verbs": ["*"]},
        {"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "verbs": ["approve"], "resourceNames": ["example.com/*"]}]});
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    admin.created(&format!("{rbac}/clusterroles"), role).await;
    let binding = json!({"metadata": {"name": "csr"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "csr"},
        "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}]});
    admin.created(&format!("{rbac}/clusterrolebindings"), binding).await;
    crate::access::eventually(&jane, ALL, 200).await;
    for (name, signer) in [("mine", "example.com/x"), ("theirs", CLIENT)] {
        admin.created(ALL, request(name, signer, &pem("jane", "dev"))).await;
    }
    let approve = json!({"status": {"conditions": [{"type": "Approved", "status": "True"}]}});
    assert_eq!(jane.patch(&format!("{ALL}/mine/approval"), "merge-patch", approve.clone()).await.0, 200);
    let refused = jane.patch(&format!("{ALL}/theirs/approval"), "merge-patch", approve.clone()).await;
    assert_eq!(refused.0, 403);
    assert!(message(&refused).contains(
        "user not permitted to approve requests with signerName \"kubernetes.io/kube-apiserver-client\""
    ));
    let signed = json!({"status": {"certificate": encode(cluster.pki.ca_pem())}});
    assert_eq!(jane.patch(&format!("{ALL}/mine/status"), "merge-patch", signed).await.0, 403);
    let sneaky = jane.patch(&format!("{ALL}/theirs/status"), "merge-patch", approve).await;
    assert_eq!(sneaky.0, 422, "{sneaky:?}");
    let node = cluster.as_user("system:node:n1", &["system:nodes"]);
    let kubelet = "kubernetes.io/kube-apiserver-client-kubelet";
    assert_eq!(node.create(ALL, request("n1", kubelet, &pem("system:node:n1", "system:nodes"))).await.0, 201);
    assert_eq!(node.create(ALL, request("n2", kubelet, &pem("system:node:n2", "system:nodes"))).await.0, 403);
}
