//! The border between node agent and container runtime, shaped as the Container Runtime
//! Interface: in process by default, over gRPC to any CRI runtime by option.
//!
//! **Invariant**: an implementation keeps no promise in memory alone. What a call reported as
//! done is found again by a new process, and calls that remove or stop are idempotent.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use decapod_proto::cri;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::error::{Result, Source};

/// A container runtime, by CRI v1's messages.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Names and versions of the runtime and of the interface.
    async fn version(&self) -> Result<cri::VersionResponse>;

    /// The conditions `RuntimeReady` and `NetworkReady`, and the features of its handlers.
    async fn status(&self) -> Result<cri::StatusResponse>;

    /// How kubelet and runtime name cgroups: by paths, unless a runtime says otherwise.
    async fn config(&self) -> Result<cri::RuntimeConfigResponse> {
        let linux = cri::LinuxRuntimeConfiguration { cgroup_driver: cri::CgroupDriver::Cgroupfs.into() };
        Ok(cri::RuntimeConfigResponse { linux: Some(linux) })
    }

    /// What is of use to who looks for a fault and to nobody else, as text or JSON by key; a runtime may have nothing.
    async fn info(&self, about: About<'_>) -> Result<HashMap<String, String>> {
        let _nothing = about;
        Ok(HashMap::new())
    }

    /// Creates what the containers of a pod share, attaches it to the network, and returns the
    /// sandbox's id. On an error nothing remains.
    async fn sandbox_run(&self, config: &cri::PodSandboxConfig, runtime_handler: &str) -> Result<String>;

    /// Stops all its containers at once and releases its network. Idempotent; succeeds for a
    /// sandbox that is not known.
    async fn sandbox_stop(&self, id: &str) -> Result<()>;

    /// Removes the sandbox and all its containers. Idempotent.
    async fn sandbox_remove(&self, id: &str) -> Result<()>;

    /// The state and the addresses of a sandbox.
    async fn sandbox_status(&self, id: &str) -> Result<cri::PodSandboxStatus>;

    /// All sandboxes that pass the filter, ready or not.
    async fn sandbox_list(&self, filter: Option<&cri::PodSandboxFilter>) -> Result<Vec<cri::PodSandbox>>;

    /// Usage of the sandbox's cgroup and of its containers.
    async fn sandbox_stats(&self, id: &str) -> Result<cri::PodSandboxStats>;

    /// Prepares a container in a sandbox and returns its id; no process runs yet.
    async fn container_create(
        &self,
        sandbox_id: &str,
        config: &cri::ContainerConfig,
        sandbox_config: &cri::PodSandboxConfig,
    ) -> Result<String>;

    /// Starts a created container. [`crate::Error::StartFailed`] says what is wrong with its command.
    async fn container_start(&self, id: &str) -> Result<()>;

    /// Sends the stop signal, and after `grace` kills all its processes. Returns once it has
    /// exited. Idempotent; succeeds for a container that is not known.
    async fn container_stop(&self, id: &str, grace: Duration) -> Result<()>;

    /// Removes a container, killing it if it still runs. Its log stays. Idempotent.
    async fn container_remove(&self, id: &str) -> Result<()>;

    /// State, times, exit code and reason of a container.
    async fn container_status(&self, id: &str) -> Result<cri::ContainerStatus>;

    /// All containers that pass the filter, in any state.
    async fn container_list(&self, filter: Option<&cri::ContainerFilter>) -> Result<Vec<cri::Container>>;

    /// CPU, memory and processes of a container.
    async fn container_stats(&self, id: &str) -> Result<cri::ContainerStats>;

    /// Changes the limits of a container while it runs.
    async fn container_update(&self, id: &str, resources: &cri::LinuxContainerResources) -> Result<()>;

    /// Opens the container's log file anew, after it was moved away.
    async fn log_reopen(&self, id: &str) -> Result<()>;

    /// Runs a command to its end; its output is bounded. A `timeout` of zero waits for ever; a
    /// command that takes longer is killed.
    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<cri::ExecSyncResponse>;

    /// Runs a command whose streams the caller holds.
    async fn exec(&self, request: &cri::ExecRequest) -> Result<Session>;

    /// The streams of the container's own process, from now on.
    async fn attach(&self, request: &cri::AttachRequest) -> Result<Session>;

    /// A TCP connection to a port on the sandbox's loopback.
    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<Connection>;

    /// The images of this node.
    async fn image_list(&self, filter: Option<&cri::ImageFilter>) -> Result<Vec<cri::Image>>;

    /// The image of that name, digest or id, if it is here.
    async fn image_status(&self, image: &cri::ImageSpec) -> Result<Option<cri::Image>>;

    /// Fetches an image from its registry; returns the reference to create containers by.
    async fn image_pull(&self, image: &cri::ImageSpec, auth: Option<&cri::AuthConfig>) -> Result<String>;

    /// Removes a name, and with its last name the image. Idempotent.
    async fn image_remove(&self, image: &cri::ImageSpec) -> Result<()>;

    /// The room that images and containers take.
    async fn image_fs(&self) -> Result<cri::ImageFsInfoResponse>;

    /// Imports a docker-archive or OCI archive; not every runtime can.
    async fn image_import(&self, archive: &Path) -> Result<Vec<cri::Image>>;

    /// What happens to containers from now on. A subscriber that does not keep up is *ended*,
    /// never left with a gap: it subscribes again and lists.
    async fn events(&self) -> Result<BoxStream<'static, cri::ContainerEventResponse>>;
}

/// What [`Runtime::info`] is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About<'a> {
    /// The runtime itself.
    Runtime,
    /// The sandbox with this id.
    Sandbox(&'a str),
    /// The container with this id.
    Container(&'a str),
}

/// What a process reads.
pub type Input = Pin<Box<dyn AsyncWrite + Send>>;

/// What a process writes.
pub type Output = Pin<Box<dyn AsyncRead + Send>>;

/// A duplex byte stream.
pub type Connection = Pin<Box<dyn Duplex>>;

/// Something that is read and written.
pub trait Duplex: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A process whose streams the caller holds. Dropping it closes the streams; a process of an
/// exec is then killed, the container's own process is not.
pub struct Session {
    /// Its standard input, if asked for. Dropping it is end of file.
    pub stdin: Option<Input>,
    /// Its standard output, if asked for; with a terminal both outputs.
    pub stdout: Option<Output>,
    /// Its standard error, if asked for and no terminal.
    pub stderr: Option<Output>,
    /// Sizes for its terminal; ignored without one. Never waits: the newest size wins.
    pub resize: mpsc::Sender<TerminalSize>,
    /// Ends with the exit code once the process has ended and its output has been read, or
    /// with the error that cut the session off. 128 + n stands for signal n.
    pub exit: BoxFuture<'static, Result<i32>>,
}

/// The pod network as the runtime uses it.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Gives the sandbox its addresses, the first one being the pod's IP. Idempotent by the
    /// sandbox's id. Never called for pods on the host's network.
    async fn attach(&self, sandbox: &Attachment) -> Result<Vec<IpAddr>, Source>;

    /// Takes them back. Idempotent; the network namespace may be gone already.
    async fn detach(&self, sandbox: &Attachment) -> Result<(), Source>;

    /// `Err` says why pods cannot be attached now: the condition `NetworkReady`.
    async fn ready(&self) -> Result<(), Source>;
}

/// The sandbox to attach to the network.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The id of the sandbox.
    pub sandbox_id: String,
    /// Where its network namespace is mounted.
    pub netns: PathBuf,
    /// Its configuration: metadata, port mappings, annotations.
    pub config: cri::PodSandboxConfig,
}
