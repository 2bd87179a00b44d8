//! Images of this node: names, content, and one unpacked directory per layer, shared by all.
//!
//! **Invariant**: the index names only what is whole and on disk. A crash leaves at most files
//! that nothing names; they are removed at the next start. What has its final name is whole, and
//! never changes: containers run on it.

mod archive;
mod blob;
mod build;
mod cache;
mod commit;
mod error;
mod guard;
#[cfg(test)]
mod hostile;
mod layer;
mod lease;
mod pull;
mod push;
mod reference;
mod unpack;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use decapod_proto::cri;
use serde::{Deserialize, Serialize};

use archive::{Archive, ConfigDocument, Found, FoundLayer, RawConfig};
pub(crate) use archive::{architecture, decompress};
use blob::{Blobs, Digesting};
pub(crate) use blob::{digest_of, format_digest};
pub use build::ImageFile;
pub(crate) use cache::Made;
pub(crate) use error::Error;
use error::Result;
use lease::{Fetches, Leases};
pub use pull::Progress;
pub(crate) use pull::pull;
pub(crate) use push::push;
pub(crate) use reference::Reference;
use reference::is_digest;
pub use reference::repository_of;
pub(crate) use unpack::{Meta, set_time, unpack};

use crate::sys::durable;

/// How to run an image, as its configuration says. `build` it for an image of one's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `name`, `uid`, `name:group` or `uid:gid`; empty for root.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Replaced by a container's `command`.
    pub entrypoint: Vec<String>,
    /// Replaced by a container's `args`.
    pub cmd: Vec<String>,
    /// Empty for `/`.
    pub working_dir: String,
    /// `SIGTERM` or `15`; empty for SIGTERM.
    pub stop_signal: String,
}

impl From<RawConfig> for ImageConfig {
    fn from(raw: RawConfig) -> Self {
        Self {
            user: raw.user.unwrap_or_default(),
            env: raw.env.unwrap_or_default(),
            entrypoint: raw.entrypoint.unwrap_or_default(),
            cmd: raw.cmd.unwrap_or_default(),
            working_dir: raw.working_dir.unwrap_or_default(),
            stop_signal: raw.stop_signal.unwrap_or_default(),
        }
    }
}

/// One image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Image {
    /// The digest of its configuration.
    pub(crate) id: String,
    /// Full names with tags.
    pub(crate) tags: BTreeSet<String>,
    /// Full names with the digests by which registries know it, `repository@sha256:…`.
    #[serde(default)]
    pub(crate) digests: BTreeSet<String>,
    /// The digest of its manifest, where it has one.
    pub(crate) manifest: Option<String>,
    /// Its layers, the lowest first.
    pub(crate) layers: Vec<Layer>,
    /// How to run it.
    pub(crate) config: ImageConfig,
    /// The files that it was built from, if it was built here.
    #[serde(default)]
    built_from: Option<String>,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    /// The digest of its tar stream.
    pub(crate) diff_id: String,
    /// The digest of the blob that it was unpacked from; none if it was built here.
    pub(crate) blob: Option<String>,
    /// The bytes of its files.
    pub(crate) bytes: u64,
}

impl Layer {
    /// The name of its directory. Half of the digest identifies it as well, and lets more than
    /// a hundred names fit the kernel's one page of mount options.
    pub(crate) fn directory(&self) -> String {
        self.diff_id.trim_start_matches("sha256:")[..32].to_owned()
    }
}

impl Image {
    /// An image that the store does not know, such as one that is being built.
    pub(crate) fn unnamed(id: String, layers: Vec<Layer>, config: ImageConfig) -> Self {
        Image {
            id,
            tags: BTreeSet::new(),
            digests: BTreeSet::new(),
            manifest: None,
            layers,
            config,
            built_from: None,
        }
    }

    /// Directories of its layers, the topmost first: as overlayfs wants them.
    pub(crate) fn lower(&self) -> Vec<String> {
        self.layers.iter().rev().map(Layer::directory).collect()
    }

    /// As CRI describes it.
    pub(crate) fn to_cri(&self) -> cri::Image {
        let user = self.config.user.split(':').next().unwrap_or_default();
        let uid = match user {
            "" => Some(0),
            user => user.parse().ok(),
        };
        let repositories: BTreeSet<&str> =
            self.tags.iter().filter_map(|tag| tag.rsplit_once(':')).map(|(name, _)| name).collect();
        // What was pulled is known by the digest that the registry has it by, which may be that of an index.
        let pulled = |name: &str| self.digests.iter().any(|known| known.split('@').next() == Some(name));
        let own = self.manifest.iter().flat_map(|digest| {
            let others = repositories.iter().filter(|repository| !pulled(repository));
            others.map(move |repository| format!("{repository}@{digest}"))
        });
        let digests: BTreeSet<String> = self.digests.iter().cloned().chain(own).collect();
        cri::Image {
            id: self.id.clone(),
            repo_tags: self.tags.iter().cloned().collect(),
            repo_digests: digests.into_iter().collect(),
            size: self.layers.iter().map(|layer| layer.bytes).sum(),
            uid: uid.map(|value| cri::Int64Value { value }),
            username: if uid.is_none() { user.to_owned() } else { String::new() },
            spec: Some(cri::ImageSpec { image: self.id.clone(), ..Default::default() }),
            // What came from no registry (an archive, a build) nobody could fetch again: while it has a name it goes
            // when its user removes it, not when the disk fills.
            pinned: self.built_from.is_some() || self.digests.is_empty() && !self.tags.is_empty(),
        }
    }

    fn is_named(&self, name: &Reference) -> bool {
        match &name.digest {
            Some(digest) => {
                *digest == self.id
                    || self.digests.contains(&format!("{}@{digest}", name.repository))
                    || self.manifest.as_ref() == Some(digest)
                        && self
                            .tags
                            .iter()
                            .any(|tag| tag.rsplit_once(':').is_some_and(|(r, _)| r == name.repository))
            }
            None => name.tagged().is_some_and(|tag| self.tags.contains(&tag)),
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Index {
    images: BTreeMap<String, Arc<Image>>,
}

/// The images of this node. Its methods block.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    blobs: Blobs,
    index: RwLock<Index>,
    /// What builds have made.
    cache: cache::Cache,
    /// Held while the index is read, changed and written.
    change: Mutex<()>,
    leases: Leases,
    fetches: Fetches,
    /// Held while content is added or removed, so that neither takes away what the other needs.
    work: Mutex<()>,
}

impl Store {
    /// Opens the store in a directory, creating it.
    pub(crate) fn open(root: PathBuf) -> Result<Self> {
        let layers = root.join("layers");
        fs::create_dir_all(&layers).map_err(Error::io("create", &layers))?;
        let blobs = Blobs::open(root.join("blobs"))?;
        let path = root.join("index.json");
        let index = durable::read_json(&path).map_err(Error::io("read", path))?.unwrap_or_default();
        let cache = cache::Cache::open(&root);
        Ok(Store {
            root,
            blobs,
            index: RwLock::new(index),
            cache,
            change: Mutex::default(),
            leases: Leases::default(),
            fetches: Fetches::default(),
            work: Mutex::default(),
        })
    }

    /// Where the directories of the layers are.
    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Where everything is.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// All images, by id.
    pub(crate) fn list(&self) -> Vec<Arc<Image>> {
        self.read().images.values().cloned().collect()
    }

    /// The image of that id (also its beginning, from 12 digits on), name or digest.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Image>> {
        let index = self.read();
        let hex = name.trim_start_matches("sha256:");
        if hex.len() >= 12 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            let mut matches = index.images.values().filter(|image| image.id[7..].starts_with(hex));
            if let (Some(image), None) = (matches.next(), matches.next()) {
                return Some(Arc::clone(image));
            }
        }
        let reference = Reference::parse(name).ok()?;
        index.images.values().find(|image| image.is_named(&reference)).cloned()
    }

    /// Imports all images of an archive that are for this machine.
    pub(crate) fn import(&self, path: &Path) -> Result<Vec<Arc<Image>>> {
        let _work = self.work();
        let archive = Archive::open(path, &self.root)?;
        let mut images = Vec::new();
        for found in archive.images()? {
            images.push(self.import_one(&archive, &found)?);
        }
        Ok(images)
    }

    fn import_one(&self, archive: &Archive, found: &Found) -> Result<Arc<Image>> {
        let document: ConfigDocument = archive::parse(&found.config, &found.config_json)?;
        let mut layers = Vec::new();
        for layer in &found.layers {
            layers.push(self.import_layer(archive, layer)?);
        }
        self.blobs.put(&found.config, &found.config, &mut found.config_json.as_slice())?;
        if let Some(manifest) = &found.manifest {
            self.blobs.put(manifest, manifest, &mut found.manifest_json.as_slice())?;
        }
        self.add(Image {
            id: found.config.clone(),
            tags: found.names.iter().cloned().collect(),
            digests: BTreeSet::new(),
            manifest: found.manifest.clone(),
            layers,
            config: document.config.unwrap_or_default().into(),
            built_from: None,
        })
    }

    fn import_layer(&self, archive: &Archive, layer: &FoundLayer) -> Result<Layer> {
        let digest = match &layer.digest {
            Some(digest) => digest.clone(),
            None => {
                let mut reader = Digesting::new(archive.reader(&layer.file)?);
                io::copy(&mut reader, &mut io::sink()).map_err(Error::io("read", &layer.file))?;
                reader.digest()
            }
        };
        if let Some(known) = self.known_layer(&layer.diff_id, &digest) {
            return Ok(known);
        }
        let blob = self.blobs.put(&digest, &layer.file, &mut archive.reader(&layer.file)?)?;
        let bytes = self.unpack(&blob, &layer.file, &layer.diff_id)?;
        Ok(Layer { diff_id: layer.diff_id.clone(), blob: Some(digest), bytes })
    }

    fn known_layer(&self, diff_id: &str, digest: &str) -> Option<Layer> {
        let index = self.read();
        let mut layers = index.images.values().flat_map(|image| &image.layers);
        layers.find(|layer| layer.diff_id == diff_id && layer.blob.as_deref() == Some(digest)).cloned()
    }

    /// Unpacks a blob beside its final place, compares what was in it, and only then names it.
    fn unpack(&self, blob: &Path, file: &str, diff_id: &str) -> Result<u64> {
        let name = Layer { diff_id: diff_id.to_owned(), blob: None, bytes: 0 }.directory();
        self.place_layer(&name, |target| {
            let input = fs::File::open(blob).map_err(Error::io("open", blob))?;
            let broken = |error: io::Error| Error::corrupt(file, error.to_string());
            let mut reader = Digesting::new(archive::decompress(io::BufReader::new(input)).map_err(broken)?);
            let bytes = unpack::unpack(file, &mut reader, target)?;
            // Padding after the end of the tar archive belongs to its digest.
            io::copy(&mut reader.by_ref().take(MAX_PADDING), &mut io::sink()).map_err(broken)?;
            let actual = reader.digest();
            if actual != diff_id {
                return Err(Error::Digest { file: file.to_owned(), actual, expected: diff_id.to_owned() });
            }
            Ok(bytes)
        })
    }

    /// Fills a new layer directory and gives it its name once all of it is on disk.
    fn place_layer(&self, name: &str, fill: impl FnOnce(&Path) -> Result<u64>) -> Result<u64> {
        let layers = self.layers();
        let target = layers.join(name);
        if target.is_dir() {
            // What has its name is whole, and containers may run on it.
            return bytes_of(&target).map_err(Error::io("read", target));
        }
        let temporary = layers.join(format!("{TEMPORARY}{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir(&temporary).map_err(Error::io("create", &temporary))?;
        let result = fill(&temporary).and_then(|bytes| {
            sync_file_system(&temporary)?;
            match fs::rename(&temporary, &target) {
                // Another one was faster with the same content.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                    durable::remove_tree(&temporary).map_err(Error::io("remove", &temporary))?;
                }
                renamed => renamed.map_err(Error::io("rename", &temporary))?,
            }
            blob::sync_directory(&layers)?;
            Ok(bytes)
        });
        if result.is_err() {
            // The first error is the one to report; a leftover is removed at the next start.
            fs::remove_dir_all(&temporary).ok();
        }
        result
    }

    /// Adds an image, or its names to the one that is there; takes the names from others.
    fn add(&self, image: Image) -> Result<Arc<Image>> {
        let _change = self.changing();
        let mut index = self.read().clone();
        for other in index.images.values_mut() {
            if other.id != image.id && !other.tags.is_disjoint(&image.tags) {
                Arc::make_mut(other).tags.retain(|tag| !image.tags.contains(tag));
            }
        }
        let id = image.id.clone();
        let merged = match index.images.get(&id) {
            Some(old) => {
                let tags = old.tags.union(&image.tags).cloned().collect();
                let digests = old.digests.union(&image.digests).cloned().collect();
                let manifest = image.manifest.clone().or_else(|| old.manifest.clone());
                Arc::new(Image { tags, digests, manifest, ..image })
            }
            None => Arc::new(image),
        };
        index.images.insert(id, Arc::clone(&merged));
        self.replace(index)?;
        Ok(merged)
    }

    /// Removes a name, and the image with its last name; by an id the image with all its names.
    /// Content goes unless another image or one of `used` (directories of layers) needs it.
    pub(crate) fn remove(&self, name: &str, used: &HashSet<String>) -> Result<bool> {
        let _work = self.work();
        let change = self.changing();
        let Some(image) = self.find(name) else { return Ok(false) };
        let mut index = self.read().clone();
        let tag = Reference::parse(name).ok().and_then(|reference| reference.tagged());
        let by_tag = tag.filter(|tag| image.tags.contains(tag));
        match by_tag {
            Some(tag) if image.tags.len() > 1 => {
                let mut rest = Image::clone(&image);
                rest.tags.remove(&tag);
                // With its last tag a repository's digests go: nobody would find out by what they stay.
                let repository = |name: &str| name.rsplit_once([':', '@']).map(|(r, _)| r.to_owned());
                let gone = repository(&tag)
                    .filter(|gone| !rest.tags.iter().any(|t| repository(t).as_ref() == Some(gone)));
                rest.digests.retain(|known| known.split('@').next() != gone.as_deref());
                index.images.insert(image.id.clone(), Arc::new(rest));
            }
            _ => drop(index.images.remove(&image.id)),
        }
        self.replace(index)?;
        drop(change);
        self.sweep(used, false)?;
        Ok(true)
    }

    /// At the start, when nothing is under way: removes leftovers of crashes, and layers whose last user has gone.
    pub(crate) fn collect_garbage(&self, used: &HashSet<String>) -> Result<()> {
        let _work = self.work();
        self.sweep(used, true)
    }

    /// Removes what nobody names any more, while others may be at work.
    pub(crate) fn tidy(&self, used: &HashSet<String>) -> Result<()> {
        let _work = self.work();
        self.sweep(used, false)
    }

    /// Removes what neither the index names, nor a container uses, nor a pull is about to need.
    fn sweep(&self, used: &HashSet<String>, at_start: bool) -> Result<()> {
        // Until this is done nobody may count on what is not named yet.
        let leased = self.leases.stop();
        let kept = |name: &str| leased.contains(name) || !at_start && name.starts_with(TEMPORARY);
        let index = self.read().clone();
        let mut layers = used.clone();
        let mut blobs = HashSet::new();
        for layer in self.cache.layers() {
            layers.insert(layer.directory());
            blobs.extend(layer.blob);
        }
        for image in index.images.values() {
            blobs.insert(image.id.clone());
            blobs.extend(image.manifest.clone());
            for layer in &image.layers {
                layers.insert(layer.directory());
                blobs.extend(layer.blob.clone());
            }
        }
        let unused = |name: &String| !layers.contains(name) && !kept(name);
        for name in names_in(&self.layers())?.into_iter().filter(unused) {
            let path = self.layers().join(name);
            durable::remove_tree(&path).map_err(Error::io("remove", &path))?;
        }
        for name in names_in(&self.root.join("blobs"))? {
            let hex = name.trim_start_matches(blob::PARTIAL);
            if !blobs.contains(&format!("sha256:{name}")) && !kept(hex) {
                self.blobs.remove(&name)?;
            }
        }
        Ok(())
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, index: Index) -> Result<()> {
        let path = self.root.join("index.json");
        durable::write_json(&path, &index).map_err(Error::io("write", path))?;
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = index;
        Ok(())
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        // What is half changed after a panic was not written, and is not seen.
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) -> MutexGuard<'_, ()> {
        // A panic left files that nothing names, which is a state that we allow.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How names of what is not whole yet begin.
const TEMPORARY: &str = "new-";

/// Bytes after the end of a tar archive; writers pad to records of some ten kilobytes.
const MAX_PADDING: u64 = 64 << 20;

/// The bytes of the files in a layer.
fn bytes_of(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_dir() {
            bytes += bytes_of(&entry.path())?;
        } else if meta.is_file() {
            bytes += meta.len();
        }
    }
    Ok(bytes)
}

fn names_in(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).map_err(Error::io("list", directory))?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()
        .map_err(Error::io("list", directory))
}

/// One call for all files of a layer: far cheaper than one per file.
fn sync_file_system(path: &Path) -> Result<()> {
    use std::os::fd::AsRawFd;
    let directory = fs::File::open(path).map_err(Error::io("open", path))?;
    // SAFETY: the descriptor is open.
    match unsafe { libc::syncfs(directory.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(Error::io("sync", path)(io::Error::last_os_error())),
    }
}

/// True for what names an image by its content.
pub(crate) fn is_id(name: &str) -> bool {
    is_digest(name)
}
