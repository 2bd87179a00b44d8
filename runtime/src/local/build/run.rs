//! `RUN`: commands in containers like any other, whose changes become a layer.
//!
//! They have the machine's network, since what they run fetches packages; otherwise they may do what a
//! container of a pod may that asks for nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use decapod_proto::cri;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, mkfifo, unlinkat};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::stage::State;
use super::{Build, Failure, LABEL, other};
use crate::dockerfile::{Run, Step};
use crate::image::{Image, digest_of};
use crate::local::state::Phase;
use crate::sys::rooted;

/// Where a script is that has an interpreter of its own: on a file system that no layer has.
const SCRIPT: &str = "/dev/decapod-script";

/// Longest line that is put together; more of it is another line.
const MAX_LINE: usize = 64 * 1024;

/// What the runtime needs mount points for, parents first. What an image does not have of it is made for
/// the container and is no change of the command.
const MOUNT_POINTS: [&str; 7] = ["proc", "sys", "dev", "etc", "etc/hosts", "etc/hostname", "etc/resolv.conf"];

impl Build {
    pub(super) async fn run_step(
        &mut self,
        state: &mut State,
        step: &Step,
        run: &Run,
    ) -> Result<(), Failure> {
        let (args, proxies) = self.arg_variables(state);
        let words = match &run.script {
            Some(_) => vec![SCRIPT.to_owned()],
            None => run.command.words(&state.config.shell()),
        };
        if words.is_empty() {
            return Err(step.place.error("the command is empty: expected a program").into());
        }
        let key = state.key("RUN", &json!([words, run.script, run.scratch, args, self.request.epoch]));
        if self.remembered(state, step, &key).await {
            return Ok(());
        }
        let directory = self.step_directory()?;
        let variables: BTreeMap<String, String> = args.into_iter().chain(proxies).collect();
        let mounts = mounts(run, &directory).map_err(|error| other(&directory, &error))?;
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: format!("step-{}", self.steps), attempt: 0 }),
            command: words,
            envs: variables
                .into_iter()
                .map(|(key, value)| cri::KeyValue { key, value: value.into_bytes() })
                .collect(),
            mounts,
            log_path: format!("{}/output", self.steps),
            linux: Some(cri::LinuxContainerConfig {
                resources: Some(Default::default()),
                security_context: Some(Default::default()),
            }),
            ..Default::default()
        };
        let sandbox = self.sandbox(step).await?;
        let failed = |error: crate::Error| step.place.error(error.chain());
        let image = synthetic(state);
        let container =
            self.inner.container_create_of(&sandbox, &config, Arc::new(image)).await.map_err(failed)?;
        let result = self.run_container(state, step, run, &sandbox, &container, &directory, &key).await;
        let removed = self.inner.container_remove(&container).await.map_err(failed);
        result?;
        Ok(removed?)
    }

    #[expect(clippy::too_many_arguments, reason = "the two halves of one function")]
    async fn run_container(
        &mut self,
        state: &mut State,
        step: &Step,
        run: &Run,
        sandbox: &str,
        container: &str,
        directory: &Path,
        key: &str,
    ) -> Result<(), Failure> {
        let rootfs = self.inner.paths.rootfs(sandbox, container);
        let wanted = MOUNT_POINTS.iter().map(PathBuf::from);
        let wanted = wanted.chain(run.scratch.iter().map(|path| PathBuf::from(path.trim_start_matches('/'))));
        let missing: Vec<PathBuf> = wanted.filter(|path| !is_there(&rootfs, path)).collect();
        let code = self.follow(step, container, &directory.join("output")).await?;
        if code != 0 {
            let what = format!("the command ended with exit code {code}{}", self.because(container));
            return Err(step.place.error(what).into());
        }
        let upper = self.inner.paths.container(sandbox, container).join("upper");
        let cleaned = self.blocking(move || remove_missing(&rootfs, &missing)).await?;
        cleaned.map_err(|error| step.place.error(format!("mount points cannot be removed: {error}")))?;
        self.commit(state, step, key, upper).await
    }

    /// What the runtime knows about the end beyond the code.
    fn because(&self, container: &str) -> String {
        match self.inner.container(container).map(|container| container.phase()) {
            Ok(Phase::Exited(_, exit)) if exit.oom => ": the machine ran out of memory".to_owned(),
            Ok(Phase::Exited(_, exit)) if !exit.message.is_empty() => format!(": {}", exit.message),
            _ => String::new(),
        }
    }

    /// Starts the container, passes its output on, and waits for its end.
    async fn follow(&mut self, step: &Step, container: &str, output: &Path) -> Result<i32, Failure> {
        mkfifo(output, Mode::from_bits_truncate(0o600)).map_err(|errno| other(output, &errno.into()))?;
        // Open for writing as well: it has no end before the container's.
        let mut pipe = pipe::OpenOptions::new()
            .read_write(true)
            .open_receiver(output)
            .map_err(|error| other(output, &error))?;
        let known = self.inner.container(container).map_err(|error| Failure::Other(error.chain()))?;
        let mut phase = known.phase.subscribe();
        let started = self.inner.container_start(container).await;
        started.map_err(|error| step.place.error(error.chain()))?;
        let mut lines = Lines::default();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let exited = async { phase.wait_for(|phase| matches!(phase, Phase::Exited(..))).await.is_ok() };
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => {
                    self.stop(container, &mut pipe).await?;
                    return Err(Failure::Cancelled);
                }
                read = pipe.read(&mut buffer) => {
                    let read = read.map_err(|error| other(output, &error))?;
                    for line in lines.push(&buffer[..read]) {
                        self.say(line).await;
                    }
                }
                _ = exited => break,
            }
        }
        // The shim has written everything before it told of the end.
        loop {
            match pipe.try_read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    for line in lines.push(&buffer[..read]) {
                        self.say(line).await;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(other(output, &error)),
            }
        }
        let phase = phase.borrow().clone();
        match phase {
            Phase::Exited(_, exit) => Ok(exit.code),
            _ => Err(Failure::Other("the runtime ended".to_owned())),
        }
    }

    /// Ends a container. Its shim writes what it said last, and waits where nobody reads it.
    async fn stop(&self, container: &str, pipe: &mut pipe::Receiver) -> Result<(), Failure> {
        let mut unread = tokio::io::sink();
        let stopped = tokio::select! {
            stopped = self.inner.container_stop(container, Duration::ZERO) => stopped,
            // Has no end: it is open for writing as well.
            _ = tokio::io::copy(pipe, &mut unread) => Ok(()),
        };
        stopped.map_err(|error| Failure::Other(error.chain()))
    }

    /// The sandbox in which all commands of this build run.
    async fn sandbox(&mut self, step: &Step) -> Result<String, Failure> {
        if let Some(sandbox) = &self.sandbox {
            return Ok(sandbox.clone());
        }
        let name = format!("build-{}", &self.id[..12]);
        // Beside the shims' group, which is of this cluster alone.
        let beside = self.inner.options.shim_cgroup.as_deref().unwrap_or("/decapod");
        let namespaces = cri::NamespaceOption {
            network: cri::NamespaceMode::Node.into(),
            pid: cri::NamespaceMode::Container.into(),
            ..Default::default()
        };
        let config = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata { name: name.clone(), ..Default::default() }),
            log_directory: self.directory.display().to_string(),
            labels: [(LABEL.to_owned(), self.id.clone())].into(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: format!("{beside}-{name}"),
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let made = self.inner.sandbox_run(&config, "").await;
        let id = made.map_err(|error| step.place.error(error.chain()))?;
        self.sandbox = Some(id.clone());
        Ok(id)
    }
}

/// An image of a stage as far as it is built; only its container knows it.
fn synthetic(state: &State) -> Image {
    let (document, mut config) = state.document();
    // What is run is given.
    config.entrypoint = Vec::new();
    Image::unnamed(digest_of(document.to_string().as_bytes()), state.layers.clone(), config)
}

/// A script, and directories that leave nothing in the image.
fn mounts(run: &Run, directory: &Path) -> io::Result<Vec<cri::Mount>> {
    use std::os::unix::fs::PermissionsExt;
    let mut mounts = Vec::new();
    if let Some(script) = &run.script {
        let path = directory.join("script");
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        mounts.push(mount(SCRIPT, &path, true));
    }
    for (number, target) in run.scratch.iter().enumerate() {
        let path = directory.join(format!("scratch-{number}"));
        fs::create_dir(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o1777))?;
        mounts.push(mount(target, &path, false));
    }
    Ok(mounts)
}

fn mount(target: &str, source: &Path, readonly: bool) -> cri::Mount {
    cri::Mount {
        container_path: target.to_owned(),
        host_path: source.display().to_string(),
        readonly,
        ..Default::default()
    }
}

fn is_there(root: &Path, path: &Path) -> bool {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
    rooted::open_dir(root).and_then(|root| rooted::open_in_root(root.as_fd(), path, flags)).is_ok()
}

/// Removes mount points that were not there before, unless something was put there.
fn remove_missing(root: &Path, missing: &[PathBuf]) -> io::Result<()> {
    let root = rooted::open_dir(root)?;
    for path in missing.iter().rev() {
        let Some(name) = path.file_name() else { continue };
        let parent = Path::new("/").join(path.parent().unwrap_or(Path::new("")));
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let Ok(parent) = rooted::open_in_root(root.as_fd(), &parent, flags) else { continue };
        let Ok(stat) = nix::sys::stat::fstatat(&parent, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
        else {
            continue;
        };
        let kind = nix::sys::stat::SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT);
        let how = match kind {
            nix::sys::stat::SFlag::S_IFDIR => UnlinkatFlags::RemoveDir,
            nix::sys::stat::SFlag::S_IFREG if stat.st_size == 0 => UnlinkatFlags::NoRemoveDir,
            _ => continue,
        };
        match unlinkat(&parent, name, how) {
            // Something was put there.
            Ok(()) | Err(Errno::ENOTEMPTY | Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Puts a container's log together to what it wrote.
#[derive(Default)]
struct Lines {
    /// Of the log.
    rest: Vec<u8>,
    /// Of a line that comes in parts.
    line: String,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.rest.extend_from_slice(bytes);
        let mut found = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let text = String::from_utf8_lossy(&line[..end]);
            // Time, stream, tag.
            let mut fields = text.splitn(4, ' ').skip(2);
            let whole = fields.next() != Some("P");
            self.line.push_str(fields.next().unwrap_or_default());
            if whole || self.line.len() >= MAX_LINE {
                found.push(std::mem::take(&mut self.line));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together() {
        let mut lines = Lines::default();
        assert!(lines.push(b"2026-01-01T00:00:00Z stdout F hel").is_empty());
        assert_eq!(
            lines.push(b"lo world\nt stderr P a \nt stderr F b\nt stdout F \n"),
            ["hello world", "a b", ""]
        );
    }

    #[test]
    fn mount_points_go_unless_used() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("proc")).unwrap();
        let missing: Vec<PathBuf> =
            ["dev", "etc", "etc/hosts", "etc/hostname"].iter().map(PathBuf::from).collect();
        assert!(is_there(root, Path::new("proc")) && !is_there(root, Path::new("etc/hosts")));
        fs::create_dir(root.join("dev")).unwrap();
        fs::create_dir(root.join("etc")).unwrap();
        fs::write(root.join("etc/hosts"), "").unwrap();
        fs::write(root.join("etc/hostname"), "mine").unwrap();
        remove_missing(root, &missing).unwrap();
        assert!(!root.join("dev").exists() && !root.join("etc/hosts").exists());
        assert!(root.join("etc/hostname").exists() && root.join("proc").exists());
    }
}
