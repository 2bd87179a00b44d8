//! The container runtime: images, snapshots, sandboxes and containers, behind a trait that is
//! shaped as the Container Runtime Interface.
//!
//! **Invariant**: containers outlive the agent. Each pod has a small single-threaded shim
//! process (the same binary re-executed) that creates, holds and reaps its containers; state is
//! on disk before it is reported. `libcontainer` is called by the shim alone: it clones, and in
//! a process with threads that hangs now and then.

mod context;
mod cri;
mod dockerfile;
mod error;
mod image;
mod local;
mod protocol;
mod registry;
pub mod shim;
mod sys;

pub use cri::{
    About, Attachment, Connection, Duplex, Input, Network, Output, Runtime, Session, TerminalSize,
};
pub use error::{Error, Kind, Result, Source};
pub use image::{ImageConfig, ImageFile, Progress, repository_of};
pub use local::{BuildRequest, Embedded, Options, PROGRESS_LINES, Transfer, unpack_context};
pub use registry::Credentials;
