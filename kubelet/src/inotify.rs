//! Waits for a file to be written to, renamed or removed, or for what is in a folder to change, without asking again
//! and again.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A watch on one file or folder.
#[derive(Debug)]
pub(crate) struct Watch {
    fd: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Watches the file that `path` leads to now.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        Self::on(path, libc::IN_MODIFY | libc::IN_MOVE_SELF | libc::IN_DELETE_SELF | libc::IN_ATTRIB)
    }

    /// Watches the files of a folder.
    pub(crate) fn folder(path: &Path) -> io::Result<Self> {
        let entries = libc::IN_CREATE | libc::IN_DELETE | libc::IN_MOVED_FROM | libc::IN_MOVED_TO;
        Self::on(path, entries | libc::IN_CLOSE_WRITE | libc::IN_MOVE_SELF | libc::IN_DELETE_SELF)
    }

    fn on(path: &Path, mask: u32) -> io::Result<Self> {
        // SAFETY: inotify_init1 takes no pointers; a negative result is handled before it is used.
        let fd = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: `path` is a NUL-terminated string that outlives the call.
        let watch = unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), mask) };
        if watch < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is owned by `fd`, which the registration owns: it stays open and the same.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE)? };
        Ok(Self { fd })
    }

    /// Resolves when something happened since the last call.
    pub(crate) async fn changed(&mut self) -> io::Result<()> {
        let mut buffer = [0_u8; 4096];
        loop {
            let mut ready = self.fd.readable().await?;
            let read = ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), &mut buffer)?));
            match read {
                // What happened does not matter: the reader looks for itself.
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}
