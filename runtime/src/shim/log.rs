//! Container output as CRI log files: one line per line, with time, stream, and whether it is
//! whole. `kubectl logs` and every log collector read this form.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// A longer line is written in parts; the size that other runtimes use.
pub(super) const MAX_LINE: usize = 16 * 1024;

/// One of the two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// The file that a container's output goes to.
#[derive(Debug)]
pub(super) struct LogFile {
    path: Option<PathBuf>,
    file: Option<File>,
}

impl LogFile {
    /// Opens the file; without a path all output is dropped.
    pub(super) fn open(path: Option<PathBuf>) -> io::Result<Self> {
        let file = path.as_ref().map(open).transpose()?;
        Ok(LogFile { path, file })
    }

    /// Opens the file anew, after it was moved.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.file = self.path.as_ref().map(open).transpose()?;
        Ok(())
    }

    /// Appends in one call, so that readers see whole lines.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        match &mut self.file {
            Some(file) if !lines.is_empty() => file.write_all(lines),
            _ => Ok(()),
        }
    }
}

fn open(path: &PathBuf) -> io::Result<File> {
    // A link in its place would have the shim, which is root, write elsewhere.
    OpenOptions::new().create(true).append(true).mode(0o640).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Cuts a stream into lines.
#[derive(Debug)]
pub(super) struct Lines {
    stream: Stream,
    /// The beginning of a line whose end has not come yet.
    rest: Vec<u8>,
}

impl Lines {
    pub(super) fn new(stream: Stream) -> Self {
        Lines { stream, rest: Vec::new() }
    }

    /// The log lines that a piece of output completes.
    pub(super) fn push(&mut self, mut piece: &[u8], now: jiff::Timestamp, log: &mut Vec<u8>) {
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(&piece[..end]);
            piece = &piece[end + 1..];
            self.flush_parts(now, log);
            self.write("F", self.rest.len(), now, log);
        }
        self.rest.extend_from_slice(piece);
        self.flush_parts(now, log);
    }

    /// The line that no newline ended: a part for readers, so that none is shown that was not written.
    pub(super) fn finish(&mut self, now: jiff::Timestamp, log: &mut Vec<u8>) {
        if !self.rest.is_empty() {
            self.write("P", self.rest.len(), now, log);
        }
    }

    fn flush_parts(&mut self, now: jiff::Timestamp, log: &mut Vec<u8>) {
        while self.rest.len() > MAX_LINE {
            self.write("P", MAX_LINE, now, log);
        }
    }

    fn write(&mut self, tag: &str, length: usize, now: jiff::Timestamp, log: &mut Vec<u8>) {
        write!(log, "{now:.9} {} {tag} ", self.stream.name()).expect("writing to a Vec does not fail");
        log.extend_from_slice(&self.rest[..length]);
        log.push(b'\n');
        self.rest.drain(..length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let now: jiff::Timestamp = "2026-11-22T05:00:00.5Z".parse().unwrap();
        let mut lines = Lines::new(Stream::Stderr);
        let mut log = Vec::new();
        for piece in pieces {
            lines.push(piece, now, &mut log);
        }
        lines.finish(now, &mut log);
        String::from_utf8(log).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn lines_are_put_together() {
        let expected = [
            "2026-11-22T05:00:00.500000000Z stderr F ab",
            "2026-11-22T05:00:00.500000000Z stderr F ",
            "2026-11-22T05:00:00.500000000Z stderr P c",
        ];
        assert_eq!(lines(&[b"a", b"b\n\nc"]), expected);
    }

    #[test]
    fn long_lines_come_in_parts() {
        let long = vec![b'x'; MAX_LINE + 1];
        let found = lines(&[&long, b"\n"]);
        assert_eq!(found.len(), 2);
        assert!(found[0].contains(" P ") && found[1].ends_with(" F x"));
        // A line of exactly the size is whole.
        let found = lines(&[&long[1..], b"\n"]);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains(" F "));
    }
}
