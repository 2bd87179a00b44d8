//! The embedded runtime: the [`Runtime`](crate::Runtime) of this machine, without a daemon.
//!
//! **Invariant**: what is in memory can be made anew from the disk and the shims, and is, at each
//! start. Nothing here holds a container alive.

mod build;
mod capability;
mod client;
mod container;
mod device;
mod events;
mod image;
mod info;
mod recover;
mod sandbox;
mod seccomp;
mod serve;
mod session;
mod signal;
mod spec;
mod state;
mod stats;
mod syscalls;
mod tasks;
mod user;
mod volume;

pub use build::{BuildRequest, PROGRESS_LINES, unpack_context};

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use decapod_proto::cri;
use tokio::sync::{broadcast, watch};

use crate::cri::Network;
use crate::error::{Error, Kind, Result};
use crate::image::{ImageConfig, ImageFile, Store};
use crate::sys::cgroup::Hierarchies;
use crate::sys::process;
use image::Flights;
pub use image::Transfer;
use state::{ContainerRecord, Paths, Phase, SandboxRecord};
use tasks::Tasks;

/// Changes that a subscriber may be behind; beyond that it is ended and lists anew.
const EVENTS: usize = 1024;

/// How to run the embedded runtime.
#[derive(Clone)]
pub struct Options {
    /// What is kept: images and the records of pods. Survives a restart of the machine.
    pub data_dir: PathBuf,
    /// Sockets and mounts; may be gone after a restart of the machine.
    pub run_dir: PathBuf,
    /// The program that is a shim when given these arguments and two directories: the binary
    /// itself, whose `main` calls [`crate::shim::main`].
    pub shim: (PathBuf, Vec<OsString>),
    /// The control group of all shims, apart from the agent's so that they outlive it; `None`
    /// leaves them in the agent's.
    pub shim_cgroup: Option<String>,
    /// The pod network.
    pub network: Arc<dyn Network>,
    /// The file about registries (`registries.yaml`): mirrors, authorities, credentials. It need not exist.
    pub registries: Option<PathBuf>,
}

impl Options {
    /// Data and run directory below these, shims by this very program.
    pub fn new(data_dir: PathBuf, run_dir: PathBuf, network: Arc<dyn Network>) -> std::io::Result<Self> {
        let program = std::env::current_exe()?;
        Ok(Options {
            data_dir,
            run_dir,
            shim: (program, vec![crate::shim::ARGUMENT.into()]),
            shim_cgroup: None,
            network,
            registries: None,
        })
    }
}

/// The runtime of this machine. Cheap to clone.
#[derive(Clone)]
pub struct Embedded {
    inner: Arc<Inner>,
}

struct Inner {
    options: Options,
    paths: Paths,
    images: Arc<Store>,
    groups: Hierarchies,
    boot: String,
    tables: Mutex<Tables>,
    changes: broadcast::Sender<Arc<cri::ContainerEventResponse>>,
    tasks: Tasks,
    flights: Mutex<Flights>,
}

#[derive(Default)]
struct Tables {
    sandboxes: BTreeMap<String, Arc<Sandbox>>,
    containers: BTreeMap<String, Arc<Container>>,
}

/// A sandbox that the runtime knows.
struct Sandbox {
    record: Mutex<SandboxRecord>,
    /// Held by what changes the sandbox as a whole.
    work: tokio::sync::Mutex<()>,
}

/// A container that the runtime knows.
struct Container {
    record: ContainerRecord,
    phase: watch::Sender<Phase>,
    /// Held by what changes the container as a whole; not by a stop, which waits.
    work: tokio::sync::Mutex<()>,
    /// What it has written into its root file system, as last measured.
    layer: Mutex<Option<cri::FilesystemUsage>>,
}

impl Sandbox {
    fn new(record: SandboxRecord) -> Arc<Self> {
        Arc::new(Sandbox { record: Mutex::new(record), work: tokio::sync::Mutex::default() })
    }

    fn record(&self) -> MutexGuard<'_, SandboxRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Container {
    fn new(record: ContainerRecord, phase: Phase) -> Arc<Self> {
        let (phase, _) = watch::channel(phase);
        Arc::new(Container { record, phase, work: tokio::sync::Mutex::default(), layer: Mutex::default() })
    }

    fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// Goes forward to a phase; false where it was there already or further.
    fn advance(&self, next: Phase) -> bool {
        self.phase.send_if_modified(|phase| {
            let forward = next.rank() > phase.rank();
            if forward {
                *phase = next;
            }
            forward
        })
    }
}

impl Embedded {
    /// Opens the runtime: finds what earlier agents left, and takes it over. Removes what they
    /// left half done.
    pub async fn open(options: Options) -> Result<Self> {
        let paths = Paths { data: options.data_dir.clone(), run: options.run_dir.clone() };
        let failed = |doing: &'static str| move |error: std::io::Error| Error::internal(doing, error);
        for directory in [paths.pods(), paths.run.clone()] {
            std::fs::create_dir_all(directory).map_err(failed("create the runtime's directories"))?;
        }
        let images = options.data_dir.join("images");
        let images = blocking("open the image store", move || Store::open(images)).await?;
        let images = images.map_err(|error| Error::internal("open the image store", error))?;
        let groups = Hierarchies::detect().map_err(failed("find the control groups"))?;
        if let Some(group) = &options.shim_cgroup {
            groups.create(group).map_err(failed("create the shims' control group"))?;
        }
        let inner = Arc::new(Inner {
            paths,
            images: Arc::new(images),
            groups,
            boot: process::boot_id().map_err(failed("read the boot id"))?,
            tables: Mutex::default(),
            changes: broadcast::channel(EVENTS).0,
            tasks: Tasks::default(),
            flights: Mutex::default(),
            options,
        });
        inner.recover().await?;
        Ok(Embedded { inner })
    }

    /// Makes an image of files of this machine: how the binary becomes the image of system pods.
    /// Returns its id at once where nothing has changed.
    pub async fn image_from_files(
        &self,
        reference: &str,
        files: Vec<ImageFile>,
        config: ImageConfig,
    ) -> Result<String> {
        self.inner.image_build(reference.to_owned(), files, config).await
    }

    /// Fetches an image from its registry, which is asked whatever is here. Layers that are here are not fetched
    /// again.
    ///
    /// # Errors
    /// If the registry does not have it or does not give it, or what it gives is not what it says.
    pub async fn image_transfer(&self, reference: &str, transfer: &Transfer) -> Result<cri::Image> {
        Ok(self.inner.image_pull(reference, transfer).await?.to_cri())
    }

    /// Sends an image to the registry that its name says; returns the digest of its manifest.
    ///
    /// # Errors
    /// If it is not here, or the registry does not take it.
    pub async fn image_push(&self, reference: &str, transfer: &Transfer) -> Result<String> {
        self.inner.image_push(reference, transfer).await
    }

    /// Ends the runtime's own tasks. Shims and containers go on.
    pub async fn close(&self) {
        self.inner.tasks.end().await;
    }

    /// Stops and removes all sandboxes, and the shims' control group: nothing remains but images.
    pub async fn remove_all(&self) -> Result<()> {
        let ids: Vec<String> = self.inner.tables().sandboxes.keys().cloned().collect();
        let removals = ids.iter().map(|id| self.inner.sandbox_remove(id));
        for result in futures::future::join_all(removals).await {
            result?;
        }
        if let Some(group) = self.inner.options.shim_cgroup.clone() {
            let groups = self.inner.groups.clone();
            blocking("remove the shims' control group", move || groups.destroy(&group))
                .await?
                .map_err(|error| Error::internal("remove the shims' control group", error))?;
        }
        Ok(())
    }
}

impl Inner {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Held for single insertions and look-ups, none of which panics half way.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        self.tables().sandboxes.get(id).cloned().ok_or_else(|| Error::not_found(Kind::Sandbox, id))
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.tables().containers.get(id).cloned().ok_or_else(|| Error::not_found(Kind::Container, id))
    }

    /// The containers of a sandbox, the oldest first.
    fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        let tables = self.tables();
        let own = tables.containers.values().filter(|container| container.record.sandbox == sandbox);
        let mut own: Vec<_> = own.cloned().collect();
        own.sort_by_key(|container| container.record.created_at);
        own
    }

    /// Layers that containers use.
    fn used_layers(&self) -> HashSet<String> {
        let tables = self.tables();
        tables.containers.values().flat_map(|container| container.record.layers.clone()).collect()
    }
}

/// Runs what blocks on a thread for it.
async fn blocking<T: Send + 'static>(doing: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::internal(doing, error))
}

/// A new id, in the form that other runtimes use.
fn new_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}
