//! The controllers: each watches a part of the cluster and moves it towards what its objects ask for.
//!
//! Each has a folder with a pure `plan` (what is to be done, tested without a cluster) and an `apply`
//! that makes no choices of its own. They are driven by keys, not by events: a controller that was away,
//! missed a change or crashed between two writes finds out by looking. They speak to the API server only,
//! as a client among others.

mod common;
mod deployment;
mod replicaset;

use std::sync::Arc;

use decapod_client::clock::Clock;
use decapod_client::informer::Informers;
use decapod_client::task::Supervisor;
use kube::Client;

use common::Context;

/// How the controllers run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Objects of one kind that a controller works on at a time.
    pub workers: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { workers: 5 }
    }
}

/// Starts all controllers as tasks of `supervisor`. They work as long as it does; `informers` may be
/// shared with other components of the process.
pub fn run(
    options: &Options,
    client: Client,
    informers: Informers,
    supervisor: Supervisor,
    clock: Arc<dyn Clock>,
) {
    let context = Context { client, informers, supervisor, clock };
    deployment::start(&context, options.workers);
    replicaset::start(&context, options.workers);
}
