//! `[sig-api-machinery] FieldValidation`; what is unknown elsewhere than in metadata is in `strict.rs`.

use serde_json::{Value, json};

use crate::harness::{Cluster, message};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn deployment(metadata: Value, of_pods: Value) -> Value {
    let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
        "spec": {"selector": {"matchLabels": {"app": "d"}}, "template": {"metadata": of_pods,
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    object["metadata"]["name"] = json!("d");
    object["spec"]["template"]["metadata"]["labels"] = json!({"app": "d"});
    object
}

#[tokio::test]
async fn field_validation_should_detect_unknown_metadata_fields_of_a_typed_object() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let strict = format!("{DEPLOYMENTS}?fieldValidation=Strict");
    let one = format!("{DEPLOYMENTS}/d?fieldValidation=Strict");
    let unknown = [
        (deployment(json!({"unknownMeta": "x"}), json!({})), "metadata.unknownMeta"),
        (deployment(json!({}), json!({"unknownMeta": "x"})), "spec.template.metadata.unknownMeta"),
    ];
    for (object, field) in &unknown {
        let refused = admin.create(&strict, object.clone()).await;
        let wanted = format!("strict decoding error: unknown field \"{field}\"");
        assert!(refused.0 == 400 && message(&refused).ends_with(&wanted), "{}", refused.1);
    }
    assert_eq!(admin.get(&format!("{DEPLOYMENTS}/d")).await.0, 404, "nothing of it was written");
    admin.created(&strict, deployment(json!({}), json!({}))).await;
    for (object, field) in unknown {
        let refused = admin.update(&one, object.clone()).await;
        let wanted = format!("strict decoding error: unknown field \"{field}\"");
        assert!(refused.0 == 400 && message(&refused).ends_with(&wanted), "{}", refused.1);
        for kind in ["merge-patch", "strategic-merge-patch"] {
            let refused = admin.patch(&one, kind, object.clone()).await;
            assert_eq!(refused.0, 422, "{kind}: {}", refused.1);
            assert!(message(&refused).contains(&wanted), "{}", refused.1);
        }
        let apply = http::Request::patch(format!("{one}&fieldManager=e2e&force=true"))
            .header("content-type", "application/apply-patch+yaml")
            .body(object.to_string().into_bytes())
            .unwrap();
        let (status, _, body) = admin.send(apply).await;
        let applied = (status.as_u16(), serde_json::from_slice::<Value>(&body).unwrap());
        let wanted = format!(".{field}: field not declared in schema");
        assert!(applied.0 == 500 && message(&applied).contains(&wanted), "{}", applied.1);
    }
}
