//! `decapod image build`: from a Dockerfile and a context to an image.
//!
//! Instructions that change files make a layer: of the upper directory of an overlay in which they were
//! carried out. What one made is remembered by all that it depends on, and is not made again.
//!
//! **Invariant**: however a build ends, nothing of it remains but images, and layers that are remembered.
//! Containers and directories of a build that died with its agent go when the next agent starts.

mod config;
mod copy;
mod run;
mod stage;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use decapod_proto::cri;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Embedded, Inner, blocking, new_id};
use crate::context::Ignore;
use crate::dockerfile::{self, Dockerfile, Instruction, Place, Stage, Step, expand};
use crate::error::{Error, Result};
use crate::image::{self, Reference};
use crate::protocol::now;
use crate::sys::durable;
use stage::State;

/// Marks the sandboxes of builds, with the id of the build.
pub(super) const LABEL: &str = "decapod.io/build";

/// Lines that whoever watches a build may be behind; its commands wait beyond that.
pub const PROGRESS_LINES: usize = 256;

/// What to build.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BuildRequest {
    /// The folder that `COPY` copies from.
    pub context: PathBuf,
    /// The Dockerfile.
    pub file: PathBuf,
    /// How errors name the Dockerfile.
    pub file_name: String,
    /// The names of the image.
    pub tags: Vec<String>,
    /// The stage to build, by name or number; the last one if not given.
    pub target: Option<String>,
    /// Values of `ARG`.
    pub args: BTreeMap<String, String>,
    /// More labels.
    pub labels: BTreeMap<String, String>,
    /// Makes everything anew.
    pub no_cache: bool,
    /// Where to write the image as an archive.
    pub output: Option<PathBuf>,
    /// `SOURCE_DATE_EPOCH`, in seconds since 1970: no time in the image is later, and what is made now has
    /// this one.
    pub epoch: Option<i64>,
}

/// Unpacks a context that is a tar archive, compressed or not, into an empty folder. It blocks.
///
/// # Errors
/// [`Error::Image`], whose cause names the entry that is wrong.
pub fn unpack_context(archive: impl Read, folder: &Path) -> Result<()> {
    let failed = |source: crate::error::Source| Error::Image { reference: "the context".to_owned(), source };
    let reader = image::decompress(archive).map_err(|error| failed(error.into()))?;
    image::unpack("of the context", reader, folder).map(drop).map_err(|error| failed(error.into()))
}

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Step(#[from] dockerfile::Error),
    #[error(transparent)]
    Image(#[from] image::Error),
    #[error("{0}")]
    Other(String),
    #[error("the build was cancelled")]
    Cancelled,
}

impl Embedded {
    /// Builds an image and says line by line what it does. Ends soon after it is cancelled.
    ///
    /// # Errors
    /// [`Error::Image`], whose cause names the file, the line and the instruction.
    pub async fn image_build(
        &self,
        request: BuildRequest,
        progress: mpsc::Sender<String>,
        cancel: CancellationToken,
    ) -> Result<cri::Image> {
        let reference =
            request.tags.first().cloned().unwrap_or_else(|| request.context.display().to_string());
        let built = Build::run(&self.inner, request, progress, cancel).await;
        built
            .map(|image| image.to_cri())
            .map_err(|failure| Error::Image { reference, source: Box::new(failure) })
    }

    /// Forgets what builds have made; returns how many bytes of layers that were.
    pub async fn builds_forget(&self) -> Result<u64> {
        let (images, used) = (Arc::clone(&self.inner.images), self.inner.used_layers());
        let forgotten = blocking("forget builds", move || images.forget_builds(&used)).await?;
        forgotten.map_err(|error| Error::internal("forget builds", error))
    }
}

impl Inner {
    /// Where builds have their directories.
    fn builds(&self) -> PathBuf {
        self.options.data_dir.join("builds")
    }

    /// Removes what builds left that died with their agent.
    pub(super) async fn recover_builds(&self) -> Result<()> {
        let sandboxes: Vec<_> = self.tables().sandboxes.values().cloned().collect();
        for sandbox in sandboxes {
            let record = sandbox.record().clone();
            if record.config.0.labels.contains_key(LABEL) {
                self.sandbox_remove(&record.id).await?;
            }
        }
        durable::remove_tree(&self.builds()).map_err(|error| Error::internal("remove builds", error))
    }
}

/// A build that is under way.
struct Build {
    inner: Arc<Inner>,
    id: String,
    request: BuildRequest,
    file: Dockerfile,
    ignore: Ignore,
    /// Its own directory.
    directory: PathBuf,
    progress: mpsc::Sender<String>,
    cancel: CancellationToken,
    /// Where its commands run, once there was one.
    sandbox: Option<String>,
    /// `ARG` before the first `FROM`.
    globals: BTreeMap<String, String>,
    /// Arguments of the request that an `ARG` asked for.
    asked: BTreeSet<String>,
    /// The stages that are done, by number.
    done: BTreeMap<usize, State>,
    /// Keeps the layers of this build.
    held: Vec<Arc<Vec<image::Layer>>>,
    /// Numbers of directories for steps.
    steps: usize,
    /// Instructions that are to be carried out.
    total: usize,
}

impl Build {
    async fn run(
        inner: &Arc<Inner>,
        request: BuildRequest,
        progress: mpsc::Sender<String>,
        cancel: CancellationToken,
    ) -> Result<Arc<image::Image>, Failure> {
        let tags = request.tags.iter().map(|tag| Reference::parse(tag)).collect::<Result<Vec<_>, _>>()?;
        let text = read_dockerfile(&request)?;
        let file = dockerfile::parse(&request.file_name, &text)?;
        let ignore = read_ignore(&request)?;
        let id = new_id();
        let directory = inner.builds().join(&id);
        fs::create_dir_all(&directory).map_err(|error| other(&directory, &error))?;
        let mut build = Build {
            inner: Arc::clone(inner),
            id,
            request,
            file,
            ignore,
            directory: directory.clone(),
            progress,
            cancel,
            sandbox: None,
            globals: BTreeMap::new(),
            asked: BTreeSet::new(),
            done: BTreeMap::new(),
            held: Vec::new(),
            steps: 0,
            total: 0,
        };
        let result = build.stages(&tags).await;
        if let Some(sandbox) = build.sandbox.take()
            && let Err(error) = build.inner.sandbox_remove(&sandbox).await
        {
            tracing::warn!(sandbox, error = error.chain(), "not cleaned up; the next start will");
        }
        let removed = blocking("remove a build", move || durable::remove_tree(&directory)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%error, "a build's directory is left; the next start removes it");
        }
        result
    }

    async fn stages(&mut self, tags: &[Reference]) -> Result<Arc<image::Image>, Failure> {
        self.globals()?;
        let stages = self.file.stages.clone();
        let target = self.target(&stages)?;
        let needed = self.needed(&stages, target)?;
        self.total = needed.iter().map(|number| stages[*number].steps.len() + 1).sum();
        let mut count = 0;
        for number in needed {
            let state = self.stage(&stages[number], number, &mut count).await?;
            self.done.insert(number, state);
        }
        for name in self.request.args.keys().filter(|name| !self.asked.contains(*name)) {
            if !is_proxy(name) {
                self.say(format!("warning: --build-arg {name}: no ARG asks for it")).await;
            }
        }
        let state =
            self.done.remove(&target).ok_or_else(|| Failure::Other("no stage was built".to_owned()))?;
        self.finish(state, tags).await
    }

    async fn finish(&mut self, mut state: State, tags: &[Reference]) -> Result<Arc<image::Image>, Failure> {
        for (name, value) in &self.request.labels {
            state.config.label(name, value);
        }
        let (document, config) = state.document();
        let (images, output) = (Arc::clone(&self.inner.images), self.request.output.clone());
        let (layers, tags) = (state.layers, tags.to_vec());
        let names: Vec<String> = tags.iter().filter_map(Reference::tagged).collect();
        let image = self
            .blocking(move || {
                let image = images.add_built(&document, config, layers, &tags)?;
                if let Some(output) = output {
                    images.export(&image, &names, &output)?;
                }
                Ok::<_, image::Error>(image)
            })
            .await??;
        Ok(image)
    }

    /// `ARG` before the first `FROM`.
    fn globals(&mut self) -> Result<(), Failure> {
        for step in self.file.args.clone() {
            let Instruction::Arg(args) = &step.instruction else { continue };
            for (name, default) in args {
                let value = match (self.request.args.get(name), default) {
                    (Some(value), _) => Some(value.clone()),
                    (None, Some(default)) => Some(self.expand_global(&step.place, default)?),
                    (None, None) => None,
                };
                self.asked.insert(name.clone());
                self.globals.extend(value.map(|value| (name.clone(), value)));
            }
        }
        Ok(())
    }

    fn expand_global(&self, place: &Place, text: &str) -> Result<String, Failure> {
        let lookup = |name: &str| self.globals.get(name).cloned().or_else(|| platform_arg(name));
        Ok(expand(text, self.file.escape, &lookup).map_err(|what| place.error(what))?)
    }

    /// The number of the stage to build.
    fn target(&self, stages: &[Stage]) -> Result<usize, Failure> {
        let Some(wanted) = &self.request.target else { return Ok(stages.len() - 1) };
        stage_number(stages, wanted).ok_or_else(|| {
            let names: Vec<&str> = stages.iter().filter_map(|stage| stage.name.as_deref()).collect();
            let file = &self.request.file_name;
            Failure::Other(format!(
                "--target {wanted}: {file} has no such stage: expected {}, or a number below {}",
                if names.is_empty() { "a name (it gives none)".to_owned() } else { names.join(", ") },
                stages.len()
            ))
        })
    }

    /// The stages that a stage is made of, in order, and itself.
    fn needed(&self, stages: &[Stage], target: usize) -> Result<Vec<usize>, Failure> {
        let mut needed = BTreeSet::new();
        let mut open = vec![target];
        while let Some(number) = open.pop() {
            if !needed.insert(number) {
                continue;
            }
            let (stage, earlier) = (&stages[number], &stages[..number]);
            let base = self.expand_global(&stage.place, &stage.base)?;
            open.extend(stage_named(earlier, &base));
            for step in &stage.steps {
                if let Instruction::Copy(copy) = &step.instruction
                    && let Some(from) = &copy.from
                {
                    open.extend(stage_number(earlier, from));
                }
            }
        }
        Ok(needed.into_iter().collect())
    }

    /// Builds one stage.
    async fn stage(&mut self, stage: &Stage, number: usize, count: &mut usize) -> Result<State, Failure> {
        let base = self.expand_global(&stage.place, &stage.base)?;
        *count += 1;
        let name = stage.name.as_ref().map(|name| format!(" AS {name}")).unwrap_or_default();
        self.say(format!("[{count}/{}] FROM {base}{name}", self.total)).await;
        if let Some(platform) = &stage.platform {
            let platform = self.expand_global(&stage.place, platform)?;
            if platform != own_platform() {
                let what = format!("--platform={platform}: expected {}, this machine's", own_platform());
                return Err(stage.place.error(what).into());
            }
        }
        let mut state = self.base(stage, &base, number).await?;
        for step in self.triggers(stage, &mut state)? {
            self.say(format!("ONBUILD {}", step.text)).await;
            self.step(&mut state, &step).await?;
        }
        for step in &stage.steps {
            *count += 1;
            self.say(format!("[{count}/{}] {}", self.total, first_line(&step.text))).await;
            self.step(&mut state, step).await?;
        }
        Ok(state)
    }

    /// What a stage begins with.
    async fn base(&mut self, stage: &Stage, base: &str, number: usize) -> Result<State, Failure> {
        if base.is_empty() {
            return Err(stage.place.error(format!("{:?} is empty: expected an image", stage.base)).into());
        }
        if base == "scratch" {
            return Ok(State::scratch());
        }
        if let Some(earlier) = stage_named(&self.file.stages[..number], base) {
            let state = self.done.get(&earlier).ok_or_else(|| stage.place.error("the stage is not built"))?;
            return Ok(state.next());
        }
        let image = self.image(&stage.place, base).await?;
        let images = Arc::clone(&self.inner.images);
        let layers = image.layers.clone();
        self.hold(&layers);
        let document = self.blocking(move || images.document(&image)).await??;
        Ok(State::of(document, layers))
    }

    /// An image, fetched if it is not here.
    async fn image(&self, place: &Place, name: &str) -> Result<Arc<image::Image>, Failure> {
        if let Some(image) = self.inner.images.find(name) {
            return Ok(image);
        }
        let pulled = self.inner.image_pull(name, &super::Transfer::default()).await;
        Ok(pulled.map_err(|error| place.error(error.chain()))?)
    }

    /// What the base image leaves to those who build on it.
    fn triggers(&self, stage: &Stage, state: &mut State) -> Result<Vec<Step>, Failure> {
        let mut steps = Vec::new();
        for text in state.config.take_triggers() {
            steps.extend(dockerfile::parse_trigger(&stage.place, &text)?);
        }
        Ok(steps)
    }

    /// Keeps layers until the build ends.
    fn hold(&mut self, layers: &[image::Layer]) {
        self.held.push(self.inner.images.hold(layers));
    }

    /// Whoever watches has the line; whether somebody does changes nothing.
    async fn say(&self, line: impl Into<String>) {
        self.progress.send(line.into()).await.ok();
    }

    /// A fresh directory for a step.
    fn step_directory(&mut self) -> Result<PathBuf, Failure> {
        self.steps += 1;
        let directory = self.directory.join(self.steps.to_string());
        fs::create_dir_all(&directory).map_err(|error| other(&directory, &error))?;
        Ok(directory)
    }

    /// Seconds since 1970 that what is made now has.
    fn time(&self) -> i64 {
        self.request.epoch.unwrap_or_else(|| now() / 1_000_000_000)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        if self.cancel.is_cancelled() {
            return Err(Failure::Cancelled);
        }
        blocking("build an image", work).await.map_err(|error| Failure::Other(error.chain()))
    }
}

fn other(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Other(format!("{}: {error}", path.display()))
}

fn read_dockerfile(request: &BuildRequest) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::Other(format!("{}: {error}", request.file_name));
    let file = fs::File::open(&request.file).map_err(failed)?;
    let mut content = Vec::new();
    file.take(dockerfile::MAX_BYTES as u64 + 1).read_to_end(&mut content).map_err(failed)?;
    String::from_utf8(content).map_err(|_| Failure::Other(format!("{}: is not UTF-8", request.file_name)))
}

/// The Dockerfile's own `.dockerignore` goes before the context's.
fn read_ignore(request: &BuildRequest) -> Result<Ignore, Failure> {
    let mut own = request.file.as_os_str().to_owned();
    own.push(".dockerignore");
    for path in [PathBuf::from(own), request.context.join(".dockerignore")] {
        match fs::read_to_string(&path) {
            Ok(text) => return Ok(Ignore::parse(&text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(other(&path, &error)),
        }
    }
    Ok(Ignore::default())
}

fn stage_named(stages: &[Stage], name: &str) -> Option<usize> {
    let name = name.to_ascii_lowercase();
    stages.iter().position(|stage| stage.name.as_ref() == Some(&name))
}

/// By name or number.
fn stage_number(stages: &[Stage], name: &str) -> Option<usize> {
    stage_named(stages, name).or_else(|| name.parse().ok().filter(|number| *number < stages.len()))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn own_platform() -> String {
    format!("linux/{}", image::architecture())
}

/// Arguments that say for what and on what is built: an `ARG` makes them known.
fn platform_arg(name: &str) -> Option<String> {
    match name {
        "TARGETPLATFORM" | "BUILDPLATFORM" => Some(own_platform()),
        "TARGETOS" | "BUILDOS" => Some("linux".to_owned()),
        "TARGETARCH" | "BUILDARCH" => Some(image::architecture().to_owned()),
        "TARGETVARIANT" | "BUILDVARIANT" => Some(String::new()),
        _ => None,
    }
}

/// Arguments that commands know without an `ARG`, and that no layer depends on.
fn is_proxy(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"].contains(&name.as_str())
}
