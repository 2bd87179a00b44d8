//! How fast a number of replicas may change: what was called for lately, what was done lately, and the limits that the
//! autoscaler's `behavior` sets. Pure.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// How long a lower number must be called for before it is followed, where nothing else is said, as in Kubernetes.
const DOWN_WINDOW: Duration = Duration::from_secs(300);

/// Without rules, a number at most doubles at a time, but may always become this.
const UP_MINIMUM: i32 = 4;

/// What is remembered of an autoscaler. It is lost with the controller: the next one begins with what is there.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// What was called for, and when.
    called: Vec<(Duration, i32)>,
    /// By how much the number grew, and when.
    grown: Vec<(Duration, i32)>,
    /// By how much it shrank.
    shrunk: Vec<(Duration, i32)>,
}

/// The number that may be, and why it is not another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Allowed {
    pub(super) replicas: i32,
    /// The reason and message of the condition `AbleToScale`.
    pub(super) able: Said,
    /// Whether it is limited, and the reason and message of the condition `ScalingLimited`.
    pub(super) limited: Option<Said>,
}

/// A reason and a message.
pub(super) type Said = (&'static str, &'static str);

/// What is said where nothing limits the number.
pub(super) const WITHIN: Said = ("DesiredWithinRange", "the desired count is within the acceptable range");

const TOO_MANY: Said =
    ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: Said = ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const UP_LIMIT: Said =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: Said =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
const READY: Said = ("ReadyForNewScale", "recommended size matches current size");
const UP_STABILIZED: Said = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const DOWN_STABILIZED: Said = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);

/// What there is, what is called for, and the ends of the range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) current: i32,
    pub(super) wanted: i32,
    pub(super) min: i32,
    pub(super) max: i32,
}

impl Memory {
    /// Begins with what is there, if nothing is known yet.
    pub(super) fn begin(&mut self, current: i32, now: Duration) {
        if self.called.is_empty() {
            self.called.push((now, current));
        }
    }

    /// Notes that the number was changed.
    pub(super) fn changed(
        &mut self,
        behavior: Option<&HorizontalPodAutoscalerBehavior>,
        from: i32,
        to: i32,
        now: Duration,
    ) {
        let Some(behavior) = behavior else { return };
        let rules = if to > from { &behavior.scale_up } else { &behavior.scale_down };
        let policies = rules.iter().flat_map(|rules| rules.policies.iter().flatten());
        let longest = policies.map(|policy| seconds(policy.period_seconds)).max().unwrap_or_default();
        let events = if to > from { &mut self.grown } else { &mut self.shrunk };
        events.retain(|(at, _)| *at + longest >= now);
        events.push((now, (to - from).abs()));
    }

    /// The number that may be now; notes what was called for.
    pub(super) fn allow(
        &mut self,
        behavior: Option<&HorizontalPodAutoscalerBehavior>,
        wish: Wish,
        now: Duration,
    ) -> Allowed {
        let Wish { current, wanted, .. } = wish;
        let rules = behavior.and_then(|both| Some((both.scale_up.as_ref()?, both.scale_down.as_ref()?)));
        let window =
            |rules: &HPAScalingRules, usual| rules.stabilization_window_seconds.map_or(usual, seconds);
        let (up, down) = match rules {
            Some((up, down)) => (window(up, Duration::ZERO), window(down, DOWN_WINDOW)),
            None => (Duration::ZERO, DOWN_WINDOW),
        };
        let within = |window: Duration| {
            let recent = self.called.iter().filter(move |(at, _)| *at + window > now);
            recent.map(|(_, called)| *called).chain([wanted])
        };
        let (lowest, highest) = (within(up).min().unwrap_or(wanted), within(down).max().unwrap_or(wanted));
        // With rules the number stays where it is between the two; without, only what shrinks waits.
        let steady = if rules.is_some() { current.max(lowest).min(highest) } else { highest };
        self.called.retain(|(at, _)| *at + up.max(down) > now);
        self.called.push((now, wanted));
        let able = match steady == wanted {
            true => READY,
            false if rules.is_some() && wanted >= current => UP_STABILIZED,
            false => DOWN_STABILIZED,
        };
        let (replicas, said) = match rules {
            Some((up, down)) => self.limit(Wish { wanted: steady, ..wish }, up, down, now),
            None => plain_limit(Wish { wanted: steady, ..wish }),
        };
        Allowed { replicas, able, limited: (replicas != steady).then_some(said) }
    }

    fn limit(&self, wish: Wish, up: &HPAScalingRules, down: &HPAScalingRules, now: Duration) -> (i32, Said) {
        let Wish { current, wanted, min, max } = wish;
        if wanted > current {
            let limit = self.bound(up, current, true, now).max(current);
            let (most, said) = if max > limit { (limit, UP_LIMIT) } else { (max, TOO_MANY) };
            (wanted.min(most), said)
        } else if wanted < current {
            let limit = self.bound(down, current, false, now).min(current);
            let (least, said) = if min < limit { (limit, DOWN_LIMIT) } else { (min, TOO_FEW) };
            (wanted.max(least), said)
        } else {
            (wanted, WITHIN)
        }
    }

    /// How far the policies let the number go, each from what it was when its period began.
    fn bound(&self, rules: &HPAScalingRules, current: i32, grows: bool, now: Duration) -> i32 {
        let select = rules.select_policy.as_deref().unwrap_or("Max");
        if select == "Disabled" {
            return current;
        }
        let bounds = rules.policies.iter().flatten().map(|policy| {
            let period = seconds(policy.period_seconds);
            let sum = |events: &[(Duration, i32)]| -> i32 {
                events.iter().filter(|(at, _)| *at + period > now).map(|(_, change)| change).sum()
            };
            let begin = current - sum(&self.grown) + sum(&self.shrunk);
            let part = f64::from(begin) * f64::from(policy.value) / 100.0;
            match (policy.type_.as_str(), grows) {
                ("Percent", true) => (f64::from(begin) + part).ceil() as i32,
                ("Percent", false) => (f64::from(begin) - part) as i32,
                (_, true) => begin.saturating_add(policy.value),
                (_, false) => begin.saturating_sub(policy.value),
            }
        });
        // The largest change is the highest number where it grows, and the lowest where it shrinks.
        let bound = if (select == "Min") == grows { bounds.min() } else { bounds.max() };
        bound.unwrap_or(current)
    }
}

fn plain_limit(wish: Wish) -> (i32, Said) {
    let limit = wish.current.saturating_mul(2).max(UP_MINIMUM);
    let (most, said) = if wish.max > limit { (limit, UP_LIMIT) } else { (wish.max, TOO_MANY) };
    if wish.wanted < wish.min { (wish.min, TOO_FEW) } else { (wish.wanted.min(most), said) }
}

fn seconds(seconds: i32) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn wish(current: i32, wanted: i32) -> Wish {
        Wish { current, wanted, min: 1, max: 100 }
    }

    fn at(second: u64) -> Duration {
        Duration::from_secs(1_000 + second)
    }

    fn behavior(up: Value, down: Value) -> HorizontalPodAutoscalerBehavior {
        serde_json::from_value(json!({"scaleUp": up, "scaleDown": down})).unwrap()
    }

    fn rules(window: i32, select: &str, policies: Value) -> Value {
        json!({"stabilizationWindowSeconds": window, "selectPolicy": select, "policies": policies})
    }

    #[test]
    fn without_rules_a_number_doubles_at_once_and_shrinks_late() {
        let mut memory = Memory::default();
        memory.begin(3, at(0));
        let grown = memory.allow(None, wish(3, 50), at(0));
        assert_eq!((grown.replicas, grown.limited), (6, Some(UP_LIMIT)));
        let kept = memory.allow(None, wish(6, 2), at(290));
        assert_eq!((kept.replicas, kept.able.0), (12, "ScaleDownStabilized"), "fifty are still called for");
        assert_eq!(memory.allow(None, wish(6, 2), at(301)).replicas, 2);
        assert_eq!(memory.allow(None, Wish { max: 5, ..wish(3, 9) }, at(302)).limited, Some(TOO_MANY));
        let mut memory = Memory::default();
        assert_eq!(memory.allow(None, Wish { min: 2, ..wish(3, 0) }, at(0)).limited, Some(TOO_FEW));
    }

    #[test]
    fn windows_hold_a_number_where_it_is() {
        let all = json!([{"type": "Percent", "value": 1000, "periodSeconds": 1}]);
        let both = behavior(rules(10, "Max", all.clone()), rules(20, "Max", all));
        let mut memory = Memory::default();
        memory.begin(4, at(0));
        let held = memory.allow(Some(&both), wish(4, 8), at(5));
        assert_eq!((held.replicas, held.able.0), (4, "ScaleUpStabilized"));
        assert_eq!(
            memory.allow(Some(&both), wish(4, 9), at(11)).replicas,
            8,
            "the lowest of the last ten seconds"
        );
        let held = memory.allow(Some(&both), wish(8, 1), at(24));
        assert_eq!((held.replicas, held.able.0), (8, "ScaleDownStabilized"));
        assert_eq!(memory.allow(Some(&both), wish(8, 1), at(50)).replicas, 1);
    }

    #[test]
    fn policies_limit_the_change_in_a_period() {
        let two = json!([{"type": "Pods", "value": 2, "periodSeconds": 60}, {"type": "Percent", "value": 50, "periodSeconds": 60}]);
        let limit = |select: &str, current: i32, wanted: i32| {
            let both = behavior(rules(0, select, two.clone()), rules(0, select, two.clone()));
            let found = Memory::default().allow(Some(&both), wish(current, wanted), at(0));
            (found.replicas, found.limited.map(|said| said.0))
        };
        assert_eq!(limit("Max", 10, 50), (15, Some("ScaleUpLimit")));
        assert_eq!(limit("Min", 10, 50), (12, Some("ScaleUpLimit")));
        assert_eq!(limit("Disabled", 10, 50), (10, Some("ScaleUpLimit")));
        assert_eq!(limit("Max", 10, 1), (5, Some("ScaleDownLimit")));
        assert_eq!(limit("Min", 10, 1), (8, Some("ScaleDownLimit")));
        assert_eq!(limit("Max", 10, 11), (11, None));
        let both = behavior(rules(0, "Min", two.clone()), rules(0, "Max", two));
        let mut memory = Memory::default();
        memory.changed(Some(&both), 8, 10, at(0));
        let found = memory.allow(Some(&both), wish(10, 50), at(30));
        assert_eq!(found.replicas, 10, "the two of this minute are made");
        assert_eq!(memory.allow(Some(&both), wish(10, 50), at(61)).replicas, 12);
    }
}
