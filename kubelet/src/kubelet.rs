//! Puts the parts of the node agent together.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use decapod_api::quantity::Quantity;
use decapod_client::clock::Clock;
use decapod_client::event::Recorder;
use decapod_client::informer::Informers;
use decapod_client::task::Supervisor;
use decapod_runtime::Runtime;
use k8s_openapi::api::core::v1::{Node, Pod, Service};

use crate::cgroup::{self, Cgroups};
use crate::drain::Drain;
use crate::eviction::{Evictions, Manager};
use crate::images::{self, Images};
use crate::measured;
use crate::measures::Measures;
use crate::node::facts::Machine;
use crate::node::{self, Registrar};
use crate::oom;
use crate::options::Options;
use crate::pod::{mark, qos};
use crate::probe::Probes;
use crate::rotate;
use crate::server::{self, Server};
use crate::shared::{Shared, logs_root};
use crate::statics::Statics;
use crate::tell::Tell;
use crate::traffic::Traffic;
use crate::volume::{self, Claims, Folders, Objects, Tokens, Volumes};
use crate::wake::Wakes;
use crate::worker::{Admitted, Workers, follow_runtime};

/// Below the data directory: the folders that persistent volumes of this node stand for.
const FOLDERS: &str = "local-path";
/// The grace that pods have when their node is torn down.
const TEARDOWN_GRACE: Duration = Duration::from_secs(5);

/// Why a kubelet could not start or be torn down.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The container runtime does not answer or refuses.
    #[error("the container runtime failed")]
    Runtime(#[from] decapod_runtime::Error),
    /// The kubelet's own folders cannot be used.
    #[error("cannot use {path}")]
    Folder {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Cgroups cannot be made or removed.
    #[error("cannot manage cgroups")]
    Cgroup(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Volumes cannot be kept.
    #[error("cannot keep volumes")]
    Volumes(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The node server cannot be started.
    #[error("cannot serve the node's API")]
    Server(#[from] server::Error),
}

impl From<cgroup::Error> for Error {
    fn from(error: cgroup::Error) -> Self {
        Self::Cgroup(Box::new(error))
    }
}

/// What a kubelet works with. `client` and `informers` act as `system:node:<name>`.
pub struct Dependencies {
    /// The API server.
    pub client: kube::Client,
    /// Informers on the same identity.
    pub informers: Informers,
    /// The containers of this node.
    pub runtime: Arc<dyn Runtime>,
    /// Who says when a pod that ends gets no new connections.
    pub traffic: Arc<dyn Traffic>,
    /// Who watches over the kubelet's tasks.
    pub supervisor: Supervisor,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// A node agent that is ready to run: its folders and cgroups are there, and its server is bound.
pub struct Kubelet {
    shared: Arc<Shared>,
    server: Option<Server>,
    runtime_version: String,
}

impl Kubelet {
    /// Prepares a kubelet; nothing is written to the API server yet.
    ///
    /// # Errors
    /// When the runtime does not answer, or the machine does not let the kubelet have its folders, cgroups or port.
    pub async fn new(options: Options, dependencies: Dependencies) -> Result<Self, Error> {
        let Dependencies { client, informers, runtime, traffic, supervisor, clock } = dependencies;
        let runtime = measured::runtime(runtime, clock.clone());
        let version = runtime.version().await?;
        for folder in [&options.data_dir, &options.run_dir, &logs_root(&options.data_dir)] {
            std::fs::create_dir_all(folder)
                .map_err(|source| Error::Folder { path: folder.clone(), source })?;
        }
        let wakes = Wakes::default();
        let component =
            Recorder::new(client.clone(), "kubelet", &options.node_name, &supervisor, clock.clone());
        let tell = Tell::new(component);
        let name = &options.node_name;
        let pods = informers.filtered::<Pod>(&format!("spec.nodeName={name}"));
        let node = informers.filtered::<Node>(&format!("metadata.name={name}"));
        let services = informers.of::<Service>();
        let objects = Arc::new(Objects::new(informers, supervisor.clone(), clock.clone(), wakes.clone()));
        let tokens = Tokens::new(client.clone(), clock.clone());
        let claims = Claims::new(client.clone());
        let volumes = Volumes::new(
            &options.data_dir,
            &volumes_dir(&options),
            &options.node_name,
            objects,
            tokens,
            claims,
        )
        .map_err(|e| Error::Volumes(Box::new(e)))?;
        let path = options.data_dir.join(FOLDERS);
        let folders = Folders::open(&path).map_err(|source| Error::Folder { path, source })?;
        let host_ips = options.node_ips.iter().map(ToString::to_string).collect();
        let memory = node::facts::machine(&options.data_dir).memory;
        let cgroups = Cgroups::new(&options.cgroup_root, options.pod_max_pids)?;
        let (shares, bound) = pods_share(&options, &node::facts::machine(&options.data_dir));
        cgroups.bound(shares, bound)?;
        let folder = options.static_pods.as_deref();
        let statics = Statics::new(folder, name).map_err(|source| Error::Folder {
            path: folder.map(PathBuf::from).unwrap_or_default(),
            source,
        })?;
        let parts = images::Parts {
            runtime: runtime.clone(),
            clock: clock.clone(),
            supervisor: supervisor.clone(),
            wakes: wakes.clone(),
            tell: tell.clone(),
            objects: volumes.objects.clone(),
        };
        let images = Images::new(&options, parts)
            .map_err(|source| Error::Folder { path: options.data_dir.join("image_manager"), source })?;
        let shared = Arc::new(Shared {
            cgroups,
            probes: Probes::new(clock.clone(), wakes.clone(), tell.clone()),
            runtime_name: version.runtime_name.clone(),
            options,
            client,
            runtime,
            traffic,
            clock,
            supervisor,
            pods,
            services,
            node,
            volumes,
            folders,
            images,
            tell,
            evictions: Evictions::default(),
            measures: Measures::default(),
            wakes,
            admitted: Admitted::default(),
            statics: Arc::new(statics),
            host_ips,
            memory,
        });
        let server = Server::bind(&shared).await?;
        let runtime_version = format!("{}://{}", version.runtime_name, version.runtime_version);
        Ok(Self { shared, server, runtime_version })
    }

    /// What ends the pods when the machine is about to stop.
    pub fn drain(&self) -> Drain {
        Drain::new(self.shared.clone())
    }

    /// Registers the node and runs its pods until the supervisor shuts down. Containers then run on.
    pub fn run(self) {
        let Self { shared, server, runtime_version } = self;
        let supervisor = shared.supervisor.clone();
        let registrar = Registrar::new(shared.clone(), &runtime_version);
        supervisor.spawn_until_shutdown("node-status", registrar.run());
        supervisor.spawn_until_shutdown("node-lease", node::heartbeat(shared.clone()));
        supervisor.spawn_until_shutdown("probes", shared.probes.clone().run());
        supervisor.spawn_until_shutdown("static-pods", shared.statics.clone().run(shared.clock.clone()));
        supervisor.spawn_until_shutdown("runtime-events", follow_runtime(shared.clone()));
        supervisor.spawn_until_shutdown("eviction", Manager::new(shared.clone()).run());
        supervisor.spawn_until_shutdown("log-rotation", rotate::run(shared.clone()));
        supervisor.spawn_until_shutdown("out-of-memory", oom::follow(shared.clone()));
        let collector = shared.images.collector(shared.clone());
        supervisor.spawn_until_shutdown("image-gc", collector.run());
        supervisor.spawn_until_shutdown("pod-workers", Workers::new(shared).run());
        if let Some(server) = server {
            supervisor.spawn_until_shutdown("node-server", server.run());
        }
    }
}

/// What all pods together weigh, and how much memory they may have: all of it where none is reserved.
fn pods_share(options: &Options, machine: &Machine) -> (u64, Option<i64>) {
    let reserved = options.reserved;
    let millis = machine.cpu_millis.saturating_sub_unsigned(reserved.cpu).max(0);
    let memory = machine.memory.saturating_sub_unsigned(reserved.memory).max(0);
    (qos::shares(Quantity::from_millis(millis)), (reserved.memory > 0).then_some(memory))
}

/// Where secrets lie.
fn volumes_dir(options: &Options) -> PathBuf {
    options.run_dir.join("kubelet")
}

/// Stops and removes everything that a kubelet with these options has on this machine: pods, volumes, mounts, logs
/// and cgroups. The kubelet must not run any more; the Node object is not touched.
///
/// # Errors
/// When something could not be removed; it is safe to try again.
pub async fn teardown(options: &Options, runtime: &dyn Runtime) -> Result<(), Error> {
    let containers = runtime.container_list(None).await?;
    let pods = containers.iter().filter(|c| c.labels.contains_key(mark::POD_UID));
    let stops = pods.map(|c| runtime.container_stop(&c.id, TEARDOWN_GRACE));
    for stopped in futures::future::join_all(stops).await {
        stopped?;
    }
    for sandbox in runtime.sandbox_list(None).await? {
        if sandbox.labels.contains_key(mark::POD_UID) {
            runtime.sandbox_stop(&sandbox.id).await?;
            runtime.sandbox_remove(&sandbox.id).await?;
        }
    }
    for path in [options.data_dir.join("pods"), logs_root(&options.data_dir), volumes_dir(options)] {
        volume::remove_tree(&path).map_err(|source| Error::Folder { path, source })?;
    }
    Cgroups::new(&options.cgroup_root, None)?.remove_root()?;
    Ok(())
}
