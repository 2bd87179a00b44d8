//! What the kubelet counts of its own work, for `/metrics`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Kubernetes' buckets for the start of a pod, in seconds.
pub(crate) const START_BUCKETS: [f64; 25] = [
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0,
    480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];

/// Counters since the agent was started. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measures {
    counts: Arc<Mutex<Counts>>,
}

/// All that is counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    /// Sandboxes that were made, and attempts that failed.
    pub(crate) pods: u64,
    pub(crate) pod_errors: u64,
    /// Containers that were started, and attempts that failed.
    pub(crate) containers: u64,
    pub(crate) container_errors: u64,
    /// From the kubelet's first sight of a pod until all of it ran.
    pub(crate) starts: Histogram,
}

/// How many values were at most as large as each bucket.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Histogram {
    pub(crate) buckets: [u64; START_BUCKETS.len()],
    pub(crate) count: u64,
    pub(crate) sum: f64,
}

impl Measures {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Nothing panics while the lock is held.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().clone()
    }

    /// A sandbox was made, or could not be.
    pub(crate) fn pod(&self, made: bool) {
        let mut counts = self.lock();
        if made {
            counts.pods += 1;
        } else {
            counts.pod_errors += 1;
        }
    }

    /// A container was started, or could not be.
    pub(crate) fn container(&self, started: bool) {
        let mut counts = self.lock();
        if started {
            counts.containers += 1;
        } else {
            counts.container_errors += 1;
        }
    }

    /// A pod runs, that long after it was first seen.
    pub(crate) fn started(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let starts = &mut self.lock().starts;
        for (count, bound) in starts.buckets.iter_mut().zip(START_BUCKETS) {
            *count += u64::from(seconds <= bound);
        }
        starts.count += 1;
        starts.sum += seconds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let measures = Measures::default();
        for millis in [400, 1500, 10_000_000] {
            measures.started(Duration::from_millis(millis));
        }
        let starts = measures.counts().starts;
        assert_eq!((starts.buckets[0], starts.buckets[2], starts.buckets[24], starts.count), (1, 2, 2, 3));
    }
}
