//! An image from its registry: manifest, configuration, and those layers that are not here.
//!
//! **Invariant**: an image is named once all of it is here, unpacked and verified. Layers that came before a pull
//! failed stay for the next one, until somebody tidies up.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedMutexGuard, mpsc, watch};

use super::archive::{
    self, ConfigDocument, Descriptor, MAX_DOCUMENT, MAX_NESTING, ManifestDocument, architecture, is_ours,
};
use super::blob::digest_of;
use super::error::{Error, Result};
use super::reference::is_digest;
use super::{Image, Layer, Reference, Store, bytes_of};
use crate::registry::{Client, Count, Manifest};

/// Layers of one image that are fetched at once, as other clients do: more would not be faster.
const PARALLEL: usize = 3;
/// Pieces of a blob, of some ten kilobytes, that wait to be written.
const QUEUE: usize = 32;

/// How far a transfer has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Layers of the image; 0 while that is not known.
    pub layers: usize,
    /// Layers that are done with, or were there already.
    pub layers_done: usize,
    /// Bytes of all layers as they are sent.
    pub bytes: u64,
    /// Bytes that need not be sent any more.
    pub bytes_done: u64,
}

/// A manifest for this machine.
struct Chosen {
    digest: String,
    bytes: Bytes,
    document: ManifestDocument,
}

/// Fetches what the client's repository has by that reference.
pub(crate) async fn pull(
    store: &Arc<Store>,
    client: &Client,
    reference: &Reference,
    progress: &watch::Sender<Progress>,
) -> Result<Arc<Image>> {
    let wanted = reference.digest.as_deref().or(reference.tag.as_deref()).unwrap_or("latest");
    let top = client.manifest(wanted).await?;
    let digest = digest_of(&top.bytes);
    if let Some(expected) = reference.digest.as_ref().filter(|expected| **expected != digest) {
        let file = format!("manifest of {}", reference.repository);
        return Err(Error::Digest { file, actual: digest, expected: expected.clone() });
    }
    let known = format!("{}@{digest}", reference.repository);
    let (chosen, document, config_json) = choose(client, top, digest).await?;
    // A name with a digest is no promise about what its tag means.
    let tags = reference.tagged().filter(|_| reference.digest.is_none());
    let manifest = &chosen.document;
    let files = manifest.layers.iter().map(|layer| layer.digest.clone()).collect();
    let layers = archive::pair(&format!("manifest {}", chosen.digest), files, &document)?;

    let blobs =
        manifest.layers.iter().map(|layer| &layer.digest).chain([&chosen.digest, &manifest.config.digest]);
    let hex = blobs.map(|digest| digest.trim_start_matches("sha256:").to_owned());
    let directories = layers.iter().map(|layer| Layer::of(&layer.diff_id).directory());
    let names: Vec<String> = hex.chain(directories).collect();
    let leases = store.leases.clone();
    // Until the image is named, what it needs is leased.
    let _lease = blocking(move || Ok(leases.take(names))).await?;

    progress.send_replace(Progress {
        layers: layers.len(),
        bytes: manifest.layers.iter().map(|layer| layer.size).sum(),
        ..Progress::default()
    });
    let fetches = manifest.layers.clone().into_iter().zip(layers).map(|(descriptor, layer)| async move {
        let fetched = fetch_layer(store, client, &descriptor, layer.diff_id, progress).await?;
        progress.send_modify(|progress| progress.layers_done += 1);
        Ok::<_, Error>(fetched)
    });
    let layers = futures::stream::iter(fetches).buffered(PARALLEL).try_collect().await?;
    let image = Image {
        id: manifest.config.digest.clone(),
        tags: tags.into_iter().collect(),
        digests: BTreeSet::from([known]),
        manifest: Some(chosen.digest.clone()),
        layers,
        config: document.config.unwrap_or_default().into(),
        built_from: None,
    };
    let store = Arc::clone(store);
    blocking(move || {
        store.blobs.put(&image.id, &image.id, &mut config_json.as_ref())?;
        store.blobs.put(&chosen.digest, &chosen.digest, &mut chosen.bytes.as_ref())?;
        store.add(image)
    })
    .await
}

/// Follows indexes to the manifest for this machine, with its configuration.
async fn choose(
    client: &Client,
    mut manifest: Manifest,
    mut digest: String,
) -> Result<(Chosen, ConfigDocument, Bytes)> {
    for _ in 0..=MAX_NESTING {
        let Some(descriptors) = index(&digest, &manifest)? else {
            let chosen = image(digest, manifest)?;
            let (document, json) = configuration(client, &chosen.document.config).await?;
            if !is_ours(&document.os, &document.architecture) {
                let available = format!("{}/{}", document.os, document.architecture);
                return Err(wrong_platform(available));
            }
            return Ok((chosen, document, json));
        };
        let ours = descriptors.iter().find(|descriptor| {
            let platform = descriptor.platform.as_ref();
            !is_attestation(descriptor) && platform.is_none_or(|p| is_ours(&p.os, &p.architecture))
        });
        let Some(ours) = ours else {
            let named = descriptors.iter().filter_map(|descriptor| descriptor.platform.as_ref());
            let available: BTreeSet<String> =
                named.map(|platform| format!("{}/{}", platform.os, platform.architecture)).collect();
            return Err(wrong_platform(available.into_iter().collect::<Vec<_>>().join(", ")));
        };
        if !is_digest(&ours.digest) {
            return Err(Error::corrupt(digest, format!("{:?} is not a SHA-256 digest", ours.digest)));
        }
        manifest = client.manifest(&ours.digest).await?;
        let actual = digest_of(&manifest.bytes);
        if actual != ours.digest {
            let file = format!("manifest {}", ours.digest);
            return Err(Error::Digest { file, actual, expected: ours.digest.clone() });
        }
        digest = actual;
    }
    Err(Error::corrupt(digest, "indexes are nested too deeply"))
}

fn wrong_platform(available: String) -> Error {
    Error::Platform { wanted: format!("linux/{}", architecture()), available }
}

/// What says where an image comes from has no layers to run.
fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor.annotations.contains_key("vnd.docker.reference.type")
        || descriptor.platform.as_ref().is_some_and(|platform| platform.os == "unknown")
}

/// The manifests of an index; `None` if it is a manifest itself. What could be read as both is refused.
fn index(digest: &str, manifest: &Manifest) -> Result<Option<Vec<Descriptor>>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Either {
        #[serde(default)]
        schema_version: u32,
        manifests: Option<Vec<Descriptor>>,
        config: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
    }
    let file = format!("manifest {digest}");
    let either: Either = archive::parse(&file, &manifest.bytes)?;
    if either.schema_version == 1 {
        let what =
            "Docker's first form of manifests, which is no longer in use: push the image with a newer client";
        return Err(Error::corrupt(file, what));
    }
    let is_index =
        manifest.media_type.contains("image.index") || manifest.media_type.contains("manifest.list");
    match (either.manifests, either.config.is_some() || either.layers.is_some()) {
        (Some(_), true) => Err(Error::corrupt(file, "it is both an index and a manifest")),
        (Some(manifests), false) => Ok(Some(manifests)),
        (None, true) if !is_index => Ok(None),
        (None, _) => Err(Error::corrupt(file, format!("it is no image ({})", manifest.media_type))),
    }
}

fn image(digest: String, manifest: Manifest) -> Result<Chosen> {
    let file = format!("manifest {digest}");
    let document: ManifestDocument = archive::parse(&file, &manifest.bytes)?;
    let kind = &document.config.media_type;
    // Charts and others are kept in registries too.
    if !kind.is_empty() && !kind.contains("image.config") && !kind.contains("container.image") {
        return Err(Error::corrupt(file, format!("it is no container image, but has a {kind}")));
    }
    let digests = document.layers.iter().chain([&document.config]).map(|descriptor| &descriptor.digest);
    if let Some(bad) = digests.into_iter().find(|digest| !is_digest(digest)) {
        return Err(Error::corrupt(file, format!("{bad:?} is not a SHA-256 digest")));
    }
    Ok(Chosen { digest, bytes: manifest.bytes, document })
}

async fn configuration(client: &Client, descriptor: &Descriptor) -> Result<(ConfigDocument, Bytes)> {
    let limit = usize::try_from(MAX_DOCUMENT).unwrap_or(usize::MAX);
    let json = client.document(&descriptor.digest, limit).await?;
    let file = format!("configuration {}", descriptor.digest);
    let actual = digest_of(&json);
    if actual != descriptor.digest {
        return Err(Error::Digest { file, actual, expected: descriptor.digest.clone() });
    }
    Ok((archive::parse(&file, &json)?, json))
}

/// One layer: what of it is not here yet.
async fn fetch_layer(
    store: &Arc<Store>,
    client: &Client,
    descriptor: &Descriptor,
    diff_id: String,
    progress: &watch::Sender<Progress>,
) -> Result<Layer> {
    let digest = descriptor.digest.clone();
    // Shared with the threads that write: if a sibling's failure ends this one, they finish before the next begins.
    let turn = Arc::new(store.fetches.turn(&digest).lock_owned().await);
    if store.blobs.path(&digest).exists() {
        progress.send_modify(|progress| progress.bytes_done += descriptor.size);
    } else {
        download(store, client, &digest, descriptor.size, progress, &turn).await?;
    }
    let store = Arc::clone(store);
    blocking(move || {
        let _turn = turn;
        let mut layer = Layer { diff_id, blob: Some(digest), bytes: 0 };
        let directory = store.layers().join(layer.directory());
        layer.bytes = match store.bytes_of_known(&layer.diff_id) {
            Some(bytes) if directory.is_dir() => bytes,
            _ if directory.is_dir() => bytes_of(&directory).map_err(Error::io("read", directory))?,
            _ => {
                let blob: &str = layer.blob.as_deref().unwrap_or_default();
                store.unpack(&store.blobs.path(blob), blob, &layer.diff_id)?
            }
        };
        Ok(layer)
    })
    .await
}

async fn download(
    store: &Arc<Store>,
    client: &Client,
    digest: &str,
    size: u64,
    progress: &watch::Sender<Progress>,
    turn: &Arc<OwnedMutexGuard<()>>,
) -> Result<PathBuf> {
    let (blobs, name) = (store.blobs.clone(), digest.to_owned());
    let partial = blocking(move || blobs.resume(&name, size)).await?;
    let have = partial.length();
    progress.send_modify(|progress| progress.bytes_done += have);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let held = Arc::clone(turn);
    let writing = tokio::task::spawn_blocking(move || {
        let _turn = held;
        partial.receive(receiver)
    });
    let counted = progress.clone();
    let count: Count = Arc::new(move |bytes| counted.send_modify(|progress| progress.bytes_done += bytes));
    let sent = client.blob(digest, size, have, &sender, &count).await;
    drop(sender);
    let written = joined(writing.await);
    // A disk that is full is the cause, and that nobody listened any more only its effect.
    let partial = written?;
    sent?;
    let (blobs, name) = (store.blobs.clone(), digest.to_owned());
    blocking(move || blobs.complete(partial, &name, &format!("layer {name}"))).await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    joined(tokio::task::spawn_blocking(work).await)
}

fn joined<T>(done: Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    done.unwrap_or_else(|error| Err(Error::io("write", "the image store")(std::io::Error::other(error))))
}

impl Store {
    fn bytes_of_known(&self, diff_id: &str) -> Option<u64> {
        let index = self.read();
        let mut layers = index.images.values().flat_map(|image| &image.layers);
        layers.find(|layer| layer.diff_id == diff_id).map(|layer| layer.bytes)
    }
}

impl Layer {
    pub(super) fn of(diff_id: &str) -> Self {
        Layer { diff_id: diff_id.to_owned(), blob: None, bytes: 0 }
    }
}
