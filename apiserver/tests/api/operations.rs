//! What operators rely on: metrics, limits, and the objects of API priority and fairness.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use decapod_apiserver::{Body, Limits, UserInfo};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tower::ServiceExt;

use crate::harness::{Client, Cluster, message};

const FLOW: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

#[tokio::test]
async fn metrics_bear_kubernetes_names() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let map = json!({"metadata": {"name": "a"}});
    admin.created("/api/v1/namespaces/default/configmaps?dryRun=All", map.clone()).await;
    admin.created("/api/v1/namespaces/default/configmaps", map).await;
    let text = admin.get("/metrics").await.1;
    let text = text.as_str().unwrap();
    for line in [
        "# TYPE apiserver_request_total counter",
        "# TYPE apiserver_request_duration_seconds histogram",
        "apiserver_request_total{verb=\"POST\",group=\"\",version=\"v1\",resource=\"configmaps\",subresource=\"\",scope=\"namespace\",component=\"apiserver\",dry_run=\"\",code=\"201\"} 1",
        "apiserver_request_total{verb=\"POST\",group=\"\",version=\"v1\",resource=\"configmaps\",subresource=\"\",scope=\"namespace\",component=\"apiserver\",dry_run=\"All\",code=\"201\"} 1",
        // One is the server's own: it says since when the use of tokens is noted.
        "etcd_requests_total{operation=\"create\",group=\"\",resource=\"configmaps\"} 2",
        "apiserver_storage_objects{resource=\"configmaps\"} 2",
        "apiserver_current_inflight_requests{request_kind=\"readOnly\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
    }
}

/// The metrics that Kubernetes calls stable or beta and that mean something here. Not there: those of admission webhooks
/// and policies, of CEL, of declarative validation, and of configuration files that are reloaded.
const NAMES: [&str; 29] = [
    "apiserver_admission_controller_admission_duration_seconds histogram",
    "apiserver_admission_step_admission_duration_seconds histogram",
    "apiserver_current_inflight_requests gauge",
    "apiserver_flowcontrol_current_executing_requests gauge",
    "apiserver_flowcontrol_current_executing_seats gauge",
    "apiserver_flowcontrol_current_inqueue_requests gauge",
    "apiserver_flowcontrol_dispatched_requests_total counter",
    "apiserver_flowcontrol_nominal_limit_seats gauge",
    "apiserver_flowcontrol_rejected_requests_total counter",
    "apiserver_flowcontrol_request_wait_duration_seconds histogram",
    "apiserver_longrunning_requests gauge",
    "apiserver_request_duration_seconds histogram",
    "apiserver_request_total counter",
    "apiserver_requested_deprecated_apis gauge",
    "apiserver_response_sizes histogram",
    "apiserver_storage_events_received_total counter",
    "apiserver_storage_objects gauge",
    "apiserver_storage_size_bytes gauge",
    "apiserver_watch_events_sizes histogram",
    "apiserver_watch_events_total counter",
    "apiserver_watch_list_duration_seconds histogram",
    "authenticated_user_requests counter",
    "authentication_attempts counter",
    "authorization_attempts_total counter",
    "etcd_request_duration_seconds histogram",
    "etcd_requests_total counter",
    "kubernetes_build_info gauge",
    "kubernetes_healthcheck gauge",
    "kubernetes_healthchecks_total counter",
];

#[tokio::test]
async fn metrics_have_the_types_that_dashboards_rely_on() {
    let cluster = Cluster::start_with(|options, _| {
        options.components =
            Some(|| Ok("# TYPE workqueue_adds counter\nworkqueue_adds_total{name=\"a\"} 1\n".into()));
    })
    .await;
    // What nothing happened to is not shown.
    let admin = cluster.admin();
    let watch = format!("{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan");
    let watch = http::Request::get(watch).body(kube::client::Body::empty()).unwrap();
    let watch = admin.0.send(watch).await.unwrap();
    admin.get("/api/v1/endpoints").await;
    admin.get("/readyz").await;
    cluster.over_tls(None, Some("secret-token")).get("/version").await;
    let text = admin.get("/metrics").await.1;
    let text = text.as_str().unwrap();
    drop(watch);
    for name in NAMES {
        let line = format!("# TYPE {name}");
        assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
    }
    assert!(
        text.contains("# TYPE workqueue_adds_total counter\nworkqueue_adds_total{name=\"a\"} 1\n"),
        "{text}"
    );
}

#[tokio::test]
async fn the_version_tells_what_the_binary_was_built_from() {
    let build = decapod_apiserver::Build {
        git_commit: "8f4c".to_owned(),
        git_tree_state: "clean".to_owned(),
        date: "2026-01-01T00:00:00Z".to_owned(),
    };
    let cluster = Cluster::start_with(|options, _| options.build = build).await;
    let version = cluster.admin().get("/version").await.1;
    for (part, value) in [
        ("gitCommit", "8f4c"),
        ("gitTreeState", "clean"),
        ("buildDate", "2026-01-01T00:00:00Z"),
        ("compiler", "rustc"),
        ("major", "1"),
    ] {
        assert_eq!(version[part], value, "{version}");
    }
    let text = cluster.admin().get("/metrics").await.1;
    let told =
        text.as_str().unwrap().lines().find(|line| line.starts_with("kubernetes_build_info{")).unwrap();
    assert!(
        told.contains("git_commit=\"8f4c\"") && told.contains("build_date=\"2026-01-01T00:00:00Z\""),
        "{told}"
    );
}

#[tokio::test]
async fn a_stop_is_announced_while_all_is_served() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    assert_eq!(admin.get("/readyz").await.0, 200);
    cluster.handle.announce_shutdown().await;
    let told = admin.get("/readyz?verbose").await;
    assert_eq!(told.0, 500, "{}", told.1);
    assert_eq!(admin.get("/livez").await.0, 200);
    admin.created(MAPS, json!({"metadata": {"name": "late"}})).await;
    let tried = "kubernetes_healthchecks_total{name=\"shutdown\",type=\"readyz\",status=";
    assert_eq!(metric(&admin, &format!("{tried}\"success\"}}")).await, 1.0);
    assert_eq!(metric(&admin, &format!("{tried}\"error\"}}")).await, 1.0);
}

#[tokio::test]
async fn bodies_are_as_large_as_the_operator_says() {
    const LIMIT: usize = 1 << 20;
    let cluster = Cluster::start_with(|options, _| {
        options.limits = Limits { body: LIMIT, ..Limits::default() };
    })
    .await;
    let admin = cluster.admin();
    let map = |size: usize| json!({"metadata": {"name": "a"}, "data": {"k": "x".repeat(size)}});
    let refused = admin.create(MAPS, map(LIMIT)).await;
    assert_eq!(refused.0, 413, "{}", refused.1);
    assert!(message(&refused).contains("limit is 1048576"), "{}", refused.1);
    admin.created(MAPS, map(LIMIT / 2)).await;
}

#[tokio::test]
async fn limits_turn_requests_away() {
    let cluster = Cluster::start_with(|options, _| {
        options.limits = Limits { reads: 1, writes: 0, fairness: false, ..Limits::default() };
    })
    .await;
    let admin = cluster.admin();
    let refused = admin.create("/api/v1/namespaces", json!({"metadata": {"name": "a"}})).await;
    assert_eq!((refused.0, &refused.1["reason"]), (429, &json!("TooManyRequests")), "{}", refused.1);
    assert_eq!(refused.1["details"]["retryAfterSeconds"], 1);
    assert_eq!(admin.get("/api/v1/namespaces/default?timeout=30s").await.0, 200);
    let wrong = admin.get("/api/v1/namespaces/default?timeout=soon").await;
    assert_eq!(wrong.0, 400);
    assert!(message(&wrong).starts_with("invalid timeout specified in the request URL"), "{}", wrong.1);
}

#[tokio::test]
async fn flow_schemas_are_made_and_put_right() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let count = |list: serde_json::Value| list["items"].as_array().map(Vec::len);
    assert_eq!(count(admin.get(&format!("{FLOW}/prioritylevelconfigurations")).await.1), Some(8));
    assert_eq!(count(admin.get(&format!("{FLOW}/flowschemas")).await.1), Some(11));
    let shares = |n: u32| json!({"spec": {"limited": {"nominalConcurrencyShares": n}}});
    let level = |name: &str| format!("{FLOW}/prioritylevelconfigurations/{name}");
    let theirs = json!({"metadata": {"annotations": {"apf.kubernetes.io/autoupdate-spec": "false"}}});
    for (name, change) in [("system", shares(7)), ("workload-low", theirs), ("workload-low", shares(7))] {
        let (code, answer) = admin.patch(&level(name), "merge-patch", change).await;
        assert_eq!(code, 200, "{answer}");
    }
    drop(admin);
    let cluster = cluster.restart().await;
    let admin = cluster.admin();
    for (name, wanted) in [("system", 30), ("workload-low", 7)] {
        let now = admin.get(&level(name)).await.1;
        assert_eq!(now["spec"]["limited"]["nominalConcurrencyShares"], wanted, "{name}: {now}");
    }
}

/// The value of a metric; 0 where there is none.
async fn metric(admin: &Client, line: &str) -> f64 {
    let text = admin.get("/metrics").await.1;
    let value = text.as_str().unwrap().lines().find_map(|l| l.strip_prefix(line));
    value.map_or(0.0, |value| value.trim().parse().unwrap())
}

/// Asks again and again until it is so. For ever: on a slow machine only the test's own limit may end it.
async fn until<F: Future<Output = bool>>(mut is_so: impl FnMut() -> F) {
    while !is_so().await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn level(name: &str, shares: u32, response: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"type": "Limited", "limited": {
        "nominalConcurrencyShares": shares, "borrowingLimitPercent": 0, "limitResponse": response}}})
}

fn schema(name: &str, level: &str, user: &str) -> Value {
    let all = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true});
    json!({"metadata": {"name": name}, "spec": {
        "matchingPrecedence": 100, "priorityLevelConfiguration": {"name": level}, "distinguisherMethod": {"type": "ByUser"},
        "rules": [{"subjects": [{"kind": "User", "user": {"name": user}}], "resourceRules": [all],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}]}})
}

/// The headers by which a response says how its request was classified.
async fn classified(client: &Client) -> [String; 2] {
    let request = http::Request::get("/version").body(Vec::new()).unwrap();
    let (_, headers, _) = client.send(request).await;
    ["x-kubernetes-pf-flowschema-uid", "x-kubernetes-pf-prioritylevel-uid"]
        .map(|name| headers.get(name).map_or("", |uid| uid.to_str().unwrap()).to_owned())
}

#[tokio::test]
async fn requests_are_classified_by_flow_schemas() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let level = admin
        .created(&format!("{FLOW}/prioritylevelconfigurations"), level("mine", 5, json!({"type": "Reject"})))
        .await;
    let schema = admin.created(&format!("{FLOW}/flowschemas"), schema("mine", "mine", "noxu")).await;
    let path = format!("{FLOW}/flowschemas/mine");
    let dangling = async |wanted: &str| {
        let now = admin.get(&path).await.1;
        let found = now["status"]["conditions"][0].clone();
        found["type"] == "Dangling" && found["status"] == wanted
    };
    until(|| dangling("False")).await;
    let uid = |object: &Value| object["metadata"]["uid"].as_str().unwrap().to_owned();
    let noxu = cluster.as_user("noxu", &[]);
    assert_eq!(classified(&noxu).await, [uid(&schema), uid(&level)]);
    let other = classified(&cluster.as_user("foo", &[])).await;
    assert!(other.iter().all(|uid| !uid.is_empty()) && other[0] != uid(&schema), "{other:?}");

    assert_eq!(admin.delete(&format!("{FLOW}/prioritylevelconfigurations/mine")).await.0, 200);
    until(|| dangling("True")).await;
    let message = admin.get(&path).await.1["status"]["conditions"][0]["message"].clone();
    assert_eq!(
        message,
        "This FlowSchema references the PriorityLevelConfiguration object named \"mine\" but there is no such object"
    );
    until(async || classified(&noxu).await == other).await;

    // What every cluster has comes back.
    let suggested = format!("{FLOW}/prioritylevelconfigurations/workload-low");
    assert_eq!(admin.delete(&suggested).await.0, 200);
    until(async || admin.get(&suggested).await.0 == 200).await;
}

/// A request whose body does not end yet.
struct Unfinished {
    sender: futures::channel::mpsc::UnboundedSender<Result<Frame<Bytes>, Infallible>>,
    answer: JoinHandle<http::Response<Body>>,
}

impl Unfinished {
    /// Begins to create a config map.
    fn begin(cluster: &Cluster, user: &str, path: &str) -> Self {
        let (sender, body) = futures::channel::mpsc::unbounded();
        let request = http::Request::post(path).header("content-type", "application/json");
        let request = request.body(StreamBody::new(body)).unwrap();
        sender.unbounded_send(Ok(Frame::data(Bytes::from_static(b"{\"metadata\": ")))).unwrap();
        let service = cluster.handle.service_as(UserInfo::new(user, &[]));
        let answer = tokio::spawn(async move { service.oneshot(request).await.unwrap() });
        Self { sender, answer }
    }

    /// Sends the rest of it.
    async fn finish(self, name: &str) -> u16 {
        let rest = format!("{{\"name\": \"{name}\"}}}}");
        self.sender.unbounded_send(Ok(Frame::data(rest.into()))).unwrap();
        drop(self.sender);
        self.answer.await.unwrap().status().as_u16()
    }
}

/// Lets users do everything without their being exempt from flow control.
async fn grant(admin: &Client, users: &[&str]) {
    let subject =
        |name: &&str| json!({"kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io"});
    let subjects: Vec<Value> = users.iter().map(subject).collect();
    let role =
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"});
    let binding = json!({"metadata": {"name": "all"}, "roleRef": role, "subjects": subjects});
    admin.created("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn who_finds_no_seat_is_turned_away_or_waits() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    grant(&admin, &["rejected", "queued"]).await;
    let queues = json!({"type": "Queue", "queuing": {"queues": 1, "handSize": 1, "queueLengthLimit": 1}});
    for (name, response) in [("rejected", json!({"type": "Reject"})), ("queued", queues)] {
        // One share of many is one seat.
        admin.created(&format!("{FLOW}/prioritylevelconfigurations"), level(name, 1, response)).await;
        let schema = admin.created(&format!("{FLOW}/flowschemas"), schema(name, name, name)).await;
        let uid = schema["metadata"]["uid"].as_str().unwrap();
        let client = cluster.as_user(name, &[]);
        until(async || client.get(MAPS).await.0 == 200 && classified(&client).await[0] == uid).await;
    }
    let of = |metric: &str, name: &str| {
        format!("apiserver_flowcontrol_{metric}{{priority_level=\"{name}\",flow_schema=\"{name}\"")
    };
    let executing = |name: &str| of("current_executing_requests", name) + "}";
    let seats =
        metric(&admin, "apiserver_flowcontrol_nominal_limit_seats{priority_level=\"queued\"}").await as usize;

    let rejected = cluster.as_user("rejected", &[]);
    let held: Vec<_> = (0..seats).map(|_| Unfinished::begin(&cluster, "rejected", MAPS)).collect();
    until(async || metric(&admin, &executing("rejected")).await == seats as f64).await;
    let request = http::Request::get(MAPS).body(Vec::new()).unwrap();
    let (status, headers, _) = rejected.send(request).await;
    assert_eq!((status.as_u16(), &headers["retry-after"]), (429, &http::HeaderValue::from_static("1")));
    assert!(headers.contains_key("x-kubernetes-pf-flowschema-uid"));
    let reason = of("rejected_requests_total", "rejected") + ",reason=\"concurrency-limit\"}";
    assert_eq!(metric(&admin, &reason).await, 1.0);
    for (n, held) in held.into_iter().enumerate() {
        assert_eq!(held.finish(&format!("rejected-{n}")).await, 201);
    }
    assert_eq!(rejected.get(MAPS).await.0, 200);

    let queued = cluster.as_user("queued", &[]);
    let mut held: Vec<_> = (0..seats).map(|_| Unfinished::begin(&cluster, "queued", MAPS)).collect();
    until(async || metric(&admin, &executing("queued")).await == seats as f64).await;
    let waiting = tokio::spawn({
        let queued = queued.clone();
        async move { queued.get(MAPS).await.0 }
    });
    until(async || metric(&admin, &(of("current_inqueue_requests", "queued") + "}")).await == 1.0).await;
    assert_eq!(queued.get(MAPS).await.0, 429, "the queue is full");
    assert_eq!(held.pop().unwrap().finish("queued").await, 201);
    assert_eq!(waiting.await.unwrap(), 200);
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_ended() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    grant(&admin, &["slow"]).await;
    until(async || cluster.as_user("slow", &[]).get(MAPS).await.0 == 200).await;
    // Its body never ends.
    let unfinished = Unfinished::begin(&cluster, "slow", &format!("{MAPS}?timeout=50ms"));
    let response = unfinished.answer.await.unwrap();
    assert_eq!(response.status(), 504);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let status: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(status["reason"], "Timeout", "{status}");
}

#[tokio::test]
async fn a_stopping_server_lets_open_requests_end() {
    let cluster = Cluster::start_with(|options, _| {
        // Never reached, however slow the machine is.
        options.limits.drain = Duration::from_secs(600);
    })
    .await;
    let admin = cluster.admin();
    grant(&admin, &["jane"]).await;
    until(async || cluster.as_user("jane", &[]).get(MAPS).await.0 == 200).await;
    let client = cluster.over_tls(None, Some("secret-token"));
    let watch = http::Request::get(format!("{MAPS}?watch=true")).body(kube::client::Body::empty()).unwrap();
    let watch = client.0.send(watch).await.unwrap();
    let (first, rest) = ("{\"metadata\": ", "{\"name\": \"late\"}}");
    let mut connection = cluster.connect().await;
    let head = format!(
        "POST {MAPS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret-token\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{first}",
        first.len() + rest.len()
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    let writing = "apiserver_current_inflight_requests{request_kind=\"mutating\"}";
    until(async || metric(&admin, writing).await == 1.0).await;

    let handle = cluster.handle.clone();
    let stopped = tokio::spawn(async move { handle.shutdown().await });
    // The watch ends, and cleanly: as if its time had come.
    watch.into_body().collect().await.unwrap();
    assert!(!cluster.handle.ready().await);
    until(async || tokio::net::TcpStream::connect(cluster.handle.address()).await.is_err()).await;
    assert!(!stopped.is_finished(), "a request is open");
    connection.write_all(rest.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    connection.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 201");
    drop(connection);
    stopped.await.unwrap();
}
