//! End-to-end tests on one real cluster, with real containers and kubectl 1.36.
//!
//! They run in order, on one cluster: first what a new user does, at the end the loss of every process but
//! the shims, and `down`, after which nothing may be left on the machine.

mod application;
mod bad_input;
mod clients;
mod command_line;
mod conformance;
mod devices;
mod durability;
mod explained;
mod healing;
mod joining;
mod kube_client;
mod kubectl;
mod lifecycle;
mod metrics;
mod network;
mod pods;
mod recovery;
mod registries;
mod resources;
mod rolling;
mod stateful;
mod streams;
mod users;

use std::process::ExitCode;

use anyhow::Result;
use decapod_tests::cluster::Cluster;
use decapod_tests::images;
use decapod_tests::leaks::{self, Inventory};
use decapod_tests::suite::{self, Test};

const TESTS: &[Test<Cluster>] = &[
    ("lifecycle::no_cluster_is_said_plainly", lifecycle::no_cluster_is_said_plainly),
    ("lifecycle::a_taken_port_is_said_plainly", lifecycle::a_taken_port_is_said_plainly),
    ("lifecycle::up_makes_a_ready_node_and_dns", lifecycle::up_makes_a_ready_node_and_dns),
    ("lifecycle::up_again_restarts_nothing", lifecycle::up_again_restarts_nothing),
    ("lifecycle::other_settings_are_refused", lifecycle::other_settings_are_refused),
    ("application::rolls_out_and_answers", application::rolls_out_and_answers),
    ("application::pods_see_their_configuration", application::pods_see_their_configuration),
    ("application::kubectl_follows", application::kubectl_follows),
    ("application::set_image_loses_no_request", application::set_image_loses_no_request),
    ("application::scale_and_undo", application::scale_and_undo),
    ("rolling::an_update_under_load_loses_no_request", rolling::an_update_under_load_loses_no_request),
    ("stateful::redis_keeps_its_data", stateful::redis_keeps_its_data),
    ("healing::a_killed_process_is_restarted", healing::a_killed_process_is_restarted),
    ("healing::a_deleted_pod_is_replaced", healing::a_deleted_pod_is_replaced),
    ("healing::a_failing_liveness_probe_restarts", healing::a_failing_liveness_probe_restarts),
    (
        "healing::a_failing_readiness_probe_leaves_the_service",
        healing::a_failing_readiness_probe_leaves_the_service,
    ),
    ("healing::memory_above_the_limit_is_oom_killed", healing::memory_above_the_limit_is_oom_killed),
    ("healing::a_deleted_namespace_takes_everything", healing::a_deleted_namespace_takes_everything),
    ("resources::what_is_used_is_shown", resources::what_is_used_is_shown),
    ("pods::a_file_is_a_pod", pods::a_file_is_a_pod),
    ("pods::the_node_refuses_what_does_not_fit", pods::the_node_refuses_what_does_not_fit),
    ("pods::a_critical_pod_displaces_others", pods::a_critical_pod_displaces_others),
    ("devices::a_volume_is_a_device", devices::a_volume_is_a_device),
    ("users::pods_have_users_of_their_own", users::pods_have_users_of_their_own),
    ("network::load_balancers_have_the_nodes_address", network::load_balancers_have_the_nodes_address),
    ("network::policies_close_and_open", network::policies_close_and_open),
    ("network::ingress_takes_requests_to_services", network::ingress_takes_requests_to_services),
    ("streams::exec", streams::exec),
    ("streams::attach", streams::attach),
    ("streams::run_and_debug", streams::run_and_debug),
    ("streams::copy", streams::copy),
    ("streams::port_forward", streams::port_forward),
    ("streams::proxy", streams::proxy),
    ("streams::logs", streams::logs),
    ("clients::python_objects", clients::python_objects),
    ("clients::python_streams", clients::python_streams),
    ("clients::javascript_client", clients::javascript_client),
    (
        "kube_client::a_controller_with_finalizers_and_server_side_apply",
        kube_client::a_controller_with_finalizers_and_server_side_apply,
    ),
    ("kube_client::fifty_streams_at_once", kube_client::fifty_streams_at_once),
    ("command_line::the_verbs_of_decapod", command_line::the_verbs_of_decapod),
    ("command_line::an_image_is_built_and_runs", command_line::an_image_is_built_and_runs),
    ("metrics::bear_kubernetes_names", metrics::bear_kubernetes_names),
    ("kubectl::every_transcript_is_replayed", kubectl::every_transcript_is_replayed),
    ("registries::pods_pull_with_secrets", registries::pods_pull_with_secrets),
    (
        "[sig-node] ImageVolume should succeed with pod and pull policy of Always",
        registries::images_are_volumes,
    ),
    ("explained::why_says_what_is_in_the_way", explained::why_says_what_is_in_the_way),
    ("explained::a_file_configures_the_scheduler", explained::a_file_configures_the_scheduler),
    ("joining::a_second_node_joins_by_token_and_hash", joining::a_second_node_joins_by_token_and_hash),
    (
        "recovery::a_store_is_moved_and_one_of_two_servers_is_lost",
        recovery::a_store_is_moved_and_one_of_two_servers_is_lost,
    ),
    ("bad_input::manifests", bad_input::manifests),
    ("bad_input::a_missing_image", bad_input::a_missing_image),
    ("bad_input::an_unschedulable_pod", bad_input::an_unschedulable_pod),
    ("bad_input::a_corrupt_archive", bad_input::a_corrupt_archive),
    ("bad_input::nobody_is_let_in_without_credentials", bad_input::nobody_is_let_in_without_credentials),
    ("bad_input::not_root", bad_input::not_root),
];

/// What kills the server comes last.
const LAST: &[Test<Cluster>] = &[
    ("durability::containers_outlive_the_server", durability::containers_outlive_the_server),
    (
        "durability::repeated_kills_lose_nothing_acknowledged",
        durability::repeated_kills_lose_nothing_acknowledged,
    ),
];

fn main() -> ExitCode {
    // Images first: what fails there fails for want of a package, not of the cluster.
    let prepared = || -> Result<(Inventory, Cluster)> {
        for recipe in [&images::BUSYBOX, &images::NGINX, &images::NGINX_2, &images::REDIS] {
            images::archive(recipe)?;
        }
        Ok((Inventory::take()?, Cluster::prepare()?))
    };
    match prepared() {
        Ok((before, cluster)) => {
            let tests = [TESTS, kubectl::TRANSCRIPTS, &conformance::tests(), LAST].concat();
            suite::run(&tests, cluster, |cluster| leaks::nothing_is_left(&before, cluster))
        }
        Err(error) => {
            eprintln!("the tests cannot run: {error:?}");
            ExitCode::FAILURE
        }
    }
}
