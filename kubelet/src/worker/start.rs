//! Starts one container, and reads what it left when it ended.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use decapod_client::error::chain;
use decapod_proto::cri;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::sync::PodSync;
use crate::environment::{self, Facts};
use crate::images::Ready;
use crate::pod::observed::{self, Observed, State};
use crate::pod::spec::{self, Sort};
use crate::pod::status::Waiting;
use crate::volume::{self, Fetched, Volumes};
use crate::{config, files, logs};

/// Kubernetes' limit for one termination message, in bytes.
const MESSAGE_LIMIT: u64 = 4096;
/// Of a log, this many lines and bytes at most become a termination message.
const MESSAGE_LOG: (u64, usize) = (80, 2048);

/// Why a container could not be configured or started, in Kubernetes' reasons.
struct Fault {
    reason: &'static str,
    message: String,
}

fn config_fault(error: &(dyn std::error::Error + 'static)) -> Fault {
    Fault { reason: "CreateContainerConfigError", message: chain(error) }
}

impl PodSync {
    /// Pulls, creates and starts; true if the container runs now.
    pub(super) async fn container_start(
        &mut self,
        pod: &Arc<Pod>,
        pod_spec: &PodSpec,
        observed: &Observed,
        name: &str,
        attempt: u32,
        backoff: Duration,
    ) -> bool {
        let Some((container, sort)) = spec::find(pod_spec, name) else { return false };
        for volume in volume::images(pod_spec, &container) {
            if self.image(pod, name, &volume).await.is_none() {
                return false;
            }
        }
        let Some(image) = self.image(pod, name, &container).await else { return false };
        let started = async {
            let config =
                self.configure(pod, pod_spec, observed, (&container, sort), attempt, backoff, &image).await?;
            self.create_and_start(pod, pod_spec, observed, &container, config).await
        };
        match started.await {
            Ok(()) => {
                self.state.waiting.remove(name);
                true
            }
            Err(Some(fault)) => {
                let message = format!("Error: {}", fault.message);
                self.shared.tell.container_warning(pod, name, "Failed", message);
                self.state
                    .waiting
                    .insert(name.to_owned(), Waiting { reason: fault.reason, message: fault.message });
                self.failed = true;
                false
            }
            Err(None) => false,
        }
    }

    /// The image of a container, or of one of its volumes; `None` as long as it is not here.
    async fn image(&mut self, pod: &Arc<Pod>, name: &str, wants: &Container) -> Option<Box<cri::Image>> {
        match self.shared.images.clone().ensure(pod, wants).await {
            Ready::Here(image) => Some(image),
            Ready::Pulling => {
                // Waiting without a word of its own: ContainerCreating.
                self.state.waiting.remove(name);
                None
            }
            Ready::Waits(waiting, again) => {
                self.state.waiting.insert(name.to_owned(), waiting);
                if let Some(again) = again {
                    // At least a moment, so that clients get to see each reason.
                    self.wake_after(again.max(Duration::from_secs(1)));
                }
                None
            }
        }
    }

    /// The container's configuration; `Err(None)` when the pod was told of the fault already.
    #[expect(clippy::too_many_arguments, reason = "each is a fact of its own, gathered by the one caller")]
    async fn configure(
        &mut self,
        pod: &Arc<Pod>,
        pod_spec: &PodSpec,
        observed: &Observed,
        (container, sort): (&Container, Sort),
        attempt: u32,
        backoff: Duration,
        image: &cri::Image,
    ) -> Result<cri::ContainerConfig, Option<Fault>> {
        if !self.prepare_volumes(pod, observed).await {
            return Err(None);
        }
        let pod_ips = self.pod_ips(pod, observed);
        let environment = self.environment(pod, container, &pod_ips).await.map_err(Some)?;
        let mut mounts = self
            .mounts(pod, pod_spec, container, attempt, &pod_ips, &environment)
            .map_err(|e| Some(config_fault(&e)))?;
        let devices =
            self.prepared.as_ref().map(|prepared| Volumes::devices(container, prepared)).transpose();
        let devices = devices.map_err(|e| Some(config_fault(&e)))?.unwrap_or_default();
        let command = environment::expand_all(container.command.as_ref(), &environment);
        let args = environment::expand_all(container.args.as_ref(), &environment);
        let target = pod_spec.ephemeral_containers.iter().flatten().find(|e| e.name == container.name);
        let target = target.and_then(|e| e.target_container_name.as_deref());
        let facts = self.pod_facts(pod, pod_spec).map_err(|e| Some(config_fault(&e)))?;
        if let Some(users) = facts.users {
            users.map(&mut mounts);
        }
        let container = config::ContainerFacts {
            container,
            sort,
            attempt,
            backoff,
            image,
            environment,
            command,
            args,
            mounts,
            devices,
            node_memory: self.shared.memory,
            target: target.and_then(|t| observed.newest(t)).map(|t| t.id.clone()),
        };
        let mut config = config::container(&facts, container).map_err(|e| Some(config_fault(&e)))?;
        if self.shared.cgroups.is_unified()
            && let Some(resources) = config.linux.as_mut().and_then(|linux| linux.resources.as_mut())
        {
            // One killed process of a container takes the others with it, rather than leave half of it.
            resources.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
        }
        Ok(config)
    }

    async fn environment(
        &self,
        pod: &Pod,
        container: &Container,
        pod_ips: &[String],
    ) -> Result<Vec<(String, String)>, Fault> {
        let shared = &self.shared;
        let fetched =
            Fetched::of(container, pod, &shared.volumes.objects).await.map_err(|e| config_fault(&e))?;
        let fetched = match &self.prepared {
            Some(prepared) => fetched.with(prepared),
            None => fetched,
        };
        // A pod from a file may be what the API server needs to start.
        if self.local.is_none() {
            shared.services.synced().await;
        }
        let mut services = shared.services.list_in(spec::namespace(pod));
        if spec::namespace(pod) != "default" {
            let key = decapod_client::ObjectKey::new("default", "kubernetes");
            services.extend(shared.services.get(&key));
        }
        let node = shared.node.list().pop();
        let facts =
            Facts { pod, pod_ips, host_ips: &shared.host_ips, node: node.as_deref(), services: &services };
        environment::environment(container, &facts, &fetched).map_err(|e| config_fault(&e))
    }

    /// Volumes, the termination message's file, and `/etc/hosts`.
    fn mounts(
        &self,
        pod: &Pod,
        pod_spec: &PodSpec,
        container: &Container,
        attempt: u32,
        pod_ips: &[String],
        environment: &[(String, String)],
    ) -> Result<Vec<cri::Mount>, volume::Error> {
        let prepared = self.prepared.as_ref();
        let mut mounts = match prepared {
            Some(prepared) => self.shared.volumes.mounts(pod, container, prepared, environment)?,
            None => Vec::new(),
        };
        let io = |path: &PathBuf| {
            let path = path.clone();
            move |source| volume::Error::Io { path, source }
        };
        let message = self.message_file(&container.name, attempt);
        let folder = message.parent().map(PathBuf::from).unwrap_or_default();
        std::fs::create_dir_all(&folder).map_err(io(&folder))?;
        std::fs::write(&message, "").map_err(io(&message))?;
        // The container may run as any user.
        std::fs::set_permissions(&message, std::os::unix::fs::PermissionsExt::from_mode(0o666))
            .map_err(io(&message))?;
        mounts.push(bind(config::message_path(container), &message));
        if !mounts.iter().any(|m| m.container_path == "/etc/hosts") {
            let hosts = self.hosts_file(pod, pod_spec, pod_ips)?;
            mounts.push(bind("/etc/hosts", &hosts));
        }
        Ok(mounts)
    }

    fn hosts_file(
        &self,
        pod: &Pod,
        pod_spec: &PodSpec,
        pod_ips: &[String],
    ) -> Result<PathBuf, volume::Error> {
        let path = self.shared.volumes.pod_dir(&self.owner.uid).join("etc-hosts");
        let aliases = pod_spec.host_aliases.as_ref();
        let io = |source| volume::Error::Io { path: path.clone(), source };
        let text = if pod_spec.host_network == Some(true) {
            files::node_hosts(&std::fs::read_to_string("/etc/hosts").map_err(io)?, aliases)
        } else {
            let (name, domain) = files::host_name(pod, &self.shared.options.cluster_domain);
            files::hosts(pod_ips, &name, &domain, aliases)
        };
        // Written in place: running containers have this very file mounted.
        std::fs::write(&path, text).map_err(io)?;
        Ok(path)
    }

    fn message_file(&self, name: &str, attempt: u32) -> PathBuf {
        self.shared.volumes.pod_dir(&self.owner.uid).join("containers").join(name).join(attempt.to_string())
    }

    async fn create_and_start(
        &self,
        pod: &Arc<Pod>,
        pod_spec: &PodSpec,
        observed: &Observed,
        container: &Container,
        config: cri::ContainerConfig,
    ) -> Result<(), Option<Fault>> {
        let Some(sandbox) = observed.sandbox() else { return Err(None) };
        let create_fault = |message| Some(Fault { reason: "CreateContainerError", message });
        let facts = self.pod_facts(pod, pod_spec).map_err(|e| create_fault(chain(&e)))?;
        let sandbox_config = config::sandbox(&facts, sandbox.attempt);
        // A runtime finds the folder of its log, as CRI has it.
        let log = Path::new(&sandbox_config.log_directory).join(&config.log_path);
        let folder = log.parent().unwrap_or(&log);
        std::fs::create_dir_all(folder)
            .map_err(|e| create_fault(format!("cannot make {}: {e}", folder.display())))?;
        let runtime = &self.shared.runtime;
        let created = runtime.container_create(&sandbox.id, &config, &sandbox_config).await;
        let id = created.map_err(|e| create_fault(chain(&e)))?;
        self.shared.tell.container(pod, &container.name, "Created", "Container created");
        let started = runtime.container_start(&id).await;
        self.shared.measures.container(started.is_ok());
        if let Err(error) = started {
            return Err(Some(Fault { reason: "RunContainerError", message: chain(&error) }));
        }
        self.shared.tell.container(pod, &container.name, "Started", "Container started");
        if let Some(handler) = container.lifecycle.as_ref().and_then(|l| l.post_start.clone()) {
            self.post_start(pod, container, &id, handler);
        }
        Ok(())
    }

    /// Reads the termination messages of containers that have ended.
    pub(super) async fn read_messages(&mut self, pod_spec: &PodSpec, observed: &Observed) {
        let known: std::collections::BTreeSet<&str> =
            observed.containers.iter().map(|c| c.id.as_str()).collect();
        self.state.messages.retain(|id, _| known.contains(id.as_str()));
        for container in observed.containers.iter().filter(|c| c.state == State::Exited) {
            if self.state.messages.contains_key(&container.id) {
                continue;
            }
            let message = self.message(pod_spec, container).await;
            self.state.messages.insert(container.id.clone(), message);
        }
    }

    async fn message(&self, pod_spec: &PodSpec, container: &observed::Container) -> String {
        let path = self.message_file(&container.name, container.attempt);
        let bytes = match last_of(&path, MESSAGE_LIMIT) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return format!("Error on reading termination log {}: {error}", path.display()),
        };
        if !bytes.is_empty() {
            return String::from_utf8_lossy(&bytes).into_owned();
        }
        let policy = spec::find(pod_spec, &container.name).and_then(|(c, _)| c.termination_message_policy);
        let from_log = policy.as_deref() == Some("FallbackToLogsOnError") && container.exit_code != 0;
        if !from_log || container.log_path.is_empty() {
            return container.message.clone();
        }
        let path = PathBuf::from(&container.log_path);
        match logs::tail(&path, MESSAGE_LOG.0, MESSAGE_LOG.1).await {
            Ok(text) => text,
            Err(error) => format!("Error on reading termination message from logs: {}", chain(&error)),
        }
    }
}

/// The end of a file: a container may write as much as it likes. Whatever it should manage to put in its place, no link
/// is followed and no writer is waited for.
fn last_of(path: &std::path::Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut options = std::fs::File::options();
    let mut file = options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let length = meta.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn bind(container_path: &str, host_path: &std::path::Path) -> cri::Mount {
    cri::Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.to_string_lossy().into_owned(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_long_message_is_kept() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "first last").unwrap();
        assert_eq!(last_of(file.path(), 4).unwrap(), b"last");
        assert_eq!(last_of(file.path(), 100).unwrap(), b"first last");
    }

    #[test]
    fn what_took_the_place_of_a_message_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, link, pipe) =
            (dir.path().join("secret"), dir.path().join("link"), dir.path().join("pipe"));
        std::fs::write(&secret, "secret of the node").unwrap();
        std::os::unix::fs::symlink(&secret, &link).unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(last_of(&link, 100).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        // Nor is it waited for that somebody writes.
        for other in [pipe.as_path(), dir.path()] {
            assert_eq!(last_of(other, 100).unwrap_err().to_string(), "it is no regular file");
        }
    }
}
