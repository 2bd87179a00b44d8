//! Containers: prepared here, run by the shim.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use decapod_proto::cri;

use super::session::{self, Exec};
use super::spec::{Facts, security_context};
use super::state::{ContainerRecord, Encoded, Paths, Phase, SandboxRecord, Stage};
use super::user::User;
use super::volume::Mapped;
use super::{
    Container, Inner, blocking, capability, client, device, new_id, sandbox, seccomp, signal, user, volume,
};
use crate::cri::Session;
use crate::error::{Error, Kind, Result};
use crate::image::Image;
use crate::protocol::{Exit, Launch, Privileges, Reply, Request, Seccomp, Started, Streams, now};
use crate::sys::cgroup::{Hierarchies, Rule};
use crate::sys::idmap::Users;
use crate::sys::mount::{self, Overlay};
use crate::sys::{durable, rooted};

/// After SIGKILL a process ends at once, unless the kernel holds it: a dead disk or network.
const KILL_WITHIN: Duration = Duration::from_secs(30);

impl Inner {
    pub(super) async fn container_create(
        self: &Arc<Self>,
        sandbox_id: &str,
        config: &cri::ContainerConfig,
    ) -> Result<String> {
        let image = self.image_find(config.image.as_ref())?;
        self.container_create_of(sandbox_id, config, image).await
    }

    /// Creates a container of an image that need not have a name.
    pub(super) async fn container_create_of(
        self: &Arc<Self>,
        sandbox_id: &str,
        config: &cri::ContainerConfig,
        image: Arc<Image>,
    ) -> Result<String> {
        let sandbox = self.sandbox(sandbox_id)?;
        let _work = sandbox.work.lock().await;
        let record = sandbox.record().clone();
        if record.stage != Stage::Ready {
            let state = "not ready";
            return Err(Error::WrongState { kind: Kind::Sandbox, id: sandbox_id.to_owned(), state });
        }
        let plan = Plan {
            id: new_id(),
            image,
            volumes: self.image_volumes(config)?,
            target: self.target_process(&record, config)?,
            config: config.clone(),
            sandbox: record,
            paths: self.paths.clone(),
            layers: self.images.layers(),
            groups: self.groups.clone(),
            boot: self.boot.clone(),
        };
        let record = blocking("create a container", move || plan.carry_out()).await??;
        let (id, sandbox_id) = (record.id.clone(), record.sandbox.clone());
        self.tables().containers.insert(id.clone(), Container::new(record, Phase::Created));
        self.publish(cri::ContainerEventType::ContainerCreatedEvent, &id, &sandbox_id);
        Ok(id)
    }

    /// The images that the container has mounted as volumes, by their targets (KEP-4639).
    fn image_volumes(&self, config: &cri::ContainerConfig) -> Result<BTreeMap<String, Arc<Image>>> {
        let mounts = config.mounts.iter().filter(|mount| mount.image.is_some());
        let images = mounts.map(|mount| {
            let image = self.image_find(mount.image.as_ref())?;
            Ok((mount.container_path.clone(), image))
        });
        images.collect()
    }

    /// The process whose namespace a debugging container shares.
    fn target_process(&self, sandbox: &SandboxRecord, config: &cri::ContainerConfig) -> Result<Option<i32>> {
        let options = namespace_options(sandbox, config);
        if options.pid() != cri::NamespaceMode::Target {
            return Ok(None);
        }
        let target = self.container(&options.target_id)?;
        match target.phase() {
            Phase::Running(started) => Ok(Some(started.process.pid)),
            phase => {
                Err(Error::WrongState { kind: Kind::Container, id: options.target_id, state: phase.name() })
            }
        }
    }

    pub(super) async fn container_start(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let _work = container.work.lock().await;
        let phase = container.phase();
        if phase != Phase::Created {
            return Err(Error::WrongState { kind: Kind::Container, id: id.to_owned(), state: phase.name() });
        }
        let record = &container.record;
        let run = self.paths.sandbox_run(&record.sandbox);
        match client::call(&run, &Request::Start(Box::new(record.launch.clone()))).await? {
            Reply::Started { process, at } => {
                container.advance(Phase::Running(Started { process, at }));
                self.publish(cri::ContainerEventType::ContainerStartedEvent, id, &record.sandbox);
                Ok(())
            }
            Reply::StartFailed { code, message } => {
                let reason = "StartError".to_owned();
                let exit = Exit { code, at: now(), oom: false, reason, message: message.clone() };
                let path = self.paths.container(&record.sandbox, id).join("exit.json");
                durable::write_json(&path, &exit)
                    .map_err(|error| Error::internal("save the container's status", error))?;
                self.container_exited(id, exit);
                Err(Error::StartFailed { exit_code: code, message })
            }
            other => Err(client::unexpected(id, other)),
        }
    }

    /// A container has exited: its status is on disk.
    pub(super) fn container_exited(&self, id: &str, exit: Exit) {
        let Ok(container) = self.container(id) else { return };
        let directory = self.paths.container(&container.record.sandbox, id);
        // Its start may not have been reported yet.
        let started = container
            .phase()
            .started()
            .or_else(|| Phase::read(&directory).ok().and_then(|phase| phase.started()));
        if container.advance(Phase::Exited(started, exit)) {
            self.publish(cri::ContainerEventType::ContainerStoppedEvent, id, &container.record.sandbox);
        }
    }

    /// Looks whether the disk knows more than we do.
    pub(super) fn container_refresh(&self, container: &Container) -> Result<()> {
        let record = &container.record;
        let phase = Phase::read(&self.paths.container(&record.sandbox, &record.id))
            .map_err(|error| Error::internal("read the container's status", error))?;
        match phase {
            Phase::Exited(_, exit) => self.container_exited(&record.id, exit),
            phase => drop(container.advance(phase)),
        }
        Ok(())
    }

    pub(super) async fn container_stop(&self, id: &str, grace: Duration) -> Result<()> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        let mut phase = container.phase.subscribe();
        if !matches!(*phase.borrow(), Phase::Running(_)) {
            return Ok(());
        }
        let run = self.paths.sandbox_run(&container.record.sandbox);
        let kill = |signal, all| Request::Kill { container: id.to_owned(), signal, all };
        let exited = |phase: &Phase| matches!(phase, Phase::Exited(..));
        if !grace.is_zero() {
            if !signalled(client::call(&run, &kill(container.record.stop_signal, false)).await?, id)? {
                return self.container_unknown(&container).await;
            }
            if tokio::time::timeout(grace, phase.wait_for(exited)).await.is_ok() {
                return Ok(());
            }
        }
        if !signalled(client::call(&run, &kill(libc::SIGKILL, true)).await?, id)? {
            return self.container_unknown(&container).await;
        }
        match tokio::time::timeout(KILL_WITHIN, phase.wait_for(exited)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::DeadlineExceeded { what: "the container", seconds: KILL_WITHIN.as_secs() }),
        }
    }

    /// The shim says that a container does not run: how it ended is on disk, or nobody will ever tell.
    async fn container_unknown(&self, container: &Arc<Container>) -> Result<()> {
        self.container_refresh(container)?;
        self.container_bury(container, "the pod's shim does not know it any more").await
    }

    pub(super) async fn container_remove(&self, id: &str) -> Result<()> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        let _work = container.work.lock().await;
        self.container_stop(id, Duration::ZERO).await?;
        let record = &container.record;
        let run = self.paths.sandbox_run(&record.sandbox);
        match client::call(&run, &Request::Forget { container: id.to_owned() }).await {
            // A shim that is gone has forgotten it.
            Ok(_) | Err(Error::Unavailable { .. }) => {}
            Err(error) => return Err(error),
        }
        let (groups, cgroup) = (self.groups.clone(), record.launch.cgroup.clone());
        let (bundle, rootfs) =
            (self.paths.container(&record.sandbox, id), self.paths.rootfs(&record.sandbox, id));
        blocking("remove a container", move || discard(&groups, &cgroup, &bundle, &rootfs))
            .await?
            .map_err(|error| Error::internal("remove a container", error))?;
        self.tables().containers.remove(id);
        self.publish(cri::ContainerEventType::ContainerDeletedEvent, id, &record.sandbox);
        Ok(())
    }

    pub(super) fn container_status(&self, container: &Container) -> cri::ContainerStatus {
        let record = &container.record;
        let config = &record.config.0;
        let phase = container.phase();
        let mut status = cri::ContainerStatus {
            id: record.id.clone(),
            metadata: config.metadata.clone(),
            state: state(&phase).into(),
            created_at: record.created_at,
            started_at: phase.started().map_or(0, |started| started.at),
            image: Some(self.image_name(record)),
            image_ref: record.image_ref.clone(),
            image_id: record.image.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            log_path: record.launch.log.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
            resources: config
                .linux
                .as_ref()
                .and_then(|linux| linux.resources.clone())
                .map(|linux| cri::ContainerResources { linux: Some(linux) }),
            user: Some(cri::ContainerUser { linux: Some(record.user.0.clone()) }),
            stop_signal: config.stop_signal,
            ..Default::default()
        };
        if let Phase::Exited(_, exit) = phase {
            status.exit_code = exit.code;
            status.finished_at = exit.at;
            status.reason = exit.reason;
            status.message = exit.message;
        }
        status
    }

    /// The image as users call it.
    fn image_name(&self, record: &ContainerRecord) -> cri::ImageSpec {
        let mut spec = record.config.0.image.clone().unwrap_or_default();
        if let Some(image) = self.images.find(&record.image)
            && let Some(tag) = image.tags.first()
            && !image.tags.contains(&spec.image)
        {
            spec.image = tag.clone();
        }
        spec
    }

    pub(super) fn container_list(&self, filter: Option<&cri::ContainerFilter>) -> Vec<cri::Container> {
        let containers: Vec<_> = self.tables().containers.values().cloned().collect();
        let all = containers.iter().map(|container| {
            let (record, config) = (&container.record, &container.record.config.0);
            cri::Container {
                id: record.id.clone(),
                pod_sandbox_id: record.sandbox.clone(),
                metadata: config.metadata.clone(),
                image: Some(self.image_name(record)),
                image_ref: record.image_ref.clone(),
                state: state(&container.phase()).into(),
                created_at: record.created_at,
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
                image_id: record.image.clone(),
            }
        });
        all.filter(|container| filter.is_none_or(|filter| passes(container, filter))).collect()
    }

    pub(super) async fn container_update(
        &self,
        id: &str,
        limits: &cri::LinuxContainerResources,
    ) -> Result<()> {
        let container = self.container(id)?;
        if let Phase::Exited(..) = container.phase() {
            return Err(Error::WrongState { kind: Kind::Container, id: id.to_owned(), state: "exited" });
        }
        self.groups
            .update(&container.record.launch.cgroup, limits)
            .map_err(|error| Error::internal("change the container's limits", error))
    }

    pub(super) async fn log_reopen(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let run = self.paths.sandbox_run(&container.record.sandbox);
        client::done(&run, id, &Request::Reopen { container: id.to_owned() }).await
    }

    /// Starts a process in a container that runs.
    pub(super) async fn exec(
        &self,
        id: &str,
        command: &[String],
        tty: bool,
        streams: Streams,
    ) -> Result<Session> {
        if command.is_empty() {
            return Err(Error::invalid("cmd", "no command"));
        }
        let container = self.running(id)?;
        let record = &container.record;
        let bundle = self.paths.container(&record.sandbox, id);
        let process = exec_process(&bundle, command, tty)
            .map_err(|error| Error::internal("read the container's specification", error))?;
        let exec = Exec { container: id.to_owned(), process, tty, streams };
        session::exec(self.paths.sandbox_run(&record.sandbox), exec, &self.tasks).await
    }

    pub(super) async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<cri::ExecSyncResponse> {
        let streams = Streams { stdin: false, stdout: true, stderr: true };
        let session = self.exec(id, command, false, streams).await?;
        let (exit_code, stdout, stderr) = session::collect(session, timeout).await?;
        Ok(cri::ExecSyncResponse { stdout, stderr, exit_code })
    }

    pub(super) async fn attach(&self, request: &cri::AttachRequest) -> Result<Session> {
        let container = self.running(&request.container_id)?;
        let record = &container.record;
        if request.tty != record.launch.tty {
            return Err(Error::invalid("tty", "must be as the container's own"));
        }
        let streams = Streams {
            stdin: request.stdin && record.launch.stdin,
            stdout: request.stdout || request.tty,
            stderr: request.stderr && !request.tty,
        };
        let run = self.paths.sandbox_run(&record.sandbox);
        session::attach(run, request.container_id.clone(), streams, &self.tasks).await
    }

    fn running(&self, id: &str) -> Result<Arc<Container>> {
        let container = self.container(id)?;
        match container.phase() {
            Phase::Running(_) => Ok(container),
            phase => Err(Error::WrongState { kind: Kind::Container, id: id.to_owned(), state: phase.name() }),
        }
    }
}

/// All that is needed to create a container; carried out where it may block.
struct Plan {
    id: String,
    image: Arc<Image>,
    /// The images that are mounted as volumes, by their targets.
    volumes: BTreeMap<String, Arc<Image>>,
    /// Whose process namespace to share.
    target: Option<i32>,
    config: cri::ContainerConfig,
    sandbox: SandboxRecord,
    paths: Paths,
    layers: PathBuf,
    groups: Hierarchies,
    boot: String,
}

impl Plan {
    fn carry_out(self) -> Result<ContainerRecord> {
        let bundle = self.paths.container(&self.sandbox.id, &self.id);
        let rootfs = self.paths.rootfs(&self.sandbox.id, &self.id);
        let result = self.prepare(&bundle, &rootfs);
        if result.is_err()
            && let Err(error) = discard(&self.groups, &self.cgroup(), &bundle, &rootfs)
        {
            tracing::warn!(container = self.id, %error, "not cleaned up; the next start will");
        }
        result
    }

    fn cgroup(&self) -> String {
        format!("{}/{}", sandbox::cgroup_parent(&self.sandbox.config.0), self.id)
    }

    fn prepare(&self, bundle: &Path, rootfs: &Path) -> Result<ContainerRecord> {
        let failed = |doing: &'static str| move |error: io::Error| Error::internal(doing, error);
        let (upper, work) = (bundle.join("upper"), bundle.join("work"));
        for directory in [&upper, &work, &self.empty(), &rootfs.to_owned()] {
            fs::create_dir_all(directory).map_err(failed("create the container's directories"))?;
        }
        let lower = self.image.lower();
        let mut mapped = self.mapped(rootfs)?;
        let layers = match &mut mapped {
            None => self.layers.clone(),
            Some(mapped) => {
                // The root folder of the container is this one.
                let root = Some(mapped.users.first);
                std::os::unix::fs::chown(&upper, root, root).map_err(failed("give the root folder away"))?;
                mapped.view(&self.layers).map_err(failed("show the image to the pod's user namespace"))?
            }
        };
        Overlay { lower: &lower, base: &layers, upper: &upper, work: &work, target: rootfs }
            .mount()
            .map_err(failed("mount the container's root file system"))?;
        let context = security_context(&self.config);
        let user = user::resolve(rootfs, &context, &self.image.config.user)?;
        let owner = owner_of(&user, mapped.as_ref().map(|mapped| mapped.users))?;
        let first = mapped.as_ref().map_or(1, |mapped| mapped.next);
        let images = (&self.volumes, self.config.mounts.as_slice());
        let volumes = volume::mount_all(rootfs, &layers, &self.empty(), images, first)?;
        if mapped.is_some() {
            // The views that are made of it hold it.
            mount::unmount(&layers).map_err(failed("take the image's layers away"))?;
        }
        let mut facts = self.facts(rootfs, &user, volumes)?;
        if let Some(mapped) = &mut mapped {
            mapped.next = first + self.volumes.len();
            facts.map(mapped)?;
        }
        let root = mapped.as_ref().map_or(0, |mapped| mapped.users.first);
        rooted::create_dir_all(rootfs, Path::new(facts.cwd()), root)
            .map_err(|error| Error::invalid("working_dir", format!("{}: {error}", facts.cwd())))?;
        let spec = facts.spec()?;
        self.restrict_devices(&context)?;
        fs::write(bundle.join("config.json"), spec.to_string()).map_err(failed("write the specification"))?;
        // What is mounted is in use, and stays.
        let of_volumes = self.volumes.values().flat_map(|image| image.lower());
        let layers = lower.into_iter().chain(of_volumes).collect();
        let record = self.record(bundle, &context, &user, (layers, owner))?;
        durable::put_json(&bundle.join("container.json"), &record)
            .map_err(failed("save the container's record"))?;
        Ok(record)
    }

    fn record(
        &self,
        bundle: &Path,
        context: &cri::LinuxContainerSecurityContext,
        user: &User,
        (layers, owner): (Vec<String>, (u32, u32)),
    ) -> Result<ContainerRecord> {
        let image = self.image.to_cri();
        Ok(ContainerRecord {
            id: self.id.clone(),
            sandbox: self.sandbox.id.clone(),
            created_at: now(),
            boot: self.boot.clone(),
            image: self.image.id.clone(),
            image_ref: image.repo_digests.first().unwrap_or(&image.id).clone(),
            layers,
            stop_signal: signal::stop_signal(&self.config, &self.image.config.stop_signal)?,
            user: Encoded(cri::LinuxContainerUser {
                uid: user.uid.into(),
                gid: user.gid.into(),
                supplemental_groups: user.groups.iter().map(|gid| i64::from(*gid)).collect(),
            }),
            launch: Launch {
                container: self.id.clone(),
                bundle: bundle.to_owned(),
                log: self.log_path()?,
                tty: self.config.tty,
                stdin: self.config.stdin,
                stdin_once: self.config.stdin_once,
                cgroup: self.cgroup(),
                privileges: privileges(context, user)?,
                owner: Some(owner),
            },
            config: Encoded(self.config.clone()),
        })
    }

    /// How the pod sees what is outside, if it has a user namespace of its own.
    fn mapped<'a>(&self, rootfs: &'a Path) -> Result<Option<Mapped<'a>>> {
        let users = sandbox::users(&self.sandbox.config.0)?;
        let namespace = self.paths.namespace(&self.sandbox.id, "user");
        Ok(users.map(|users| Mapped { users, namespace, rootfs, next: 1 }))
    }

    /// A directory without anything in it.
    fn empty(&self) -> PathBuf {
        self.paths.container(&self.sandbox.id, &self.id).join("empty")
    }

    fn log_path(&self) -> Result<Option<PathBuf>> {
        if self.config.log_path.is_empty() {
            return Ok(None);
        }
        let path = Path::new(&self.sandbox.config.0.log_directory).join(&self.config.log_path);
        if !path.is_absolute() {
            return Err(Error::invalid("log_directory", "it is not absolute"));
        }
        let parent = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent).map_err(|error| Error::internal("create the log directory", error))?;
        Ok(Some(path))
    }

    fn facts<'a>(
        &'a self,
        rootfs: &'a Path,
        user: &'a User,
        volumes: BTreeMap<String, PathBuf>,
    ) -> Result<Facts<'a>> {
        let pod = self.paths.sandbox(&self.sandbox.id);
        let options = sandbox::options(&self.sandbox.config.0);
        let shm = match options.ipc() {
            cri::NamespaceMode::Node => PathBuf::from("/dev/shm"),
            _ => self.paths.sandbox_run(&self.sandbox.id).join("shm"),
        };
        let host_devices = match security_context(&self.config).privileged {
            true => device::all().map_err(|error| Error::internal("list the machine's devices", error))?,
            false => self.devices()?,
        };
        Ok(Facts {
            config: &self.config,
            sandbox: &self.sandbox.config.0,
            image: &self.image.config,
            user,
            rootfs,
            cgroup_views: self.groups.views(&self.cgroup()),
            cgroup: self.cgroup(),
            namespaces: self.namespaces(),
            files: vec![
                ("/etc/hosts", pod.join("hosts")),
                ("/etc/hostname", pod.join("hostname")),
                ("/etc/resolv.conf", pod.join("resolv.conf")),
            ],
            shm,
            oom_floor: oom_floor(),
            host_devices,
            volumes,
        })
    }

    /// With version 2 of control groups the group must be there to be restricted.
    fn restrict_devices(&self, context: &cri::LinuxContainerSecurityContext) -> Result<()> {
        if context.privileged || matches!(self.groups, Hierarchies::V1(_)) {
            return Ok(());
        }
        let mut rules = Rule::defaults();
        for wanted in &self.config.devices {
            let rule = device::rule(&wanted.host_path, &wanted.permissions)?;
            let number = |key: &str| rule[key].as_u64().and_then(|number| u32::try_from(number).ok());
            let text = |key: &str| rule[key].as_str().unwrap_or_default();
            rules.push(Rule::new(text("type"), number("major"), number("minor"), text("access")));
        }
        let cgroup = self.cgroup();
        self.groups
            .create(&cgroup)
            .and_then(|()| self.groups.restrict_devices(&cgroup, &rules))
            .map_err(|error| Error::internal("restrict the container's devices", error))
    }

    fn devices(&self) -> Result<Vec<serde_json::Value>> {
        let mut devices = Vec::new();
        for wanted in self.config.devices.iter().filter(|wanted| device::is_made(&wanted.container_path)) {
            let described = device::describe(Path::new(&wanted.host_path), &wanted.container_path);
            let described = described
                .map_err(|error| Error::invalid("devices", format!("{}: {error}", wanted.host_path)))?;
            devices.extend(described);
        }
        Ok(devices)
    }

    fn namespaces(&self) -> Vec<(&'static str, Option<PathBuf>)> {
        let pod = |name: &str| Some(self.paths.namespace(&self.sandbox.id, name));
        let options = namespace_options(&self.sandbox, &self.config);
        let shared = sandbox::options(&self.sandbox.config.0);
        let mut namespaces = vec![("mount", None)];
        // Validated when the sandbox was made.
        if sandbox::users(&self.sandbox.config.0).is_ok_and(|users| users.is_some()) {
            namespaces.push(("user", pod("user")));
        }
        if shared.network() != cri::NamespaceMode::Node {
            namespaces.push(("network", pod("net")));
            namespaces.push(("uts", pod("uts")));
        }
        if shared.ipc() != cri::NamespaceMode::Node {
            namespaces.push(("ipc", pod("ipc")));
        }
        match (options.pid(), self.target) {
            (cri::NamespaceMode::Node, _) => {}
            (cri::NamespaceMode::Pod, _) if shared.pid() == cri::NamespaceMode::Pod => {
                namespaces.push(("pid", pod("pid")));
            }
            (cri::NamespaceMode::Target, Some(pid)) => {
                namespaces.push(("pid", Some(PathBuf::from(format!("/proc/{pid}/ns/pid")))));
            }
            _ => namespaces.push(("pid", None)),
        }
        // With version 1 containers see the whole tree, read-only, as in other runtimes.
        if matches!(self.groups, Hierarchies::V2(_)) && !security_context(&self.config).privileged {
            namespaces.push(("cgroup", None));
        }
        namespaces
    }
}

/// The lowest OOM score that containers can get: without `CAP_SYS_RESOURCE`, as where the agent
/// runs in a container itself, that is the agent's own.
fn oom_floor() -> i64 {
    let number = |path: &str, find: &dyn Fn(&str) -> Option<i64>| {
        fs::read_to_string(path).ok().and_then(|text| find(&text))
    };
    let capabilities = number("/proc/self/status", &|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        i64::from_str_radix(line.trim(), 16).ok()
    });
    match capabilities {
        Some(set) if set >> 24 & 1 == 1 => -1000,
        _ => number("/proc/self/oom_score_adj", &|text| text.trim().parse().ok()).unwrap_or(0),
    }
}

/// What a container's processes may do.
fn privileges(context: &cri::LinuxContainerSecurityContext, user: &User) -> Result<Privileges> {
    let sets = capability::resolve(context, capability::last())?;
    let profile = context.seccomp.clone();
    let seccomp = match profile.as_ref().map(cri::SecurityProfile::profile_type) {
        _ if context.privileged => Seccomp::Unconfined,
        Some(cri::security_profile::ProfileType::Unconfined) => Seccomp::Unconfined,
        Some(cri::security_profile::ProfileType::Localhost) => {
            let path = profile.as_ref().map(|profile| profile.localhost_ref.as_str()).unwrap_or_default();
            Seccomp::Programs(seccomp::load(Path::new(path))?)
        }
        // Secure where nothing is said.
        Some(cri::security_profile::ProfileType::RuntimeDefault) | None => Seccomp::RuntimeDefault,
    };
    // Executing a file would take all but the ambient ones from anyone but root.
    let permitted = if user.uid == 0 { sets.bounding } else { sets.ambient };
    Ok(Privileges { bounding: sets.bounding, permitted, ambient: sets.ambient, seccomp })
}

/// User and group as the machine sees them.
fn owner_of(user: &User, users: Option<Users>) -> Result<(u32, u32)> {
    let Some(users) = users else { return Ok((user.uid, user.gid)) };
    let outside = |field, id| {
        users.outside(id).ok_or_else(|| {
            let most = users.count.saturating_sub(1);
            Error::invalid(
                field,
                format!("{id}: the pod's user namespace ends at {most} (spec.hostUsers: false)"),
            )
        })
    };
    for group in &user.groups {
        outside("supplemental_groups", *group)?;
    }
    Ok((outside("run_as_user", user.uid)?, outside("run_as_group", user.gid)?))
}

/// The namespaces that a container asks for; those of its pod where it does not.
fn namespace_options(sandbox: &SandboxRecord, config: &cri::ContainerConfig) -> cri::NamespaceOption {
    security_context(config).namespace_options.unwrap_or_else(|| sandbox::options(&sandbox.config.0))
}

/// A process of a container, like its own but for the command and the terminal.
fn exec_process(bundle: &Path, command: &[String], tty: bool) -> io::Result<serde_json::Value> {
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(bundle.join("config.json"))?)?;
    let mut process = spec["process"].take();
    process["args"] = command.into();
    process["terminal"] = tty.into();
    if let Some(env) = process["env"].as_array_mut().filter(|_| tty) {
        let has_term = env.iter().any(|entry| entry.as_str().is_some_and(|entry| entry.starts_with("TERM=")));
        if !has_term {
            env.push("TERM=xterm".into());
        }
    }
    Ok(process)
}

/// Removes all that a container has but its log.
pub(super) fn discard(groups: &Hierarchies, cgroup: &str, bundle: &Path, rootfs: &Path) -> io::Result<()> {
    groups.destroy(cgroup)?;
    volume::unmount_all(rootfs)?;
    mount::unmount(rootfs)?;
    match fs::remove_dir(rootfs) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // First the record: what a removal leaves that was cut short is then half made. It would seem to run otherwise, once
    // the file that says how it ended is gone.
    match fs::remove_file(bundle.join("container.json")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    durable::remove_tree(bundle)
}

/// Whether a signal reached a container; false where it has ended meanwhile.
fn signalled(reply: Reply, id: &str) -> Result<bool> {
    match reply {
        Reply::Done => Ok(true),
        Reply::NotRunning => Ok(false),
        other => Err(client::unexpected(id, other)),
    }
}

fn passes(container: &cri::Container, filter: &cri::ContainerFilter) -> bool {
    (filter.id.is_empty() || container.id.starts_with(&filter.id))
        && (filter.pod_sandbox_id.is_empty() || container.pod_sandbox_id == filter.pod_sandbox_id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == container.state)
        && filter.label_selector.iter().all(|(key, value)| container.labels.get(key) == Some(value))
}

fn state(phase: &Phase) -> cri::ContainerState {
    match phase {
        Phase::Created => cri::ContainerState::ContainerCreated,
        Phase::Running(_) => cri::ContainerState::ContainerRunning,
        Phase::Exited(..) => cri::ContainerState::ContainerExited,
    }
}
