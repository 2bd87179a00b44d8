//! Which kinds the API server serves, for the controllers that work on all of them.

use std::sync::{Arc, PoisonError, RwLock};

use kube::Client;
use kube::core::ApiResource;
use kube::discovery::{Discovery, Scope};

use super::{Result, Says};

/// A served kind, at its most stable version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    pub(crate) verbs: Vec<String>,
}

impl Kind {
    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|one| one == verb)
    }

    /// `pods` or `deployments.apps`, as kubectl names them.
    pub(crate) fn name(&self) -> String {
        let resource = &self.resource;
        if resource.group.is_empty() {
            resource.plural.clone()
        } else {
            format!("{}.{}", resource.plural, resource.group)
        }
    }
}

/// The served kinds, as far as the last look at discovery told.
#[derive(Clone)]
pub(crate) struct Catalog {
    client: Client,
    kinds: Arc<RwLock<Arc<Vec<Kind>>>>,
}

impl Catalog {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, kinds: Arc::default() }
    }

    /// What is known.
    pub(crate) fn kinds(&self) -> Arc<Vec<Kind>> {
        self.kinds.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at discovery.
    pub(crate) async fn refresh(&self) -> Result<Arc<Vec<Kind>>> {
        let discovery = Discovery::new(self.client.clone());
        let discovery = match discovery.run_aggregated().await {
            Ok(discovery) => discovery,
            // A server that does not aggregate is asked group by group.
            Err(_) => Discovery::new(self.client.clone()).run().await.says("discover the served kinds")?,
        };
        let mut kinds = Vec::new();
        for group in discovery.groups() {
            for (resource, capabilities) in group.resources_by_stability() {
                let namespaced = capabilities.scope == Scope::Namespaced;
                kinds.push(Kind { resource, namespaced, verbs: capabilities.operations });
            }
        }
        kinds.sort_by_key(|kind| (kind.resource.group.clone(), kind.resource.plural.clone()));
        let kinds = Arc::new(kinds);
        *self.kinds.write().unwrap_or_else(PoisonError::into_inner) = kinds.clone();
        Ok(kinds)
    }
}
