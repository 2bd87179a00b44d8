//! The node agent: registers its Node, runs the pods that are bound to it, and answers for them.
//!
//! **Invariants**: the agent holds a desired state and converges on it, whatever was lost in between; it can be
//! killed at any moment, and the next one finds every container again and starts nothing twice; it reaches the
//! cluster through the Kubernetes API alone, and containers through [`decapod_runtime::Runtime`] alone.

mod cgroup;
mod config;
mod drain;
mod env_file;
mod environment;
mod eviction;
mod files;
mod images;
mod inotify;
mod kubelet;
mod logs;
mod measured;
mod measures;
mod node;
mod oom;
mod options;
mod pod;
mod probe;
mod rotate;
mod server;
mod shared;
mod statics;
mod tell;
mod traffic;
mod usage;
mod users;
mod volume;
mod wake;
mod worker;

pub use drain::Drain;
pub use eviction::EvictionOptions;
pub use eviction::threshold::{
    Amount, Error as ThresholdError, Signal, Threshold, parse as parse_thresholds,
};
pub use images::docker_credentials;
pub use kubelet::{Dependencies, Error, Kubelet, teardown};
pub use options::{ImageGc, LogOptions, Options, Reserved, ServerOptions, fixed};
pub use server::Error as ServerError;
pub use traffic::{NoServices, Traffic};
