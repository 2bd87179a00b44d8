//! The Container Runtime Interface over wires: any [`decapod_runtime::Runtime`] served on a Unix socket, any CRI runtime
//! behind a socket as a `Runtime`, and the streams of processes by the protocols that Kubernetes' clients speak.
//!
//! **Invariant**: nothing here decides about containers. What a call means is the runtime's, in process or behind a
//! socket, and the contract suite of the trait runs on both.

mod remote;
mod server;
mod status;
pub mod stream;

pub use remote::{EndpointError, Remote};
pub use server::{Error as ServerError, Server};
