//! The scheduler: finds a node for each pod that has none.
//!
//! The core is pure: it decides from a snapshot that is kept up to date change by change. The shell
//! around it feeds the snapshot and the queue, and writes bindings, conditions and Events through the API.

mod binding;
pub mod config;
mod core;
mod decider;
pub mod explain;
mod metrics;
mod queue;
mod shell;

use std::collections::BTreeMap;
use std::sync::Arc;

use decapod_client::clock::Clock;
use decapod_client::event::Recorder;
use decapod_client::informer::Informers;
use decapod_client::task::Supervisor;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Client;
use rand::SeedableRng;
use rand::rngs::StdRng;

use binding::Writer;
use config::Configuration;
pub use decider::{Decider, Decision};
use shell::{Shell, World};

/// How the scheduler runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which schedulers there are, by the `spec.schedulerName` of their pods, and what each does. Their names are also
    /// the sources of the Events.
    pub configuration: Arc<Configuration>,
    /// Decides among equally good nodes; the same seed and the same changes give the same decisions.
    pub seed: u64,
}

impl Default for Options {
    /// Kubernetes' default scheduler, with chance from the machine.
    fn default() -> Self {
        Self { configuration: Arc::default(), seed: rand::random() }
    }
}

/// Starts the scheduler as a task of `supervisor`. It works as long as that does; `informers` may be
/// shared with other components of the process.
pub fn run(
    options: Options,
    client: Client,
    informers: &Informers,
    supervisor: &Supervisor,
    clock: Arc<dyn Clock>,
) {
    let names = options.configuration.scheduler_names();
    let recorders: BTreeMap<_, _> = names
        .map(|name| {
            let recorder = Recorder::new(client.clone(), name, "", supervisor, clock.clone());
            (name.to_owned(), recorder)
        })
        .collect();
    let writer = Writer { client, recorders: Arc::new(recorders), clock };
    let chance = StdRng::seed_from_u64(options.seed);
    let (pods, nodes) = (informers.of::<Pod>(), informers.of::<Node>());
    let namespaces = informers.of::<Namespace>();
    let (claims, volumes) = (informers.of::<PersistentVolumeClaim>(), informers.of::<PersistentVolume>());
    let classes = informers.of::<StorageClass>();
    let budgets = informers.of::<PodDisruptionBudget>();
    let shell = Shell::new(options.configuration, chance, writer, supervisor.clone());
    supervisor.spawn_until_shutdown("scheduler", async move {
        // Before all bound pods are known every node looks empty.
        nodes.synced().await;
        pods.synced().await;
        namespaces.synced().await;
        claims.synced().await;
        volumes.synced().await;
        classes.synced().await;
        budgets.synced().await;
        let world = World {
            pods: pods.subscribe(),
            nodes: nodes.subscribe(),
            namespaces: namespaces.subscribe(),
            claims: claims.subscribe(),
            volumes: volumes.subscribe(),
            classes: classes.subscribe(),
            budgets: budgets.subscribe(),
        };
        shell.run(world).await;
    });
}
