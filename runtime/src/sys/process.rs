//! Processes by identity: a process id is reused, together with the start time it is not.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use serde::{Deserialize, Serialize};

/// One process, for as long as the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// The process id.
    pub(crate) pid: i32,
    /// When it started, in clock ticks since the machine did.
    pub(crate) started: u64,
}

impl Identity {
    /// The identity of a process that exists now.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, started) = parse_stat(&stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unexpected /proc/<pid>/stat"))?;
        Ok(Identity { pid, started })
    }

    /// True while this very process runs; a zombie does not.
    pub(crate) fn is_alive(self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .ok()
            .and_then(|stat| parse_stat(&stat))
            .is_some_and(|(state, started)| started == self.started && !matches!(state, 'Z' | 'X'))
    }

    /// Sends a signal to this very process, never to one that has its number by now. A process
    /// that has ended is no error.
    pub(crate) fn kill(self, signal: i32) -> io::Result<()> {
        let Some(handle) = open(self.pid)? else { return Ok(()) };
        // The handle is bound to whichever process has the number now: look only then.
        if !self.is_alive() {
            return Ok(());
        }
        // SAFETY: the descriptor is open, and no pointer to a siginfo is given.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                handle.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match result {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                error => Err(error),
            },
        }
    }
}

/// A handle of the process that has this number now; `None` if there is none.
pub(crate) fn open(pid: i32) -> io::Result<Option<OwnedFd>> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ESRCH) { Ok(None) } else { Err(error) };
    }
    let fd = i32::try_from(fd).expect("a descriptor fits an int");
    // SAFETY: the descriptor is new and nobody else owns it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// State and start time. The command's name, in parentheses, may contain anything.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let rest = &stat[stat.rfind(')')? + 1..];
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // Field 22 of the line; the state is field 3.
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

/// The id of this boot: process identities of another one mean nothing.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let stat = "7 (a) R (b) c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(parse_stat(stat), Some(('S', 4711)));
    }

    #[test]
    fn another_start_time_is_another_process() {
        let me = Identity::of(std::process::id().cast_signed()).unwrap();
        assert!(me.is_alive());
        let other = Identity { started: me.started + 1, ..me };
        assert!(!other.is_alive());
        // Would end the test if it hit this process.
        other.kill(libc::SIGKILL).unwrap();
    }
}
