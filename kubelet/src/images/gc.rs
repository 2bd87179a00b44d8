//! Removing images that nobody uses, when the disk fills or they have been idle for too long, by Kubernetes' rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use decapod_client::error::chain;
use decapod_proto::cri;
use nix::sys::statvfs::statvfs;

use super::Images;
use crate::options::ImageGc;
use crate::pod::status;
use crate::shared::Shared;

/// How often the disk is looked at: Kubernetes' period.
const PERIOD: Duration = Duration::from_secs(300);

/// What is known of an image; times are monotonic.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    first: Duration,
    used: Option<Duration>,
    bytes: u64,
    /// In use now, or not to be removed by anybody.
    kept: bool,
}

/// Room on the disk that has the images, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Disk {
    capacity: u64,
    available: u64,
}

impl Disk {
    /// How much is used, in hundredths.
    fn used_percent(self) -> u64 {
        let available = self.available.min(self.capacity);
        available.saturating_mul(100).checked_div(self.capacity).map_or(0, |free| 100 - free)
    }

    /// What has to be removed.
    fn excess(self, policy: &ImageGc) -> u64 {
        if self.used_percent() < u64::from(policy.high_percent) {
            return 0;
        }
        let wanted = self.capacity / 100 * u64::from(100_u8.saturating_sub(policy.low_percent));
        wanted.saturating_sub(self.available)
    }
}

/// Watches the images of a node.
pub(crate) struct Collector {
    images: Images,
    shared: Arc<Shared>,
    policy: ImageGc,
    seen: BTreeMap<String, Seen>,
    started: Duration,
}

impl Collector {
    pub(super) fn new(images: Images, shared: Arc<Shared>) -> Self {
        let (started, policy) = (shared.clock.monotonic(), shared.options.image_gc);
        Self { images, shared, policy, seen: BTreeMap::new(), started }
    }

    /// Runs until it is dropped.
    pub(crate) async fn run(mut self) {
        // Before that nobody knows which images pods mount.
        self.shared.pods.synced().await;
        loop {
            if let Err(error) = self.collect().await {
                tracing::warn!(error = chain(&error), "images could not be looked through");
            }
            self.images.inner.parts.clock.sleep(PERIOD).await;
        }
    }

    async fn collect(&mut self) -> Result<(), decapod_runtime::Error> {
        let now = self.detect().await?;
        // What of the disk cannot be read is not full.
        let disk =
            statvfs(&self.shared.options.data_dir).map_or(Disk { capacity: 0, available: 0 }, |v| Disk {
                capacity: v.blocks() * v.fragment_size(),
                available: v.blocks_available() * v.fragment_size(),
            });
        let excess = disk.excess(&self.policy);
        let chosen = choose(&self.seen, &self.policy, excess, now, now.saturating_sub(self.started));
        let mut freed = 0;
        for id in &chosen {
            let spec = cri::ImageSpec { image: id.clone(), ..Default::default() };
            match self.images.inner.parts.runtime.image_remove(&spec).await {
                Ok(()) => freed += self.seen.remove(id).map_or(0, |seen| seen.bytes),
                Err(error) => {
                    tracing::warn!(image = id, error = chain(&error), "an image could not be removed")
                }
            }
        }
        if !chosen.is_empty() {
            tracing::info!(images = chosen.len(), bytes = freed, "removed images that nobody uses");
        }
        if freed < excess {
            tracing::warn!(
                used_percent = disk.used_percent(),
                freed,
                wanted = excess,
                "the disk of images is full, and not of images that nobody uses"
            );
        }
        self.forget().await
    }

    /// Forgets who pulled images that are gone.
    async fn forget(&self) -> Result<(), decapod_runtime::Error> {
        let inner = &self.images.inner;
        let recorded = inner.accesses.images();
        let images = inner.parts.runtime.image_list(None).await?;
        let present: BTreeSet<String> = images.into_iter().map(|image| image.id).collect();
        let forgotten =
            recorded.and_then(|ids| ids.difference(&present).try_for_each(|id| inner.accesses.forget(id)));
        if let Err(error) = forgotten {
            tracing::warn!(%error, "records of images that are gone could not be removed");
        }
        Ok(())
    }

    /// Notes which images are here and which are in use; returns the time of it.
    async fn detect(&mut self) -> Result<Duration, decapod_runtime::Error> {
        let images = self.shared.runtime.image_list(None).await?;
        let used = in_use(&self.shared).await?;
        let now = self.shared.clock.monotonic();
        let mut seen = BTreeMap::new();
        for image in images {
            let names = || [&image.id].into_iter().chain(&image.repo_digests).chain(&image.repo_tags);
            let in_use = names().any(|name| used.contains(name));
            let before = self.seen.remove(&image.id);
            let first = before.as_ref().map_or(now, |seen| seen.first);
            let used = if in_use { Some(now) } else { before.and_then(|seen| seen.used) };
            let kept = in_use || image.pinned;
            seen.insert(image.id.clone(), Seen { first, used, bytes: image.size, kept });
        }
        self.seen = seen;
        Ok(now)
    }
}

/// The images that containers run on, and those that pods mount as volumes: by id, and by any name.
pub(crate) async fn in_use(shared: &Shared) -> Result<BTreeSet<String>, decapod_runtime::Error> {
    let containers = shared.runtime.container_list(None).await?;
    let mut used: BTreeSet<String> = containers
        .into_iter()
        .flat_map(|c| [c.image_id, c.image_ref, c.image.map(|image| image.image).unwrap_or_default()])
        .collect();
    let pods = shared.pods.list().into_iter().chain(shared.statics.list());
    let live = pods.filter(|pod| !pod.status.as_ref().is_some_and(status::is_terminal));
    let mounted: BTreeSet<String> = live
        .filter_map(|pod| pod.spec.as_ref()?.volumes.clone())
        .flatten()
        .filter_map(|volume| volume.image?.reference)
        .collect();
    for image in mounted {
        let named = cri::ImageSpec { image, ..Default::default() };
        // One that is not here cannot be removed either.
        used.extend(shared.runtime.image_status(&named).await?.map(|image| image.id));
    }
    Ok(used)
}

/// The images to remove: those idle for too long, then the longest unused ones until enough is free.
fn choose(
    seen: &BTreeMap<String, Seen>,
    policy: &ImageGc,
    excess: u64,
    now: Duration,
    running: Duration,
) -> Vec<String> {
    let mut idle: Vec<(&String, &Seen)> = seen.iter().filter(|(_, seen)| !seen.kept).collect();
    idle.sort_by_key(|(id, seen)| (seen.used.unwrap_or_default(), seen.first, *id));
    // An agent that has just begun does not know yet what was used when.
    let expired = |seen: &Seen| {
        let since = seen.used.unwrap_or(seen.first);
        policy.max_age.is_some_and(|age| running > age && now.saturating_sub(since) > age)
    };
    let mut freed = 0;
    let mut chosen = Vec::new();
    for (id, seen) in idle {
        let for_room = freed < excess && now.saturating_sub(seen.first) >= policy.min_age;
        if expired(seen) || for_room {
            freed += seen.bytes;
            chosen.push(id.clone());
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: ImageGc =
        ImageGc { high_percent: 85, low_percent: 80, min_age: Duration::from_secs(120), max_age: None };

    fn seen(first: u64, used: Option<u64>, kept: bool) -> Seen {
        Seen { first: Duration::from_secs(first), used: used.map(Duration::from_secs), bytes: 10, kept }
    }

    fn images() -> BTreeMap<String, Seen> {
        let all = [
            ("busy", seen(0, Some(1000), true)),
            ("old", seen(0, Some(100), false)),
            ("older", seen(0, Some(50), false)),
            ("never", seen(5, None, false)),
            ("new", seen(950, None, false)),
        ];
        all.into_iter().map(|(id, seen)| (id.to_owned(), seen)).collect()
    }

    fn chosen(policy: &ImageGc, excess: u64) -> Vec<String> {
        let now = Duration::from_secs(1000);
        choose(&images(), policy, excess, now, now)
    }

    #[test]
    fn the_longest_unused_go_first_until_it_is_enough() {
        assert!(chosen(&POLICY, 0).is_empty());
        assert_eq!(chosen(&POLICY, 1), ["never"]);
        assert_eq!(chosen(&POLICY, 15), ["never", "older"]);
        // Never what is in use or has only just come.
        assert_eq!(chosen(&POLICY, 1000), ["never", "older", "old"]);
    }

    #[test]
    fn age_alone_is_a_reason() {
        let policy = ImageGc { max_age: Some(Duration::from_secs(900)), ..POLICY };
        assert_eq!(chosen(&policy, 0), ["never", "older"]);
        let now = Duration::from_secs(1000);
        assert!(choose(&images(), &policy, 0, now, Duration::from_secs(10)).is_empty());
    }

    #[test]
    fn thresholds_are_of_the_disk() {
        let disk = |available| Disk { capacity: 1000, available };
        assert_eq!(disk(160).excess(&POLICY), 0);
        assert_eq!(disk(150).excess(&POLICY), 50);
        assert_eq!(disk(0).excess(&POLICY), 200);
        assert_eq!(Disk { capacity: 0, available: 0 }.excess(&POLICY), 0);
    }
}
