//! What the scheduler counts, under Kubernetes' names. Of all schedulers of the process together.

use std::sync::LazyLock;
use std::time::Duration;

use decapod_client::metrics::{Times, register};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Attempt {
    profile: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Waits {
    queue: &'static str,
}

struct Metrics {
    attempts: Family<Attempt, Counter>,
    durations: Times<Attempt>,
    tries: Histogram,
    pending: Family<Waits, Gauge>,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let metrics = Metrics {
        attempts: Family::default(),
        durations: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15))),
        tries: Histogram::new(exponential_buckets(1.0, 2.0, 5)),
        pending: Family::default(),
    };
    let help = "Number of attempts to schedule pods, by the result. 'unschedulable' means a pod could not be scheduled, while 'error' means an internal scheduler problem";
    register("scheduler_schedule_attempts", help, metrics.attempts.clone());
    let help = "Scheduling attempt latency in seconds (scheduling algorithm + binding)";
    register("scheduler_scheduling_attempt_duration_seconds", help, metrics.durations.clone());
    let help = "Number of attempts to successfully schedule a pod";
    register("scheduler_pod_scheduling_attempts", help, metrics.tries.clone());
    let help = "Number of pending pods, by the queue type";
    register("scheduler_pending_pods", help, metrics.pending.clone());
    metrics
});

/// An attempt ended: `scheduled`, `unschedulable` or `error`.
pub(crate) fn attempt(profile: &str, result: &'static str, took: Duration) {
    let label = Attempt { profile: profile.to_owned(), result };
    METRICS.attempts.get_or_create(&label).inc();
    METRICS.durations.get_or_create(&label).observe(took.as_secs_f64());
}

/// A pod was scheduled at this attempt, counted from 1.
pub(crate) fn scheduled_at(attempt: u32) {
    METRICS.tries.observe(f64::from(attempt));
}

/// How many pods wait in which queue.
pub(crate) fn pending((active, backoff, unschedulable): (usize, usize, usize)) {
    for (queue, count) in [("active", active), ("backoff", backoff), ("unschedulable", unschedulable)] {
        METRICS.pending.get_or_create(&Waits { queue }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_bear_kubernetes_names() {
        attempt("tested", "scheduled", Duration::from_millis(3));
        scheduled_at(2);
        pending((1, 2, 3));
        let text = decapod_client::metrics::text().unwrap();
        for line in [
            "scheduler_schedule_attempts_total{profile=\"tested\",result=\"scheduled\"} 1",
            "scheduler_scheduling_attempt_duration_seconds_count{profile=\"tested\",result=\"scheduled\"} 1",
            "# TYPE scheduler_pod_scheduling_attempts histogram",
            "# TYPE scheduler_pending_pods gauge",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
    }
}
