//! The embedded runtime as a [`Runtime`].

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use decapod_proto::cri;
use futures::stream::BoxStream;

use super::sandbox::HANDLERS;
use super::{Embedded, Transfer, blocking, session};
use crate::cri::{About, Connection, Runtime, Session};
use crate::error::{Error, Kind, Result};
use crate::protocol::Streams;
use crate::registry::Credentials;

/// The version of CRI.
const API_VERSION: &str = "v1";

/// Whether this machine has user namespaces: a kernel may be built without, or told to make none.
fn user_namespaces() -> bool {
    let most = std::fs::read_to_string("/proc/sys/user/max_user_namespaces");
    most.is_ok_and(|most| most.trim().parse().is_ok_and(|most: u64| most > 0))
}

#[async_trait]
impl Runtime for Embedded {
    async fn version(&self) -> Result<cri::VersionResponse> {
        Ok(cri::VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: "decapod".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: API_VERSION.to_owned(),
        })
    }

    async fn status(&self) -> Result<cri::StatusResponse> {
        let network = self.inner.options.network.ready().await;
        let conditions = vec![
            cri::RuntimeCondition { r#type: "RuntimeReady".to_owned(), status: true, ..Default::default() },
            cri::RuntimeCondition {
                r#type: "NetworkReady".to_owned(),
                status: network.is_ok(),
                reason: if network.is_ok() { String::new() } else { "NetworkPluginNotReady".to_owned() },
                message: network.err().map(|error| error.to_string()).unwrap_or_default(),
            },
        ];
        let handler = |name: &&str| cri::RuntimeHandler {
            name: (*name).to_owned(),
            features: Some(cri::RuntimeHandlerFeatures {
                recursive_read_only_mounts: true,
                user_namespaces: user_namespaces(),
            }),
        };
        Ok(cri::StatusResponse {
            status: Some(cri::RuntimeStatus { conditions }),
            runtime_handlers: HANDLERS.iter().map(handler).collect(),
            features: Some(cri::RuntimeFeatures { supplemental_groups_policy: true, ..Default::default() }),
            ..Default::default()
        })
    }

    async fn info(&self, about: About<'_>) -> Result<HashMap<String, String>> {
        self.inner.info(about)
    }

    async fn sandbox_run(&self, config: &cri::PodSandboxConfig, runtime_handler: &str) -> Result<String> {
        self.inner.sandbox_run(config, runtime_handler).await
    }

    async fn sandbox_stop(&self, id: &str) -> Result<()> {
        self.inner.sandbox_stop(id).await
    }

    async fn sandbox_remove(&self, id: &str) -> Result<()> {
        self.inner.sandbox_remove(id).await
    }

    async fn sandbox_status(&self, id: &str) -> Result<cri::PodSandboxStatus> {
        self.inner.sandbox_status(id)
    }

    async fn sandbox_list(&self, filter: Option<&cri::PodSandboxFilter>) -> Result<Vec<cri::PodSandbox>> {
        Ok(self.inner.sandbox_list(filter))
    }

    async fn sandbox_stats(&self, id: &str) -> Result<cri::PodSandboxStats> {
        let (inner, id) = (self.inner.clone(), id.to_owned());
        blocking("read what a sandbox uses", move || inner.sandbox_stats(&id)).await?
    }

    async fn container_create(
        &self,
        sandbox_id: &str,
        config: &cri::ContainerConfig,
        _sandbox_config: &cri::PodSandboxConfig,
    ) -> Result<String> {
        // The sandbox's own record is the truth about its configuration.
        self.inner.container_create(sandbox_id, config).await
    }

    async fn container_start(&self, id: &str) -> Result<()> {
        self.inner.container_start(id).await
    }

    async fn container_stop(&self, id: &str, grace: Duration) -> Result<()> {
        self.inner.container_stop(id, grace).await
    }

    async fn container_remove(&self, id: &str) -> Result<()> {
        self.inner.container_remove(id).await
    }

    async fn container_status(&self, id: &str) -> Result<cri::ContainerStatus> {
        Ok(self.inner.container_status(&*self.inner.container(id)?))
    }

    async fn container_list(&self, filter: Option<&cri::ContainerFilter>) -> Result<Vec<cri::Container>> {
        Ok(self.inner.container_list(filter))
    }

    async fn container_stats(&self, id: &str) -> Result<cri::ContainerStats> {
        self.inner.container_stats(&*self.inner.container(id)?)
    }

    async fn container_update(&self, id: &str, resources: &cri::LinuxContainerResources) -> Result<()> {
        self.inner.container_update(id, resources).await
    }

    async fn log_reopen(&self, id: &str) -> Result<()> {
        self.inner.log_reopen(id).await
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<cri::ExecSyncResponse> {
        self.inner.exec_sync(id, command, timeout).await
    }

    async fn exec(&self, request: &cri::ExecRequest) -> Result<Session> {
        let streams =
            Streams { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr && !request.tty };
        self.inner.exec(&request.container_id, &request.cmd, request.tty, streams).await
    }

    async fn attach(&self, request: &cri::AttachRequest) -> Result<Session> {
        self.inner.attach(request).await
    }

    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<Connection> {
        let status = self.inner.sandbox_status(sandbox_id)?;
        if status.state() != cri::PodSandboxState::SandboxReady {
            let id = sandbox_id.to_owned();
            return Err(Error::WrongState { kind: Kind::Sandbox, id, state: "not ready" });
        }
        let netns = self.inner.paths.namespace(sandbox_id, "net");
        let netns = netns.exists().then_some(netns);
        Ok(Box::pin(session::connect(netns, port).await?))
    }

    async fn image_list(&self, filter: Option<&cri::ImageFilter>) -> Result<Vec<cri::Image>> {
        Ok(self.inner.image_list(filter))
    }

    async fn image_status(&self, image: &cri::ImageSpec) -> Result<Option<cri::Image>> {
        Ok(self.inner.images.find(&image.image).map(|image| image.to_cri()))
    }

    async fn image_pull(&self, image: &cri::ImageSpec, auth: Option<&cri::AuthConfig>) -> Result<String> {
        let transfer = Transfer { credentials: auth.map(Credentials::from_cri), ..Transfer::default() };
        Ok(self.inner.image_pull(&image.image, &transfer).await?.id.clone())
    }

    async fn image_remove(&self, image: &cri::ImageSpec) -> Result<()> {
        self.inner.image_remove(image).await
    }

    async fn image_fs(&self) -> Result<cri::ImageFsInfoResponse> {
        self.inner.image_fs().await
    }

    async fn image_import(&self, archive: &Path) -> Result<Vec<cri::Image>> {
        self.inner.image_import(archive).await
    }

    async fn events(&self) -> Result<BoxStream<'static, cri::ContainerEventResponse>> {
        Ok(self.inner.subscribe())
    }
}
