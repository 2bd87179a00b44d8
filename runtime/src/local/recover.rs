//! Finding again what earlier agents left.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::state::{ContainerRecord, Phase, SandboxRecord, Stage};
use super::{Container, Inner, Sandbox, blocking, container};
use crate::error::{Error, Result};
use crate::shim::NAMESPACES;
use crate::sys::{durable, mount};

impl Inner {
    /// Reads all records, takes over the shims that live, ends what they left behind where they
    /// do not, and removes what was half made.
    pub(super) async fn recover(self: &Arc<Self>) -> Result<()> {
        let failed = |error: io::Error| Error::internal("read the runtime's records", error);
        for id in names_in(&self.paths.pods()).map_err(failed)? {
            let directory = self.paths.sandbox(&id);
            let record = durable::read_json::<SandboxRecord>(&directory.join("sandbox.json"));
            match record.map_err(failed)? {
                Some(record) => self.load(record).map_err(failed)?,
                // Nothing was made before the record was.
                None => durable::remove_tree(&directory).map_err(failed)?,
            }
        }
        let sandboxes: Vec<_> = self.tables().sandboxes.values().cloned().collect();
        let recoveries = sandboxes.iter().map(|sandbox| self.recover_sandbox(sandbox));
        for result in futures::future::join_all(recoveries).await {
            result?;
        }
        self.recover_builds().await?;
        self.sweep_run_directory().map_err(failed)?;
        let (images, used) = (Arc::clone(&self.images), self.used_layers());
        blocking("remove unused layers", move || images.collect_garbage(&used))
            .await?
            .map_err(|error| Error::internal("remove unused layers", error))
    }

    fn load(&self, record: SandboxRecord) -> io::Result<()> {
        let id = record.id.clone();
        for name in names_in(&self.paths.sandbox(&id).join("containers"))? {
            let bundle = self.paths.container(&id, &name);
            let saved = durable::read_json::<ContainerRecord>(&bundle.join("container.json"))?;
            let Some(saved) = saved else {
                let cgroup = format!("{}/{name}", super::sandbox::cgroup_parent(&record.config.0));
                container::discard(&self.groups, &cgroup, &bundle, &self.paths.rootfs(&id, &name))?;
                continue;
            };
            let phase = Phase::read(&bundle)?;
            self.tables().containers.insert(name, Container::new(saved, phase));
        }
        self.tables().sandboxes.insert(id, Sandbox::new(record));
        Ok(())
    }

    async fn recover_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<()> {
        let (id, stage, same_boot) = {
            let record = sandbox.record();
            (record.id.clone(), record.stage, record.boot == self.boot)
        };
        match stage {
            Stage::Creating => {
                self.sandbox_tear_down(sandbox).await?;
                self.tables().sandboxes.remove(&id);
                return Ok(());
            }
            Stage::Stopped => {}
            Stage::Ready if !same_boot => self.sandbox_lost(sandbox, "the machine was restarted").await?,
            Stage::Ready => match self.sandbox_reconcile(&id).await {
                Ok(()) => self.sandbox_watch(sandbox),
                Err(error) => self.sandbox_lost(sandbox, &error.chain()).await?,
            },
        }
        // A stop that was interrupted may have left some running.
        if sandbox.record().stage == Stage::Stopped {
            for container in self.containers_of(&id) {
                self.container_bury(&container, "the agent ended while it stopped the pod").await?;
            }
        }
        Ok(())
    }

    /// Removes mounts and sockets of sandboxes that there are no more.
    fn sweep_run_directory(&self) -> io::Result<()> {
        for name in names_in(&self.paths.run)? {
            if self.tables().sandboxes.contains_key(&name) {
                continue;
            }
            let run = self.paths.sandbox_run(&name);
            for name in NAMESPACES {
                mount::unmount(&run.join("ns").join(name))?;
            }
            mount::unmount(&run.join("shm"))?;
            for rootfs in names_in(&run.join("rootfs"))? {
                mount::unmount(&run.join("rootfs").join(rootfs))?;
            }
            durable::remove_tree(&run)?;
        }
        Ok(())
    }
}

/// Names in a directory that may not be there.
fn names_in(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
