//! The contract of the [`decapod_runtime::Runtime`] trait, on real containers: of our own runtime in this process, of the
//! same behind its socket, and of containerd behind its own.
//!
//! Needs root and Debian's `busybox-static`, `docker-registry`, `containerd`, `runc` and `containernetworking-plugins`.
//! The binary is also the shim of its own containers,
//! and an agent to be killed: hence no test harness, whose threads would be in the way.

#![expect(clippy::unwrap_used, reason = "a test: a panic is how it fails")]

mod archive;
mod builds;
mod churn;
mod containerd;
mod crashes;
mod escapes;
mod images;
mod lifecycle;
mod pulling;
mod registry;
mod security;
mod streams;
mod support;
mod users;

use std::ffi::OsString;
use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Instant;

use support::{PATIENCE, Way};

/// Failures after which the rest is not tried.
const MAX_FAILURES: usize = 5;

type Test = fn() -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// Which ways a test goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ways {
    /// It needs what CRI has no call for, or looks behind the border.
    Direct,
    /// Both ways to our own runtime.
    Ours,
    /// containerd's too.
    All,
}

impl Ways {
    fn go(self, way: Way) -> bool {
        match way {
            Way::Direct => true,
            Way::Socket => self != Ways::Direct,
            Way::Containerd => self == Ways::All,
        }
    }
}

macro_rules! tests {
    ($($ways:ident: $module:ident :: $name:ident),* $(,)?) => {
        [$((
            concat!(stringify!($module), "::", stringify!($name)),
            Ways::$ways,
            (|| Box::pin($module::$name())) as Test
        )),*]
    };
}

/// The table of all tests.
fn table() -> Vec<(&'static str, Ways, Test)> {
    let tests = tests![
        // CRI has no call to import archives.
        Direct: images::every_form_is_imported,
        Direct: images::layers_are_stacked_with_whiteouts,
        Direct: images::hostile_layers_are_refused,
        Direct: images::corrupt_archives_are_named,
        // containerd words it otherwise when it may not reach a registry.
        Ours: images::names_and_removal,
        // Archives on the way there, and pushes.
        Direct: pulling::images_go_there_and_back,
        Direct: pulling::credentials_are_asked_for,
        Direct: pulling::credentials_do_not_leak,
        Direct: pulling::broken_downloads_go_on,
        Direct: pulling::a_registry_that_is_gone_comes_back,
        Direct: pulling::what_is_asked_at_once_is_fetched_once,
        Direct: pulling::what_is_no_image_is_refused,
        Direct: pulling::full_disks_are_said,
        Direct: pulling::agents_may_die_while_they_pull,
        // Decapod's own.
        Direct: builds::dockerfiles_become_images,
        Direct: builds::images_come_from_nothing_and_are_reproducible,
        Direct: builds::builds_that_fail_say_where,
        Direct: builds::builds_that_are_cut_off_leave_nothing,
        All: lifecycle::exit_codes_and_logs,
        // runc tells no exit code, and has words of its own.
        Ours: lifecycle::wrong_commands_are_named,
        All: lifecycle::stopping_asks_first,
        // containerd hears of the end and of its reason in any order, and now and then misses the second.
        Ours: lifecycle::memory_limits_kill,
        // The first process of a container is containerd's own.
        Ours: lifecycle::limits_and_usage,
        // Elsewhere /etc/hosts is the kubelet's, and the network answers to nobody here.
        Ours: lifecycle::namespaces_are_shared_in_a_pod,
        All: lifecycle::pods_on_the_host,
        // containerd 1.6 has no events; looking misses what comes and goes in between.
        Ours: lifecycle::events_tell_what_happens,
        // Looks at our own directories.
        Ours: lifecycle::sandboxes_that_fail_leave_nothing,
        All: lifecycle::many_pods_at_once,
        All: streams::commands_run_inside,
        // containerd 1.6 waits for whoever holds the output.
        Ours: streams::children_do_not_hold_commands,
        All: streams::slow_commands_are_killed,
        All: streams::terminals_work,
        All: streams::clients_attach,
        All: streams::ports_are_reached,
        All: streams::logs_are_reopened,
        // Capabilities and filters by default are each runtime's own.
        Ours: security::defaults_are_kubernetes,
        Ours: security::filters_forbid,
        Ours: security::profiles_of_the_node_are_enforced,
        Ours: security::privileged_containers_may,
        All: security::mounts_are_as_asked,
        // The shim makes the namespaces; a mount shows the ids.
        Ours: users::pods_have_users_of_their_own,
        Ours: users::what_no_user_namespace_can_have_is_refused,
        // Each looks at our own shim.
        Direct: escapes::descriptors_do_not_leak,
        Direct: escapes::mount_points_that_are_links_stay_inside,
        Direct: escapes::hostile_images_are_refused_or_contained,
        Direct: escapes::root_inside_stays_inside,
        Direct: escapes::the_runtimes_program_is_not_written,
        Direct: escapes::who_enters_is_not_entered,
        Direct: escapes::mounts_do_not_spread,
        Direct: crashes::agents_may_die,
        Direct: crashes::shims_may_die,
        Direct: crashes::numbers_are_reused,
        Direct: crashes::removals_are_cut_short,
        Direct: churn::agents_die_at_any_step,
        Ours: churn::short_pods_leave_nothing,
    ];
    tests.to_vec()
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|first| first == decapod_runtime::shim::ARGUMENT) {
        return decapod_runtime::shim::main(&args[1..]);
    }
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if args.first().is_some_and(|first| first == "agent") {
        runtime().block_on(crashes::victim(args[1].to_str().unwrap()));
    }
    if args.first().is_some_and(|first| first == "puller") {
        runtime().block_on(pulling::puller(args[1].to_str().unwrap(), args[2].to_str().unwrap()));
    }
    if args.len() == 2 && args[0] == "churn" {
        runtime().block_on(churn::agent(args[1].to_str().unwrap()));
    }
    let wanted = args.iter().filter_map(|arg| arg.to_str()).find(|arg| !arg.starts_with('-')).unwrap_or("");
    let mut failed = Vec::new();
    'all: for way in Way::ALL {
        for (name, ways, test) in table() {
            let name = format!("{name} ({way:?})");
            if !ways.go(way) || !name.contains(wanted) {
                continue;
            }
            support::set_way(way);
            let started = Instant::now();
            // A runtime each: a test that panics takes its tasks with it.
            let outcome = std::panic::catch_unwind(|| runtime().block_on(test()));
            let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
            println!("test {name} ... {verdict} ({:.2} s)", started.elapsed().as_secs_f64());
            if outcome.is_err() {
                failed.push(name);
                runtime().block_on(support::clean_up());
            }
            // Each failure may have waited long: a few say enough.
            if failed.len() >= MAX_FAILURES {
                break 'all;
            }
        }
    }
    containerd::end();
    println!(
        "\ntest result: {}. {} failed {failed:?}",
        if failed.is_empty() { "ok" } else { "FAILED" },
        failed.len()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
