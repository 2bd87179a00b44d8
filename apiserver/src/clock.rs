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

/// A clock whose hands a test turns.
#[cfg(test)]
pub(crate) struct Manual(std::sync::Mutex<Timestamp>);

#[cfg(test)]
impl Manual {
    /// At the beginning of 2026.
    pub(crate) fn new() -> Self {
        Self(std::sync::Mutex::new(Timestamp::from_second(1_767_225_600).expect("a moment of 2026")))
    }

    pub(crate) fn advance(&self, days: i64) {
        let mut now = self.0.lock().expect("no test panics while it holds the clock");
        *now += jiff::SignedDuration::from_hours(24 * days);
    }
}

#[cfg(test)]
impl Clock for Manual {
    fn now(&self) -> Timestamp {
        *self.0.lock().expect("no test panics while it holds the clock")
    }
}
