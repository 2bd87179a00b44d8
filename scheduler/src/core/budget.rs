//! PodDisruptionBudgets as a preemption sees them: whose pods it had better not take (KEP-85).

use std::collections::BTreeMap;
use std::sync::Arc;

use decapod_api::labels::Selector;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use super::pod::PodInfo;

#[derive(Debug)]
struct Budget {
    selector: Selector,
    allowed: i64,
    budget: Arc<PodDisruptionBudget>,
}

/// All budgets, by namespace and name.
#[derive(Debug, Default)]
pub(crate) struct Budgets {
    all: BTreeMap<(String, String), Budget>,
    changes: u64,
}

impl Budgets {
    /// The budget is in this state now, or gone.
    pub(crate) fn set(&mut self, namespace: &str, name: &str, budget: Option<Arc<PodDisruptionBudget>>) {
        self.changes += 1;
        let key = (namespace.to_owned(), name.to_owned());
        let Some(budget) = budget else { return drop(self.all.remove(&key)) };
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        // A selector that makes no sense was refused by the API server; it selects nothing.
        let selector = Selector::try_from(selector).unwrap_or_else(|_| Selector::nothing());
        let allowed =
            i64::from(budget.status.as_ref().and_then(|status| status.disruptions_allowed).unwrap_or(0));
        self.all.insert(key, Budget { selector, allowed, budget });
    }

    /// Grows with every change.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// Which of these pods, taken in this order, would exceed a budget.
    pub(crate) fn exceeded(&self, pods: &[&Arc<PodInfo>]) -> Vec<bool> {
        if self.all.is_empty() {
            return vec![false; pods.len()];
        }
        let mut left: Vec<i64> = self.all.values().map(|budget| budget.allowed).collect();
        let each = pods.iter().map(|pod| {
            let meta = &pod.pod.metadata;
            let (Some(labels), Some(name)) = (&meta.labels, &meta.name) else { return false };
            let namespace = meta.namespace.as_deref().unwrap_or_default();
            let mut exceeds = false;
            for (((of, _), budget), left) in self.all.iter().zip(&mut left) {
                let status = budget.budget.status.as_ref();
                let counted = status
                    .and_then(|status| status.disrupted_pods.as_ref())
                    .is_some_and(|all| all.contains_key(name));
                if of != namespace
                    || counted
                    || budget.selector.is_everything()
                    || !budget.selector.matches(labels)
                {
                    continue;
                }
                *left -= 1;
                exceeds |= *left < 0;
            }
            exceeds
        });
        each.collect()
    }
}
