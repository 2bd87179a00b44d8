//! Images, as the runtime's callers see them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};

use decapod_proto::cri;
use tokio::sync::watch;

use super::{Inner, blocking};
use crate::error::{Error, Kind, Result};
use crate::image::{self, Image, ImageConfig, ImageFile, Progress, Reference};
use crate::protocol::now;
use crate::registry::{self, Client, Credentials, Purpose, Registries};

/// How an image is moved to or from a registry.
#[derive(Clone, Debug, Default)]
pub struct Transfer {
    /// Who asks; nobody, or whom the file about registries names, if not given.
    pub credentials: Option<Credentials>,
    /// Takes any certificate, and plain HTTP where HTTPS is not spoken.
    pub insecure: bool,
    /// Told how far it has come.
    pub progress: watch::Sender<Progress>,
}

/// Name, credentials and trust: pulls that differ in one of them are not the same.
type FlightKey = (String, Credentials, bool);
type Landed = Option<Result<Arc<Image>, Arc<image::Error>>>;
/// The pulls that are under way.
pub(super) type Flights = HashMap<FlightKey, watch::Receiver<Landed>>;

/// Ends with its pull, however that ends.
struct Flight {
    inner: Arc<Inner>,
    key: FlightKey,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.inner.flights().remove(&self.key);
    }
}

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

    /// Fetches an image; whoever asks for the same as the same meanwhile gets the same answer.
    pub(super) async fn image_pull(self: &Arc<Self>, name: &str, transfer: &Transfer) -> Result<Arc<Image>> {
        if image::is_id(name) {
            // An id is of what is here: no registry knows it.
            return self.images.find(name).ok_or_else(|| Error::not_found(Kind::Image, name));
        }
        let reference = Reference::parse(name).map_err(|error| failed(name, error))?;
        let mut landing = self.flight(name, reference, transfer);
        match landing.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Ok(image))) => Ok(Arc::clone(image)),
            Ok(Some(Err(error))) => {
                Err(Error::Image { reference: name.to_owned(), source: Box::new(Arc::clone(error)) })
            }
            Ok(None) | Err(_) => {
                Err(Error::Image { reference: name.to_owned(), source: "the pull was given up".into() })
            }
        }
    }

    /// The pull that is under way, or a new one.
    fn flight(
        self: &Arc<Self>,
        name: &str,
        reference: Reference,
        transfer: &Transfer,
    ) -> watch::Receiver<Landed> {
        let key = (name.to_owned(), transfer.credentials.clone().unwrap_or_default(), transfer.insecure);
        let mut flights = self.flights();
        if let Some(flight) = flights.get(&key) {
            return flight.clone();
        }
        let (sender, receiver) = watch::channel(None);
        flights.insert(key.clone(), receiver.clone());
        let (own, transfer) = (Arc::clone(self), transfer.clone());
        self.tasks.spawn("image-pull", async move {
            let entry = Flight { inner: Arc::clone(&own), key };
            let result = own.pull_now(&reference, &transfer).await;
            drop(entry);
            sender.send_replace(Some(result.map_err(Arc::new)));
        });
        receiver
    }

    async fn pull_now(&self, reference: &Reference, transfer: &Transfer) -> Result<Arc<Image>, image::Error> {
        let client = self.registry(reference, transfer, Purpose::Pull)?;
        image::pull(&self.images, &client, reference, &transfer.progress).await
    }

    /// Sends an image that is here to its registry; returns the digest by which it is known there.
    pub(super) async fn image_push(&self, name: &str, transfer: &Transfer) -> Result<String> {
        let image = self.images.find(name).ok_or_else(|| Error::not_found(Kind::Image, name))?;
        let push = async {
            let reference = Reference::parse(name)?;
            let client = self.registry(&reference, transfer, Purpose::Push)?;
            image::push(&self.images, &client, &reference, &image, &transfer.progress).await
        };
        push.await.map_err(|error| failed(name, error))
    }

    fn registry(
        &self,
        reference: &Reference,
        transfer: &Transfer,
        purpose: Purpose,
    ) -> Result<Client, image::Error> {
        // Read each time: a change of the file needs no restart.
        let registries =
            Registries::read(self.options.registries.as_deref()).map_err(registry::Error::from)?;
        let credentials = transfer.credentials.as_ref();
        Ok(Client::new(Arc::new(registries), &reference.repository, credentials, transfer.insecure, purpose))
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        // Held for single insertions and look-ups, none of which panics.
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
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
