//! `COPY` and `ADD`.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use decapod_proto::cri;
use serde_json::json;

use super::stage::State;
use super::view::View;
use super::{Build, Failure, stage_number};
use crate::context::{Ignore, Owner, Placer, Selection, Source, Target};
use crate::dockerfile::{Copy, Error, Place, Step};
use crate::error::chain;
use crate::image::{self, Layer};
use crate::local::user;

/// How compressed archives begin that are not unpacked.
const UNKNOWN_ARCHIVES: [(&[u8], &str); 2] = [(b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz")];

/// Where a tar header says that it is one.
const MAGIC_AT: usize = 257;

/// All that a copy needs where it is carried out.
struct Plan {
    place: Place,
    add: bool,
    sources: Vec<String>,
    /// Names and contents.
    inline: Vec<(String, String)>,
    target: Target,
    from: Origin,
    ignore: Ignore,
    chown: Option<String>,
    chmod: Option<u32>,
    /// A directory for what is unpacked.
    scratch: PathBuf,
}

/// Where a copy's sources are.
#[derive(Clone)]
enum Origin {
    Context(PathBuf),
    Layers(Vec<Layer>),
}

impl Build {
    pub(super) async fn copy_step(
        &mut self,
        state: &mut State,
        step: &Step,
        copy: &Copy,
    ) -> Result<(), Failure> {
        let plan = self.plan(state, step, copy).await?;
        // Of a context what is copied counts, of layers those themselves.
        let content = match &plan.from {
            Origin::Context(context) => {
                let (context, ignore) = (context.clone(), plan.ignore.clone());
                let (sources, place) = (plan.sources.clone(), step.place.clone());
                let work = move || -> Result<String, crate::context::Error> {
                    let source = Source::open(&context, ignore)?;
                    source.digest(&source.select(&sources)?, Owner::Given(0, 0))
                };
                self.blocking(work).await?.map_err(|error| place.error(error.to_string()))?
            }
            Origin::Layers(layers) => layers.iter().map(|layer| layer.diff_id.as_str()).collect(),
        };
        let depends = json!([
            content,
            plan.sources,
            plan.inline,
            plan.target.path,
            plan.target.directory,
            plan.chown,
            plan.chmod,
            copy.exclude,
            self.request.epoch,
        ]);
        let key = state.key(if copy.add { "ADD" } else { "COPY" }, &depends);
        if self.remembered(state, step, &key).await {
            return Ok(());
        }
        self.change(state, step, &key, move |view| plan.carry_out(view)).await
    }

    async fn plan(&mut self, state: &State, step: &Step, copy: &Copy) -> Result<Plan, Failure> {
        let place = &step.place;
        let mut sources = Vec::new();
        for source in &copy.sources {
            let source = self.expand(state, place, source)?;
            if source.is_empty() {
                return Err(place.error("a source is empty").into());
            }
            sources.push(source);
        }
        let mut inline = Vec::new();
        for file in &copy.inline {
            let content = match file.expand {
                true => self.expand(state, place, &file.content)?,
                false => file.content.clone(),
            };
            inline.push((file.name.clone(), content));
        }
        let target = self.expand(state, place, &copy.target)?;
        let directory = target.is_empty() || target.ends_with('/') || target.ends_with("/.") || target == ".";
        let chown = copy.chown.as_ref().map(|text| self.expand(state, place, text)).transpose()?;
        let chmod = copy.chmod.as_ref().map(|text| self.expand(state, place, text)).transpose()?;
        let chmod = chmod.map(|text| mode(&text).map_err(|what| place.error(what))).transpose()?;
        let (from, ignore) = match &copy.from {
            Some(from) => (Origin::Layers(self.layers(place, from).await?), Ignore::default()),
            None => (Origin::Context(self.request.context.clone()), self.ignore.clone()),
        };
        Ok(Plan {
            place: place.clone(),
            add: copy.add,
            sources,
            inline,
            target: Target { path: state.path(&target), directory },
            from,
            ignore: ignore.with(&copy.exclude),
            chown,
            chmod,
            scratch: self.step_directory()?,
        })
    }

    /// The layers of an earlier stage or of an image.
    async fn layers(&mut self, place: &Place, from: &str) -> Result<Vec<Layer>, Failure> {
        if let Some(number) = stage_number(&self.file.stages, from) {
            let done = self.done.get(&number).map(|state| state.layers.clone());
            return Ok(done.ok_or_else(|| place.error(format!("--from={from}: is not before this stage")))?);
        }
        let layers = self.image(place, from).await?.layers.clone();
        self.hold(&layers);
        Ok(layers)
    }
}

impl Plan {
    fn carry_out(self, view: &View) -> Result<(), Error> {
        let failed = |error: crate::context::Error| self.place.error(error.to_string());
        let owner = self.owner(view.root())?;
        let mut placer = Placer::new(view.root(), owner, self.chmod).map_err(failed)?;
        for (name, content) in &self.inline {
            let path = match self.target.directory || self.inline.len() + self.sources.len() > 1 {
                true => self.target.path.join(name),
                false => self.target.path.clone(),
            };
            placer.write(&path, content.as_bytes()).map_err(failed)?;
        }
        if self.sources.is_empty() {
            return Ok(());
        }
        match &self.from {
            Origin::Context(context) => {
                let source = Source::open(context, self.ignore.clone()).map_err(failed)?;
                self.copy(&source, &mut placer)
            }
            Origin::Layers(layers) => {
                let lower: Vec<String> = layers.iter().rev().map(Layer::directory).collect();
                let mounted = view.other(&lower, &self.scratch.join("from"));
                let mounted = mounted
                    .map_err(|error| self.place.error(format!("its source cannot be mounted: {error}")))?;
                let source = Source::open(mounted.root(), self.ignore.clone()).map_err(failed)?;
                self.copy(&source, &mut placer)
            }
        }
    }

    fn copy(&self, source: &Source, placer: &mut Placer) -> Result<(), Error> {
        let failed = |error: crate::context::Error| self.place.error(error.to_string());
        let selection = source.select(&self.sources).map_err(failed)?;
        if !self.add {
            return placer.copy(source, &selection, &self.target).map_err(failed);
        }
        let many = selection.items.len() > 1;
        let mut files = Selection { items: Vec::new() };
        for (number, item) in selection.items.into_iter().enumerate() {
            let [node] = item.nodes.as_slice() else {
                files.items.push(item);
                continue;
            };
            let shown = node.path.display().to_string();
            let is_file = node.kind == nix::sys::stat::SFlag::S_IFREG;
            match is_file && self.is_archive(&shown, source.file(node).map_err(failed)?)? {
                true => {
                    let directory = self.scratch.join(format!("archive-{number}"));
                    self.unpack(&shown, source.file(node).map_err(failed)?, &directory, placer)?;
                }
                false => files.items.push(item),
            }
        }
        let target = Target { directory: self.target.directory || many, ..self.target.clone() };
        match files.items.is_empty() {
            true => Ok(()),
            false => placer.copy(source, &files, &target).map_err(failed),
        }
    }

    /// Whether a file is an archive that is to be unpacked.
    fn is_archive(&self, shown: &str, file: File) -> Result<bool, Error> {
        let failed = |error: io::Error| self.place.error(format!("{shown}: cannot be read: {error}"));
        let mut start = Vec::new();
        let mut file = BufReader::new(file);
        Read::by_ref(&mut file).take(6).read_to_end(&mut start).map_err(failed)?;
        let looks_like_tar = shown.contains(".tar") || shown.ends_with(".txz") || shown.ends_with(".tbz2");
        for (magic, name) in UNKNOWN_ARCHIVES {
            if start.starts_with(magic) && looks_like_tar {
                return Err(self.place.error(format!(
                    "{shown}: archives in {name} are not unpacked here: expected tar, tar.gz or tar.zst"
                )));
            }
        }
        let mut head = Vec::new();
        // What only looks compressed is a file like any other.
        let Ok(plain) = image::decompress(io::Cursor::new(start).chain(file)) else { return Ok(false) };
        let read = plain.take(512).read_to_end(&mut head);
        Ok(read.is_ok() && head.get(MAGIC_AT..MAGIC_AT + 5) == Some(b"ustar"))
    }

    fn unpack(&self, shown: &str, file: File, directory: &Path, placer: &mut Placer) -> Result<(), Error> {
        let failed = |error: io::Error| self.place.error(format!("{shown}: cannot be unpacked: {error}"));
        std::fs::create_dir_all(directory).map_err(failed)?;
        let reader = image::decompress(BufReader::new(file)).map_err(failed)?;
        image::unpack(shown, reader, directory).map_err(|error| self.place.error(chain(&error)))?;
        let failed = |error: crate::context::Error| self.place.error(error.to_string());
        let source = Source::open(directory, Ignore::default()).map_err(failed)?;
        let all = source.select(&[".".to_owned()]).map_err(failed)?;
        let target = Target { directory: true, ..self.target.clone() };
        placer
            .keeping_owners(self.chown.is_none(), |placer| placer.copy(&source, &all, &target))
            .map_err(failed)
    }

    /// Whose the files are: root's, if from the context; as they are, if from an image.
    fn owner(&self, root: &Path) -> Result<Owner, Error> {
        let Some(text) = &self.chown else {
            return Ok(match self.from {
                Origin::Context(_) => Owner::Given(0, 0),
                Origin::Layers(_) => Owner::Kept,
            });
        };
        let context = cri::LinuxContainerSecurityContext::default();
        let user = user::resolve(root, &context, text)
            .map_err(|error| self.place.error(format!("--chown={text}: {}", error.chain())))?;
        // A number without a group stands for both.
        let gid = match text.parse::<u32>() {
            Ok(uid) => uid,
            Err(_) => user.gid,
        };
        Ok(Owner::Given(user.uid, gid))
    }
}

fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
    mode.ok_or_else(|| format!("--chmod={text}: expected octal permissions such as 755"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_octal() {
        assert_eq!(mode("0755"), Ok(0o755));
        for bad in ["u+x", "999", "77777", ""] {
            assert!(mode(bad).unwrap_err().contains("expected octal"), "{bad}");
        }
    }
}
