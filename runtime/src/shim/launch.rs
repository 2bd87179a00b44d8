//! Containers, by libcontainer, and what their first process shares with those that enter later.
//!
//! What is wrong with a command is found in the new process, in its root and as its user. It
//! comes back through a pipe of our own that the kernel closes when the program runs: nothing
//! on it is success.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, fchown};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{AccessFlags, access};
use seccompiler::sock_filter;
use serde::{Deserialize, Serialize};

use super::{privileges, seccomp};
use crate::protocol::{Launch, Privileges, Seccomp};
use crate::sys::fds;

/// The exit code of shells for a command that is not there, and for one that cannot be run.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// The exit code for everything else that keeps a container from starting.
const START_ERROR: i32 = 128;

/// Why a process does not run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    pub(super) code: i32,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn other(message: impl Into<String>) -> Self {
        Failure { code: START_ERROR, message: message.into() }
    }

    /// As it is written into the pipe to the shim.
    pub(super) fn report(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a struct of a number and a string is JSON")
    }

    /// As the shim reads it.
    pub(super) fn from_report(report: &[u8]) -> Self {
        serde_json::from_slice(report).unwrap_or_else(|_| Failure::other(String::from_utf8_lossy(report)))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::other(error.to_string())
    }
}

/// The streams of a process, as it will see them.
pub(super) enum Stdio {
    /// Three descriptors.
    Pipes { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd },
    /// A terminal, made in the container.
    Terminal,
}

/// Creates and starts a container; returns its process and the master side of its terminal.
pub(super) fn container(
    launch: &Launch,
    root: &Path,
    stdio: Stdio,
) -> Result<(i32, Option<OwnedFd>), Failure> {
    if let (Some(owner), Stdio::Pipes { stdin, stdout, stderr }) = (launch.owner, &stdio) {
        [stdin, stdout, stderr].into_iter().try_for_each(|stream| give(stream.as_fd(), owner))?;
    }
    let prepared = Prepared::new(&launch.container, &launch.privileges, root, stdio)?;
    let Prepared { builder, report, console } = prepared;
    let (reader, writer) = report;
    let built = builder.as_init(&launch.bundle).with_systemd(false).with_detach(true).build();
    let result = built.and_then(|mut container| container.start().map(|()| container));
    drop(writer);
    let container = finish(result, reader)?;
    let pid = container.pid().ok_or_else(|| Failure::other("the container has no process"))?;
    Ok((pid.as_raw(), console.map(|console| console.master()).transpose()?))
}

/// What starting a container needs.
struct Prepared {
    builder: ContainerBuilder,
    report: (OwnedFd, OwnedFd),
    console: Option<Console>,
}

impl Prepared {
    fn new(id: &str, privileges: &Privileges, root: &Path, stdio: Stdio) -> Result<Self, Failure> {
        let report = fds::pipe()?;
        let workload = Workload {
            report: report.1.as_raw_fd(),
            privileges: Arc::new(privileges.clone()),
            filters: filters(privileges)?,
        };
        let mut builder = ContainerBuilder::new(id.to_owned(), SyscallType::default())
            .with_root_path(root)
            .map_err(describe)?
            .with_executor(workload);
        let mut console = None;
        match stdio {
            Stdio::Pipes { stdin, stdout, stderr } => {
                builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
            }
            Stdio::Terminal => {
                let made = Console::new(root, id)?;
                builder = builder.with_console_socket(Some(made.path.clone()));
                console = Some(made);
            }
        }
        Ok(Prepared { builder, report, console })
    }
}

/// The filters of system calls that a container's processes get.
pub(super) fn filters(privileges: &Privileges) -> Result<Vec<Vec<sock_filter>>, Failure> {
    Ok(match &privileges.seccomp {
        Seccomp::Unconfined => Vec::new(),
        Seccomp::RuntimeDefault => vec![seccomp::runtime_default(privileges.bounding)?],
        Seccomp::Programs(programs) => programs.iter().map(|p| seccomp::program(p)).collect(),
    })
}

/// What the new process reported goes before what libcontainer made of it.
fn finish<T>(result: Result<T, LibcontainerError>, reader: OwnedFd) -> Result<T, Failure> {
    let mut report = Vec::new();
    File::from(reader).read_to_end(&mut report)?;
    if !report.is_empty() {
        return Err(Failure::from_report(&report));
    }
    result.map_err(describe)
}

fn describe(error: LibcontainerError) -> Failure {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = error.source();
    }
    Failure::other(message)
}

/// The socket by which a container hands out the master side of its terminal.
struct Console {
    path: std::path::PathBuf,
    listener: UnixListener,
}

impl Console {
    fn new(root: &Path, id: &str) -> io::Result<Self> {
        let path = root.join(format!("{}.tty", &id[..id.len().min(12)]));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let directory = crate::sys::rooted::open_dir(root)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Bound by a short path, since `root` may be longer than a socket address.
        let listener = UnixListener::bind(fds::short_path(&directory, &name))?;
        listener.set_nonblocking(true)?;
        Ok(Console { path, listener })
    }

    /// The descriptor, which was sent before the process ran.
    fn master(self) -> io::Result<OwnedFd> {
        let (socket, _) = self.listener.accept()?;
        let (mut bytes, mut received) = (Vec::new(), Vec::new());
        fds::receive(socket.as_fd(), &mut bytes, &mut received)?;
        fs::remove_file(&self.path)?;
        received.pop().ok_or_else(|| io::Error::other("the container sent no terminal"))
    }
}

/// Runs in the new process.
#[derive(Clone)]
struct Workload {
    report: RawFd,
    privileges: Arc<Privileges>,
    filters: Vec<Vec<sock_filter>>,
}

impl Workload {
    fn fail(&self, failure: &Failure) {
        // SAFETY: the descriptor was inherited open, and this process ends soon after.
        let mut pipe = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(self.report) });
        // Where even this fails, the shim still has libcontainer's own error.
        pipe.write_all(&failure.report()).ok();
    }
}

impl Executor for Workload {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        command_of(spec).map(|_| ()).map_err(|failure| {
            self.fail(&failure);
            ExecutorValidationError::ArgValidationError(failure.message)
        })
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let failure = match run(self, spec) {
            Ok(never) => match never {},
            Err(failure) => failure,
        };
        self.fail(&failure);
        Err(ExecutorError::Other(failure.message))
    }
}

fn run(workload: &Workload, spec: &Spec) -> Result<std::convert::Infallible, Failure> {
    let (command, path) = command_of(spec)?;
    let args = spec.process().as_ref().and_then(|process| process.args().clone()).unwrap_or_default();
    let args = c_strings(args)?;
    default_signals().map_err(|errno| Failure::other(errno.desc()))?;
    allow_huge_pages()?;
    privileges::apply(&workload.privileges, &workload.filters)
        .map_err(|error| Failure::other(format!("cannot set privileges: {error}")))?;
    nix::unistd::execv(&path, &args).map_err(|errno| not_executed(&command, errno))
}

/// Strings as the kernel takes them.
pub(super) fn c_strings(strings: Vec<String>) -> Result<Vec<CString>, Failure> {
    let strings = strings.into_iter();
    strings
        .map(|text| CString::new(text).map_err(|_| Failure::other("an argument has a zero byte")))
        .collect()
}

/// Why the kernel did not execute a program that is there.
pub(super) fn not_executed(command: &str, errno: Errno) -> Failure {
    Failure {
        code: if errno == Errno::ENOENT { NOT_FOUND } else { NOT_EXECUTABLE },
        message: format!("exec {command}: {}", lower(errno)),
    }
}

fn command_of(spec: &Spec) -> Result<(String, CString), Failure> {
    let process = spec.process().as_ref().ok_or_else(|| Failure::other("no process"))?;
    find_command(process.args().as_deref().unwrap_or_default(), process.env().as_deref().unwrap_or_default())
}

/// The program that a command names, as the kernel would find it for this user; in the words of
/// other runtimes.
pub(super) fn find_command(args: &[String], env: &[String]) -> Result<(String, CString), Failure> {
    let command = args
        .first()
        .filter(|command| !command.is_empty())
        .ok_or_else(|| Failure { code: NOT_FOUND, message: "exec: no command".to_owned() })?;
    let c_string = |path: &str| CString::new(path).map_err(|_| Failure::other("the command has a zero byte"));
    if command.contains('/') {
        return match check(command) {
            Ok(()) => Ok((command.clone(), c_string(command)?)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Err(Failure {
                code: NOT_FOUND,
                message: format!("exec: {command:?}: stat {command}: no such file or directory"),
            }),
            Err(errno) => {
                Err(Failure { code: NOT_EXECUTABLE, message: format!("exec: {command:?}: {}", lower(errno)) })
            }
        };
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let mut denied = false;
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = format!("{directory}/{command}");
        match check(&candidate) {
            Ok(()) => return Ok((command.clone(), c_string(&candidate)?)),
            Err(Errno::EACCES) => denied = true,
            Err(_) => {}
        }
    }
    Err(match denied {
        true => Failure { code: NOT_EXECUTABLE, message: format!("exec: {command:?}: permission denied") },
        false => Failure {
            code: NOT_FOUND,
            message: format!("exec: {command:?}: executable file not found in $PATH"),
        },
    })
}

/// Directories are executable too, in another sense.
fn check(path: &str) -> Result<(), Errno> {
    let meta =
        fs::metadata(path).map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    if meta.is_dir() {
        return Err(Errno::EACCES);
    }
    access(path, AccessFlags::X_OK)
}

pub(super) fn lower(errno: Errno) -> String {
    let text = errno.desc();
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

/// Gives a stream to the user who writes to it, so that it can be opened again by its name (`/dev/stdout`). Devices stay
/// whose they are.
pub(super) fn give(stream: BorrowedFd<'_>, (uid, gid): (u32, u32)) -> io::Result<()> {
    let file = File::from(stream.try_clone_to_owned()?);
    if file.metadata()?.file_type().is_fifo() {
        fchown(stream, Some(uid), Some(gid))?;
    }
    Ok(())
}

/// The shim's allocator forbids huge pages for the shim, and executed programs would inherit it.
pub(super) fn allow_huge_pages() -> io::Result<()> {
    // SAFETY: this option takes integers and changes this process only.
    match unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 0, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The shim blocks and ignores signals; its children would inherit that.
pub(super) fn default_signals() -> nix::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: restores the default action; no handler of ours is involved.
    unsafe { sigaction(Signal::SIGPIPE, &default) }?;
    SigSet::empty().thread_set_mask()
}
