//! The state machine of one probe: when it is due, and what a run of results means. Pure.

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;

/// What a probe decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    /// As events name it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// The timing of a probe, with Kubernetes' defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    pub(crate) initial_delay: Duration,
    pub(crate) period: Duration,
    pub(crate) timeout: Duration,
    pub(crate) successes: u32,
    pub(crate) failures: u32,
}

impl Timing {
    pub(crate) fn of(probe: &Probe) -> Self {
        let number = |field: Option<i32>, default: u32| {
            field.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
        };
        let seconds = |field, default| Duration::from_secs(u64::from(number(field, default)));
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            successes: number(probe.success_threshold, 1),
            failures: number(probe.failure_threshold, 3),
        }
    }
}

/// One probe of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) kind: Kind,
    pub(crate) timing: Timing,
    verdict: Option<bool>,
    run: (bool, u32),
    /// A probe whose verdict condemns the container rests until there is a new container.
    pub(crate) rests: bool,
}

impl State {
    /// The state before the first result; `seed` is what was known of this very container before the agent started.
    pub(crate) fn new(kind: Kind, timing: Timing, seed: Option<bool>) -> Self {
        let initial = match kind {
            Kind::Startup => None,
            Kind::Liveness => Some(true),
            Kind::Readiness => Some(false),
        };
        let verdict = match (kind, seed) {
            (Kind::Liveness, _) | (_, None) => initial,
            (Kind::Startup, Some(seed)) => seed.then_some(true),
            (Kind::Readiness, Some(seed)) => Some(seed),
        };
        let rests = kind == Kind::Startup && verdict == Some(true);
        Self { kind, timing, verdict, run: (true, 0), rests }
    }

    /// What the results so far mean.
    pub(crate) fn verdict(&self) -> Option<bool> {
        self.verdict
    }

    /// Takes one result in; true if the verdict changed.
    pub(crate) fn observe(&mut self, success: bool) -> bool {
        let (last, count) = self.run;
        let count = if last == success { count.saturating_add(1) } else { 1 };
        self.run = (success, count);
        let threshold = if success { self.timing.successes } else { self.timing.failures };
        if count < threshold {
            return false;
        }
        let changed = self.verdict != Some(success);
        self.verdict = Some(success);
        self.rests = match self.kind {
            Kind::Startup => true,
            Kind::Liveness => !success,
            Kind::Readiness => false,
        };
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(kind: Kind, successes: i32, failures: i32) -> State {
        let probe = Probe {
            success_threshold: Some(successes),
            failure_threshold: Some(failures),
            ..Probe::default()
        };
        State::new(kind, Timing::of(&probe), None)
    }

    #[test]
    fn defaults_are_kubernetes() {
        let timing = Timing::of(&Probe::default());
        assert_eq!((timing.period.as_secs(), timing.timeout.as_secs()), (10, 1));
        assert_eq!((timing.successes, timing.failures, timing.initial_delay.as_secs()), (1, 3, 0));
    }

    #[test]
    fn readiness_needs_a_run_of_successes() {
        let mut state = state(Kind::Readiness, 2, 3);
        assert_eq!(state.verdict(), Some(false));
        assert!(!state.observe(true));
        assert!(!state.observe(false));
        assert!(!state.observe(true));
        assert!(state.observe(true));
        assert_eq!(state.verdict(), Some(true));
        assert!(!state.observe(false) && !state.observe(false));
        assert!(state.observe(false));
        assert!(!state.rests, "readiness goes on");
    }

    #[test]
    fn liveness_rests_once_it_has_condemned() {
        let mut state = state(Kind::Liveness, 1, 2);
        assert_eq!(state.verdict(), Some(true));
        assert!(!state.observe(false) && !state.rests);
        assert!(state.observe(false) && state.rests);
    }

    #[test]
    fn startup_is_open_until_it_succeeds_or_fails_for_good() {
        let mut good = state(Kind::Startup, 1, 3);
        assert_eq!(good.verdict(), None);
        assert!(!good.observe(false));
        assert!(good.observe(true) && good.rests);
        let mut bad = state(Kind::Startup, 1, 1);
        assert!(bad.observe(false) && bad.rests);
        assert_eq!(bad.verdict(), Some(false));
    }

    #[test]
    fn a_restarted_agent_remembers() {
        let timing = Timing::of(&Probe::default());
        assert_eq!(State::new(Kind::Readiness, timing, Some(true)).verdict(), Some(true));
        let started = State::new(Kind::Startup, timing, Some(true));
        assert!(started.rests && started.verdict() == Some(true));
        assert_eq!(State::new(Kind::Startup, timing, Some(false)).verdict(), None);
        assert_eq!(State::new(Kind::Liveness, timing, Some(false)).verdict(), Some(true));
    }
}
