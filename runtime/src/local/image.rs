//! Images, as the runtime's callers see them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use decapod_proto::cri;

use super::{Inner, blocking};
use crate::error::{Error, Kind, Result};
use crate::image::{self, Image, ImageConfig, ImageFile};
use crate::protocol::now;

impl Inner {
    pub(super) fn image_list(&self, filter: Option<&cri::ImageFilter>) -> Vec<cri::Image> {
        let name = filter.and_then(|filter| filter.image.as_ref()).map(|image| image.image.as_str());
        match name.filter(|name| !name.is_empty()) {
            Some(name) => self.images.find(name).iter().map(|image| image.to_cri()).collect(),
            None => self.images.list().iter().map(|image| image.to_cri()).collect(),
        }
    }

    /// The image that a container asks for.
    pub(super) fn image_find(&self, spec: Option<&cri::ImageSpec>) -> Result<Arc<Image>> {
        let name = spec.map(|spec| spec.image.as_str()).unwrap_or_default();
        if name.is_empty() {
            return Err(Error::invalid("image", "no image is named"));
        }
        self.images.find(name).ok_or_else(|| Error::not_found(Kind::Image, name))
    }

    pub(super) async fn image_import(&self, archive: &Path) -> Result<Vec<cri::Image>> {
        let (images, path) = (Arc::clone(&self.images), archive.to_owned());
        let imported = blocking("import an image", move || images.import(&path)).await?;
        let imported = imported.map_err(|error| failed(&archive.display().to_string(), error))?;
        Ok(imported.iter().map(|image| image.to_cri()).collect())
    }

    pub(super) async fn image_build(
        &self,
        reference: String,
        files: Vec<ImageFile>,
        config: ImageConfig,
    ) -> Result<String> {
        let (images, name) = (Arc::clone(&self.images), reference.clone());
        let built = blocking("build an image", move || images.build(&name, &files, &config)).await?;
        Ok(built.map_err(|error| failed(&reference, error))?.id.clone())
    }

    /// Images come by import only, until there is a client for registries.
    pub(super) fn image_pull(&self, image: &cri::ImageSpec) -> Result<String> {
        if let Some(found) = self.images.find(&image.image) {
            return Ok(found.id.clone());
        }
        if !image::is_id(&image.image)
            && let Err(error) = image::Reference::parse(&image.image)
        {
            return Err(failed(&image.image, error));
        }
        let source = "it is not on this node, and this runtime does not pull from registries yet: \
                      import it with `decapod image import FILE`";
        Err(Error::Image { reference: image.image.clone(), source: source.into() })
    }

    pub(super) async fn image_remove(&self, image: &cri::ImageSpec) -> Result<()> {
        let (images, name, used) = (Arc::clone(&self.images), image.image.clone(), self.used_layers());
        let removed = blocking("remove an image", move || images.remove(&name, &used)).await?;
        removed.map(drop).map_err(|error| failed(&image.image, error))
    }

    pub(super) async fn image_fs(&self) -> Result<cri::ImageFsInfoResponse> {
        let usage = |path: PathBuf| {
            blocking("measure a file system", move || -> std::io::Result<cri::FilesystemUsage> {
                let (bytes, inodes) = measure(&path)?;
                Ok(cri::FilesystemUsage {
                    timestamp: now(),
                    fs_id: Some(cri::FilesystemIdentifier { mountpoint: path.display().to_string() }),
                    used_bytes: Some(cri::UInt64Value { value: bytes }),
                    inodes_used: Some(cri::UInt64Value { value: inodes }),
                })
            })
        };
        let failed = |error| Error::internal("measure a file system", error);
        Ok(cri::ImageFsInfoResponse {
            image_filesystems: vec![usage(self.images.root().to_owned()).await?.map_err(failed)?],
            container_filesystems: vec![usage(self.paths.pods()).await?.map_err(failed)?],
        })
    }
}

fn failed(reference: &str, error: image::Error) -> Error {
    Error::Image { reference: reference.to_owned(), source: error.into() }
}

/// Bytes on disk and files of a tree. What vanishes meanwhile does not count.
pub(super) fn measure(path: &Path) -> std::io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let (mut bytes, mut inodes) = (0, 0);
    let mut directories = vec![path.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let meta = match entry.metadata() {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                meta => meta?,
            };
            bytes += meta.blocks() * 512;
            inodes += 1;
            if meta.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    Ok((bytes, inodes))
}
