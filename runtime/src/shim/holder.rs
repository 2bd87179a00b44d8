//! A process that is in a pod's user namespace while its other namespaces are made, since who makes them owns them.
//!
//! The shim itself stays outside: it reaps, logs and mounts with the machine's rights.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork, setresgid, setresuid};

use super::setup;
use crate::sys::idmap::Users;
use crate::sys::process;

/// What the shim asks for, and the answer to all that succeeded.
const MAKE: u8 = b'm';
const INIT: u8 = b'i';
const DONE: i32 = 0;

/// The process, as the shim sees it.
pub(super) struct Holder {
    pub(super) pid: i32,
    channel: OwnedFd,
}

impl Holder {
    /// Makes the user namespace and those of `flags` in it, and joins the latter.
    pub(super) fn start(users: Users, flags: CloneFlags) -> io::Result<Self> {
        let family = AddressFamily::Unix;
        let (channel, theirs) = socketpair(family, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: the shim has one thread, so the child may do whatever it may.
        let pid = match unsafe { fork() }? {
            ForkResult::Child => {
                drop(channel);
                let result = hold(&theirs, flags);
                if let Err(error) = result {
                    eprintln!("user namespace: {error}");
                }
                // SAFETY: ends this process at once: what the shim would do at its end is not this one's to do.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => child.as_raw(),
        };
        drop(theirs);
        let holder = Holder { pid, channel };
        // It says when it is in its namespace: only then its ids can be given.
        answered(holder.answer()?, "make a user namespace")?;
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{pid}/{map}"), users.map())?;
        }
        answered(holder.ask(MAKE)?, "make the pod's namespaces")?;
        let handle = process::open(pid)?.ok_or_else(|| io::Error::other("the user namespace is gone"))?;
        setns(&handle, flags)?;
        Ok(holder)
    }

    /// Starts the first process of the pod's process namespace, in the user namespace.
    pub(super) fn start_init(&self) -> io::Result<i32> {
        answered(self.ask(INIT)?, "start the pod's first process")
    }

    /// Ends the process: the namespaces have names by now.
    pub(super) fn end(self) -> io::Result<()> {
        drop(self.channel);
        waitpid(Pid::from_raw(self.pid), None)?;
        Ok(())
    }

    fn ask(&self, what: u8) -> io::Result<i32> {
        File::from(self.channel.try_clone()?).write_all(&[what])?;
        self.answer()
    }

    fn answer(&self) -> io::Result<i32> {
        let mut answer = [0; 4];
        File::from(self.channel.try_clone()?).read_exact(&mut answer)?;
        Ok(i32::from_le_bytes(answer))
    }
}

/// What was answered: a number, or an error of the system below zero.
fn answered(answer: i32, doing: &str) -> io::Result<i32> {
    match answer {
        answer if answer >= DONE => Ok(answer),
        errno => {
            let error = io::Error::from_raw_os_error(-errno);
            let way_out = match error.raw_os_error() {
                Some(libc::ENOSPC | libc::EPERM) => "; are there any (sysctl user.max_user_namespaces)?",
                _ => "",
            };
            Err(io::Error::new(error.kind(), format!("cannot {doing}: {error}{way_out}")))
        }
    }
}

/// In the process: answers until the shim has what it wants.
fn hold(channel: &OwnedFd, flags: CloneFlags) -> io::Result<()> {
    let mut channel = File::from(channel.as_fd().try_clone_to_owned()?);
    let tell = |channel: &mut File, result: io::Result<i32>| {
        let answer = result.unwrap_or_else(|error| -error.raw_os_error().unwrap_or(libc::EIO));
        channel.write_all(&answer.to_le_bytes())
    };
    tell(&mut channel, unshare(CloneFlags::CLONE_NEWUSER).map(|()| DONE).map_err(io::Error::from))?;
    loop {
        let mut asked = [0];
        if channel.read(&mut asked)? == 0 {
            return Ok(());
        }
        let result = match asked[0] {
            MAKE => make(flags).map(|()| DONE),
            // A child of the shim, which is to reap it.
            _ => setup::start_init(libc::CLONE_PARENT),
        };
        tell(&mut channel, result)?;
    }
}

/// Becomes root of the namespace, and makes those that it is to own.
fn make(flags: CloneFlags) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    Ok(unshare(flags)?)
}
