//! End-to-end tests on a cluster of three nodes: the machine, and two network namespaces with an agent
//! each.
//!
//! They run in order, on one cluster; each leaves three ready nodes behind. At the end comes `down`, after
//! which nothing may be left on the machine.

mod losing;
mod members;
mod reaching;
mod recovery;
mod redis;
mod servers;
mod serving;
mod workloads;

use std::process::ExitCode;

use anyhow::Result;
use decapod_tests::cluster::Cluster;
use decapod_tests::images;
use decapod_tests::leaks::{self, Inventory};
use decapod_tests::suite::{self, Test};

const TESTS: &[Test<Cluster>] = &[
    ("members::up_makes_three_ready_nodes", members::up_makes_three_ready_nodes),
    ("reaching::every_pod_from_every_node", reaching::every_pod_from_every_node),
    ("reaching::streams_to_pods_of_every_node", reaching::streams_to_pods_of_every_node),
    ("workloads::pods_are_where_they_are_to_be", workloads::pods_are_where_they_are_to_be),
    ("workloads::room_is_made_on_the_cheapest_node", workloads::room_is_made_on_the_cheapest_node),
    ("serving::services_of_every_node", serving::services_of_every_node),
    ("serving::ingress_answers_on_every_node", serving::ingress_answers_on_every_node),
    ("members::a_node_is_added_and_removed", members::a_node_is_added_and_removed),
    ("losing::containers_outlive_agents_and_server", losing::containers_outlive_agents_and_server),
    ("recovery::lost_nodes_are_replaced_and_come_back", recovery::lost_nodes_are_replaced_and_come_back),
    ("redis::redis_waits_for_its_node", redis::redis_waits_for_its_node),
    ("redis::redis_moves_with_a_snapshot", redis::redis_moves_with_a_snapshot),
    ("servers::agents_go_on_with_another_server", servers::agents_go_on_with_another_server),
];

fn main() -> ExitCode {
    let prepared = || -> Result<(Inventory, Cluster)> {
        for recipe in [&images::BUSYBOX, &images::NGINX, &images::REDIS] {
            images::archive(recipe)?;
        }
        Ok((Inventory::take()?, Cluster::of_nodes(3)?))
    };
    match prepared() {
        Ok((before, cluster)) => {
            suite::run(TESTS, cluster, |cluster| leaks::nothing_is_left(&before, cluster))
        }
        Err(error) => {
            eprintln!("the tests cannot run: {error:?}");
            ExitCode::FAILURE
        }
    }
}
