//! Pods from files of the node: a folder of manifests, read at start and whenever something in it changes.
//!
//! **Invariants**: a pod's uid is made from its node, its file and what the file says, so that an agent that starts
//! again finds its containers, and a changed file is another pod; a file that makes no sense changes nothing, so
//! that one that is being written ends no pod.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use decapod_api::resource;
use decapod_api::validate::Scope;
use decapod_client::ObjectKey;
use decapod_client::clock::Clock;
use k8s_openapi::api::core::v1::{Pod, Toleration};
use serde_json::Value;
use tokio::sync::watch;

use crate::inotify::Watch;
use crate::pod::{mark, spec};

/// A manifest is written by hand: one that is larger is something else.
const MAX_FILE: u64 = 1 << 20;
/// Pods of a folder, at most as many as a node has in all by default.
const MAX_FILES: usize = 110;
/// How long the watch rests after it failed.
const REST: Duration = Duration::from_secs(5);

/// Why a file holds no pod.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is larger than {MAX_FILE} bytes")]
    Large,
    #[error("it is neither YAML nor JSON: {0}")]
    Syntax(String),
    #[error("it is no Pod of version v1")]
    Kind,
    #[error("{0}")]
    Invalid(String),
}

/// The pods by their uids.
pub(crate) type Pods = Arc<BTreeMap<String, Arc<Pod>>>;

/// The folder and what its files say.
pub(crate) struct Statics {
    folder: Option<PathBuf>,
    node: String,
    pods: watch::Sender<Pods>,
}

impl Statics {
    /// Reads the folder, if there is one; it is made where it does not exist yet.
    pub(crate) fn new(folder: Option<&Path>, node: &str) -> io::Result<Self> {
        let statics = Self {
            folder: folder.map(Path::to_owned),
            node: node.to_owned(),
            pods: watch::Sender::default(),
        };
        if let Some(folder) = &statics.folder {
            std::fs::create_dir_all(folder)?;
            let mut known = BTreeMap::new();
            statics.read(folder, &mut known)?;
            statics.publish(&known);
        }
        Ok(statics)
    }

    /// The pods from now on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Pods> {
        self.pods.subscribe()
    }

    /// All pods.
    pub(crate) fn list(&self) -> Vec<Arc<Pod>> {
        self.pods.borrow().values().cloned().collect()
    }

    /// The pod of that name.
    pub(crate) fn get(&self, key: &ObjectKey) -> Option<Arc<Pod>> {
        let pods = self.pods.borrow();
        pods.values().find(|pod| key_of(pod) == *key).cloned()
    }

    /// Follows the folder until it is dropped.
    pub(crate) async fn run(self: Arc<Self>, clock: Arc<dyn Clock>) {
        let Some(folder) = &self.folder else { return };
        let mut known = BTreeMap::new();
        loop {
            let follow = async {
                let mut watch = Watch::folder(folder)?;
                loop {
                    // After the watch was set, so that nothing is missed in between.
                    self.read(folder, &mut known)?;
                    self.publish(&known);
                    watch.changed().await?;
                }
            };
            let Err::<std::convert::Infallible, io::Error>(error) = follow.await;
            tracing::warn!(folder = %folder.display(), %error, "cannot follow the folder of static pods");
            clock.sleep(REST).await;
        }
    }

    /// Reads all files; one that cannot be used keeps what it said before.
    fn read(&self, folder: &Path, known: &mut BTreeMap<PathBuf, Arc<Pod>>) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
            if !hidden && path.is_file() {
                files.push(path);
            }
        }
        files.sort();
        files.truncate(MAX_FILES);
        known.retain(|path, _| files.contains(path));
        for path in files {
            let pod = text(&path).and_then(|text| parse(&text, &path, &self.node));
            match pod {
                Ok(pod) => {
                    known.insert(path, Arc::new(pod));
                }
                Err(fault) => tracing::error!(file = %path.display(), %fault, "a static pod cannot be used"),
            }
        }
        Ok(())
    }

    fn publish(&self, known: &BTreeMap<PathBuf, Arc<Pod>>) {
        let pods: Pods =
            Arc::new(known.values().map(|pod| (spec::uid(pod).to_owned(), pod.clone())).collect());
        self.pods.send_if_modified(|old| {
            let same = old.keys().eq(pods.keys());
            if !same {
                *old = pods;
            }
            !same
        });
    }
}

/// Namespace and name.
pub(crate) fn key_of(pod: &Pod) -> ObjectKey {
    ObjectKey::new(spec::namespace(pod), spec::name(pod))
}

fn text(path: &Path) -> Result<String, Fault> {
    if std::fs::metadata(path)?.len() > MAX_FILE {
        return Err(Fault::Large);
    }
    Ok(std::fs::read_to_string(path)?)
}

/// The pod that a file describes, as it would come from an API server.
fn parse(text: &str, path: &Path, node: &str) -> Result<Pod, Fault> {
    let object: Value = serde_saphyr::from_str(text).map_err(|e| Fault::Syntax(e.to_string()))?;
    if object["apiVersion"] != "v1" || object["kind"] != "Pod" {
        return Err(Fault::Kind);
    }
    let row = resource::find("", "v1", "pods").expect("pods are a row of the table");
    let normal = (row.ops.normalize)(object).map_err(|e| Fault::Invalid(e.to_string()))?;
    if let Some(unknown) = normal.unknown.first() {
        return Err(Fault::Invalid(format!("unknown field {unknown:?}")));
    }
    if let Some(error) = (row.ops.validate)(&normal.object, None, Scope::Main).first() {
        return Err(Fault::Invalid(error.to_string()));
    }
    let mut pod: Pod = serde_json::from_value(normal.object).map_err(|e| Fault::Invalid(e.to_string()))?;
    let meta = &mut pod.metadata;
    let name = meta.name.take().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| Fault::Invalid("metadata.name: Required value".to_owned()))?;
    meta.name = Some(format!("{name}-{}", node.to_lowercase()));
    meta.namespace.get_or_insert_with(|| "default".to_owned());
    let uid = uid(text, path, node);
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(mark::SOURCE.to_owned(), "file".to_owned());
    annotations.insert(mark::CONFIG_HASH.to_owned(), uid.clone());
    meta.uid = Some(uid);
    let spec = pod.spec.get_or_insert_default();
    spec.node_name = Some(node.to_owned());
    // What ends other pods of the node does not end its own.
    spec.tolerations.get_or_insert_default().push(Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    });
    Ok(pod)
}

fn uid(text: &str, path: &Path, node: &str) -> String {
    // Fixed keys, so that the value survives a restart of the agent.
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, node, path, text).hash(&mut hasher);
        hasher.finish()
    };
    format!("{:016x}{:016x}", half(0), half(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: i}]}\n";

    #[test]
    fn a_file_becomes_a_pod_of_this_node() {
        let pod = parse(POD, Path::new("/m/web.yaml"), "Node-1").unwrap();
        assert_eq!((spec::namespace(&pod), spec::name(&pod)), ("default", "web-node-1"));
        assert_eq!(pod.spec.as_ref().unwrap().restart_policy.as_deref(), Some("Always"), "defaulted");
        let again = parse(POD, Path::new("/m/web.yaml"), "Node-1").unwrap();
        assert_eq!(spec::uid(&pod), spec::uid(&again));
        let other = parse(&POD.replace("image: i", "image: j"), Path::new("/m/web.yaml"), "Node-1").unwrap();
        assert_ne!(spec::uid(&pod), spec::uid(&other));
    }

    #[test]
    fn what_is_no_pod_is_said() {
        let fault = |text: &str| parse(text, Path::new("/m/x"), "n").unwrap_err().to_string();
        assert!(fault(": : [").contains("neither YAML nor JSON"));
        assert_eq!(fault("{apiVersion: v1, kind: Service}"), "it is no Pod of version v1");
        assert!(fault(&POD.replace("image: i", "imagine: i")).contains("imagine"));
        assert!(fault(&POD.replace("name: web", "labels: {}")).contains("metadata.name"));
    }

    #[test]
    fn a_file_that_is_being_written_ends_no_pod() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.yaml");
        std::fs::write(&file, POD).unwrap();
        std::fs::write(dir.path().join(".hidden"), "x").unwrap();
        let statics = Statics::new(Some(dir.path()), "n").unwrap();
        let mut known = BTreeMap::new();
        let mut uids = || {
            statics.read(dir.path(), &mut known).unwrap();
            statics.publish(&known);
            statics.list().iter().map(|pod| spec::uid(pod).to_owned()).collect::<Vec<_>>()
        };
        let before = uids();
        assert_eq!(before.len(), 1);
        std::fs::write(&file, &POD[..40]).unwrap();
        assert_eq!(uids(), before);
        std::fs::remove_file(&file).unwrap();
        assert!(uids().is_empty());
    }
}
