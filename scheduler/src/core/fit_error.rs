//! Why no node would do, in the words that people and tools know from Kubernetes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::decide::Preemption;
use super::plugins::Rejection;

/// All nodes were looked at, and none will do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FitError {
    /// The nodes that exist.
    pub(crate) nodes: usize,
    /// Why no node at all would do; then none was looked at.
    refusal: Option<String>,
    /// How often each reason was given.
    reasons: BTreeMap<String, usize>,
    /// What preemption found, per reason; `None` where it was not considered.
    preemption: Option<Preempt>,
    /// The plugins that rejected a node.
    pub(crate) plugins: BTreeSet<&'static str>,
}

/// What came of the thought of removing other pods.
#[derive(Debug, PartialEq, Eq)]
enum Preempt {
    NotEligible,
    Tried(BTreeMap<String, usize>),
}

impl FitError {
    pub(crate) fn new(nodes: usize) -> Self {
        let (reasons, plugins) = (BTreeMap::new(), BTreeSet::new());
        Self { nodes, refusal: None, reasons, preemption: None, plugins }
    }

    /// No node at all will do: `plugin` says so.
    pub(crate) fn refused(nodes: usize, plugin: &'static str, why: &str) -> Self {
        let mut error = Self::new(nodes);
        error.plugins.insert(plugin);
        error.refusal = Some(why.to_owned());
        error
    }

    /// Notes that a node was rejected.
    pub(crate) fn note(&mut self, rejection: &Rejection) {
        self.plugins.insert(rejection.plugin);
        for reason in &rejection.reasons {
            *self.reasons.entry(reason.clone().into_owned()).or_default() += 1;
        }
    }

    /// Notes that the pod may not remove others.
    pub(crate) fn note_not_eligible(&mut self) {
        self.preemption = Some(Preempt::NotEligible);
    }

    /// Notes what removing pods of lower priority from each node would bring.
    pub(crate) fn note_preemption(&mut self, outcomes: impl IntoIterator<Item = Preemption>) {
        let mut tried: BTreeMap<String, usize> = BTreeMap::new();
        for outcome in outcomes {
            match outcome {
                // It would help; whether and how it is done is not this message's.
                Preemption::Possible => return,
                Preemption::Useless(reasons) => {
                    for reason in reasons {
                        *tried.entry(reason.into_owned()).or_default() += 1;
                    }
                }
            }
        }
        self.preemption = Some(Preempt::Tried(tried));
    }
}

/// `2 b, 10 a`: sorted as text, as Kubernetes does it.
fn join(reasons: &BTreeMap<String, usize>) -> String {
    let mut texts: Vec<_> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    texts.sort();
    texts.join(", ")
}

impl fmt::Display for FitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        match &self.refusal {
            Some(why) => write!(f, "0/{} nodes are available: {why}.", self.nodes)?,
            None => write!(f, "0/{} nodes are available: {}.", self.nodes, join(&self.reasons))?,
        }
        // Kubernetes asks dynamic resource allocation first, which has nothing to give back.
        const CLAIMS: &str = "no new claims to deallocate";
        match &self.preemption {
            None => Ok(()),
            Some(Preempt::NotEligible) => {
                write!(f, " {CLAIMS}, preemption: not eligible due to preemptionPolicy=Never.")
            }
            Some(Preempt::Tried(tried)) => {
                write!(f, " {CLAIMS}, preemption: 0/{} nodes are available: {}.", self.nodes, join(tried))
            }
        }
    }
}

impl std::error::Error for FitError {}
