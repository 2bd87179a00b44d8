//! What a pod's containers share: namespaces, shared memory, and one reaper.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;

use super::holder::Holder;
use crate::protocol::Setup;
use crate::sys::cgroup::Hierarchies;
use crate::sys::mount;

/// Shared memory of a pod; Kubernetes documents 64 MiB.
const SHM_BYTES: u64 = 64 << 20;

/// The kernel takes a shim last but for what may not be killed at all.
const SHIM_OOM_SCORE: &str = "-998";

/// The names under which a pod's namespaces are mounted.
pub(crate) const NAMESPACES: [&str; 5] = ["net", "ipc", "uts", "pid", "user"];

const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// How reluctantly the kernel kills the shim for want of memory. libcontainer sets a container's
/// score on the process that creates it: to be restored after each.
pub(super) struct Protection {
    score: String,
}

impl Protection {
    fn new() -> io::Result<Self> {
        let inherited = fs::read_to_string(OOM_SCORE)?.trim().to_owned();
        // Without CAP_SYS_RESOURCE a score cannot be lower than the one that was inherited.
        let score = match fs::write(OOM_SCORE, SHIM_OOM_SCORE) {
            Ok(()) => SHIM_OOM_SCORE.to_owned(),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => inherited,
            Err(error) => return Err(error),
        };
        Ok(Protection { score })
    }

    /// Sets the score again.
    pub(super) fn restore(&self) {
        if let Err(error) = fs::write(OOM_SCORE, &self.score) {
            eprintln!("cannot restore the OOM score: {error}");
        }
    }
}

/// Turns this process into the shim of a sandbox. Returns the process that is the first of the
/// pod's shared process namespace, if it has one.
pub(super) fn sandbox(setup: &Setup, run: &Path) -> io::Result<(Option<i32>, Protection)> {
    close_inherited();
    nix::unistd::setsid()?;
    // Containers would inherit the agent's groups where their own list is empty.
    nix::unistd::setgroups(&[])?;
    std::env::set_current_dir(run)?;
    // SAFETY: prctl with this option takes an integer and changes this process only.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let oom_score = Protection::new()?;
    if let Some(group) = &setup.cgroup {
        Hierarchies::detect()?.join(group, nix::unistd::getpid().as_raw())?;
    }
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, setup.network);
    flags.set(CloneFlags::CLONE_NEWIPC, setup.ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, setup.uts);
    let users = match setup.users {
        None => {
            unshare(flags)?;
            None
        }
        Some(users) => Some(Holder::start(users, flags)?),
    };
    if setup.uts {
        set_hostname(&setup.hostname)?;
    }
    if setup.network {
        loopback_up()?;
    }
    for (name, value) in &setup.sysctls {
        set_sysctl(name, value)?;
    }
    if setup.ipc {
        let shm = run.join("shm");
        fs::create_dir_all(&shm)?;
        mount::tmpfs(&shm, SHM_BYTES, setup.users.map_or(0, |users| users.first))?;
    }
    let init = match (setup.pid, &users) {
        (false, _) => None,
        (true, None) => Some(start_init(0)?),
        (true, Some(holder)) => Some(holder.start_init()?),
    };
    name_namespaces(setup, run, init, users.as_ref())?;
    users.map(Holder::end).transpose()?;
    Ok((init, oom_score))
}

/// Mounts the namespaces under names: they live on without the shim, and others can enter.
fn name_namespaces(setup: &Setup, run: &Path, init: Option<i32>, users: Option<&Holder>) -> io::Result<()> {
    let directory = run.join("ns");
    fs::create_dir_all(&directory)?;
    let own = |name: &str| format!("/proc/self/ns/{name}");
    let mut names = Vec::new();
    names.extend(setup.network.then(|| ("net", own("net"))));
    names.extend(setup.ipc.then(|| ("ipc", own("ipc"))));
    names.extend(setup.uts.then(|| ("uts", own("uts"))));
    names.extend(init.map(|pid| ("pid", format!("/proc/{pid}/ns/pid"))));
    names.extend(users.map(|holder| ("user", format!("/proc/{}/ns/user", holder.pid))));
    for (name, source) in names {
        let target = directory.join(name);
        fs::write(&target, "")?;
        mount::bind(Path::new(&source), &target)?;
    }
    Ok(())
}

fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: the name lives through the call, and its length is its own.
    match unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets a parameter of the namespaces that this process is in.
fn set_sysctl(name: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    fs::write(&path, value).map_err(|error| io::Error::new(error.kind(), format!("sysctl {name}: {error}")))
}

nix::ioctl_write_ptr_bad!(set_interface_flags, libc::SIOCSIFFLAGS, libc::ifreq);

fn loopback_up() -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all zero bytes are a valid ifreq: an empty name and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *target = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags =
        i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).expect("interface flags fit 16 bits");
    // SAFETY: the descriptor is a socket, and the request lives through the call.
    unsafe { set_interface_flags(socket.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// Starts the first process of a process namespace, which only reaps. Without it the namespace
/// would end with whichever container came first.
pub(super) fn start_init(flags: i32) -> io::Result<i32> {
    let flags = flags | libc::CLONE_NEWPID | libc::SIGCHLD;
    // SAFETY: like fork: no memory is shared, and this process has one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        0 => {
            close_stdout();
            reap_for_ever()
        }
        pid if pid > 0 => Ok(i32::try_from(pid).expect("process ids fit an int")),
        _ => Err(io::Error::last_os_error()),
    }
}

fn reap_for_ever() -> ! {
    let signals = nix::sys::signal::SigSet::from(Signal::SIGCHLD);
    // The kernel does not deliver signals that the first process of a namespace does not
    // handle, but for SIGKILL from outside: it waits for children and nothing else.
    signals.thread_block().ok();
    loop {
        while nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
            .is_ok_and(|status| status != nix::sys::wait::WaitStatus::StillAlive)
        {}
        signals.wait().ok();
    }
}

/// Whoever started the agent may have left descriptors open; containers must not have them.
fn close_inherited() {
    // SAFETY: this process has just begun: beside its three streams it owns no descriptor yet.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
}

/// Gives the pipe to the agent back, so that it sees the end.
pub(super) fn close_stdout() {
    if let Ok(null) = fs::OpenOptions::new().write(true).open("/dev/null") {
        nix::unistd::dup2_stdout(&null).ok();
    }
}

/// Takes away what [`sandbox`] mounted.
pub(super) fn release(run: &Path) {
    for name in NAMESPACES {
        let path = run.join("ns").join(name);
        if let Err(error) = mount::unmount(&path) {
            eprintln!("cannot release {}: {error}", path.display());
        }
    }
    if let Err(error) = mount::unmount(&run.join("shm")) {
        eprintln!("cannot release shared memory: {error}");
    }
}
