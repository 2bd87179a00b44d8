//! `decapod image`: the images of this machine's node.

use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use decapod_runtime::{Embedded, Runtime};

use super::agent;
use super::build::Build;
use super::control::{self, Control, ImageRow};
use super::lock::Lock;
use super::nodes::Roster;
use super::settings::{Place, Which};
use super::transfer::{Access, Ask, Display, Moving, Way, Word};
use crate::failure::{Failure, chain};

/// The images of which nodes.
#[derive(Args, Debug)]
pub(crate) struct Nodes {
    #[command(flatten)]
    which: Which,
    /// On all nodes of the cluster on this machine, not on its own alone.
    #[arg(long)]
    all_nodes: bool,
}

impl Nodes {
    fn places(&self) -> Result<Vec<Place>, Failure> {
        let own = self.which.place()?;
        let roster = if self.all_nodes { Roster::load(&own)? } else { None };
        let further: Vec<_> = roster.map(|roster| roster.nodes(&own)).unwrap_or_default();
        Ok(std::iter::once(own).chain(further.into_iter().map(|node| node.place)).collect())
    }
}

/// A command on images.
#[derive(Subcommand, Debug)]
pub(crate) enum Image {
    /// Import the images of archives (docker save, or an OCI layout as a tar file).
    Import {
        #[command(flatten)]
        nodes: Nodes,
        /// The archives.
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Build an image from a Dockerfile.
    Build(Box<Build>),
    /// Import the images of an archive that comes by standard input (docker save | decapod image load).
    Load {
        #[command(flatten)]
        nodes: Nodes,
        /// Read this file in place of standard input.
        #[arg(short, long)]
        input: Option<PathBuf>,
    },
    /// Fetch images from their registries.
    Pull {
        #[command(flatten)]
        nodes: Nodes,
        #[command(flatten)]
        access: Access,
        /// Their names, such as nginx:1 or registry.example:5000/team/app@sha256:….
        #[arg(required = true)]
        references: Vec<String>,
    },
    /// Send an image to the registry that its name says.
    Push {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        access: Access,
        /// Its name, with a tag.
        reference: String,
    },
    /// List the images.
    Ls {
        #[command(flatten)]
        which: Which,
    },
    /// Remove images by name or id.
    Rm {
        #[command(flatten)]
        nodes: Nodes,
        /// Their names or ids.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// The running agent, or (where none runs) its files.
enum Images {
    Running(Control),
    Offline(Embedded, #[expect(dead_code, reason = "held so that no agent starts meanwhile")] Lock),
}

impl Images {
    async fn open(place: &Place) -> Result<Self, Failure> {
        if Lock::holder(place)?.is_some() {
            return Ok(Self::Running(Control::new(agent::socket(place))));
        }
        let lock = Lock::take(place)?;
        let runtime = agent::runtime(place, Arc::new(agent::NoNetwork)).await?;
        Ok(Self::Offline(runtime, lock))
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
            Self::Offline(runtime, _) => control::remove_unused(runtime, name).await.map_err(Failure::new),
        }
    }

    async fn transfer(&self, way: Way, reference: &str, ask: Ask) -> Result<Word, Failure> {
        let doing = if way == Way::Pull { "pulling" } else { "pushing" };
        let mut display = Display::new(format!("{doing} {reference}"));
        match self {
            Self::Running(control) => control.transfer(way, &ask, &mut display).await,
            Self::Offline(runtime, _) => {
                let mut moving = Moving::start(runtime.clone(), way, ask);
                while let Some(word) = moving.next().await {
                    if let Some(last) = display.hear(word)? {
                        return Ok(last);
                    }
                }
                Err(Failure::new("the transfer ended without a word"))
            }
        }
    }

    async fn import_and_tell(&self, path: &std::path::Path) -> Result<(), Failure> {
        for image in self.import(path).await? {
            println!("imported {} ({})", image.tags.join(", "), short(&image.id));
        }
        Ok(())
    }
}

/// What comes by standard input, in a file without a name, which is gone with this process.
struct Piped(std::fs::File);

impl Piped {
    fn read(place: &Place) -> Result<Self, Failure> {
        let mut file = std::fs::File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .open(place.data())
            .map_err(|e| Failure::new(format!("no file can be made in {}: {e}", place.data().display())))?;
        std::io::copy(&mut std::io::stdin().lock(), &mut file)
            .map_err(|e| Failure::new(format!("standard input cannot be kept: {e}")))?;
        Ok(Self(file))
    }

    async fn import(&self, images: &Images) -> Result<(), Failure> {
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()));
        let named = path.display().to_string();
        let imported = images.import_and_tell(&path).await;
        imported.map_err(|error| Failure::new(error.to_string().replace(&named, "standard input")))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn refused(error: decapod_runtime::Error) -> Failure {
    Failure::new(chain(&error))
}

impl Image {
    pub(crate) async fn run(&self) -> Result<(), Failure> {
        super::require_root("image")?;
        let places = match self {
            Self::Import { nodes, .. }
            | Self::Load { nodes, .. }
            | Self::Pull { nodes, .. }
            | Self::Rm { nodes, .. } => nodes.places()?,
            Self::Push { which, .. } | Self::Ls { which } => vec![which.place()?],
            Self::Build(build) => return build.run().await,
        };
        let piped = match self {
            Self::Load { input: None, .. } => Some(Piped::read(&places[0])?),
            _ => None,
        };
        for place in &places {
            if places.len() > 1 {
                println!("{}:", place.name());
            }
            self.on(&Images::open(place).await?, piped.as_ref()).await?;
        }
        Ok(())
    }

    /// Does it on one node.
    async fn on(&self, images: &Images, piped: Option<&Piped>) -> Result<(), Failure> {
        match self {
            Self::Import { archives, .. } => {
                for archive in archives {
                    let path = std::fs::canonicalize(archive)
                        .map_err(|e| Failure::new(format!("{} cannot be read: {e}", archive.display())))?;
                    images.import_and_tell(&path).await?;
                }
            }
            Self::Load { input: Some(file), .. } => {
                let path = std::fs::canonicalize(file)
                    .map_err(|e| Failure::new(format!("{} cannot be read: {e}", file.display())))?;
                images.import_and_tell(&path).await?;
            }
            Self::Load { input: None, .. } => {
                if let Some(piped) = piped {
                    piped.import(images).await?;
                }
            }
            Self::Pull { access, references, .. } => {
                let login = access.login()?;
                for reference in references {
                    let ask = access.ask(reference, login.as_ref())?;
                    if let Word::Pulled(image) = images.transfer(Way::Pull, reference, ask).await? {
                        println!("pulled {reference} ({}, {})", short(&image.id), size(image.bytes));
                    }
                }
            }
            Self::Push { access, reference, .. } => {
                let ask = access.ask(reference, access.login()?.as_ref())?;
                if let Word::Pushed(digest) = images.transfer(Way::Push, reference, ask).await? {
                    println!("pushed {reference} ({digest})");
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
