//! The shim's one loop: signals, requests, streams.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::container::{Container, Source};
use super::enter::{self, Target};
use super::launch::Stdio;
use super::setup::{self, Protection};
use crate::protocol::{self, Reply, Request, SOCKET, Streams};
use crate::sys::cgroup::Hierarchies;
use crate::sys::fds;
use crate::sys::process::Identity;

/// An agent that does not take an answer of some hundred bytes within this time is gone.
const SEND_WITHIN: Duration = Duration::from_secs(2);

/// Connections at once: each exec and each attached client is one.
const MAX_CONNECTIONS: usize = 1024;

/// Containers that exit while the shim ends get this long to be reaped.
const REAP_WITHIN: Duration = Duration::from_secs(5);

/// Everything that a shim holds.
pub(super) struct Server {
    run: PathBuf,
    /// libcontainer's own state: in memory, since it means nothing after a restart of the machine.
    root: PathBuf,
    groups: Hierarchies,
    init: Option<i32>,
    protection: Protection,
    listener: UnixListener,
    signals: SignalFd,
    connections: BTreeMap<u64, Connection>,
    containers: BTreeMap<String, Container>,
    /// Processes of execs, with the connection that waits for each.
    execs: BTreeMap<i32, u64>,
    next_connection: u64,
    ending: bool,
}

struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    fds: Vec<OwnedFd>,
    subscribed: bool,
}

/// What became ready.
enum Token {
    Signals,
    Listener,
    Connection(u64),
    Container(String, Source),
}

impl Server {
    pub(super) fn new(run: &Path, init: Option<i32>, protection: Protection) -> io::Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        // Only the agent ends a shim: not a service manager that ends the agent's process group.
        mask.add(Signal::SIGTERM);
        mask.add(Signal::SIGINT);
        mask.add(Signal::SIGHUP);
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let root = run.join("oci");
        fs::create_dir_all(&root)?;
        // Relative to the run directory, since its path may be longer than a socket address.
        let listener = UnixListener::bind(SOCKET)?;
        listener.set_nonblocking(true)?;
        Ok(Server {
            run: run.to_owned(),
            root,
            groups: Hierarchies::detect()?,
            init,
            protection,
            listener,
            signals,
            connections: BTreeMap::new(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            next_connection: 0,
            ending: false,
        })
    }

    /// Serves until it is told to end.
    pub(super) fn run(mut self) -> io::Result<()> {
        while !self.ending {
            for token in self.wait(PollTimeout::NONE)? {
                match token {
                    Token::Signals => self.reap()?,
                    Token::Listener => self.accept()?,
                    Token::Connection(id) => self.receive(id),
                    Token::Container(id, source) => self.stream(&id, source),
                }
            }
        }
        Ok(())
    }

    fn wait(&self, timeout: PollTimeout) -> io::Result<Vec<Token>> {
        let mut tokens = vec![Token::Signals, Token::Listener];
        let mut polls = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        for (id, connection) in &self.connections {
            tokens.push(Token::Connection(*id));
            polls.push(PollFd::new(connection.stream.as_fd(), PollFlags::POLLIN));
        }
        for (id, container) in &self.containers {
            for (source, fd, write) in container.sources() {
                tokens.push(Token::Container(id.clone(), source));
                let events = if write { PollFlags::POLLOUT } else { PollFlags::POLLIN };
                polls.push(PollFd::new(fd, events));
            }
        }
        match poll(&mut polls, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready = polls.iter().map(|poll| poll.revents().is_some_and(|events| !events.is_empty()));
        let ready: Vec<bool> = ready.collect();
        Ok(tokens.into_iter().zip(ready).filter(|(_, ready)| *ready).map(|(token, _)| token).collect())
    }

    /// Takes the statuses of all processes that have ended.
    fn reap(&mut self) -> io::Result<()> {
        while self.signals.read_signal()?.is_some() {}
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => self.exited(pid.as_raw(), code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => self.exited(pid.as_raw(), 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return Ok(()),
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn exited(&mut self, pid: i32, code: i32) {
        if let Some(connection) = self.execs.remove(&pid) {
            self.send(connection, &Reply::Exited { code }, &[]);
            return;
        }
        let running =
            |container: &&mut Container| container.started.process.pid == pid && container.exit.is_none();
        let Some(container) = self.containers.values_mut().find(running) else { return };
        let exit = match container.finish(code, &self.groups, &self.root) {
            Ok(exit) => exit,
            Err(error) => {
                // Tell the agent all the same: it would wait for ever.
                eprintln!("status of {}: {error}", container.launch.container);
                let exit = protocol::Exit {
                    code,
                    at: protocol::now(),
                    oom: false,
                    reason: "Error".to_owned(),
                    message: error.to_string(),
                };
                container.exit = Some(exit.clone());
                exit
            }
        };
        let clients = container.dismiss_clients();
        let event = Reply::Exit { container: container.launch.container.clone(), exit };
        for client in clients {
            self.send(client, &Reply::Exited { code }, &[]);
        }
        self.publish(&event);
    }

    fn accept(&mut self) -> io::Result<()> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        if self.connections.len() >= MAX_CONNECTIONS {
            // Closed unanswered: the agent reports that the shim does not answer.
            return Ok(());
        }
        stream.set_nonblocking(true)?;
        let connection = Connection { stream, received: Vec::new(), fds: Vec::new(), subscribed: false };
        self.connections.insert(self.next_connection, connection);
        self.next_connection += 1;
        Ok(())
    }

    fn receive(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Connection { stream, received, fds, .. } = connection;
        match fds::receive(stream.as_fd(), received, fds) {
            Ok(0) => return self.close(id),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => return self.close(id),
        }
        match protocol::decode::<Request>(received) {
            Ok(None) => {}
            Ok(Some(request)) => {
                let fds = std::mem::take(fds);
                self.handle(id, request, fds);
            }
            Err(error) => {
                self.send(id, &Reply::Failed { message: error.to_string() }, &[]);
                self.close(id);
            }
        }
    }

    /// An agent has gone: what it alone wanted ends.
    fn close(&mut self, id: u64) {
        self.connections.remove(&id);
        for container in self.containers.values_mut() {
            container.detach(id);
        }
        let orphans: Vec<i32> =
            self.execs.iter().filter(|(_, connection)| **connection == id).map(|(pid, _)| *pid).collect();
        for pid in orphans {
            // SAFETY: kill has no memory effects; our child is not reaped yet, so the number is its.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }

    fn handle(&mut self, id: u64, request: Request, fds: Vec<OwnedFd>) {
        let reply = match request {
            Request::Hello => Ok(self.hello()),
            Request::Subscribe => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.subscribed = true;
                }
                Ok(Reply::Done)
            }
            Request::Start(launch) => Ok(self.start(*launch)),
            Request::Kill { container, signal, all } => self.kill(&container, signal, all),
            Request::Exec { container, process, tty, streams } => {
                return self.exec(id, &container, &process, tty, streams, fds);
            }
            Request::Attach { container, streams } => self.attach(id, &container, streams, fds),
            Request::Resize { container, width, height } => {
                self.running(&container, |container| container.resize(width, height))
            }
            Request::Reopen { container } => self.running(&container, Container::reopen),
            Request::Forget { container } => {
                self.containers.retain(|id, held| *id != container || held.exit.is_none());
                Ok(Reply::Done)
            }
            Request::Shutdown => self.shutdown(),
        };
        let reply = reply.unwrap_or_else(|error| Reply::Failed { message: error.to_string() });
        self.send(id, &reply, &[]);
    }

    fn hello(&self) -> Reply {
        let me = Identity::of(std::process::id().cast_signed());
        match me {
            Ok(shim) => Reply::Hello {
                version: protocol::VERSION,
                shim,
                containers: self.containers.values().map(Container::held).collect(),
            },
            Err(error) => Reply::Failed { message: error.to_string() },
        }
    }

    fn start(&mut self, launch: protocol::Launch) -> Reply {
        if self.containers.contains_key(&launch.container) {
            return Reply::Failed { message: "the container was started already".to_owned() };
        }
        let (id, group) = (launch.container.clone(), launch.cgroup.clone());
        let result = Container::start(launch, &self.root);
        self.protection.restore();
        match result {
            Ok(container) => {
                let started = container.started;
                self.containers.insert(id, container);
                Reply::Started { process: started.process, at: started.at }
            }
            Err(failure) => {
                // What libcontainer has left of it; the failure itself is what to report.
                if let Err(error) = self.groups.kill(&group).and_then(|()| self.groups.remove(&group)) {
                    eprintln!("control group of {id}: {error}");
                }
                if let Err(error) = crate::sys::durable::remove_tree(&self.root.join(&id)) {
                    eprintln!("state of {id}: {error}");
                }
                Reply::StartFailed { code: failure.code, message: failure.message }
            }
        }
    }

    fn kill(&self, container: &str, signal: i32, all: bool) -> io::Result<Reply> {
        let Some(container) = self.containers.get(container).filter(|held| held.exit.is_none()) else {
            return Ok(Reply::NotRunning);
        };
        match all && signal == libc::SIGKILL {
            true => {
                container.started.process.kill(signal)?;
                self.groups.kill(&container.launch.cgroup)?;
            }
            false => container.started.process.kill(signal)?,
        }
        Ok(Reply::Done)
    }

    fn exec(
        &mut self,
        id: u64,
        container: &str,
        process: &serde_json::Value,
        tty: bool,
        streams: Streams,
        fds: Vec<OwnedFd>,
    ) {
        let Some(held) = self.containers.get(container).filter(|held| held.exit.is_none()) else {
            return self.send(id, &Reply::NotRunning, &[]);
        };
        let stdio = match exec_stdio(tty, streams, fds) {
            Ok(stdio) => stdio,
            Err(error) => return self.send(id, &Reply::Failed { message: error.to_string() }, &[]),
        };
        let target = Target {
            pid: held.started.process.pid,
            groups: &self.groups,
            cgroup: &held.launch.cgroup,
            privileges: &held.launch.privileges,
            owner: held.launch.owner,
        };
        match enter::exec(&target, process, stdio) {
            Ok((pid, master)) => {
                self.execs.insert(pid, id);
                let process = Identity::of(pid).unwrap_or(Identity { pid, started: 0 });
                let master: Vec<RawFd> = master.iter().map(AsRawFd::as_raw_fd).collect();
                self.send(id, &Reply::Started { process, at: protocol::now() }, &master);
            }
            Err(failure) => {
                let reply = Reply::StartFailed { code: failure.code, message: failure.message };
                self.send(id, &reply, &[]);
            }
        }
    }

    fn attach(&mut self, id: u64, container: &str, streams: Streams, fds: Vec<OwnedFd>) -> io::Result<Reply> {
        self.running(container, |container| container.attach(id, streams, fds))
    }

    fn running(
        &mut self,
        container: &str,
        action: impl FnOnce(&mut Container) -> io::Result<()>,
    ) -> io::Result<Reply> {
        match self.containers.get_mut(container).filter(|held| held.exit.is_none()) {
            Some(container) => action(container).map(|()| Reply::Done),
            None => Ok(Reply::NotRunning),
        }
    }

    fn stream(&mut self, id: &str, source: Source) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Err(error) = container.ready(source) {
            // A full disk, say: the container goes on, its output is lost, and it is said where
            // whoever looks for it will find it.
            eprintln!("streams of {id}: {error}");
        }
    }

    /// Kills all containers and waits until their statuses are on disk.
    fn shutdown(&mut self) -> io::Result<Reply> {
        for container in self.containers.values().filter(|held| held.exit.is_none()) {
            container.started.process.kill(libc::SIGKILL)?;
            self.groups.kill(&container.launch.cgroup)?;
        }
        let deadline = std::time::Instant::now() + REAP_WITHIN;
        while self.containers.values().any(|held| held.exit.is_none()) {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "a container does not end"));
            }
            let mut polls = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            poll(&mut polls, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))?;
            self.reap()?;
        }
        if let Some(init) = self.init {
            // SAFETY: kill has no memory effects; the child is ours and not reaped.
            unsafe { libc::kill(init, libc::SIGKILL) };
        }
        setup::release(&self.run);
        match fs::remove_file(SOCKET) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.ending = true;
        Ok(Reply::Done)
    }

    fn publish(&mut self, event: &Reply) {
        let subscribers: Vec<u64> =
            self.connections.iter().filter(|(_, c)| c.subscribed).map(|(id, _)| *id).collect();
        for id in subscribers {
            self.send(id, event, &[]);
        }
    }

    /// Sends a frame; a connection that does not take it is closed.
    fn send(&mut self, id: u64, reply: &Reply, fds: &[RawFd]) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let frame = protocol::encode(reply);
        if send_all(&mut connection.stream, &frame, fds).is_err() {
            self.close(id);
        }
    }
}

fn send_all(stream: &mut UnixStream, frame: &[u8], fds: &[RawFd]) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(SEND_WITHIN))?;
    let sent = fds::send(stream.as_fd(), frame, fds)?;
    stream.write_all(&frame[sent..])?;
    stream.set_nonblocking(true)
}

/// The streams of an exec: what did not come along is empty.
fn exec_stdio(tty: bool, streams: Streams, fds: Vec<OwnedFd>) -> io::Result<Stdio> {
    if tty {
        return Ok(Stdio::Terminal);
    }
    let mut fds = fds.into_iter();
    let mut next = |wanted: bool| -> io::Result<OwnedFd> {
        match (wanted, if wanted { fds.next() } else { None }) {
            (true, Some(fd)) => Ok(fd),
            (true, None) => Err(io::Error::new(io::ErrorKind::InvalidInput, "a stream is missing")),
            (false, _) => Ok(fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.into()),
        }
    };
    let (stdin, stdout, stderr) = (next(streams.stdin)?, next(streams.stdout)?, next(streams.stderr)?);
    Ok(Stdio::Pipes { stdin, stdout, stderr })
}
