//! Sandboxes: a shim, its namespaces, the pod's network and files.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use decapod_proto::cri;
use tokio::io::AsyncReadExt;

use super::client::{self, Connection};
use super::state::{Encoded, Phase, SandboxRecord, Stage};
use super::{Container, Inner, Sandbox, blocking, new_id};
use crate::cri::Attachment;
use crate::error::{Error, Result};
use crate::protocol::{Exit, Reply, Request, Setup, now};
use crate::shim::{NAMESPACES, READY};
use crate::sys::idmap::Users;
use crate::sys::{durable, mount};

/// A shim is ready within milliseconds; a machine under heavy load may need longer.
const SHIM_WITHIN: Duration = Duration::from_secs(10);
/// How often a sandbox whose shim is on its way is looked at.
const SHIM_LOOK: Duration = Duration::from_millis(20);

/// Huge pages make the allocator's first few kilobytes six megabytes: too much for a process
/// that each pod has. Without that allocator it means nothing.
const ALLOCATOR_OPTION: (&str, &str) = ("MIMALLOC_ALLOW_THP", "0");

/// What the kernel allows for a host name.
const MAX_HOSTNAME: usize = 64;

/// Where containers go if the node agent does not say.
const DEFAULT_CGROUP: &str = "/decapod";

/// The handlers that a RuntimeClass may name: there is one way to run a pod.
pub(super) const HANDLERS: [&str; 2] = ["", "decapod"];

/// The exit code of a container that ended while nobody looked.
pub(super) const UNKNOWN: i32 = 255;

impl Inner {
    pub(super) async fn sandbox_run(
        self: &Arc<Self>,
        config: &cri::PodSandboxConfig,
        handler: &str,
    ) -> Result<String> {
        let record = self.sandbox_record(config, handler)?;
        let id = record.id.clone();
        let sandbox = Sandbox::new(record);
        if let Err(error) = self.sandbox_set_up(&sandbox).await {
            if let Err(cleanup) = self.sandbox_tear_down(&sandbox).await {
                tracing::warn!(sandbox = id, error = cleanup.chain(), "not cleaned up; the next start will");
            }
            return Err(error);
        }
        self.tables().sandboxes.insert(id.clone(), Arc::clone(&sandbox));
        self.sandbox_watch(&sandbox);
        self.publish(cri::ContainerEventType::ContainerCreatedEvent, &id, &id);
        self.publish(cri::ContainerEventType::ContainerStartedEvent, &id, &id);
        Ok(id)
    }

    fn sandbox_record(&self, config: &cri::PodSandboxConfig, handler: &str) -> Result<SandboxRecord> {
        if !HANDLERS.contains(&handler) {
            return Err(Error::invalid("runtime_handler", format!("no handler {handler:?} is known")));
        }
        if config.metadata.as_ref().is_none_or(|metadata| metadata.name.is_empty()) {
            return Err(Error::invalid("metadata", "the pod has no name"));
        }
        let mut config = config.clone();
        config.hostname.truncate(MAX_HOSTNAME);
        users(&config)?;
        Ok(SandboxRecord {
            id: new_id(),
            config: Encoded(config),
            handler: handler.to_owned(),
            created_at: now(),
            boot: self.boot.clone(),
            stage: Stage::Creating,
            ips: Vec::new(),
            attached: false,
            made_cgroup: None,
        })
    }

    async fn sandbox_set_up(&self, sandbox: &Sandbox) -> Result<()> {
        let (id, config) = {
            let record = sandbox.record();
            (record.id.clone(), record.config.0.clone())
        };
        let setup = Setup { users: users(&config)?, ..self.setup_of(&config) };
        let own_network = setup.network;
        self.sandbox_directories(sandbox, &setup)?;
        self.shim_start(&id).await?;
        if own_network {
            sandbox.record().attached = true;
            self.sandbox_save(sandbox)?;
            let attachment = self.attachment(sandbox);
            let ips = self.options.network.attach(&attachment).await;
            let ips = ips.map_err(|source| Error::Unavailable { what: "the pod network", source })?;
            sandbox.record().ips = ips;
        }
        self.sandbox_files(sandbox).map_err(|error| Error::internal("write the pod's files", error))?;
        sandbox.record().stage = Stage::Ready;
        self.sandbox_save(sandbox)
    }

    fn setup_of(&self, config: &cri::PodSandboxConfig) -> Setup {
        let namespaces = options(config);
        let node = |mode: cri::NamespaceMode| mode == cri::NamespaceMode::Node;
        let network = !node(namespaces.network());
        let metadata = config.metadata.clone().unwrap_or_default();
        let mut hostname = match config.hostname.is_empty() {
            true => metadata.name,
            false => config.hostname.clone(),
        };
        hostname.truncate(MAX_HOSTNAME);
        Setup {
            network,
            ipc: !node(namespaces.ipc()),
            // Pods on the node's network have the node's name, too.
            uts: network,
            pid: namespaces.pid() == cri::NamespaceMode::Pod,
            hostname,
            sysctls: config.linux.iter().flat_map(|linux| linux.sysctls.clone()).collect(),
            cgroup: self.options.shim_cgroup.clone(),
            users: None,
        }
    }

    fn sandbox_directories(&self, sandbox: &Sandbox, setup: &Setup) -> Result<()> {
        let failed = |error: io::Error| Error::internal("create the sandbox's directories", error);
        let (id, parent) = {
            let record = sandbox.record();
            (record.id.clone(), cgroup_parent(&record.config.0))
        };
        let (data, run) = (self.paths.sandbox(&id), self.paths.sandbox_run(&id));
        fs::create_dir_all(data.join("containers")).map_err(failed)?;
        fs::create_dir_all(&run).map_err(failed)?;
        if !self.groups.exists(&parent) {
            sandbox.record().made_cgroup = Some(parent.clone());
        }
        // Before anything that outlives this process is made.
        self.sandbox_save(sandbox)?;
        self.groups
            .create(&parent)
            .map_err(|error| Error::internal(format!("create cgroup {parent}"), error))?;
        fs::write(data.join("shim.json"), serde_json::to_vec(setup).expect("a plain struct is JSON"))
            .map_err(failed)
    }

    /// Starts the shim and waits until it answers.
    async fn shim_start(&self, id: &str) -> Result<()> {
        let failed = |error: io::Error| Error::internal("start the pod's shim", error);
        let (data, run) = (self.paths.sandbox(id), self.paths.sandbox_run(id));
        let log =
            fs::OpenOptions::new().create(true).append(true).open(data.join("shim.log")).map_err(failed)?;
        let (program, args) = &self.options.shim;
        let mut child = tokio::process::Command::new(program)
            .args(args)
            .args([&data, &run])
            .env_clear()
            .env(ALLOCATOR_OPTION.0, ALLOCATOR_OPTION.1)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(failed)?;
        let mut output = child.stdout.take().expect("stdout is piped");
        let mut said = String::new();
        let heard = tokio::time::timeout(SHIM_WITHIN, output.read_to_string(&mut said)).await;
        // Reaped when it ends; it outlives this process otherwise.
        self.tasks.spawn("shim reaper", async move {
            if let Err(error) = child.wait().await {
                tracing::warn!(%error, "shim not reaped");
            }
        });
        match heard {
            Ok(Ok(_)) if said == READY => Ok(()),
            Ok(Ok(_)) => Err(Error::internal("start the pod's shim", said)),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(Error::DeadlineExceeded { what: "the pod's shim", seconds: SHIM_WITHIN.as_secs() }),
        }
    }

    /// The files of the pod that are mounted into each container.
    fn sandbox_files(&self, sandbox: &Sandbox) -> io::Result<()> {
        let record = sandbox.record().clone();
        let config = &record.config.0;
        let directory = self.paths.sandbox(&record.id);
        let Setup { hostname, network, .. } = self.setup_of(config);
        let host_network = !network;
        let resolv = match &config.dns_config {
            Some(dns) => resolv_conf(dns),
            None => read_or_empty(Path::new("/etc/resolv.conf"))?,
        };
        fs::write(directory.join("resolv.conf"), resolv)?;
        let hosts = match (host_network, record.ips.first()) {
            (true, _) => read_or_empty(Path::new("/etc/hosts"))?,
            (false, ip) => {
                let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n".to_owned();
                if let Some(ip) = ip {
                    writeln!(hosts, "{ip}\t{hostname}").expect("writing to a String does not fail");
                }
                hosts
            }
        };
        fs::write(directory.join("hosts"), hosts)?;
        let name = match host_network {
            true => read_or_empty(Path::new("/proc/sys/kernel/hostname"))?,
            false => format!("{hostname}\n"),
        };
        fs::write(directory.join("hostname"), name)
    }

    fn attachment(&self, sandbox: &Sandbox) -> Attachment {
        let record = sandbox.record();
        Attachment {
            sandbox_id: record.id.clone(),
            netns: self.paths.namespace(&record.id, "net"),
            config: record.config.0.clone(),
        }
    }

    pub(super) fn sandbox_save(&self, sandbox: &Sandbox) -> Result<()> {
        let record = sandbox.record().clone();
        durable::put_json(&self.paths.sandbox(&record.id).join("sandbox.json"), &record)
            .map_err(|error| Error::internal("save the sandbox's record", error))
    }

    /// Follows a shim for as long as it lives.
    pub(super) fn sandbox_watch(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let (inner, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        self.tasks.spawn("shim events", async move {
            let id = sandbox.record().id.clone();
            let why = match inner.sandbox_follow(&id).await {
                Ok(()) => "it ended".to_owned(),
                Err(error) => error.chain(),
            };
            if let Err(error) = inner.sandbox_lost(&sandbox, &why).await {
                tracing::error!(sandbox = id, error = error.chain(), "lost sandbox not cleaned up");
            }
        });
    }

    async fn sandbox_follow(&self, id: &str) -> Result<()> {
        let run = self.paths.sandbox_run(id);
        let mut events = Connection::open(&run).await.map_err(client::unavailable)?;
        events.call(&Request::Subscribe, &[]).await?;
        // What happened before the subscription.
        self.sandbox_reconcile(id).await?;
        while let Some(event) = events.receive().await.map_err(client::unavailable)? {
            if let Reply::Exit { container, exit } = event {
                self.container_exited(&container, exit);
            }
        }
        Ok(())
    }

    /// Takes over what a shim says about its containers.
    pub(super) async fn sandbox_reconcile(&self, id: &str) -> Result<()> {
        let hello = client::call(&self.paths.sandbox_run(id), &Request::Hello).await?;
        let Reply::Hello { containers, .. } = hello else { return Err(client::unexpected(id, hello)) };
        for held in containers {
            let Ok(container) = self.container(&held.container) else { continue };
            match held.exit {
                Some(exit) => self.container_exited(&held.container, exit),
                None => drop(container.advance(Phase::Running(held.started))),
            }
        }
        Ok(())
    }

    /// The shim is gone without having been told to. Its containers cannot be reaped or logged
    /// any more: they end, and the node agent makes the pod anew.
    pub(super) async fn sandbox_lost(&self, sandbox: &Sandbox, why: &str) -> Result<()> {
        let _work = sandbox.work.lock().await;
        let id = sandbox.record().id.clone();
        if sandbox.record().stage != Stage::Ready {
            return Ok(());
        }
        tracing::warn!(sandbox = id, why, "the pod's shim is gone");
        sandbox.record().stage = Stage::Stopped;
        self.sandbox_save(sandbox)?;
        for container in self.containers_of(&id) {
            self.container_bury(&container, "the pod's shim is gone").await?;
        }
        self.publish(cri::ContainerEventType::ContainerStoppedEvent, &id, &id);
        Ok(())
    }

    /// Ends a container without its shim, and writes its status down.
    pub(super) async fn container_bury(&self, container: &Arc<Container>, why: &str) -> Result<()> {
        let Phase::Running(started) = container.phase() else { return Ok(()) };
        let directory = self.paths.container(&container.record.sandbox, &container.record.id);
        let (groups, cgroup) = (self.groups.clone(), container.record.launch.cgroup.clone());
        let same_boot = container.record.boot == self.boot;
        let why = why.to_owned();
        let work = move || -> io::Result<Exit> {
            // The shim may have seen the end before its own.
            if let Phase::Exited(_, exit) = Phase::read(&directory)? {
                return Ok(exit);
            }
            let alive = same_boot && started.process.is_alive();
            if alive {
                started.process.kill(libc::SIGKILL)?;
            }
            if same_boot {
                groups.destroy(&cgroup)?;
            }
            let code = if alive { 128 + libc::SIGKILL } else { UNKNOWN };
            let reason = if alive { "Error" } else { "Unknown" };
            let exit = Exit { code, at: now(), oom: false, reason: reason.to_owned(), message: why };
            durable::write_json(&directory.join("exit.json"), &exit)?;
            Ok(exit)
        };
        let exit = blocking("end a container", work).await?;
        let exit = exit.map_err(|error| Error::internal("end a container without its shim", error))?;
        self.container_exited(&container.record.id, exit);
        Ok(())
    }

    pub(super) async fn sandbox_stop(&self, id: &str) -> Result<()> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        let _work = sandbox.work.lock().await;
        self.sandbox_stop_locked(&sandbox).await
    }

    async fn sandbox_stop_locked(&self, sandbox: &Sandbox) -> Result<()> {
        let id = sandbox.record().id.clone();
        let was_ready = sandbox.record().stage == Stage::Ready;
        if was_ready {
            // First, so that the end of the shim is no surprise.
            sandbox.record().stage = Stage::Stopped;
            self.sandbox_save(sandbox)?;
        }
        self.shim_end(&id).await?;
        for container in self.containers_of(&id) {
            self.container_refresh(&container)?;
            self.container_bury(&container, "the pod's shim is gone").await?;
        }
        self.sandbox_detach(sandbox).await?;
        if was_ready {
            self.publish(cri::ContainerEventType::ContainerStoppedEvent, &id, &id);
        }
        Ok(())
    }

    /// Ends a shim that may be gone already, with what it had mounted.
    async fn shim_end(&self, id: &str) -> Result<()> {
        let run = self.paths.sandbox_run(id);
        match client::call(&run, &Request::Shutdown).await {
            Ok(Reply::Done) | Err(Error::Unavailable { .. }) => {}
            Ok(other) => return Err(client::unexpected(id, other)),
            Err(error) => return Err(error),
        }
        for name in NAMESPACES {
            unmount(&run.join("ns").join(name))?;
        }
        unmount(&run.join("shm"))
    }

    async fn sandbox_detach(&self, sandbox: &Sandbox) -> Result<()> {
        if !sandbox.record().attached {
            return Ok(());
        }
        let attachment = self.attachment(sandbox);
        let detached = self.options.network.detach(&attachment).await;
        detached.map_err(|source| Error::Unavailable { what: "the pod network", source })?;
        sandbox.record().attached = false;
        self.sandbox_save(sandbox)
    }

    pub(super) async fn sandbox_remove(&self, id: &str) -> Result<()> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        let _work = sandbox.work.lock().await;
        self.sandbox_stop_locked(&sandbox).await?;
        for container in self.containers_of(id) {
            self.container_remove(&container.record.id).await?;
        }
        self.sandbox_tear_down(&sandbox).await?;
        self.tables().sandboxes.remove(id);
        self.publish(cri::ContainerEventType::ContainerDeletedEvent, id, id);
        Ok(())
    }

    /// Removes all that a sandbox has, however far it came. Its containers are gone.
    pub(super) async fn sandbox_tear_down(&self, sandbox: &Sandbox) -> Result<()> {
        let id = sandbox.record().id.clone();
        self.shim_end(&id).await?;
        self.sandbox_detach(sandbox).await?;
        let mut left = SHIM_WITHIN;
        loop {
            match self.sandbox_discard(sandbox).await? {
                // A shim whose agent was killed while it started still mounts: it ends, or hears that it is to end.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && !left.is_zero() => {
                    tokio::time::sleep(SHIM_LOOK).await;
                    left = left.saturating_sub(SHIM_LOOK);
                    self.shim_end(&id).await?;
                }
                done => return done.map_err(|error| Error::internal("remove a sandbox", error)),
            }
        }
    }

    async fn sandbox_discard(&self, sandbox: &Sandbox) -> Result<io::Result<()>> {
        let (id, made_cgroup) = {
            let record = sandbox.record();
            (record.id.clone(), record.made_cgroup.clone())
        };
        let groups = self.groups.clone();
        let (data, run) = (self.paths.sandbox(&id), self.paths.sandbox_run(&id));
        let work = move || -> io::Result<()> {
            if let Some(group) = made_cgroup {
                remove_if_empty(&groups, &group)?;
            }
            durable::remove_tree(&run)?;
            durable::remove_tree(&data)
        };
        blocking("remove a sandbox", work).await
    }

    pub(super) fn sandbox_status(&self, id: &str) -> Result<cri::PodSandboxStatus> {
        let record = self.sandbox(id)?.record().clone();
        let config = record.config.0;
        let mut ips = record.ips.iter().map(ToString::to_string);
        Ok(cri::PodSandboxStatus {
            id: record.id,
            metadata: config.metadata.clone(),
            state: state(record.stage).into(),
            created_at: record.created_at,
            network: Some(cri::PodSandboxNetworkStatus {
                ip: ips.next().unwrap_or_default(),
                additional_ips: ips.map(|ip| cri::PodIp { ip }).collect(),
            }),
            linux: Some(cri::LinuxPodSandboxStatus {
                namespaces: Some(cri::Namespace { options: Some(options(&config)) }),
            }),
            labels: config.labels,
            annotations: config.annotations,
            runtime_handler: record.handler,
        })
    }

    pub(super) fn sandbox_list(&self, filter: Option<&cri::PodSandboxFilter>) -> Vec<cri::PodSandbox> {
        let sandboxes: Vec<_> = self.tables().sandboxes.values().cloned().collect();
        let all = sandboxes.iter().map(|sandbox| {
            let record = sandbox.record().clone();
            let config = record.config.0;
            cri::PodSandbox {
                id: record.id,
                metadata: config.metadata,
                state: state(record.stage).into(),
                created_at: record.created_at,
                labels: config.labels,
                annotations: config.annotations,
                runtime_handler: record.handler,
            }
        });
        all.filter(|sandbox| filter.is_none_or(|filter| passes(sandbox, filter))).collect()
    }
}

/// Groups made above the containers' go with the last pod in them.
fn remove_if_empty(groups: &crate::sys::cgroup::Hierarchies, group: &str) -> io::Result<()> {
    match groups.processes(group)?.is_empty() {
        true => groups.destroy(group),
        false => Ok(()),
    }
}

fn unmount(path: &Path) -> Result<()> {
    mount::unmount(path).map_err(|error| Error::internal(format!("unmount {}", path.display()), error))
}

fn passes(sandbox: &cri::PodSandbox, filter: &cri::PodSandboxFilter) -> bool {
    (filter.id.is_empty() || sandbox.id.starts_with(&filter.id))
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == sandbox.state)
        && filter.label_selector.iter().all(|(key, value)| sandbox.labels.get(key) == Some(value))
}

fn state(stage: Stage) -> cri::PodSandboxState {
    match stage {
        Stage::Ready => cri::PodSandboxState::SandboxReady,
        Stage::Creating | Stage::Stopped => cri::PodSandboxState::SandboxNotready,
    }
}

/// The namespaces that a pod asks for.
pub(super) fn options(config: &cri::PodSandboxConfig) -> cri::NamespaceOption {
    let linux = config.linux.as_ref();
    let context = linux.and_then(|linux| linux.security_context.as_ref());
    context.and_then(|context| context.namespace_options.clone()).unwrap_or_default()
}

/// The ids of the user namespace that a pod asks for (KEP-127), if it does.
///
/// # Errors
/// Where it asks for what no kubelet asks for: several ranges, or others for groups than for users.
pub(super) fn users(config: &cri::PodSandboxConfig) -> Result<Option<Users>> {
    let wanted = options(config);
    let field = "userns_options";
    let Some(asked) = wanted.userns_options.as_ref().filter(|asked| !asked.uids.is_empty()) else {
        return Ok(None);
    };
    match asked.mode() {
        cri::NamespaceMode::Node => return Ok(None),
        cri::NamespaceMode::Pod => {}
        mode => return Err(Error::invalid(field, format!("mode {} is not known", mode.as_str_name()))),
    }
    if [wanted.network(), wanted.pid(), wanted.ipc()].contains(&cri::NamespaceMode::Node) {
        return Err(Error::invalid(field, "a pod in a user namespace cannot have namespaces of the node"));
    }
    match (asked.uids.as_slice(), asked.gids.as_slice()) {
        ([uids], [gids]) if uids == gids && uids.container_id == 0 && uids.length > 0 => {
            Ok(Some(Users { first: uids.host_id, count: uids.length }))
        }
        _ => Err(Error::invalid(field, "one range from 0 on is needed, the same for users and groups")),
    }
}

/// The control group above a pod's containers.
pub(super) fn cgroup_parent(config: &cri::PodSandboxConfig) -> String {
    let parent = config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).unwrap_or_default();
    match parent.trim_matches('/') {
        "" => DEFAULT_CGROUP.to_owned(),
        parent => format!("/{parent}"),
    }
}

fn resolv_conf(dns: &cri::DnsConfig) -> String {
    let mut text = String::new();
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

fn read_or_empty(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        result => result,
    }
}
