//! Admission: what a namespace and the cluster's classes add to objects, and what they refuse.

use serde_json::{Value, json};

use crate::harness::{Client, Cluster, message, pod};

const PODS: &str = "/api/v1/namespaces/default/pods";
const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";

async fn ready() -> (Cluster, Client) {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.service_account("default").await;
    (cluster, admin)
}

fn pod_with(name: &str, resources: Value) -> Value {
    let mut pod = pod(name);
    pod["spec"]["containers"][0]["resources"] = resources;
    pod
}

fn claim(name: &str, size: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": size}}}})
}

#[tokio::test]
async fn limit_range_should_create_a_limit_range_with_defaults_and_ensure_pod_has_those_defaults_applied() {
    let (_cluster, admin) = ready().await;
    let range = json!({"metadata": {"name": "r"}, "spec": {"limits": [{"type": "Container",
        "min": {"cpu": "50m", "memory": "100Mi"}, "max": {"cpu": "500m", "memory": "500Mi"},
        "default": {"cpu": "500m", "memory": "500Mi"}, "defaultRequest": {"cpu": "100m", "memory": "200Mi"}}]}});
    admin.created("/api/v1/namespaces/default/limitranges", range).await;
    let made = admin.created(PODS, pod("p")).await;
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({"requests": {"cpu": "100m", "memory": "200Mi"}, "limits": {"cpu": "500m", "memory": "500Mi"}})
    );
    assert_eq!(made["status"]["qosClass"], "Burstable", "the class counts what admission completed");
    let partial = admin.created(PODS, pod_with("q", json!({"requests": {"memory": "150Mi"}}))).await;
    assert_eq!(
        partial["spec"]["containers"][0]["resources"]["requests"],
        json!({"cpu": "100m", "memory": "150Mi"})
    );
    let low =
        admin.create(PODS, pod_with("low", json!({"requests": {"cpu": "10m", "memory": "50Mi"}}))).await;
    assert_eq!(low.0, 403);
    assert_eq!(
        message(&low),
        "pods \"low\" is forbidden: [minimum cpu usage per Container is 50m, but request is 10m, minimum memory usage per Container is 100Mi, but request is 50Mi]"
    );
    let high = admin.create(PODS, pod_with("high", json!({"limits": {"cpu": "600m"}}))).await;
    assert!(
        message(&high).contains("maximum cpu usage per Container is 500m, but limit is 600m"),
        "{high:?}"
    );
}

#[tokio::test]
async fn claims_get_their_class_and_their_finalizer_and_grow_where_it_allows() {
    let (_cluster, admin) = ready().await;
    let none = admin.created(CLAIMS, claim("none", "1Gi")).await;
    assert!(none["spec"]["storageClassName"].is_null());
    assert_eq!(none["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    for (name, default, expand) in [("fast", "true", true), ("slow", "false", false)] {
        let class = json!({"metadata": {"name": name, "annotations": {"storageclass.kubernetes.io/is-default-class": default}},
            "provisioner": "example.com/x", "allowVolumeExpansion": expand});
        admin.created("/apis/storage.k8s.io/v1/storageclasses", class).await;
    }
    assert_eq!(admin.created(CLAIMS, claim("a", "1Gi")).await["spec"]["storageClassName"], "fast");
    let mut unclassed = claim("unclassed", "1Gi");
    unclassed["spec"]["storageClassName"] = "".into();
    assert_eq!(admin.created(CLAIMS, unclassed).await["spec"]["storageClassName"], "");
    let mut slow = claim("b", "1Gi");
    slow["spec"]["storageClassName"] = "slow".into();
    admin.created(CLAIMS, slow).await;
    let grow = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    let early = admin.patch(&format!("{CLAIMS}/a"), "merge-patch", grow.clone()).await;
    assert_eq!(early.0, 422);
    assert!(
        message(&early).contains("spec is immutable after creation except resources.requests"),
        "{early:?}"
    );
    for name in ["a", "b"] {
        let bound = json!({"status": {"phase": "Bound"}});
        let path = format!("{CLAIMS}/{name}/status");
        assert_eq!(admin.patch(&path, "merge-patch", bound).await.0, 200);
    }
    let (code, grown) = admin.patch(&format!("{CLAIMS}/a"), "merge-patch", grow.clone()).await;
    assert_eq!(code, 200, "{grown}");
    let refused = admin.patch(&format!("{CLAIMS}/b"), "merge-patch", grow).await;
    assert!(message(&refused).contains("only dynamically provisioned pvc can be resized"), "{refused:?}");
}

#[tokio::test]
async fn classes_complete_ingresses_pods_and_nodes() {
    let (_cluster, admin) = ready().await;
    let class = json!({"metadata": {"name": "web", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
        "spec": {"controller": "example.com/c"}});
    admin.created("/apis/networking.k8s.io/v1/ingressclasses", class).await;
    let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
    let ingress = json!({"metadata": {"name": "i"}, "spec": {"defaultBackend": backend}});
    let made = admin.created("/apis/networking.k8s.io/v1/namespaces/default/ingresses", ingress).await;
    assert_eq!(made["spec"]["ingressClassName"], "web");

    let runtime = json!({"metadata": {"name": "vm"}, "handler": "vm", "overhead": {"podFixed": {"cpu": "250m"}},
        "scheduling": {"nodeSelector": {"vm": "yes"}}});
    admin.created("/apis/node.k8s.io/v1/runtimeclasses", runtime).await;
    let mut in_vm = pod("v");
    in_vm["spec"]["runtimeClassName"] = "vm".into();
    let made = admin.created(PODS, in_vm).await;
    assert_eq!(
        (&made["spec"]["overhead"]["cpu"], &made["spec"]["nodeSelector"]["vm"]),
        (&json!("250m"), &json!("yes"))
    );
    let mut unknown = pod("u");
    unknown["spec"]["runtimeClassName"] = "none".into();
    let unknown = admin.create(PODS, unknown).await;
    assert_eq!(message(&unknown), "pods \"u\" is forbidden: pod rejected: RuntimeClass \"none\" not found");
    let mut unexplained = pod("o");
    unexplained["spec"]["overhead"] = json!({"cpu": "1"});
    assert_eq!(admin.create(PODS, unexplained).await.0, 403);

    let node = admin.created("/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    assert_eq!(node["spec"]["taints"][0]["key"], "node.kubernetes.io/not-ready");
    let default = |name: &str| json!({"metadata": {"name": name}, "value": 10, "globalDefault": true});
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    admin.created(classes, default("one")).await;
    let second = admin.create(classes, default("two")).await;
    assert!(
        message(&second)
            .ends_with("PriorityClass one is already marked as default. Only one default can exist")
    );
    assert_eq!(admin.created(PODS, pod("p")).await["spec"]["priority"], 10);
}

#[tokio::test]
async fn nothing_is_made_in_a_namespace_that_is_going() {
    let (_cluster, admin) = ready().await;
    admin.namespace("going").await;
    assert_eq!(admin.delete("/api/v1/namespaces/going").await.0, 200);
    let late = admin.create("/api/v1/namespaces/going/configmaps", json!({"metadata": {"name": "m"}})).await;
    assert_eq!((late.0, late.1["reason"].as_str()), (403, Some("Forbidden")));
    assert_eq!(
        message(&late),
        "configmaps \"m\" is forbidden: unable to create new content in namespace going because it is being terminated"
    );
    assert_eq!(
        late.1["details"]["causes"],
        json!([{"reason": "NamespaceTerminating", "message": "namespace going is being terminated", "field": "metadata.namespace"}])
    );
    for name in ["default", "kube-system", "kube-public"] {
        assert_eq!(admin.delete(&format!("/api/v1/namespaces/{name}")).await.0, 403);
    }
}

#[tokio::test]
async fn an_eviction_asks_the_disruption_budget() {
    let (_cluster, admin) = ready().await;
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    for name in ["a", "b"] {
        let mut pod = pod(name);
        pod["metadata"]["labels"] = json!({"app": "web"});
        admin.created(PODS, pod).await;
        let running =
            json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        assert_eq!(admin.patch(&format!("{PODS}/{name}/status"), "merge-patch", running).await.0, 200);
    }
    let budget = json!({"metadata": {"name": "web"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    admin.created(budgets, budget.clone()).await;
    let evict = |name: &str, query: &str| {
        let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
        let path = format!("{PODS}/{name}/eviction{query}");
        let admin = admin.clone();
        async move { admin.create(&path, body).await }
    };
    let unseen = evict("a", "").await;
    assert_eq!((unseen.0, unseen.1["details"]["retryAfterSeconds"].as_i64()), (429, Some(10)));
    let status = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2,
        "desiredHealthy": 1, "expectedPods": 2}});
    assert_eq!(admin.patch(&format!("{budgets}/web/status"), "merge-patch", status).await.0, 200);
    assert_eq!(evict("a", "?dryRun=All").await.0, 201);
    let both = futures::future::join(evict("a", ""), evict("b", "")).await;
    let mut codes = [both.0.0, both.1.0];
    codes.sort_unstable();
    assert_eq!(codes, [201, 429], "the budget allows one: {both:?}");
    let refused = if both.0.0 == 429 { both.0 } else { both.1 };
    assert_eq!(message(&refused), "Cannot evict pod as it would violate the pod's disruption budget.");
    assert_eq!(refused.1["details"]["causes"][0]["reason"], "DisruptionBudget");
    let (_, charged) = admin.get(&format!("{budgets}/web")).await;
    assert_eq!(charged["status"]["disruptionsAllowed"], 0);
    assert_eq!(charged["status"]["disruptedPods"].as_object().unwrap().len(), 1);
    let mut second = budget;
    second["metadata"]["name"] = "again".into();
    admin.created(budgets, second).await;
    let left = if admin.get(&format!("{PODS}/a")).await.0 == 200 { "a" } else { "b" };
    let many = evict(left, "").await;
    assert_eq!(many.0, 500);
    assert!(message(&many).starts_with("This pod has more than one PodDisruptionBudget"), "{many:?}");
}

/// [sig-api-machinery] ResourceQuota: what the API server does of it; the controller's part is told here.
#[tokio::test]
async fn writes_at_once_never_exceed_a_quota() {
    let (_cluster, admin) = ready().await;
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let hard = json!({"pods": "5", "requests.cpu": "1", "count/configmaps": "1", "services.nodeports": "1"});
    admin.created(quotas, json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})).await;
    let used = json!({"pods": "0", "requests.cpu": "0", "count/configmaps": "0", "services.nodeports": "0"});
    let status = json!({"status": {"hard": hard, "used": used}});
    assert_eq!(admin.patch(&format!("{quotas}/q/status"), "merge-patch", status).await.0, 200);
    let small = || json!({"requests": {"cpu": "100m"}});
    let silent = admin.create(PODS, pod("silent")).await;
    assert_eq!(
        message(&silent),
        "pods \"silent\" is forbidden: failed quota: q: must specify requests.cpu for: c"
    );
    let dry = admin.create(&format!("{PODS}?dryRun=All"), pod_with("dry", small())).await;
    assert_eq!(dry.0, 201);
    let all = (0..12).map(|i| admin.create(PODS, pod_with(&format!("p{i}"), small())));
    let answers = futures::future::join_all(all).await;
    assert_eq!(answers.iter().filter(|a| a.0 == 201).count(), 5, "{answers:?}");
    let refused = answers.iter().find(|a| a.0 == 403).unwrap();
    assert!(
        message(refused).ends_with("exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5"),
        "{refused:?}"
    );
    let (_, quota) = admin.get(&format!("{quotas}/q")).await;
    assert_eq!(
        (&quota["status"]["used"]["pods"], &quota["status"]["used"]["requests.cpu"]),
        (&json!("5"), &json!("500m"))
    );
    let maps = "/api/v1/namespaces/default/configmaps";
    admin.created(maps, json!({"metadata": {"name": "a"}})).await;
    let second = admin.create(maps, json!({"metadata": {"name": "b"}})).await;
    assert!(message(&second).contains("requested: count/configmaps=1"), "{second:?}");
    let services = "/api/v1/namespaces/default/services";
    admin.created(services, json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}})).await;
    let patch = |kind: &str| {
        let (admin, patch) = (admin.clone(), json!({"spec": {"type": kind}}));
        async move { admin.patch(&format!("{services}/s"), "merge-patch", patch).await }
    };
    assert_eq!(patch("NodePort").await.0, 200);
    assert_eq!(admin.get(&format!("{quotas}/q")).await.1["status"]["used"]["services.nodeports"], "1");
    let two = json!({"spec": {"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "b"}]}});
    let more = admin.patch(&format!("{services}/s"), "merge-patch", two).await;
    assert!(message(&more).contains("services.nodeports=1"), "{more:?}");
}

#[tokio::test]
async fn a_namespace_enforces_and_warns_of_pod_security() {
    let (_cluster, admin) = ready().await;
    let namespaces = "/api/v1/namespaces";
    let labelled = |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}});
    let bad = admin
        .create(namespaces, labelled("bad", json!({"pod-security.kubernetes.io/enforce": "strict"})))
        .await;
    assert_eq!(bad.0, 422);
    assert!(message(&bad).contains("must be one of privileged, baseline, restricted"), "{bad:?}");
    admin
        .created(namespaces, labelled("strict", json!({"pod-security.kubernetes.io/enforce": "restricted"})))
        .await;
    admin.service_account("strict").await;
    let refused = admin.create("/api/v1/namespaces/strict/pods", pod("p")).await;
    assert_eq!(refused.0, 403);
    assert!(
        message(&refused).starts_with("pods \"p\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), "),
        "{refused:?}"
    );
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod("x")["spec"]}}});
    let request = http::Request::post("/apis/apps/v1/namespaces/strict/deployments")
        .header("content-type", "application/json")
        .body(deployment.to_string().into_bytes())
        .unwrap();
    let (status, headers, _) = admin.send(request).await;
    assert_eq!(status, 201, "templates are only warned of");
    let warning = headers.get("warning").unwrap().to_str().unwrap();
    assert!(
        warning.starts_with("299 - \"would violate PodSecurity \\\"restricted:latest\\\": "),
        "{warning}"
    );

    let mut privileged = pod("root");
    privileged["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    admin.created(PODS, privileged).await;
    let patch = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}});
    let request = http::Request::patch(format!("{namespaces}/default"))
        .header("content-type", "application/merge-patch+json")
        .body(patch.to_string().into_bytes())
        .unwrap();
    let (status, headers, _) = admin.send(request).await;
    assert_eq!(status, 200);
    let warnings: Vec<&str> =
        headers.get_all("warning").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[1].ends_with("root: privileged\""), "{warnings:?}");
}

/// What a file says holds where namespaces say nothing, except for those whom it exempts.
#[tokio::test]
async fn pod_security_has_configured_defaults_and_exemptions() {
    let cluster = Cluster::start_with(|options, dir| {
        let file = dir.join("admission.yaml");
        let config = "
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: PodSecurity
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/v1
    kind: PodSecurityConfiguration
    defaults: {enforce: baseline, warn: restricted}
    exemptions: {usernames: [builder], runtimeClasses: [], namespaces: [infra]}
";
        std::fs::write(&file, config).unwrap();
        options.admission_config = Some(file);
    })
    .await;
    let admin = cluster.admin();
    for namespace in ["web", "infra"] {
        admin.namespace(namespace).await;
    }
    let mut privileged = pod("p");
    privileged["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    let refused = admin.create("/api/v1/namespaces/web/pods", privileged.clone()).await;
    assert_eq!(refused.0, 403);
    assert!(message(&refused).contains("violates PodSecurity \"baseline:latest\""), "{refused:?}");
    admin.created("/api/v1/namespaces/infra/pods", privileged.clone()).await;
    let builder = cluster.as_user("builder", &["system:masters"]);
    builder.created("/api/v1/namespaces/web/pods", privileged.clone()).await;
    // A namespace's own word counts more.
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}});
    let (code, answer) = admin.patch("/api/v1/namespaces/web", "merge-patch", labels).await;
    assert_eq!(code, 200, "{answer}");
    privileged["metadata"]["name"] = "q".into();
    admin.created("/api/v1/namespaces/web/pods", privileged).await;
}
