//! `[sig-api-machinery] Discovery` and `server version`.

use serde_json::Value;

use crate::harness::{Client, Cluster};

/// The groups that the server names.
async fn groups(admin: &Client) -> Vec<Value> {
    let (code, list) = admin.get("/apis").await;
    assert_eq!((code, list["kind"].as_str()), (200, Some("APIGroupList")), "{list}");
    let groups = list["groups"].as_array().unwrap().clone();
    assert!(groups.iter().any(|group| group["name"] == "apps"), "{list}");
    groups
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[tokio::test]
async fn discovery_should_locate_the_group_version_and_a_resource_within_each_api_group() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for group in groups(&admin).await {
        for version in group["versions"].as_array().unwrap() {
            let wanted = text(&version["groupVersion"]);
            assert_eq!(wanted, format!("{}/{}", text(&group["name"]), text(&version["version"])));
            let (code, list) = admin.get(&format!("/apis/{wanted}")).await;
            assert_eq!((code, text(&list["kind"])), (200, "APIResourceList"), "{wanted}: {list}");
            assert_eq!(text(&list["groupVersion"]), wanted);
            let resources = list["resources"].as_array().unwrap();
            assert!(!resources.is_empty(), "{wanted} has no resource");
            for resource in resources {
                let verbs = resource["verbs"].as_array().unwrap();
                let whole = !text(&resource["name"]).is_empty() && !text(&resource["kind"]).is_empty();
                assert!(whole && resource["namespaced"].is_boolean() && !verbs.is_empty(), "{resource}");
            }
        }
    }
}

#[tokio::test]
async fn discovery_should_validate_preferred_version_for_each_api_group() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for group in groups(&admin).await {
        let name = text(&group["name"]);
        let (code, alone) = admin.get(&format!("/apis/{name}")).await;
        assert_eq!((code, text(&alone["kind"])), (200, "APIGroup"), "{alone}");
        let preferred = &alone["preferredVersion"];
        assert_eq!(preferred, &group["preferredVersion"]);
        assert!(alone["versions"].as_array().unwrap().contains(preferred), "{alone}");
        let wanted = format!("{name}/{}", text(&preferred["version"]));
        assert_eq!(text(&preferred["groupVersion"]), wanted);
    }
}

#[tokio::test]
async fn server_version_should_find_the_server_version() {
    let cluster = Cluster::start().await;
    let (code, version) = cluster.admin().get("/version").await;
    assert_eq!(code, 200);
    for part in ["major", "minor"] {
        let number = text(&version[part]);
        assert!(!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()), "{version}");
    }
}
