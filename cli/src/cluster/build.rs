//! `decapod image build`: an image from a Dockerfile.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use decapod_runtime::{BuildRequest, PROGRESS_LINES};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::control::ImageRow;
use super::lock::Lock;
use super::settings::{Place, Which};
use super::{agent, build_socket};
use crate::failure::{Failure, chain};

/// Where a context is looked for a Dockerfile, if none is named.
const FILES: [&str; 2] = ["Dockerfile", "Containerfile"];

/// How a build shows what it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Show {
    /// Line by line.
    #[default]
    Plain,
    /// The image's id alone.
    Quiet,
}

/// Build an image from a Dockerfile.
#[derive(Args, Debug)]
pub(crate) struct Build {
    #[command(flatten)]
    pub(super) which: Which,
    /// A name of the image; may be given several times.
    #[arg(short, long = "tag", value_name = "REF")]
    tags: Vec<String>,
    /// The Dockerfile (default: Dockerfile or Containerfile in the context).
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The stage to build, by name or number (default: the last).
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// The value of an ARG; without =VALUE that of the variable of this name.
    #[arg(long = "build-arg", value_name = "NAME=VALUE")]
    args: Vec<String>,
    /// A label for the image.
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
    /// Make everything anew, also what has not changed.
    #[arg(long)]
    no_cache: bool,
    /// Also write the image to an archive, for `image import`, skopeo or docker.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How to show what is done.
    #[arg(long, value_enum, default_value_t)]
    progress: Show,
    /// The folder that COPY copies from, or - for a tar archive on standard input.
    #[arg(id = "build-context", value_name = "CONTEXT")]
    context: PathBuf,
}

impl Build {
    /// Builds by the running agent or, where none runs, by its files.
    pub(crate) async fn run(&self) -> Result<(), Failure> {
        let place = self.which.place()?;
        let unpacked = self.unpacked()?;
        let context = unpacked.as_ref().map_or(self.context.as_path(), |folder| folder.0.as_path());
        let request = self.request(context)?;
        let (sender, receiver) = mpsc::channel(PROGRESS_LINES);
        let shown = show(receiver, self.progress);
        let cancel = CancellationToken::new();
        let building = build(&place, request, sender, cancel.clone());
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let both = async { tokio::join!(building, shown).0 };
        tokio::pin!(both);
        let image = tokio::select! {
            image = &mut both => image,
            _ = interrupt.recv() => {
                cancel.cancel();
                both.await
            }
            _ = terminate.recv() => {
                cancel.cancel();
                both.await
            }
        }?;
        match self.progress {
            Show::Quiet => println!("{}", image.id),
            Show::Plain if image.tags.is_empty() => println!("built {}", image.id),
            Show::Plain => println!("built {} ({})", self.tags.join(", "), super::image::short(&image.id)),
        }
        Ok(())
    }

    fn request(&self, context: &Path) -> Result<BuildRequest, Failure> {
        let context = std::fs::canonicalize(context)
            .map_err(|e| Failure::new(format!("the context {} cannot be read: {e}", context.display())))?;
        if !context.is_dir() {
            let what = format!("the context {} is no folder", context.display());
            return Err(Failure::new(what).hint("a tar archive can be given on standard input, as -"));
        }
        let file = self.dockerfile(&context)?;
        let output = self.output.as_ref().map(std::path::absolute).transpose()?;
        Ok(BuildRequest {
            file_name: self
                .file
                .as_ref()
                .unwrap_or(&file)
                .file_name()
                .map_or_else(|| file.display().to_string(), |name| name.to_string_lossy().into_owned()),
            context,
            file,
            tags: self.tags.clone(),
            target: self.target.clone(),
            args: build_args(&self.args)?,
            labels: labels(&self.labels)?,
            no_cache: self.no_cache,
            output,
            epoch: epoch(std::env::var("SOURCE_DATE_EPOCH").ok().as_deref())?,
        })
    }

    /// As it was named, or else in the context.
    fn dockerfile(&self, context: &Path) -> Result<PathBuf, Failure> {
        let Some(file) = &self.file else {
            let found = FILES.iter().map(|name| context.join(name)).find(|path| path.exists());
            return found.ok_or_else(|| {
                Failure::new(format!("{} has no Dockerfile", context.display())).hint("-f names another file")
            });
        };
        let found = [file.clone(), context.join(file)].into_iter().find(|path| path.exists());
        let found = found.ok_or_else(|| {
            Failure::new(format!("{} is not there, nor in {}", file.display(), context.display()))
        })?;
        Ok(std::path::absolute(found)?)
    }

    /// The context that comes on standard input.
    fn unpacked(&self) -> Result<Option<Folder>, Failure> {
        if self.context != Path::new("-") {
            return Ok(None);
        }
        let folder = Folder::new()?;
        let failed = |e: &(dyn std::error::Error + 'static)| {
            Failure::new(format!("the context on standard input cannot be unpacked: {}", chain(e)))
        };
        decapod_runtime::unpack_context(std::io::stdin().lock(), &folder.0).map_err(|e| failed(&e))?;
        Ok(Some(folder))
    }
}

/// A folder that goes with what holds it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, Failure> {
        let mut bytes = [0; 8];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let path = std::env::temp_dir().join(format!("decapod-context-{:016x}", u64::from_le_bytes(bytes)));
        std::fs::DirBuilder::new().create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "the unpacked context is left");
        }
    }
}

async fn build(
    place: &Place,
    request: BuildRequest,
    progress: mpsc::Sender<String>,
    cancel: CancellationToken,
) -> Result<ImageRow, Failure> {
    if Lock::holder(place)?.is_some() {
        return build_socket::request(&agent::socket(place), &request, &progress, &cancel).await;
    }
    let _lock = Lock::take(place)?;
    let runtime = agent::runtime(place, Arc::new(agent::NoNetwork)).await?;
    let built = runtime.image_build(request, progress, cancel).await;
    runtime.close().await;
    built.map(ImageRow::from).map_err(|e| Failure::new(chain(&e)))
}

async fn show(mut lines: mpsc::Receiver<String>, how: Show) {
    while let Some(line) = lines.recv().await {
        if how == Show::Plain {
            println!("{line}");
        }
    }
}

fn build_args(texts: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut found = BTreeMap::new();
    for text in texts {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text.as_str(), std::env::var(text).ok()),
        };
        if name.is_empty() {
            return Err(Failure::new(format!("--build-arg {text}: expected NAME=VALUE")));
        }
        found.extend(value.map(|value| (name.to_owned(), value)));
    }
    Ok(found)
}

fn labels(texts: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let pair = |text: &String| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        match name.is_empty() {
            true => Err(Failure::new(format!("--label {text}: expected NAME=VALUE"))),
            false => Ok((name.to_owned(), value.to_owned())),
        }
    };
    texts.iter().map(pair).collect()
}

fn epoch(text: Option<&str>) -> Result<Option<i64>, Failure> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let seconds = text.parse().ok().filter(|seconds| *seconds >= 0);
    seconds
        .map(Some)
        .ok_or_else(|| Failure::new(format!("SOURCE_DATE_EPOCH={text}: expected seconds since 1970")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_names() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let found = build_args(&texts(&["A=1=2", "B="])).unwrap();
        assert_eq!((found["A"].as_str(), found["B"].as_str()), ("1=2", ""));
        assert!(build_args(&texts(&["=x"])).unwrap_err().to_string().contains("NAME=VALUE"));
        assert_eq!(labels(&texts(&["flag"])).unwrap()["flag"], "");
        assert_eq!(epoch(Some("17")).unwrap(), Some(17));
        assert_eq!(epoch(None).unwrap(), None);
        assert!(epoch(Some("-1")).is_err() && epoch(Some("x")).is_err());
    }
}
