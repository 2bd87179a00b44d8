//! `/localPath/{name}`: the folders of persistent volumes, made and removed for their provisioner.

use std::io;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::Refusal;
use crate::shared::Shared;

/// Makes the folder, if it is not there, and tells where it is.
pub(super) async fn make(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let path = shared.folders.make(&name).map_err(|error| refusal(&name, &error))?;
    Ok(Json(json!({ "path": path })))
}

/// Removes the folder with all that is in it. Large ones take their time, and a client that does not wait asks again.
pub(super) async fn remove(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let folder = name.clone();
    let removed = tokio::task::spawn_blocking(move || shared.folders.remove(&folder)).await;
    match removed {
        Ok(Ok(())) => Ok(Json(json!({}))),
        Ok(Err(error)) => Err(refusal(&name, &error)),
        Err(error) => Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

fn refusal(name: &str, error: &io::Error) -> Refusal {
    let status = match error.kind() {
        io::ErrorKind::InvalidInput => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Refusal::new(status, format!("local path {name:?}: {error}"))
}
