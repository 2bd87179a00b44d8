//! The volumes of pods: made before their containers start, kept up to date while they run, removed with them.
//!
//! **Invariants**: preparing a pod's volumes is idempotent, so that a restarted agent simply prepares again; secrets
//! and tokens are written to memory only; nothing of a volume remains once its pod is gone, and nothing outside it
//! is ever removed.

mod atomic;
mod claim;
mod folders;
mod kinds;
mod mount;
mod objects;
mod ownership;
mod payload;
mod subpath;
mod token;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use decapod_proto::cri;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume, VolumeMount};

use crate::pod::spec;
use crate::users::Ranges;
use crate::{env_file, environment};

pub(crate) use claim::Claims;
pub(crate) use folders::Folders;
pub(crate) use mount::remove_tree;
pub(crate) use objects::Objects;
pub(crate) use token::Tokens;

/// Users of the node have no business in the folders of its pods; containers get theirs by mounts.
const PRIVATE: u32 = 0o700;

/// Why a volume cannot be used; the pod waits and is told by a `FailedMount` event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{kind} \"{name}\" not found")]
    NotFound { kind: &'static str, name: String },
    #[error("references non-existent {kind} key: {key}")]
    NoKey { kind: &'static str, key: String },
    #[error(transparent)]
    Unavailable(#[from] objects::Unavailable),
    #[error(transparent)]
    Token(#[from] token::Error),
    #[error(transparent)]
    Field(#[from] environment::Error),
    #[error(transparent)]
    Write(#[from] atomic::Error),
    #[error("hostPath type check failed: {path} is not a {kind}")]
    HostPath { path: String, kind: &'static str },
    #[error(
        "medium {0:?} is not known: use \"Memory\", \"HugePages\" or \"HugePages-<size>\", or none for disk"
    )]
    Medium(String),
    #[error(
        "medium \"HugePages\" needs a pod that requests huge pages of exactly one size: name the size, as \"HugePages-2Mi\""
    )]
    HugePages,
    #[error("the volume kind {0} is not supported by this node")]
    Unsupported(&'static str),
    #[error(transparent)]
    Claim(#[from] claim::Error),
    #[error("no volume named {0:?}")]
    NoVolume(String),
    #[error("volume {volume} has volumeMode {mode}, but is specified in {field}")]
    Mode { volume: String, mode: &'static str, field: &'static str },
    #[error(transparent)]
    SubPath(#[from] subpath::Error),
    #[error("mount propagation {0} needs a privileged container")]
    Propagation(String),
    #[error("failed to prepare {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}

/// An error with the volume that it concerns.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\"")]
pub(crate) struct Failure {
    pub(crate) volume: String,
    #[source]
    pub(crate) source: Error,
}

/// Where a pod's volumes lie on the node.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    places: HashMap<String, Place>,
    /// When the volumes have to be prepared again although no object changed: a token is due.
    pub(crate) renew_at: Option<Timestamp>,
}

impl Prepared {
    fn place(&self, volume: &str) -> Result<&Place, Error> {
        self.places.get(volume).ok_or_else(|| Error::NoVolume(volume.to_owned()))
    }
}

/// One volume on the node.
#[derive(Clone, Debug)]
struct Place {
    path: PathBuf,
    /// Nobody may write to it, whatever the mount says.
    read_only: bool,
    /// An image, in place of a path: the runtime mounts it.
    image: Option<String>,
    /// A device, which is not mounted.
    block: bool,
}

impl From<PathBuf> for Place {
    fn from(path: PathBuf) -> Self {
        Self { path, read_only: false, image: None, block: false }
    }
}

/// The volumes of all pods of the node.
pub(crate) struct Volumes {
    pods: PathBuf,
    memory: PathBuf,
    pub(crate) objects: Arc<Objects>,
    tokens: Tokens,
    claims: Claims,
    /// The ids that pods' files belong to.
    pub(crate) users: Ranges,
}

impl Volumes {
    /// Volumes below `data`; secrets below `run`, which becomes a tmpfs unless it lies on one. `node` is its name.
    pub(crate) fn new(
        data: &Path,
        run: &Path,
        node: &str,
        objects: Arc<Objects>,
        tokens: Tokens,
        claims: Claims,
    ) -> Result<Self, Error> {
        let memory = run.join("volumes");
        let pods = data.join("pods");
        for folder in [&memory, &pods] {
            fs::create_dir_all(folder).map_err(io_at(folder))?;
            fs::set_permissions(folder, Permissions::from_mode(PRIVATE)).map_err(io_at(folder))?;
        }
        if !mount::is_tmpfs(&memory).map_err(io_at(&memory))? {
            mount::tmpfs(&memory, None, PRIVATE, None).map_err(io_at(&memory))?;
        }
        let users = Ranges::open(&pods, node).map_err(io_at(&pods))?;
        Ok(Self { pods, memory, objects, tokens, claims, users })
    }

    /// The pod's folder on disk.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.pods.join(uid)
    }

    /// Where an emptyDir of a pod lies.
    pub(crate) fn empty_dir(&self, uid: &str, volume: &str) -> PathBuf {
        self.pod_dir(uid).join("volumes/kubernetes.io~empty-dir").join(volume)
    }

    /// The pods that have a folder.
    pub(crate) fn pods_on_disk(&self) -> io::Result<Vec<String>> {
        let mut uids = Vec::new();
        for root in [&self.pods, &self.memory] {
            for entry in fs::read_dir(root)? {
                uids.push(entry?.file_name().to_string_lossy().into_owned());
            }
        }
        uids.sort();
        uids.dedup();
        Ok(uids)
    }

    /// Makes all volumes of the pod ready and up to date.
    pub(crate) async fn prepare(
        &self,
        pod: &Pod,
        facts: &environment::Facts<'_>,
    ) -> Result<Prepared, Failure> {
        let mut prepared = Prepared::default();
        let pod_spec = pod.spec.as_ref();
        for volume in pod_spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            let place = self.volume(pod, volume, facts, &mut prepared).await;
            let place = place.map_err(|source| Failure { volume: volume.name.clone(), source })?;
            prepared.places.insert(volume.name.clone(), place);
        }
        Ok(prepared)
    }

    async fn volume(
        &self,
        pod: &Pod,
        volume: &Volume,
        facts: &environment::Facts<'_>,
        prepared: &mut Prepared,
    ) -> Result<Place, Error> {
        let uid = spec::uid(pod);
        let group = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|c| c.fs_group);
        let group = group.and_then(|g| u32::try_from(g).ok());
        if let Some(source) = &volume.empty_dir {
            let path = self.empty_dir(uid, &volume.name);
            let memory = facts.node.and_then(allocatable_memory);
            let room = pod.spec.as_ref().map(|spec| kinds::Room::of(spec, memory)).unwrap_or_default();
            kinds::empty_dir(&path, source, room)?;
            return Ok(path.into());
        }
        if let Some(source) = &volume.host_path {
            return Ok(kinds::host_path(source)?.into());
        }
        if let Some(claim) = claim::Claim::of(pod, volume) {
            let claim::Found { path, block } = self.claims.place(pod, &claim, facts.node).await?;
            return Ok(Place { read_only: claim.read_only, block, ..Place::from(path) });
        }
        if let Some(source) = &volume.image {
            let image = Some(source.reference.clone().unwrap_or_default());
            return Ok(Place { path: PathBuf::new(), read_only: true, image, block: false });
        }
        let mut collector =
            payload::Collector { objects: &self.objects, tokens: &self.tokens, pod, facts, renew_at: None };
        let files = collector.volume(volume).await?;
        let Some((folder, files)) = files else {
            return Err(Error::Unsupported(kinds::name(volume)));
        };
        // Config maps are no secrets: they need not take memory.
        let root = if folder == "kubernetes.io~configmap" { &self.pods } else { &self.memory };
        let path = root.join(uid).join("volumes").join(folder).join(&volume.name);
        atomic::write(&path, &files, group)?;
        if let Some(due) = collector.renew_at {
            prepared.renew_at = Some(prepared.renew_at.map_or(due, |at| at.min(due)));
        }
        Ok(path.into())
    }

    /// What the runtime is to mount into a container.
    pub(crate) fn mounts(
        &self,
        pod: &Pod,
        container: &Container,
        prepared: &Prepared,
        environment: &[(String, String)],
    ) -> Result<Vec<cri::Mount>, Error> {
        let mounts = container.volume_mounts.iter().flatten().enumerate();
        mounts.map(|(index, mount)| self.mount(pod, container, mount, index, prepared, environment)).collect()
    }

    fn mount(
        &self,
        pod: &Pod,
        container: &Container,
        mount: &VolumeMount,
        index: usize,
        prepared: &Prepared,
        environment: &[(String, String)],
    ) -> Result<cri::Mount, Error> {
        let Place { path: root, read_only, image, block } = prepared.place(&mount.name)?;
        if *block {
            let (volume, mode, field) = (mount.name.clone(), "Block", "volumeMounts");
            return Err(Error::Mode { volume, mode, field });
        }
        let expression = mount.sub_path_expr.as_ref().filter(|e| !e.is_empty());
        let expanded = expression.map(|expression| subpath::expand(expression, environment)).transpose()?;
        let sub = expanded.or_else(|| mount.sub_path.clone()).filter(|s| !s.is_empty());
        let in_image = image.as_ref().and(sub.clone());
        if let Some(sub) = &in_image {
            subpath::check(sub)?;
        }
        let host_path = match sub.filter(|_| image.is_none()) {
            Some(sub) => {
                let at = self.pod_dir(spec::uid(pod)).join("volume-subpaths").join(&mount.name);
                subpath::bind(root, &sub, &at.join(&container.name).join(index.to_string()))?
            }
            None => root.clone(),
        };
        let privileged = container.security_context.as_ref().and_then(|s| s.privileged) == Some(true);
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") if !privileged => {
                return Err(Error::Propagation("Bidirectional".to_owned()));
            }
            Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional,
            _ => cri::MountPropagation::PropagationPrivate,
        };
        let recursive = mount.recursive_read_only.as_deref();
        let read_only = *read_only || mount.read_only == Some(true);
        Ok(cri::Mount {
            container_path: absolute(&mount.mount_path),
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: read_only,
            propagation: propagation.into(),
            image_sub_path: in_image.unwrap_or_default(),
            image: image.clone().map(|image| cri::ImageSpec { image, ..Default::default() }),
            recursive_read_only: read_only && matches!(recursive, Some("Enabled" | "IfPossible")),
            ..Default::default()
        })
    }

    /// The devices that a container gets as volumes.
    pub(crate) fn devices(container: &Container, prepared: &Prepared) -> Result<Vec<cri::Device>, Error> {
        let devices = container.volume_devices.iter().flatten().map(|device| {
            let place = prepared.place(&device.name)?;
            if !place.block {
                let (volume, mode, field) = (device.name.clone(), "Filesystem", "volumeDevices");
                return Err(Error::Mode { volume, mode, field });
            }
            Ok(cri::Device {
                container_path: device.device_path.clone(),
                host_path: place.path.to_string_lossy().into_owned(),
                permissions: if place.read_only { "r" } else { "mrw" }.to_owned(),
            })
        });
        devices.collect()
    }

    /// Removes everything that the pod has on the node's disk and in its memory.
    pub(crate) fn remove(&self, uid: &str) -> io::Result<()> {
        self.objects.release(uid);
        self.tokens.release(uid);
        self.claims.release(uid);
        remove_tree(&self.memory.join(uid))?;
        remove_tree(&self.pods.join(uid))?;
        self.users.release(uid);
        Ok(())
    }
}

/// The memory that the node lets its pods use, in bytes.
fn allocatable_memory(node: &k8s_openapi::api::core::v1::Node) -> Option<u64> {
    let allocatable = node.status.as_ref()?.allocatable.as_ref()?.get("memory")?;
    u64::try_from(decapod_api::quantity::Quantity::try_from(allocatable).ok()?.units()).ok()
}

/// The images that a container mounts as volumes, as containers that are to be pulled for it.
pub(crate) fn images(pod: &PodSpec, container: &Container) -> Vec<Container> {
    let mounted = |name: &str| container.volume_mounts.iter().flatten().any(|mount| mount.name == name);
    let volumes = pod.volumes.iter().flatten().filter(|volume| mounted(&volume.name));
    let sources = volumes.filter_map(|volume| volume.image.as_ref());
    let images = sources.map(|source| Container {
        name: container.name.clone(),
        image: source.reference.clone(),
        image_pull_policy: source.pull_policy.clone(),
        ..Container::default()
    });
    images.collect()
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// Objects that an environment needs, fetched beforehand so that making it needs no waiting.
#[derive(Default)]
pub(crate) struct Fetched {
    config_maps: BTreeMap<String, Option<Arc<k8s_openapi::api::core::v1::ConfigMap>>>,
    secrets: BTreeMap<String, Option<Arc<k8s_openapi::api::core::v1::Secret>>>,
    volumes: HashMap<String, PathBuf>,
}

impl Fetched {
    /// Fetches all that `container` refers to in its environment.
    pub(crate) async fn of(
        container: &Container,
        pod: &Pod,
        objects: &Objects,
    ) -> Result<Self, objects::Unavailable> {
        let mut fetched = Self::default();
        let (mut maps, mut secrets) = (Vec::new(), Vec::new());
        for source in container.env_from.iter().flatten() {
            maps.extend(source.config_map_ref.as_ref().map(|r| r.name.clone()));
            secrets.extend(source.secret_ref.as_ref().map(|r| r.name.clone()));
        }
        for source in container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
            maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
            secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
        }
        let key = |name: &str| decapod_client::ObjectKey::new(spec::namespace(pod), name);
        for name in maps {
            let found = objects.config_map(spec::uid(pod), &key(&name)).await?;
            fetched.config_maps.insert(name, found);
        }
        for name in secrets {
            let found = objects.secret(spec::uid(pod), &key(&name)).await?;
            fetched.secrets.insert(name, found);
        }
        Ok(fetched)
    }

    /// Variables may come from files of these volumes.
    pub(crate) fn with(mut self, prepared: &Prepared) -> Self {
        let paths = prepared.places.iter().filter(|(_, place)| place.image.is_none());
        self.volumes = paths.map(|(name, place)| (name.clone(), place.path.clone())).collect();
        self
    }
}

impl environment::Lookup for Fetched {
    fn config_map(
        &self,
        name: &str,
    ) -> Result<Option<Arc<k8s_openapi::api::core::v1::ConfigMap>>, environment::Error> {
        Ok(self.config_maps.get(name).cloned().flatten())
    }

    fn secret(
        &self,
        name: &str,
    ) -> Result<Option<Arc<k8s_openapi::api::core::v1::Secret>>, environment::Error> {
        Ok(self.secrets.get(name).cloned().flatten())
    }

    fn file(&self, volume: &str, path: &str) -> Result<String, environment::Error> {
        let Some(root) = self.volumes.get(volume) else {
            return Err(environment::Error::File(format!(
                "cannot find the volume {volume:?} referenced by FileKeyRef"
            )));
        };
        subpath::read(root, path, env_file::LIMIT)
            .map_err(|error| environment::Error::File(format!("{path:?} of volume {volume:?}: {error}")))
    }
}
