//! The trait, call by call.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use decapod_proto::cri;
use decapod_runtime::{About, Connection, Error, Kind, Result, Runtime, Session};
use futures::stream::BoxStream;
use tonic::{Code, Response, Status};

use super::Remote;
use super::call::{ANSWER_WITHIN, FOR_EVER, any, container, given, image, not_started, sandbox};
use super::events;
use crate::stream::{Request, client};

/// The usual time for an answer.
const SOON: Option<Duration> = Some(ANSWER_WITHIN);

/// A runtime's streaming server that does not let us in is the runtime's fault, and may be better later.
fn no_stream(error: client::Error) -> Error {
    Error::Unavailable { what: "the runtime's streaming server", source: error.into() }
}

/// Which of create's objects is not there: the runtime names it in words only.
fn not_created(error: Error, config: &cri::ContainerConfig, status: &str) -> Error {
    let image = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    match error {
        Error::NotFound { kind: Kind::Image, .. } => Error::not_found(Kind::Image, image),
        Error::NotFound { .. } if status.contains("image") => Error::not_found(Kind::Image, image),
        error => error,
    }
}

#[async_trait]
impl Runtime for Remote {
    async fn version(&self) -> Result<cri::VersionResponse> {
        let request = cri::VersionRequest { version: "v1".to_owned() };
        let mut client = self.runtime.clone();
        self.answer(any("ask the runtime for its version"), SOON, client.version(request)).await
    }

    async fn status(&self) -> Result<cri::StatusResponse> {
        let mut client = self.runtime.clone();
        let request = cri::StatusRequest { verbose: false };
        self.answer(any("ask the runtime for its status"), SOON, client.status(request)).await
    }

    async fn config(&self) -> Result<cri::RuntimeConfigResponse> {
        let mut client = self.runtime.clone();
        let call = async {
            match client.runtime_config(cri::RuntimeConfigRequest {}).await {
                // Runtimes before CRI 1.28 are configured to agree with the kubelet by hand.
                Err(status) if status.code() == Code::Unimplemented => {
                    let driver = cri::CgroupDriver::Cgroupfs.into();
                    let linux = cri::LinuxRuntimeConfiguration { cgroup_driver: driver };
                    Ok(Response::new(cri::RuntimeConfigResponse { linux: Some(linux) }))
                }
                answer => answer,
            }
        };
        self.answer(any("ask the runtime for its configuration"), SOON, call).await
    }

    async fn info(&self, about: About<'_>) -> Result<HashMap<String, String>> {
        let mut client = self.runtime.clone();
        match about {
            About::Runtime => {
                let call = client.status(cri::StatusRequest { verbose: true });
                Ok(self.answer(any("ask the runtime for its status"), SOON, call).await?.info)
            }
            About::Sandbox(id) => {
                let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
                let call = client.pod_sandbox_status(request);
                Ok(self.answer(sandbox("ask for a sandbox's status", id), SOON, call).await?.info)
            }
            About::Container(id) => {
                let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
                let call = client.container_status(request);
                Ok(self.answer(container("ask for a container's status", id), SOON, call).await?.info)
            }
        }
    }

    async fn sandbox_run(&self, config: &cri::PodSandboxConfig, runtime_handler: &str) -> Result<String> {
        let mut client = self.runtime.clone();
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: runtime_handler.to_owned(),
        };
        let call = client.run_pod_sandbox(request);
        Ok(self.answer(any("run a sandbox"), SOON, call).await?.pod_sandbox_id)
    }

    async fn sandbox_stop(&self, id: &str) -> Result<()> {
        let mut client = self.runtime.clone();
        let call = client.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() });
        self.done(sandbox("stop a sandbox", id), SOON, call).await
    }

    async fn sandbox_remove(&self, id: &str) -> Result<()> {
        // A running one is not removed by every runtime.
        self.sandbox_stop(id).await?;
        let mut client = self.runtime.clone();
        let call = client.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() });
        self.done(sandbox("remove a sandbox", id), SOON, call).await
    }

    async fn sandbox_status(&self, id: &str) -> Result<cri::PodSandboxStatus> {
        let mut client = self.runtime.clone();
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let doing = "ask for a sandbox's status";
        let answer = self.answer(sandbox(doing, id), SOON, client.pod_sandbox_status(request)).await?;
        given(answer.status, doing)
    }

    async fn sandbox_list(&self, filter: Option<&cri::PodSandboxFilter>) -> Result<Vec<cri::PodSandbox>> {
        let mut client = self.runtime.clone();
        let call = client.list_pod_sandbox(cri::ListPodSandboxRequest { filter: filter.cloned() });
        Ok(self.answer(any("list sandboxes"), SOON, call).await?.items)
    }

    async fn sandbox_stats(&self, id: &str) -> Result<cri::PodSandboxStats> {
        let mut client = self.runtime.clone();
        let doing = "ask for a sandbox's usage";
        let call = client.pod_sandbox_stats(cri::PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() });
        given(self.answer(sandbox(doing, id), SOON, call).await?.stats, doing)
    }

    async fn container_create(
        &self,
        sandbox_id: &str,
        config: &cri::ContainerConfig,
        sandbox_config: &cri::PodSandboxConfig,
    ) -> Result<String> {
        let mut client = self.runtime.clone();
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox_config.clone()),
        };
        let mut words = String::new();
        let call = async {
            let answer = client.create_container(request).await;
            if let Err(status) = &answer {
                words.push_str(status.message());
            }
            answer
        };
        let created = self.answer(sandbox("create a container", sandbox_id), SOON, call).await;
        created.map(|answer| answer.container_id).map_err(|error| not_created(error, config, &words))
    }

    async fn container_start(&self, id: &str) -> Result<()> {
        let mut client = self.runtime.clone();
        let mut refused = None;
        let call = async {
            let answer = client.start_container(cri::StartContainerRequest { container_id: id.to_owned() });
            let answer = answer.await;
            refused = answer.as_ref().err().cloned();
            answer
        };
        match self.answer(container("start a container", id), SOON, call).await {
            Ok(_) => Ok(()),
            Err(error) => Err(refused.map_or(error, |status: Status| not_started(status, id))),
        }
    }

    async fn container_stop(&self, id: &str, grace: Duration) -> Result<()> {
        let mut client = self.runtime.clone();
        // Whole seconds, and never less than was asked for.
        let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let timeout = i64::try_from(seconds).unwrap_or(i64::MAX);
        let call = client.stop_container(cri::StopContainerRequest { container_id: id.to_owned(), timeout });
        let limit = Some(ANSWER_WITHIN.saturating_add(grace));
        self.done(container("stop a container", id), limit, call).await
    }

    async fn container_remove(&self, id: &str) -> Result<()> {
        let mut client = self.runtime.clone();
        let call = client.remove_container(cri::RemoveContainerRequest { container_id: id.to_owned() });
        self.done(container("remove a container", id), SOON, call).await
    }

    async fn container_status(&self, id: &str) -> Result<cri::ContainerStatus> {
        let mut client = self.runtime.clone();
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let doing = "ask for a container's status";
        let answer = self.answer(container(doing, id), SOON, client.container_status(request)).await?;
        given(answer.status, doing)
    }

    async fn container_list(&self, filter: Option<&cri::ContainerFilter>) -> Result<Vec<cri::Container>> {
        let mut client = self.runtime.clone();
        let call = client.list_containers(cri::ListContainersRequest { filter: filter.cloned() });
        Ok(self.answer(any("list containers"), SOON, call).await?.containers)
    }

    async fn container_stats(&self, id: &str) -> Result<cri::ContainerStats> {
        let mut client = self.runtime.clone();
        let doing = "ask for a container's usage";
        let call = client.container_stats(cri::ContainerStatsRequest { container_id: id.to_owned() });
        given(self.answer(container(doing, id), SOON, call).await?.stats, doing)
    }

    async fn container_update(&self, id: &str, resources: &cri::LinuxContainerResources) -> Result<()> {
        let mut client = self.runtime.clone();
        let request = cri::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(resources.clone()),
            ..Default::default()
        };
        let call = client.update_container_resources(request);
        self.answer(container("change a container's limits", id), SOON, call).await.map(drop)
    }

    async fn log_reopen(&self, id: &str) -> Result<()> {
        let mut client = self.runtime.clone();
        let call =
            client.reopen_container_log(cri::ReopenContainerLogRequest { container_id: id.to_owned() });
        self.answer(container("open a container's log anew", id), SOON, call).await.map(drop)
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<cri::ExecSyncResponse> {
        let mut client = self.runtime.clone();
        // Whole seconds: the runtime's own end comes after ours, if ours is not a whole number.
        let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
        let request = cri::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.to_vec(),
            timeout: i64::try_from(seconds).unwrap_or(i64::MAX),
        };
        let limit = match timeout.is_zero() {
            true => FOR_EVER,
            false => Some(ANSWER_WITHIN.saturating_add(timeout)),
        };
        self.answer(container("run the command", id), limit, client.exec_sync(request)).await
    }

    async fn exec(&self, request: &cri::ExecRequest) -> Result<Session> {
        let mut client = self.runtime.clone();
        let stderr = request.stderr && !request.tty;
        let call = client.exec(cri::ExecRequest { stderr, ..request.clone() });
        let url = self.answer(container("run the command", &request.container_id), SOON, call).await?.url;
        let wanted = Request {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr,
            tty: request.tty,
            ..Request::default()
        };
        client::process(&url, &wanted, &self.host).await.map_err(no_stream)
    }

    async fn attach(&self, request: &cri::AttachRequest) -> Result<Session> {
        let mut client = self.runtime.clone();
        let stderr = request.stderr && !request.tty;
        let call = client.attach(cri::AttachRequest { stderr, ..request.clone() });
        let id = request.container_id.as_str();
        let url = self.answer(container("attach to a container", id), SOON, call).await?.url;
        let wanted = Request {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr,
            tty: request.tty,
            ..Request::default()
        };
        client::process(&url, &wanted, &self.host).await.map_err(no_stream)
    }

    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<Connection> {
        let mut client = self.runtime.clone();
        let ports = vec![i32::from(port)];
        let call = client
            .port_forward(cri::PortForwardRequest { pod_sandbox_id: sandbox_id.to_owned(), port: ports });
        let url = self.answer(sandbox("forward a port", sandbox_id), SOON, call).await?.url;
        client::port(&url, port, &self.host).await.map_err(no_stream)
    }

    async fn image_list(&self, filter: Option<&cri::ImageFilter>) -> Result<Vec<cri::Image>> {
        let mut client = self.images.clone();
        let call = client.list_images(cri::ListImagesRequest { filter: filter.cloned() });
        Ok(self.answer(any("list images"), SOON, call).await?.images)
    }

    async fn image_status(&self, spec: &cri::ImageSpec) -> Result<Option<cri::Image>> {
        let mut client = self.images.clone();
        let request = cri::ImageStatusRequest { image: Some(spec.clone()), verbose: false };
        let call = client.image_status(request);
        match self.answer(image("ask for an image", &spec.image), SOON, call).await {
            Ok(answer) => Ok(answer.image),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn image_pull(&self, spec: &cri::ImageSpec, auth: Option<&cri::AuthConfig>) -> Result<String> {
        let mut client = self.images.clone();
        let request =
            cri::PullImageRequest { image: Some(spec.clone()), auth: auth.cloned(), sandbox_config: None };
        let answer = client.pull_image(request).await;
        // Whatever it is, it is about the image: that a registry does not have it, is not answering, or refuses.
        let failed = |status: Status| Error::Image {
            reference: spec.image.clone(),
            source: status.message().to_owned().into(),
        };
        Ok(answer.map_err(failed)?.into_inner().image_ref)
    }

    async fn image_remove(&self, spec: &cri::ImageSpec) -> Result<()> {
        let mut client = self.images.clone();
        let call = client.remove_image(cri::RemoveImageRequest { image: Some(spec.clone()) });
        self.done(image("remove an image", &spec.image), SOON, call).await
    }

    async fn image_fs(&self) -> Result<cri::ImageFsInfoResponse> {
        let mut client = self.images.clone();
        let call = client.image_fs_info(cri::ImageFsInfoRequest {});
        self.answer(any("ask for the room that images take"), SOON, call).await
    }

    async fn image_import(&self, archive: &Path) -> Result<Vec<cri::Image>> {
        let source = "a runtime behind a socket takes images from registries only: import it by the runtime's own \
                      means (containerd: `ctr --namespace k8s.io images import FILE`)";
        Err(Error::Image { reference: archive.display().to_string(), source: source.into() })
    }

    async fn events(&self) -> Result<BoxStream<'static, cri::ContainerEventResponse>> {
        events::follow(self).await
    }
}
