//! How long admission takes, and whether it refuses.
//!
//! Of all servers of the process together: admission knows no server.

use std::sync::LazyLock;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{Times, times};

/// Kubernetes' buckets, in seconds.
const BUCKETS: [f64; 6] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5];

/// What a plugin, or all of them, did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Step {
    /// `CREATE`, `UPDATE` or `DELETE`.
    pub(crate) operation: &'static str,
    /// `admit` where the object may be changed, else `validate`.
    pub(crate) r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusing {
    #[prometheus(flatten)]
    step: Step,
    rejected: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Named {
    name: &'static str,
    #[prometheus(flatten)]
    step: Step,
    rejected: &'static str,
}

struct Admission {
    controllers: Times<Named>,
    steps: Times<Refusing>,
}

static ADMISSION: LazyLock<Admission> = LazyLock::new(|| Admission {
    controllers: times(|| Histogram::new(BUCKETS)),
    steps: times(|| Histogram::new(BUCKETS)),
});

fn said(rejected: bool) -> &'static str {
    if rejected { "true" } else { "false" }
}

/// Counts what one plugin did.
pub(crate) fn plugin(name: &'static str, step: Step, rejected: bool, took: Duration) {
    let label = Named { name, step, rejected: said(rejected) };
    ADMISSION.controllers.get_or_create(&label).observe(took.as_secs_f64());
}

/// Counts what all plugins did.
pub(crate) fn step(step: Step, rejected: bool, took: Duration) {
    let label = Refusing { step, rejected: said(rejected) };
    ADMISSION.steps.get_or_create(&label).observe(took.as_secs_f64());
}

pub(super) fn register(registry: &mut Registry) {
    let help = "Admission controller latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit)";
    let controllers = ADMISSION.controllers.clone();
    registry.register("apiserver_admission_controller_admission_duration_seconds", help, controllers);
    let help = "Admission sub-step latency histogram in seconds, broken out for each operation and API resource and step type (validate or admit)";
    registry.register("apiserver_admission_step_admission_duration_seconds", help, ADMISSION.steps.clone());
}
