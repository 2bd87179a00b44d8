//! The socket by which commands of this machine reach the running server. Only root can open it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use decapod_client::task::Supervisor;
use decapod_storage::Store;
use serde::{Deserialize, Serialize};

use super::schedule::{Keeper, Plan, Status};
use super::{Report, file};
use crate::cluster::control::{self, Control, Refusal};
use crate::failure::Failure;

#[derive(Serialize, Deserialize)]
struct Ask {
    file: PathBuf,
}

struct Served {
    store: Arc<dyn Store>,
    kind: &'static str,
    keeper: Arc<Keeper>,
}

type Shared = State<Arc<Served>>;

fn refusal(failure: Failure) -> Refusal {
    Refusal(failure.to_string())
}

async fn save(State(served): Shared, Json(ask): Json<Ask>) -> Result<Json<Report>, Refusal> {
    file::save(&*served.store, served.kind, &ask.file).await.map(Json).map_err(refusal)
}

async fn status(State(served): Shared) -> Json<Status> {
    Json(served.keeper.status())
}

async fn plan(State(served): Shared, Json(plan): Json<Option<Plan>>) -> Result<Json<Status>, Refusal> {
    served.keeper.change(plan).map_err(refusal)?;
    Ok(Json(served.keeper.status()))
}

/// Serves the socket until the supervisor shuts down.
pub(in crate::cluster) fn serve(
    path: &Path,
    store: Arc<dyn Store>,
    kind: &'static str,
    keeper: Arc<Keeper>,
    supervisor: &Supervisor,
) -> Result<(), Failure> {
    let router = Router::new()
        .route("/snapshot/save", post(save))
        .route("/snapshot/schedule", get(status).post(plan))
        .with_state(Arc::new(Served { store, kind, keeper }));
    control::listen("server-socket", path, router, supervisor)
}

impl Control {
    /// Has the server write a snapshot.
    pub(super) async fn snapshot_save(&self, file: &Path) -> Result<Report, Failure> {
        self.call("POST", "/snapshot/save", serde_json::to_vec(&Ask { file: file.to_owned() })?).await
    }

    /// When snapshots are taken, and what came of it.
    pub(super) async fn snapshot_status(&self) -> Result<Status, Failure> {
        self.call("GET", "/snapshot/schedule", Vec::new()).await
    }

    /// Changes when snapshots are taken.
    pub(super) async fn snapshot_plan(&self, plan: &Option<Plan>) -> Result<Status, Failure> {
        self.call("POST", "/snapshot/schedule", serde_json::to_vec(plan)?).await
    }
}
