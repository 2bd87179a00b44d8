//! The runtime service.

use std::time::Duration;

use decapod_proto::cri;
use decapod_proto::cri::runtime_service_server::RuntimeService;
use decapod_runtime::About;
use futures::StreamExt;
use tonic::{Request, Response, Status};

use super::urls::Wanted;
use super::{Answers, Service, failed, metrics, pages};

type Answer<T> = Result<Response<T>, Status>;

/// What a request must have.
fn required<T>(value: Option<T>, what: &str) -> Result<T, Status> {
    value.ok_or_else(|| Status::invalid_argument(format!("missing required {what}")))
}

fn present(id: &str, what: &str) -> Result<(), Status> {
    required((!id.is_empty()).then_some(()), what)
}

/// Times in seconds; what is negative is none.
fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// Streams must be for something, and a terminal has one output.
fn streams(tty: bool, stdin: bool, stdout: bool, stderr: bool) -> Result<(), Status> {
    if tty && stderr {
        return Err(Status::invalid_argument("tty and stderr cannot both be true"));
    }
    if !stdin && !stdout && !stderr {
        return Err(Status::invalid_argument("one of stdin, stdout, or stderr must be set"));
    }
    Ok(())
}

impl Service {
    async fn running(&self, id: &str) -> Result<(), Status> {
        present(id, "container_id")?;
        let status = self.runtime.container_status(id).await.map_err(failed)?;
        match status.state() {
            cri::ContainerState::ContainerRunning => Ok(()),
            _ => Err(Status::failed_precondition(format!("container {id:?} is not running"))),
        }
    }

    async fn statuses(&self, sandbox: &str) -> Result<Vec<cri::ContainerStatus>, Status> {
        let filter = cri::ContainerFilter { pod_sandbox_id: sandbox.to_owned(), ..Default::default() };
        let mut statuses = Vec::new();
        for container in self.runtime.container_list(Some(&filter)).await.map_err(failed)? {
            match self.runtime.container_status(&container.id).await {
                Ok(status) => statuses.push(status),
                // Removed between the list and the question.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(statuses)
    }

    async fn info(
        &self,
        verbose: bool,
        about: About<'_>,
    ) -> Result<std::collections::HashMap<String, String>, Status> {
        match verbose {
            true => self.runtime.info(about).await.map_err(failed),
            false => Ok(Default::default()),
        }
    }
}

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(&self, _: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
        Ok(Response::new(self.runtime.version().await.map_err(failed)?))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Answer<cri::RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = required(request.config, "config")?;
        let id = self.runtime.sandbox_run(&config, &request.runtime_handler).await.map_err(failed)?;
        Ok(Response::new(cri::RunPodSandboxResponse { pod_sandbox_id: id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Answer<cri::StopPodSandboxResponse> {
        self.runtime.sandbox_stop(&request.into_inner().pod_sandbox_id).await.map_err(failed)?;
        Ok(Response::new(cri::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Answer<cri::RemovePodSandboxResponse> {
        self.runtime.sandbox_remove(&request.into_inner().pod_sandbox_id).await.map_err(failed)?;
        Ok(Response::new(cri::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Answer<cri::PodSandboxStatusResponse> {
        let request = request.into_inner();
        let id = request.pod_sandbox_id.as_str();
        let status = self.runtime.sandbox_status(id).await.map_err(failed)?;
        let timestamp = i64::try_from(self.host.clock.now().as_nanosecond()).unwrap_or(i64::MAX);
        Ok(Response::new(cri::PodSandboxStatusResponse {
            status: Some(status),
            info: self.info(request.verbose, About::Sandbox(id)).await?,
            containers_statuses: self.statuses(id).await?,
            timestamp,
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Answer<cri::ListPodSandboxResponse> {
        let filter = request.into_inner().filter;
        let items = self.runtime.sandbox_list(filter.as_ref()).await.map_err(failed)?;
        Ok(Response::new(cri::ListPodSandboxResponse { items }))
    }

    type StreamPodSandboxesStream = Answers<cri::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<cri::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let filter = request.into_inner().filter;
        let items = self.runtime.sandbox_list(filter.as_ref()).await.map_err(failed)?;
        Ok(Response::new(pages(items, |pod_sandboxes| cri::StreamPodSandboxesResponse { pod_sandboxes })))
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Answer<cri::CreateContainerResponse> {
        let request = request.into_inner();
        let config = required(request.config, "config")?;
        let pod = request.sandbox_config.unwrap_or_default();
        let id = self.runtime.container_create(&request.pod_sandbox_id, &config, &pod).await;
        Ok(Response::new(cri::CreateContainerResponse { container_id: id.map_err(failed)? }))
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Answer<cri::StartContainerResponse> {
        self.runtime.container_start(&request.into_inner().container_id).await.map_err(failed)?;
        Ok(Response::new(cri::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Answer<cri::StopContainerResponse> {
        let request = request.into_inner();
        let grace = seconds(request.timeout);
        self.runtime.container_stop(&request.container_id, grace).await.map_err(failed)?;
        Ok(Response::new(cri::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Answer<cri::RemoveContainerResponse> {
        self.runtime.container_remove(&request.into_inner().container_id).await.map_err(failed)?;
        Ok(Response::new(cri::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Answer<cri::ListContainersResponse> {
        let filter = request.into_inner().filter;
        let containers = self.runtime.container_list(filter.as_ref()).await.map_err(failed)?;
        Ok(Response::new(cri::ListContainersResponse { containers }))
    }

    type StreamContainersStream = Answers<cri::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<cri::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let filter = request.into_inner().filter;
        let containers = self.runtime.container_list(filter.as_ref()).await.map_err(failed)?;
        Ok(Response::new(pages(containers, |containers| cri::StreamContainersResponse { containers })))
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Answer<cri::ContainerStatusResponse> {
        let request = request.into_inner();
        let id = request.container_id.as_str();
        let status = self.runtime.container_status(id).await.map_err(failed)?;
        let info = self.info(request.verbose, About::Container(id)).await?;
        Ok(Response::new(cri::ContainerStatusResponse { status: Some(status), info }))
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Answer<cri::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let resources = required(request.linux, "linux")?;
        self.runtime.container_update(&request.container_id, &resources).await.map_err(failed)?;
        Ok(Response::new(cri::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Answer<cri::ReopenContainerLogResponse> {
        self.runtime.log_reopen(&request.into_inner().container_id).await.map_err(failed)?;
        Ok(Response::new(cri::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<cri::ExecSyncRequest>) -> Answer<cri::ExecSyncResponse> {
        let cri::ExecSyncRequest { container_id, cmd, timeout } = request.into_inner();
        let answer = self.runtime.exec_sync(&container_id, &cmd, seconds(timeout)).await;
        Ok(Response::new(answer.map_err(failed)?))
    }

    async fn exec(&self, request: Request<cri::ExecRequest>) -> Answer<cri::ExecResponse> {
        let request = request.into_inner();
        streams(request.tty, request.stdin, request.stdout, request.stderr)?;
        self.running(&request.container_id).await?;
        let url = self.urls.offer(Wanted::Exec(request))?;
        Ok(Response::new(cri::ExecResponse { url }))
    }

    async fn attach(&self, request: Request<cri::AttachRequest>) -> Answer<cri::AttachResponse> {
        let request = request.into_inner();
        streams(request.tty, request.stdin, request.stdout, request.stderr)?;
        self.running(&request.container_id).await?;
        let url = self.urls.offer(Wanted::Attach(request))?;
        Ok(Response::new(cri::AttachResponse { url }))
    }

    async fn port_forward(
        &self,
        request: Request<cri::PortForwardRequest>,
    ) -> Answer<cri::PortForwardResponse> {
        let request = request.into_inner();
        let id = request.pod_sandbox_id.as_str();
        present(id, "pod_sandbox_id")?;
        let status = self.runtime.sandbox_status(id).await.map_err(failed)?;
        if status.state() != cri::PodSandboxState::SandboxReady {
            return Err(Status::failed_precondition(format!("sandbox {id:?} is not ready")));
        }
        let url = self.urls.offer(Wanted::PortForward(request))?;
        Ok(Response::new(cri::PortForwardResponse { url }))
    }

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Answer<cri::ContainerStatsResponse> {
        let id = request.into_inner().container_id;
        let stats = Some(self.runtime.container_stats(&id).await.map_err(failed)?);
        Ok(Response::new(cri::ContainerStatsResponse { stats }))
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Answer<cri::ListContainerStatsResponse> {
        let filter = request.into_inner().filter;
        let stats = metrics::containers(&*self.runtime, filter).await.map_err(failed)?;
        Ok(Response::new(cri::ListContainerStatsResponse { stats }))
    }

    type StreamContainerStatsStream = Answers<cri::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<cri::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let filter = request.into_inner().filter;
        let stats = metrics::containers(&*self.runtime, filter).await.map_err(failed)?;
        let page = |container_stats| cri::StreamContainerStatsResponse { container_stats };
        Ok(Response::new(pages(stats, page)))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Answer<cri::PodSandboxStatsResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let stats = Some(self.runtime.sandbox_stats(&id).await.map_err(failed)?);
        Ok(Response::new(cri::PodSandboxStatsResponse { stats }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Answer<cri::ListPodSandboxStatsResponse> {
        let stats = metrics::pods(&*self.runtime, request.into_inner().filter).await.map_err(failed)?;
        Ok(Response::new(cri::ListPodSandboxStatsResponse { stats }))
    }

    type StreamPodSandboxStatsStream = Answers<cri::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let stats = metrics::pods(&*self.runtime, request.into_inner().filter).await.map_err(failed)?;
        let page = |pod_sandbox_stats| cri::StreamPodSandboxStatsResponse { pod_sandbox_stats };
        Ok(Response::new(pages(stats, page)))
    }

    /// The pod network is not configured through CRI here, and other runtimes ignore it too unless they are told not to.
    async fn update_runtime_config(
        &self,
        _: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Answer<cri::UpdateRuntimeConfigResponse> {
        Ok(Response::new(cri::UpdateRuntimeConfigResponse {}))
    }

    async fn status(&self, request: Request<cri::StatusRequest>) -> Answer<cri::StatusResponse> {
        let mut status = self.runtime.status().await.map_err(failed)?;
        status.info.extend(self.info(request.into_inner().verbose, About::Runtime).await?);
        Ok(Response::new(status))
    }

    async fn checkpoint_container(
        &self,
        _: Request<cri::CheckpointContainerRequest>,
    ) -> Answer<cri::CheckpointContainerResponse> {
        Err(Status::unimplemented("this runtime makes no checkpoints of containers"))
    }

    type GetContainerEventsStream = Answers<cri::ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<cri::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let events = self.runtime.events().await.map_err(failed)?;
        // A subscriber that fell behind learns that there is a gap.
        let end = futures::stream::once(async {
            Err(Status::aborted("the subscriber is too far behind: list and subscribe anew"))
        });
        Ok(Response::new(events.map(Ok).chain(end).boxed()))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Answer<cri::ListMetricDescriptorsResponse> {
        Ok(Response::new(cri::ListMetricDescriptorsResponse { descriptors: metrics::descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Answer<cri::ListPodSandboxMetricsResponse> {
        let stats = metrics::pods(&*self.runtime, None).await.map_err(failed)?;
        let pod_metrics = stats.iter().map(metrics::pod).collect();
        Ok(Response::new(cri::ListPodSandboxMetricsResponse { pod_metrics }))
    }

    type StreamPodSandboxMetricsStream = Answers<cri::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let stats = metrics::pods(&*self.runtime, None).await.map_err(failed)?;
        let all: Vec<_> = stats.iter().map(metrics::pod).collect();
        let page = |pod_sandbox_metrics| cri::StreamPodSandboxMetricsResponse { pod_sandbox_metrics };
        Ok(Response::new(pages(all, page)))
    }

    async fn runtime_config(
        &self,
        _: Request<cri::RuntimeConfigRequest>,
    ) -> Answer<cri::RuntimeConfigResponse> {
        Ok(Response::new(self.runtime.config().await.map_err(failed)?))
    }

    /// The pod's cgroup is the kubelet's own: it has changed it already when it says so.
    async fn update_pod_sandbox_resources(
        &self,
        request: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<cri::UpdatePodSandboxResourcesResponse> {
        self.runtime.sandbox_status(&request.into_inner().pod_sandbox_id).await.map_err(failed)?;
        Ok(Response::new(cri::UpdatePodSandboxResourcesResponse {}))
    }
}
