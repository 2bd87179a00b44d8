//! Images that builds make: layers of what an instruction has changed, and the documents around them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::blob::{Digesting, digest_of};
use super::cache::Made;
use super::error::{Error, Result};
use super::{Image, ImageConfig, Layer, Reference, Store, layer};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Largest configuration document; the same bound as for those of archives.
const MAX_DOCUMENT: u64 = 4 << 20;

impl Store {
    /// What an earlier build has made of this, if it is still there.
    pub(crate) fn made(&self, key: &str) -> Option<Made> {
        let made = self.cache.get(key)?;
        let there = |layer: &Layer| {
            let blob = layer.blob.as_ref().is_none_or(|blob| self.blobs.path(blob).exists());
            blob && self.layers().join(layer.directory()).is_dir()
        };
        made.layer.as_ref().is_none_or(there).then_some(made)
    }

    /// Keeps layers from being removed for as long as what is returned lives.
    pub(crate) fn hold(&self, layers: &[Layer]) -> Arc<Vec<Layer>> {
        self.cache.hold(layers.to_vec())
    }

    /// Forgets what builds have made; returns how many bytes of layers that were.
    pub(crate) fn forget_builds(&self, used: &std::collections::HashSet<String>) -> Result<u64> {
        let bytes = self.cache.clear()?;
        self.tidy(used)?;
        Ok(bytes)
    }

    /// Makes a layer of an upper directory, and remembers it by the key. `at` is the time that it has, in
    /// seconds since 1970; times of files after `latest` become that.
    pub(crate) fn commit(&self, key: &str, upper: &Path, at: i64, latest: Option<i64>) -> Result<Made> {
        let _work = self.work();
        let temporary = self.root.join("blobs").join(format!("new-{}", uuid::Uuid::new_v4().simple()));
        let result = self.commit_to(&temporary, upper, latest);
        // Renamed by now, or of no use any more; a leftover is removed at the next start.
        fs::remove_file(&temporary).ok();
        let made = Made { layer: result?, at };
        self.cache.put(key, made.clone())?;
        Ok(made)
    }

    fn commit_to(&self, temporary: &Path, upper: &Path, latest: Option<i64>) -> Result<Option<Layer>> {
        let failed = |doing| Error::io(doing, temporary);
        let file = fs::File::create(temporary).map_err(failed("create"))?;
        let compressed = Digesting::new(io::BufWriter::new(file));
        let mut plain = Digesting::new(GzEncoder::new(compressed, flate2::Compression::fast()));
        let any = {
            let (_, any) = layer::write(upper, &mut plain, latest)?;
            any
        };
        let (encoder, diff_id) = plain.finish();
        let (mut output, digest) = encoder.finish().map_err(failed("write"))?.finish();
        output.flush().map_err(failed("write"))?;
        if !any {
            return Ok(None);
        }
        drop(output);
        let mut reader = fs::File::open(temporary).map_err(failed("open"))?;
        let blob = self.blobs.put(&digest, "the layer", &mut reader)?;
        let mut layer = Layer { diff_id: diff_id.clone(), blob: Some(digest), bytes: 0 };
        layer.bytes = match self.known_bytes(&layer) {
            Some(bytes) => bytes,
            None => self.unpack(&blob, "the layer", &diff_id)?,
        };
        Ok(Some(layer))
    }

    /// Layers that are there are in use: they are not made again.
    fn known_bytes(&self, layer: &Layer) -> Option<u64> {
        let known = self.list().into_iter().flat_map(|image| image.layers.clone()).chain(self.cache.layers());
        let bytes = known.into_iter().find(|known| known.diff_id == layer.diff_id)?.bytes;
        self.layers().join(layer.directory()).is_dir().then_some(bytes)
    }

    /// The configuration document of an image.
    pub(crate) fn document(&self, image: &Image) -> Result<Value> {
        let path = self.blobs.path(&image.id);
        let file = fs::File::open(&path).map_err(Error::io("open", &path))?;
        let mut content = Vec::new();
        file.take(MAX_DOCUMENT).read_to_end(&mut content).map_err(Error::io("read", &path))?;
        super::archive::parse(&image.id, &content)
    }

    /// Adds an image that was built, under these names.
    pub(crate) fn add_built(
        &self,
        document: &Value,
        config: ImageConfig,
        layers: Vec<Layer>,
        tags: &[Reference],
    ) -> Result<Arc<Image>> {
        let _work = self.work();
        let document = serde_json::to_vec(document).expect("a JSON value is JSON");
        let id = digest_of(&document);
        self.blobs.put(&id, &id, &mut document.as_slice())?;
        let manifest = match self.manifest_of(&id, document.len(), &layers)? {
            Some(manifest) => {
                let digest = digest_of(&manifest);
                self.blobs.put(&digest, &digest, &mut manifest.as_slice())?;
                Some(digest)
            }
            None => None,
        };
        let tags: BTreeSet<String> = tags.iter().filter_map(Reference::tagged).collect();
        self.add(Image { tags, manifest, ..Image::unnamed(id, layers, config) })
    }

    /// A manifest; none where a layer has no blob, as those of the binary's own image.
    fn manifest_of(&self, id: &str, config_size: usize, layers: &[Layer]) -> Result<Option<Vec<u8>>> {
        let mut descriptors = Vec::new();
        for layer in layers {
            let Some(digest) = &layer.blob else { return Ok(None) };
            let path = self.blobs.path(digest);
            let mut file = fs::File::open(&path).map_err(Error::io("open", &path))?;
            let size = file.metadata().map_err(Error::io("read", &path))?.len();
            let mut magic = Vec::new();
            Read::by_ref(&mut file).take(4).read_to_end(&mut magic).map_err(Error::io("read", &path))?;
            let form = match magic.as_slice() {
                [0x1f, 0x8b, ..] => "+gzip",
                [0x28, 0xb5, 0x2f, 0xfd] => "+zstd",
                _ => "",
            };
            let media_type = format!("application/vnd.oci.image.layer.v1.tar{form}");
            descriptors.push(json!({ "mediaType": media_type, "digest": digest, "size": size }));
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": id, "size": config_size },
            "layers": descriptors,
        });
        Ok(Some(serde_json::to_vec(&manifest).expect("a JSON value is JSON")))
    }

    /// Writes an image as an archive that is an OCI layout and what `docker load` reads, both.
    pub(crate) fn export(&self, image: &Image, names: &[String], output: &Path) -> Result<()> {
        let failed = |error| Error::io("write", output)(error);
        let Some(manifest) = &image.manifest else {
            return Err(Error::corrupt(
                &image.id,
                "it was made of files of this machine, and has no archive's form",
            ));
        };
        let mut digests = vec![manifest.clone(), image.id.clone()];
        digests.extend(image.layers.iter().filter_map(|layer| layer.blob.clone()));
        digests.dedup();
        let file = |digest: &str| format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"));
        let layers: Vec<String> =
            image.layers.iter().filter_map(|layer| layer.blob.as_deref()).map(file).collect();
        let size = fs::metadata(self.blobs.path(manifest)).map_err(Error::io("read", manifest))?.len();
        let descriptor = |name: Option<&String>| {
            let mut descriptor = json!({ "mediaType": MANIFEST, "digest": manifest, "size": size });
            if let Some(name) = name {
                descriptor["annotations"] =
                    json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name });
            }
            descriptor
        };
        let descriptors: Vec<Value> = match names.is_empty() {
            true => vec![descriptor(None)],
            false => names.iter().map(|name| descriptor(Some(name))).collect(),
        };
        let mut builder = tar::Builder::new(io::BufWriter::new(fs::File::create(output).map_err(failed)?));
        for (name, content) in [
            ("oci-layout", json!({ "imageLayoutVersion": "1.0.0" })),
            ("index.json", json!({ "schemaVersion": 2, "manifests": descriptors })),
            ("manifest.json", json!([{ "Config": file(&image.id), "RepoTags": names, "Layers": layers }])),
        ] {
            let content = content.to_string();
            builder
                .append_data(&mut plain(content.len() as u64), name, content.as_bytes())
                .map_err(failed)?;
        }
        let mut written = BTreeSet::new();
        for digest in digests {
            if written.insert(digest.clone()) {
                let path = self.blobs.path(&digest);
                let blob = fs::File::open(&path).map_err(Error::io("open", &path))?;
                let size = blob.metadata().map_err(Error::io("read", &path))?.len();
                builder.append_data(&mut plain(size), file(&digest), blob).map_err(failed)?;
            }
        }
        let output = builder.into_inner().and_then(|writer| writer.into_inner().map_err(io::Error::from));
        output.and_then(|file| file.sync_all()).map_err(failed)
    }
}

fn plain(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_made_once_and_images_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("a")).unwrap();
        let upper = dir.path().join("upper");
        fs::create_dir_all(upper.join("etc")).unwrap();
        fs::write(upper.join("etc/file"), "content").unwrap();
        let made = store.commit("key", &upper, 5, Some(0)).unwrap();
        assert_eq!(store.made("key").as_ref(), Some(&made));
        let again = store.commit("other", &upper, 6, Some(0)).unwrap();
        assert_eq!(again.layer, made.layer);
        let empty = dir.path().join("empty");
        fs::create_dir(&empty).unwrap();
        assert_eq!(store.commit("none", &empty, 5, None).unwrap().layer, None);

        let layers = vec![made.layer.unwrap()];
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let document = json!({
            "architecture": super::super::archive::architecture(),
            "os": "linux",
            "config": { "Cmd": ["x"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let tag = Reference::parse("a.internal/b:1").unwrap();
        let config = ImageConfig { cmd: vec!["x".into()], ..Default::default() };
        let image = store.add_built(&document, config, layers, &[tag]).unwrap();
        let archive = dir.path().join("image.tar");
        store.export(&image, &["a.internal/b:1".to_owned()], &archive).unwrap();
        let other = Store::open(dir.path().join("b")).unwrap();
        let imported = other.import(&archive).unwrap();
        assert_eq!((&imported[0].id, &imported[0].config), (&image.id, &image.config));
        assert!(imported[0].tags.contains("a.internal/b:1"));
        let file = other.layers().join(imported[0].layers[0].directory()).join("etc/file");
        assert_eq!(fs::read_to_string(file).unwrap(), "content");
        // What is remembered stays; what nobody remembers goes.
        store.remove(&image.id, &Default::default()).unwrap();
        assert!(store.made("key").is_some());
        store.forget_builds(&Default::default()).unwrap();
        assert_eq!(fs::read_dir(store.layers()).unwrap().count(), 0);
    }
}
