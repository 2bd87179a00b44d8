//! What agent and shim say to each other over the shim's Unix socket.
//!
//! A connection carries one request and what follows from it: frames of a length (four bytes,
//! little endian) and JSON. Streams of processes are passed as descriptors, so that their data
//! never goes through a frame.
//!
//! **Invariant**: an agent of a later version talks to shims of earlier ones, since shims live as
//! long as their pods. Fields are added with defaults, and never change their meaning.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::sys::idmap::Users;
use crate::sys::process::Identity;

/// The version of this protocol.
pub(crate) const VERSION: u32 = 1;

/// Largest frame: a process' arguments and environment, which the kernel bounds at 2 MiB.
const MAX_FRAME: usize = 8 << 20;

/// The name of the socket in the sandbox's run directory.
pub(crate) const SOCKET: &str = "shim.sock";

/// How a shim is to set up its sandbox; written for it before it starts.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// Whether the pod has a network namespace of its own.
    pub(crate) network: bool,
    /// Whether the pod has an IPC namespace and shared memory of its own.
    pub(crate) ipc: bool,
    /// Whether the pod has a host name of its own.
    pub(crate) uts: bool,
    /// Whether the pod's containers share one process namespace.
    pub(crate) pid: bool,
    /// The host name.
    pub(crate) hostname: String,
    /// Kernel parameters of the pod's namespaces.
    pub(crate) sysctls: BTreeMap<String, String>,
    /// The control group of the shim itself.
    pub(crate) cgroup: Option<String>,
    /// The ids of the pod's user namespace, if it has one of its own.
    #[serde(default)]
    pub(crate) users: Option<Users>,
}

/// What the agent asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub(crate) enum Request {
    /// Who is there, and what it holds.
    Hello,
    /// Send events on this connection until it is closed.
    Subscribe,
    /// Create and start a container.
    Start(Box<Launch>),
    /// Send a signal to a container's process, or to all in it.
    Kill { container: String, signal: i32, all: bool },
    /// Run a process in a container, with the streams that come along: stdin, stdout, stderr.
    /// Closing the connection kills it.
    Exec { container: String, process: serde_json::Value, tty: bool, streams: Streams },
    /// Connect the streams that come along to those of the container.
    Attach { container: String, streams: Streams },
    /// Change the size of the container's terminal.
    Resize { container: String, width: u16, height: u16 },
    /// Open the log file anew.
    Reopen { container: String },
    /// Forget a container that has exited.
    Forget { container: String },
    /// Kill everything, release the namespaces, and end.
    Shutdown,
}

/// Which streams come along as descriptors, in this order.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Streams {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

/// All that a shim needs to start a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Launch {
    /// Its id.
    pub(crate) container: String,
    /// The directory with `config.json`; statuses are written there.
    pub(crate) bundle: PathBuf,
    /// Where its output goes.
    pub(crate) log: Option<PathBuf>,
    /// Whether it has a terminal.
    pub(crate) tty: bool,
    /// Whether its standard input is open.
    pub(crate) stdin: bool,
    /// Whether its standard input is closed with the first client's.
    pub(crate) stdin_once: bool,
    /// Its control group.
    pub(crate) cgroup: String,
    /// What its processes may do.
    pub(crate) privileges: Privileges,
    /// User and group, as the machine sees them, who own the streams of its processes.
    #[serde(default)]
    pub(crate) owner: Option<(u32, u32)>,
}

/// What a process of a container may do; set right before it is executed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Privileges {
    /// Capabilities that executed files may give.
    pub(crate) bounding: u64,
    /// Capabilities that the process has: permitted and effective.
    pub(crate) permitted: u64,
    /// Capabilities that also programs without file capabilities keep.
    pub(crate) ambient: u64,
    /// The system calls that are allowed.
    pub(crate) seccomp: Seccomp,
}

/// A filter of system calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Seccomp {
    /// None.
    #[default]
    Unconfined,
    /// The profile that container runtimes agree on.
    RuntimeDefault,
    /// Programs for the kernel, made of a profile of the node, in the order in which they are installed; of each
    /// instruction the operation, both jumps and the operand, from the highest bits to the lowest.
    Programs(Vec<Vec<u64>>),
}

/// What a shim says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub(crate) enum Reply {
    /// It is done.
    Done,
    /// The answer to `Hello`.
    Hello { version: u32, shim: Identity, containers: Vec<Held> },
    /// A process runs. The master side of its terminal comes along, if it has one.
    Started { process: Identity, at: i64 },
    /// The process of this connection has ended.
    Exited { code: i32 },
    /// A container has exited; its status is on disk.
    Exit { container: String, exit: Exit },
    /// The container's process could not be started: its own fault.
    StartFailed { code: i32, message: String },
    /// The container is not there, or not in a state that allows it.
    NotRunning,
    /// The shim or the machine failed.
    Failed { message: String },
}

/// A container that a shim holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) container: String,
    pub(crate) started: Started,
    pub(crate) exit: Option<Exit>,
}

/// Written as `started.json` when a container's process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Started {
    /// Its first process.
    pub(crate) process: Identity,
    /// When, in nanoseconds since 1970.
    pub(crate) at: i64,
}

/// Written as `exit.json` when a container has exited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// 128 + n for signal n.
    pub(crate) code: i32,
    /// When, in nanoseconds since 1970.
    pub(crate) at: i64,
    /// Whether the kernel killed a process of it for want of memory.
    #[serde(default)]
    pub(crate) oom: bool,
    /// Why, where it is not plain from the code.
    #[serde(default)]
    pub(crate) reason: String,
    /// More about why.
    #[serde(default)]
    pub(crate) message: String,
}

/// A value as a frame.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let body = serde_json::to_vec(value).expect("protocol values are JSON");
    let length = u32::try_from(body.len()).expect("frames are bounded by what the kernel executes");
    let mut frame = length.to_le_bytes().to_vec();
    frame.extend_from_slice(&body);
    frame
}

/// Takes the first whole frame out of what was received.
pub(crate) fn decode<T: DeserializeOwned>(received: &mut Vec<u8>) -> io::Result<Option<T>> {
    let Some(header) = received.first_chunk::<4>() else { return Ok(None) };
    let length = usize::try_from(u32::from_le_bytes(*header)).expect("32 bits fit a usize");
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too large"));
    }
    let Some(body) = received.get(4..4 + length) else { return Ok(None) };
    let value = serde_json::from_slice(body)?;
    received.drain(..4 + length);
    Ok(Some(value))
}

/// Now, in nanoseconds since 1970: the form of points in time in CRI.
pub(crate) fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).expect("nanoseconds fit until the year 2262")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive_in_pieces() {
        let frame = encode(&Request::Kill { container: "c".into(), signal: 15, all: false });
        let mut received = Vec::new();
        for (index, byte) in frame.iter().enumerate() {
            received.push(*byte);
            let request: Option<Request> = decode(&mut received).unwrap();
            assert_eq!(request.is_some(), index + 1 == frame.len());
        }
        assert!(received.is_empty());
    }

    #[test]
    fn frames_are_bounded() {
        let mut received = u32::MAX.to_le_bytes().to_vec();
        assert!(decode::<Request>(&mut received).is_err());
    }
}
