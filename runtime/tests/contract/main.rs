//! The contract of the [`decapod_runtime::Runtime`] trait, on real containers.
//!
//! Needs root and Debian's `busybox-static`. The binary is also the shim of its own containers,
//! and an agent to be killed: hence no test harness, whose threads would be in the way.

#![expect(clippy::unwrap_used, reason = "a test: a panic is how it fails")]

mod archive;
mod builds;
mod crashes;
mod escapes;
mod images;
mod lifecycle;
mod pulling;
mod registry;
mod security;
mod streams;
mod support;

use std::ffi::OsString;
use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Instant;

/// Failures after which the rest is not tried.
const MAX_FAILURES: usize = 5;

type Test = fn() -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        [$((concat!(stringify!($module), "::", stringify!($name)), (|| Box::pin($module::$name())) as Test)),*]
    };
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
    let tests = tests![
        images::every_form_is_imported,
        images::layers_are_stacked_with_whiteouts,
        images::hostile_layers_are_refused,
        images::corrupt_archives_are_named,
        images::names_and_removal,
        builds::dockerfiles_become_images,
        builds::images_come_from_nothing_and_are_reproducible,
        builds::builds_that_fail_say_where,
        builds::builds_that_are_cut_off_leave_nothing,
        pulling::images_go_there_and_back,
        pulling::credentials_are_asked_for,
        pulling::credentials_do_not_leak,
        pulling::broken_downloads_go_on,
        pulling::a_registry_that_is_gone_comes_back,
        pulling::what_is_asked_at_once_is_fetched_once,
        pulling::what_is_no_image_is_refused,
        pulling::full_disks_are_said,
        pulling::agents_may_die_while_they_pull,
        lifecycle::exit_codes_and_logs,
        lifecycle::wrong_commands_are_named,
        lifecycle::stopping_asks_first,
        lifecycle::memory_limits_kill,
        lifecycle::limits_and_usage,
        lifecycle::namespaces_are_shared_in_a_pod,
        lifecycle::pods_on_the_host,
        lifecycle::events_tell_what_happens,
        lifecycle::sandboxes_that_fail_leave_nothing,
        lifecycle::many_pods_at_once,
        streams::commands_run_inside,
        streams::slow_commands_are_killed,
        streams::terminals_work,
        streams::clients_attach,
        streams::ports_are_reached,
        streams::logs_are_reopened,
        security::defaults_are_kubernetes,
        security::filters_forbid,
        security::profiles_of_the_node_are_enforced,
        security::privileged_containers_may,
        security::mounts_are_as_asked,
        escapes::descriptors_do_not_leak,
        escapes::mount_points_that_are_links_stay_inside,
        escapes::hostile_images_are_refused_or_contained,
        escapes::root_inside_stays_inside,
        escapes::the_runtimes_program_is_not_written,
        escapes::mounts_do_not_spread,
        crashes::agents_may_die,
        crashes::shims_may_die,
        crashes::numbers_are_reused,
    ];
    let wanted = args.iter().filter_map(|arg| arg.to_str()).find(|arg| !arg.starts_with('-')).unwrap_or("");
    let mut failed = Vec::new();
    for (name, test) in tests.into_iter().filter(|(name, _)| name.contains(wanted)) {
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
            break;
        }
    }
    println!(
        "\ntest result: {}. {} failed {failed:?}",
        if failed.is_empty() { "ok" } else { "FAILED" },
        failed.len()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
