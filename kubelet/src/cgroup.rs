//! The kubelet's cgroups: `<root>/kubepods[/burstable|/besteffort]/pod<uid>`, on v1 (also beside an empty v2 tree)
//! and on v2.
//!
//! **Invariant**: only cgroups below the root that [`crate::Options`] names are made, changed or removed.

mod read;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::pod::qos::{CPU_PERIOD_US, Class, Limits};
pub(crate) use read::{Reading, text};

/// How the kernel's cgroups are mounted here.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hierarchy {
    /// One tree per controller (or group of controllers that share one), and trees without any: runtimes put
    /// processes there too.
    V1(Vec<Tree>),
    /// One tree for all.
    V2(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Tree {
    controllers: Vec<String>,
    path: PathBuf,
}

/// A cgroup could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no cgroups are mounted")]
    NotMounted,
    #[error("the kernel's pids controller is not mounted, which --pod-max-pids needs")]
    NoPids,
    #[error("cgroup {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}

/// The pods' cgroups.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    hierarchy: Hierarchy,
    root: String,
    /// Processes and threads of one pod, at most.
    pod_pids: Option<u64>,
}

impl Cgroups {
    /// Cgroups below `root`, such as `/decapod-node1`, where each pod may have so many processes and threads.
    pub(crate) fn new(root: &str, pod_pids: Option<u64>) -> Result<Self, Error> {
        let table = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(table).map_err(at(table))?;
        let hierarchy = detect(&text).ok_or(Error::NotMounted)?;
        let cgroups = Self { hierarchy, root: format!("/{}", root.trim_matches('/')), pod_pids };
        let kubepods = cgroups.kubepods();
        let least = Limits { shares: 2, quota: None, memory: None };
        cgroups.create(&format!("{kubepods}/besteffort"), least)?;
        cgroups.create(&format!("{kubepods}/burstable"), least)?;
        Ok(cgroups)
    }

    /// The cgroup above those of all pods.
    pub(crate) fn kubepods(&self) -> String {
        format!("{}/kubepods", self.root)
    }

    /// The path of a pod's cgroup, as CRI's `cgroup_parent` wants it.
    pub(crate) fn pod(&self, class: Class, uid: &str) -> String {
        match class.folder() {
            Some(folder) => format!("{}/{folder}/pod{uid}", self.kubepods()),
            None => format!("{}/pod{uid}", self.kubepods()),
        }
    }

    /// Makes a pod's cgroup and limits it. Idempotent.
    pub(crate) fn ensure_pod(&self, class: Class, uid: &str, limits: Limits) -> Result<String, Error> {
        let path = self.pod(class, uid);
        self.create(&path, limits)?;
        self.bound_pids(&path)?;
        Ok(path)
    }

    fn bound_pids(&self, path: &str) -> Result<(), Error> {
        let Some(most) = self.pod_pids else { return Ok(()) };
        let tree = match &self.hierarchy {
            Hierarchy::V1(trees) => {
                trees.iter().find(|t| t.controllers.iter().any(|c| c == "pids")).map(|t| &t.path)
            }
            Hierarchy::V2(root) => Some(root),
        };
        let tree = tree.ok_or(Error::NoPids)?;
        put(&join(tree, path), "pids.max", &most.to_string())
    }

    /// Weighs all pods together against the system, and bounds their memory where some is kept from them.
    pub(crate) fn bound(&self, shares: u64, memory: Option<i64>) -> Result<(), Error> {
        self.create(&self.kubepods(), Limits { shares, quota: None, memory })
    }

    /// Whether there is one tree for all controllers (v2).
    pub(crate) fn is_unified(&self) -> bool {
        matches!(self.hierarchy, Hierarchy::V2(_))
    }

    /// Weighs all Burstable pods together, by the sum of their requests, against BestEffort ones and the system.
    pub(crate) fn weigh_burstable(&self, shares: u64) -> Result<(), Error> {
        let limits = Limits { shares, quota: None, memory: None };
        self.create(&format!("{}/burstable", self.kubepods()), limits)
    }

    /// Removes a pod's cgroup, of whichever class it was. Idempotent.
    pub(crate) fn remove_pod(&self, uid: &str) -> Result<(), Error> {
        for class in [Class::Guaranteed, Class::Burstable, Class::BestEffort] {
            self.remove(&self.pod(class, uid))?;
        }
        Ok(())
    }

    /// The pods that have a cgroup.
    pub(crate) fn pods(&self) -> Vec<String> {
        let mut uids = Vec::new();
        for tree in self.trees() {
            for class in ["", "burstable", "besteffort"] {
                let folder = join(&tree, &self.kubepods()).join(class);
                // A tree without kubepods has no pods.
                let entries = fs::read_dir(folder).into_iter().flatten().flatten();
                uids.extend(
                    entries.filter_map(|e| Some(e.file_name().to_str()?.strip_prefix("pod")?.to_owned())),
                );
            }
        }
        uids.sort();
        uids.dedup();
        uids
    }

    /// Removes the root: at the end of the node's life on this machine.
    pub(crate) fn remove_root(&self) -> Result<(), Error> {
        self.remove(&self.root)
    }

    fn trees(&self) -> Vec<PathBuf> {
        match &self.hierarchy {
            Hierarchy::V1(trees) => trees.iter().map(|t| t.path.clone()).collect(),
            Hierarchy::V2(path) => vec![path.clone()],
        }
    }

    fn create(&self, path: &str, limits: Limits) -> Result<(), Error> {
        match &self.hierarchy {
            Hierarchy::V1(trees) => {
                for tree in trees {
                    create_v1(tree, path, limits)?;
                }
                Ok(())
            }
            Hierarchy::V2(root) => create_v2(root, path, limits),
        }
    }

    fn remove(&self, path: &str) -> Result<(), Error> {
        for tree in self.trees() {
            let folder = join(&tree, path);
            remove_tree(&folder).map_err(at(&folder))?;
        }
        Ok(())
    }
}

fn join(tree: &Path, path: &str) -> PathBuf {
    tree.join(path.trim_start_matches('/'))
}

/// Reads the hierarchy from mountinfo; v1 wins where both are mounted, because the controllers are there.
fn detect(mountinfo: &str) -> Option<Hierarchy> {
    let mut v1 = Vec::new();
    let mut v2 = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(point), mut kind) = (left.split(' ').nth(4), right.split(' ')) else { continue };
        match kind.next() {
            Some("cgroup2") => v2 = Some(PathBuf::from(point)),
            Some("cgroup") => {
                let options = kind.nth(1).unwrap_or_default();
                let controllers: Vec<String> = options
                    .split(',')
                    .filter(|o| !matches!(*o, "rw" | "ro" | "xattr") && !o.contains('='))
                    .map(str::to_owned)
                    .collect();
                v1.push(Tree { controllers, path: PathBuf::from(point) });
            }
            _ => {}
        }
    }
    if v1.iter().any(|t| t.controllers.iter().any(|c| c == "memory")) {
        v1.extend(v2.map(|path| Tree { controllers: Vec::new(), path }));
        return Some(Hierarchy::V1(v1));
    }
    v2.map(Hierarchy::V2)
}

fn put(folder: &Path, file: &str, value: &str) -> Result<(), Error> {
    let path = folder.join(file);
    fs::write(&path, value).map_err(at(&path))
}

/// Makes the cgroup in one v1 tree, if the kubelet limits anything there; the runtime makes the others itself.
fn create_v1(tree: &Tree, path: &str, limits: Limits) -> Result<(), Error> {
    let has = |name: &str| tree.controllers.iter().any(|c| c == name);
    if !(has("cpu") || has("memory") || has("pids")) {
        return Ok(());
    }
    let folder = join(&tree.path, path);
    fs::create_dir_all(&folder).map_err(at(&folder))?;
    if has("cpu") {
        put(&folder, "cpu.shares", &limits.shares.to_string())?;
        if let Some(quota) = limits.quota {
            put(&folder, "cpu.cfs_period_us", &CPU_PERIOD_US.to_string())?;
            put(&folder, "cpu.cfs_quota_us", &quota.to_string())?;
        }
    }
    if let Some(bytes) = limits.memory.filter(|_| has("memory")) {
        put(&folder, "memory.limit_in_bytes", &bytes.to_string())?;
    }
    Ok(())
}

fn create_v2(root: &Path, path: &str, limits: Limits) -> Result<(), Error> {
    let file = root.join("cgroup.controllers");
    let available = fs::read_to_string(&file).map_err(at(&file))?;
    let wanted: Vec<String> = ["cpu", "memory", "pids", "io", "cpuset"]
        .iter()
        .filter(|c| available.split_whitespace().any(|a| a == **c))
        .map(|c| format!("+{c}"))
        .collect();
    let mut folder = root.to_owned();
    for part in path.split('/').filter(|p| !p.is_empty()) {
        // A controller must be handed down by the parent before the child has its files.
        put(&folder, "cgroup.subtree_control", &wanted.join(" "))?;
        folder.push(part);
        fs::create_dir_all(&folder).map_err(at(&folder))?;
    }
    let has = |name: &str| wanted.iter().any(|w| w.trim_start_matches('+') == name);
    if has("cpu") {
        put(&folder, "cpu.weight", &weight(limits.shares).to_string())?;
        let quota = limits.quota.map_or_else(|| "max".to_owned(), |q| q.to_string());
        put(&folder, "cpu.max", &format!("{quota} {CPU_PERIOD_US}"))?;
    }
    if has("memory") {
        let bytes = limits.memory.map_or_else(|| "max".to_owned(), |b| b.to_string());
        put(&folder, "memory.max", &bytes)?;
    }
    Ok(())
}

/// `cpu.weight` for `cpu.shares`, by the usual linear conversion from [2, 262144] to [1, 10000].
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// Removes a cgroup and those below it; a cgroup is a folder whose files need no removal.
fn remove_tree(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 30 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:28 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
33 31 0:29 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
34 31 0:30 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
35 31 0:31 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn v1_wins_where_it_has_the_controllers() {
        let Some(Hierarchy::V1(trees)) = detect(HYBRID) else { panic!("v1") };
        assert_eq!(trees.len(), 4);
        assert!(trees[2..].iter().all(|t| t.controllers.is_empty()), "for removal alone");
        assert_eq!(trees[0].controllers, ["cpu", "cpuacct"]);
        let unified = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(detect(unified), Some(Hierarchy::V2("/sys/fs/cgroup".into())));
        assert_eq!(detect(""), None);
    }

    #[test]
    fn shares_become_weights() {
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 39, 10_000));
    }

    #[test]
    fn one_tree_for_all_controllers_hands_them_down() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        let limits = Limits { shares: 1024, quota: Some(50_000), memory: Some(64 << 20) };
        create_v2(root.path(), "/d/kubepods/podu1", limits).unwrap();
        let read = |file: &str| fs::read_to_string(root.path().join(file)).unwrap();
        for above in ["", "d/", "d/kubepods/"] {
            let handed = read(&format!("{above}cgroup.subtree_control"));
            assert_eq!(handed, "+cpu +memory +pids +io +cpuset", "{above}");
        }
        let pod = |file: &str| read(&format!("d/kubepods/podu1/{file}"));
        assert_eq!((pod("cpu.weight"), pod("cpu.max")), ("39".to_owned(), "50000 100000".to_owned()));
        assert_eq!(pod("memory.max"), (64 << 20).to_string());
        let free = Limits { shares: 2, quota: None, memory: None };
        create_v2(root.path(), "/d/kubepods/podu1", free).unwrap();
        assert_eq!((pod("cpu.max"), pod("memory.max")), ("max 100000".to_owned(), "max".to_owned()));
    }

    #[test]
    fn pods_get_a_cgroup_and_nothing_is_left() {
        let root = format!("/dcp-kubelet-unit-{}", std::process::id());
        let cgroups = Cgroups::new(&root, Some(77)).unwrap();
        let limits = Limits { shares: 512, quota: Some(50_000), memory: Some(64 << 20) };
        let path = cgroups.ensure_pod(Class::Burstable, "u1", limits).unwrap();
        assert_eq!(path, format!("{root}/kubepods/burstable/podu1"));
        cgroups.ensure_pod(Class::Burstable, "u1", limits).unwrap();
        assert_eq!(cgroups.pods(), ["u1"]);
        let trees = cgroups.trees();
        let bounds: Vec<_> =
            trees.iter().filter_map(|t| fs::read_to_string(join(t, &path).join("pids.max")).ok()).collect();
        assert_eq!(bounds, ["77\n"]);
        let made = trees.iter().filter(|t| join(t, &path).exists()).count();
        assert!(made > 0);
        cgroups.remove_pod("u1").unwrap();
        assert!(cgroups.pods().is_empty());
        cgroups.remove_root().unwrap();
        assert!(trees.iter().all(|t| !join(t, &root).exists()));
    }
}
