//! What the components of this process count, under Kubernetes' names.
//!
//! One registry for all of them, as they are one process: the API server's `/metrics` and the kubelet's show it beside
//! their own. **Invariant**: no label holds what a client makes up, so that its size has a bound.

use std::fmt;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};

/// A family of histograms that all have the same buckets.
pub type Times<L> = Family<L, Histogram, fn() -> Histogram>;

static REGISTRY: LazyLock<Mutex<Registry>> = LazyLock::new(Mutex::default);

fn registry() -> MutexGuard<'static, Registry> {
    // Registering does not panic half way, so the registry is whole even if the lock is poisoned.
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds a metric to those of this process, and gives it back. Once for each name: keep the metric in a static.
///
/// A counter's name goes without its `_total`, which the text format appends.
pub fn register<M: Metric + Clone>(name: &str, help: &str, metric: M) -> M {
    registry().register(name, help, metric.clone());
    metric
}

/// All that is counted, in the OpenMetrics text format without its end mark: more may be appended.
///
/// # Errors
/// If a metric cannot be written, which is a fault of its encoder.
pub fn text() -> Result<String, fmt::Error> {
    let mut text = String::new();
    encode_registry(&mut text, &registry())?;
    Ok(text)
}

/// The label by which work queues are told apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Name {
    name: &'static str,
}

/// Kubernetes' buckets for times in a work queue: from 10 ns, each ten times the one before.
fn queue_times() -> Histogram {
    Histogram::new(exponential_buckets(1e-8, 10.0, 10))
}

/// A queue that can say for how long its workers have been at work.
pub(crate) trait Working: Send + Sync {
    /// The name, and how long each key is being worked on.
    fn working(&self) -> (&'static str, Vec<Duration>);
}

/// The metrics of all work queues.
struct Queues {
    depth: Family<Name, Gauge>,
    adds: Family<Name, Counter>,
    waits: Times<Name>,
    works: Times<Name>,
    retries: Family<Name, Counter>,
    live: Mutex<Vec<Weak<dyn Working>>>,
}

static QUEUES: LazyLock<Queues> = LazyLock::new(|| {
    let queues = Queues {
        depth: register("workqueue_depth", "Current depth of workqueue", Family::default()),
        adds: register("workqueue_adds", "Total number of adds handled by workqueue", Family::default()),
        waits: register(
            "workqueue_queue_duration_seconds",
            "How long in seconds an item stays in workqueue before being requested",
            Family::new_with_constructor(queue_times),
        ),
        works: register(
            "workqueue_work_duration_seconds",
            "How long in seconds processing an item from workqueue takes",
            Family::new_with_constructor(queue_times),
        ),
        retries: register(
            "workqueue_retries",
            "Total number of retries handled by workqueue",
            Family::default(),
        ),
        live: Mutex::default(),
    };
    registry().register_collector(Box::new(AtWork));
    queues
});

/// What one queue counts.
#[derive(Clone, Debug)]
pub(crate) struct QueueMetrics {
    pub(crate) name: &'static str,
    pub(crate) depth: Gauge,
    pub(crate) adds: Counter,
    pub(crate) waits: Histogram,
    pub(crate) works: Histogram,
    pub(crate) retries: Counter,
}

impl QueueMetrics {
    /// The metrics of the queue of this name; queues of one name are counted together.
    pub(crate) fn of(name: &'static str, queue: Weak<dyn Working>) -> Self {
        let queues = &*QUEUES;
        let mut live = queues.live.lock().unwrap_or_else(PoisonError::into_inner);
        // So there are never more than there were queues at once.
        live.retain(|queue| queue.strong_count() > 0);
        live.push(queue);
        let label = Name { name };
        Self {
            name,
            depth: queues.depth.get_or_create_owned(&label),
            adds: queues.adds.get_or_create_owned(&label),
            waits: queues.waits.get_or_create_owned(&label),
            works: queues.works.get_or_create_owned(&label),
            retries: queues.retries.get_or_create_owned(&label),
        }
    }
}

/// What is known only when it is asked for: the work that is not done yet.
#[derive(Debug)]
struct AtWork;

impl Collector for AtWork {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let unfinished: Family<Name, Seconds> = Family::default();
        let longest: Family<Name, Seconds> = Family::default();
        // The queues are let go of before anything is written: they are locked while they answer.
        let live: Vec<_> = {
            let live = QUEUES.live.lock().unwrap_or_else(PoisonError::into_inner);
            live.iter().filter_map(Weak::upgrade).collect()
        };
        for queue in live {
            let (name, working) = queue.working();
            let label = Name { name };
            let sum: Duration = working.iter().sum();
            unfinished.get_or_create(&label).inc_by(sum.as_secs_f64());
            let longest = longest.get_or_create(&label);
            let most = working.into_iter().max().unwrap_or_default().as_secs_f64();
            longest.set(longest.get().max(most));
        }
        let help = "How many seconds of work is in progress and has not been observed by work_duration";
        let descriptor = encoder.encode_descriptor(
            "workqueue_unfinished_work_seconds",
            help,
            None,
            unfinished.metric_type(),
        )?;
        unfinished.encode(descriptor)?;
        let help = "How many seconds has the longest running processor for workqueue been running";
        let descriptor = encoder.encode_descriptor(
            "workqueue_longest_running_processor_seconds",
            help,
            None,
            longest.metric_type(),
        )?;
        longest.encode(descriptor)
    }
}

type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;
