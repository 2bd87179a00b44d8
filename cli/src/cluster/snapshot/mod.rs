//! `decapod snapshot`: everything that a cluster's store holds, in a file, and back.
//!
//! While the server runs it takes the snapshot itself, asked over a socket that only root can open: nobody else can have
//! the embedded store open, and all is read at one revision. The file is written by the server, whole or not at all.

mod file;
mod restore;
mod schedule;
mod socket;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use super::control::Control;
use super::image::size;
use super::lock::Lock;
use super::settings::{Place, Which};
use crate::failure::Failure;

pub(super) use schedule::Keeper;
pub(super) use socket::serve;

/// What a command on a snapshot is about.
#[derive(Subcommand, Debug)]
pub(crate) enum Snapshot {
    /// Write everything that the cluster's store holds into a file, while it runs or not.
    Save(Save),
    /// Put what a file holds in the place of what a stopped cluster's store holds.
    Restore(restore::Restore),
    /// Have the running server take a snapshot now and then; without flags, show when it does and what came of it.
    Schedule(schedule::Schedule),
    /// Say what a file holds, and whether it is whole.
    Verify(Verify),
}

impl Snapshot {
    pub(crate) async fn run(&self) -> Result<(), Failure> {
        match self {
            Self::Save(save) => save.run().await,
            Self::Restore(restore) => restore.run().await,
            Self::Schedule(schedule) => schedule.run().await,
            Self::Verify(verify) => verify.run(),
        }
    }
}

/// What came of a snapshot, as commands show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) file: PathBuf,
    pub(super) cluster: String,
    pub(super) taken: String,
    pub(super) store: String,
    pub(super) revision: u64,
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) checksum: String,
}

impl Report {
    fn print(&self) {
        println!(
            "{}: {} objects ({}) at revision {} of the {} store, taken {}",
            self.file.display(),
            self.entries,
            size(self.bytes),
            self.revision,
            self.store,
            self.taken
        );
        println!("cluster {}, sha256 {}", self.cluster, self.checksum);
    }
}

#[derive(Args, Debug)]
pub(crate) struct Save {
    #[command(flatten)]
    which: Which,
    /// Where to write it.
    file: PathBuf,
}

impl Save {
    async fn run(&self) -> Result<(), Failure> {
        let place = self.which.place()?;
        let file = std::path::absolute(&self.file)?;
        let report = match Lock::holder(&place)? {
            Some(_) => Control::new(socket(&place)).snapshot_save(&file).await?,
            None => {
                let settings = place.load()?.ok_or_else(|| {
                    Failure::new(format!(
                        "there is no cluster \"{}\" in {}",
                        place.name(),
                        place.data().display()
                    ))
                    .hint("--name and --data-dir say which cluster is meant")
                })?;
                let _lock = Lock::take(&place)?;
                let store = settings.store.open(&place).await?;
                file::save(&*store, settings.store.kind(), &file).await?
            }
        };
        report.print();
        println!(
            "keep {} with it: Secrets are enciphered by the key there, and the cluster's authority and the key of its tokens are there too",
            place.data().join("pki").display()
        );
        Ok(())
    }
}

#[derive(Args, Debug)]
pub(crate) struct Verify {
    /// The snapshot.
    file: PathBuf,
}

impl Verify {
    fn run(&self) -> Result<(), Failure> {
        file::verify(&self.file)?.print();
        Ok(())
    }
}

/// Where the server listens for commands of this machine.
pub(super) fn socket(place: &Place) -> PathBuf {
    place.run().join("server.sock")
}
