//! What a pull has fetched and not yet named is kept from those who tidy up; and nobody fetches the same twice at once.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Names that are needed by somebody, with how many need them.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases {
    names: Arc<Mutex<HashMap<String, usize>>>,
}

/// Keeps what it names until it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    names: Vec<String>,
    leases: Leases,
}

/// While it is held no lease begins.
pub(super) struct Stopped<'a> {
    names: MutexGuard<'a, HashMap<String, usize>>,
}

impl Leases {
    /// Keeps these. Waits while somebody tidies up: what is there afterwards stays.
    pub(super) fn take(&self, names: impl IntoIterator<Item = String>) -> Lease {
        // A name counts once, however often it is said.
        let names: HashSet<String> = names.into_iter().collect();
        let mut counts = self.lock();
        for name in &names {
            *counts.entry(name.clone()).or_default() += 1;
        }
        drop(counts);
        Lease { names: names.into_iter().collect(), leases: self.clone() }
    }

    /// Lets no lease begin.
    pub(super) fn stop(&self) -> Stopped<'_> {
        Stopped { names: self.lock() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        // Numbers are changed under it, and nothing panics.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stopped<'_> {
    /// Whether somebody needs this.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut counts = self.leases.lock();
        for name in &self.names {
            if let Some(count) = counts.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(name);
                }
            }
        }
    }
}

/// Turns: who fetches something has it for itself.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Fetches {
    /// What to hold while fetching this.
    pub(super) fn turn(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody holds or waits for are forgotten.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(name.to_owned()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_as_long_as_somebody_needs_them() {
        let leases = Leases::default();
        let first = leases.take(["a".to_owned(), "b".to_owned(), "a".to_owned()]);
        let second = leases.take(["a".to_owned()]);
        drop(first);
        assert!(leases.stop().contains("a") && !leases.stop().contains("b"));
        drop(second);
        assert!(!leases.stop().contains("a"));
    }
}
