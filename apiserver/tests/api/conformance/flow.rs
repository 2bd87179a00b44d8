//! `[sig-api-machinery] API priority and fairness`.

use serde_json::{Value, json};

use super::Operations;
use crate::harness::Cluster;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";

fn schema(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "matchingPrecedence": 10000, "priorityLevelConfiguration": {"name": "global-default"},
        "distinguisherMethod": {"type": "ByUser"},
        "rules": [{"subjects": [{"kind": "User", "user": {"name": "nobody-of-this-name"}}],
            "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/nothing-here"]}]}]}})
}

fn level(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"type": "Limited",
        "limited": {"nominalConcurrencyShares": 2, "limitResponse": {"type": "Reject"}}}})
}

async fn supports(kind: Operations) {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    kind.are_discovered(&admin).await;
    kind.all_work(&admin).await;
    admin.created(&kind.path(), (kind.make)("with-status")).await;
    kind.status_works(&admin, "with-status").await;
}

#[tokio::test]
async fn api_priority_and_fairness_should_support_flow_schema_api_operations() {
    let plural = "flowschemas";
    supports(Operations { group: GROUP, plural, subresources: &["status"], make: schema }).await;
}

#[tokio::test]
async fn api_priority_and_fairness_should_support_priority_level_configuration_api_operations() {
    let plural = "prioritylevelconfigurations";
    supports(Operations { group: GROUP, plural, subresources: &["status"], make: level }).await;
}
