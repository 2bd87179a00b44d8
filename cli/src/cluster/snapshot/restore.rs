//! `decapod snapshot restore`: into the embedded store or etcd, while no server runs.

use std::path::PathBuf;

use clap::Args;
use decapod_storage::snapshot::{self, AHEAD_EMBEDDED, AHEAD_ETCD};
use decapod_storage::{Embedded, Entry, embedded};
use jiff::Timestamp;

use super::{Report, file};
use crate::cluster::datastore::Datastore;
use crate::cluster::lock::Lock;
use crate::cluster::settings::{Place, Which};
use crate::failure::{Failure, chain};

#[derive(Args, Debug)]
pub(crate) struct Restore {
    #[command(flatten)]
    which: Which,
    /// The store to restore into: the same flags as the server's.
    #[command(flatten)]
    store: Datastore,
    /// Replace what the store holds. What an embedded store held is kept beside it.
    #[arg(long)]
    force: bool,
    /// The snapshot.
    file: PathBuf,
}

impl Restore {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        self.store.check()?;
        let place = self.which.place()?;
        let (report, entries) = file::load(&self.file)?;
        report.print();
        let _lock = Lock::take(&place).map_err(|failure| {
            failure.within("nothing is restored into a running cluster").hint(format!(
                "`decapod down --keep-data --name {} --data-dir {}` stops it",
                place.name(),
                place.data().display()
            ))
        })?;
        let count = entries.len();
        let revision = match self.store.is_shared() {
            true => self.put_in_etcd(&place, &report, entries).await?,
            false => self.put_in_embedded(&place, &report, &entries).await?,
        };
        let store = self.store.open(&place).await?;
        let (restored, _) = snapshot::take(&*store).await.map_err(|e| failed(&e))?;
        if restored.len() != count {
            return Err(Failure::new(format!(
                "the store holds {} objects after the restore, expected {count}: does another server write to it?",
                restored.len()
            )));
        }
        println!(
            "restored {count} objects; the store is at revision {revision}, and whoever watched lists anew"
        );
        let keys = place.data().join("pki");
        if !keys.join("ca.key").exists() {
            println!(
                "{} is not there: put the folder of the old cluster there before the start, else its Secrets cannot be deciphered and its certificates and tokens are not known",
                keys.display()
            );
        }
        Ok(())
    }

    async fn put_in_etcd(&self, place: &Place, report: &Report, entries: Vec<Entry>) -> Result<u64, Failure> {
        let store = self.store.open(place).await?;
        let above = report.revision.saturating_add(AHEAD_ETCD);
        snapshot::restore(&*store, entries, above, self.force).await.map_err(|e| match e {
            snapshot::Error::NotEmpty(objects) => not_empty(objects),
            e => failed(&e),
        })
    }

    async fn put_in_embedded(
        &self,
        place: &Place,
        report: &Report,
        entries: &[Entry],
    ) -> Result<u64, Failure> {
        let file = Datastore::file(place);
        let mut above = report.revision;
        if file.exists() {
            let store = Embedded::open(&file, embedded::Options::default()).map_err(|e| failed(&e))?;
            let (there, revision) = snapshot::take(&store).await.map_err(|e| failed(&e))?;
            if !there.is_empty() && !self.force {
                return Err(not_empty(there.len()));
            }
            // Clients may have seen what the store came to after the snapshot.
            above = above.max(revision);
        }
        above = above.saturating_add(AHEAD_EMBEDDED);
        let name = format!("before-{}.redb", Timestamp::now().strftime("%Y%m%dT%H%M%SZ"));
        let aside = file.with_file_name(name);
        Embedded::replace(&file, &aside, entries, above).map_err(|e| failed(&e))?;
        if aside.exists() {
            println!("what the store held is kept in {}", aside.display());
        }
        Ok(above)
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(format!("the snapshot cannot be restored: {}", chain(error)))
        .hint("run it again with --force: what was begun is replaced")
}

fn not_empty(objects: usize) -> Failure {
    Failure::new(format!("the store holds {objects} objects already"))
        .hint("--force replaces them; what they are is lost, unless a snapshot of them was saved")
}
