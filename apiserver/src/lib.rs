//! The Kubernetes API server: the only owner of persisted state.
//!
//! Requests pass `server::filter` (authentication, authorization, limits), are routed by
//! `endpoint`, and read or written by `registry` over the store. [`Server::start`] puts it
//! together; [`Handle::service_as`] is how components of the same process speak to it.

mod admission;
mod audit;
mod auth;
mod cache;
mod clock;
mod discovery;
mod encryption;
mod endpoint;
mod flow;
mod http;
mod metrics;
mod nodeproxy;
mod openapi;
mod registry;
mod server;
mod table;
mod usage;
mod version;

pub mod pki;

pub use self::http::Body;
pub use admission::{AdmissionError, AdmissionPlugins, Tolerations};
pub use audit::{AuditError, AuditOptions, LogOptions, PolicyError, WebhookError, WebhookOptions};
pub use auth::UserInfo;
pub use auth::service_account::TokenOptions;
pub use auth::token_file::Error as TokenFileError;
pub use clock::{Clock, SystemClock};
pub use registry::allocate::Cidr;
pub use server::{Handle, InProcess, Limits, Options, Server, StartError, TokenError};
pub use version::{Build, git_version};
