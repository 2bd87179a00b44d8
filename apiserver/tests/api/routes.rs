//! All routes: each needs authentication, and what discovery names is served.

use decapod_api::resource::RESOURCES;
use http::{Method, Request};

use crate::harness::Cluster;

/// What may be asked by anyone.
const OPEN: [&str; 3] = ["/healthz", "/livez", "/readyz"];

/// Every route that there is: method and path.
async fn routes(cluster: &Cluster) -> Vec<(Method, String)> {
    let (_, index) = cluster.admin().get("/").await;
    let paths = index["paths"].as_array().unwrap();
    let mut routes: Vec<_> = paths.iter().map(|p| (Method::GET, p.as_str().unwrap().to_owned())).collect();
    routes.extend([(Method::GET, "/".to_owned()), (Method::GET, "/openapi/v3/apis/apps/v1".to_owned())]);
    for row in RESOURCES {
        let root = if row.group.is_empty() {
            "/api/v1".to_owned()
        } else {
            format!("/apis/{}/{}", row.group, row.version)
        };
        let namespace = if row.namespaced() { "/namespaces/default" } else { "" };
        let all = format!("{root}{namespace}/{}", row.plural);
        for verb in row.verbs {
            routes.push(match *verb {
                "create" => (Method::POST, all.clone()),
                "list" => (Method::GET, all.clone()),
                "watch" => (Method::GET, format!("{all}?watch=1")),
                "deletecollection" => (Method::DELETE, all.clone()),
                "get" => (Method::GET, format!("{all}/x")),
                "update" => (Method::PUT, format!("{all}/x")),
                "patch" => (Method::PATCH, format!("{all}/x")),
                "delete" => (Method::DELETE, format!("{all}/x")),
                other => panic!("a route for {other} is not known to this test"),
            });
        }
        for sub in row.subresources {
            for verb in sub.verbs {
                let method = match *verb {
                    "create" => Method::POST,
                    "update" => Method::PUT,
                    "patch" => Method::PATCH,
                    "delete" => Method::DELETE,
                    _ => Method::GET,
                };
                routes.push((method, format!("{all}/x/{}", sub.name)));
            }
        }
    }
    routes
}

#[tokio::test]
async fn nothing_answers_without_authentication_but_health() {
    let cluster = Cluster::start().await;
    let anonymous = cluster.over_tls(None, None);
    let routes = routes(&cluster).await;
    assert!(routes.len() > 500, "{} routes", routes.len());
    for (method, path) in routes {
        let request = Request::builder().method(&method).uri(&path).body(Vec::new()).unwrap();
        let (status, _, body) = anonymous.send(request).await;
        let wanted = if OPEN.contains(&path.as_str()) { 200 } else { 401 };
        assert_eq!(status.as_u16(), wanted, "{method} {path}: {}", String::from_utf8_lossy(&body));
    }
}

#[tokio::test]
async fn nothing_is_allowed_to_a_stranger_but_discovery() {
    let cluster = Cluster::start().await;
    let stranger = cluster.as_user("stranger", &[]);
    // What `system:basic-user` grants to everyone who is authenticated.
    let own = ["selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"];
    for (method, path) in routes(&cluster).await {
        let resource = RESOURCES.iter().any(|r| path.split(['/', '?']).any(|word| word == r.plural));
        if !resource || own.iter().any(|r| path.ends_with(r)) {
            continue;
        }
        let request = Request::builder().method(&method).uri(&path).body(Vec::new()).unwrap();
        let (status, _, body) = stranger.send(request).await;
        assert_eq!(status.as_u16(), 403, "{method} {path}: {}", String::from_utf8_lossy(&body));
    }
}

#[tokio::test]
async fn every_kind_can_be_listed_and_watched() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for row in RESOURCES.iter().filter(|r| r.verbs.contains(&"list")) {
        let root = if row.group.is_empty() {
            "/api/v1".to_owned()
        } else {
            format!("/apis/{}/{}", row.group, row.version)
        };
        let (code, list) = admin.get(&format!("{root}/{}", row.plural)).await;
        assert_eq!((code, list["kind"].as_str()), (200, Some(row.list_kind().as_str())), "{}", row.plural);
        assert_eq!(list["apiVersion"], row.api_version());
        let version = list["metadata"]["resourceVersion"].as_str().unwrap();
        assert_ne!(version, "0");
    }
}

#[tokio::test]
async fn unknown_things_are_404_and_wrong_methods_405() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for path in [
        "/nope",
        "/api/v2",
        "/apis/nope/v1",
        "/api/v1/nopes",
        "/api/v1/namespaces/default/pods/x/nope",
        "/apis/apps/v1/pods",
    ] {
        assert_eq!(admin.get(path).await.0, 404, "{path}");
    }
    assert_eq!(admin.create("/api/v1/pods", serde_json::json!({})).await.0, 405);
    assert_eq!(admin.delete("/api/v1/namespaces/default/bindings").await.0, 405);
    assert_eq!(admin.get("/apis/authorization.k8s.io/v1/subjectaccessreviews").await.0, 405);
    let large = vec![b' '; 4 * 1024 * 1024];
    let request = Request::post("/api/v1/namespaces/default/configmaps")
        .header("content-type", "application/json")
        .body(large)
        .unwrap();
    assert_eq!(admin.send(request).await.0.as_u16(), 413);
}
