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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Incoming {
    queue: &'static str,
    event: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Step {
    extension_point: &'static str,
    status: &'static str,
    profile: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Tries {
    attempts: u32,
}

/// Attempts beyond this many are told as this many: the label's size has a bound, as in Kubernetes.
const MOST_ATTEMPTS: u32 = 15;

struct Metrics {
    steps: Times<Step>,
    incoming: Family<Incoming, Counter>,
    waits: Times<Tries>,
    preemptions: Counter,
    victims: Histogram,
    attempts: Family<Attempt, Counter>,
    durations: Times<Attempt>,
    tries: Histogram,
    pending: Family<Waits, Gauge>,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    steps: register(
        "scheduler_framework_extension_point_duration_seconds",
        "Latency for running all plugins of a specific extension point.",
        Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.0001, 2.0, 12))),
    ),
    incoming: register(
        "scheduler_queue_incoming_pods",
        "Number of pods added to scheduling queues by event and queue type.",
        Family::default(),
    ),
    waits: register(
        "scheduler_pod_scheduling_sli_duration_seconds",
        "E2e latency for a pod being scheduled, from the time the pod enters the scheduling queue and might involve multiple scheduling attempts.",
        Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.01, 2.0, 20))),
    ),
    preemptions: register(
        "scheduler_preemption_attempts",
        "Total preemption attempts in the cluster till now",
        Counter::default(),
    ),
    victims: register(
        "scheduler_preemption_victims",
        "Number of selected preemption victims",
        Histogram::new(exponential_buckets(1.0, 2.0, 7)),
    ),
    attempts: register(
        "scheduler_schedule_attempts",
        "Number of attempts to schedule pods, by the result. 'unschedulable' means a pod could not be scheduled, while 'error' means an internal scheduler problem",
        Family::default(),
    ),
    durations: register(
        "scheduler_scheduling_attempt_duration_seconds",
        "Scheduling attempt latency in seconds (scheduling algorithm + binding)",
        Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15))),
    ),
    tries: register(
        "scheduler_pod_scheduling_attempts",
        "Number of attempts to successfully schedule a pod",
        Histogram::new(exponential_buckets(1.0, 2.0, 5)),
    ),
    pending: register(
        "scheduler_pending_pods",
        "Number of pending pods, by the queue type",
        Family::default(),
    ),
});

/// An attempt ended: `scheduled`, `unschedulable` or `error`.
pub(crate) fn attempt(profile: &str, result: &'static str, took: Duration) {
    let label = Attempt { profile: profile.to_owned(), result };
    METRICS.attempts.get_or_create(&label).inc();
    METRICS.durations.get_or_create(&label).observe(took.as_secs_f64());
}

/// A pod was scheduled at this attempt, counted from 1, so long after it came to wait.
pub(crate) fn scheduled_at(attempt: u32, waited: Duration) {
    METRICS.tries.observe(f64::from(attempt));
    let attempts = attempt.min(MOST_ATTEMPTS);
    METRICS.waits.get_or_create(&Tries { attempts }).observe(waited.as_secs_f64());
}

/// A step of an attempt ended, by Kubernetes' name of the extension point: `Filter`, `Score`, `PostFilter`, `Bind`.
pub(crate) fn step(profile: &str, extension_point: &'static str, good: bool, took: Duration) {
    let status = if good { "Success" } else { "Unschedulable" };
    let label = Step { extension_point, status, profile: profile.to_owned() };
    METRICS.steps.get_or_create(&label).observe(took.as_secs_f64());
}

/// A pod came into one of the queues because of this event.
pub(crate) fn incoming(queue: &'static str, event: &'static str) {
    METRICS.incoming.get_or_create(&Incoming { queue, event }).inc();
}

/// So many pods have to go for one of higher priority.
pub(crate) fn victims(count: usize) {
    METRICS.victims.observe(count as f64);
}

/// It was asked whether removing other pods would help.
pub(crate) fn preemption() {
    METRICS.preemptions.inc();
}

/// How many pods wait in which queue.
pub(crate) fn pending(counts: [usize; 4]) {
    for (queue, count) in ["active", "backoff", "unschedulable", "gated"].into_iter().zip(counts) {
        METRICS.pending.get_or_create(&Waits { queue }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_bear_kubernetes_names() {
        attempt("tested", "scheduled", Duration::from_millis(3));
        scheduled_at(2, Duration::from_millis(30));
        step("tested", "Filter", true, Duration::from_micros(30));
        incoming("active", "PodAdd");
        preemption();
        pending([1, 2, 3, 4]);
        victims(2);
        let text = decapod_client::metrics::text().unwrap();
        for line in [
            "scheduler_schedule_attempts_total{profile=\"tested\",result=\"scheduled\"} 1",
            "scheduler_scheduling_attempt_duration_seconds_count{profile=\"tested\",result=\"scheduled\"} 1",
            "scheduler_framework_extension_point_duration_seconds_count{extension_point=\"Filter\",status=\"Success\",profile=\"tested\"} 1",
            "scheduler_pod_scheduling_sli_duration_seconds_count{attempts=\"2\"} 1",
            "# TYPE scheduler_preemption_attempts counter",
            "# TYPE scheduler_preemption_victims histogram",
            "# TYPE scheduler_queue_incoming_pods counter",
            "# TYPE scheduler_pod_scheduling_attempts histogram",
            "# TYPE scheduler_pending_pods gauge",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
    }
}
