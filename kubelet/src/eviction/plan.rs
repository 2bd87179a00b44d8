//! What to do about a shortage: which conditions hold, which threshold to act on, and which pod goes first. Pure.
//!
//! **Invariants**: a condition, once met, holds for the whole transition period after it was last observed; a soft
//! threshold is acted on only when it was met for its whole grace period without a break; a pod that uses less than
//! it requested goes only after every one that uses more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::threshold::{Pressure, Resource, Signal, Threshold};

/// What there is of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Observation {
    pub(crate) available: u64,
    pub(crate) capacity: u64,
}

/// All that is observed; a signal that cannot be read is absent, and meets no threshold.
pub(crate) type Observations = BTreeMap<Signal, Observation>;

/// What follows from an observation.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Step {
    /// What the node is short of, to be told to the cluster.
    pub(crate) pressures: BTreeSet<Pressure>,
    /// What to act on.
    pub(crate) due: Option<Threshold>,
}

/// What is remembered between observations, by the position of each threshold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tracker {
    /// Thresholds that are met, and since when.
    met: BTreeMap<usize, Duration>,
    /// Those that were acted on: they stay met until more than the threshold was reclaimed.
    acted: BTreeSet<usize>,
    /// Conditions, and when they were last observed.
    pressures: BTreeMap<Pressure, Duration>,
}

impl Tracker {
    /// Takes an observation in. `now` is monotonic; `transition` is how long a condition stays.
    pub(crate) fn step(
        &mut self,
        thresholds: &[Threshold],
        observations: &Observations,
        now: Duration,
        transition: Duration,
    ) -> Step {
        let mut met = BTreeMap::new();
        for (at, threshold) in thresholds.iter().enumerate() {
            let Some(observed) = observations.get(&threshold.signal) else { continue };
            let extra = threshold.reclaim.filter(|_| self.acted.contains(&at));
            let wanted = threshold.value.of(observed.capacity)
                + extra.map_or(0, |reclaim| reclaim.of(observed.capacity));
            if observed.available < wanted {
                met.insert(at, self.met.get(&at).copied().unwrap_or(now));
            }
        }
        self.acted.retain(|at| met.contains_key(at));
        self.pressures.extend(met.keys().map(|at| (thresholds[*at].signal.pressure(), now)));
        self.pressures.retain(|_, last| now.saturating_sub(*last) < transition || *last == now);
        let lasting = met.iter().filter(|(at, since)| {
            thresholds[**at].grace.is_none_or(|grace| now.saturating_sub(**since) >= grace)
        });
        // Memory first; among equals the hard one, whose pods get no grace.
        let due = lasting.min_by_key(|(at, _)| {
            let threshold = &thresholds[**at];
            (threshold.signal, threshold.grace.is_some(), **at)
        });
        let due = due.map(|(at, _)| *at);
        self.acted.extend(due);
        self.met = met;
        Step { pressures: self.pressures.keys().copied().collect(), due: due.map(|at| thresholds[at]) }
    }
}

/// A pod that may have to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) uid: String,
    pub(crate) priority: i32,
    /// What it uses of the resource; unknown ones go first, since they may use anything.
    pub(crate) usage: Option<u64>,
    pub(crate) request: u64,
}

impl Candidate {
    fn over(&self) -> i128 {
        self.usage.map_or(i128::MAX, |usage| i128::from(usage) - i128::from(self.request))
    }
}

/// Puts the pod that goes first in front: one that uses more than it requested before one that does not, then the
/// one of less priority, then the one that is furthest over its request. Process ids are not requested: there
/// priority decides alone.
pub(crate) fn rank(candidates: &mut [Candidate], resource: Resource) {
    candidates.sort_by_key(|candidate| {
        let within = resource != Resource::Pids && candidate.over() <= 0;
        (within, candidate.priority, std::cmp::Reverse(candidate.over()), candidate.uid.clone())
    });
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use proptest::prelude::*;

    use super::super::threshold::Amount;
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn memory(value: u64, grace: Option<u64>, reclaim: Option<u64>) -> Threshold {
        Threshold {
            signal: Signal::MemoryAvailable,
            value: Amount::Absolute(value),
            grace: grace.map(Duration::from_secs),
            reclaim: reclaim.map(Amount::Absolute),
        }
    }

    fn seen(available: u64) -> Observations {
        [(Signal::MemoryAvailable, Observation { available, capacity: 1000 })].into()
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_hard_threshold_is_acted_on_at_once_and_its_condition_lasts() {
        let (thresholds, mut tracker) = ([memory(100, None, None)], Tracker::default());
        let mut step = |available, second| tracker.step(&thresholds, &seen(available), at(second), MINUTE);
        assert_eq!(step(100, 0), Step::default(), "as much as the threshold is enough");
        let met = step(99, 1);
        assert_eq!((met.due, met.pressures.len()), (Some(thresholds[0]), 1));
        let after = step(500, 2);
        assert_eq!((after.due, after.pressures.len()), (None, 1), "nothing to do, but it may come back");
        assert_eq!(step(500, 60).pressures.len(), 1);
        assert_eq!(step(500, 61), Step::default());
    }

    #[test]
    fn a_soft_threshold_waits_for_its_grace_without_a_break() {
        let (thresholds, mut tracker) = ([memory(100, Some(30), None)], Tracker::default());
        let mut due =
            |available, second| tracker.step(&thresholds, &seen(available), at(second), MINUTE).due.is_some();
        assert!(!due(50, 0) && !due(50, 29));
        assert!(!due(100, 29) && !due(50, 30) && !due(50, 59), "it began anew");
        assert!(due(50, 60));
    }

    #[test]
    fn what_was_acted_on_stays_met_until_enough_is_reclaimed() {
        let (thresholds, mut tracker) = ([memory(100, None, Some(50))], Tracker::default());
        let mut due = |available| tracker.step(&thresholds, &seen(available), at(1), MINUTE).due.is_some();
        assert!(!due(120));
        assert!(due(90) && due(149));
        assert!(!due(150) && !due(120), "reclaimed: only the threshold itself counts again");
    }

    #[test]
    fn memory_goes_first_and_what_cannot_be_read_is_no_shortage() {
        let disk = Threshold { signal: Signal::NodeFsAvailable, ..memory(100, None, None) };
        let thresholds = [disk, memory(100, Some(0), None), memory(50, None, None)];
        let mut observations = seen(10);
        observations.insert(Signal::NodeFsAvailable, Observation { available: 1, capacity: 1000 });
        let step = Tracker::default().step(&thresholds, &observations, at(9), MINUTE);
        assert_eq!(step.due, Some(thresholds[2]), "the hard one");
        assert_eq!(step.pressures, [Pressure::Memory, Pressure::Disk].into());
        let blind = Tracker::default().step(&thresholds, &Observations::new(), at(9), MINUTE);
        assert_eq!(blind, Step::default());
    }

    fn candidate(uid: &str, priority: i32, usage: Option<u64>, request: u64) -> Candidate {
        Candidate { uid: uid.into(), priority, usage, request }
    }

    #[test]
    fn who_goes_first() {
        let mut pods = [
            candidate("within", -5, Some(10), 20),
            candidate("over-important", 9, Some(500), 20),
            candidate("over-a-little", 0, Some(30), 20),
            candidate("over-much", 0, Some(90), 20),
            candidate("unknown", 9, None, 20),
        ];
        let mut order = |resource| {
            rank(&mut pods, resource);
            pods.iter().map(|pod| pod.uid.clone()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(order(Resource::Memory), "over-much over-a-little unknown over-important within");
        assert_eq!(order(Resource::Pids), "within over-much over-a-little unknown over-important");
    }

    proptest! {
        /// Whoever stays within its request outlives whoever does not, and of two that are over theirs the less
        /// important goes first, whatever the order in which they are looked at.
        #[test]
        fn ranking_is_fair(given in proptest::collection::vec((0..4_i32, proptest::option::of(0..50_u64), 0..50_u64), 0..12)) {
            let make = |(index, (priority, usage, request)): (usize, &(i32, Option<u64>, u64))| {
                candidate(&index.to_string(), *priority, *usage, *request)
            };
            let mut pods: Vec<Candidate> = given.iter().enumerate().map(make).collect();
            let mut turned: Vec<Candidate> = pods.iter().rev().cloned().collect();
            rank(&mut pods, Resource::Disk);
            rank(&mut turned, Resource::Disk);
            prop_assert_eq!(&pods, &turned);
            for pair in pods.windows(2) {
                let within = |pod: &Candidate| pod.usage.is_some_and(|usage| usage <= pod.request);
                let key = |pod: &Candidate| (within(pod), pod.priority, Reverse(pod.over()));
                prop_assert!(key(&pair[0]) <= key(&pair[1]), "{:?} before {:?}", pair[0], pair[1]);
            }
        }

        /// A condition never flickers: between being met and its end lies at least the transition period.
        #[test]
        fn conditions_do_not_flicker(available in proptest::collection::vec(0..200_u64, 1..60)) {
            let (thresholds, mut tracker) = ([memory(100, None, Some(20))], Tracker::default());
            let mut last_met = None;
            for (second, available) in (0..).zip(available) {
                let step = tracker.step(&thresholds, &seen(available), at(second), at(10));
                if step.due.is_some() {
                    last_met = Some(second);
                }
                let wanted = last_met.is_some_and(|met| second - met < 10);
                prop_assert_eq!(!step.pressures.is_empty(), wanted, "second {}", second);
            }
        }
    }
}
