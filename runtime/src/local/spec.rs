//! From CRI's container configuration to an OCI runtime specification.
//!
//! Pure: all that depends on the machine comes in through [`Facts`]. The specification has no
//! capabilities and no seccomp profile: both are set by the shim, last of all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use decapod_proto::cri;
use serde_json::{Value, json};

use super::device;
use super::user::User;
use super::volume::Mapped;
use crate::error::{Error, Result};
use crate::image::ImageConfig;
use crate::sys::idmap::Users;

/// Where programs are looked for, if the image does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Hidden from containers: they tell about, or reach into, the whole machine.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];

/// Shown to containers, but not to be changed by them.
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What a specification depends on beside the container's configuration.
pub(super) struct Facts<'a> {
    pub(super) config: &'a cri::ContainerConfig,
    pub(super) sandbox: &'a cri::PodSandboxConfig,
    pub(super) image: &'a ImageConfig,
    pub(super) user: &'a User,
    /// The mounted root file system.
    pub(super) rootfs: &'a Path,
    pub(super) cgroup: String,
    /// With version 1 of control groups: the container's directories and their names.
    pub(super) cgroup_views: Vec<(PathBuf, String)>,
    /// Namespaces to join: their OCI type and where they are. Without a path a new one.
    pub(super) namespaces: Vec<(&'static str, Option<PathBuf>)>,
    /// Files of the pod that are mounted over the image's: target and source.
    pub(super) files: Vec<(&'static str, PathBuf)>,
    /// The pod's shared memory.
    pub(super) shm: PathBuf,
    /// The lowest OOM score that this machine lets us give.
    pub(super) oom_floor: i64,
    /// Devices of the machine, for privileged containers.
    pub(super) host_devices: Vec<Value>,
    /// The views of images that are mounted as volumes, and of whatever else is not mounted as it is, by their targets.
    pub(super) volumes: BTreeMap<String, PathBuf>,
}

impl Facts<'_> {
    /// Shows all that the container gets from outside with the ids of its user namespace.
    pub(super) fn map(&mut self, mapped: &mut Mapped<'_>) -> Result<()> {
        for (_, source) in &mut self.files {
            *source = mapped
                .view(source)
                .map_err(|error| Error::internal("show a file of the pod to its user namespace", error))?;
        }
        let asked = |mount: &&cri::Mount| !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty();
        for mount in self.config.mounts.iter().filter(asked) {
            let Users { first, count } = mapped.users;
            let own = [cri::IdMapping { host_id: first, container_id: 0, length: count }];
            if mount.uid_mappings != own || mount.gid_mappings != own {
                return Err(Error::invalid("mounts", "other ids are mapped than those of the pod"));
            }
            if mount.image.is_some() {
                continue;
            }
            let view = mapped
                .view(Path::new(&mount.host_path))
                .map_err(|error| Error::invalid("mounts", format!("{}: {error}", mount.container_path)))?;
            self.volumes.insert(mount.container_path.clone(), view);
        }
        Ok(())
    }

    fn context(&self) -> cri::LinuxContainerSecurityContext {
        security_context(self.config)
    }

    /// The whole document.
    pub(super) fn spec(&self) -> Result<Value> {
        let context = self.context();
        let (masked, readonly) = match context.privileged {
            true => (Vec::new(), Vec::new()),
            false => {
                (or_default(&context.masked_paths, &MASKED), or_default(&context.readonly_paths, &READONLY))
            }
        };
        let (mounts, propagation) = self.mounts(context.privileged)?;
        let mut linux = json!({
            "cgroupsPath": self.cgroup,
            "namespaces": self.namespaces(),
            "resources": self.resources()?,
            "maskedPaths": masked,
            "readonlyPaths": readonly,
            "rootfsPropagation": propagation,
        });
        if !self.host_devices.is_empty() {
            linux["devices"] = json!(self.host_devices);
        }
        Ok(json!({
            "ociVersion": "1.1.0",
            "root": { "path": self.rootfs, "readonly": context.readonly_rootfs },
            "process": self.process(self.args()?, self.config.tty),
            "mounts": mounts,
            "linux": linux,
        }))
    }

    /// A process of this container: its own, or one that is executed in it.
    pub(super) fn process(&self, args: Vec<String>, terminal: bool) -> Value {
        let context = self.context();
        let resources = self.linux().resources.unwrap_or_default();
        json!({
            "terminal": terminal,
            "user": {
                "uid": self.user.uid,
                "gid": self.user.gid,
                "additionalGids": self.user.groups,
            },
            "args": args,
            "env": self.env(terminal),
            "cwd": self.cwd(),
            "noNewPrivileges": context.no_new_privs,
            "oomScoreAdj": resources.oom_score_adj.clamp(self.oom_floor, 1000),
        })
    }

    /// The working directory.
    pub(super) fn cwd(&self) -> &str {
        [self.config.working_dir.as_str(), self.image.working_dir.as_str()]
            .into_iter()
            .find(|path| !path.is_empty())
            .unwrap_or("/")
    }

    fn linux(&self) -> cri::LinuxContainerConfig {
        self.config.linux.clone().unwrap_or_default()
    }

    /// A pod's command replaces the image's entrypoint and drops its arguments.
    fn args(&self) -> Result<Vec<String>> {
        let (command, args) = (&self.config.command, &self.config.args);
        let line: Vec<String> = match (command.is_empty(), args.is_empty()) {
            (false, _) => command.iter().chain(args).cloned().collect(),
            (true, false) => self.image.entrypoint.iter().chain(args).cloned().collect(),
            (true, true) => self.image.entrypoint.iter().chain(&self.image.cmd).cloned().collect(),
        };
        match line.is_empty() {
            true => Err(Error::invalid("command", "neither the container nor its image has a command")),
            false => Ok(line),
        }
    }

    /// The image's variables, the pod's over them, and what every program expects.
    fn env(&self, terminal: bool) -> Vec<String> {
        let mut env: Vec<(String, String)> = vec![("PATH".into(), PATH.into())];
        let hostname = &self.sandbox.hostname;
        if !hostname.is_empty() {
            env.push(("HOSTNAME".into(), hostname.clone()));
        }
        if terminal {
            env.push(("TERM".into(), "xterm".into()));
        }
        let image = self.image.env.iter().filter_map(|entry| entry.split_once('='));
        let image = image.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let pod = self
            .config
            .envs
            .iter()
            .map(|entry| (entry.key.clone(), String::from_utf8_lossy(&entry.value).into_owned()));
        for (name, value) in image.chain(pod) {
            match env.iter_mut().find(|(other, _)| *other == name) {
                Some((_, old)) => *old = value,
                None => env.push((name, value)),
            }
        }
        // libcontainer would ask the C library, which reads files of the container.
        if !env.iter().any(|(name, value)| name == "HOME" && !value.is_empty()) {
            env.push(("HOME".into(), self.user.home.clone()));
        }
        env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    fn namespaces(&self) -> Vec<Value> {
        let namespaces = self.namespaces.iter();
        namespaces
            .map(|(kind, path)| match path {
                Some(path) => json!({ "type": kind, "path": path }),
                None => json!({ "type": kind }),
            })
            .collect()
    }

    fn mounts(&self, privileged: bool) -> Result<(Vec<Value>, &'static str)> {
        let access = if privileged { "rw" } else { "ro" };
        let mut mounts = vec![
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount(
                "/dev/pts",
                "devpts",
                "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            ),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        ];
        mounts.extend(self.cgroup_mounts(access));
        let given = |target: &str| self.config.mounts.iter().any(|mount| mount.container_path == target);
        if !given("/dev/shm") {
            mounts.push(bind("/dev/shm", &self.shm, &["rbind", "rprivate", "rw"]));
        }
        let file_access = if self.context().readonly_rootfs { "ro" } else { "rw" };
        for (target, source) in &self.files {
            if !given(target) {
                mounts.push(bind(target, source, &["rbind", "rprivate", file_access]));
            }
        }
        // libcontainer makes devices below /dev only.
        let elsewhere = self.config.devices.iter().filter(|device| !device::is_made(&device.container_path));
        mounts.extend(elsewhere.map(|device| {
            bind(
                &device.container_path,
                Path::new(&device.host_path),
                &["bind", "rprivate", "nosuid", "noexec"],
            )
        }));
        let mut wanted: Vec<&cri::Mount> = self.config.mounts.iter().collect();
        // Mounts below others come after them.
        wanted.sort_by_key(|mount| Path::new(&mount.container_path).components().count());
        let mut propagation = "private";
        for mount in wanted {
            mounts.push(self.bind_of(mount)?);
            propagation = match (mount.propagation(), propagation) {
                (cri::MountPropagation::PropagationBidirectional, _) | (_, "shared") => "shared",
                (cri::MountPropagation::PropagationHostToContainer, _) | (_, "slave") => "slave",
                _ => "private",
            };
        }
        Ok((mounts, propagation))
    }

    /// libcontainer's own mounts for version 1 look for the new process under its number in
    /// another process namespace: wrong wherever that is not the first.
    fn cgroup_mounts(&self, access: &str) -> Vec<Value> {
        if self.cgroup_views.is_empty() {
            let options = ["nosuid", "noexec", "nodev", "relatime", access];
            return vec![mount("/sys/fs/cgroup", "cgroup", "cgroup", &options)];
        }
        let root = mount("/sys/fs/cgroup", "tmpfs", "tmpfs", &["nosuid", "noexec", "nodev", "mode=755"]);
        let options = ["rbind", "rprivate", "nosuid", "noexec", "nodev", access];
        let views = self.cgroup_views.iter();
        let views = views.map(|(source, name)| bind(&format!("/sys/fs/cgroup/{name}"), source, &options));
        std::iter::once(root).chain(views).collect()
    }

    fn bind_of(&self, mount: &cri::Mount) -> Result<Value> {
        if mount.image.is_some() {
            return self.image_of(mount);
        }
        if !mount.container_path.starts_with('/') {
            let what = format!("container path {:?} is not absolute", mount.container_path);
            return Err(Error::invalid("mounts", what));
        }
        let source = Path::new(&mount.host_path);
        if !source.is_absolute() {
            return Err(Error::invalid("mounts", format!("host path {:?} is not absolute", mount.host_path)));
        }
        let access = match (mount.readonly, mount.recursive_read_only) {
            (true, true) => "rro",
            (true, false) => "ro",
            (false, _) => "rw",
        };
        let propagation = match mount.propagation() {
            cri::MountPropagation::PropagationPrivate => "rprivate",
            cri::MountPropagation::PropagationHostToContainer => "rslave",
            cri::MountPropagation::PropagationBidirectional => "rshared",
        };
        let source = self.volumes.get(&mount.container_path).map_or(source, PathBuf::as_path);
        Ok(bind(&mount.container_path, source, &["rbind", propagation, access]))
    }

    /// An image as a volume: nobody writes to it, and nothing of it is run.
    fn image_of(&self, mount: &cri::Mount) -> Result<Value> {
        let target = mount.container_path.as_str();
        let view = self.volumes.get(target).ok_or_else(|| Error::invalid("mounts", "no such image"))?;
        Ok(bind(target, view, &["rbind", "rprivate", "ro", "noexec", "nosuid", "nodev"]))
    }

    fn resources(&self) -> Result<Value> {
        let limits = self.linux().resources.unwrap_or_default();
        let privileged = self.context().privileged;
        let mut devices = vec![json!({ "allow": privileged, "access": "rwm" })];
        for device in &self.config.devices {
            devices.push(device::rule(&device.host_path, &device.permissions)?);
        }
        let mut cpu = json!({});
        set_positive(&mut cpu, "shares", limits.cpu_shares);
        set_positive(&mut cpu, "period", limits.cpu_period);
        if limits.cpu_quota != 0 {
            cpu["quota"] = json!(limits.cpu_quota);
        }
        if !limits.cpuset_cpus.is_empty() {
            cpu["cpus"] = json!(limits.cpuset_cpus);
        }
        if !limits.cpuset_mems.is_empty() {
            cpu["mems"] = json!(limits.cpuset_mems);
        }
        let mut memory = json!({});
        set_positive(&mut memory, "limit", limits.memory_limit_in_bytes);
        let mut resources = json!({ "devices": devices, "cpu": cpu, "memory": memory });
        if !limits.hugepage_limits.is_empty() {
            let pages = limits.hugepage_limits.iter();
            let pages = pages.map(|page| json!({ "pageSize": page.page_size, "limit": page.limit }));
            resources["hugepageLimits"] = pages.collect();
        }
        if !limits.unified.is_empty() {
            resources["unified"] = json!(limits.unified);
        }
        Ok(resources)
    }
}

/// The security context, or that of a container without one.
pub(super) fn security_context(config: &cri::ContainerConfig) -> cri::LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

fn set_positive(object: &mut Value, key: &str, value: i64) {
    if value > 0 {
        object[key] = json!(value);
    }
}

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": target, "type": kind, "source": source, "options": options })
}

fn bind(target: &str, source: &Path, options: &[&str]) -> Value {
    json!({ "destination": target, "type": "bind", "source": source, "options": options })
}

fn or_default(given: &[String], default: &[&str]) -> Vec<String> {
    match given.is_empty() {
        true => default.iter().map(|path| (*path).to_owned()).collect(),
        false => given.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use libcontainer::oci_spec::runtime::Spec;

    use super::*;

    fn spec(config: &cri::ContainerConfig, image: &ImageConfig) -> Result<Value> {
        let facts = Facts {
            config,
            sandbox: &cri::PodSandboxConfig { hostname: "pod-0".into(), ..Default::default() },
            image,
            user: &User { home: "/root".into(), ..Default::default() },
            rootfs: Path::new("/rootfs"),
            cgroup: "/pods/a".into(),
            cgroup_views: Vec::new(),
            namespaces: vec![("network", Some("/ns/net".into())), ("mount", None)],
            files: vec![("/etc/hosts", "/pod/hosts".into())],
            shm: "/pod/shm".into(),
            oom_floor: -1000,
            host_devices: Vec::new(),
            volumes: BTreeMap::new(),
        };
        facts.spec()
    }

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["default".into()],
            env: vec!["A=image".into(), "PATH=/image".into()],
            working_dir: "/work".into(),
            ..Default::default()
        }
    }

    fn args(command: &[&str], args: &[&str]) -> Vec<String> {
        let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let config = cri::ContainerConfig { command: text(command), args: text(args), ..Default::default() };
        serde_json::from_value(spec(&config, &image()).unwrap()["process"]["args"].clone()).unwrap()
    }

    #[test]
    fn commands_replace_entrypoints() {
        assert_eq!(args(&[], &[]), ["/entry", "default"]);
        assert_eq!(args(&[], &["x"]), ["/entry", "x"]);
        assert_eq!(args(&["sh"], &[]), ["sh"]);
        assert_eq!(args(&["sh"], &["-c"]), ["sh", "-c"]);
        assert!(spec(&Default::default(), &Default::default()).is_err());
    }

    #[test]
    fn variables_of_the_pod_go_before_those_of_the_image() {
        let envs = vec![cri::KeyValue { key: "A".into(), value: b"pod".to_vec() }];
        let config = cri::ContainerConfig { envs, ..Default::default() };
        let spec = spec(&config, &image()).unwrap();
        let env: Vec<String> = serde_json::from_value(spec["process"]["env"].clone()).unwrap();
        assert_eq!(env, ["PATH=/image", "HOSTNAME=pod-0", "A=pod", "HOME=/root"]);
    }

    #[test]
    fn the_document_is_one_that_libcontainer_reads() {
        let resources = cri::LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 64 << 20,
            oom_score_adj: 900,
            hugepage_limits: vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }],
            ..Default::default()
        };
        let linux = cri::LinuxContainerConfig { resources: Some(resources), ..Default::default() };
        let config = cri::ContainerConfig { linux: Some(linux), ..Default::default() };
        let spec: Spec = serde_json::from_value(spec(&config, &image()).unwrap()).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        let resources = linux.resources().as_ref().unwrap();
        assert_eq!(resources.memory().unwrap().limit(), Some(64 << 20));
        assert_eq!(resources.cpu().as_ref().unwrap().shares(), Some(512));
        let pages = &resources.hugepage_limits().as_ref().unwrap()[0];
        assert_eq!((pages.page_size().as_str(), pages.limit()), ("2MB", 4 << 20));
        assert_eq!(spec.process().as_ref().unwrap().oom_score_adj(), Some(900));
        assert!(spec.process().as_ref().unwrap().capabilities().is_none());
        assert_eq!(linux.masked_paths().as_ref().unwrap().len(), MASKED.len());
    }

    #[test]
    fn deeper_mounts_come_later_and_given_files_win() {
        let mount = |target: &str, readonly| cri::Mount {
            container_path: target.into(),
            host_path: "/host".into(),
            readonly,
            ..Default::default()
        };
        let mounts = vec![mount("/a/b", false), mount("/a", true), mount("/etc/hosts", true)];
        let config = cri::ContainerConfig { mounts, ..Default::default() };
        let spec = spec(&config, &image()).unwrap();
        let mounts = spec["mounts"].as_array().unwrap();
        let place = |target: &str| mounts.iter().position(|mount| mount["destination"] == target).unwrap();
        assert!(place("/a") < place("/a/b"));
        let hosts: Vec<_> = mounts.iter().filter(|mount| mount["destination"] == "/etc/hosts").collect();
        assert_eq!(hosts.len(), 1);
        assert_eq!(hosts[0]["source"], "/host");
    }
}
