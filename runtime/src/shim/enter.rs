//! Processes that enter a container that runs: exec, probes and hooks.
//!
//! libcontainer would have the process appear in the container's process namespace while its root is still the
//! machine's, with all privileges: whoever has `SYS_PTRACE` in the container could follow `/proc/PID/root` out, or
//! take the process over (CVE-2016-9962). Here a *forerunner* joins all namespaces at once, goes to the working
//! directory, becomes the user and gives up what the container does not have. As a process does not change its own
//! process namespace, none of this is seen inside. Then it makes the process that is, which only executes the command.
//!
//! **Invariant**: a process that the container can see has the container's root, no descriptor of the shim, and no
//! privilege that the container does not have. (One exception: a profile of system calls from a file may forbid to
//! start processes, so that it is the last process that installs it and gives up its privileges.)

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Process;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::{Mode, fstat, major, minor};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Gid, Uid, chdir, fork, getcwd, setgroups, setresgid, setresuid, setsid};
use seccompiler::sock_filter;

use super::launch::{self, Failure, Stdio};
use super::privileges;
use crate::protocol::{Privileges, Seccomp};
use crate::sys::cgroup::Hierarchies;
use crate::sys::{fds, process};

/// The namespaces that a container may have of its own.
const NAMESPACES: [(&str, CloneFlags); 7] = [
    ("user", CloneFlags::CLONE_NEWUSER),
    ("mnt", CloneFlags::CLONE_NEWNS),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("net", CloneFlags::CLONE_NEWNET),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
];

/// The device behind every `/dev/ptmx`.
const TERMINALS: (u64, u64) = (5, 2);

nix::ioctl_write_ptr_bad!(unlock_terminal, libc::TIOCSPTLCK, libc::c_int);
nix::ioctl_write_int_bad!(terminal_peer, libc::TIOCGPTPEER);
nix::ioctl_write_int_bad!(take_terminal, libc::TIOCSCTTY);

/// The container to enter.
pub(super) struct Target<'a> {
    /// Its first process: a child of this one, not reaped yet.
    pub(super) pid: i32,
    pub(super) groups: &'a Hierarchies,
    pub(super) cgroup: &'a str,
    pub(super) privileges: &'a Privileges,
    /// User and group, as the machine sees them, who own the process' streams.
    pub(super) owner: Option<(u32, u32)>,
}

/// Runs a process in a container that runs; returns it, and the master side of its terminal.
pub(super) fn exec(
    target: &Target<'_>,
    process: &serde_json::Value,
    stdio: Stdio,
) -> Result<(i32, Option<OwnedFd>), Failure> {
    let process: Process =
        serde_json::from_value(process.clone()).map_err(|error| Failure::other(error.to_string()))?;
    let filters = launch::filters(target.privileges)?;
    let (handle, flags) = namespaces(target.pid)?;
    let (report, report_end) = fds::pipe()?;
    let (born, born_end) = fds::pipe()?;
    let (console, console_end) = match stdio {
        Stdio::Pipes { .. } => (None, None),
        Stdio::Terminal => {
            let flags = SockFlag::SOCK_CLOEXEC;
            let pair =
                socketpair(AddressFamily::Unix, SockType::Stream, None, flags).map_err(io::Error::from)?;
            (Some(pair.0), Some(pair.1))
        }
    };
    let forerunner = Forerunner {
        target,
        process,
        filters,
        handle: Some(handle),
        flags,
        stdio,
        console: console_end,
        report: report_end,
    };
    // SAFETY: this process has one thread, so the child may do whatever this one may.
    match unsafe { fork() }.map_err(io::Error::from)? {
        ForkResult::Child => forerunner.run(&born_end),
        ForkResult::Parent { child } => {
            drop((forerunner, born_end));
            waitpid(child, None).map_err(io::Error::from)?;
        }
    }
    let mut failure = Vec::new();
    File::from(report).read_to_end(&mut failure)?;
    if !failure.is_empty() {
        return Err(Failure::from_report(&failure));
    }
    let mut pid = [0; 4];
    File::from(born).read_exact(&mut pid)?;
    let master = console.map(|console| receive_terminal(console.as_fd())).transpose()?;
    Ok((i32::from_le_bytes(pid), master))
}

/// A handle on the container, and which of its namespaces are not this process' own.
fn namespaces(pid: i32) -> io::Result<(OwnedFd, CloneFlags)> {
    let handle = process::open(pid)?.ok_or_else(|| io::Error::other("the container has ended"))?;
    let mut flags = CloneFlags::empty();
    for (name, flag) in NAMESPACES {
        let theirs = fs::read_link(format!("/proc/{pid}/ns/{name}"))?;
        flags.set(flag, theirs != fs::read_link(format!("/proc/self/ns/{name}"))?);
    }
    Ok((handle, flags))
}

fn receive_terminal(console: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (mut bytes, mut received) = (Vec::new(), Vec::new());
    fds::receive(console, &mut bytes, &mut received)?;
    received.pop().ok_or_else(|| io::Error::other("the process sent no terminal"))
}

/// The process that goes ahead, with all that it needs.
struct Forerunner<'a> {
    target: &'a Target<'a>,
    process: Process,
    filters: Vec<Vec<sock_filter>>,
    handle: Option<OwnedFd>,
    flags: CloneFlags,
    stdio: Stdio,
    console: Option<OwnedFd>,
    report: OwnedFd,
}

/// What the process executes.
struct Command {
    name: String,
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    terminal: Option<OwnedFd>,
}

impl Forerunner<'_> {
    fn run(mut self, born: &OwnedFd) -> ! {
        let prepared = self.prepare(born);
        let done = prepared.and_then(|command| self.launch(&command, born));
        if let Err(failure) = done {
            self.fail(&failure);
        }
        // SAFETY: ends this process at once: what the shim would do at its end is not this one's to do.
        unsafe { libc::_exit(0) }
    }

    fn fail(&self, failure: &Failure) {
        // SAFETY: the descriptor is open, and this process ends without closing it.
        let mut pipe = ManuallyDrop::new(unsafe { File::from_raw_fd(self.report.as_raw_fd()) });
        if let Err(error) = pipe.write_all(&failure.report()) {
            // Nobody else is there to hear it.
            eprintln!("{}: not reported: {error}", failure.message);
        }
    }

    /// Everything that can be done before the process is there.
    fn prepare(&mut self, born: &OwnedFd) -> Result<Command, Failure> {
        set(libc::PR_SET_DUMPABLE, 0)?;
        if let Some(score) = self.process.oom_score_adj() {
            fs::write("/proc/self/oom_score_adj", score.to_string())?;
        }
        self.target.groups.enter(self.target.cgroup, nix::unistd::getpid().as_raw())?;
        self.keep_own_descriptors(born)?;
        if let Some(handle) = self.handle.take() {
            nix::sched::setns(&handle, self.flags)
                .map_err(|errno| Failure::other(format!("cannot enter the container: {}", errno.desc())))?;
        }
        self.become_user()?;
        let args = self.process.args().clone().unwrap_or_default();
        let env = self.process.env().clone().unwrap_or_default();
        let (name, path) = launch::find_command(&args, &env)?;
        let terminal = self.console.take().map(|console| terminal(console.as_fd())).transpose()?;
        launch::default_signals().map_err(io::Error::from)?;
        launch::allow_huge_pages()?;
        if !self.is_restricted_last() {
            self.restrict()?;
        }
        Ok(Command { name, path, args: launch::c_strings(args)?, env: launch::c_strings(env)?, terminal })
    }

    /// Puts the streams in their places and closes all that is the shim's.
    fn keep_own_descriptors(&self, born: &OwnedFd) -> Result<(), Failure> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let streams = match &self.stdio {
            Stdio::Pipes { stdin, stdout, stderr } => [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
            Stdio::Terminal => [null.as_fd(); 3],
        };
        if let (Some(owner), Stdio::Pipes { .. }) = (self.target.owner, &self.stdio) {
            streams.into_iter().try_for_each(|stream| launch::give(stream, owner))?;
        }
        for (stream, number) in streams.into_iter().zip(0..) {
            // SAFETY: both are numbers of this process; none of the three is owned by anything here.
            if unsafe { libc::dup2(stream.as_raw_fd(), number) } < 0 {
                return Err(io::Error::last_os_error().into());
            }
        }
        drop(null);
        let mut keep = vec![self.report.as_raw_fd(), born.as_raw_fd()];
        keep.extend(self.handle.iter().chain(&self.console).map(AsRawFd::as_raw_fd));
        close_all_but(keep)?;
        Ok(())
    }

    /// Goes to the working directory and becomes the container's user, with all privileges still.
    fn become_user(&self) -> Result<(), Failure> {
        let (user, cwd) = (self.process.user(), self.process.cwd());
        let enter = || chdir(cwd).map_err(|errno| no_folder(cwd, errno));
        // Root may be shut out where the user is not: a remote file system.
        let entered = enter();
        if self.process.no_new_privileges() == Some(true) {
            set(libc::PR_SET_NO_NEW_PRIVS, 1)?;
        }
        let groups = user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid));
        setgroups(&groups.collect::<Vec<_>>()).map_err(io::Error::from)?;
        set(libc::PR_SET_KEEPCAPS, 1)?;
        let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
        setresgid(gid, gid, gid).map_err(io::Error::from)?;
        setresuid(uid, uid, uid).map_err(io::Error::from)?;
        set(libc::PR_SET_KEEPCAPS, 0)?;
        privileges::raise()?;
        if entered.is_err() {
            enter()?;
        }
        // CVE-2024-21626: a folder outside has no path from the root.
        getcwd().map(|_| ()).map_err(|errno| no_folder(cwd, errno))
    }

    fn is_restricted_last(&self) -> bool {
        matches!(self.target.privileges.seccomp, Seccomp::Programs(_))
    }

    fn restrict(&self) -> Result<(), Failure> {
        privileges::apply(self.target.privileges, &self.filters)
            .map_err(|error| Failure::other(format!("cannot set privileges: {error}")))
    }

    /// Makes the process, as a child of the shim, and tells its number.
    fn launch(&self, command: &Command, born: &OwnedFd) -> Result<(), Failure> {
        let flags = libc::CLONE_PARENT | libc::SIGCHLD;
        // SAFETY: like fork: no memory is shared, and this process has one thread.
        match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
            0 => match self.execute(command) {
                Ok(never) => match never {},
                Err(failure) => Err(failure),
            },
            pid if pid > 0 => {
                let pid = i32::try_from(pid).expect("process ids fit an int");
                Ok(nix::unistd::write(born, &pid.to_le_bytes()).map(|_| ()).map_err(io::Error::from)?)
            }
            _ => Err(io::Error::last_os_error().into()),
        }
    }

    /// In the container's sight.
    fn execute(&self, command: &Command) -> Result<Infallible, Failure> {
        setsid().map_err(io::Error::from)?;
        if let Some(terminal) = &command.terminal {
            // SAFETY: the descriptor is a terminal, and the argument is a number.
            unsafe { take_terminal(terminal.as_raw_fd(), 0) }.map_err(io::Error::from)?;
            for number in 0..3 {
                // SAFETY: both are numbers of this process; none of the three is owned by anything here.
                if unsafe { libc::dup2(terminal.as_raw_fd(), number) } < 0 {
                    return Err(io::Error::last_os_error().into());
                }
            }
        }
        if self.is_restricted_last() {
            self.restrict()?;
        }
        nix::unistd::execve(&command.path, &command.args, &command.env)
            .map_err(|errno| launch::not_executed(&command.name, errno))
    }
}

fn no_folder(cwd: &Path, errno: Errno) -> Failure {
    Failure::other(format!("working directory {}: {}", cwd.display(), launch::lower(errno)))
}

/// Closes all descriptors beyond the three streams but some.
fn close_all_but(mut keep: Vec<RawFd>) -> io::Result<()> {
    keep.sort_unstable();
    let mut from: libc::c_uint = 3;
    let gaps = keep.into_iter().map(|kept| u32::try_from(kept).expect("descriptors are not negative"));
    for kept in gaps.map(Some).chain([None]) {
        let to = kept.map_or(libc::c_uint::MAX, |kept| kept - 1);
        if from <= to {
            // SAFETY: what is closed belongs to the shim, whose copy this process is; it uses none of it again.
            if unsafe { libc::close_range(from, to, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        from = kept.map_or(from, |kept| kept + 1);
    }
    Ok(())
}

/// A terminal of the container, its other side handed out.
fn terminal(console: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    let path = PathBuf::from("/dev/ptmx");
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = nix::fcntl::open(&path, flags, Mode::empty())
        .map_err(|errno| Failure::other(format!("/dev/ptmx: {}", launch::lower(errno))))?;
    let number = fstat(&master).map_err(io::Error::from)?.st_rdev;
    // CVE-2025-52565: an image may have anything there.
    if (major(number), minor(number)) != TERMINALS {
        return Err(Failure::other("/dev/ptmx of the container makes no terminals"));
    }
    // SAFETY: the descriptor is a terminal's master, and the flag lives through the call.
    unsafe { unlock_terminal(master.as_raw_fd(), &0) }.map_err(io::Error::from)?;
    // SAFETY: the descriptor is a terminal's master; the other side is opened without a path that could lead astray.
    let slave = unsafe { terminal_peer(master.as_raw_fd(), flags.bits()) }.map_err(io::Error::from)?;
    // SAFETY: the kernel has just made this descriptor; nobody else owns it.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    fds::send(console, path.as_os_str().as_bytes(), &[master.as_raw_fd()])?;
    Ok(slave)
}

fn set(option: i32, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: these options take integers and change this process only.
    match unsafe { libc::prctl(option, value, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
