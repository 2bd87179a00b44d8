//! The client for image registries: OCI's distribution specification and Docker's v2 API, over HTTPS.
//!
//! **Invariants**: credentials go to the registry that an image's name says, to its token server, and nowhere else:
//! neither to a mirror nor to where a redirect leads. Plain HTTP is spoken only where the user named it, and to this
//! machine itself. Everything that a registry says is bounded in size, and nothing waits for ever.

mod auth;
mod client;
mod config;
mod error;
mod proxy;
mod transfer;
mod transport;

pub use auth::Credentials;
pub(crate) use client::{Client, Manifest, Purpose};
pub(crate) use config::Registries;
pub(crate) use error::Error;
pub(crate) use transfer::Count;
