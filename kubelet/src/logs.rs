//! Reads container logs as the runtime writes them (CRI format), with the options of `kubectl logs`.

use std::io::{self, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use decapod_client::clock::Clock;
use flate2::read::MultiGzDecoder;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;

use crate::inotify::Watch;
use crate::rotate;

/// How much is read at once.
const CHUNK: usize = 32 * 1024;
/// The longest line that is held to be parsed; runtimes split lines at 16 KiB.
const LINE_MAX: usize = 256 * 1024;
/// While following: how often to look whether the container still runs. What is written is seen at once.
const ALIVE_CHECK: Duration = Duration::from_secs(1);

/// Which part of a log, in which form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) follow: bool,
    pub(crate) tail: Option<u64>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) timestamps: bool,
    pub(crate) limit_bytes: Option<u64>,
    /// Only this stream (`stdout`, `stderr`); both without.
    pub(crate) stream: Option<String>,
}

/// The log could not be read.
#[derive(Debug, thiserror::Error)]
#[error("failed to read log {path}")]
pub(crate) struct Error {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Says whether the container may still write.
pub(crate) type Alive = Box<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>;

/// One entry of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry<'a> {
    time: &'a str,
    stream: &'a str,
    partial: bool,
    content: &'a [u8],
}

/// Parses `<time> <stream> <tag> <content>`; `None` for what no CRI runtime writes.
fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tag = parts.next()?;
    let content = parts.next().unwrap_or_default();
    if !matches!(stream, "stdout" | "stderr") {
        return None;
    }
    Some(Entry { time, stream, partial: tag.split(|b| *b == b':').next() == Some(b"P"), content })
}

/// Turns entries into what the user reads.
struct Writer {
    options: Options,
    sent: u64,
    /// The last entry was a part of a line.
    within: bool,
}

impl Writer {
    /// Appends one entry; false once the limit is reached.
    fn write(&mut self, entry: Entry<'_>, out: &mut BytesMut) -> bool {
        if self.options.stream.as_ref().is_some_and(|s| s != entry.stream) {
            return true;
        }
        let since = self.options.since;
        if since.is_some_and(|since| entry.time.parse::<Timestamp>().is_ok_and(|t| t < since)) {
            return true;
        }
        if self.options.timestamps && !self.within {
            out.put_slice(entry.time.as_bytes());
            out.put_u8(b' ');
        }
        out.put_slice(entry.content);
        if !entry.partial {
            out.put_u8(b'\n');
        }
        self.within = entry.partial;
        true
    }

    /// Cuts `out` to what may still be sent; false once nothing more may.
    fn limit(&mut self, out: &mut BytesMut) -> bool {
        let Some(limit) = self.options.limit_bytes else { return true };
        let left = limit.saturating_sub(self.sent);
        let keep = usize::try_from(left).unwrap_or(usize::MAX).min(out.len());
        out.truncate(keep);
        self.sent += keep as u64;
        self.sent < limit
    }
}

/// Sends the log to `sink` until its end, or with `follow` until the container has ended or nobody listens.
pub(crate) async fn send(
    path: &Path,
    options: Options,
    alive: Alive,
    clock: Arc<dyn Clock>,
    sink: mpsc::Sender<Bytes>,
) -> Result<(), Error> {
    let failed = |source| Error { path: path.to_owned(), source };
    let follow = options.follow;
    let mut reader = Reader::open(path, options.tail).await.map_err(failed)?;
    let mut writer = Writer { options, sent: 0, within: false };
    let mut watch = if follow { reader.watch().map_err(failed)? } else { None };
    let mut ended = false;
    let mut next = None;
    loop {
        let mut out = BytesMut::new();
        let more = reader.read(&mut writer, &mut out).await.map_err(failed)?;
        let go_on = writer.limit(&mut out);
        if !out.is_empty() && sink.send(out.freeze()).await.is_err() {
            return Ok(());
        }
        if !go_on {
            return Ok(());
        }
        if more {
            continue;
        }
        if !follow {
            return Ok(());
        }
        if let Some(next) = next.take() {
            reader = next;
            watch = reader.watch().map_err(failed)?;
            continue;
        }
        next = reader.next(path).await.map_err(failed)?;
        if next.is_some() {
            // Nobody writes into this file any more: once again to its end, and then on.
            continue;
        }
        if ended {
            return Ok(());
        }
        let changed = async {
            match watch.as_mut() {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sink.closed() => return Ok(()),
            changed = changed => changed.map_err(failed)?,
            // Once the container has ended, one more look catches what it wrote last.
            () = clock.sleep(ALIVE_CHECK) => ended = !alive().await,
        }
    }
}

/// What a log is read from.
enum Content {
    Plain(File),
    /// A log that was moved aside long ago; its name. Reading it blocks, but for no more than unpacking takes.
    Packed(Box<MultiGzDecoder<std::fs::File>>, PathBuf),
}

struct Reader {
    content: Content,
    /// Read but not yet parsed.
    rest: BytesMut,
}

impl Reader {
    async fn open(path: &Path, tail: Option<u64>) -> io::Result<Self> {
        let mut file = File::open(path).await?;
        if let Some(lines) = tail {
            let start = tail_start(&mut file, lines).await?;
            file.seek(SeekFrom::Start(start)).await?;
        }
        Ok(Self { content: Content::Plain(file), rest: BytesMut::new() })
    }

    fn packed(path: &Path) -> io::Result<Self> {
        let content = Box::new(MultiGzDecoder::new(std::fs::File::open(path)?));
        Ok(Self { content: Content::Packed(content, path.to_owned()), rest: BytesMut::new() })
    }

    /// Reads one chunk; false at the end of the file as it is now.
    async fn read(&mut self, writer: &mut Writer, out: &mut BytesMut) -> io::Result<bool> {
        self.rest.reserve(CHUNK);
        let length = match &mut self.content {
            Content::Plain(file) => file.read_buf(&mut self.rest).await?,
            Content::Packed(content, _) => {
                let mut chunk = [0; CHUNK];
                let length = io::Read::read(content, &mut chunk)?;
                self.rest.put_slice(&chunk[..length]);
                length
            }
        };
        if length == 0 {
            return Ok(false);
        }
        while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
            let line = self.rest.split_to(end + 1);
            match parse(&line) {
                Some(entry) => {
                    writer.write(entry, out);
                }
                None => tracing::debug!(length = line.len(), "a log line that is not in CRI format"),
            }
        }
        if self.rest.len() > LINE_MAX {
            self.rest.clear();
        }
        Ok(true)
    }

    /// The name that the file has now, wherever it was moved, or that it had last.
    fn name(&self) -> io::Result<PathBuf> {
        match &self.content {
            Content::Packed(_, name) => Ok(name.clone()),
            Content::Plain(file) => {
                let name = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
                let text = name.to_string_lossy();
                Ok(text.strip_suffix(" (deleted)").map_or_else(|| name.clone(), PathBuf::from))
            }
        }
    }

    /// Watches what is written; nothing where it was moved aside just now, which the next look finds.
    fn watch(&self) -> io::Result<Option<Watch>> {
        match Watch::new(&self.name()?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            watch => watch.map(Some),
        }
    }

    /// The file that follows this one, if this one was moved aside and is not written any more.
    async fn next(&self, path: &Path) -> io::Result<Option<Self>> {
        let name = self.name()?;
        if name.file_name() == path.file_name() {
            return Ok(None);
        }
        loop {
            let found = match rotate::after(path, &name)? {
                Some(old) if old.packed => Self::packed(&old.path),
                Some(old) => Self::open(&old.path, None).await,
                None => match Self::open(path, None).await {
                    // Moved aside meanwhile, and another one after it: then this is not the one that follows.
                    Ok(newest) if rotate::after(path, &name)?.is_some_and(|old| !newest.is(&old.path)) => {
                        continue;
                    }
                    newest => newest,
                },
            };
            match found {
                // Packed or moved aside meanwhile; or the new one is not there yet, nor is any other.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if rotate::after(path, &name)?.is_none() {
                        return Ok(None);
                    }
                }
                found => return found.map(Some),
            }
        }
    }

    /// Whether it is the file of that name, packed or not.
    fn is(&self, path: &Path) -> bool {
        let plain = |path: &Path| path.to_string_lossy().trim_end_matches(".gz").to_owned();
        self.name().is_ok_and(|name| plain(&name) == plain(path))
    }
}

/// The offset at which the last `lines` lines begin, found from the end.
async fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    let size = file.seek(SeekFrom::End(0)).await?;
    if lines == 0 {
        return Ok(size);
    }
    let mut at = size;
    let mut seen = 0;
    let mut buffer = vec![0; CHUNK];
    while at > 0 {
        let length = at.min(CHUNK as u64);
        at -= length;
        file.seek(SeekFrom::Start(at)).await?;
        let chunk = &mut buffer[..usize::try_from(length).unwrap_or(CHUNK)];
        file.read_exact(chunk).await?;
        for (index, _) in chunk.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
            let after = at + index as u64 + 1;
            // The newline at the very end closes the last line; it begins none.
            if after == size {
                continue;
            }
            seen += 1;
            if seen == lines {
                return Ok(after);
            }
        }
    }
    Ok(0)
}

/// The end of a log as one text, for termination messages.
pub(crate) async fn tail(path: &Path, lines: u64, bytes: usize) -> Result<String, Error> {
    let failed = |source| Error { path: path.to_owned(), source };
    let mut reader = Reader::open(path, Some(lines)).await.map_err(failed)?;
    let mut writer = Writer { options: Options::default(), sent: 0, within: false };
    let mut out = BytesMut::new();
    while reader.read(&mut writer, &mut out).await.map_err(failed)? {
        if out.len() > bytes {
            let cut = out.len() - bytes;
            let _cut_off = out.split_to(cut);
        }
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
#[path = "logs_tests.rs"]
mod tests;
