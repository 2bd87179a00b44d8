//! A container as the shim holds it: its process, its streams, its status on disk.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::launch::{self, Failure, Stdio};
use super::log::{Lines, LogFile, Stream};
use crate::protocol::{Exit, Held, Launch, Started, Streams, now};
use crate::sys::cgroup::Hierarchies;
use crate::sys::process::Identity;
use crate::sys::{durable, fds};

/// Read at once: as much as a pipe holds.
const CHUNK: usize = 64 * 1024;

/// Read of one stream before the others have their turn.
const TURN: usize = 4;

/// Input that a container has not taken yet; its clients wait beyond that.
const MAX_PENDING: usize = 64 * 1024;

/// Output that an attached client has not taken yet is at most a pipe of this size. Containers
/// never wait for a client: one that falls behind further is cut off.
const CLIENT_PIPE: i32 = 1 << 20;

/// A container that was started.
pub(super) struct Container {
    pub(super) launch: Launch,
    pub(super) started: Started,
    pub(super) exit: Option<Exit>,
    outputs: Vec<Output>,
    log: LogFile,
    input: Option<File>,
    pending: VecDeque<u8>,
    /// The input is closed once what is pending has been taken.
    input_ends: bool,
    clients: Vec<Client>,
}

/// One of the container's output streams.
struct Output {
    stream: Stream,
    file: File,
    lines: Lines,
}

/// Someone attached to the container's streams, by the number of the connection.
struct Client {
    connection: u64,
    stdin: Option<File>,
    stdout: Option<File>,
    stderr: Option<File>,
}

/// A descriptor of a container to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Output number n can be read.
    Output(usize),
    /// The input can be written.
    Input,
    /// The input of that connection's client can be read.
    Client(u64),
}

impl Container {
    /// Creates and starts a container, and writes down that it runs.
    pub(super) fn start(launch: Launch, root: &Path) -> Result<Self, Failure> {
        let log = LogFile::open(launch.log.clone())
            .map_err(|error| Failure { code: 128, message: format!("cannot open the log file: {error}") })?;
        let (stdio, mut outputs, mut input) = match launch.tty {
            true => (Stdio::Terminal, Vec::new(), None),
            false => pipes(launch.stdin)?,
        };
        let (pid, master) = launch::container(&launch, root, stdio)?;
        if let Some(master) = master {
            let master = File::from(master);
            fds::set_nonblocking(master.as_fd())?;
            if launch.stdin {
                input = Some(master.try_clone()?);
            }
            outputs.push(Output { stream: Stream::Stdout, file: master, lines: Lines::new(Stream::Stdout) });
        }
        // The process may have ended already; until it is reaped it has its identity.
        let started = Started { process: Identity::of(pid)?, at: now() };
        durable::put_json(&launch.bundle.join("started.json"), &started)?;
        let (pending, clients) = (VecDeque::new(), Vec::new());
        Ok(Container {
            launch,
            started,
            exit: None,
            outputs,
            log,
            input,
            pending,
            input_ends: false,
            clients,
        })
    }

    /// As told to a new agent.
    pub(super) fn held(&self) -> Held {
        Held { container: self.launch.container.clone(), started: self.started, exit: self.exit.clone() }
    }

    /// The descriptors to wait for, and whether for writing.
    pub(super) fn sources(&self) -> Vec<(Source, BorrowedFd<'_>, bool)> {
        let outputs = self.outputs.iter().enumerate();
        let mut sources: Vec<_> =
            outputs.map(|(index, output)| (Source::Output(index), output.file.as_fd(), false)).collect();
        if let Some(input) = self.input.as_ref().filter(|_| !self.pending.is_empty()) {
            sources.push((Source::Input, input.as_fd(), true));
        }
        if self.pending.len() < MAX_PENDING {
            for client in &self.clients {
                if let Some(stdin) = &client.stdin {
                    sources.push((Source::Client(client.connection), stdin.as_fd(), false));
                }
            }
        }
        sources
    }

    /// Moves what is there.
    pub(super) fn ready(&mut self, source: Source) -> io::Result<()> {
        match source {
            Source::Output(index) => self.read_output(index, TURN),
            Source::Input => self.write_input(),
            Source::Client(connection) => self.read_client(connection),
        }
    }

    fn read_output(&mut self, index: usize, turns: usize) -> io::Result<()> {
        let Some(output) = self.outputs.get_mut(index) else { return Ok(()) };
        let mut chunk = vec![0; CHUNK];
        let mut log = Vec::new();
        let mut ended = false;
        for _ in 0..turns {
            match output.file.read(&mut chunk) {
                // A terminal whose last process is gone reports EIO.
                Ok(0) => ended = true,
                Err(error) if error.raw_os_error() == Some(libc::EIO) => ended = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
                Ok(length) => {
                    output.lines.push(&chunk[..length], jiff::Timestamp::now(), &mut log);
                    for client in &mut self.clients {
                        client.send(output.stream, &chunk[..length]);
                    }
                    continue;
                }
            }
            output.lines.finish(jiff::Timestamp::now(), &mut log);
            break;
        }
        self.log.append(&log)?;
        if ended {
            self.outputs.remove(index);
        }
        Ok(())
    }

    fn write_input(&mut self) -> io::Result<()> {
        let Some(input) = &mut self.input else { return Ok(()) };
        let (bytes, _) = self.pending.as_slices();
        if bytes.is_empty() {
            self.end_input();
            return Ok(());
        }
        match input.write(bytes) {
            Ok(length) => drop(self.pending.drain(..length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The process does not read any more: what clients send is dropped.
            Err(_) => {
                self.input = None;
                self.pending.clear();
            }
        }
        self.end_input();
        Ok(())
    }

    fn end_input(&mut self) {
        if self.input_ends && self.pending.is_empty() {
            self.input = None;
        }
    }

    fn read_client(&mut self, connection: u64) -> io::Result<()> {
        let Some(client) = self.clients.iter_mut().find(|client| client.connection == connection) else {
            return Ok(());
        };
        let Some(stdin) = &mut client.stdin else { return Ok(()) };
        let mut chunk = vec![0; CHUNK];
        match stdin.read(&mut chunk) {
            Ok(0) => {
                client.stdin = None;
                self.input_ends = self.launch.stdin_once;
            }
            Ok(length) if self.input.is_some() => self.pending.extend(&chunk[..length]),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => client.stdin = None,
        }
        self.write_input()
    }

    /// Connects a client's streams, in the order of [`Streams`].
    pub(super) fn attach(&mut self, connection: u64, streams: Streams, fds: Vec<OwnedFd>) -> io::Result<()> {
        let mut files = fds.into_iter().map(File::from);
        let mut next = |wanted: bool| if wanted { files.next() } else { None };
        let (stdin, stdout, stderr) = (next(streams.stdin), next(streams.stdout), next(streams.stderr));
        for file in [&stdin, &stdout, &stderr].into_iter().flatten() {
            fds::set_nonblocking(file.as_fd())?;
        }
        for file in [&stdout, &stderr].into_iter().flatten() {
            // Best effort: a smaller pipe cuts slow clients off sooner.
            nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_SETPIPE_SZ(CLIENT_PIPE)).ok();
        }
        self.clients.push(Client { connection, stdin, stdout, stderr });
        Ok(())
    }

    /// A client has gone.
    pub(super) fn detach(&mut self, connection: u64) {
        let before = self.clients.len();
        self.clients.retain(|client| client.connection != connection);
        if self.launch.stdin_once && self.clients.len() < before {
            self.input_ends = true;
            self.end_input();
        }
    }

    /// Closes the streams of all clients; returns their connections.
    pub(super) fn dismiss_clients(&mut self) -> Vec<u64> {
        self.clients.drain(..).map(|client| client.connection).collect()
    }

    /// Changes the size of the terminal, if there is one.
    pub(super) fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        match self.outputs.first().filter(|_| self.launch.tty) {
            Some(output) => set_window_size(output.file.as_fd(), width, height),
            None => Ok(()),
        }
    }

    /// Opens the log file anew.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.log.reopen()
    }

    /// The first process has ended: takes what it wrote last, ends what it left behind, and
    /// writes the status down.
    pub(super) fn finish(&mut self, code: i32, groups: &Hierarchies, root: &Path) -> io::Result<Exit> {
        let group = self.launch.cgroup.clone();
        let oom = groups.oom_kills(&group) > 0;
        groups.kill(&group)?;
        while !self.outputs.is_empty() {
            let before = self.outputs.len();
            self.read_output(0, usize::MAX)?;
            if self.outputs.len() == before {
                // Someone still holds the other end, and has nothing more to say.
                let mut output = self.outputs.remove(0);
                let mut log = Vec::new();
                output.lines.finish(jiff::Timestamp::now(), &mut log);
                self.log.append(&log)?;
            }
        }
        self.input = None;
        let reason = match (oom, code) {
            (true, _) => "OOMKilled",
            (false, 0) => "Completed",
            (false, _) => "Error",
        };
        let exit = Exit { code, at: now(), oom, reason: reason.to_owned(), message: String::new() };
        self.flush_records();
        durable::write_json(&self.launch.bundle.join("exit.json"), &exit)?;
        self.exit = Some(exit.clone());
        durable::remove_tree(&root.join(&self.launch.container))?;
        // Busy where a process takes its time to die; the agent removes it with the container.
        groups.remove(&group).ok();
        Ok(exit)
    }

    /// How the container ended goes on disk; that is worth something only with the records that say what it was.
    fn flush_records(&self) {
        let bundle = &self.launch.bundle;
        let pod = bundle.ancestors().nth(2).unwrap_or(bundle);
        for record in [bundle.join("container.json"), bundle.join("started.json"), pod.join("sandbox.json")] {
            // Only a crash of the machine before the kernel writes it by itself would make a difference.
            if let Err(error) = durable::flush(&record) {
                eprintln!("cannot flush {}: {error}", record.display());
            }
        }
    }
}

impl Client {
    fn send(&mut self, stream: Stream, bytes: &[u8]) {
        let file = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let Some(target) = file else { return };
        // A pipe takes all or, beyond its size, a part: a client that has not read the last
        // megabyte is cut off rather than shown a gap.
        if target.write(bytes).ok() != Some(bytes.len()) {
            *file = None;
        }
    }
}

/// The streams of a container without a terminal: its ends, and ours.
fn pipes(stdin: bool) -> io::Result<(Stdio, Vec<Output>, Option<File>)> {
    let (input_theirs, input) = match stdin {
        true => {
            let (theirs, ours) = fds::pipe()?;
            fds::set_nonblocking(ours.as_fd())?;
            (theirs, Some(File::from(ours)))
        }
        false => (OwnedFd::from(File::open("/dev/null")?), None),
    };
    let mut outputs = Vec::new();
    let mut open = |stream| -> io::Result<OwnedFd> {
        let (ours, theirs) = fds::pipe()?;
        fds::set_nonblocking(ours.as_fd())?;
        outputs.push(Output { stream, file: File::from(ours), lines: Lines::new(stream) });
        Ok(theirs)
    };
    let (stdout, stderr) = (open(Stream::Stdout)?, open(Stream::Stderr)?);
    Ok((Stdio::Pipes { stdin: input_theirs, stdout, stderr }, outputs, input))
}

nix::ioctl_write_ptr_bad!(set_size, libc::TIOCSWINSZ, libc::winsize);

/// Tells the processes of a terminal how large it is.
pub(crate) fn set_window_size(terminal: BorrowedFd<'_>, width: u16, height: u16) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open, and the structure lives through the call.
    unsafe { set_size(terminal.as_raw_fd(), &raw const size) }?;
    Ok(())
}
