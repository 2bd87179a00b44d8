//! `/portForward`: connections to a pod's ports.

use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use decapod_cri::stream::{self, Refusal, Target, Upgrade};
use decapod_proto::cri;

use super::{find, host};
use crate::pod::mark;
use crate::shared::Shared;

pub(super) async fn handle(
    State(shared): State<Arc<Shared>>,
    Path((namespace, name)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    upgrade: Result<Upgrade, Refusal>,
) -> Result<Response, Refusal> {
    let (object, _) = find(&shared, &namespace, &name).await?;
    let uid = shared.uid_here(&object);
    let labels = [(mark::POD_UID.to_owned(), uid.clone())];
    let filter = cri::PodSandboxFilter { label_selector: labels.into(), ..Default::default() };
    let ready = cri::PodSandboxState::SandboxReady as i32;
    let sandboxes = shared.runtime.sandbox_list(Some(&filter)).await?;
    let sandbox = sandboxes.into_iter().find(|s| s.state == ready);
    let sandbox = sandbox.ok_or_else(|| {
        Refusal::new(StatusCode::CONFLICT, format!("pod \"{namespace}/{name}\" is not running"))
    })?;
    let runtime = shared.runtime.clone();
    let target = Target { runtime, host: host(&shared), sandbox: sandbox.id, name, uid };
    stream::forward(target, query.as_deref(), &headers, upgrade?)
}
