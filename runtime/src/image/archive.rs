//! Reading docker-archives (`docker save`) and OCI archives.
//!
//! Nothing in an archive is believed: every document and layer is found by the path that another
//! one names, bounded in size, and compared with its digest.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::blob::digest_of;
use super::error::{Error, Result};
use super::reference::{Reference, is_digest, is_hex};

/// Largest JSON document of an image; registries allow manifests of 4 MiB.
pub(super) const MAX_DOCUMENT: u64 = 4 << 20;

/// Files in an archive; an image with the most layers that overlayfs takes has some hundred.
const MAX_FILES: usize = 100_000;

/// Layers of one image, as many as overlayfs takes.
const MAX_LAYERS: usize = 127;

/// Indexes in indexes; the specification needs one.
pub(super) const MAX_NESTING: usize = 4;

/// An archive whose files can be read by name, in any order.
pub(super) struct Archive {
    path: PathBuf,
    file: File,
    places: HashMap<String, Place>,
}

#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    length: u64,
}

/// An image as an archive describes it; its layers are still to be read.
pub(super) struct Found {
    /// Full names with tags.
    pub(super) names: Vec<String>,
    /// Digest of the manifest; a docker-archive has none.
    pub(super) manifest: Option<String>,
    /// The bytes of the manifest.
    pub(super) manifest_json: Vec<u8>,
    /// Digest of the configuration: the image's id.
    pub(super) config: String,
    /// The bytes of the configuration.
    pub(super) config_json: Vec<u8>,
    /// The layers, the lowest first.
    pub(super) layers: Vec<FoundLayer>,
}

/// A layer of an image in an archive.
pub(super) struct FoundLayer {
    /// Its path in the archive.
    pub(super) file: String,
    /// Digest as it is stored; not known for docker-archives.
    pub(super) digest: Option<String>,
    /// Digest of the tar stream in it.
    pub(super) diff_id: String,
}

/// What is needed of an image's configuration document.
#[derive(Debug, Deserialize)]
pub(super) struct ConfigDocument {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) config: Option<RawConfig>,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// The part of the configuration that says how to run the image. Any field may be null.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct RawConfig {
    pub(super) user: Option<String>,
    pub(super) env: Option<Vec<String>>,
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) cmd: Option<Vec<String>>,
    pub(super) working_dir: Option<String>,
    pub(super) stop_signal: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    #[serde(default)]
    pub(super) size: u64,
    #[serde(default)]
    pub(super) platform: Option<Platform>,
    #[serde(default)]
    pub(super) annotations: HashMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
}

#[derive(Debug, Deserialize)]
struct IndexDocument {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ManifestDocument {
    pub(super) config: Descriptor,
    #[serde(default)]
    pub(super) layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerItem {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl Archive {
    /// Opens an archive and notes where its files are. A compressed one is unpacked into
    /// `scratch` first, since layers are read out of order.
    pub(super) fn open(path: &Path, scratch: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let mut magic = [0; 4];
        let known = read_up_to(&mut file, &mut magic).map_err(Error::io("read", path))?;
        file.rewind().map_err(Error::io("read", path))?;
        let file = match is_compressed(&magic[..known]) {
            false => file,
            true => {
                let mut plain = anonymous_file(scratch)?;
                let mut reader = decompress(BufReader::new(file)).map_err(Error::io("read", path))?;
                io::copy(&mut reader, &mut plain).map_err(Error::io("decompress", path))?;
                plain
            }
        };
        let places = Self::places(path, &file)?;
        Ok(Archive { path: path.to_owned(), file, places })
    }

    fn places(path: &Path, file: &File) -> Result<HashMap<String, Place>> {
        let shown = path.display().to_string();
        let broken = |error: io::Error| Error::corrupt(&shown, format!("not a whole tar archive: {error}"));
        let size = file.metadata().map_err(Error::io("read", path))?.len();
        let mut handle = file;
        handle.rewind().map_err(Error::io("read", path))?;
        let mut archive = tar::Archive::new(handle);
        let mut places = HashMap::new();
        let mut links = Vec::new();
        for entry in archive.entries_with_seek().map_err(broken)? {
            let entry = entry.map_err(broken)?;
            if places.len() >= MAX_FILES {
                return Err(Error::corrupt(&shown, format!("more than {MAX_FILES} files")));
            }
            let name = normal(&String::from_utf8_lossy(&entry.path_bytes()));
            let kind = entry.header().entry_type();
            if kind.is_file() {
                let place = Place { offset: entry.raw_file_position(), length: entry.size() };
                if place.offset.saturating_add(place.length) > size {
                    return Err(Error::corrupt(name, "truncated"));
                }
                places.insert(name, place);
            } else if let Some(target) = entry.link_name_bytes() {
                let target = String::from_utf8_lossy(&target).into_owned();
                links.push((name, target, kind.is_symlink()));
            }
        }
        // docker save links layers that images share.
        for (name, target, relative) in links {
            let target = match relative {
                true => {
                    normal(&Path::new(&name).parent().unwrap_or(Path::new("")).join(target).to_string_lossy())
                }
                false => normal(&target),
            };
            if let Some(place) = places.get(&target).copied() {
                places.insert(name, place);
            }
        }
        Ok(places)
    }

    /// The images of the archive that are for this machine.
    pub(super) fn images(&self) -> Result<Vec<Found>> {
        let docker: Option<Vec<DockerItem>> = self.optional("manifest.json")?;
        let index: Option<IndexDocument> = self.optional("index.json")?;
        match (index, docker) {
            (Some(index), docker) => self.oci_images(index, docker.unwrap_or_default()),
            (None, Some(docker)) => docker.into_iter().map(|item| self.docker_image(item)).collect(),
            (None, None) => Err(Error::NotAnImage(self.path.clone())),
        }
    }

    fn oci_images(&self, index: IndexDocument, docker: Vec<DockerItem>) -> Result<Vec<Found>> {
        // Descriptors of one name are one image for several platforms.
        let mut groups: Vec<(Option<String>, Vec<Descriptor>)> = Vec::new();
        for descriptor in index.manifests {
            let name = self.name_of(&descriptor)?;
            match groups.iter_mut().find(|(other, _)| *other == name) {
                Some((_, group)) => group.push(descriptor),
                None => groups.push((name, vec![descriptor])),
            }
        }
        let mut images: Vec<Found> = Vec::new();
        for (name, group) in groups {
            let mut found = self.choose(&group)?;
            match images.iter_mut().find(|other| other.config == found.config) {
                Some(same) => same.names.extend(name),
                None => {
                    found.names.extend(name);
                    images.push(found);
                }
            }
        }
        for item in docker {
            let digest = item.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
            let tags = item.repo_tags.unwrap_or_default();
            for image in images.iter_mut().filter(|image| image.config.ends_with(digest)) {
                for tag in &tags {
                    image.names.extend(Reference::parse(tag)?.tagged());
                }
            }
        }
        images.iter_mut().for_each(|image| {
            image.names.sort();
            image.names.dedup();
        });
        Ok(images)
    }

    /// The name that an index gives an image. A mere tag, as `skopeo` and `umoci` write it, is
    /// completed with the archive's name.
    fn name_of(&self, descriptor: &Descriptor) -> Result<Option<String>> {
        let annotation = |key: &str| descriptor.annotations.get(key);
        let Some(name) = annotation("io.containerd.image.name")
            .or_else(|| annotation("org.opencontainers.image.ref.name"))
        else {
            return Ok(None);
        };
        let full = match name.contains(['/', ':', '@']) {
            true => name.clone(),
            false => {
                let stem = self.path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
                format!("{stem}:{name}")
            }
        };
        Ok(Reference::parse(&full)?.tagged())
    }

    /// The first manifest for this machine's platform.
    fn choose(&self, descriptors: &[Descriptor]) -> Result<Found> {
        let mut leaves = Vec::new();
        self.leaves(descriptors, 0, &mut leaves)?;
        let mut available = Vec::new();
        for descriptor in leaves {
            if let Some(platform) = &descriptor.platform
                && !is_ours(&platform.os, &platform.architecture)
            {
                available.push(format!("{}/{}", platform.os, platform.architecture));
                continue;
            }
            let (found, document) = self.oci_image(&descriptor)?;
            if is_ours(&document.os, &document.architecture) {
                return Ok(found);
            }
            available.push(format!("{}/{}", document.os, document.architecture));
        }
        Err(Error::Platform { wanted: format!("linux/{}", architecture()), available: available.join(", ") })
    }

    fn leaves(&self, descriptors: &[Descriptor], depth: usize, leaves: &mut Vec<Descriptor>) -> Result<()> {
        for descriptor in descriptors {
            let is_index = descriptor.media_type.contains("image.index")
                || descriptor.media_type.contains("manifest.list");
            if is_index {
                let file = blob_file(&descriptor.digest)?;
                if depth >= MAX_NESTING {
                    return Err(Error::corrupt(file, "indexes are nested too deeply"));
                }
                let (index, _): (IndexDocument, _) = self.verified(&descriptor.digest)?;
                self.leaves(&index.manifests, depth + 1, leaves)?;
            } else if !descriptor.annotations.contains_key("vnd.docker.reference.type") {
                leaves.push(descriptor.clone());
            }
        }
        Ok(())
    }

    fn oci_image(&self, descriptor: &Descriptor) -> Result<(Found, ConfigDocument)> {
        let (manifest, manifest_json): (ManifestDocument, _) = self.verified(&descriptor.digest)?;
        let (document, config_json): (ConfigDocument, _) = self.verified(&manifest.config.digest)?;
        let file = blob_file(&descriptor.digest)?;
        let files =
            manifest.layers.iter().map(|layer| blob_file(&layer.digest)).collect::<Result<Vec<_>>>()?;
        let mut layers = pair(&file, files, &document)?;
        for (layer, descriptor) in layers.iter_mut().zip(&manifest.layers) {
            layer.digest = Some(descriptor.digest.clone());
        }
        let found = Found {
            names: Vec::new(),
            manifest: Some(descriptor.digest.clone()),
            manifest_json,
            config: manifest.config.digest,
            config_json,
            layers,
        };
        Ok((found, document))
    }

    fn docker_image(&self, item: DockerItem) -> Result<Found> {
        let file = normal(&item.config);
        let config_json = self.document(&file)?;
        let digest = digest_of(&config_json);
        let stem = file.rsplit('/').next().unwrap_or_default().trim_end_matches(".json").to_owned();
        if is_hex(&stem) && digest.trim_start_matches("sha256:") != stem {
            return Err(Error::Digest { file, actual: digest, expected: format!("sha256:{stem}") });
        }
        let document: ConfigDocument = parse(&file, &config_json)?;
        if !is_ours(&document.os, &document.architecture) {
            let available = format!("{}/{}", document.os, document.architecture);
            return Err(Error::Platform { wanted: format!("linux/{}", architecture()), available });
        }
        let files = item.layers.iter().map(|layer| normal(layer)).collect();
        let layers = pair(&file, files, &document)?;
        let mut names = Vec::new();
        for tag in item.repo_tags.unwrap_or_default() {
            names.extend(Reference::parse(&tag)?.tagged());
        }
        Ok(Found { names, manifest: None, manifest_json: Vec::new(), config: digest, config_json, layers })
    }

    /// A file's content, from its beginning.
    pub(super) fn reader(&self, file: &str) -> Result<impl Read> {
        let place = self.places.get(file).ok_or_else(|| Error::Missing { file: file.to_owned() })?;
        Ok(Section { file: &self.file, offset: place.offset, left: place.length })
    }

    fn document(&self, file: &str) -> Result<Vec<u8>> {
        let place = self.places.get(file).ok_or_else(|| Error::Missing { file: file.to_owned() })?;
        if place.length > MAX_DOCUMENT {
            return Err(Error::corrupt(file, format!("larger than {MAX_DOCUMENT} bytes")));
        }
        let mut content = Vec::new();
        self.reader(file)?.read_to_end(&mut content).map_err(Error::io("read", &self.path))?;
        Ok(content)
    }

    fn optional<T: DeserializeOwned>(&self, file: &str) -> Result<Option<T>> {
        if !self.places.contains_key(file) {
            return Ok(None);
        }
        parse(file, &self.document(file)?).map(Some)
    }

    /// A document of the blob folder whose content has that digest.
    fn verified<T: DeserializeOwned>(&self, digest: &str) -> Result<(T, Vec<u8>)> {
        let file = blob_file(digest)?;
        let content = self.document(&file)?;
        let actual = digest_of(&content);
        if actual != digest {
            return Err(Error::Digest { file, actual, expected: digest.to_owned() });
        }
        Ok((parse(&file, &content)?, content))
    }
}

/// A part of a file, read without moving the file's own position.
struct Section<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let length = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        self.offset += length as u64;
        self.left -= length as u64;
        Ok(length)
    }
}

/// Layers and their digests come from two documents, which must agree.
pub(super) fn pair(file: &str, files: Vec<String>, document: &ConfigDocument) -> Result<Vec<FoundLayer>> {
    let diff_ids = &document.rootfs.diff_ids;
    if files.len() != diff_ids.len() {
        let what = format!("{} layers, but the configuration has {}", files.len(), diff_ids.len());
        return Err(Error::corrupt(file, what));
    }
    if files.len() > MAX_LAYERS {
        return Err(Error::corrupt(file, format!("more than {MAX_LAYERS} layers")));
    }
    if let Some(bad) = diff_ids.iter().find(|id| !is_digest(id)) {
        return Err(Error::corrupt(file, format!("{bad:?} is not a SHA-256 digest")));
    }
    let layers = files.into_iter().zip(diff_ids);
    Ok(layers.map(|(file, diff_id)| FoundLayer { file, digest: None, diff_id: diff_id.clone() }).collect())
}

pub(super) fn parse<T: DeserializeOwned>(file: &str, content: &[u8]) -> Result<T> {
    serde_json::from_slice(content).map_err(|source| Error::Json { file: file.to_owned(), source })
}

fn blob_file(digest: &str) -> Result<String> {
    match is_digest(digest) {
        true => Ok(format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))),
        false => Err(Error::corrupt(digest, "not a SHA-256 digest")),
    }
}

/// Archives name the same file as `x`, `./x` or `a/../x`.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// This machine's architecture, by its name in images.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(super) fn is_ours(os: &str, arch: &str) -> bool {
    (os.is_empty() || os == "linux") && (arch.is_empty() || arch == architecture())
}

fn is_compressed(magic: &[u8]) -> bool {
    magic.starts_with(GZIP) || magic.starts_with(ZSTD)
}

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// What is in a stream that may be compressed, by its first bytes.
pub(crate) fn decompress<'a>(mut reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = [0; 4];
    let known = read_up_to(&mut reader, &mut magic)?;
    let whole = io::Cursor::new(magic).take(known as u64).chain(reader);
    Ok(match &magic[..known] {
        start if start.starts_with(GZIP) => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        start if start.starts_with(ZSTD) => Box::new(zstd::stream::read::Decoder::new(whole)?),
        _ => Box::new(whole),
    })
}

fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut known = 0;
    while known < buffer.len() {
        match reader.read(&mut buffer[known..])? {
            0 => break,
            length => known += length,
        }
    }
    Ok(known)
}

/// A file without a name: gone with the last descriptor, whatever happens.
fn anonymous_file(directory: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(directory)
        .map_err(Error::io("create a file in", directory))?;
    file.flush().map_err(Error::io("create a file in", directory))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_normal() {
        assert_eq!(normal("./a//b/../c"), "a/c");
        assert_eq!(normal("../../etc"), "etc");
    }

    #[test]
    fn platforms_are_compared() {
        assert!(is_ours("linux", architecture()));
        assert!(is_ours("", ""));
        assert!(!is_ours("windows", architecture()));
        assert!(!is_ours("linux", "s390x"));
    }
}
