//! The audit log: a file of JSON lines, one an event, that is replaced when it has grown large.
//!
//! A thread of its own writes it, so no request waits for the disk. What does not fit into the bounded
//! queue is dropped and counted, loudly.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use jiff::{SignedDuration, Timestamp};

use super::counts::Counts;
use crate::clock::Clock;

/// Events that wait for the disk: Kubernetes' buffer, some 10 MiB of metadata.
const QUEUE: usize = 10_000;
/// Where events are written to that go to no file.
const STDOUT: &str = "-";

/// Where and for how long events are kept.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The file; `-` is the standard output.
    pub path: PathBuf,
    /// Files are replaced before they grow larger than this many MiB.
    pub max_size: u64,
    /// Replaced files are kept for this many days; 0 keeps them for ever.
    pub max_age: u64,
    /// This many replaced files are kept; 0 keeps all.
    pub max_backups: usize,
}

/// The end of the log at which events are put in.
pub(crate) struct Log {
    queue: SyncSender<String>,
    counts: Counts,
}

impl Log {
    /// Opens the log and starts the thread that writes it.
    pub(crate) fn open(options: LogOptions, counts: Counts, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let (queue, events) = sync_channel(QUEUE);
        let mut output = Output::open(options, clock)?;
        std::thread::Builder::new()
            .name("audit-log".to_owned())
            .spawn(move || write(&mut output, &events))?;
        Ok(Self { queue, counts })
    }

    /// Puts an event in. Never waits: if the disk cannot keep up, the event is lost.
    pub(crate) fn put(&self, event: String) {
        let Err(refused) = self.queue.try_send(event) else { return };
        let dropped = self.counts.lost("log", 1);
        // The first tells that it began, and then the powers of two how bad it is.
        if dropped.is_power_of_two() {
            let why = match refused {
                TrySendError::Full(_) => "the log is not written fast enough",
                TrySendError::Disconnected(_) => "the log cannot be written any more",
            };
            tracing::error!(dropped, why, "audit events are lost");
        }
    }
}

fn write(output: &mut Output, events: &Receiver<String>) {
    while let Ok(event) = events.recv() {
        let mut next = Some(event);
        while let Some(event) = next {
            if let Err(error) = output.line(&event) {
                tracing::error!(%error, "an audit event cannot be written");
            }
            next = events.try_recv().ok();
        }
        if let Err(error) = output.flush() {
            tracing::error!(%error, "audit events cannot be written");
        }
    }
}

enum Output {
    Stdout,
    File(Rotating),
}

impl Output {
    fn open(options: LogOptions, clock: Arc<dyn Clock>) -> io::Result<Self> {
        if options.path == Path::new(STDOUT) {
            return Ok(Self::Stdout);
        }
        Ok(Self::File(Rotating::open(options, clock)?))
    }

    fn line(&mut self, event: &str) -> io::Result<()> {
        match self {
            Self::Stdout => writeln!(io::stdout().lock(), "{event}"),
            Self::File(file) => file.line(event),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout => io::stdout().flush(),
            Self::File(file) => file.file.flush(),
        }
    }
}

/// A file that is replaced when it has grown large.
struct Rotating {
    options: LogOptions,
    clock: Arc<dyn Clock>,
    file: BufWriter<File>,
    size: u64,
}

fn create(path: &Path) -> io::Result<File> {
    // Events tell who did what: they are for the administrator's eyes.
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

impl Rotating {
    fn open(options: LogOptions, clock: Arc<dyn Clock>) -> io::Result<Self> {
        if let Some(dir) = options.path.parent() {
            fs::create_dir_all(dir)?;
        }
        let file = create(&options.path)?;
        let size = file.metadata()?.len();
        Ok(Self { options, clock, file: BufWriter::new(file), size })
    }

    fn line(&mut self, event: &str) -> io::Result<()> {
        let length = event.len() as u64 + 1;
        let limit = self.options.max_size.saturating_mul(1024 * 1024);
        if limit > 0 && self.size > 0 && self.size + length > limit {
            self.rotate()?;
        }
        self.size += length;
        self.file.write_all(event.as_bytes())?;
        self.file.write_all(b"\n")
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        fs::rename(&self.options.path, self.backup(self.clock.now()))?;
        self.file = BufWriter::new(create(&self.options.path)?);
        self.size = 0;
        self.forget()
    }

    /// `audit.log` becomes `audit-2026-01-02T03-04-05.678.log`.
    fn backup(&self, at: Timestamp) -> PathBuf {
        let (stem, extension) = self.parts();
        let name = format!("{stem}-{}{extension}", at.strftime(FORM));
        self.options.path.with_file_name(name)
    }

    fn parts(&self) -> (String, String) {
        let path = &self.options.path;
        let text = |part: Option<&std::ffi::OsStr>| part.map(|p| p.to_string_lossy().into_owned());
        let extension = text(path.extension()).map(|e| format!(".{e}")).unwrap_or_default();
        (text(path.file_stem()).unwrap_or_default(), extension)
    }

    /// Removes replaced files that are too old or too many.
    fn forget(&self) -> io::Result<()> {
        let (stem, extension) = self.parts();
        let dir = self.options.path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let mut backups = Vec::new();
        for entry in fs::read_dir(dir.unwrap_or(Path::new(".")))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let middle = name.strip_prefix(&format!("{stem}-")).and_then(|n| n.strip_suffix(&extension));
            let at = middle.and_then(|middle| jiff::civil::DateTime::strptime(FORM, middle).ok());
            if let Some(at) = at.and_then(|at| at.to_zoned(jiff::tz::TimeZone::UTC).ok()) {
                backups.push((at.timestamp(), entry.path()));
            }
        }
        backups.sort();
        backups.reverse();
        let keep = if self.options.max_backups == 0 { usize::MAX } else { self.options.max_backups };
        let days = i64::try_from(self.options.max_age).unwrap_or(i64::MAX);
        let oldest = SignedDuration::from_hours(days.saturating_mul(24).min(24 * 365 * 1000));
        for (index, (at, path)) in backups.iter().enumerate() {
            let aged = days > 0 && self.clock.now().duration_since(*at) > oldest;
            if index >= keep || aged {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

const FORM: &str = "%Y-%m-%dT%H-%M-%S.%3f";

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    struct Ticking(Mutex<Timestamp>);

    impl Clock for Ticking {
        fn now(&self) -> Timestamp {
            let mut now = self.0.lock().unwrap();
            *now += SignedDuration::from_hours(1);
            *now
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = entries.collect();
        names.sort();
        names
    }

    fn rotating(dir: &Path, max_age: u64, max_backups: usize) -> Rotating {
        let clock = Arc::new(Ticking(Mutex::new("2026-01-01T00:00:00Z".parse().unwrap())));
        let options = LogOptions { path: dir.join("audit.log"), max_size: 1, max_age, max_backups };
        Rotating::open(options, clock).unwrap()
    }

    #[test]
    fn grows_to_its_size_and_keeps_some() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = rotating(dir.path(), 0, 2);
        let line = "x".repeat(600 * 1024);
        for _ in 0..5 {
            log.line(&line).unwrap();
        }
        assert_eq!(names(dir.path()).len(), 3, "{:?}", names(dir.path()));
        assert!(names(dir.path()).contains(&"audit.log".to_owned()));
        assert_eq!(log.size, line.len() as u64 + 1);
    }

    #[test]
    fn forgets_by_age_and_leaves_other_files_alone() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            ["audit-2025-12-01T00-00-00.000.log", "audit-2025-12-31T23-00-00.000.log", "audit-notes.log"]
        {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        let mut log = rotating(dir.path(), 2, 0);
        log.line("a").unwrap();
        log.rotate().unwrap();
        let left = names(dir.path());
        assert!(!left.contains(&"audit-2025-12-01T00-00-00.000.log".to_owned()), "{left:?}");
        assert!(left.contains(&"audit-2025-12-31T23-00-00.000.log".to_owned()), "{left:?}");
        assert!(left.contains(&"audit-notes.log".to_owned()));
    }
}
