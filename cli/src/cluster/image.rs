//! `decapod image`: the images of this machine's node.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Subcommand;
use decapod_proto::cri;
use decapod_runtime::Runtime;

use super::agent;
use super::build::Build;
use super::control::{Control, ImageRow};
use super::lock::Lock;
use super::settings::{Place, Which};
use crate::failure::{Failure, chain};

/// A command on images.
#[derive(Subcommand, Debug)]
pub(crate) enum Image {
    /// Import the images of archives (docker save, or an OCI layout as a tar file).
    Import {
        #[command(flatten)]
        which: Which,
        /// The archives.
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Build an image from a Dockerfile.
    Build(Box<Build>),
    /// List the images.
    Ls {
        #[command(flatten)]
        which: Which,
    },
    /// Remove images by name or id.
    Rm {
        #[command(flatten)]
        which: Which,
        /// Their names or ids.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// The running agent, or (where none runs) its files.
enum Images {
    Running(Control),
    Offline(Arc<dyn Runtime>, #[expect(dead_code, reason = "held so that no agent starts meanwhile")] Lock),
}

impl Images {
    async fn open(place: &Place) -> Result<Self, Failure> {
        if Lock::holder(place)?.is_some() {
            return Ok(Self::Running(Control::new(agent::socket(place))));
        }
        let lock = Lock::take(place)?;
        let runtime = agent::runtime(place, Arc::new(agent::NoNetwork)).await?;
        Ok(Self::Offline(Arc::new(runtime), lock))
    }

    async fn list(&self) -> Result<Vec<ImageRow>, Failure> {
        match self {
            Self::Running(control) => control.images().await,
            Self::Offline(runtime, _) => {
                let images = runtime.image_list(None).await.map_err(refused)?;
                Ok(images.into_iter().map(ImageRow::from).collect())
            }
        }
    }

    async fn import(&self, archive: &std::path::Path) -> Result<Vec<ImageRow>, Failure> {
        match self {
            Self::Running(control) => control.image_import(archive).await,
            Self::Offline(runtime, _) => {
                let images = runtime.image_import(archive).await.map_err(refused)?;
                Ok(images.into_iter().map(ImageRow::from).collect())
            }
        }
    }

    async fn remove(&self, name: &str) -> Result<(), Failure> {
        match self {
            Self::Running(control) => control.image_remove(name).await,
            Self::Offline(runtime, _) => {
                let spec = cri::ImageSpec { image: name.to_owned(), ..Default::default() };
                match runtime.image_status(&spec).await.map_err(refused)? {
                    Some(_) => runtime.image_remove(&spec).await.map_err(refused),
                    None => Err(Failure::new(format!("no such image: {name}"))),
                }
            }
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn refused(error: decapod_runtime::Error) -> Failure {
    Failure::new(chain(&error))
}

impl Image {
    pub(crate) async fn run(&self) -> Result<(), Failure> {
        super::require_root("image")?;
        let which = match self {
            Self::Import { which, .. } | Self::Ls { which } | Self::Rm { which, .. } => which,
            Self::Build(build) => &build.which,
        };
        if let Self::Build(build) = self {
            return build.run().await;
        }
        let images = Images::open(&which.place()?).await?;
        match self {
            Self::Import { archives, .. } => {
                for archive in archives {
                    let path = std::fs::canonicalize(archive)
                        .map_err(|e| Failure::new(format!("{} cannot be read: {e}", archive.display())))?;
                    for image in images.import(&path).await? {
                        println!("imported {} ({})", image.tags.join(", "), short(&image.id));
                    }
                }
            }
            Self::Ls { .. } => {
                println!("{:50} {:14} SIZE", "IMAGE", "ID");
                for image in images.list().await? {
                    let names =
                        if image.tags.is_empty() { vec!["<none>".to_owned()] } else { image.tags.clone() };
                    for name in names {
                        println!("{name:50} {:14} {}", short(&image.id), size(image.bytes));
                    }
                }
            }
            Self::Rm { names, .. } => {
                for name in names {
                    images.remove(name).await?;
                    println!("removed {name}");
                }
            }
            // Has its own way to the agent.
            Self::Build(_) => {}
        }
        Ok(())
    }
}

pub(super) fn short(id: &str) -> &str {
    let hex = id.trim_start_matches("sha256:");
    &hex[..hex.len().min(12)]
}

/// Bytes in the unit that leaves one to three digits before the point.
pub(super) fn size(bytes: u64) -> String {
    let (mut amount, mut unit) = (bytes as f64, "B");
    for next in ["KiB", "MiB", "GiB"] {
        if amount < 1000.0 {
            break;
        }
        (amount, unit) = (amount / 1024.0, next);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{amount:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ids() {
        assert_eq!(size(12), "12 B");
        assert_eq!(size(3 << 20), "3.0 MiB");
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
    }
}
