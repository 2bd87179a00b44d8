//! The containers of a node: the embedded runtime, which also answers on a socket of its own, or a foreign one behind
//! its socket.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use decapod_client::clock::{Clock, SystemClock};
use decapod_client::task::Supervisor;
use decapod_cri::stream::Host;
use decapod_cri::{Remote, Server};
use decapod_runtime::{Embedded, Network, Runtime};

use super::settings::{Place, Settings};
use super::transfer::{self, Way};
use super::{agent, build_socket, control};
use crate::failure::{Failure, chain};

/// Where the embedded runtime speaks CRI v1, for crictl and other tools.
pub(super) fn socket(place: &Place) -> PathBuf {
    place.run().join("cri.sock")
}

/// The runtime of a node.
pub(super) struct Opened {
    pub(super) runtime: Arc<dyn Runtime>,
    /// The same, if it is ours.
    embedded: Option<Embedded>,
}

impl Opened {
    /// What builds, pulls and pushes images by command; a foreign runtime's own tools do that.
    pub(super) fn images(&self, supervisor: &Supervisor) -> Router {
        match &self.embedded {
            Some(embedded) => build_socket::routes(embedded.clone(), supervisor.clone())
                .merge(transfer::routes(embedded.clone())),
            None => control::refuse(
                &[build_socket::PATH, Way::Pull.path(), Way::Push.path()],
                "this node's containers are another runtime's (--container-runtime-endpoint): build, pull and push by \
                 its own means (containerd: `ctr --namespace k8s.io images`)",
            ),
        }
    }
}

/// Opens the runtime that the settings ask for.
pub(super) async fn open(
    place: &Place,
    settings: &Settings,
    network: Arc<dyn Network>,
    clock: Arc<dyn Clock>,
    supervisor: Supervisor,
) -> Result<Opened, Failure> {
    let host = Host { clock, supervisor };
    if let Some(endpoint) = &settings.container_runtime_endpoint {
        return Ok(Opened { runtime: foreign(endpoint, host)?, embedded: None });
    }
    let embedded = agent::runtime(place, network).await?;
    agent::image_of_itself(&embedded).await?;
    let runtime: Arc<dyn Runtime> = Arc::new(embedded.clone());
    let server = Server::bind(runtime.clone(), &socket(place), host).await;
    server.map_err(|e| Failure::new(chain(&e)))?.run();
    Ok(Opened { runtime, embedded: Some(embedded) })
}

/// A runtime behind a socket, for commands that end with the process.
pub(super) fn for_a_moment(endpoint: &str) -> Result<Arc<dyn Runtime>, Failure> {
    foreign(endpoint, Host { clock: Arc::new(SystemClock::new()), supervisor: Supervisor::new() })
}

fn foreign(endpoint: &str, host: Host) -> Result<Arc<dyn Runtime>, Failure> {
    let remote = Remote::new(endpoint, host).map_err(|e| {
        Failure::new(format!("--container-runtime-endpoint: {e}"))
            .hint("containerd's is unix:///run/containerd/containerd.sock")
    })?;
    Ok(Arc::new(remote))
}

#[cfg(test)]
mod tests {
    use super::super::control::Control;
    use super::super::transfer::Display;
    use super::*;

    #[tokio::test]
    async fn what_a_foreign_runtime_does_by_itself_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::new();
        let host = Host { clock: Arc::new(SystemClock::new()), supervisor: supervisor.clone() };
        let nobody = format!("unix://{}", dir.path().join("nobody.sock").display());
        let opened = Opened { runtime: foreign(&nobody, host).unwrap(), embedded: None };
        let socket = dir.path().join("agent.sock");
        control::serve(&socket, opened.runtime.clone(), opened.images(&supervisor), &supervisor).unwrap();

        let control = Control::new(socket.clone());
        let ask = serde_json::json!({
            "reference": "x:1", "insecure": false, "username": "", "password": "", "identity_token": "",
        });
        let ask = serde_json::from_value(ask).unwrap();
        let mut told = Vec::new();
        for way in [Way::Pull, Way::Push] {
            let moved = control.transfer(way, &ask, &mut Display::new(String::new())).await;
            told.push(moved.unwrap_err().to_string());
        }
        let (progress, _lines) = tokio::sync::mpsc::channel(1);
        let built = build_socket::request(&socket, &Default::default(), &progress, &Default::default()).await;
        told.push(built.unwrap_err().to_string());
        for why in told {
            assert!(why.contains("--container-runtime-endpoint"), "{why}");
        }
        let imported = control.image_import(dir.path()).await.unwrap_err().to_string();
        assert!(imported.contains("ctr --namespace k8s.io images import"), "{imported}");
    }
}
