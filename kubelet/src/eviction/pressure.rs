//! The kernel says when tasks wait for memory (pressure stall information), so that a node that runs short is looked
//! after before the next pass.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Where the machine's pressure is told.
const FILE: &str = "/proc/pressure/memory";
/// Some task waited for 100 ms within a second; at most one message a second. The kernel wants the closing zero.
const TRIGGER: &[u8] = b"some 100000 1000000\0";

/// Waits for pressure on memory.
pub(super) struct Memory {
    file: Option<AsyncFd<File>>,
}

impl Memory {
    /// Asks the kernel to tell; one that does not leaves the passes alone to notice.
    pub(super) fn open() -> Self {
        let file = trigger();
        if let Err(error) = &file {
            tracing::info!(%error, "the kernel does not tell of pressure on memory: it is noticed a few seconds later");
        }
        Self { file: file.ok() }
    }

    /// Returns when tasks wait for memory.
    pub(super) async fn rises(&mut self) {
        if let Some(file) = &self.file {
            match file.ready(Interest::PRIORITY).await {
                Ok(mut ready) => return ready.clear_ready(),
                Err(error) => tracing::warn!(%error, "pressure on memory is not told any more"),
            }
            self.file = None;
        }
        std::future::pending().await
    }
}

fn trigger() -> io::Result<AsyncFd<File>> {
    let mut file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(FILE)?;
    file.write_all(TRIGGER)?;
    // SAFETY: the descriptor is owned by the file, which the registration owns: it stays open and the same.
    unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }.map_err(Into::into)
}
