//! Figures from readings: what was used between two of them. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::sample::{Point, Sample};

/// Two readings that are nearer than this say more about the clock than about the use.
const NEAREST: Duration = Duration::from_millis(500);

/// What is used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Figure {
    /// When it was read.
    pub(super) at: Timestamp,
    /// Over which time the processor time is an average.
    pub(super) window: Duration,
    /// Billionths of a processor.
    pub(super) cpu: u64,
    /// Bytes.
    pub(super) memory: u64,
}

/// The readings of one node that are kept: the last one, and what it is compared with.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    last: Sample,
    before: Sample,
    /// Questions in a row that the node did not answer.
    failures: u32,
    /// Rounds in which it is not asked.
    rest: u32,
}

impl Kept {
    /// Takes a new reading in.
    pub(super) fn push(&mut self, sample: Sample) {
        *self = Self { before: std::mem::take(&mut self.last), last: sample, failures: 0, rest: 0 };
    }

    /// The node did not answer: its figures go, and it is asked less often, at last every sixteenth round.
    pub(super) fn fail(&mut self) {
        let failures = self.failures.saturating_add(1);
        *self = Self { failures, rest: (1 << failures.min(4)) - 1, ..Self::default() };
    }

    /// Whether to ask in this round.
    pub(super) fn due(&mut self) -> bool {
        let due = self.rest == 0;
        self.rest = self.rest.saturating_sub(1);
        due
    }

    /// Whether it answered, and not often enough for figures of the node itself.
    pub(super) fn young(&self) -> bool {
        self.last.node.is_some() && self.before.node.is_none()
    }

    /// The figures of the node itself.
    pub(super) fn node(&self) -> Option<Figure> {
        figure(self.last.node?, self.before.node)
    }

    /// The figures of a pod's containers.
    pub(super) fn pod(&self, namespace: &str, pod: &str) -> Vec<(String, Figure)> {
        let from = (namespace.to_owned(), pod.to_owned(), String::new());
        let all = self.last.containers.range(from..);
        let own = all.take_while(|((n, p, _), _)| n == namespace && p == pod);
        own.filter_map(|(key, last)| {
            Some((key.2.clone(), figure(*last, self.before.containers.get(key).copied())?))
        })
        .collect()
    }
}

/// What was used between two readings; since the start, where the container is new or was started anew.
fn figure(last: Point, before: Option<Point>) -> Option<Figure> {
    let same = before.filter(|before| before.started == last.started && before.cpu <= last.cpu);
    let since = |from: Timestamp, cpu: f64| {
        let window = Duration::try_from(last.at.duration_since(from)).ok().filter(|w| *w >= NEAREST)?;
        let cpu = (last.cpu - cpu) / window.as_secs_f64() * 1e9;
        Some(Figure { at: last.at, window, cpu: cpu.round() as u64, memory: last.memory })
    };
    same.and_then(|before| since(before.at, before.cpu)).or_else(|| since(last.started?, 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(second: i64, cpu: f64, started: Option<i64>) -> Point {
        let at = |second| Timestamp::from_second(second).unwrap();
        Point { at: at(second), cpu, memory: 7, started: started.map(at) }
    }

    #[test]
    fn use_is_what_is_between_two_readings() {
        let figure = |last, before| super::figure(last, before).map(|f| (f.cpu, f.window.as_secs()));
        assert_eq!(figure(point(30, 2.0, None), Some(point(20, 1.0, None))), Some((100_000_000, 10)));
        assert_eq!(figure(point(30, 2.0, None), None), None);
        assert_eq!(figure(point(30, 2.0, None), Some(point(30, 2.0, None))), None, "no time between them");
        assert_eq!(figure(point(30, 2.0, Some(10)), None), Some((100_000_000, 20)), "since its start");
        let older = Some(point(20, 50.0, Some(0)));
        assert_eq!(figure(point(30, 2.0, Some(26)), older), Some((500_000_000, 4)), "another container");
        assert_eq!(figure(point(30, 2.0, None), Some(point(20, 5.0, None))), None, "a counter never falls");
    }

    #[test]
    fn a_node_that_fails_loses_its_figures_and_is_asked_less() {
        let mut kept = Kept::default();
        let sample = |second, cpu| Sample { node: Some(point(second, cpu, None)), ..Sample::default() };
        assert!(kept.due() && !kept.young());
        kept.push(sample(10, 1.0));
        assert!(kept.young() && kept.node().is_none());
        kept.push(sample(20, 2.0));
        assert!(!kept.young() && kept.node().is_some());
        kept.fail();
        assert_eq!(kept.node(), None);
        let asked = |kept: &mut Kept| (0..16).filter(|_| kept.due()).count();
        assert!(!kept.due() && kept.due(), "every second round");
        (0..9).for_each(|_| kept.fail());
        assert_eq!(asked(&mut kept), 1);
        kept.push(sample(30, 3.0));
        assert_eq!(asked(&mut kept), 16);
    }
}
