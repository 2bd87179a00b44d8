//! Every route has its authorization: nobody gets through without a right, a user with exactly the
//! right of a route gets through there, and nowhere else.
//!
//! Routes come from the table of kinds, as the router's do, and from the index of paths: a new kind,
//! verb, subresource or path is walked as soon as it is served.

use std::time::Duration;

use decapod_api::resource::{RESOURCES, Resource};
use http::{Method, Request};
use kube::client::Body;
use serde_json::{Value, json};

use crate::harness::{Client, Cluster};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const GROUP: &str = "rbac.authorization.k8s.io";
/// What `system:basic-user` grants to everyone who is authenticated.
const EVERYBODYS: [&str; 3] = ["selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"];
/// The paths that `system:discovery` and `system:public-info-viewer` grant to everyone who is
/// authenticated, and what is below them.
const DISCOVERY: [&str; 4] = ["/api", "/apis", "/openapi", "/version"];
/// What is answered without authentication.
const HEALTH: [&str; 3] = ["/healthz", "/livez", "/readyz"];
/// The subresources that run something in a pod, or reach into it.
const STREAMS: [&str; 3] = ["exec", "attach", "portforward"];
/// A selector that nothing has: collections are deleted in vain.
const NOTHING: &str = "labelSelector=no%3Dsuch&dryRun=All";

struct Route {
    method: Method,
    path: String,
    /// The one rule that allows it.
    rule: Value,
    /// Whether everyone who is authenticated may ask.
    open: bool,
}

fn method(verb: &str) -> Method {
    match verb {
        "create" => Method::POST,
        "update" => Method::PUT,
        "patch" => Method::PATCH,
        "delete" | "deletecollection" => Method::DELETE,
        "get" | "list" | "watch" => Method::GET,
        other => panic!("a route for {other} is not known to this test"),
    }
}

fn of_row(row: &Resource) -> Vec<Route> {
    let root = match row.group {
        "" => format!("/api/{}", row.version),
        group => format!("/apis/{group}/{}", row.version),
    };
    let namespace = if row.namespaced() { "/namespaces/default" } else { "" };
    let all = format!("{root}{namespace}/{}", row.plural);
    let open = EVERYBODYS.contains(&row.plural);
    let rule = |verb: &str, resource: String| json!({"apiGroups": [row.group], "resources": [resource], "verbs": [verb]});
    let mut routes: Vec<Route> = row
        .verbs
        .iter()
        .map(|verb| {
            let path = match *verb {
                "create" | "list" => all.clone(),
                "watch" => format!("{all}?watch=1&timeoutSeconds=1"),
                "deletecollection" => format!("{all}?{NOTHING}"),
                _ => format!("{all}/x"),
            };
            Route { method: method(verb), path, rule: rule(verb, row.plural.to_owned()), open }
        })
        .collect();
    for sub in row.subresources {
        routes.extend(sub.verbs.iter().map(|verb| {
            let mut rule = rule(verb, format!("{}/{}", row.plural, sub.name));
            // WebSockets come in by GET, and need the right to create as well.
            if *verb == "get" && STREAMS.contains(&sub.name) {
                rule["verbs"] = json!(["get", "create"]);
            }
            Route { method: method(verb), path: format!("{all}/x/{}", sub.name), rule, open: false }
        }));
    }
    routes
}

async fn routes(cluster: &Cluster) -> Vec<Route> {
    let mut routes: Vec<Route> = RESOURCES.iter().flat_map(of_row).collect();
    let (_, index) = cluster.admin().get("/").await;
    for path in index["paths"].as_array().unwrap().iter().filter_map(Value::as_str) {
        if HEALTH.iter().any(|health| path.starts_with(health)) {
            continue;
        }
        let open = DISCOVERY.iter().any(|root| path == *root || path.starts_with(&format!("{root}/")));
        let rule = json!({"nonResourceURLs": [path], "verbs": ["get"]});
        routes.push(Route { method: Method::GET, path: path.to_owned(), rule, open });
    }
    routes
}

/// The status of a request without a body; streams are not waited for.
async fn ask(client: &Client, route: &Route) -> u16 {
    let request = Request::builder().method(&route.method).uri(&route.path);
    let request = request.header("content-type", "application/json").body(Body::empty()).unwrap();
    client.0.send(request).await.unwrap().status().as_u16()
}

fn user(index: usize) -> String {
    format!("user-{index}")
}

async fn grant(admin: &Client, index: usize, route: &Route) {
    let name = format!("route-{index}");
    admin
        .created(&format!("{RBAC}/clusterroles"), json!({"metadata": {"name": name}, "rules": [route.rule]}))
        .await;
    let binding = json!({"metadata": {"name": name},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "User", "name": user(index), "apiGroup": GROUP}]});
    admin.created(&format!("{RBAC}/clusterrolebindings"), binding).await;
}

/// The decisions follow the roles a moment later.
async fn through(client: &Client, route: &Route) -> u16 {
    let mut status = 0;
    for _ in 0..6000 {
        status = ask(client, route).await;
        if status != 403 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    status
}

#[tokio::test]
async fn every_route_is_authorized_by_its_own_right_and_by_nothing_else() {
    let cluster = Cluster::start().await;
    let (admin, anonymous, stranger) =
        (cluster.admin(), cluster.over_tls(None, None), cluster.as_user("stranger", &[]));
    let routes = routes(&cluster).await;
    assert!(routes.len() > 600, "{} routes", routes.len());
    for (index, route) in routes.iter().enumerate() {
        grant(&admin, index, route).await;
    }
    for (index, route) in routes.iter().enumerate() {
        let what = format!("{} {} ({})", route.method, route.path, route.rule);
        assert_eq!(ask(&anonymous, route).await, 401, "anonymous: {what}");
        let wanted = if route.open { 401..=403 } else { 403..=403 };
        let refused = ask(&stranger, route).await;
        assert_eq!(wanted.contains(&refused), !route.open, "a stranger got {refused}: {what}");
        let holder = cluster.as_user(&user(index), &[]);
        let status = through(&holder, route).await;
        assert!(!matches!(status, 401 | 403), "the holder of the right got {status}: {what}");
        // The next route that is not everybody's is not theirs.
        let others = routes.iter().cycle().skip(index + 1).take(routes.len());
        let mut others = others.filter(|other| !other.open && other.path != route.path);
        let other = others.next().unwrap();
        assert_eq!(ask(&holder, other).await, 403, "{what} also allows {} {}", other.method, other.path);
    }
}
