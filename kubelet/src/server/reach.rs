//! `/reach/{namespace}/{pod}`: how far a pod gets on the way to a host and port. It is tried from the pod's network
//! namespace by this process, so the pod needs no program for it.

use std::fs::File;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use decapod_client::reach::{Ask, Resolver, Step, reach};
use decapod_runtime::About;
use nix::sched::{CloneFlags, setns};

use super::Refusal;
use crate::pod::observed::State as Phase;
use crate::shared::Shared;

/// Tries the way.
pub(super) async fn handle(
    State(shared): State<Arc<Shared>>,
    Path((namespace, name)): Path<(String, String)>,
    Json(ask): Json<Ask>,
) -> Result<Json<Vec<Step>>, Refusal> {
    let failed = |why: String| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why);
    let (pod, observed) = super::find(&shared, &namespace, &name).await?;
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let running = containers
        .filter_map(|container| observed.newest(&container.name))
        .find(|container| container.state == Phase::Running)
        .ok_or_else(|| failed(format!("no container of pod \"{namespace}/{name}\" runs")))?;
    let info = shared.runtime.info(About::Container(&running.id)).await?;
    let pid = info.values().find_map(|text| {
        let told: serde_json::Value = serde_json::from_str(text).ok()?;
        told["pid"].as_u64().filter(|pid| *pid > 0)
    });
    let pid = pid.ok_or_else(|| failed("the runtime does not tell the container's process".to_owned()))?;
    let options = &shared.options;
    let domain = &options.cluster_domain;
    let resolver = Resolver {
        servers: options.cluster_dns.clone(),
        search: vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()],
    };
    let steps = tokio::task::spawn_blocking(move || within(pid, move || reach(&ask, &resolver))).await;
    steps.map_err(|error| failed(error.to_string()))?.map(Json).map_err(|error| {
        failed(format!("the network of pod \"{namespace}/{name}\" cannot be entered: {error}"))
    })
}

/// Runs in the network namespace of a process, in a thread that ends with the work: those of the pool stay where they are.
fn within<T: Send + 'static>(pid: u64, work: impl FnOnce() -> T + Send + 'static) -> std::io::Result<T> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    let thread = std::thread::Builder::new().name("reach".to_owned()).spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)?;
        Ok(work())
    })?;
    thread.join().unwrap_or_else(|_| Err(std::io::Error::other("it panicked")))
}
