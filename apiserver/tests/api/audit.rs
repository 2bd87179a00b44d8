//! The audit log: what is recorded of which request.

use std::path::Path;
use std::time::Duration;

use decapod_apiserver::pki::CertificateRequest;
use decapod_apiserver::{AuditOptions, LogOptions, WebhookOptions};
use http::Request;
use serde_json::{Value, json};

use crate::harness::Cluster;

const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  nonResourceURLs: ["/version*"]
- level: Metadata
  resources: [{group: "", resources: [secrets]}]
- level: RequestResponse
  verbs: [create]
  resources: [{group: "", resources: [configmaps]}]
- level: Metadata
"#;

async fn audited() -> (Cluster, std::path::PathBuf) {
    let mut log = std::path::PathBuf::new();
    let cluster = Cluster::start_with(|options, dir| {
        let policy_file = dir.join("policy.yaml");
        std::fs::write(&policy_file, POLICY).unwrap();
        log = dir.join("logs/audit.log");
        let log = LogOptions { path: log.clone(), max_size: 1, max_age: 0, max_backups: 0 };
        options.audit = Some(AuditOptions { policy_file, log: Some(log), webhook: None });
    });
    (cluster.await, log)
}

/// The events of a request, once there are so many.
async fn events(log: &Path, id: &str, count: usize) -> Vec<Value> {
    let mut found = Vec::new();
    for _ in 0..6000 {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let all = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        found = all.filter(|event| event["auditID"] == id).collect();
        if found.len() >= count {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{count} events of {id} were wanted, there are {found:?}");
}

fn request(method: &str, path: &str, id: &str, body: &Value) -> Request<Vec<u8>> {
    let request = Request::builder().method(method).uri(path).header("audit-id", id);
    let request = request.header("content-type", "application/json").header("user-agent", "tests");
    request.body(body.to_string().into_bytes()).unwrap()
}

#[tokio::test]
async fn requests_are_recorded_as_the_policy_says() {
    let (cluster, log) = audited().await;
    let root = cluster.over_tls(Some(CertificateRequest::client("root", &["system:masters"])), None);
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = json!({"metadata": {"name": "a"}, "data": {"k": "v"}});
    let (_, headers, _) = root.send(request("POST", maps, "one", &map)).await;
    assert_eq!(headers["audit-id"], "one");
    let event = &events(&log, "one", 1).await[0];
    assert_eq!(event["stage"], "ResponseComplete");
    assert_eq!((&event["level"], &event["verb"]), (&json!("RequestResponse"), &json!("create")));
    assert_eq!(event["user"]["username"], "root");
    assert_eq!(event["sourceIPs"], json!(["127.0.0.1"]));
    assert_eq!(event["userAgent"], "tests");
    let reference =
        json!({"resource": "configmaps", "namespace": "default", "name": "a", "apiVersion": "v1"});
    assert_eq!(event["objectRef"], reference);
    assert_eq!(event["responseStatus"]["code"], 201);
    assert_eq!(event["requestObject"]["data"]["k"], "v");
    assert!(event["responseObject"]["metadata"]["uid"].is_string());
    assert_eq!(event["annotations"]["authorization.k8s.io/decision"], "allow");

    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "hidden"}});
    root.send(request("POST", "/api/v1/namespaces/default/secrets", "two", &secret)).await;
    let event = &events(&log, "two", 1).await[0];
    assert_eq!(event["objectRef"]["name"], "s");
    assert!(!event.to_string().contains("hidden"), "no more than the policy says");

    root.send(request("GET", "/version", "three", &Value::Null)).await;
    root.send(request("GET", &format!("{maps}/gone"), "four", &Value::Null)).await;
    let event = &events(&log, "four", 1).await[0];
    assert_eq!(
        (&event["responseStatus"]["code"], &event["responseStatus"]["reason"]),
        (&json!(404), &json!("NotFound"))
    );
    assert!(!std::fs::read_to_string(&log).unwrap().contains("\"three\""), "level None");
}

#[tokio::test]
async fn refusals_impersonation_and_watches_are_recorded() {
    let (cluster, log) = audited().await;
    let nobody = cluster.over_tls(None, None);
    nobody.send(request("GET", "/api/v1/pods", "nobody", &Value::Null)).await;
    let event = &events(&log, "nobody", 1).await[0];
    assert_eq!(event["responseStatus"]["code"], 401);
    let jane = cluster.over_tls(None, Some("secret-token"));
    jane.send(request("GET", "/api/v1/pods", "jane", &Value::Null)).await;
    let event = &events(&log, "jane", 1).await[0];
    assert_eq!(event["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(event["responseStatus"]["reason"], "Forbidden");
    let root = cluster.over_tls(Some(CertificateRequest::client("root", &["system:masters"])), None);
    let mut as_jane = request("GET", "/api/v1/pods", "as-jane", &Value::Null);
    as_jane.headers_mut().insert("impersonate-user", "jane".parse().unwrap());
    root.send(as_jane).await;
    let event = &events(&log, "as-jane", 1).await[0];
    assert_eq!(
        (&event["user"]["username"], &event["impersonatedUser"]["username"]),
        (&json!("root"), &json!("jane"))
    );
    let constraint = &event["authenticationMetadata"]["impersonationConstraint"];
    assert_eq!(constraint, "impersonate:user-info");
    root.send(request("GET", "/api/v1/pods?watch=1&timeoutSeconds=1", "watch", &Value::Null)).await;
    let stages: Vec<Value> =
        events(&log, "watch", 2).await.iter().map(|event| event["stage"].clone()).collect();
    assert_eq!(stages, ["ResponseStarted", "ResponseComplete"]);
}

/// A webhook in small: refuses as many batches as told, then keeps what it gets.
#[derive(Clone, Default)]
struct Receiver {
    refusals: std::sync::Arc<std::sync::atomic::AtomicUsize>,
    events: std::sync::Arc<std::sync::Mutex<Vec<Value>>>,
}

impl Receiver {
    /// Listens; returns its address.
    async fn serve(&self) -> std::net::SocketAddr {
        let receiver = self.clone();
        let take = move |axum::Json(list): axum::Json<Value>| {
            let receiver = receiver.clone();
            async move { receiver.take(&list) }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = axum::Router::new().route("/events", axum::routing::post(take));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        address
    }

    fn take(&self, list: &Value) -> http::StatusCode {
        use std::sync::atomic::Ordering;
        assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("EventList"), &json!("audit.k8s.io/v1")));
        let left = self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if left.is_ok() {
            return http::StatusCode::SERVICE_UNAVAILABLE;
        }
        self.events.lock().unwrap().extend(list["items"].as_array().unwrap().iter().cloned());
        http::StatusCode::OK
    }

    /// The events of a request, once there is one.
    async fn of(&self, id: &str) -> Vec<Value> {
        for _ in 0..3000 {
            let all = self.events.lock().unwrap().clone();
            let found: Vec<Value> = all.into_iter().filter(|event| event["auditID"] == id).collect();
            if !found.is_empty() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no event of {id} came");
    }
}

async fn hooked(address: std::net::SocketAddr) -> Cluster {
    Cluster::start_with(|options, dir| {
        let (policy_file, config_file) = (dir.join("policy.yaml"), dir.join("webhook.yaml"));
        std::fs::write(&policy_file, POLICY).unwrap();
        let config = format!("clusters: [{{name: audit, cluster: {{server: 'http://{address}/events'}}}}]");
        std::fs::write(&config_file, config).unwrap();
        let webhook = WebhookOptions {
            batch_max_wait: Duration::from_millis(50),
            initial_backoff: Duration::from_millis(10),
            ..WebhookOptions::new(config_file)
        };
        options.audit = Some(AuditOptions { policy_file, log: None, webhook: Some(webhook) });
    })
    .await
}

#[tokio::test]
async fn a_webhook_gets_events_once_also_where_it_refuses_at_first() {
    let receiver = Receiver::default();
    receiver.refusals.store(2, std::sync::atomic::Ordering::SeqCst);
    let cluster = hooked(receiver.serve().await).await;
    let admin = cluster.admin();
    admin.send(request("GET", "/api/v1/namespaces/default/pods", "first", &Value::Null)).await;
    let first = receiver.of("first").await;
    assert_eq!(first.len(), 1);
    assert_eq!((&first[0]["stage"], &first[0]["level"]), (&json!("ResponseComplete"), &json!("Metadata")));
    admin.send(request("GET", "/api/v1/nodes", "second", &Value::Null)).await;
    assert_eq!(receiver.of("second").await.len(), 1);
    // What waits is sent when the server stops.
    admin.send(request("GET", "/api/v1/nodes", "last", &Value::Null)).await;
    cluster.handle.shutdown().await;
    assert_eq!(receiver.of("last").await.len(), 1);
}

#[tokio::test]
async fn what_a_webhook_never_takes_is_counted() {
    let receiver = Receiver::default();
    receiver.refusals.store(usize::MAX, std::sync::atomic::Ordering::SeqCst);
    let cluster = hooked(receiver.serve().await).await;
    let admin = cluster.admin();
    admin.send(request("GET", "/api/v1/nodes", "lost", &Value::Null)).await;
    let mut metrics = String::new();
    for _ in 0..3000 {
        let (_, _, bytes) = admin.send(Request::get("/metrics").body(Vec::new()).unwrap()).await;
        metrics = String::from_utf8(bytes).unwrap();
        if metrics.contains("apiserver_audit_error_total{plugin=\"webhook\"}") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(metrics.contains("apiserver_audit_error_total{plugin=\"webhook\"}"), "{metrics}");
    assert!(metrics.contains("apiserver_audit_event_total"), "{metrics}");
}
