//! An image to a registry. What was pulled or imported goes as it came, under the same digests; what came without a
//! manifest (`docker save`, or a build) is given one of OCI's form, which depends on its content alone.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::blob::digest_of;
use super::error::{Error, Result};
use super::{Image, Progress, Reference, Store, archive};
use crate::registry::{Client, Count};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Sends an image under that reference; returns the digest by which the registry knows it.
pub(crate) async fn push(
    store: &Arc<Store>,
    client: &Client,
    reference: &Reference,
    image: &Arc<Image>,
    progress: &watch::Sender<Progress>,
) -> Result<String> {
    let tag = reference.tag.clone().ok_or_else(|| Error::Reference {
        reference: reference.repository.clone(),
        what: "a push needs a tag",
    })?;
    let (own, wanted) = (Arc::clone(store), Arc::clone(image));
    let prepared = tokio::task::spawn_blocking(move || own.manifest_to_push(&wanted)).await;
    let (manifest, media_type) = prepared
        .unwrap_or_else(|error| Err(Error::io("read", "the image store")(io::Error::other(error))))?;
    let document: archive::ManifestDocument = archive::parse("manifest", &manifest)?;
    progress.send_replace(Progress {
        layers: document.layers.len(),
        bytes: document.layers.iter().map(|layer| layer.size).sum(),
        ..Progress::default()
    });
    // A repository of the same registry that has it already spares the way.
    let registry = |name: &str| name.split('/').next().unwrap_or_default().to_owned();
    let elsewhere = image.digests.iter().filter_map(|known| known.split('@').next()).find_map(|name| {
        let other = name != reference.repository && registry(name) == registry(&reference.repository);
        name.split_once('/').filter(|_| other).map(|(_, path)| path.to_owned())
    });
    let counted = progress.clone();
    let layers: Count = Arc::new(move |bytes| counted.send_modify(|p| p.bytes_done += bytes));
    let nothing: Count = Arc::new(|_| {});
    let blobs = document.layers.iter().map(|layer| (layer, &layers)).chain([(&document.config, &nothing)]);
    for (descriptor, count) in blobs {
        let path = store.blobs.path(&descriptor.digest);
        let read = move |at: u64, length: usize| read_part(&path, at, length);
        client.upload(&descriptor.digest, descriptor.size, elsewhere.as_deref(), &read, count).await?;
        progress.send_modify(|p| p.layers_done = (p.layers_done + 1).min(p.layers));
    }
    let digest = digest_of(&manifest);
    client.put_manifest(&tag, media_type, Bytes::from(manifest)).await?;
    Ok(digest)
}

/// A part of a file of the store; small enough to be read at once.
fn read_part(path: &Path, at: u64, length: usize) -> io::Result<Bytes> {
    let mut buffer = vec![0; length];
    File::open(path)?.read_exact_at(&mut buffer, at)?;
    Ok(buffer.into())
}

impl Store {
    /// The manifest to push, with its media type. All that it names is in the store.
    fn manifest_to_push(&self, image: &Image) -> Result<(Vec<u8>, &'static str)> {
        let stored =
            image.manifest.as_ref().map(|digest| self.blobs.path(digest)).filter(|path| path.exists());
        if let Some(path) = stored {
            let bytes = std::fs::read(&path).map_err(Error::io("read", path))?;
            let document: Value = archive::parse("manifest", &bytes)?;
            let docker = document["mediaType"] == DOCKER_MANIFEST;
            return Ok((bytes, if docker { DOCKER_MANIFEST } else { MANIFEST }));
        }
        let mut layers = Vec::new();
        for layer in &image.layers {
            let blob = layer.blob.as_deref().ok_or_else(|| {
                Error::corrupt(
                    &layer.diff_id,
                    "this layer was made of files of this machine, and cannot be pushed",
                )
            })?;
            let path = self.blobs.path(blob);
            let kind = compression(&path).map_err(Error::io("read", &path))?;
            let size = self.size_of(blob)?;
            let media_type = format!("application/vnd.oci.image.layer.v1.tar{kind}");
            layers.push(json!({ "mediaType": media_type, "digest": blob, "size": size }));
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": image.id,
                "size": self.size_of(&image.id)?,
            },
            "layers": layers,
        });
        Ok((serde_json::to_vec(&manifest).expect("a JSON value is JSON"), MANIFEST))
    }

    fn size_of(&self, digest: &str) -> Result<u64> {
        let path = self.blobs.path(digest);
        Ok(std::fs::metadata(&path).map_err(Error::io("read", path))?.len())
    }
}

/// How the media type of a layer ends.
fn compression(path: &Path) -> io::Result<&'static str> {
    let mut magic = [0; 4];
    let known = File::open(path)?.read(&mut magic)?;
    Ok(match &magic[..known] {
        [0x1f, 0x8b, ..] => "+gzip",
        [0x28, 0xb5, 0x2f, 0xfd] => "+zstd",
        _ => "",
    })
}
