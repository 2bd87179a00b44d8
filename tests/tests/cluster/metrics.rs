//! What dashboards read is there, under Kubernetes' names: of the API server and of what runs in one process with it, and
//! of the node.

use anyhow::{Result, ensure};
use decapod_tests::cluster::Cluster;

/// What the API server's `/metrics` has once a cluster ran: all that Kubernetes calls stable and that means something
/// here, what it calls beta, and the rest that dashboards are made of. Not there: those of admission webhooks and policies,
/// and those that are seen once a Job or CronJob ran; what pods ask for one by one is at `/metrics/resources`.
const CONTROL_PLANE: &[&str] = &[
    "apiserver_admission_controller_admission_duration_seconds histogram",
    "apiserver_admission_step_admission_duration_seconds histogram",
    "apiserver_current_inflight_requests gauge",
    "apiserver_flowcontrol_dispatched_requests_total counter",
    "apiserver_longrunning_requests gauge",
    "apiserver_request_duration_seconds histogram",
    "apiserver_request_total counter",
    "apiserver_response_sizes histogram",
    "apiserver_storage_events_received_total counter",
    "apiserver_storage_objects gauge",
    "apiserver_storage_size_bytes gauge",
    "apiserver_watch_events_sizes histogram",
    "apiserver_watch_events_total counter",
    "kubernetes_build_info gauge",
    "kubernetes_healthcheck gauge",
    "kubernetes_healthchecks_total counter",
    "rest_client_request_duration_seconds histogram",
    "rest_client_requests_total counter",
    "scheduler_framework_extension_point_duration_seconds histogram",
    "scheduler_pending_pods gauge",
    "scheduler_pod_scheduling_attempts histogram",
    "scheduler_pod_scheduling_sli_duration_seconds histogram",
    "scheduler_preemption_attempts_total counter",
    "scheduler_preemption_victims histogram",
    "scheduler_queue_incoming_pods_total counter",
    "scheduler_schedule_attempts_total counter",
    "scheduler_scheduling_attempt_duration_seconds histogram",
    "workqueue_adds_total counter",
    "workqueue_depth gauge",
    "workqueue_queue_duration_seconds histogram",
    "workqueue_work_duration_seconds histogram",
];

/// What the node's `/metrics` has.
const NODE: &[&str] = &[
    "kubelet_node_name gauge",
    "kubelet_running_pods gauge",
    "kubeproxy_sync_proxy_rules_duration_seconds histogram",
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds gauge",
    "kubeproxy_sync_proxy_rules_service_changes_total counter",
    "rest_client_requests_total counter",
];

/// What the node tells of usage.
const RESOURCES: &[&str] = &[
    "container_cpu_usage_seconds_total counter",
    "container_memory_working_set_bytes gauge",
    "container_start_time_seconds gauge",
    "node_cpu_usage_seconds_total counter",
    "node_memory_working_set_bytes gauge",
    "pod_cpu_usage_seconds_total counter",
    "pod_memory_working_set_bytes gauge",
    "resource_scrape_error gauge",
];

pub(crate) fn bear_kubernetes_names(cluster: &Cluster) -> Result<()> {
    // So that there is something to tell of health.
    cluster.k(&["get", "--raw", "/readyz"])?;
    let node =
        cluster.get(&["nodes"])?["items"][0]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let node = format!("/api/v1/nodes/{node}/proxy/metrics");
    for (path, names) in
        [("/metrics", CONTROL_PLANE), (&node, NODE), (&format!("{node}/resource"), RESOURCES)]
    {
        let text = cluster.k(&["get", "--raw", path])?;
        let missing: Vec<_> =
            names.iter().filter(|name| !text.lines().any(|line| line == format!("# TYPE {name}"))).collect();
        ensure!(missing.is_empty(), "{path} lacks {missing:?}");
        let mut types: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE ")).collect();
        let all = types.len();
        types.sort_unstable();
        types.dedup();
        ensure!(types.len() == all, "{path} tells a type twice, which scrapers refuse");
    }
    Ok(())
}
