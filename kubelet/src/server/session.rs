//! `/exec` and `/attach`: the streams of a container's processes.

use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use decapod_cri::stream::{self, Refusal, Request, Upgrade};
use decapod_proto::cri;
use futures::FutureExt;

use super::{host, running};
use crate::pod::spec;
use crate::shared::Shared;

type Names = (String, String, String);

pub(super) async fn exec(
    State(shared): State<Arc<Shared>>,
    Path((namespace, pod, container)): Path<Names>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    upgrade: Result<Upgrade, Refusal>,
) -> Result<Response, Refusal> {
    let request = Request::parse(query.as_deref());
    if request.command.is_empty() {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "you must specify at least 1 command for exec"));
    }
    request.check()?;
    let (_, id) = running(&shared, &namespace, &pod, &container).await?;
    let call = cri::ExecRequest {
        container_id: id,
        cmd: request.command.clone(),
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    };
    let runtime = shared.runtime.clone();
    let open = async move { runtime.exec(&call).await };
    stream::serve(upgrade?, &headers, open.boxed(), &request, &host(&shared))
}

pub(super) async fn attach(
    State(shared): State<Arc<Shared>>,
    Path((namespace, pod, container)): Path<Names>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    upgrade: Result<Upgrade, Refusal>,
) -> Result<Response, Refusal> {
    let mut request = Request::parse(query.as_deref());
    request.check()?;
    let (object, id) = running(&shared, &namespace, &pod, &container).await?;
    // A process keeps the terminal that it was started with, or goes without.
    let found = object.spec.as_ref().and_then(|s| spec::find(s, &container));
    request.tty = found.as_ref().is_some_and(|(c, _)| c.tty == Some(true));
    request.stderr &= !request.tty;
    let once = found.is_some_and(|(c, _)| c.stdin_once == Some(true)) && !request.tty;
    request.detach = request.stdin && !once;
    let call = cri::AttachRequest {
        container_id: id,
        stdin: request.stdin,
        tty: request.tty,
        stdout: request.stdout,
        stderr: request.stderr,
    };
    let runtime = shared.runtime.clone();
    let open = async move { runtime.attach(&call).await };
    stream::serve(upgrade?, &headers, open.boxed(), &request, &host(&shared))
}
