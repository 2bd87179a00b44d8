//! What the contract's tests share: a runtime of their own, pods, and a look for leftovers.

use std::future::Future;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use decapod_proto::cri;
use decapod_runtime::{Attachment, Embedded, Network, Options, Runtime, Source};

use super::archive::{BUSYBOX, busybox};

/// Longest wait for something that takes milliseconds on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A network that notes what it is asked for.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) calls: Mutex<Vec<String>>,
}

#[async_trait]
impl Network for Recorder {
    async fn attach(&self, sandbox: &Attachment) -> Result<Vec<IpAddr>, Source> {
        assert!(sandbox.netns.exists(), "the namespace is there before the network is asked");
        self.calls.lock().unwrap().push(format!("attach {}", sandbox.sandbox_id));
        Ok(vec!["10.244.0.7".parse()?])
    }

    async fn detach(&self, sandbox: &Attachment) -> Result<(), Source> {
        self.calls.lock().unwrap().push(format!("detach {}", sandbox.sandbox_id));
        Ok(())
    }

    async fn ready(&self) -> Result<(), Source> {
        Ok(())
    }
}

/// A runtime in directories of its own.
pub(crate) struct World {
    pub(crate) root: PathBuf,
    pub(crate) cgroup: String,
    pub(crate) network: Arc<Recorder>,
    pub(crate) runtime: Embedded,
}

/// Where a world with that name has its things; known to both sides of a killed agent.
pub(crate) fn options(name: &str, network: Arc<Recorder>) -> (PathBuf, String, Options) {
    let root = std::env::temp_dir().join(format!("dcp-{name}"));
    let cgroup = format!("/dcp-{name}");
    let mut options = Options::new(root.join("data"), root.join("run"), network).unwrap();
    options.shim_cgroup = Some(format!("{cgroup}/shims"));
    options.registries = Some(root.join("registries.yaml"));
    (root, cgroup, options)
}

impl World {
    pub(crate) async fn new(name: &str) -> Self {
        let world = Self::open(&format!("{name}-{}", std::process::id())).await;
        let archive = busybox().save(&world.root, "busybox.tar");
        world.runtime.image_import(&archive).await.unwrap();
        world
    }

    /// A new agent on what is there.
    pub(crate) async fn open(name: &str) -> Self {
        let network = Arc::new(Recorder::default());
        let (root, cgroup, options) = options(name, Arc::clone(&network));
        std::fs::create_dir_all(&root).unwrap();
        let runtime = Embedded::open(options).await.unwrap();
        World { root, cgroup, network, runtime }
    }

    pub(crate) fn pod_config(&self, name: &str) -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: self.root.join("logs").join(name).display().to_string(),
            dns_config: Some(cri::DnsConfig { servers: vec!["10.96.0.10".into()], ..Default::default() }),
            labels: [("app".to_owned(), name.to_owned())].into(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: format!("{}/pods/{name}", self.cgroup),
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    // As a kubelet asks: each container has processes of its own.
                    namespace_options: Some(cri::NamespaceOption {
                        pid: cri::NamespaceMode::Container.into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub(crate) async fn pod(&self, name: &str) -> String {
        self.runtime.sandbox_run(&self.pod_config(name), "").await.unwrap()
    }

    /// Creates and starts a container.
    pub(crate) async fn start(&self, pod: &str, config: &cri::ContainerConfig) -> String {
        let id = self.runtime.container_create(pod, config, &Default::default()).await.unwrap();
        self.runtime.container_start(&id).await.unwrap();
        id
    }

    /// Runs a command to its end; its status and its log without times and tags.
    pub(crate) async fn run(
        &self,
        pod: &str,
        config: &cri::ContainerConfig,
    ) -> (cri::ContainerStatus, String) {
        let id = self.start(pod, config).await;
        let status = self.exited(&id).await;
        let log = std::fs::read_to_string(&status.log_path).unwrap();
        let lines = log.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n");
        (status, lines.collect())
    }

    pub(crate) async fn exited(&self, id: &str) -> cri::ContainerStatus {
        eventually("the container exits", || async {
            let status = self.runtime.container_status(id).await.unwrap();
            (status.state() == cri::ContainerState::ContainerExited).then_some(status)
        })
        .await
    }

    pub(crate) async fn exec(&self, id: &str, command: &[&str]) -> cri::ExecSyncResponse {
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        self.runtime.exec_sync(id, &command, PATIENCE).await.unwrap()
    }

    /// Removes everything and looks whether something is left.
    pub(crate) async fn end(self) {
        self.runtime.remove_all().await.unwrap();
        self.runtime.close().await;
        let left = leftovers(&self.root, &self.cgroup);
        assert!(left.is_empty(), "left over: {left:#?}");
        std::fs::remove_dir_all(&self.root).unwrap();
    }
}

/// Removes what tests that failed have left: by the runtime's own means of finding it again.
pub(crate) async fn clean_up() {
    let suffix = format!("-{}", std::process::id());
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(name) = name.strip_prefix("dcp-").filter(|name| name.ends_with(&suffix)) else { continue };
        let world = World::open(name).await;
        world.runtime.remove_all().await.unwrap();
        leftovers(&world.root, &world.cgroup);
        std::fs::remove_dir_all(&world.root).unwrap();
    }
}

/// Mounts, processes and control groups that belong to a world.
fn leftovers(root: &Path, cgroup: &str) -> Vec<String> {
    let root = root.display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut left: Vec<String> =
        mounts.lines().filter(|line| line.contains(&root)).map(|line| format!("mount {line}")).collect();
    for process in std::fs::read_dir("/proc").unwrap() {
        let process = process.unwrap().path();
        let line = std::fs::read_to_string(process.join("cmdline")).unwrap_or_default();
        if line.contains(&root) {
            left.push(format!("process {} {line:?}", process.display()));
        }
    }
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap() {
        let inside = hierarchy.unwrap().path().join(cgroup.trim_start_matches('/'));
        // What the test itself made above the pods is not the runtime's to remove.
        let pods = std::fs::read_dir(inside.join("pods")).into_iter().flatten();
        let pods = pods.flatten().filter(|entry| entry.path().is_dir()).map(|entry| entry.path());
        let shims = Some(inside.join("shims")).filter(|path| path.exists());
        left.extend(pods.chain(shims).map(|path| format!("cgroup {}", path.display())));
        std::fs::remove_dir(inside.join("pods")).ok();
        std::fs::remove_dir(inside).ok();
    }
    let pods = PathBuf::from(&root).join("data/pods");
    left.extend(std::fs::read_dir(pods).unwrap().map(|entry| format!("{:?}", entry.unwrap().path())));
    left
}

/// A container of the test image that runs a shell script.
pub(crate) fn script(name: &str, script: &str) -> cri::ContainerConfig {
    command(name, &["sh", "-c", script])
}

/// A container of the test image that runs a command.
pub(crate) fn command(name: &str, command: &[&str]) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: BUSYBOX.into(), ..Default::default() }),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        log_path: format!("{name}/0.log"),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(Default::default()),
            security_context: Some(Default::default()),
        }),
        ..Default::default()
    }
}

/// The limits of a container.
pub(crate) fn resources(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerResources {
    config.linux.as_mut().unwrap().resources.as_mut().unwrap()
}

/// The security context of a container.
pub(crate) fn context(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

/// Looks until it is there, within a bound.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
