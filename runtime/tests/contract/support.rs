//! What the contract's tests share: a runtime of their own, pods, and a look for leftovers.

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use decapod_client::clock::SystemClock;
use decapod_client::task::Supervisor;
use decapod_cri::stream::Host;
use decapod_cri::{Remote, Server};
use decapod_proto::cri;
use decapod_runtime::{Attachment, Embedded, Network, Options, Runtime, Source};

use super::archive::{BUSYBOX, busybox};
use super::containerd;

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

/// How the tests reach the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By calls in this process.
    Direct,
    /// By CRI over our own socket.
    Socket,
    /// By CRI over the socket of Debian's containerd.
    Containerd,
}

impl Way {
    pub(crate) const ALL: [Way; 3] = [Way::Direct, Way::Socket, Way::Containerd];
}

/// The way of the test that runs: they run one after the other.
static WAY: AtomicU8 = AtomicU8::new(0);

pub(crate) fn set_way(way: Way) {
    WAY.store(way as u8, Ordering::Relaxed);
}

pub(crate) fn way() -> Way {
    Way::ALL[usize::from(WAY.load(Ordering::Relaxed))]
}

/// A runtime in directories of its own.
pub(crate) struct World {
    pub(crate) root: PathBuf,
    pub(crate) cgroup: String,
    pub(crate) network: Arc<Recorder>,
    /// What the tests talk to.
    pub(crate) runtime: Arc<dyn Runtime>,
    /// What is behind it, if it is ours.
    embedded: Option<Embedded>,
    supervisor: Supervisor,
    /// The configurations of its pods, by id: runtimes are told them again with each container.
    pods: Mutex<HashMap<String, cri::PodSandboxConfig>>,
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
        if world.embedded.is_some() {
            let archive = busybox().save(&world.root, "busybox.tar");
            world.import(&archive).await.unwrap();
        }
        world
    }

    /// A new agent on what is there.
    pub(crate) async fn open(name: &str) -> Self {
        let network = Arc::new(Recorder::default());
        let (root, cgroup, options) = options(name, Arc::clone(&network));
        std::fs::create_dir_all(&root).unwrap();
        let supervisor = Supervisor::new();
        let host = Host { clock: Arc::new(SystemClock::new()), supervisor: supervisor.clone() };
        let embedded = match way() {
            Way::Direct | Way::Socket => Some(Embedded::open(options).await.unwrap()),
            Way::Containerd => None,
        };
        let runtime: Arc<dyn Runtime> = match (way(), &embedded) {
            (Way::Direct, Some(embedded)) => Arc::new(embedded.clone()),
            (Way::Socket, Some(embedded)) => {
                let socket = root.join("cri.sock");
                let server = Server::bind(Arc::new(embedded.clone()), &socket, host.clone()).await;
                server.unwrap().run();
                Arc::new(Remote::new(&format!("unix://{}", socket.display()), host).unwrap())
            }
            _ => Arc::new(Remote::new(containerd::endpoint(), host).unwrap()),
        };
        let pods = Mutex::default();
        World { root, cgroup, network, runtime, embedded, supervisor, pods }
    }

    /// The runtime itself, which must be ours.
    pub(crate) fn embedded(&self) -> &Embedded {
        self.embedded.as_ref().expect("the test is for our own runtime")
    }

    /// Imports an archive, which CRI has no call for.
    pub(crate) async fn import(&self, archive: &Path) -> decapod_runtime::Result<Vec<cri::Image>> {
        self.embedded().image_import(archive).await
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
        self.run_pod(&self.pod_config(name)).await.unwrap()
    }

    pub(crate) async fn run_pod(&self, config: &cri::PodSandboxConfig) -> decapod_runtime::Result<String> {
        // As a kubelet does.
        std::fs::create_dir_all(&config.log_directory).unwrap();
        let id = self.runtime.sandbox_run(config, "").await?;
        self.pods.lock().unwrap().insert(id.clone(), config.clone());
        Ok(id)
    }

    pub(crate) async fn create(
        &self,
        pod: &str,
        config: &cri::ContainerConfig,
    ) -> decapod_runtime::Result<String> {
        let pod_config = self.pods.lock().unwrap().get(pod).cloned().unwrap_or_default();
        let log = Path::new(&pod_config.log_directory).join(&config.log_path);
        if let Some(directory) = log.parent().filter(|_| log.is_absolute()) {
            std::fs::create_dir_all(directory).unwrap();
        }
        self.runtime.container_create(pod, config, &pod_config).await
    }

    /// Creates and starts a container.
    pub(crate) async fn start(&self, pod: &str, config: &cri::ContainerConfig) -> String {
        let id = self.create(pod, config).await.unwrap();
        self.runtime.container_start(&id).await.unwrap();
        id
    }

    /// Runs a command to its end; its status and its log without times and tags.
    pub(crate) async fn run(
        &self,
        pod: &str,
        config: &cri::ContainerConfig,
    ) -> (cri::ContainerStatus, String) {
        self.run_for_lines(pod, config, 0).await
    }

    /// The same where the log has so many lines: containerd tells of the end before it has written all of them.
    pub(crate) async fn run_for_lines(
        &self,
        pod: &str,
        config: &cri::ContainerConfig,
        count: usize,
    ) -> (cri::ContainerStatus, String) {
        let id = self.start(pod, config).await;
        let status = self.exited(&id).await;
        let read = || std::fs::read_to_string(&status.log_path).unwrap();
        let log = match way() {
            Way::Containerd => {
                eventually("the log is whole", || async {
                    Some(read())
                        .filter(|log| log.ends_with('\n') && log.lines().count() >= count || count == 0)
                })
                .await
            }
            _ => read(),
        };
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
        match &self.embedded {
            Some(embedded) => {
                embedded.remove_all().await.unwrap();
                embedded.close().await;
            }
            None => containerd::remove_all(&*self.runtime).await,
        }
        self.supervisor.shutdown(PATIENCE).await;
        let left = leftovers(&self.root, &self.cgroup, self.embedded.is_some());
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
        match &world.embedded {
            Some(embedded) => embedded.remove_all().await.unwrap(),
            None => containerd::remove_all(&*world.runtime).await,
        }
        leftovers(&world.root, &world.cgroup, world.embedded.is_some());
        std::fs::remove_dir_all(&world.root).unwrap();
    }
}

/// Mounts, processes and control groups that belong to a world.
fn leftovers(root: &Path, cgroup: &str, ours: bool) -> Vec<String> {
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
        let found: Vec<PathBuf> = pods.chain(shims).collect();
        if ours {
            left.extend(found.iter().map(|path| format!("cgroup {}", path.display())));
        } else {
            // The groups above a pod's are a kubelet's to make and to remove: no other runtime does it.
            found.iter().for_each(|path| {
                std::fs::remove_dir(path).unwrap_or_else(|_| left.push(format!("{path:?}")))
            });
        }
        std::fs::remove_dir(inside.join("pods")).ok();
        std::fs::remove_dir(inside).ok();
    }
    let pods = PathBuf::from(&root).join("data/pods");
    left.extend(
        std::fs::read_dir(pods).into_iter().flatten().map(|entry| format!("{:?}", entry.unwrap().path())),
    );
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
