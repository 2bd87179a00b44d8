//! The wall clock, injected: the API server stamps objects, tokens and certificates with it.
//!
//! The other components' clock lives in `decapod-client`, which the API server must not see.

use jiff::Timestamp;

/// Where the time of day comes from.
pub trait Clock: Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// The time as Kubernetes writes it into objects: RFC 3339, whole seconds, UTC.
pub(crate) fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The time as a Kubernetes `MicroTime`.
pub(crate) fn rfc3339_micros(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}
