//! Snapshots now and then, by the running server. When is kept beside its data, so that it outlives a restart, as does
//! what came of the last one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::Args;
use decapod_client::clock::Clock;
use decapod_storage::Store;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{Report, file, socket};
use crate::cluster::control::Control;
use crate::cluster::lock::Lock;
use crate::cluster::settings::{Place, Which, write_whole};
use crate::failure::Failure;

/// No more often than this: each reads everything.
const SHORTEST: Duration = Duration::from_secs(10);
/// The clock may be set: it is looked again after this long at the latest.
const LOOK: Duration = Duration::from_secs(60);
/// Snapshots that are kept unless another number is asked for.
const KEPT: usize = 8;
const SUFFIX: &str = ".snapshot";

#[derive(Args, Debug)]
pub(crate) struct Schedule {
    #[command(flatten)]
    which: Which,
    /// The time between two snapshots, such as 6h.
    #[arg(long, value_name = "DURATION")]
    every: Option<String>,
    /// How many are kept; the oldest go.
    #[arg(long, value_name = "N", requires = "every")]
    keep: Option<usize>,
    /// Where they are put (default: snapshots, in the data directory).
    #[arg(long, value_name = "FOLDER", requires = "every")]
    folder: Option<PathBuf>,
    /// Take no more.
    #[arg(long, conflicts_with = "every")]
    off: bool,
}

impl Schedule {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let place = self.which.place()?;
        if Lock::holder(&place)?.is_none() {
            return Err(Failure::new(format!("the cluster \"{}\" does not run", place.name()))
                .hint("the running server takes the snapshots: `decapod up` starts it"));
        }
        let control = Control::new(socket(&place));
        let status = match (&self.every, self.off) {
            (Some(every), _) => {
                let folder = match &self.folder {
                    Some(folder) => std::path::absolute(folder)?,
                    None => place.data().join("snapshots"),
                };
                let plan = Plan { every: every.clone(), keep: self.keep.unwrap_or(KEPT), folder };
                plan.check()?;
                control.snapshot_plan(&Some(plan)).await?
            }
            (None, true) => control.snapshot_plan(&None).await?,
            (None, false) => control.snapshot_status().await?,
        };
        status.print();
        Ok(())
    }
}

/// When snapshots are taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    every: String,
    keep: usize,
    folder: PathBuf,
}

impl Plan {
    fn check(&self) -> Result<Duration, Failure> {
        let every = crate::duration::parse(&self.every)?;
        if every < SHORTEST {
            return Err(Failure::new(format!("--every {}: expected {SHORTEST:?} or more", self.every)));
        }
        if self.keep == 0 {
            return Err(Failure::new("--keep 0: at least the last snapshot is kept"));
        }
        Ok(every)
    }
}

/// When snapshots are taken, and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Status {
    plan: Option<Plan>,
    last: Option<Report>,
    /// When it was tried last, whatever came of it.
    tried: Option<Timestamp>,
    /// Why the last try failed, if it did.
    failure: Option<String>,
}

impl Status {
    fn print(&self) {
        match &self.plan {
            Some(plan) => println!(
                "a snapshot every {} into {}; the last {} are kept",
                plan.every,
                plan.folder.display(),
                plan.keep
            ),
            None => println!("no snapshots are taken by themselves; --every 6h has them taken"),
        }
        match &self.last {
            Some(last) => last.print(),
            None => println!("none was taken yet"),
        }
        if let Some(failure) = &self.failure {
            println!("the last try failed: {failure}");
        }
    }

    /// How long it is until the next snapshot.
    fn left(&self, now: Timestamp) -> Option<Duration> {
        let every = self.plan.as_ref()?.check().ok()?;
        let Some(tried) = self.tried.filter(|tried| *tried <= now) else { return Some(Duration::ZERO) };
        let passed = Duration::try_from(now.duration_since(tried)).unwrap_or_default();
        Some(every.saturating_sub(passed))
    }
}

/// Takes snapshots as planned.
pub(in crate::cluster) struct Keeper {
    file: PathBuf,
    name: String,
    status: Mutex<Status>,
    changed: Notify,
}

impl Keeper {
    /// With the plan of an earlier time, if there is one.
    pub(in crate::cluster) fn open(place: &Place) -> Result<Arc<Self>, Failure> {
        let file = place.data().join("snapshots.json");
        let status = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                Failure::new(format!("{} is damaged: {e}", file.display()))
                    .hint("remove it, and say anew when snapshots are to be taken")
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Status::default(),
            Err(e) => return Err(Failure::new(format!("{} cannot be read: {e}", file.display()))),
        };
        let name = place.name().to_owned();
        Ok(Arc::new(Self { file, name, status: Mutex::new(status), changed: Notify::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        // Nothing panics while the lock is held.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plan, and what came of it.
    pub(super) fn status(&self) -> Status {
        self.lock().clone()
    }

    fn put(&self, change: impl FnOnce(&mut Status)) -> Result<(), Failure> {
        let mut status = self.lock();
        let mut next = status.clone();
        change(&mut next);
        write_whole(&self.file, &serde_json::to_vec_pretty(&next)?, 0o600)?;
        *status = next;
        Ok(())
    }

    /// Another plan, from now on; the first snapshot is taken at once.
    pub(super) fn change(&self, plan: Option<Plan>) -> Result<(), Failure> {
        if let Some(plan) = &plan {
            plan.check()?;
        }
        self.put(|status| {
            status.plan = plan;
            status.tried = None;
            status.failure = None;
        })?;
        self.changed.notify_one();
        Ok(())
    }

    /// Takes snapshots until it is dropped.
    pub(in crate::cluster) async fn run(
        self: Arc<Self>,
        store: Arc<dyn Store>,
        kind: &'static str,
        clock: Arc<dyn Clock>,
    ) {
        loop {
            let now = clock.now();
            let status = self.status();
            match status.left(now).zip(status.plan.clone()) {
                Some((left, plan)) if left.is_zero() => self.take(&*store, kind, &plan, now).await,
                Some((left, _)) => {
                    tokio::select! {
                        () = clock.sleep(left.min(LOOK)) => {}
                        () = self.changed.notified() => {}
                    }
                }
                None => self.changed.notified().await,
            }
        }
    }

    async fn take(&self, store: &dyn Store, kind: &str, plan: &Plan, now: Timestamp) {
        let file = plan.folder.join(format!("{}-{}{SUFFIX}", self.name, now.strftime("%Y%m%dT%H%M%SZ")));
        let made = std::fs::create_dir_all(&plan.folder)
            .map_err(|e| Failure::new(format!("{} cannot be made: {e}", plan.folder.display())));
        let taken = match made {
            Ok(()) => file::save(store, kind, &file).await,
            Err(failure) => Err(failure),
        };
        let pruned = taken.and_then(|report| prune(&plan.folder, &self.name, plan.keep).map(|()| report));
        if let Err(failure) = &pruned {
            tracing::error!(%failure, "the planned snapshot failed");
        }
        let kept = self.put(|status| {
            status.tried = Some(now);
            status.failure = pruned.as_ref().err().map(ToString::to_string);
            if let Ok(report) = pruned {
                tracing::info!(file = %report.file.display(), objects = report.entries, "a snapshot is taken");
                status.last = Some(report);
            }
        });
        if let Err(failure) = kept {
            tracing::error!(%failure, "what came of the planned snapshot is not kept");
            // In memory at least: else it would be taken again at once, for ever.
            self.lock().tried = Some(now);
        }
    }
}

/// Removes the oldest snapshots of this cluster until so many are left.
fn prune(folder: &Path, name: &str, keep: usize) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::new(format!("old snapshots in {}: {e}", folder.display()));
    let mut ours = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let file = entry.file_name().to_string_lossy().into_owned();
        let stamp = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('-')?.strip_suffix(SUFFIX));
        let is_stamp = |stamp: &str| {
            stamp.len() == 16 && stamp.bytes().all(|b| b.is_ascii_digit() || b == b'T' || b == b'Z')
        };
        if stamp.is_some_and(is_stamp) {
            ours.push(entry.path());
        }
    }
    ours.sort();
    let surplus = ours.len().saturating_sub(keep);
    ours.drain(..surplus).try_for_each(|old| std::fs::remove_file(old).map_err(failed))
}

#[cfg(test)]
mod tests {
    use decapod_client::clock::ManualClock;
    use decapod_storage::{Embedded, embedded};
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn the_next_is_due_when_its_time_has_passed() {
        let plan = Plan { every: "1h".to_owned(), keep: 3, folder: "/x".into() };
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let mut status = Status { plan: Some(plan), ..Status::default() };
        assert_eq!(status.left(now), Some(Duration::ZERO));
        status.tried = Some(now - SignedDuration::from_mins(20));
        assert_eq!(status.left(now), Some(Duration::from_secs(40 * 60)));
        status.tried = Some(now - SignedDuration::from_hours(24 * 365));
        assert_eq!(status.left(now), Some(Duration::ZERO));
        status.tried = Some(now + SignedDuration::from_mins(1));
        assert_eq!(status.left(now), Some(Duration::ZERO), "the clock was set back");
        status.plan = None;
        assert_eq!(status.left(now), None);
    }

    #[tokio::test]
    async fn snapshots_are_taken_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let which = Which { name: "x".to_owned(), data_dir: dir.path().to_owned() };
        let store: Arc<dyn Store> =
            Arc::new(Embedded::open(&dir.path().join("store"), embedded::Options::default()).unwrap());
        let keeper = Keeper::open(&which.place().unwrap()).unwrap();
        store.create("/registry/a", "x".into()).await.unwrap();
        let (clock, folder) = (Arc::new(ManualClock::default()), dir.path().join("kept"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("mine.snapshot"), "").unwrap();
        keeper.change(Some(Plan { every: "1m".to_owned(), keep: 2, folder: folder.clone() })).unwrap();
        let running = tokio::spawn(keeper.clone().run(store, "embedded", clock.clone()));
        for _ in 0..4 {
            clock.sleepers(1).await;
            clock.advance(Duration::from_secs(60));
        }
        clock.sleepers(1).await;
        running.abort();
        let mut names: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(names.contains(&"mine.snapshot".to_owned()));
        let last = keeper.status().last.unwrap();
        assert_eq!(file::verify(&last.file).unwrap().entries, 1);
        let again = Keeper::open(&which.place().unwrap()).unwrap();
        assert_eq!(again.status(), keeper.status());
        assert!(again.change(Some(Plan { every: "1s".to_owned(), keep: 2, folder })).is_err());
    }
}
