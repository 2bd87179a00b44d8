//! How long a failed daemon pod stays before another takes its place: a node that refuses a pod again and again is
//! not asked as fast as it can refuse.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

/// The first delay, and the longest, as in Kubernetes.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_mins(15);

#[derive(Clone, Copy, Debug)]
struct Delay {
    length: Duration,
    since: Timestamp,
}

impl Delay {
    /// What of this much time since the last failure is left.
    fn left(&self, of: Duration, now: Timestamp) -> Option<Duration> {
        let passed = Duration::try_from(now.duration_since(self.since)).unwrap_or_default();
        of.checked_sub(passed).filter(|left| !left.is_zero())
    }
}

/// The delays by set and node.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    delays: Mutex<HashMap<String, BTreeMap<String, Delay>>>,
}

impl Backoff {
    /// For how long the failed pods of a set stay, by their nodes.
    pub(super) fn held(&self, set: &str, now: Timestamp) -> BTreeMap<String, Duration> {
        let delays = self.lock();
        let delays = delays.get(set).into_iter().flatten();
        delays.filter_map(|(node, delay)| Some((node.clone(), delay.left(delay.length, now)?))).collect()
    }

    /// Notes that a pod of a set failed on a node.
    pub(super) fn failed(&self, set: &str, node: &str, now: Timestamp) {
        let mut delays = self.lock();
        let delays = delays.entry(set.to_owned()).or_default();
        // One that held for long enough begins anew; this also bounds how many there are.
        delays.retain(|_, delay| delay.left(2 * LONGEST, now).is_some());
        let length = delays.get(node).map_or(FIRST, |delay| (2 * delay.length).min(LONGEST));
        delays.insert(node.to_owned(), Delay { length, since: now });
    }

    /// Forgets a set that is gone.
    pub(super) fn forget(&self, set: &str) {
        self.lock().remove(set);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, BTreeMap<String, Delay>>> {
        // Nothing panics while the lock is held, so the map is whole even if the lock is poisoned.
        self.delays.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_and_are_forgotten() {
        let (backoff, at) = (Backoff::default(), |second| Timestamp::from_second(second).unwrap());
        let held = |second| backoff.held("set", at(second)).get("n").map(Duration::as_secs);
        assert_eq!(held(0), None);
        backoff.failed("set", "n", at(0));
        assert_eq!((held(0), held(1)), (Some(1), None));
        backoff.failed("set", "n", at(1));
        assert_eq!((held(2), held(3)), (Some(1), None));
        for _ in 0..12 {
            backoff.failed("set", "n", at(4));
        }
        assert_eq!(held(4), Some(900));
        backoff.failed("set", "n", at(2000));
        assert_eq!(held(2000), Some(1), "it held for long enough");
        backoff.forget("set");
        assert_eq!(held(2000), None);
    }
}
