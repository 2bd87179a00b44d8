//! How many requests are worked on at once.

/// Requests that only read: Kubernetes' default. Watches and streams do not count.
pub(crate) const MAX_READS: usize = 400;
/// Requests that write: Kubernetes' default.
pub(crate) const MAX_WRITES: usize = 200;
