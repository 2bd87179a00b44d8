//! Encryption at rest: from the resources that a configuration names to the keys of the store.

use std::sync::Arc;

use decapod_api::resource::{RESOURCES, Resource};
use decapod_storage::encryption::{Config, Covered};
use decapod_storage::{Encrypted, Store};
use tokio_util::sync::CancellationToken;

/// The store, with what the configuration names enciphered in it.
pub(crate) fn over(store: Arc<dyn Store>, config: &Config) -> Arc<Encrypted> {
    let mut covered: Vec<Covered> = Vec::new();
    for rule in &config.rules {
        let prefixes = rule.resources.iter().flat_map(|name| prefixes(name));
        covered.extend(prefixes.map(|prefix| (prefix, Arc::clone(&rule.keys))));
    }
    Arc::new(Encrypted::new(store, covered))
}

/// The prefixes of the keys of the resources that are meant: `secrets`, `deployments.apps`, `*.apps`,
/// `*.` (all of the core group), `*.*`.
fn prefixes(name: &str) -> Vec<String> {
    let (plural, group) = name.split_once('.').unwrap_or((name, ""));
    let meant = |row: &&Resource| match (plural, group) {
        ("*", "*") => true,
        ("*", group) => row.group == group,
        (plural, group) => row.group == group && row.plural == plural,
    };
    let mut found: Vec<String> = RESOURCES.iter().filter(meant).filter_map(Resource::key_prefix).collect();
    found.sort();
    found.dedup();
    if found.is_empty() && plural != "*" {
        // Kubernetes' layout of custom resources.
        found.push(if group.is_empty() {
            format!("/registry/{plural}/")
        } else {
            format!("/registry/{group}/{plural}/")
        });
    }
    found
}

/// Enciphers with the first key what older keys, or none, had enciphered.
pub(crate) async fn refresh(store: Arc<Encrypted>, stop: CancellationToken) {
    let done = tokio::select! {
        () = stop.cancelled() => return,
        done = store.refresh() => done,
    };
    match done {
        Ok(done) => {
            if done.rewritten > 0 {
                tracing::info!(objects = done.rewritten, "enciphered anew with the first key");
            }
            for key in done.undecipherable {
                tracing::error!(key = &*key, "no configured key deciphers this object: it cannot be read");
            }
        }
        Err(error) => tracing::warn!(%error, "cannot look for objects that an old key enciphered"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_where_they_are_kept() {
        assert_eq!(prefixes("secrets"), ["/registry/secrets/"]);
        assert_eq!(prefixes("nodes"), ["/registry/minions/"]);
        assert_eq!(prefixes("deployments.apps"), ["/registry/deployments/"]);
        assert_eq!(prefixes("foos.example.org"), ["/registry/example.org/foos/"]);
        assert!(prefixes("*.apps").contains(&"/registry/statefulsets/".to_owned()));
        assert!(!prefixes("*.apps").contains(&"/registry/secrets/".to_owned()));
        assert!(prefixes("*.").contains(&"/registry/configmaps/".to_owned()));
        assert!(prefixes("*.*").len() > prefixes("*.").len());
    }
}
