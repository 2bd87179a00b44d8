//! How every component of Decapod talks to the API server.
//!
//! Scheduler, controllers, kubelet and network all see the cluster through a `kube::Client` and through
//! the pieces here: shared [`informer`]s that mirror a kind, the [`reconcile`] driver that turns changes
//! into level-triggered work, an [`event`] recorder, and the two things that make them testable and
//! observable: an injected [`clock`] and supervised [`task`]s.
//!
//! What always holds: nothing here knows the store. Inside one process the client is given the API
//! server's own router ([`transport::in_process`]), elsewhere a kubeconfig; no caller can tell.

pub mod clock;
mod counted;
pub mod error;
pub mod event;
pub mod informer;
mod key;
pub mod leader;
pub mod lease;
pub mod metrics;
pub mod reach;
pub mod reconcile;
pub mod servers;
pub mod task;
#[cfg(test)]
mod testing;
pub mod transport;

pub use key::ObjectKey;
