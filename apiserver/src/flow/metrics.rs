//! What priority and fairness counts: Kubernetes' `apiserver_flowcontrol_*`.
//!
//! The series of a schema are looked up when it is configured, so that a request only adds to them. Those of a schema
//! that is deleted go with it.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::seats::{Bounds, Refusal};
use crate::metrics::{Times, times};

/// Kubernetes' buckets for waiting and executing, in seconds.
const SECONDS: [f64; 13] = [0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];
/// Kubernetes' buckets for the length of queues.
const LENGTHS: [f64; 8] = [0.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Class {
    priority_level: String,
    flow_schema: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Executed {
    priority_level: String,
    flow_schema: String,
    execute: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Typed {
    priority_level: String,
    flow_schema: String,
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    priority_level: String,
    flow_schema: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Level {
    priority_level: String,
}

/// All series.
pub(super) struct Metrics {
    executing: Family<Class, Gauge>,
    executing_seats: Family<Class, Gauge>,
    inqueue: Family<Class, Gauge>,
    inqueue_seats: Family<Class, Gauge>,
    dispatched: Family<Class, Counter>,
    no_accommodation: Family<Class, Counter>,
    refused: Family<Refused, Counter>,
    waits: Times<Executed>,
    executions: Times<Typed>,
    lengths: Times<Class>,
    nominal: Family<Level, Gauge>,
    lower: Family<Level, Gauge>,
    upper: Family<Level, Gauge>,
    current: Family<Level, Gauge>,
}

/// The series of one schema.
pub(super) struct Series {
    pub(super) executing: Gauge,
    executing_seats: Gauge,
    pub(super) inqueue: Gauge,
    inqueue_seats: Gauge,
    dispatched: Counter,
    no_accommodation: Counter,
    refused: [(Refusal, Counter); 3],
    waited: Histogram,
    waited_in_vain: Histogram,
    executions: [Histogram; 2],
    lengths: Histogram,
    class: Class,
}

impl Metrics {
    pub(super) fn new() -> Self {
        Self {
            executing: Family::default(),
            executing_seats: Family::default(),
            inqueue: Family::default(),
            inqueue_seats: Family::default(),
            dispatched: Family::default(),
            no_accommodation: Family::default(),
            refused: Family::default(),
            waits: times(|| Histogram::new(SECONDS)),
            executions: times(|| Histogram::new(SECONDS)),
            lengths: times(|| Histogram::new(LENGTHS)),
            nominal: Family::default(),
            lower: Family::default(),
            upper: Family::default(),
            current: Family::default(),
        }
    }

    /// Adds them to those that are shown.
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("apiserver_flowcontrol");
        let gauges = [
            (
                "current_executing_requests",
                "Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage in the API Priority and Fairness subsystem",
                &self.executing,
            ),
            (
                "current_executing_seats",
                "Concurrency (number of seats) occupied by the currently executing (initial stage for a WATCH, any stage otherwise) requests in the API Priority and Fairness subsystem",
                &self.executing_seats,
            ),
            (
                "current_inqueue_requests",
                "Number of requests currently pending in queues of the API Priority and Fairness subsystem",
                &self.inqueue,
            ),
            (
                "current_inqueue_seats",
                "Number of seats currently pending in queues of the API Priority and Fairness subsystem",
                &self.inqueue_seats,
            ),
        ];
        for (name, help, family) in gauges {
            registry.register(name, help, family.clone());
        }
        let levels = [
            (
                "nominal_limit_seats",
                "Nominal number of execution seats configured for each priority level",
                &self.nominal,
            ),
            (
                "lower_limit_seats",
                "Configured lower bound on number of execution seats available to each priority level",
                &self.lower,
            ),
            (
                "upper_limit_seats",
                "Configured upper bound on number of execution seats available to each priority level",
                &self.upper,
            ),
            (
                "current_limit_seats",
                "current derived number of execution seats available to each priority level",
                &self.current,
            ),
        ];
        for (name, help, family) in levels {
            registry.register(name, help, family.clone());
        }
        let help = "Number of requests executed by API Priority and Fairness subsystem";
        registry.register("dispatched_requests", help, self.dispatched.clone());
        let help = "Number of times a dispatch attempt resulted in a non accommodation due to lack of available seats";
        registry.register("request_dispatch_no_accommodation", help, self.no_accommodation.clone());
        let help = "Number of requests rejected by API Priority and Fairness subsystem";
        registry.register("rejected_requests", help, self.refused.clone());
        let help = "Length of time a request spent waiting in its queue";
        registry.register("request_wait_duration_seconds", help, self.waits.clone());
        let help = "Duration of initial stage (for a WATCH) or any (for a non-WATCH) stage of request execution in the API Priority and Fairness subsystem";
        registry.register("request_execution_seconds", help, self.executions.clone());
        let help = "Length of queue in the API Priority and Fairness subsystem, as seen by each request after it is enqueued";
        registry.register("request_queue_length_after_enqueue", help, self.lengths.clone());
    }

    /// The series of a schema.
    pub(super) fn series(&self, schema: &str, level: &str) -> Series {
        let (priority_level, flow_schema) = (level.to_owned(), schema.to_owned());
        let class = Class { priority_level, flow_schema };
        let refused = |reason: Refusal| {
            let Class { priority_level, flow_schema } = class.clone();
            let label = Refused { priority_level, flow_schema, reason: reason.as_str() };
            (reason, self.refused.get_or_create_owned(&label))
        };
        let waited = |execute| {
            let Class { priority_level, flow_schema } = class.clone();
            self.waits.get_or_create_owned(&Executed { priority_level, flow_schema, execute })
        };
        let executed = |r#type| {
            let Class { priority_level, flow_schema } = class.clone();
            self.executions.get_or_create_owned(&Typed { priority_level, flow_schema, r#type })
        };
        Series {
            executing: self.executing.get_or_create_owned(&class),
            executing_seats: self.executing_seats.get_or_create_owned(&class),
            inqueue: self.inqueue.get_or_create_owned(&class),
            inqueue_seats: self.inqueue_seats.get_or_create_owned(&class),
            dispatched: self.dispatched.get_or_create_owned(&class),
            no_accommodation: self.no_accommodation.get_or_create_owned(&class),
            refused: [Refusal::ConcurrencyLimit, Refusal::QueueFull, Refusal::TimeOut].map(refused),
            waited: waited("true"),
            waited_in_vain: waited("false"),
            executions: ["regular", "watch"].map(executed),
            lengths: self.lengths.get_or_create_owned(&class),
            class,
        }
    }

    /// Forgets the series of a schema that is no more.
    pub(super) fn forget(&self, series: &Series) {
        let class = &series.class;
        for family in [&self.executing, &self.executing_seats, &self.inqueue, &self.inqueue_seats] {
            family.remove(class);
        }
        self.dispatched.remove(class);
        self.no_accommodation.remove(class);
        self.lengths.remove(class);
        let Class { priority_level, flow_schema } = class;
        for (reason, _) in &series.refused {
            let (priority_level, flow_schema) = (priority_level.clone(), flow_schema.clone());
            self.refused.remove(&Refused { priority_level, flow_schema, reason: reason.as_str() });
        }
        for (execute, r#type) in [("true", "regular"), ("false", "watch")] {
            let (priority_level, flow_schema) = (priority_level.clone(), flow_schema.clone());
            self.waits.remove(&Executed { priority_level, flow_schema, execute });
            let Class { priority_level, flow_schema } = class.clone();
            self.executions.remove(&Typed { priority_level, flow_schema, r#type });
        }
    }

    /// The bounds of all levels, and no others.
    pub(super) fn levels<'a>(&self, levels: impl Iterator<Item = (&'a str, Bounds)>) {
        for family in [&self.nominal, &self.lower, &self.upper, &self.current] {
            family.clear();
        }
        for (name, bounds) in levels {
            let label = Level { priority_level: name.to_owned() };
            let set = |family: &Family<Level, Gauge>, seats: usize| {
                family.get_or_create(&label).set(i64::try_from(seats).unwrap_or(i64::MAX));
            };
            set(&self.nominal, bounds.nominal);
            set(&self.lower, bounds.lower);
            set(&self.upper, bounds.upper);
            // Seats are lent as they are asked for, so that this is what a level has without asking.
            set(&self.current, bounds.nominal);
        }
    }
}

impl Series {
    /// A request waits in a queue of this length, itself included.
    pub(super) fn enqueued(&self, length: usize) {
        self.no_accommodation.inc();
        self.inqueue.inc();
        self.inqueue_seats.inc();
        self.lengths.observe(length as f64);
    }

    /// A request left its queue.
    pub(super) fn dequeued(&self) {
        self.inqueue.dec();
        self.inqueue_seats.dec();
    }

    /// A request has its seat after waiting for so long.
    pub(super) fn seated(&self, waited: Duration) {
        self.waited.observe(waited.as_secs_f64());
        self.dispatched.inc();
        self.executing.inc();
        self.executing_seats.inc();
    }

    /// A request gave its seat back.
    pub(super) fn left(&self, watch: bool, took: Duration) {
        self.executing.dec();
        self.executing_seats.dec();
        self.executions[usize::from(watch)].observe(took.as_secs_f64());
    }

    /// A request was turned away after waiting for so long.
    pub(super) fn refused(&self, why: Refusal, waited: Duration) {
        self.waited_in_vain.observe(waited.as_secs_f64());
        if let Some((_, counter)) = self.refused.iter().find(|(reason, _)| *reason == why) {
            counter.inc();
        }
    }
}
