//! What the runtime keeps on disk, and how it is found again.
//!
//! **Invariant**: a record is written before the call that made it returns, so that whoever is killed finds it, and
//! reaches the disk at the latest with the end of a container: what a crash of the machine can take before then ends
//! with it. Statuses of processes are written by the shim; the agent only reads them, or writes one where the shim is
//! dead.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use decapod_proto::cri;

use crate::protocol::{Exit, Launch, Started};
use crate::sys::durable;

/// Where things are.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    pub(super) data: PathBuf,
    pub(super) run: PathBuf,
}

impl Paths {
    /// What is kept of all sandboxes.
    pub(super) fn pods(&self) -> PathBuf {
        self.data.join("pods")
    }

    /// What is kept of a sandbox.
    pub(super) fn sandbox(&self, id: &str) -> PathBuf {
        self.pods().join(id)
    }

    /// Sockets and mounts of a sandbox; gone with a restart of the machine.
    pub(super) fn sandbox_run(&self, id: &str) -> PathBuf {
        self.run.join(id)
    }

    /// A mounted namespace of a sandbox.
    pub(super) fn namespace(&self, id: &str, name: &str) -> PathBuf {
        self.sandbox_run(id).join("ns").join(name)
    }

    /// What is kept of a container.
    pub(super) fn container(&self, sandbox: &str, id: &str) -> PathBuf {
        self.sandbox(sandbox).join("containers").join(id)
    }

    /// Where a container's root file system is mounted.
    pub(super) fn rootfs(&self, sandbox: &str, id: &str) -> PathBuf {
        self.sandbox_run(sandbox).join("rootfs").join(id)
    }
}

/// A protobuf message in a JSON document.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Encoded<T>(pub(super) T);

impl<T: Message> Serialize for Encoded<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0.encode_to_vec()))
    }
}

impl<'de, T: Message + Default> Deserialize<'de> for Encoded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(D::Error::custom)?;
        T::decode(bytes.as_slice()).map(Encoded).map_err(D::Error::custom)
    }
}

/// How far a sandbox is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// Not reported to anyone yet: removed if the agent dies now.
    Creating,
    /// Containers can run in it.
    Ready,
    /// None can any more.
    Stopped,
}

/// `sandbox.json`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SandboxRecord {
    pub(super) id: String,
    pub(super) config: Encoded<cri::PodSandboxConfig>,
    pub(super) handler: String,
    pub(super) created_at: i64,
    /// The boot of the machine that it runs in.
    pub(super) boot: String,
    pub(super) stage: Stage,
    pub(super) ips: Vec<IpAddr>,
    /// The network has to be told when it goes.
    pub(super) attached: bool,
    /// The control group above its containers', if this runtime made it.
    pub(super) made_cgroup: Option<String>,
}

/// `container.json`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    pub(super) id: String,
    pub(super) sandbox: String,
    pub(super) config: Encoded<cri::ContainerConfig>,
    pub(super) created_at: i64,
    pub(super) boot: String,
    /// The id of its image.
    pub(super) image: String,
    /// The image by digest, as statuses show it.
    pub(super) image_ref: String,
    /// Directories of the image's layers.
    pub(super) layers: Vec<String>,
    /// The signal that asks it to end.
    pub(super) stop_signal: i32,
    /// Who it runs as.
    pub(super) user: Encoded<cri::LinuxContainerUser>,
    pub(super) launch: Launch,
}

/// The state of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Created,
    Running(Started),
    Exited(Option<Started>, Exit),
}

impl Phase {
    /// Phases only go forward.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Phase::Created => 0,
            Phase::Running(_) => 1,
            Phase::Exited(..) => 2,
        }
    }

    pub(super) fn started(&self) -> Option<Started> {
        match self {
            Phase::Created => None,
            Phase::Running(started) => Some(*started),
            Phase::Exited(started, _) => *started,
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Phase::Created => "created, not started",
            Phase::Running(_) => "running",
            Phase::Exited(..) => "exited",
        }
    }

    /// As the files in the container's directory say.
    pub(super) fn read(directory: &Path) -> io::Result<Self> {
        let started: Option<Started> = durable::read_json(&directory.join("started.json"))?;
        let exit: Option<Exit> = durable::read_json(&directory.join("exit.json"))?;
        Ok(match (started, exit) {
            (started, Some(exit)) => Phase::Exited(started, exit),
            (Some(started), None) => Phase::Running(started),
            (None, None) => Phase::Created,
        })
    }
}
