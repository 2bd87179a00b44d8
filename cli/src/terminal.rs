//! The terminal that the command runs in.

use std::io::IsTerminal;
use std::os::fd::AsFd;

use nix::sys::termios::{self, SetArg, Termios};

use crate::failure::Failure;

/// Whether standard input is a terminal.
pub(crate) fn is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// Its columns and rows.
pub(crate) fn size() -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which `size` is.
    let result = unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_col > 0).then_some((size.ws_col, size.ws_row))
}

/// The terminal in raw mode; dropped, it is as it was.
pub(crate) struct Raw(Termios);

impl Raw {
    /// Puts the terminal into raw mode.
    pub(crate) fn enter() -> Result<Self, Failure> {
        let failed = |e: nix::Error| Failure::new(format!("the terminal cannot be put into raw mode: {e}"));
        let stdin = std::io::stdin();
        let before = termios::tcgetattr(stdin.as_fd()).map_err(failed)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(error) = termios::tcsetattr(std::io::stdin().as_fd(), SetArg::TCSANOW, &self.0) {
            tracing::warn!(%error, "the terminal cannot be put back: `reset` helps");
        }
    }
}
