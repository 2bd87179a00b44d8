//! The runtime with its operations counted and timed, under Kubernetes' names: what of a pod's start goes where.
//!
//! **Invariant**: nothing but time is added; every call goes on to the runtime as it came.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use decapod_client::clock::Clock;
use decapod_client::metrics::{Times, register};
use decapod_proto::cri;
use decapod_runtime::{About, Connection, Error, Runtime, Session};
use futures::stream::BoxStream;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// Kubernetes' buckets where it names none, in seconds.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Those for writing a status.
const STATUS: [f64; 11] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Handler {
    runtime_handler: String,
}

struct Operations {
    all: Family<Operation, Counter>,
    errors: Family<Operation, Counter>,
    times: Times<Operation>,
    sandboxes: Times<Handler>,
}

static OPERATIONS: LazyLock<Operations> = LazyLock::new(|| Operations {
    all: register(
        "kubelet_runtime_operations",
        "Cumulative number of runtime operations by operation type.",
        Family::default(),
    ),
    errors: register(
        "kubelet_runtime_operations_errors",
        "Cumulative number of runtime operation errors by operation type.",
        Family::default(),
    ),
    times: register(
        "kubelet_runtime_operations_duration_seconds",
        "Duration in seconds of runtime operations. Broken down by operation type.",
        Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.005, 2.5, 14))),
    ),
    sandboxes: register(
        "kubelet_run_podsandbox_duration_seconds",
        "Duration in seconds of the run_podsandbox operations. Broken down by RuntimeClass.Handler.",
        Family::new_with_constructor(|| Histogram::new(BUCKETS)),
    ),
});

struct Syncs {
    times: Times<Operation>,
    waits: Histogram,
    reports: Histogram,
}

static SYNCS: LazyLock<Syncs> = LazyLock::new(|| Syncs {
    times: register(
        "kubelet_pod_worker_duration_seconds",
        "Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync",
        Family::new_with_constructor(|| Histogram::new(BUCKETS)),
    ),
    waits: register(
        "kubelet_pod_worker_start_duration_seconds",
        "Duration in seconds from kubelet seeing a pod to starting a worker.",
        Histogram::new(BUCKETS),
    ),
    reports: register(
        "kubelet_pod_status_sync_duration_seconds",
        "Duration in seconds to sync a pod status update: from a change until the API server has it.",
        Histogram::new(STATUS),
    ),
});

/// Why a pod is synced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// It was never synced before.
    Create,
    /// Its object changed.
    Update,
    /// Something happened to it, or it is time to look again.
    #[default]
    Sync,
}

/// A sync of a pod took that long.
pub(crate) fn synced(occasion: Occasion, took: Duration) {
    let operation_type = match occasion {
        Occasion::Create => "create",
        Occasion::Update => "update",
        Occasion::Sync => "sync",
    };
    SYNCS.times.get_or_create(&Operation { operation_type }).observe(took.as_secs_f64());
}

/// A pod was begun with that long after it was seen.
pub(crate) fn begun(waited: Duration) {
    SYNCS.waits.observe(waited.as_secs_f64());
}

/// The API server took a status after that long.
pub(crate) fn reported(took: Duration) {
    SYNCS.reports.observe(took.as_secs_f64());
}

/// That runtime, its operations measured by that clock.
pub(crate) fn runtime(runtime: Arc<dyn Runtime>, clock: Arc<dyn Clock>) -> Arc<dyn Runtime> {
    Arc::new(Measured { runtime, clock })
}

struct Measured {
    runtime: Arc<dyn Runtime>,
    clock: Arc<dyn Clock>,
}

impl Measured {
    async fn timed<T>(
        &self,
        operation_type: &'static str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let began = self.clock.monotonic();
        let done = work.await;
        let label = Operation { operation_type };
        OPERATIONS.all.get_or_create(&label).inc();
        let took = self.clock.monotonic().saturating_sub(began);
        OPERATIONS.times.get_or_create(&label).observe(took.as_secs_f64());
        if done.is_err() {
            OPERATIONS.errors.get_or_create(&label).inc();
        }
        done
    }
}

#[async_trait]
impl Runtime for Measured {
    async fn version(&self) -> Result<cri::VersionResponse, Error> {
        self.timed("version", self.runtime.version()).await
    }

    async fn status(&self) -> Result<cri::StatusResponse, Error> {
        self.timed("status", self.runtime.status()).await
    }

    async fn config(&self) -> Result<cri::RuntimeConfigResponse, Error> {
        self.timed("runtime_config", self.runtime.config()).await
    }

    async fn info(&self, about: About<'_>) -> Result<HashMap<String, String>, Error> {
        self.runtime.info(about).await
    }

    async fn sandbox_run(&self, config: &cri::PodSandboxConfig, handler: &str) -> Result<String, Error> {
        let began = self.clock.monotonic();
        let made = self.timed("run_podsandbox", self.runtime.sandbox_run(config, handler)).await;
        // A handler that the runtime refused is what a user made up.
        if made.is_ok() {
            let took = self.clock.monotonic().saturating_sub(began);
            let label = Handler { runtime_handler: handler.to_owned() };
            OPERATIONS.sandboxes.get_or_create(&label).observe(took.as_secs_f64());
        }
        made
    }

    async fn sandbox_stop(&self, id: &str) -> Result<(), Error> {
        self.timed("stop_podsandbox", self.runtime.sandbox_stop(id)).await
    }

    async fn sandbox_remove(&self, id: &str) -> Result<(), Error> {
        self.timed("remove_podsandbox", self.runtime.sandbox_remove(id)).await
    }

    async fn sandbox_status(&self, id: &str) -> Result<cri::PodSandboxStatus, Error> {
        self.timed("podsandbox_status", self.runtime.sandbox_status(id)).await
    }

    async fn sandbox_list(
        &self,
        filter: Option<&cri::PodSandboxFilter>,
    ) -> Result<Vec<cri::PodSandbox>, Error> {
        self.timed("list_podsandbox", self.runtime.sandbox_list(filter)).await
    }

    async fn sandbox_stats(&self, id: &str) -> Result<cri::PodSandboxStats, Error> {
        self.timed("podsandbox_stats", self.runtime.sandbox_stats(id)).await
    }

    async fn container_create(
        &self,
        sandbox_id: &str,
        config: &cri::ContainerConfig,
        sandbox_config: &cri::PodSandboxConfig,
    ) -> Result<String, Error> {
        let created = self.runtime.container_create(sandbox_id, config, sandbox_config);
        self.timed("create_container", created).await
    }

    async fn container_start(&self, id: &str) -> Result<(), Error> {
        self.timed("start_container", self.runtime.container_start(id)).await
    }

    async fn container_stop(&self, id: &str, grace: Duration) -> Result<(), Error> {
        self.timed("stop_container", self.runtime.container_stop(id, grace)).await
    }

    async fn container_remove(&self, id: &str) -> Result<(), Error> {
        self.timed("remove_container", self.runtime.container_remove(id)).await
    }

    async fn container_status(&self, id: &str) -> Result<cri::ContainerStatus, Error> {
        self.timed("container_status", self.runtime.container_status(id)).await
    }

    async fn container_list(
        &self,
        filter: Option<&cri::ContainerFilter>,
    ) -> Result<Vec<cri::Container>, Error> {
        self.timed("list_containers", self.runtime.container_list(filter)).await
    }

    async fn container_stats(&self, id: &str) -> Result<cri::ContainerStats, Error> {
        self.timed("container_stats", self.runtime.container_stats(id)).await
    }

    async fn container_update(
        &self,
        id: &str,
        resources: &cri::LinuxContainerResources,
    ) -> Result<(), Error> {
        self.timed("update_container", self.runtime.container_update(id, resources)).await
    }

    async fn log_reopen(&self, id: &str) -> Result<(), Error> {
        self.timed("reopen_container_log", self.runtime.log_reopen(id)).await
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<cri::ExecSyncResponse, Error> {
        self.timed("exec_sync", self.runtime.exec_sync(id, command, timeout)).await
    }

    async fn exec(&self, request: &cri::ExecRequest) -> Result<Session, Error> {
        self.timed("exec", self.runtime.exec(request)).await
    }

    async fn attach(&self, request: &cri::AttachRequest) -> Result<Session, Error> {
        self.timed("attach", self.runtime.attach(request)).await
    }

    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<Connection, Error> {
        self.timed("port_forward", self.runtime.port_forward(sandbox_id, port)).await
    }

    async fn image_list(&self, filter: Option<&cri::ImageFilter>) -> Result<Vec<cri::Image>, Error> {
        self.timed("list_images", self.runtime.image_list(filter)).await
    }

    async fn image_status(&self, image: &cri::ImageSpec) -> Result<Option<cri::Image>, Error> {
        self.timed("image_status", self.runtime.image_status(image)).await
    }

    async fn image_pull(
        &self,
        image: &cri::ImageSpec,
        auth: Option<&cri::AuthConfig>,
    ) -> Result<String, Error> {
        self.timed("pull_image", self.runtime.image_pull(image, auth)).await
    }

    async fn image_remove(&self, image: &cri::ImageSpec) -> Result<(), Error> {
        self.timed("remove_image", self.runtime.image_remove(image)).await
    }

    async fn image_fs(&self) -> Result<cri::ImageFsInfoResponse, Error> {
        self.timed("image_fs_info", self.runtime.image_fs()).await
    }

    async fn image_import(&self, archive: &Path) -> Result<Vec<cri::Image>, Error> {
        self.runtime.image_import(archive).await
    }

    async fn events(&self) -> Result<BoxStream<'static, cri::ContainerEventResponse>, Error> {
        self.timed("get_container_events", self.runtime.events()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncs_are_told_apart_by_their_occasion() {
        synced(Occasion::Create, Duration::from_millis(30));
        begun(Duration::from_millis(2));
        reported(Duration::from_millis(3));
        let text = decapod_api::exposition::classic(&decapod_client::metrics::text().unwrap());
        for line in [
            "kubelet_pod_worker_duration_seconds_bucket{le=\"0.05\",operation_type=\"create\"} ",
            "kubelet_pod_worker_start_duration_seconds_bucket{le=\"0.005\"} ",
            "kubelet_pod_status_sync_duration_seconds_bucket{le=\"0.01\"} ",
        ] {
            assert!(text.lines().any(|l| l.starts_with(line)), "{line} is not in:\n{text}");
        }
    }
}
