//! A stage on its way: its layers, its configuration, and what its instructions do to them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use super::config::Config;
use super::{Build, Failure, is_proxy, platform_arg, view};
use crate::context::{Owner, Placer};
use crate::dockerfile::{Command, Instruction, Pair, Place, Step, expand};
use crate::image::{self, ImageConfig, Layer, Made, digest_of};

/// Changes whenever instructions come to make something else of the same.
const CACHE_VERSION: u32 = 1;

/// A stage as far as it is built.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// The lowest first.
    pub(super) layers: Vec<Layer>,
    pub(super) config: Config,
    /// Arguments that are known from here on.
    pub(super) args: BTreeMap<String, String>,
    history: Vec<Value>,
    author: Option<Value>,
    /// When the last layer was made, in seconds since 1970.
    created: Option<i64>,
    /// Whether this stage has a `CMD` of its own: an `ENTRYPOINT` drops that of the base image.
    own_cmd: bool,
}

impl State {
    /// Nothing.
    pub(super) fn scratch() -> Self {
        State {
            layers: Vec::new(),
            config: Config::default(),
            args: BTreeMap::new(),
            history: Vec::new(),
            author: None,
            created: None,
            own_cmd: false,
        }
    }

    /// An image.
    pub(super) fn of(mut document: Value, layers: Vec<Layer>) -> Self {
        let created = document["created"].as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
        State {
            layers,
            config: Config::new(Some(document["config"].take())),
            history: document["history"].as_array().cloned().unwrap_or_default(),
            author: Some(document["author"].take()).filter(Value::is_string),
            created: created.map(jiff::Timestamp::as_second),
            ..State::scratch()
        }
    }

    /// A stage that begins where this one ended.
    pub(super) fn next(&self) -> Self {
        State { args: BTreeMap::new(), own_cmd: false, ..self.clone() }
    }

    /// The image's document, and the part of it that the runtime needs.
    pub(super) fn document(&self) -> (Value, ImageConfig) {
        let diff_ids: Vec<&str> = self.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let mut document = json!({
            "architecture": image::architecture(),
            "os": "linux",
            "config": self.config.to_json(),
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": self.history,
        });
        if let Some(created) = self.created {
            document["created"] = timestamp(created);
        }
        if let Some(author) = &self.author {
            document["author"] = author.clone();
        }
        (document, self.config.to_image())
    }

    /// Notes what was done.
    fn note(&mut self, step: &Step, layer: bool) {
        let mut entry = json!({ "created_by": step.text });
        if let Some(created) = self.created {
            entry["created"] = timestamp(created);
        }
        if !layer {
            entry["empty_layer"] = true.into();
        }
        self.history.push(entry);
    }

    /// Takes what a step has made.
    pub(super) fn take(&mut self, step: &Step, made: Made) {
        let layer = made.layer.is_some();
        if layer {
            self.created = Some(made.at);
        }
        self.layers.extend(made.layer);
        self.note(step, layer);
    }

    /// By what a step's result is remembered: all that it depends on.
    pub(super) fn key(&self, text: &str, depends: &Value) -> String {
        let diff_ids: Vec<&str> = self.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let all = json!([
            CACHE_VERSION,
            diff_ids,
            self.config.env(),
            self.config.text("User"),
            self.config.text("WorkingDir"),
            text,
            depends,
        ]);
        digest_of(all.to_string().as_bytes())
    }

    /// An absolute path, in the working directory if it is not absolute itself.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        let working = PathBuf::from("/").join(self.config.text("WorkingDir"));
        let mut normal = PathBuf::from("/");
        for part in working.join(path).components() {
            match part {
                std::path::Component::Normal(name) => normal.push(name),
                std::path::Component::ParentDir => drop(normal.pop()),
                _ => {}
            }
        }
        normal
    }

    /// The directories of the layers, as overlayfs wants them.
    pub(super) fn lower(&self) -> Vec<String> {
        self.layers.iter().rev().map(Layer::directory).collect()
    }
}

fn timestamp(seconds: i64) -> Value {
    let time = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    time.to_string().into()
}

impl Build {
    /// Replaces variables: those of the image go before arguments.
    pub(super) fn expand(&self, state: &State, place: &Place, text: &str) -> Result<String, Failure> {
        let lookup = |name: &str| state.config.variable(name).or_else(|| state.args.get(name).cloned());
        Ok(expand(text, self.file.escape, &lookup).map_err(|what| place.error(what))?)
    }

    fn expand_all(&self, state: &State, place: &Place, texts: &[String]) -> Result<Vec<String>, Failure> {
        texts.iter().map(|text| self.expand(state, place, text)).collect()
    }

    fn expand_pairs(&self, state: &State, place: &Place, pairs: &[Pair]) -> Result<Vec<Pair>, Failure> {
        // All see what was before the instruction.
        let both =
            |(name, value): &Pair| Ok((self.expand(state, place, name)?, self.expand(state, place, value)?));
        pairs.iter().map(both).collect()
    }

    /// Carries out one instruction.
    pub(super) async fn step(&mut self, state: &mut State, step: &Step) -> Result<(), Failure> {
        if self.cancel.is_cancelled() {
            return Err(Failure::Cancelled);
        }
        let place = &step.place;
        match &step.instruction {
            Instruction::Run(run) => return self.run_step(state, step, run).await,
            Instruction::Copy(copy) => return self.copy_step(state, step, copy).await,
            Instruction::Workdir(path) => return self.workdir(state, step, path).await,
            Instruction::Arg(args) => self.args(state, place, args)?,
            Instruction::Env(pairs) => {
                for (name, value) in self.expand_pairs(state, place, pairs)? {
                    if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                        return Err(place.error(format!("{name:?}={value:?}: is no variable")).into());
                    }
                    state.config.set_variable(&name, &value);
                }
            }
            Instruction::Label(pairs) => {
                for (name, value) in self.expand_pairs(state, place, pairs)? {
                    state.config.label(&name, &value);
                }
            }
            Instruction::User(user) => {
                let user = self.expand(state, place, user)?;
                state.config.set("User", user);
            }
            Instruction::Volume(paths) => {
                for path in self.expand_all(state, place, paths)? {
                    state.config.add("Volumes", path);
                }
            }
            Instruction::Expose(ports) => {
                for port in self.expand_all(state, place, ports)? {
                    for port in exposed(&port).map_err(|what| place.error(what))? {
                        state.config.add("ExposedPorts", port);
                    }
                }
            }
            Instruction::StopSignal(signal) => {
                let signal = self.expand(state, place, signal)?;
                state.config.set("StopSignal", signal);
            }
            simple => set_simple(state, simple),
        }
        state.note(step, false);
        Ok(())
    }

    fn args(
        &mut self,
        state: &mut State,
        place: &Place,
        args: &[(String, Option<String>)],
    ) -> Result<(), Failure> {
        for (name, default) in args {
            let given = self.request.args.get(name).cloned();
            let value = match (given, default) {
                (Some(value), _) => Some(value),
                (None, Some(default)) => Some(self.expand(state, place, default)?),
                (None, None) => self.globals.get(name).cloned().or_else(|| platform_arg(name)),
            };
            self.asked.insert(name.clone());
            state.args.extend(value.map(|value| (name.clone(), value)));
        }
        Ok(())
    }

    /// Arguments as variables of a command; those of the image go before. Also those that nothing depends on.
    pub(super) fn arg_variables(
        &self,
        state: &State,
    ) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        let free = |name: &String| state.config.variable(name).is_none();
        let args = state.args.iter().filter(|(name, _)| free(name) && !is_proxy(name));
        let proxies = self.request.args.iter().filter(|(name, _)| free(name) && is_proxy(name));
        let own = |(name, value): (&String, &String)| (name.clone(), value.clone());
        (args.map(own).collect(), proxies.map(own).collect())
    }

    async fn workdir(&mut self, state: &mut State, step: &Step, path: &str) -> Result<(), Failure> {
        let path = self.expand(state, &step.place, path)?;
        if path.is_empty() {
            return Err(step.place.error("the path is empty").into());
        }
        let path = state.path(&path);
        let key = state.key("WORKDIR", &json!([path, self.request.epoch]));
        if !self.remembered(state, step, &key).await {
            let (place, made) = (step.place.clone(), path.clone());
            let work = move |view: &view::View| {
                let placer = Placer::new(view.root(), Owner::Given(0, 0), None);
                placer.and_then(|mut placer| placer.directory(&made)).map_err(|e| place.error(e.to_string()))
            };
            self.change(state, step, &key, work).await?;
        }
        state.config.set("WorkingDir", path.display().to_string());
        Ok(())
    }

    /// Takes what an earlier build has made, if it is to be taken and there.
    pub(super) async fn remembered(&mut self, state: &mut State, step: &Step, key: &str) -> bool {
        if self.request.no_cache {
            return false;
        }
        let (images, wanted) = (Arc::clone(&self.inner.images), key.to_owned());
        let Ok(Some(made)) = self.blocking(move || images.made(&wanted)).await else { return false };
        state.take(step, made);
        self.hold(&state.layers.clone());
        self.say("CACHED").await;
        true
    }

    /// Changes files in a view of the stage, and makes a layer of it.
    pub(super) async fn change<F>(
        &mut self,
        state: &mut State,
        step: &Step,
        key: &str,
        work: F,
    ) -> Result<(), Failure>
    where
        F: FnOnce(&view::View) -> Result<(), crate::dockerfile::Error> + Send + 'static,
    {
        let directory = self.step_directory()?;
        let (base, lower, own) = (self.inner.images.layers(), state.lower(), directory.clone());
        let place = step.place.clone();
        self.blocking(move || view::change(base, lower, own, &place, work)).await??;
        self.commit(state, step, key, directory.join("upper")).await
    }

    /// Makes a layer of an upper directory.
    pub(super) async fn commit(
        &mut self,
        state: &mut State,
        step: &Step,
        key: &str,
        upper: PathBuf,
    ) -> Result<(), Failure> {
        let (images, key) = (Arc::clone(&self.inner.images), key.to_owned());
        let (at, epoch) = (self.time(), self.request.epoch);
        let made = self.blocking(move || images.commit(&key, &upper, at, epoch)).await?;
        let made = made.map_err(|error| step.place.error(crate::error::chain(&error)))?;
        state.take(step, made);
        self.hold(&state.layers.clone());
        Ok(())
    }
}

/// Instructions that set a field as it is.
fn set_simple(state: &mut State, instruction: &Instruction) {
    match instruction {
        Instruction::Cmd(command) => {
            let words = configured(command, &state.config.shell());
            state.config.set("Cmd", words);
            state.own_cmd = true;
        }
        Instruction::Entrypoint(command) => {
            let words = configured(command, &state.config.shell());
            state.config.set("Entrypoint", words);
            if !state.own_cmd {
                state.config.unset("Cmd");
            }
        }
        Instruction::Shell(shell) => state.config.set("Shell", shell.clone()),
        Instruction::Healthcheck(check) => state.config.healthcheck(check),
        Instruction::OnBuild(text) => state.config.trigger(text),
        Instruction::Maintainer(author) => state.author = Some(author.as_str().into()),
        _ => {}
    }
}

fn configured(command: &Command, shell: &[String]) -> Vec<String> {
    command.words(shell)
}

/// `80`, `80/udp`, `8000-8010/tcp` as an image's configuration has them.
fn exposed(text: &str) -> Result<Vec<String>, String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let expected = || format!("{text:?}: expected PORT, PORT/PROTOCOL or FIRST-LAST, with tcp, udp or sctp");
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(expected);
    let (first, last) = (number(first)?, number(last)?);
    if first > last || !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return Err(expected());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_protocols() {
        assert_eq!(exposed("80").unwrap(), ["80/tcp"]);
        assert_eq!(exposed("53/UDP").unwrap(), ["53/udp"]);
        assert_eq!(exposed("8000-8002").unwrap().len(), 3);
        for bad in ["", "0", "x", "80/http", "9-8", "70000"] {
            assert!(exposed(bad).unwrap_err().contains("expected PORT"), "{bad}");
        }
    }

    #[test]
    fn paths_are_in_the_working_directory() {
        let mut state = State::scratch();
        assert_eq!(state.path("a/../b"), PathBuf::from("/b"));
        state.config.set("WorkingDir", "/app");
        assert_eq!(state.path("./x"), PathBuf::from("/app/x"));
        assert_eq!(state.path("../../../etc"), PathBuf::from("/etc"));
        assert_eq!(state.path("/abs"), PathBuf::from("/abs"));
    }

    #[test]
    fn an_entrypoint_drops_the_inherited_command() {
        let document = json!({ "created": "1970-01-01T00:00:07Z", "config": { "Cmd": ["base"] } });
        let mut state = State::of(document, Vec::new());
        let entry = Instruction::Entrypoint(Command::Exec(vec!["/x".into()]));
        set_simple(&mut state, &entry);
        assert!(state.document().1.cmd.is_empty());
        set_simple(&mut state, &Instruction::Cmd(Command::Shell("run it".into())));
        set_simple(&mut state, &entry);
        let (document, config) = state.document();
        assert_eq!(config.cmd, ["/bin/sh", "-c", "run it"]);
        assert_eq!(document["created"], "1970-01-01T00:00:07Z");
    }
}
